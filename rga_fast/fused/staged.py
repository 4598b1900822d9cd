"""A branch in training, operator by operator: where a process group shares batch statistics, and
for implementations that have no operator for the whole.

Statistics travel between the operators as small tensors: `_merged` and `_means` are the two places
where a process group takes part.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from rga_fast.fused.operands import Layers, Plan


class Saved(NamedTuple):
    """What the gradient needs beside the map and the weights (letters of rga_fast/fused/ops.py)."""

    E: Tensor
    PQ: Tensor
    psi: Tensor
    logit: Tensor
    norm_e: Tensor
    norm_z: Tensor
    norm_h: Tensor
    norm_l: Tensor


def forward(plan: Plan, V: Tensor, layers: Layers) -> tuple[Tensor, Saved, Tensor, Any]:
    """Output, what to save, the statistics that are tracked, and the count behind them."""
    op = getattr(torch.ops, plan.namespace)
    weights = layers.matrices
    e, z, h, last = plan.cuts
    kind = (plan.embeddings, plan.psi_rows(weights))
    norms = _Norms(plan, layers, V.shape[0] * V.shape[2])

    E, stats = op.embed_fwd.default(V, _stacked(weights, e, V))
    norm_e = norms.table(stats, e)
    PQ, Z, psi, stats = op.relate_fwd.default(V, E, norm_e, _relation_weight(weights, z, V), *kind)
    norm_z = norms.table(stats, z)
    hidden, stats = op.hidden_fwd.default(psi, Z, norm_z, weights[-2])
    del Z  # the largest of all, and not needed any more
    norm_h = norms.table(stats, h)
    logit, stats = op.logit_fwd.default(hidden, norm_h, weights[-1])
    norm_l = norms.table(stats, last)
    out = op.gate_fwd.default(V, logit, norm_l)
    saved = Saved(E, PQ, psi, logit, norm_e, norm_z, norm_h, norm_l)
    return out, saved, norms.tracked(), norms.total


def backward(
    plan: Plan,
    total: Any,
    dout: Tensor,
    V: Tensor,
    saved: Saved,
    weights: Sequence[Tensor],
    need_dV: bool,
    need_dweight: bool,
) -> tuple[Tensor, ...]:
    """What the operator `training_bwd` returns."""
    op = getattr(torch.ops, plan.namespace)
    E, PQ, psi, logit, norm_e, norm_z, norm_h, norm_l = saved
    widths = [len(weight) for weight in weights]
    e, z, h, last = plan.cuts
    kind = (plan.embeddings, plan.psi_rows(weights))
    weight_h, weight_l = weights[-2:]

    dlogit, sums_l = op.gate_bwd.default(dout, V, logit, norm_l)
    means_l = _means(sums_l, total, last, plan, widths)
    Z, hidden, dl, dweight_l, sums_h = op.logit_bwd.default(
        V, E, norm_e, PQ, psi, norm_z, weight_h, norm_h, weight_l, logit, norm_l,
        dlogit, means_l, *kind,
    )  # fmt: skip
    means_h = _means(sums_h, total, h, plan, widths)
    dhidden, dweight_h, sums_z = op.hidden_bwd.default(
        psi, Z, norm_z, weight_h, hidden, norm_h, means_h, weight_l, dl
    )
    del hidden
    means_z = _means(sums_z, total, z, plan, widths)
    weight_z = _relation_weight(weights, z, V)
    dE, dnodes, dweight_z, sums_e = op.relate_bwd.default(
        V, E, norm_e, weight_z, PQ, Z, norm_z, means_z, weight_h, dhidden, *kind
    )
    del Z, dhidden
    means_e = _means(sums_e, total, e, plan, widths)
    dV, dweight_e = op.embed_bwd.default(
        dout, V, logit, norm_l, E, norm_e, means_e, _stacked(weights, e, V), dE, dnodes,
        need_dV, need_dweight,
    )  # fmt: skip
    sums = torch.cat([sums_e, sums_z, sums_h, sums_l], dim=1)
    return dV, dweight_e, dweight_z, dweight_h, dweight_l, sums


def _merged(stats: Tensor, count: int, group: Any) -> tuple[Tensor, Any]:
    """Mean and variance over the batches of all processes, and their count (Chan et al.)."""
    if group is None:
        return stats, count
    mine = torch.cat([stats.new_tensor([count]), stats.flatten().nan_to_num()])
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, mine, group)
    table = torch.stack(every)
    counts = table[:, :1]
    means, variances = table[:, 1:].chunk(2, dim=1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    variance = (counts * (variances + (means - mean).square())).sum(0) / total
    return torch.stack([mean, variance]), total


def _means(sums: Tensor, count: Any, cut: slice, plan: Plan, widths: Sequence[int]) -> Tensor:
    """The sums of a gradient over all processes, per value; zero for running statistics."""
    if plan.group is not None:
        sums = sums.clone()  # what the process saw stays the gradient of its weights
        dist.all_reduce(sums, group=plan.group)
    means = sums / count
    if not all(plan.batch[cut]):
        rows = means.split(widths[cut], dim=1)
        for by_batch, own in zip(plan.batch[cut], rows, strict=True):
            if not by_batch:
                own.zero_()
    return means


class _Norms:
    """The tables of a branch's normalisations, made at one cut after the other."""

    def __init__(self, plan: Plan, layers: Layers, count: int) -> None:
        self.plan, self.layers = plan, layers
        self.count: int = count
        self.total: Any = count  # the same over all processes
        affine = torch.stack([torch.cat(layers.scales), torch.cat(layers.shifts)])
        widths = [sum(len(weight) for weight in layers.weights[cut]) for cut in plan.cuts]
        self.affine = iter(torch.split_with_sizes(affine, widths, dim=1))
        self.seen: list[Tensor] = []

    def table(self, stats: Tensor, cut: slice) -> Tensor:
        """What the layers at the next cut are normalised by (4, rows), from their statistics."""
        batch, eps = self.plan.batch[cut], self.plan.eps[cut]
        if any(batch):
            stats, self.total = _merged(stats, self.count, self.plan.group)
        self.seen.append(stats)
        affine = next(self.affine)
        if all(batch) and len(set(eps)) <= 1:
            table = torch.cat([stats, affine])
            table[1].add_(max(eps, default=0.0)).rsqrt_()
            return table
        seen = stats.split([len(weight) for weight in self.layers.weights[cut]], dim=1)
        running = zip(self.layers.means[cut], self.layers.variances[cut], strict=True)
        columns = []
        for own, by_batch, e, fixed in zip(seen, batch, eps, running, strict=True):
            mean, variance = own.unbind() if by_batch else fixed
            columns.append(torch.stack([mean, (variance + e).rsqrt()]))
        return torch.cat([torch.cat(columns, dim=1), affine])

    def tracked(self) -> Tensor:
        """Mean and unbiased variance of all layers (2, rows)."""
        stats = torch.cat(self.seen, dim=1)
        if self.total != 1:
            stats[1].mul_(self.total / (self.total - 1))
        return stats


def _stacked(matrices: Sequence[Tensor], e: slice, V: Tensor) -> Tensor:
    weights = tuple(matrices[e])
    if not weights:
        return matrices[-1].new_empty(0, V.shape[1])
    return torch.cat(weights) if len(weights) > 1 else weights[0]


def _relation_weight(matrices: Sequence[Tensor], z: slice, V: Tensor) -> Tensor:
    weights = matrices[z]
    return weights[0] if weights else matrices[-1].new_empty(0, 2 * V.shape[2])
