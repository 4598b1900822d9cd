"""k-reciprocal re-ranking without a matrix (Zhong et al., "Re-ranking Person Re-identification with
k-reciprocal Encoding", CVPR 2017).

The algorithm sees each image, query or gallery, as a vector of weights over all images. Nearly all
are zero, so that only the others are stored: a few dozen an image. Its distances are a `Distances`
like any other, made a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rga_fast.reid.retrieval.distances import FeatureDistances
from rga_fast.reid.retrieval.topk import nearest

_ELEMENTS = 1 << 24  # of a dense block of rows
_PAIRS = 1 << 23  # common neighbours that are added up at a time
_GATHERED = 1 << 23  # elements of gathered features


class Reranking(NamedTuple):
    """The published numbers; `RerankedDistances` explains them."""

    k1: int = 20
    k2: int = 6
    weight: float = 0.3

    @classmethod
    def parse(cls, text: str) -> Reranking:
        """From "20,6,0.3"."""
        try:
            k1, k2, weight = text.split(",")
            return cls(int(k1), int(k2), float(weight))
        except ValueError:
            raise ValueError(f"rerank: expected K1,K2,LAMBDA as 20,6,0.3, got {text!r}") from None


class SparseRows(NamedTuple):
    """Row i has `values[begin[i] : begin[i + 1]]` in `columns[begin[i] : begin[i + 1]]`, columns
    ascending."""

    begin: Tensor
    columns: Tensor
    values: Tensor

    @property
    def rows(self) -> Tensor:
        counts = self.begin.diff()
        return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)


class RerankedDistances:
    """(1 - weight) * Jaccard distance of the k-reciprocal neighbours + weight * distance.

    Distances are squared and divided by the largest of their query, as the original does; the
    largest and all neighbours are taken over queries and gallery together.

    Args:
        features: the original distances.
        k1: neighbours that must be mutual. k2: neighbours whose weights are averaged (1: none).
            Published: 20 and 6; 50 and 15 for galleries with many images of a person.
        weight: of the original distance, the published lambda.

    Memory: a prepared copy of the features, about k1 * k2 numbers an image, and 300 MB.

    Raises:
        ValueError: for k1 or k2 below 1, k2 above k1 + 1, or a weight outside [0, 1].
    """

    def __init__(
        self, features: FeatureDistances, k1: int = 20, k2: int = 6, weight: float = 0.3
    ) -> None:
        if k1 < 1 or not 1 <= k2 <= k1 + 1:
            raise ValueError(
                f"rerank: k1 must be at least 1 and k2 from 1 to k1 + 1, got k1 {k1} and k2 {k2}"
            )
        if not 0 <= weight <= 1:
            raise ValueError(f"rerank: the weight must be from 0 to 1, got {weight}")
        self._features, self._weight = features, weight
        with torch.no_grad():
            joined = torch.cat(
                [features.query_rows(slice(None)), features.gallery_rows(slice(None))]
            )
            together = FeatureDistances(joined, joined, features.metric, "rerank")
            found = nearest(together, k1 + 1)
            everyone = torch.arange(len(joined), device=joined.device)
            self._largest = together.squared(found.farthest, everyone).clamp(min=1e-30)
            vectors = _encode(together, found.images, self._largest, round(k1 / 2))
            if k2 > 1:
                vectors = _averaged(vectors, found.images[:, :k2])
        queries = len(features.query)
        self._query = _slice(vectors, 0, queries)
        self._gallery = _transposed(_slice(vectors, queries, len(joined)), len(joined))

    @property
    def shape(self) -> tuple[int, int]:
        return self._features.shape

    @property
    def device(self) -> torch.device:
        return self._features.device

    @torch.no_grad()
    def rows(self, start: int, stop: int) -> Tensor:
        queries = torch.arange(start, stop, device=self.device)
        original = self._features.squared(self._features.rows(start, stop), queries)
        original /= self._largest[start:stop, None]
        shared = self._shared(start, stop)
        jaccard = 1 - shared / (2 - shared)
        return jaccard.mul_(1 - self._weight).add_(original, alpha=self._weight)

    def _shared(self, start: int, stop: int) -> Tensor:
        """(stop - start, Ng) the sum of the smaller of both weights over all images."""
        images = self.shape[1]
        shared = torch.zeros((stop - start) * images, device=self.device)
        own = _slice(self._query, start, stop)
        first = own.rows * images
        lengths = self._gallery.begin.diff()[own.columns]
        for part in _parts(lengths, _PAIRS):
            counts = lengths[part]
            source = self._gallery.begin[own.columns[part]].repeat_interleave(counts)
            source += _within(counts)
            smaller = torch.minimum(
                own.values[part].repeat_interleave(counts), self._gallery.values[source]
            )
            target = first[part].repeat_interleave(counts)
            shared.index_add_(0, target + self._gallery.columns[source], smaller)
        return shared.view(stop - start, images)


def _encode(
    together: FeatureDistances, neighbours: Tensor, largest: Tensor, half_k: int
) -> SparseRows:
    """The weights of each image's expanded k-reciprocal neighbours, exp(-distance), sum 1."""
    half = neighbours[:, : half_k + 1]
    mutual, half_mutual = _mutual(neighbours), _mutual(half)
    sizes = half_mutual.sum(dim=1)
    members = []
    for rows in _row_blocks(neighbours):
        near, kept = neighbours[rows], mutual[rows]
        member = torch.zeros(len(near), len(neighbours), dtype=torch.bool, device=near.device)
        member.scatter_(1, near, kept)  # the neighbours of a row are distinct
        candidates = half[near].flatten(1)  # (b, k * h): the neighbours' own
        belongs = half_mutual[near] & kept[:, :, None]  # (b, k, h)
        common = (member.gather(1, candidates).view_as(belongs) & belongs).sum(dim=2)
        joins = belongs & (3 * common > 2 * sizes[near])[:, :, None]
        row, place = joins.flatten(1).nonzero(as_tuple=True)
        member[row, candidates[row, place]] = True
        member_rows, columns = member.nonzero(as_tuple=True)
        members.append((member_rows + rows.start, columns))
    row, columns = map(torch.cat, zip(*members, strict=True))
    begin = _begin(torch.bincount(row, minlength=len(neighbours)))
    weights = (-_pair_distances(together, row, columns) / largest[row]).exp_()
    sums = torch.zeros_like(largest).index_add_(0, row, weights)
    return SparseRows(begin, columns, weights / sums[row])


