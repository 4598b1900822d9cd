"""Person re-identification on top of rga_fast: data, network, training, evaluation.

net = rga_fast.reid.load("runs/mine")  # a trained network: features, compare, search
"""

from importlib import import_module
from typing import Any

# Found when they are asked for: importing a room's module must not import every room.
_PUBLIC = {
    "Filter": "rga_fast.reid.retrieval.index.search",
    "Index": "rga_fast.reid.retrieval.index.search",
    "Match": "rga_fast.reid.retrieval.index.search",
    "ReidModel": "rga_fast.reid.retrieval.model",
    "build_index": "rga_fast.reid.retrieval.index.build",
    "load": "rga_fast.reid.retrieval.model",
    "remove_images": "rga_fast.reid.retrieval.index.build",
    "to_lancedb": "rga_fast.reid.retrieval.index.stores",
    "to_postgres": "rga_fast.reid.retrieval.index.stores",
}
__all__ = ["ReidModel", "load"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
