"""Attention after a stage of the network, by name."""

from collections.abc import Callable
from typing import Any

from torch import nn

from rga_fast import validation
from rga_fast.reid.network.attention import rga

SYSTEMS: dict[str, Callable[..., nn.Module]] = {**rga.SYSTEMS}
NONE = "none"  # the baseline
NAMES = (NONE, *SYSTEMS)


def make_attention(name: str, channels: int, size: tuple[int, int], **options: Any) -> nn.Module:
    """The attention `name`: (B, channels, *size) -> the same shape. "none" changes nothing.

    Args:
        name: one of `NAMES`.
        channels, size: C and (H, W) of the maps.
        options: of the system's constructor. Those of `RGA` are `impl` and the ratios; its variant
            and ablations are part of the name.

    Raises:
        ValueError: for a name that does not exist, or an impossible option.
    """
    validation.check_choice("make_attention", "name", name, NAMES)
    if name == NONE:
        return nn.Identity()
    return SYSTEMS[name](channels, size, **options)
