"""Retrieval metrics of person re-identification: rank-k, mAP and mINP.

Four steps that compose: distances (distances.py), optionally re-ranked (rerank.py), the ranks of
the hits (ranking.py), and their scores here. `rank_metrics` takes them one after the other.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rga_fast.reid.retrieval.distances import Distances, FeatureDistances
from rga_fast.reid.retrieval.ranking import (
    BLOCK,
    Labels,
    LabelValues,
    Ranking,
    Rule,
    find_hits,
    make_labels,
    rank_hits,
)

AVERAGES = ("step", "trapezoid")
_ROWS = 128  # queries whose precisions are added up at a time


class RankMetrics(NamedTuple):
    """Fractions in [0, 1], averaged over the valid queries, and how many queries those were."""

    rank1: float
    rank5: float
    rank10: float
    mAP: float
    mINP: float
    valid_queries: int
    skipped_queries: int


class QueryScores(NamedTuple):
    """(Nq,) each, float64. A query without a hit is skipped: zeros everywhere.

    hits: how many it has. first: the rank of the first, from 1. ap: average precision. inp: the
    number of hits over the rank of the last one.
    """

    hits: Tensor
    first: Tensor
    ap: Tensor
    inp: Tensor

    @property
    def valid(self) -> Tensor:
        return self.hits > 0


def rank_metrics(
    query_features: Tensor,
    gallery_features: Tensor,
    query_ids: LabelValues,
    gallery_ids: LabelValues,
    query_cams: LabelValues,
    gallery_cams: LabelValues,
    distance: str = "cosine",
    block: int = BLOCK,
    *,
    rule: Rule = Rule(),  # noqa: B008 (immutable)
    average: str = "step",
) -> RankMetrics:
    """Rank the gallery for every query and score the result by the Market-1501 rules.

    For each query, gallery images of its identity under its own camera are left out, and so is
    junk (identity -1) for all of them; `rule` says otherwise. Queries without a hit in what remains
    are skipped and counted. Equal distances rank by gallery index, as a stable sort would.

    rank-k: the share of queries with a hit among the first k. mAP: the precision at each hit,
    averaged (the step sum; "trapezoid" by name). mINP (Ye et al., "Deep Learning for Person
    Re-identification: A Survey and Outlook"): the number of hits over the rank of the last one.

    Args:
        query_features: (Nq, D), any floating type; distances are computed in float32.
        gallery_features: (Ng, D), on the same device.
        query_ids, query_cams: Nq integers. gallery_ids, gallery_cams: Ng integers.
        distance: "cosine" or "euclidean".
        block: queries at a time; the result does not depend on it. `rank_hits` says what it takes.

    Raises:
        ValueError: for a wrong shape, type or device, for features that are not finite, and when
            no query is valid.
    """
    caller = "rank_metrics"
    if block < 1:
        raise ValueError(f"{caller}: block must be at least 1, got {block}")
    distances = FeatureDistances(query_features, gallery_features, distance, caller)
    labels = make_labels(query_ids, gallery_ids, query_cams, gallery_cams, distances, caller)
    return summary(query_scores(rank_hits(distances, labels, rule, block=block), average))


def query_scores(ranking: Ranking, average: str = "step") -> QueryScores:
    """What each query scores.

    average: "step" is the mean of the precisions at the hits. "trapezoid" is the area below the
    precision-recall curve with straight lines between the hits, as in the first evaluation code of
    Market-1501: half the precision at a hit and half that just before it (1 before the first rank).
    """
    if average not in AVERAGES:
        raise ValueError(f"query_scores: average must be one of {AVERAGES}, got {average!r}")
    begin = ranking.begin.tolist()
    parts = []
    for start in range(0, len(begin) - 1, _ROWS):
        bounds = ranking.begin[start : start + _ROWS + 1]
        ranks = ranking.ranks[begin[start] : int(bounds[-1])]
        parts.append(_scores(_padded(ranks, bounds), average))
    return QueryScores(*torch.cat(parts).unbind(dim=1))


def summary(scores: QueryScores) -> RankMetrics:
    """The means over the valid queries.

    Raises:
        ValueError: where no query is valid.
    """
    valid = scores.valid
    if not valid.any():
        raise ValueError(
            f"rank_metrics: none of the {len(valid)} queries is valid: no query identity is in the "
            "gallery under a camera other than the query's"
        )
    columns = [(scores.first <= k).double() for k in (1, 5, 10)]
    means = torch.stack([*columns, scores.ap, scores.inp], dim=1)[valid].mean(dim=0)
    rank1, rank5, rank10, mAP, mINP = means.tolist()
    count = int(valid.sum())
    return RankMetrics(rank1, rank5, rank10, mAP, mINP, count, len(valid) - count)


def cmc(scores: QueryScores, length: int) -> Tensor:
    """(length,) float64: the share of valid queries with a hit among the first 1, 2, ..., length.

    Raises:
        ValueError: where no query is valid.
    """
    valid = summary(scores).valid_queries
    first = scores.first[scores.valid].long()
    return torch.bincount(first.clamp(max=length + 1), minlength=length + 2)[1 : length + 1].cumsum(
        0
    ) / float(valid)


def single_shot_cmc(
    distances: Distances,
    labels: Labels,
    length: int,
    rule: Rule = Rule(),  # noqa: B008 (immutable)
    *,
    repeats: int = 10,
    seed: int = 0,
) -> Tensor:
    """(length,) float64: CMC where the gallery holds one image of each identity, drawn at random
    among those that are ranked for the query, and the mean over `repeats` draws.

    The old CUHK03 protocol is this with `Rule(separate_camera_set=True)`.
    """
    generator = torch.Generator().manual_seed(seed)
    hits, total = find_hits(labels, rule), torch.zeros(length, dtype=torch.float64)
    # Where a query's camera decides what is ranked, its queries have a draw of their own.
    cameras = labels.query_cams.unique().tolist() if rule.separate_camera_set else [None]
    for _ in range(repeats):
        luck = torch.randperm(len(labels.gallery_ids), generator=generator).to(distances.device)
        drawn = hits.select(_first_of_each(hits.queries, luck[hits.images]))
        scores = []
        for camera in cameras:
            ranked = torch.ones_like(luck, dtype=torch.bool)
            wanted = drawn
            if camera is not None:
                ranked = labels.gallery_cams != camera
                wanted = drawn.select((labels.query_cams == camera)[drawn.queries])
            ids = labels.gallery_ids.masked_fill(~ranked, -1)
            counted = ranked & _first_of_each(ids, luck.masked_fill(~ranked, len(luck)))
            ranking = rank_hits(distances, labels, rule, hits=wanted, counted=counted)
            scores.append(query_scores(ranking))
        every = QueryScores(*(torch.stack(field).sum(dim=0) for field in zip(*scores, strict=True)))
        total += cmc(every, length).cpu()
    return total / repeats


def _first_of_each(groups: Tensor, luck: Tensor) -> Tensor:
    """(N,) bool: the element of each group whose number is the lowest."""
    order = luck.argsort()
    order = order[groups[order].argsort(stable=True)]
    first = torch.ones_like(groups, dtype=torch.bool)
    first[1:] = groups[order][1:] != groups[order][:-1]
    return torch.zeros_like(first).scatter_(0, order, first)


def _padded(ranks: Tensor, bounds: Tensor) -> Tensor:
    """(b, k) the ranks of b queries, filled up with zeros."""
    counts = bounds.diff()
    rows = torch.arange(len(counts), device=ranks.device).repeat_interleave(counts)
    slots = torch.arange(len(ranks), device=ranks.device) - (bounds[:-1] - bounds[0])[rows]
    padded = ranks.new_zeros(len(counts), int(counts.max()))
    padded[rows, slots] = ranks
    return padded


def _scores(ranks: Tensor, average: str) -> Tensor:
    """(b, k) ranks of the hits -> (b, 4): hits, rank of the first, AP, INP, in float64."""
    counts = (ranks > 0).sum(dim=1).double()
    if ranks.shape[1] == 0:
        return counts[:, None].repeat(1, 4)
    nth_hit = torch.arange(1, ranks.shape[1] + 1, dtype=torch.float64, device=ranks.device)
    precision = torch.where(ranks > 0, nth_hit / ranks, 0.0)
    if average == "trapezoid":
        before = torch.where(ranks > 1, (nth_hit - 1) / (ranks - 1), 1.0)
        precision = torch.where(ranks > 0, (precision + before) / 2, 0.0)
    found = counts.clamp(min=1)
    last = ranks.amax(dim=1).clamp(min=1)
    return torch.stack(
        [counts, ranks[:, 0].double(), precision.sum(dim=1) / found, counts / last], dim=1
    )
