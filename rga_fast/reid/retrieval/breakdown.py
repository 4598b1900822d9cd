"""The same scores by identity and by camera pair, and how sure their means are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rga_fast.reid.retrieval.distances import Distances
from rga_fast.reid.retrieval.metrics import QueryScores, query_scores
from rga_fast.reid.retrieval.ranking import Labels, Rule, find_hits, rank_hits


class Interval(NamedTuple):
    low: float
    high: float


class IdentityScores(NamedTuple):
    """(I,) each: identity, its valid queries, and the means of these, float64."""

    identity: Tensor
    queries: Tensor
    rank1: Tensor
    mAP: Tensor
    mINP: Tensor


class CameraPairScores(NamedTuple):
    """Query camera (row) against gallery camera (column), (Cq, Cg) each. Where a pair has no valid
    query, the means are NaN."""

    query_cameras: Tensor
    gallery_cameras: Tensor
    queries: Tensor
    rank1: Tensor
    mAP: Tensor


def by_identity(scores: QueryScores, query_ids: Tensor) -> IdentityScores:
    """Means over the valid queries of each identity that has one."""
    valid = scores.valid
    identity, group = query_ids[valid].unique(return_inverse=True)
    counts = torch.bincount(group, minlength=len(identity))
    columns = ((scores.first == 1).double(), scores.ap, scores.inp)
    return IdentityScores(identity, counts, *(_means(c[valid], group, counts) for c in columns))


def bootstrap(
    scores: QueryScores,
    query_ids: Tensor,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentile intervals of rank-1, rank-5, rank-10, mAP and mINP.

    Identities are drawn with replacement, each with all its queries: queries of one person are not
    independent, and intervals over queries would be too narrow.

    Raises:
        ValueError: where no query is valid, or for a level outside (0, 1).
    """
    _check_level(level)
    return _intervals(_resampled(scores, query_ids, samples, seed), level)


def bootstrap_difference(
    scores: QueryScores,
    other: QueryScores,
    query_ids: Tensor,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentile intervals of by how much `other` is higher than `scores`, on the same queries.

    Both are averaged over the same drawn identities: what makes some people harder than others is
    common to both and cancels, so that these are narrower than two separate intervals suggest.

    Raises:
        ValueError: as `bootstrap`, and where other queries are valid.
    """
    _check_level(level)
    if not torch.equal(scores.valid, other.valid):
        raise ValueError("bootstrap_difference: expected scores of the same queries")
    ours, theirs = (_resampled(each, query_ids, samples, seed) for each in (scores, other))
    return _intervals(theirs - ours, level)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"bootstrap: level must be above 0 and below 1, got {level}")


def _intervals(means: Tensor, level: float) -> dict[str, Interval]:
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = means.quantile(tails, dim=0).tolist()
    names = ("rank1", "rank5", "rank10", "mAP", "mINP")
    return {name: Interval(*ends) for name, *ends in zip(names, low, high, strict=True)}


def _resampled(scores: QueryScores, query_ids: Tensor, samples: int, seed: int) -> Tensor:
    """(samples, 5) the means of rank-1, rank-5, rank-10, AP and INP over drawn identities."""
    valid = scores.valid.cpu()
    if not valid.any():
        raise ValueError(f"bootstrap: none of the {len(valid)} queries is valid")
    first, ap, inp = (field.cpu()[valid] for field in (scores.first, scores.ap, scores.inp))
    identity, group = query_ids.cpu()[valid].unique(return_inverse=True)
    columns = torch.stack([*((first <= k).double() for k in (1, 5, 10)), ap, inp], dim=1)
    sums = torch.zeros(len(identity), 5, dtype=torch.float64).index_add_(0, group, columns)
    counts = torch.bincount(group, minlength=len(identity)).double()
    generator = torch.Generator().manual_seed(seed)
    means = []
    for _ in range(samples):
        drawn = torch.randint(len(identity), (len(identity),), generator=generator)
        means.append(sums[drawn].sum(dim=0) / counts[drawn].sum())
    return torch.stack(means)


def by_camera_pair(
    distances: Distances,
    labels: Labels,
    rule: Rule = Rule(),  # noqa: B008 (immutable)
) -> CameraPairScores:
    """Each query camera against the images of each gallery camera alone: another ranking for every
    gallery camera, together as much work as the whole gallery is once."""
    hits = find_hits(labels, rule)
    query_cameras, rows = labels.query_cams.unique(return_inverse=True)
    cameras = labels.gallery_cams.unique()
    columns = []
    for camera in cameras:
        counted = labels.gallery_cams == camera
        own = hits.select(counted[hits.images])
        scores = query_scores(rank_hits(distances, labels, rule, hits=own, counted=counted))
        valid = scores.valid
        counts = torch.bincount(rows[valid], minlength=len(query_cameras))
        parts = ((scores.first == 1).double(), scores.ap)
        columns.append((counts, *(_means(part[valid], rows[valid], counts) for part in parts)))
    stacked = (torch.stack(column, dim=1) for column in zip(*columns, strict=True))
    return CameraPairScores(query_cameras, cameras, *stacked)


def _means(values: Tensor, group: Tensor, counts: Tensor) -> Tensor:
    return torch.zeros_like(counts, dtype=torch.float64).index_add_(0, group, values) / counts
