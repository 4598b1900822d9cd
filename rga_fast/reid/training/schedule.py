"""The optimiser, and the learning rate over a training run."""

import math
from collections.abc import Sequence

import torch
from torch import nn


def make_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Adam:
    """Adam with weight decay on every trainable parameter, as published."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.Adam(trained, lr=learning_rate, weight_decay=weight_decay, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def step_rate(
    epoch: float,
    *,
    base: float,
    start: float,
    warmup: float,
    milestones: Sequence[float],
    factor: float = 0.5,
) -> float:
    """The published schedule: linear from `start` to `base`, then times `factor` per milestone.

    `epoch` counts from 0 and may be fractional, to change the rate with every step. The rate of a
    milestone applies from the beginning of that epoch.
    """
    _check(epoch, base, start, warmup)
    if epoch < warmup:
        return start + (base - start) * epoch / warmup
    return base * factor ** sum(epoch >= milestone for milestone in milestones)


def cosine_rate(
    epoch: float,
    *,
    epochs: float,
    base: float,
    start: float,
    warmup: float,
    final: float = 0.0,
) -> float:
    """Linear from `start` to `base` over `warmup`, then half a cosine to `final` at `epochs`.

    `epoch` as for `step_rate`.
    """
    _check(epoch, base, start, warmup)
    if not warmup < epochs:
        raise ValueError(f"schedule: warmup must end before epochs = {epochs}, got {warmup}")
    if epoch < warmup:
        return start + (base - start) * epoch / warmup
    progress = min((epoch - warmup) / (epochs - warmup), 1.0)
    return final + (base - final) * (1 + math.cos(math.pi * progress)) / 2


def _check(epoch: float, base: float, start: float, warmup: float) -> None:
    if epoch < 0 or warmup < 0:
        raise ValueError(
            f"schedule: epoch and warmup must not be negative, got {epoch} and {warmup}"
        )
    if warmup > 0 and not 0 < start <= base:
        raise ValueError(
            f"schedule: the rate must rise from start to base, got start = {start}, base = {base}"
        )
