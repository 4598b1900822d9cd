"""A branch of the attention on fused operators (rga_fast/ops.py), with its gradient.

One operator in evaluation. In training the work is cut where batch statistics are needed, and those
travel between the operators as small tensors: `_merged` and `_means` are the two places where a
process group takes part.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from rga_fast import ops, reference
from rga_fast.reference import Branch


class Plan(NamedTuple):
    """What a branch consists of. Layers in the order theta, phi, psi, relation, W_1, W_2."""

    namespace: str
    view: str
    embeddings: int  # of theta and phi: 2, 1 (theta is phi) or 0 (both are the nodes)
    relations: bool
    appearance: bool
    batch: tuple[bool, ...]  # per layer: normalised by the statistics of the batch
    eps: tuple[float, ...]
    group: Any  # the process group that shares batch statistics, or None

    @property
    def kind(self) -> tuple[int, bool, bool]:
        return self.embeddings, self.relations, self.appearance

    @property
    def cuts(self) -> tuple[slice, slice, slice, slice]:
        """The layers normalised at each cut: embeddings, relations, hidden layer, logit."""
        e = self.embeddings + self.appearance
        z = e + self.relations
        return slice(0, e), slice(e, z), slice(z, z + 1), slice(z + 1, z + 2)


class Layers(NamedTuple):
    """The tensors of the layers, in the compute dtype."""

    weights: tuple[Tensor, ...]  # of 1x1 convolutions
    scales: tuple[Tensor, ...]
    shifts: tuple[Tensor, ...]
    means: tuple[Any, ...]  # running statistics, None where the batch's are used
    variances: tuple[Any, ...]


def attention(x: Tensor, branch: Branch, impl: str) -> Tensor:
    """One branch, (B, C, H, W) -> the same, by the operators of `impl`.

    Differentiable once; statistics are tracked as `torch.nn.BatchNorm2d` tracks them. Layers with
    a `SyncBatchNorm` in training share their statistics with its process group.

    Raises:
        ValueError: in training, for a single value per channel.

    `unsupported(branch)` is to be asked first.
    """
    x = _dense(x)
    return _attention(x, *_prepare(x, branch, impl))


def attention_pair(x: Tensor, first: Branch, second: Branch, impl: str) -> Tensor:
    """`attention` by two branches of different views, one after the other: in evaluation one
    operator, where both have the same kinds of layers."""
    x = _dense(x)
    parts = [_prepare(x, branch, impl) for branch in (first, second)]
    (_, plan, layers), (_, other, more) = parts
    if plan.kind == other.kind and not (_learns(x, plan, layers) or _learns(x, other, more)):
        both = Layers(*(a + b for a, b in zip(layers, more, strict=True)))
        return _evaluate(x, plan._replace(eps=plan.eps + other.eps), both, "attention_pair")
    for part in parts:
        x = _attention(x, *part)
    return x


def unsupported(branch: Branch) -> str | None:
    """Why the fused operators cannot run the layers of `branch`; None where they can."""
    kinds = (nn.Conv2d, _BatchNorm, nn.ReLU)
    expected = [(layer, kinds) for layer in branch[1:5] if layer is not None]
    for layer, types in [*expected, (branch.weight, (*kinds, *kinds[:2]))]:
        steps = tuple(cast(nn.Sequential, layer))
        if len(steps) != len(types) or not all(map(isinstance, steps, types)):
            return (
                "the fused operators support layers of 1x1 convolution, batch normalisation and "
                f"ReLU, got {', '.join(type(step).__name__ for step in steps)}"
            )
        if any(step.bias is not None for step in steps if isinstance(step, nn.Conv2d)):
            return "the fused operators support convolutions without bias"
    return None


def _attention(x: Tensor, norms: Sequence[_BatchNorm], plan: Plan, layers: Layers) -> Tensor:
    if not _learns(x, plan, layers):
        return _evaluate(x, plan, layers, "attention")
    _check_count(x, plan)
    out, statistics = _Attention.apply(x, plan, *(t for field in layers for t in field))
    _track(norms, plan.batch, statistics if x.shape[0] or plan.group else None)
    return out


def _dense(x: Tensor) -> Tensor:
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return x if dense else x.contiguous()


def _prepare(x: Tensor, branch: Branch, impl: str) -> tuple[list[_BatchNorm], Plan, Layers]:
    convolutions, norms = _modules(branch)
    plan = _plan(impl, branch, norms)
    return norms, plan, _layers(convolutions, norms, plan.batch, ops.compute_dtype(x))


def _learns(x: Tensor, plan: Plan, layers: Layers) -> bool:
    """Whether batch statistics or gradients are wanted."""
    learnt = [x, *layers.weights, *layers.scales, *layers.shifts]
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in learnt)
    return wanted or any(plan.batch)


def _modules(branch: Branch) -> tuple[list[nn.Conv2d], list[_BatchNorm]]:
    layers: list[Any] = [branch.theta, branch.phi] if branch.relation is not None else []
    layers = [layer for layer in [*layers, branch.psi, branch.relation] if layer is not None]
    steps: list[Any] = [tuple(layer) for layer in [*layers, branch.weight]]
    convolutions = [step[0] for step in steps] + [steps[-1][3]]
    return convolutions, [step[1] for step in steps] + [steps[-1][4]]


def _plan(impl: str, branch: Branch, norms: Sequence[_BatchNorm]) -> Plan:
    relations = branch.relation is not None
    return Plan(
        ops.namespace(impl),
        branch.view,
        embeddings=relations * ((branch.theta is not None) + (branch.phi is not None)),
        relations=relations,
        appearance=branch.psi is not None,
        batch=tuple(norm.training or norm.running_mean is None for norm in norms),
        eps=tuple(norm.eps for norm in norms),
        group=_group(norms),
    )


def _group(norms: Sequence[_BatchNorm]) -> Any:
    """The process group of the synchronised normalisations, if they are training in one."""
    synchronised = [n for n in norms if isinstance(n, nn.SyncBatchNorm) and n.training]
    if not synchronised or not (dist.is_available() and dist.is_initialized()):
        return None
    group = synchronised[0].process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def _layers(
    convolutions: Sequence[nn.Conv2d],
    norms: Sequence[_BatchNorm],
    batch: Sequence[bool],
    dtype: torch.dtype,
) -> Layers:
    fields: Any = ([], [], [], [], [])
    weights, scales, shifts, means, variances = fields
    for convolution, norm, by_batch in zip(convolutions, norms, batch, strict=True):
        weight, scale, shift = convolution.weight, norm.weight, norm.bias
        weights.append(weight)
        scales.append(weight.new_ones(len(weight)) if scale is None else scale)
        shifts.append(weight.new_zeros(len(weight)) if shift is None else shift)
        means.append(None if by_batch else norm.running_mean)
        variances.append(None if by_batch else norm.running_var)
    return Layers(
        *(
            tuple(t if t is None or t.dtype == dtype else t.to(dtype) for t in field)
            for field in fields
        )
    )


def _check_count(x: Tensor, plan: Plan) -> None:
    """As batch normalisation itself refuses to learn from one value."""
    B, C, H, W = x.shape
    if any(plan.batch) and plan.group is None and B * (H * W if plan.view == "spatial" else C) == 1:
        raise ValueError(
            f"RGA: training needs more than 1 value per channel, got a map {(B, C, H, W)} in the "
            f"{plan.view} branch"
        )


def _track(norms: Sequence[_BatchNorm], batch: Sequence[bool], stats: Tensor | None) -> None:
    """Running statistics, from mean and unbiased variance (2, rows); None of an empty batch."""
    widths = [norm.num_features for norm in norms]
    rows: Any = [(None,) * len(norms)] * 2
    if stats is not None:
        rows = [torch.split_with_sizes(row, widths) for row in stats.unbind()]
    counters: list[Tensor] = []
    old: list[Tensor] = []
    new: list[Tensor] = []
    factors: list[float | None] = []
    for norm, by_batch, new_mean, new_variance in zip(norms, batch, *rows, strict=True):
        if by_batch and norm.training and norm.track_running_stats:
            counters.append(cast(Tensor, norm.num_batches_tracked))
            old += (cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var))
            new += (new_mean, new_variance)
            factors += (norm.momentum, norm.momentum)
    if not counters:
        return
    torch._foreach_add_(counters, 1)
    if stats is None:
        return
    new = [value.to(buffer.dtype) for value, buffer in zip(new, old, strict=True)]
    if len(set(factors)) == 1 and factors[0] is not None:
        torch._foreach_lerp_(old, new, factors[0])
        return
    for i, (buffer, value) in enumerate(zip(old, new, strict=True)):
        factor: Any = factors[i]
        if factor is None:  # the mean over all batches
            factor = counters[i // 2].to(buffer.dtype).reciprocal()
        buffer.lerp_(value, factor)


def _evaluate(x: Tensor, plan: Plan, layers: Layers, name: str) -> Tensor:
    """By the operator `name`; for a pair the layers are those of both, the plan is the first's."""
    four = (layers.means, layers.variances, layers.scales, layers.shifts)
    norms = [tensor for layer in zip(*four, strict=True) for tensor in layer]
    weights = [weight.flatten(1) for weight in layers.weights]
    operator = getattr(getattr(torch.ops, plan.namespace), name).default
    out = operator(reference.nodes(x, plan.view), weights, norms, plan.eps, *plan.kind)
    return _map(out, x, plan)