def _mutual(neighbours: Tensor) -> Tensor:
    """(N, k) bool: whether a row is a neighbour of its neighbour, too."""
    parts = []
    for start in range(0, len(neighbours), 4096):
        near = neighbours[start : start + 4096]
        own = torch.arange(start, start + len(near), device=near.device)
        parts.append((neighbours[near] == own[:, None, None]).any(dim=2))
    return torch.cat(parts)


def _pair_distances(together: FeatureDistances, rows: Tensor, columns: Tensor) -> Tensor:
    """(n,) the squared distances of pairs of images."""
    step = max(1, _GATHERED // together.query.shape[1])
    parts = []
    for row, column in zip(rows.split(step), columns.split(step), strict=True):
        products = (together.query_rows(row) * together.gallery_rows(column)).sum(dim=1)
        parts.append(together.squared(together.of_products(products, column), row))
    return torch.cat(parts)


def _averaged(vectors: SparseRows, neighbours: Tensor) -> SparseRows:
    """Each row becomes the mean of the rows of its neighbours (N, k2)."""
    parts = []
    size, k2 = neighbours.shape
    for block in _row_blocks(neighbours):
        near = neighbours[block].flatten()
        counts = vectors.begin.diff()[near]
        source = vectors.begin[near].repeat_interleave(counts) + _within(counts)
        row = torch.arange(len(near), device=near.device) // k2
        dense = torch.zeros((block.stop - block.start) * size, device=near.device)
        target = (row * size).repeat_interleave(counts) + vectors.columns[source]
        dense.index_add_(0, target, vectors.values[source])
        dense = dense.view(-1, size)
        kept = dense.nonzero(as_tuple=True)
        parts.append((kept[0] + block.start, kept[1], dense[kept] / k2))
    rows, columns, values = map(torch.cat, zip(*parts, strict=True))
    return SparseRows(_begin(torch.bincount(rows, minlength=size)), columns, values)


def _row_blocks(neighbours: Tensor) -> Iterator[slice]:
    """Rows that fit dense into memory."""
    size = len(neighbours)
    step = max(1, _ELEMENTS // size)
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _transposed(rows: SparseRows, columns: int) -> SparseRows:
    order = rows.columns.argsort(stable=True)
    begin = _begin(torch.bincount(rows.columns, minlength=columns))
    return SparseRows(begin, rows.rows[order], rows.values[order])


def _slice(rows: SparseRows, start: int, stop: int) -> SparseRows:
    begin = rows.begin[start : stop + 1]
    inside = slice(int(begin[0]), int(begin[-1]))
    return SparseRows(begin - begin[0], rows.columns[inside], rows.values[inside])


def _parts(lengths: Tensor, most: int) -> Iterator[slice]:
    """Runs of entries whose lengths add up to about `most`."""
    ends = lengths.cumsum(0)
    start = 0
    while start < len(lengths):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(torch.searchsorted(ends, before + most, right=True)))
        yield slice(start, stop)
        start = stop


def _within(counts: Tensor) -> Tensor:
    """0, 1, ... count - 1 for each count, one after the other."""
    begin = counts.cumsum(0) - counts
    return torch.arange(int(counts.sum()), device=counts.device) - begin.repeat_interleave(counts)


def _begin(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
