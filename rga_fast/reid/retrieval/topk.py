"""The nearest images of every query, exactly, from a few rows of distances at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rga_fast.reid.retrieval.distances import GRID, Distances

_ELEMENTS = 1 << 25  # distances held at a time


class Nearest(NamedTuple):
    """images, distances: (Nq, k), ascending by (distance, gallery index). farthest: (Nq,), the
    largest distance of each query from any image."""

    images: Tensor
    distances: Tensor
    farthest: Tensor


@torch.no_grad()
def nearest(distances: Distances, k: int) -> Nearest:
    """The k nearest gallery images of each query, all of them where there are fewer. Equal
    distances rank by gallery index. Takes about 128 MB beyond the result, or `GRID` rows.

    Raises:
        ValueError: for a k below 1.
    """
    if k < 1:
        raise ValueError(f"nearest: k must be at least 1, got {k}")
    queries, images = distances.shape
    block = max(1, _ELEMENTS // (images * GRID)) * GRID
    parts = []
    for start in range(0, queries, block):
        rows = distances.rows(start, min(start + block, queries))
        parts.append((*lowest(rows, min(k, images)), rows.amax(dim=1)))
    return Nearest(*map(torch.cat, zip(*parts, strict=True)))


def lowest(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices and values (b, k). `topk` takes any of equal values: a row in which value k + 1
    equals value k is sorted as a whole."""
    more = min(k + 1, rows.shape[1])
    values, indices = rows.topk(more, dim=1, largest=False, sorted=True)
    if more > k:
        tied = (values[:, k] == values[:, k - 1]).nonzero().flatten()
        values, indices = values[:, :k], indices[:, :k]
        for row in tied.split(GRID):
            ordered = rows[row].sort(dim=1, stable=True)
            values[row], indices[row] = ordered.values[:, :k], ordered.indices[:, :k]
    order = indices.argsort(dim=1)
    order = order.gather(1, values.gather(1, order).argsort(dim=1, stable=True))
    return indices.gather(1, order), values.gather(1, order)
