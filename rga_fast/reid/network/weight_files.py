"""Files of weights, in the forms in which they circulate: names and tensors, no code."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

# Where a checkpoint has its weights, the first that is there: averages before what they are of.
ENTRIES = (
    *("ema", "state_dict_ema", "model_ema", "teacher"),
    *("state_dict", "model_state_dict", "model_state", "model", "network", "net", "weights"),
)

RATIOS = ("spatial_ratio", "down_ratio")

_SCALAR = np.float64(0).__reduce__()[0]

# Harmless values that training scripts put beside the weights: scores from numpy, their options.
# None of these calls anything. Files name numpy's core by its former or its present module.
_VALUES: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


class WeightFile(NamedTuple):
    """A state dict, and the names of the entries of the file that it was `inside`, "" for none.

    A checkpoint of this package has the `size` of its images, (height, width), and the `ratios` of
    its attention, which `resize_relations` takes.
    """

    state: dict[str, Tensor]
    inside: str
    size: tuple[int, int] | None = None
    ratios: dict[str, int] = {}  # noqa: RUF012


def read_weights(path: Path) -> WeightFile:
    """The weights in a file.

    Args:
        path: .safetensors, or `torch.save`'s format: a state dict, or a dict that has one in one of
            `ENTRIES`. Code in a file is never run.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file with weights at {path}")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with torch.serialization.safe_globals(_VALUES):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # many kinds, depending on the file
        raise ValueError(f"{path} is not a file of weights: {type(error).__name__}") from error
    state: Any = content
    entered = []
    while isinstance(state, dict) and not _is_state(state):
        entry = next((e for e in ENTRIES if isinstance(state.get(e), dict) and state[e]), None)
        if entry is None:
            break
        state = state[entry]
        entered.append(entry)
    if not _is_state(state):
        raise ValueError(
            f"{path} must hold a state dict (names and tensors), alone or as one of "
            f"{', '.join(ENTRIES)}; got {_describe(content)}"
        )
    inside = ".".join(entered)
    config = content.get("config") if isinstance(content, dict) else None
    if not isinstance(config, dict) or not {"height", "width", *RATIOS} <= set(config):
        return WeightFile(state, inside)
    ratios = {name: config[name] for name in RATIOS}
    return WeightFile(state, inside, (config["height"], config["width"]), ratios)


def _is_state(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items()
    )


def _describe(value: object) -> str:
    if isinstance(value, dict):
        return f"a dict with the keys {', '.join(map(str, list(value)[:5]))}"
    return f"a {type(value).__name__}"
