"""RGA (Zhang et al., CVPR 2020): every combination of its branches, whole and with each ablation.

The names follow the paper's tables: `rga-sc` is the spatial branch, then the channel branch;
`rga-s//c` both side by side (the paper does not say how they are fused, see `rga_fast.RGA`);
`-no-relations` and `-no-appearance` are "w/o Rel." and "w/o Ori." of Table 1; `-symmetric` and
`-no-embedding` the other rows of Table 4.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from rga_fast.modules import RGA, VARIANTS

ABLATIONS: dict[str, dict[str, Any]] = {
    "": {},
    "-no-relations": {"relations": False},
    "-no-appearance": {"appearance": False},
    "-symmetric": {"embedding": "symmetric"},
    "-no-embedding": {"embedding": "none"},
    "-no-appearance-symmetric": {"appearance": False, "embedding": "symmetric"},
    "-no-appearance-no-embedding": {"appearance": False, "embedding": "none"},
}
OPTIONS = {
    f"rga-{variant}{suffix}": {"variant": variant, **ablation}
    for variant in VARIANTS
    for suffix, ablation in ABLATIONS.items()
}
SYSTEMS: dict[str, Callable[..., nn.Module]] = {
    name: partial(RGA, **options) for name, options in OPTIONS.items()
}

_WHOLE = {"variant": "sc", "relations": True, "appearance": True, "embedding": "asymmetric"}


def changed_name(name: str, options: dict[str, Any]) -> str:
    """The system that `name` becomes with other `options` of `RGA`: `variant` (None: no attention),
    `relations`, `appearance`, `embedding`.

    Raises:
        ValueError: if they are no options of `name`, or options that `RGA` does not have.
    """
    if options.get("variant", "") is None:
        return "none"
    if name not in SYSTEMS and "variant" not in options:
        raise ValueError(f"attention: {', '.join(options)}: an option of RGA, got {name!r}")
    wanted = _WHOLE | OPTIONS.get(name, {}) | options
    if not wanted["relations"]:
        wanted["embedding"] = _WHOLE["embedding"]  # nothing is related, nothing embedded
    for known, found in OPTIONS.items():
        if _WHOLE | found == wanted:
            return known
    raise ValueError(f"attention: there is no RGA with {_in_words(options)}")


def _in_words(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())
