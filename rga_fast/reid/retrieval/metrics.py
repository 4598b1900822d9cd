"""Retrieval metrics of person re-identification: rank-k, mAP and mINP.

Only the ranks of the hits enter these metrics, so only those are computed, a block of queries at a
time: neither the distances of the whole set nor an argsort is ever held.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

JUNK = -1
_EXCLUDED = torch.iinfo(torch.int64).max
_DISTANCES = ("cosine", "euclidean")

Labels = Tensor | np.ndarray | Sequence[int]


class RankMetrics(NamedTuple):
    """Fractions in [0, 1], averaged over the valid queries, and how many queries those were."""

    rank1: float
    rank5: float
    rank10: float
    mAP: float
    mINP: float
    valid_queries: int
    skipped_queries: int


@torch.no_grad()
def rank_metrics(
    query_features: Tensor,
    gallery_features: Tensor,
    query_ids: Labels,
    gallery_ids: Labels,
    query_cams: Labels,
    gallery_cams: Labels,
    distance: str = "cosine",
    block: int = 128,
) -> RankMetrics:
    """Rank the gallery for every query and score the result by the Market-1501 rules.

    For each query, gallery images of its identity under its own camera are left out, and so is
    junk (identity -1) for all of them. Queries without a hit in what remains are skipped and
    counted. Equal distances rank by gallery index, as a stable sort would.

    rank-k: the share of queries with a hit among the first k. mAP: the precision at each hit,
    averaged (the step sum, not the trapezoid). mINP (Ye et al., "Deep Learning for Person
    Re-identification: A Survey and Outlook"): the number of hits over the rank of the last one.

    Args:
        query_features: (Nq, D), any floating type; distances are computed in float32.
        gallery_features: (Ng, D), on the same device.
        query_ids, query_cams: Nq integers. gallery_ids, gallery_cams: Ng integers.
        distance: "cosine" or "euclidean".
        block: queries ranked at a time; about 30 * block * Ng bytes are needed.

    Raises:
        ValueError: for a wrong shape, type or device, for features that are not finite, and when
            no query is valid.
    """
    if distance not in _DISTANCES:
        raise ValueError(f"rank_metrics: distance must be one of {_DISTANCES}, got {distance!r}")
    if block < 1:
        raise ValueError(f"rank_metrics: block must be at least 1, got {block}")
    _check_features(query_features, gallery_features)
    device = query_features.device
    query_ids = _labels("query_ids", query_ids, query_features)
    query_cams = _labels("query_cams", query_cams, query_features)
    gallery_ids = _labels("gallery_ids", gallery_ids, gallery_features)
    gallery_cams = _labels("gallery_cams", gallery_cams, gallery_features)

    per_query = []
    with torch.autocast(device.type, enabled=False):
        query = _prepare("query_features", query_features, distance)
        gallery = _prepare("gallery_features", gallery_features, distance)
        if distance == "cosine":
            scale, offset = -1, torch.ones((), device=device)
        else:  # the squared Euclidean distance, less |query|^2: the same order
            scale, offset = -2, gallery.square().sum(dim=1)
        for ids, cams, features in zip(
            query_ids.split(block), query_cams.split(block), query.split(block), strict=True
        ):
            same_id = gallery_ids == ids[:, None]  # (b, Ng)
            same_cam = gallery_cams == cams[:, None]
            excluded = (same_id & same_cam) | (gallery_ids == JUNK)
            distances = (features @ gallery.T).mul_(scale).add_(offset)
            per_query.append(_scores(hit_ranks(distances, same_id & ~excluded, excluded)))

    scores = torch.cat(per_query)
    valid = scores[:, 0] > 0
    if not valid.any():
        raise ValueError(
            f"rank_metrics: none of the {len(valid)} queries is valid: no query identity is in the "
            "gallery under a camera other than the query's"
        )
    _, rank1, rank5, rank10, mAP, mINP = scores[valid].mean(dim=0).tolist()
    count = int(valid.sum())
    return RankMetrics(rank1, rank5, rank10, mAP, mINP, count, len(valid) - count)


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
    b, N = distances.shape
    # Distance and index in one integer, ordered like the pair: no two images are equal.
    bits = (distances + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    bits ^= (bits >> 31) & 0x7FFFFFFF
    keys = bits.long()
    keys <<= 32
    keys |= torch.arange(N, device=distances.device)
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
    return ranks.masked_fill_(hit_keys == _EXCLUDED, 0)


def _scores(ranks: Tensor) -> Tensor:
    """(b, k) ranks of the hits -> (b, 6): hits, rank-1, rank-5, rank-10, AP, INP, in float64."""
    counts = (ranks > 0).sum(dim=1).double()
    if ranks.shape[1] == 0:
        return counts[:, None].repeat(1, 6)
    nth_hit = torch.arange(1, ranks.shape[1] + 1, dtype=torch.float64, device=ranks.device)
    precision = torch.where(ranks > 0, nth_hit / ranks, 0.0)
    first, last = ranks[:, 0], ranks.amax(dim=1)
    return torch.stack(
        [
            counts,
            *((first <= k).double() for k in (1, 5, 10)),
            precision.sum(dim=1) / counts,
            counts / last,
        ],
        dim=1,
    )


def _prepare(name: str, features: Tensor, distance: str) -> Tensor:
    features = features.float()
    finite = torch.linalg.vector_norm(features, dim=1).isfinite()
    if not finite.all():
        row = int(finite.logical_not().nonzero()[0])
        raise ValueError(
            f"rank_metrics: {name} must be finite, with norms that fit float32; "
            f"{int((~finite).sum())} of {len(finite)} rows are not, the first is row {row}"
        )
    return F.normalize(features) if distance == "cosine" else features


def _check_features(query: Tensor, gallery: Tensor) -> None:
    for name, features in (("query_features", query), ("gallery_features", gallery)):
        if features.ndim != 2 or 0 in features.shape or not features.is_floating_point():
            raise ValueError(
                f"rank_metrics: {name} must be floating point (N, D) with N, D > 0, "
                f"got {features.dtype} {tuple(features.shape)}"
            )
    if query.shape[1] != gallery.shape[1] or query.device != gallery.device:
        raise ValueError(
            "rank_metrics: query and gallery features must have one width and one device, "
            f"got {query.shape[1]} on {query.device} and {gallery.shape[1]} on {gallery.device}"
        )


def _labels(name: str, values: Labels, features: Tensor) -> Tensor:
    values = values if isinstance(values, Tensor) else np.array(values)  # a copy: may be read-only
    labels = torch.as_tensor(values, device=features.device)
    if labels.shape != features.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"rank_metrics: {name} must be {len(features)} integers, one for each feature, "
            f"got {labels.dtype} {tuple(labels.shape)}"
        )
    return labels.long()
