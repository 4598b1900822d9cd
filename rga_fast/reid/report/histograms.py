"""How the distances of the same and of different people are distributed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rga_fast.reid.retrieval.verification import BINS, Pairs

SHOWN = 128  # bins


class Histograms(NamedTuple):
    """(SHOWN + 1,) edges, cosine distances from 0 to 2; (SHOWN,) int64, the pairs of the same and
    of different people in each bin."""

    edges: Tensor
    same: Tensor
    different: Tensor


def distance_histograms(pairs: Pairs) -> Histograms:
    """The pairs of the verification, in coarser bins."""
    parts = []
    for counts in (pairs.same, pairs.different):
        every = counts.sum(dim=0).cpu()
        every[1] += every[0]  # the first bin holds distances of 0 alone
        parts.append(every[1:].view(SHOWN, BINS // SHOWN).sum(dim=1))
    return Histograms(torch.linspace(0, 2, SHOWN + 1), *parts)
