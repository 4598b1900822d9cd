"""The ranks of every query's hits, without a matrix of distances or an argsort.

A ranking is a value: `rank_hits` makes one from any `Distances`, `metrics.py` scores it. The
distances of a query's hits are computed first; then every other image of the gallery only adds to
the count below each of them. On a CPU with AVX2 this is one operator over tiles that stay in cache
(operators.py), elsewhere plain PyTorch over a few rows at a time.

Ties: equal distances rank by gallery index, as a stable sort would. So that equal images have equal
distances and the division into blocks changes no rank, a distance depends on its two rows alone
(the operator), or the same rows are always multiplied together (plain PyTorch).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rga_fast.reid.retrieval.distances import GRID, Distances, FeatureDistances
from rga_fast.reid.retrieval.operators import fused

JUNK = -1
BLOCK = 4096  # queries that are prepared at a time
_ELEMENTS = 1 << 24  # of gallery images: fewer blocks, and the queries are packed less often
_EXCLUDED = torch.iinfo(torch.int64).max

LabelValues = Tensor | np.ndarray | Sequence[int]


class Labels(NamedTuple):
    """Identity and camera of every query (Nq,) and gallery image (Ng,), int64 on one device."""

    query_ids: Tensor
    gallery_ids: Tensor
    query_cams: Tensor
    gallery_cams: Tensor


class Rule(NamedTuple):
    """Which gallery images are ranked for a query; junk (identity -1) never is.

    By default those of its identity under its own camera are left out: the Market-1501 rule.

    keep_same_camera: they are hits, too. For data with one camera.
    separate_camera_set: all images of its own camera are left out, of whatever identity.
    """

    keep_same_camera: bool = False
    separate_camera_set: bool = False


class Hits(NamedTuple):
    """The gallery images that each query should find: those of query q are
    `images[begin[q] : begin[q + 1]]`."""

    begin: Tensor
    images: Tensor

    @property
    def counts(self) -> Tensor:
        return self.begin.diff()

    @property
    def queries(self) -> Tensor:
        """(H,) the query of each hit."""
        return torch.arange(len(self.begin) - 1, device=self.begin.device).repeat_interleave(
            self.counts
        )

    def select(self, kept: Tensor) -> Hits:
        """Those at which `kept` (H,) is true."""
        counts = torch.bincount(self.queries[kept], minlength=len(self.begin) - 1)
        return Hits(_begin(counts), self.images[kept])


class Ranking(NamedTuple):
    """The hits of query q, best first, are `begin[q]` to `begin[q + 1]` of the other fields.

    begin: (Nq + 1,) int64. images: (H,) int64, gallery indices. ranks: (H,) int64, from 1, among
    the images that are ranked for the query. distances: (H,) float32.
    """

    begin: Tensor
    images: Tensor
    ranks: Tensor
    distances: Tensor


def make_labels(
    query_ids: LabelValues,
    gallery_ids: LabelValues,
    query_cams: LabelValues,
    gallery_cams: LabelValues,
    distances: Distances,
    caller: str = "ranking",
) -> Labels:
    """Checked and on the device of the distances.

    Raises:
        ValueError: where these are not integers, one for each query and each gallery image.
    """
    queries, images = distances.shape
    values = (
        ("query_ids", query_ids, queries),
        ("gallery_ids", gallery_ids, images),
        ("query_cams", query_cams, queries),
        ("gallery_cams", gallery_cams, images),
    )
    return Labels(*(_integers(*value, distances.device, caller) for value in values))


def find_hits(labels: Labels, rule: Rule = Rule()) -> Hits:  # noqa: B008 (immutable)
    """The hits of every query, by gallery index.

    Raises:
        ValueError: for a rule that contradicts itself.
    """
    if rule.keep_same_camera and rule.separate_camera_set:
        raise ValueError("ranking: keep_same_camera and separate_camera_set exclude each other")
    ids, order = labels.gallery_ids.sort(stable=True)
    first = torch.searchsorted(ids, labels.query_ids)
    counts = torch.searchsorted(ids, labels.query_ids, right=True) - first
    counts.masked_fill_(labels.query_ids == JUNK, 0)
    begin = _begin(counts)
    hits = Hits(begin, order)
    queries = hits.queries
    within = torch.arange(len(queries), device=order.device) - begin[queries]
    hits = Hits(begin, order[first[queries] + within])
    if rule.keep_same_camera:
        return hits
    return hits.select(labels.gallery_cams[hits.images] != labels.query_cams[queries])


@torch.no_grad()
def rank_hits(
    distances: Distances,
    labels: Labels,
    rule: Rule = Rule(),  # noqa: B008 (immutable)
    *,
    hits: Hits | None = None,
    counted: Tensor | None = None,
    block: int = BLOCK,
) -> Ranking:
    """The ranks of every query's hits.

    Args:
        distances: of Nq queries from Ng gallery images.
        labels: from `make_labels`.
        hits: some of `find_hits(labels, rule)`, those by default.
        counted: (Ng,) bool, the images that are ranked beside the hits; all by default.
        block: queries at a time, where the operators run. Memory beyond the features: the ranks,
            D * block * 4 bytes twice, and 64 MB; in plain PyTorch about 30 * 128 * Ng bytes,
            whatever the block. The result does not depend on it.
    """
    if block < 1:
        raise ValueError(f"ranking: block must be at least 1, got {block}")
    hits = find_hits(labels, rule) if hits is None else hits
    if isinstance(distances, FeatureDistances) and fused(distances.device):
        return _rank_fused(distances, labels, rule, hits, counted, block)
    return _rank_rows(distances, labels, rule, hits, counted)


def hit_ranks(distances: Tensor, hits: Tensor, excluded: Tensor) -> Tensor:
    """Ranks, from 1, of every query's hits among the gallery images that are not excluded.

    Equal distances rank by gallery index: the ranks are those of a stable sort.

    Args:
        distances: (b, N) float32, not NaN.
        hits: (b, N) bool, the images that a query should find; none of them excluded.
        excluded: (b, N) bool, the images that are not ranked for a query.

    Returns:
        (b, k) int64 with k the most hits of any query: ascending, filled up with zeros.
    """
    return _ranks_and_keys(distances, hits, excluded)[0]


def _ranks_and_keys(distances: Tensor, hits: Tensor, excluded: Tensor) -> tuple[Tensor, Tensor]:
    """And the keys of the hits: the image's index is their lower half."""
    b, N = distances.shape
    keys = _keys(distances, torch.arange(N, device=distances.device))
    keys.masked_fill_(excluded, _EXCLUDED)

    rows, cols = hits.nonzero(as_tuple=True)
    counts = hits.sum(dim=1)
    k = int(counts.max()) if b else 0
    slots = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    hit_keys = keys.new_full((b, k), _EXCLUDED)
    hit_keys[rows, slots] = keys[rows, cols]
    hit_keys = hit_keys.sort(dim=1).values

    # Image j stands before or at hit s exactly if its bucket is at most s.
    bucket = torch.searchsorted(hit_keys, keys)
    ones = keys.new_ones(()).expand_as(bucket)
    ranks = keys.new_zeros(b, k + 1).scatter_add_(1, bucket, ones).cumsum(dim=1)[:, :k]
    return ranks.masked_fill_(hit_keys == _EXCLUDED, 0), hit_keys


