"""The whole gallery in the order in which it is ranked, for chosen queries: rank lists to look at.

The order is that of `rank_hits`, so that a list never contradicts the metrics.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from rga_fast.reid.retrieval.distances import Distances
from rga_fast.reid.retrieval.ranking import JUNK, Hits, Labels, Rule, rank_hits

HIT, MISS, SAME_CAMERA, IGNORED = "hit", "miss", "same camera", "junk"


class Order(NamedTuple):
    """The gallery for one query, nearest first.

    images: (Ng,) int64, gallery indices. distances: (Ng,) float32. ranks: (Ng,) int64, from 1, 0
    for an image that is not ranked. kinds: (Ng,) of `HIT`, `MISS`, and for the images that are not
    ranked `SAME_CAMERA` and `IGNORED` (junk).
    """

    images: np.ndarray
    distances: np.ndarray
    ranks: np.ndarray
    kinds: np.ndarray


def gallery_order(
    distances: Distances,
    labels: Labels,
    queries: list[int],
    rule: Rule = Rule(),  # noqa: B008 (immutable)
) -> list[Order]:
    """The order of the gallery for each of `queries` (indices). Memory: O(k * Ng).

    Every image is declared a hit, and `rank_hits` sorts hits by (distance, index).
    """
    total = len(labels.gallery_ids)
    counts = torch.zeros_like(labels.query_ids)
    counts[torch.tensor(queries, dtype=torch.int64)] = total
    begin = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    everything = torch.arange(total, device=counts.device).repeat(len(set(queries)))
    alike = Labels(*(torch.zeros_like(field) for field in labels))
    ranking = rank_hits(distances, alike, hits=Hits(begin, everything))
    found = []
    for query in queries:
        here = slice(int(begin[query]), int(begin[query + 1]))
        images = ranking.images[here].cpu().numpy()
        kinds = _kinds(labels, query, rule)[images]
        ranked = np.isin(kinds, (HIT, MISS))
        ranks = np.where(ranked, ranked.cumsum(), 0)
        found.append(Order(images, ranking.distances[here].cpu().numpy(), ranks, kinds))
    return found


def _kinds(labels: Labels, query: int, rule: Rule) -> np.ndarray:
    """What each gallery image is for a query, by the rules of `find_hits` and `rank_hits`."""
    ids, cameras = labels.gallery_ids.cpu().numpy(), labels.gallery_cams.cpu().numpy()
    own = ids == int(labels.query_ids[query])
    there = cameras == int(labels.query_cams[query])
    kinds = np.where(own, HIT, MISS).astype(object)
    if not rule.keep_same_camera:
        kinds[there if rule.separate_camera_set else own & there] = SAME_CAMERA
    kinds[ids == JUNK] = IGNORED
    return kinds
