"""The training losses: label-smoothed cross entropy and the batch-hard triplet."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Losses(NamedTuple):
    """Scalars, float32 or float64. `total` is minimised: identity + triplet."""

    total: Tensor
    identity: Tensor
    triplet: Tensor


def reid_losses(
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.3,
    label_smoothing: float = 0.1,
    gather: Callable[[Tensor], Tensor] | None = None,
) -> Losses:
    """Cross entropy on the classifier plus the triplet on the feature before the neck, 1 : 1.

    (B, D) features, (B, classes) logits, (B,) int64 labels. Raises ValueError on other shapes.
    `gather` concatenates the batches of all ranks (`Ranks.all_gather`): triplets are then mined in
    all of them.
    """
    identity = F.cross_entropy(_full(logits), labels, label_smoothing=label_smoothing)
    if gather is not None:
        features, labels = gather(features), gather(labels)
    triplet = batch_hard_triplet(features, labels, margin)
    return Losses(identity + triplet, identity, triplet)


def batch_hard_triplet(features: Tensor, labels: Tensor, margin: float = 0.3) -> Tensor:
    """The batch-hard triplet loss (Hermans et al., "In Defense of the Triplet Loss", equation 5).

    Mean over the anchors of max(0, margin + d_positive - d_negative), with the Euclidean distances
    to the farthest image of the anchor's identity and the nearest of another; features are not
    normalised. The farthest may be the anchor itself; an anchor without negatives adds zero.

    Distances are at least float32, under autocast too. Below 1e-6 they are constant, so that
    duplicates have a finite gradient.

    Args:
        features: (B, D). labels: (B,) int64.

    Raises:
        ValueError: for other shapes.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or len(labels) == 0:
        raise ValueError(
            "batch_hard_triplet: features must be (B, D) and labels (B,) with B > 0, "
            f"got {tuple(features.shape)} and {tuple(labels.shape)}"
        )
    with torch.autocast(features.device.type, enabled=False):
        features = _full(features)
        squares = features.square().sum(dim=1)
        squared = squares[:, None] + squares - 2 * features @ features.T
        distances = squared.clamp(min=1e-12).sqrt()  # (B, B)
    same = labels[:, None] == labels
    positive = distances.masked_fill(~same, 0).max(dim=1).values
    negative = distances.masked_fill(same, torch.inf).min(dim=1).values
    return F.relu(margin + positive - negative).mean()


def _full(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
