"""Distances between query and gallery features, a block at a time.

A `Distances` gives rows of the matrix on demand; ranking takes any of them. `FeatureDistances` are
those of features, `rerank.py` has the re-ranked ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

METRICS = ("cosine", "euclidean")
GRID = 128  # rows of a product in plain PyTorch: always the same ones together, and so are
COLUMNS = 8192  # its columns, because the last bit of a product depends on its shape

Rows = slice | Tensor


class Distances(Protocol):
    """The distances of every query (row) from every gallery image (column), never held whole."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def device(self) -> torch.device: ...

    def rows(self, start: int, stop: int) -> Tensor:
        """(stop - start, gallery images) float32. Where `start` is a multiple of `GRID` and `stop`
        is one or the number of queries, the values do not depend on how many rows are asked for."""
        ...


class FeatureDistances:
    """Cosine distances of features, or squared Euclidean ones less the query's square.

    What is left out is the same for all distances of a query and so does not change its ranks.

    Args:
        query: (Nq, D), any floating type; distances are computed in float32.
        gallery: (Ng, D), on the same device.
        metric: "cosine" or "euclidean".
        caller: the function that errors name.

    Raises:
        ValueError: for a wrong shape, type or device and for features that are not finite.
    """

    def __init__(
        self, query: Tensor, gallery: Tensor, metric: str = "cosine", caller: str = "distances"
    ):
        if metric not in METRICS:
            raise ValueError(f"{caller}: distance must be one of {METRICS}, got {metric!r}")
        _check_shapes(query, gallery, caller)
        self.query, self.gallery, self.metric = query, gallery, metric
        self._query_norms = _norms("query_features", query, caller)
        self._gallery_norms = _norms("gallery_features", gallery, caller)
        if metric == "cosine":
            self.scale, self.offset = -1.0, self._gallery_norms.new_ones(len(gallery))
        else:
            self.scale = -2.0
            self.offset = torch.cat(
                [rows.float().square().sum(dim=1) for rows in gallery.split(COLUMNS)]
            )

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.query), len(self.gallery)

    @property
    def device(self) -> torch.device:
        return self.query.device

    def query_rows(self, rows: Rows) -> Tensor:
        """These queries as they enter the product: float32, of length 1 for the cosine."""
        return self._prepared(self.query[rows], self._query_norms[rows])

    def gallery_rows(self, rows: Rows, out: Tensor | None = None) -> Tensor:
        """`out`: float32 memory to use again, of at least as many rows. Fresh memory costs more
        than the division: a page fault every 4 KB."""
        if out is None:
            return self._prepared(self.gallery[rows], self._gallery_norms[rows])
        norms = self._gallery_norms[rows]
        out = out[: len(norms)]
        if isinstance(rows, Tensor) and self.gallery.dtype == torch.float32:
            features = torch.index_select(self.gallery, 0, rows, out=out)
        else:
            features = self.gallery[rows]
        if self.metric == "cosine":
            return torch.div(features, norms.clamp_min(1e-12)[:, None], out=out)
        return features if features is out else out.copy_(features)

    def of_products(self, products: Tensor, columns: Rows) -> Tensor:
        """Distances from products of prepared rows (b, n), in place."""
        return products.mul_(self.scale).add_(self.offset[columns])

    def rows(self, start: int, stop: int) -> Tensor:
        query = self.query_rows(slice(start, stop))
        out = query.new_empty(len(query), len(self.gallery))
        with full_precision(self.device):
            for first in range(0, len(self.gallery), COLUMNS):
                columns = slice(first, min(first + COLUMNS, len(self.gallery)))
                gallery = self.gallery_rows(columns).T
                for row in range(0, len(query), GRID):
                    out[row : row + GRID, columns] = query[row : row + GRID] @ gallery
                self.of_products(out[:, columns], columns)
        return out

    def squared(self, distances: Tensor, queries: Tensor) -> Tensor:
        """The squares of distances (n, ...) of these queries (n,): of the cosine distance, or of
        the Euclidean one with the query's square added again."""
        if self.metric == "cosine":
            return distances.clamp(min=0).square()
        squares = self._query_norms[queries].square()
        return (distances + squares.view(-1, *[1] * (distances.ndim - 1))).clamp(min=0)

    def _prepared(self, features: Tensor, norms: Tensor) -> Tensor:
        features = features.float()
        if self.metric == "cosine":
            return features / norms.clamp_min(1e-12)[:, None]
        return features.contiguous()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 products without TF32, whatever is set."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _norms(name: str, features: Tensor, caller: str) -> Tensor:
    """(N,) the lengths of the rows, which have to be finite."""
    norms = torch.cat(
        [torch.linalg.vector_norm(rows.float(), dim=1) for rows in features.split(COLUMNS)]
    )
    finite = norms.isfinite()
    if not finite.all():
        row = int(finite.logical_not().nonzero()[0])
        raise ValueError(
            f"{caller}: {name} must be finite, with norms that fit float32; "
            f"{int((~finite).sum())} of {len(finite)} rows are not, the first is row {row}"
        )
    return norms


def _check_shapes(query: Tensor, gallery: Tensor, caller: str) -> None:
    for name, features in (("query_features", query), ("gallery_features", gallery)):
        if features.ndim != 2 or 0 in features.shape or not features.is_floating_point():
            raise ValueError(
                f"{caller}: {name} must be floating point (N, D) with N, D > 0, "
                f"got {features.dtype} {tuple(features.shape)}"
            )
    if query.shape[1] != gallery.shape[1] or query.device != gallery.device:
        raise ValueError(
            f"{caller}: query and gallery features must have one width and one device, "
            f"got {query.shape[1]} on {query.device} and {gallery.shape[1]} on {gallery.device}"
        )
