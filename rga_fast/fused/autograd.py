"""Branches of the attention on fused operators (rga_fast/fused/ops.py), with their gradient.

One operator in evaluation. In training one forward and one backward where the implementation has
them and no process group takes part, else those of rga_fast/fused/staged.py. Two branches are one
operator where the implementation has one for both.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rga_fast import reference
from rga_fast.fused import ops, staged
from rga_fast.fused.operands import Layers, Part, Plan, prepare, track
from rga_fast.reference import Branch


def attention(x: Tensor, branches: Sequence[Branch], impl: str) -> Tensor:
    """One branch after the other, (B, C, H, W) -> the same, by the operators of `impl`.

    Differentiable once; statistics are tracked as `torch.nn.BatchNorm2d` tracks them. Layers with
    a `SyncBatchNorm` in training share their statistics with its process group.

    All of them in one function, prepared before the first operator and tracked after the last:
    in between Python's own memory leaves the caches, and it is several times slower.

    Raises:
        ValueError: in training, for a single value per channel.

    `rga_fast.fused.operands.unsupported(branch)` is to be asked first.
    """
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    x = x if dense else x.contiguous()
    parts = [prepare(x, branch, impl) for branch in branches]
    if not _learns(x, parts):
        return _evaluate(x, parts)
    for part in parts:
        _check_count(x, part.plan)
    tensors = (t for part in parts for field in part.layers for t in field)
    plans = [part.plan for part in parts]
    function = _Pair if _trains_as_pair(plans) else _Attention
    out, *statistics = function.apply(x, plans, *tensors)
    track(parts, statistics, empty=not x.shape[0] and parts[0].plan.group is None)
    return out


def _learns(x: Tensor, parts: Sequence[Part]) -> bool:
    """Whether batch statistics or gradients are wanted."""
    if any(any(part.plan.batch) for part in parts):
        return True
    learnt = (t for _, _, layers in parts for field in layers[:3] for t in field)
    return torch.is_grad_enabled() and any(t.requires_grad for t in (x, *learnt))


def _check_count(x: Tensor, plan: Plan) -> None:
    """As batch normalisation itself refuses to learn from one value."""
    B, C, H, W = x.shape
    if any(plan.batch) and plan.group is None and B * (H * W if plan.view == "spatial" else C) == 1:
        raise ValueError(
            f"RGA: training needs more than 1 value per channel, got a map {(B, C, H, W)} in the "
            f"{plan.view} branch"
        )


def _evaluate(x: Tensor, parts: Sequence[Part]) -> Tensor:
    """Two branches of the same kind of layers by one operator, where there is one."""
    plans = [part.plan for part in parts]
    lists = [(part.layers.matrices, part.layers.norms, part.plan.eps) for part in parts]
    name = "attention"
    if _paired(plans, "attention_pair"):
        name, plans, lists = "attention_pair", plans[:1], [_joined(lists)]
    for plan, arguments in zip(plans, lists, strict=True):
        operator = getattr(getattr(torch.ops, plan.namespace), name).default
        x = _map(operator(reference.nodes(x, plan.view), *arguments, *plan.kind), x, plan)
    return x


def _paired(plans: Sequence[Plan], name: str) -> bool:
    """Whether there are two branches, and an operator `name` that takes both."""
    if len(plans) != 2 or name not in ops.defined(plans[0].namespace):
        return False
    first, second = plans
    return first.kind == second.kind and first.view != second.view


def _trains_as_pair(plans: Sequence[Plan]) -> bool:
    """The map between two branches cannot be left out where its values are what is related."""
    related = plans[0].relations and not plans[0].embeddings
    whole = all(plan.whole for plan in plans)
    return whole and not related and _paired(plans, "training_pair_fwd")


def _joined(lists: Sequence[Sequence[Any]]) -> Any:
    """Several lists of each of two branches: those of the first before those of the second."""
    return tuple([*first, *second] for first, second in zip(*lists, strict=True))


def _map(V: Tensor, x: Tensor, plan: Plan) -> Tensor:
    """(B, d, n) as the map it is a view of."""
    return (V if plan.view == "spatial" else V.transpose(1, 2)).view(x.shape)


class _Attention(torch.autograd.Function):
    """(x, plans, *layers of each) -> out, and what each branch tracks: mean, unbiased variance
    (2, rows)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plans: Sequence[Plan], *tensors: Tensor) -> Any:
        ctx.plans, ctx.totals = plans, []
        kept: list[Tensor] = []
        statistics: list[Tensor] = []
        for plan, own in zip(plans, _shares(plans, tensors, len(Layers._fields)), strict=True):
            layers = Layers.joined(own)
            V = reference.nodes(x, plan.view)
            if plan.whole:
                op = getattr(torch.ops, plan.namespace).training_fwd.default
                arguments = (layers.matrices, layers.norms, plan.eps, plan.batch)
                (out, *saved, tracked), total = op(V, *arguments, *plan.kind), None
            else:
                out, saved, tracked, total = staged.forward(plan, V, layers)
            kept += (x, *saved, *layers.weights)
            ctx.totals.append(total)
            statistics.append(tracked)
            x = _map(out, x, plan)
        ctx.save_for_backward(*kept)
        ctx.mark_non_differentiable(*statistics)
        return x, *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, *_: Any) -> Any:
        plans: Sequence[Plan] = ctx.plans
        wanted = _shares(plans, ctx.needs_input_grad[2:], len(Layers._fields))
        kept = _shares(plans, ctx.saved_tensors, 1, 1 + len(staged.Saved._fields))
        gradients: list[Any] = []
        need_dx = ctx.needs_input_grad[0]
        for i in reversed(range(len(plans))):
            if dout is None:  # nothing is wanted of this branch and those before it
                gradients[:0] = [None] * len(wanted[i])
                continue
            need_dV = need_dx or any(any(own) for own in wanted[:i])
            dout, own = _backward(plans[i], ctx.totals[i], dout, kept[i], wanted[i], need_dV)
            gradients[:0] = own
        return dout if need_dx else None, None, *gradients


