"""Approximate search in large galleries, with FAISS (extra `faiss`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

KINDS = ("ivf", "hnsw", "pq")
SUFFIX = ".faiss"
_LEARNT_FROM = 200_000  # rows at most, for cells and codes
_LINKS = 32  # of a node of the graph


def faiss() -> Any:
    """The module; ImportError names the extra."""
    try:
        import faiss as module
    except ImportError as error:
        raise ImportError(
            f"approximate search needs FAISS: pip install 'rga-fast[faiss]' ({error})"
        ) from error
    return module


def make(kind: str, shards: Callable[[], Iterator[Tensor]], rows: int, width: int) -> Any:
    """A FAISS index of unit vectors by inner product.

    Args:
        kind: "ivf", "hnsw" or "pq", see `add_approximate`.
        shards: the features (n, D), a shard at a time; called twice.
        rows, width: of all of them.
    """
    library = faiss()
    product = library.METRIC_INNER_PRODUCT
    if kind == "hnsw":
        built = library.IndexHNSWFlat(width, _LINKS, product)
    else:
        cells = max(1, min(round(4 * math.sqrt(rows)), rows // 39))  # FAISS wants 39 rows a cell
        centres = library.IndexFlatIP(width)
        if kind == "ivf":
            built = library.IndexIVFFlat(centres, width, cells, product)
        else:
            bits = min(8, int(math.log2(max(2, rows // 39))))
            codes = next(n for n in range(max(1, width // 8), 0, -1) if width % n == 0)
            built = library.IndexIVFPQ(centres, width, cells, codes, bits, product)
        built.nprobe = max(1, min(cells, 8 + cells // 32))
        step = math.ceil(rows / _LEARNT_FROM)
        built.train(torch.cat([normalize(part[::step]) for part in shards()]).numpy())
    for part in shards():
        built.add(normalize(part).numpy())
    return built


def save(built: Any, path: Path) -> None:
    faiss().write_index(built, str(path))


def load(path: Path) -> Any:
    return faiss().read_index(str(path))


def search(built: Any, unit: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Rows and cosine distances (Nq, k) of queries of length 1; where fewer are found, the distance
    is infinite."""
    products, rows = built.search(unit.numpy(), k)
    found = torch.from_numpy(rows)
    return found, (1 - torch.from_numpy(products)).masked_fill_(found < 0, torch.inf)
