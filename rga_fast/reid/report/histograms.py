"""How the distances of the same and of different people are distributed, a few rows at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rga_fast.reid.retrieval.distances import GRID, Distances
from rga_fast.reid.retrieval.ranking import JUNK, Labels


class Histograms(NamedTuple):
    """(bins + 1,) edges, and (bins,) int64 pairs of the same and of different people."""

    edges: Tensor
    same: Tensor
    different: Tensor


@torch.no_grad()
def distance_histograms(distances: Distances, labels: Labels, bins: int = 120) -> Histograms:
    """Counts the pairs of a query and a gallery image that the Market-1501 rules rank: those of the
    same person under another camera, and those of different people. Distances are cosine, in
    [0, 2]. Junk belongs to neither.
    """
    same, different = torch.zeros(2, bins, dtype=torch.int64)
    junk = labels.gallery_ids == JUNK
    total = len(labels.query_ids)
    for start in range(0, total, GRID):
        stop = min(start + GRID, total)
        rows = distances.rows(start, stop)
        query_ids, query_cams = labels.query_ids[start:stop, None], labels.query_cams[start:stop]
        own = labels.gallery_ids == query_ids
        known = (query_ids != JUNK) & ~junk
        places = (rows * (bins / 2)).long().clamp_(0, bins - 1)
        hits = own & known & (labels.gallery_cams != query_cams[:, None])
        same += torch.bincount(places[hits], minlength=bins).cpu()
        different += torch.bincount(places[~own & known], minlength=bins).cpu()
    return Histograms(torch.linspace(0, 2, bins + 1), same, different)