def _keys(distances: Tensor, images: Tensor) -> Tensor:
    """Distance and index in one integer, ordered like the pair: no two images are equal."""
    bits = (distances + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    bits ^= (bits >> 31) & 0x7FFFFFFF
    keys = bits.long()
    keys <<= 32
    return keys.bitwise_or_(images)


def _rank_rows(
    distances: Distances, labels: Labels, rule: Rule, hits: Hits, counted: Tensor | None
) -> Ranking:
    """Plain PyTorch: `GRID` rows of distances at a time."""
    ids = labels.gallery_ids
    never = ids == JUNK if counted is None else (ids == JUNK) | ~counted
    parts = []
    queries = len(labels.query_ids)
    for start in range(0, queries, GRID):
        stop = min(start + GRID, queries)
        rows = distances.rows(start, stop)
        excluded = never | (ids == labels.query_ids[start:stop, None])
        if rule.separate_camera_set:
            excluded |= labels.gallery_cams == labels.query_cams[start:stop, None]
        begin = hits.begin[start : stop + 1]
        own = Hits(begin - begin[0], hits.images[int(begin[0]) : int(begin[-1])])
        wanted = torch.zeros_like(excluded)
        wanted[own.queries, own.images] = True
        ranks, keys = _ranks_and_keys(rows, wanted, excluded & ~wanted)
        images = keys[ranks > 0] & 0xFFFFFFFF
        parts.append((images, ranks[ranks > 0], rows[own.queries, images]))
    return Ranking(hits.begin, *map(torch.cat, zip(*parts, strict=True)))


def _rank_fused(
    features: FeatureDistances,
    labels: Labels,
    rule: Rule,
    hits: Hits,
    counted: Tensor | None,
    block: int,
) -> Ranking:
    """By the operators; queries of one identity stand together, because they share their hits."""
    query_ids, gallery_ids, query_cams, gallery_cams = _dense(labels, rule)
    columns = gallery_ids >= 0 if counted is None else (gallery_ids >= 0) & counted
    columns = columns.nonzero().flatten()
    images, ranks = hits.images.clone(), torch.zeros_like(hits.images)
    found = torch.zeros(len(images))
    order = query_ids.argsort(stable=True)
    order = order[hits.counts[order] > 0]
    width = features.gallery.shape[1]
    step = max(1, min(_ELEMENTS // width, len(columns)))
    memory = torch.empty(step, width)
    for queries in order.split(block):
        prepared = features.query_rows(queries)
        slots, begin = _slots(hits.begin, queries)
        near, chosen = _hit_distances(features, prepared, begin, hits.images[slots], memory)
        within = torch.searchsorted(columns, chosen)  # the index among the images that count
        counts = torch.zeros_like(chosen)
        for first in range(0, len(columns), step):
            some = columns[first : first + step]
            torch.ops.rga_fast_ranking.count_before(
                *(prepared, query_ids[queries], query_cams[queries]),
                *(
                    features.gallery_rows(_as_slice(some), memory),
                    gallery_ids[some],
                    gallery_cams[some],
                ),
                *(features.offset[some], features.scale, first),
                *(begin, near, within, counts),
            )
        place = torch.arange(len(slots)) - begin[:-1].repeat_interleave(begin.diff())
        images[slots], found[slots], ranks[slots] = chosen, near, counts + place + 1
    return Ranking(hits.begin, images, ranks, found)


def _hit_distances(
    features: FeatureDistances, prepared: Tensor, begin: Tensor, images: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """Of each query's hits, ascending by (distance, index): the distances and the images."""
    near = torch.empty(len(images))
    queries = torch.arange(len(prepared)).repeat_interleave(begin.diff())
    for first in range(0, len(images), len(memory)):
        here = slice(first, min(first + len(memory), len(images)))
        columns, place = images[here].unique(return_inverse=True)
        gallery = features.gallery_rows(columns, memory)
        products = torch.ops.rga_fast_ranking.pairs(prepared, gallery, queries[here], place)
        near[here] = features.of_products(products, images[here])
    order = _keys(near, images).argsort()
    order = order[queries[order].argsort(stable=True)]
    return near[order], images[order]


def _slots(begin: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Where the hits of some queries stand, one query after the other, and where each begins."""
    counts = begin.diff()[queries]
    own = _begin(counts)
    shift = (begin[queries] - own[:-1]).repeat_interleave(counts)
    return torch.arange(len(shift)) + shift, own


def _as_slice(indices: Tensor) -> slice | Tensor:
    """Ascending indices without gaps as a slice, which copies nothing."""
    first, last = int(indices[0]), int(indices[-1])
    return slice(first, last + 1) if last - first + 1 == len(indices) else indices


def _dense(labels: Labels, rule: Rule) -> Iterator[Tensor]:
    """The labels as the operators take them, int32: junk is -1 in the gallery and equals nothing
    in the query; a query has a camera only where the images of that camera are left out."""
    for query, gallery, is_id in (
        (labels.query_ids, labels.gallery_ids, True),
        (labels.query_cams, labels.gallery_cams, False),
    ):
        values = torch.cat([query, gallery]).unique(return_inverse=True)[1].int()
        own, others = values[: len(query)].clone(), values[len(query) :].clone()
        if is_id:
            own[query == JUNK], others[gallery == JUNK] = -2, -1
        elif not rule.separate_camera_set:
            own.fill_(-1)
        yield own
        yield others


def _begin(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _integers(
    name: str, values: LabelValues, count: int, device: torch.device, caller: str
) -> Tensor:
    values = values if isinstance(values, Tensor) else np.array(values)  # a copy: may be read-only
    labels = torch.as_tensor(values, device=device)
    if labels.shape != (count,) or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"{caller}: {name} must be {count} integers, one for each feature, "
            f"got {labels.dtype} {tuple(labels.shape)}"
        )
    return labels.long()
