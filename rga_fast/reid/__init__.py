"""Person re-identification on top of rga_fast: data, network, training, evaluation.

net = rga_fast.reid.load("runs/mine")  # a trained network: features, compare, search
"""

from importlib import import_module
from typing import Any

# Found when they are asked for: importing a room's module must not import every room.
_PUBLIC = {
    "ReidModel": "rga_fast.reid.retrieval.model",
    "load": "rga_fast.reid.retrieval.model",
}
__all__ = ["ReidModel", "load"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
