"""A branch in training, stage by stage: where a process group shares batch statistics, and for
implementations that have no operator for the whole.

Statistics travel between the operators as small tensors: `_merged` and `_means` are the two places
where a process group takes part.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rga_fast.fused.operands import Layers, Plan
from rga_fast.fused.shapes import Saved


def forward(
    plans: Sequence[Plan], V: Tensor, layers: Sequence[Layers]
) -> tuple[Tensor, list[Tensor], list[Tensor], Any]:
    """Of one branch: output, what to save, the statistics to track, and their number of values."""
    (plan,), (own,) = plans, layers
    weights = own.matrices
    structure, stages = plan.structure, plan.structure.stages
    rows = {"embeddings": structure.embeddings, "psi_rows": structure.psi_rows(weights)}
    norms = _Norms(plan, own, V.shape[0] * V.shape[2])

    E, stats = plan.operator("embed_fwd")(V, structure.stacked(weights, V))
    norm_e = norms.table(stats, stages.embed)
    PQ, Z, psi, stats = plan.operator("relate_fwd")(
        V, E, norm_e=norm_e, weight_z=structure.relation_weight(weights, V), **rows
    )
    norm_z = norms.table(stats, stages.relate)
    hidden, stats = plan.operator("hidden_fwd")(psi, Z, norm_z=norm_z, weight_h=weights[-2])
    del Z  # the largest of all, and not needed any more
    norm_h = norms.table(stats, stages.hidden)
    logit, stats = plan.operator("logit_fwd")(hidden, norm_h=norm_h, weight_l=weights[-1])
    norm_l = norms.table(stats, stages.logit)
    out = plan.operator("gate_fwd")(V, logit, norm_l=norm_l)
    saved = Saved(E, PQ, psi, logit, norm_e, norm_z, norm_h, norm_l)
    return out, list(saved), [norms.tracked()], norms.total


def backward(
    plans: Sequence[Plan],
    total: Any,
    dout: Tensor,
    V: Tensor,
    saved: Sequence[Tensor],
    weights: Sequence[Sequence[Tensor]],
    need_dV: bool,
    need_dweight: Sequence[bool],
) -> tuple[Tensor, list[Sequence[Tensor]]]:
    """Of one branch: dV, and the gradients in the order of `shapes.GRADIENTS`."""
    (plan,), (own,), (need_dweight_e,) = plans, weights, need_dweight
    kept = Saved(*saved)
    structure, stages = plan.structure, plan.structure.stages
    rows = {"embeddings": structure.embeddings, "psi_rows": structure.psi_rows(own)}
    widths = [len(weight) for weight in own]
    weight_z = structure.relation_weight(own, V)
    seen = {"psi": kept.psi, "norm_z": kept.norm_z, "weight_h": own[-2], "norm_h": kept.norm_h}

    def means(sums: Tensor, stage: slice) -> Tensor:
        return _means(sums, total, stage, plan, widths)

    dlogit, sums_l = plan.operator("gate_bwd")(dout, V, logit=kept.logit, norm_l=kept.norm_l)
    Z, hidden, dl, dweight_l, sums_h = plan.operator("logit_bwd")(
        V,
        kept.E,
        norm_e=kept.norm_e,
        PQ=kept.PQ,
        **seen,
        weight_l=own[-1],
        logit=kept.logit,
        norm_l=kept.norm_l,
        dlogit=dlogit,
        means_l=means(sums_l, stages.logit),
        **rows,
    )
    dhidden, dweight_h, sums_z = plan.operator("hidden_bwd")(
        Z=Z,
        **seen,
        hidden=hidden,
        means_h=means(sums_h, stages.hidden),
        weight_l=own[-1],
        dl=dl,
    )
    del hidden
    dE, dnodes, dweight_z, sums_e = plan.operator("relate_bwd")(
        V,
        kept.E,
        norm_e=kept.norm_e,
        weight_z=weight_z,
        PQ=kept.PQ,
        Z=Z,
        norm_z=kept.norm_z,
        means_z=means(sums_z, stages.relate),
        weight_h=own[-2],
        dhidden=dhidden,
        **rows,
    )
    del Z, dhidden
    dV, dweight_e = plan.operator("embed_bwd")(
        dout,
        V,
        logit=kept.logit,
        norm_l=kept.norm_l,
        E=kept.E,
        norm_e=kept.norm_e,
        means_e=means(sums_e, stages.embed),
        weight_e=structure.stacked(own, V),
        dE=dE,
        dnodes=dnodes,
        need_dV=need_dV,
        need_dweight=need_dweight_e,
    )
    sums = torch.cat([sums_e, sums_z, sums_h, sums_l], dim=1)
    return dV, [(dweight_e, dweight_z, dweight_h, dweight_l, sums)]


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


def _means(sums: Tensor, count: Any, stage: slice, plan: Plan, widths: Sequence[int]) -> Tensor:
    """The sums of a gradient over all processes, per value; zero for running statistics."""
    if plan.group is not None:
        sums = sums.clone()  # what the process saw stays the gradient of its weights
        dist.all_reduce(sums, group=plan.group)
    means = sums / count
    if not all(plan.batch[stage]):
        rows = means.split(widths[stage], dim=1)
        for by_batch, own in zip(plan.batch[stage], rows, strict=True):
            if not by_batch:
                own.zero_()
    return means


class _Norms:
    """The tables of a branch's normalisations, filled stage by stage."""

    def __init__(self, plan: Plan, layers: Layers, count: int) -> None:
        self.plan, self.layers = plan, layers
        self.count: int = count
        self.total: Any = count  # the same over all processes
        affine = torch.stack([torch.cat(layers.scales), torch.cat(layers.shifts)])
        widths = [
            sum(len(weight) for weight in layers.weights[stage]) for stage in plan.structure.stages
        ]
        self.affine = iter(torch.split_with_sizes(affine, widths, dim=1))
        self.seen: list[Tensor] = []

    def table(self, stats: Tensor, stage: slice) -> Tensor:
        """What the layers of the next stage are normalised by (4, rows), from their statistics."""
        batch, eps = self.plan.batch[stage], self.plan.eps[stage]
        if any(batch):
            stats, self.total = _merged(stats, self.count, self.plan.group)
        self.seen.append(stats)
        affine = next(self.affine)
        if all(batch) and len(set(eps)) <= 1:
            table = torch.cat([stats, affine])
            table[1].add_(max(eps, default=0.0)).rsqrt_()
            return table
        seen = stats.split([len(weight) for weight in self.layers.weights[stage]], dim=1)
        running = zip(self.layers.means[stage], self.layers.variances[stage], strict=True)
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