def _backward(
    plan: Plan,
    total: Any,
    dout: Tensor,
    kept: Sequence[Tensor],
    wanted: Sequence[bool],
    need_dV: bool,
) -> tuple[Any, tuple[Any, ...]]:
    """The gradients of the map and of the layers of one branch."""
    x, *rest = kept
    count = len(staged.Saved._fields)
    saved, weights = staged.Saved(*rest[:count]), [weight.flatten(1) for weight in rest[count:]]
    V = reference.nodes(x, plan.view)
    dout = reference.nodes(_like(dout, x), plan.view)
    embeddings = plan.cuts[0]
    need_dweight = any(wanted[embeddings])
    if plan.whole:
        op = getattr(torch.ops, plan.namespace).training_bwd.default
        results = op(dout, V, *saved, weights, plan.batch, *plan.kind, need_dV, need_dweight)
    else:
        results = staged.backward(plan, total, dout, V, saved, weights, need_dV, need_dweight)
    dV, *gradients = results
    dx = _map(dV, x, plan) if need_dV else None
    return dx, _of_layers(plan, weights, gradients, need_dweight)


class _Pair(torch.autograd.Function):
    """As `_Attention`, of two branches by one operator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plans: Sequence[Plan], *tensors: Tensor) -> Any:
        ctx.plans = plans
        plan = plans[0]
        layers = [Layers.joined(own) for own in _shares(plans, tensors, len(Layers._fields))]
        op = getattr(torch.ops, plan.namespace).training_pair_fwd.default
        lists = [
            (own.matrices, own.norms, plan.eps, plan.batch)
            for plan, own in zip(plans, layers, strict=True)
        ]
        out, results = op(reference.nodes(x, plan.view), *_joined(lists), *plan.kind)
        first, second = ops.halves(results)
        weights = (weight for own in layers for weight in own.weights)
        ctx.save_for_backward(x, *first[:-1], *second[:-1], *weights)
        statistics = first[-1], second[-1]
        ctx.mark_non_differentiable(*statistics)
        return _map(out, x, plan), *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, *_: Any) -> Any:
        plans: Sequence[Plan] = ctx.plans
        plan, count = plans[0], 2 * len(staged.Saved._fields)
        x, *rest = ctx.saved_tensors
        saved, weights = rest[:count], [weight.flatten(1) for weight in rest[count:]]
        wanted = _shares(plans, ctx.needs_input_grad[2:], len(Layers._fields))
        need_dV = ctx.needs_input_grad[0]
        needed = [any(own[plan.cuts[0]]) for own in wanted]
        V, dout = (reference.nodes(t, plan.view) for t in (x, _like(dout, x)))
        op = getattr(torch.ops, plan.namespace).training_pair_bwd.default
        batch = [*plan.batch, *plans[1].batch]
        dV, results = op(dout, V, saved, weights, batch, *plan.kind, need_dV, needed)
        each = zip(plans, ops.halves(weights), ops.halves(results), needed, strict=True)
        gradients = [t for of_branch in each for t in _of_layers(*of_branch)]
        return _map(dV, x, plan) if need_dV else None, None, *gradients


def _of_layers(
    plan: Plan, weights: Sequence[Tensor], gradients: Sequence[Tensor], need_dweight: bool
) -> tuple[Any, ...]:
    """The gradients of the layers of one branch, from what `training_bwd` returns."""
    dweight_e, dweight_z, *others, sums = gradients
    widths = [len(weight) for weight in weights]
    stacked = widths[plan.cuts[0]]
    dweights = [
        *(dweight_e.split(stacked) if need_dweight else [None] * len(stacked)),
        *((dweight_z,) if plan.relations else ()),
        *others,
    ]
    dweights = [None if w is None else w[:, :, None, None] for w in dweights]
    dshifts, dscales = (torch.split_with_sizes(row, widths) for row in sums.unbind())
    running = (None,) * (2 * len(widths))
    return *dweights, *dscales, *dshifts, *running


def _shares(plans: Sequence[Plan], values: Sequence[Any], each: int, more: int = 0) -> list[Any]:
    """What belongs to each branch: `each` values for each of its layers, and `more`."""
    shares, start = [], 0
    for plan in plans:
        stop = start + each * len(plan.batch) + more
        shares.append(values[start:stop])
        start = stop
    return shares


def _like(dout: Tensor, x: Tensor) -> Tensor:
    """`dout` in the layout of `x`."""
    return dout if dout.stride() == x.stride() else torch.empty_like(x).copy_(dout)
