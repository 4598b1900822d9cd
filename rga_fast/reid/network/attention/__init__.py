"""Attention after a stage of the network, by name: RGA and the systems that its paper compares it
with. A file a family; where the paper leaves something open, the file says what is taken."""

from collections.abc import Callable
from typing import Any

from torch import nn

from rga_fast import validation
from rga_fast.modules import VARIANTS
from rga_fast.reid.network.attention import cbam, fc, non_local, rga, se

FAMILIES: dict[str, dict[str, Callable[..., nn.Module]]] = {
    "RGA": rga.SYSTEMS,
    "CBAM": {**cbam.SYSTEMS},
    "SE": {**se.SYSTEMS},
    "non-local": {**non_local.SYSTEMS},
    "FC": {**fc.SYSTEMS},
}
SYSTEMS = {name: make for family in FAMILIES.values() for name, make in family.items()}
NONE = "none"  # the baseline
NAMES = (NONE, *SYSTEMS)

# Table 3 of the paper: millions of parameters of ResNet-50 with each system after its stages.
TABLE_3 = {
    **{"none": 25.1, "rga-s": 28.3, "rga-c": 28.1, "cbam-s": 26.1, "cbam-c": 26.4, "se": 27.6},
    **{"nl": 30.6, "fc-s": 26.9, "fc-c": 26.4},
}


def listed() -> list[tuple[str, str]]:
    """Every family and its names, in words: those of RGA's ablations by their endings alone."""
    families = [(family, ", ".join(names)) for family, names in FAMILIES.items() if family != "RGA"]
    whole = ", ".join(f"rga-{variant}" for variant in VARIANTS)
    endings = ", ".join(ending for ending in rga.ABLATIONS if ending)
    return [("RGA", f"{whole}; each also with {endings}"), *families]


def make_attention(name: str, channels: int, size: tuple[int, int], **options: Any) -> nn.Module:
    """The attention `name`: (B, channels, *size) -> the same shape. "none" changes nothing.

    Args:
        name: one of `NAMES`.
        channels, size: C and (H, W) of the maps.
        options: `impl` and the ratios of `RGA`, whose variant and ablations are part of the name.
            The other systems are as published and take none.

    Raises:
        ValueError: for a name that does not exist, or an impossible option.
    """
    validation.check_choice("make_attention", "name", name, NAMES)
    if options and name not in rga.SYSTEMS:
        raise ValueError(f"make_attention: {name!r} takes no options, got {', '.join(options)}")
    if name == NONE:
        return nn.Identity()
    return SYSTEMS[name](channels, size, **options)