def _map(V: Tensor, x: Tensor, plan: Plan) -> Tensor:
    """(B, d, n) as the map it is a view of."""
    return (V if plan.view == "spatial" else V.transpose(1, 2)).view(x.shape)


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


class _Attention(torch.autograd.Function):
    """(x, plan, *layers) -> out, and what is tracked: mean, unbiased variance (2, rows)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Plan, *tensors: Tensor) -> Any:
        op = getattr(torch.ops, plan.namespace)
        count = len(tensors) // len(Layers._fields)
        fields = (tuple(tensors[i : i + count]) for i in range(0, len(tensors), count))
        layers = Layers(*fields)
        weights = [weight.flatten(1) for weight in layers.weights]
        V = reference.nodes(x, plan.view)
        e, z, h, last = plan.cuts
        psi_rows = len(weights[e.stop - 1]) if plan.appearance else 0
        kind = (plan.embeddings, psi_rows)
        weight_e, weight_z = _stacked(weights, e, V), _relation_weight(weights, z, V)
        norms = _Norms(plan, layers, V.shape[0] * V.shape[2])

        E, stats = op.embed_fwd.default(V, weight_e)
        norm_e = norms.table(stats, e)
        PQ, Z, psi, stats = op.relate_fwd.default(V, E, norm_e, weight_z, *kind)
        norm_z = norms.table(stats, z)
        hidden, stats = op.hidden_fwd.default(psi, Z, norm_z, weights[-2])
        del Z  # the largest of all, and not needed any more
        norm_h = norms.table(stats, h)
        logit, stats = op.logit_fwd.default(hidden, norm_h, weights[-1])
        norm_l = norms.table(stats, last)
        out = op.gate_fwd.default(V, logit, norm_l)

        ctx.plan, ctx.kind, ctx.total = plan, kind, norms.total
        ctx.save_for_backward(x, E, PQ, psi, logit, norm_e, norm_z, norm_h, norm_l, *layers.weights)
        tracked = norms.tracked()
        ctx.mark_non_differentiable(tracked)
        return _map(out, x, plan), tracked

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, _: Any) -> Any:
        plan, kind, total = ctx.plan, ctx.kind, ctx.total
        op = getattr(torch.ops, plan.namespace)
        x, E, PQ, psi, logit, norm_e, norm_z, norm_h, norm_l, *convolutions = ctx.saved_tensors
        weights = [weight.flatten(1) for weight in convolutions]
        widths = [len(weight) for weight in weights]
        V = reference.nodes(x, plan.view)
        dout = reference.nodes(_like(dout, x), plan.view)
        e, z, h, last = plan.cuts
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
        need_dV, need_dweight = ctx.needs_input_grad[0], any(ctx.needs_input_grad[2:][e])
        dV, dweight_e = op.embed_bwd.default(
            dout, V, logit, norm_l, E, norm_e, means_e, _stacked(weights, e, V), dE, dnodes,
            need_dV, need_dweight,
        )  # fmt: skip

        stacked = dweight_e.split(widths[e]) if need_dweight else [None] * len(widths[e])
        relation = (dweight_z,) if plan.relations else ()
        dweights = [
            value if value is None else value.view(weight.shape)
            for value, weight in zip(
                (*stacked, *relation, dweight_h, dweight_l), convolutions, strict=True
            )
        ]
        sums = torch.cat([sums_e, sums_z, sums_h, sums_l], dim=1)
        dshifts, dscales = (torch.split_with_sizes(row, widths) for row in sums.unbind())
        running = (None,) * (2 * len(widths))
        return _map(dV, x, plan) if need_dV else None, None, *dweights, *dscales, *dshifts, *running


def _stacked(matrices: Sequence[Tensor], e: slice, V: Tensor) -> Tensor:
    weights = tuple(matrices[e])
    if not weights:
        return matrices[-1].new_empty(0, V.shape[1])
    return torch.cat(weights) if len(weights) > 1 else weights[0]


def _relation_weight(matrices: Sequence[Tensor], z: slice, V: Tensor) -> Tensor:
    weights = matrices[z]
    return weights[0] if weights else matrices[-1].new_empty(0, 2 * V.shape[2])


def _like(dout: Tensor, x: Tensor) -> Tensor:
    """`dout` in the layout of `x`."""
    return dout if dout.stride() == x.stride() else torch.empty_like(x).copy_(dout)
