"""A branch of the attention on fused operators (rga_fast/ops.py), with its gradient.

One operator in evaluation. In training one forward and one backward where the implementation has
them and no process group takes part, else those of rga_fast/cuts.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from rga_fast import cuts, ops, reference
from rga_fast.plan import Layers, Plan, prepare, track
from rga_fast.reference import Branch


def attention(x: Tensor, branch: Branch, impl: str) -> Tensor:
    """One branch, (B, C, H, W) -> the same, by the operators of `impl`.

    Differentiable once; statistics are tracked as `torch.nn.BatchNorm2d` tracks them. Layers with
    a `SyncBatchNorm` in training share their statistics with its process group.

    Raises:
        ValueError: in training, for a single value per channel.

    `rga_fast.plan.unsupported(branch)` is to be asked first.
    """
    x = _dense(x)
    return _attention(x, *prepare(x, branch, impl))


def takes_pairs(impl: str) -> bool:
    """Whether `impl` gains by having two branches in one operator, in evaluation."""
    return "attention_pair" in ops.defined(ops.namespace(impl))


def attention_pair(x: Tensor, first: Branch, second: Branch, impl: str) -> Tensor:
    """`attention` by two branches of different views, one after the other: in evaluation one
    operator, where both have the same kinds of layers."""
    x = _dense(x)
    parts = [prepare(x, branch, impl) for branch in (first, second)]
    (_, plan, layers), (_, other, more) = parts
    if plan.kind == other.kind and not (_learns(x, plan, layers) or _learns(x, other, more)):
        both = Layers(*(a + b for a, b in zip(layers, more, strict=True)))
        return _evaluate(x, plan._replace(eps=plan.eps + other.eps), both, "attention_pair")
    for part in parts:
        x = _attention(x, *part)
    return x


def _dense(x: Tensor) -> Tensor:
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return x if dense else x.contiguous()


def _learns(x: Tensor, plan: Plan, layers: Layers) -> bool:
    """Whether batch statistics or gradients are wanted."""
    learnt = [x, *layers.weights, *layers.scales, *layers.shifts]
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in learnt)
    return wanted or any(plan.batch)


def _attention(x: Tensor, norms: Sequence[_BatchNorm], plan: Plan, layers: Layers) -> Tensor:
    if not _learns(x, plan, layers):
        return _evaluate(x, plan, layers, "attention")
    _check_count(x, plan)
    out, statistics = _Attention.apply(x, plan, *(t for field in layers for t in field))
    track(norms, plan.batch, statistics if x.shape[0] or plan.group else None)
    return out


def _check_count(x: Tensor, plan: Plan) -> None:
    """As batch normalisation itself refuses to learn from one value."""
    B, C, H, W = x.shape
    if any(plan.batch) and plan.group is None and B * (H * W if plan.view == "spatial" else C) == 1:
        raise ValueError(
            f"RGA: training needs more than 1 value per channel, got a map {(B, C, H, W)} in the "
            f"{plan.view} branch"
        )


def _evaluate(x: Tensor, plan: Plan, layers: Layers, name: str) -> Tensor:
    """By the operator `name`; for a pair the layers are those of both, the plan is the first's."""
    operator = getattr(getattr(torch.ops, plan.namespace), name).default
    V = reference.nodes(x, plan.view)
    out = operator(V, layers.matrices, layers.norms, plan.eps, *plan.kind)
    return _map(out, x, plan)


def _map(V: Tensor, x: Tensor, plan: Plan) -> Tensor:
    """(B, d, n) as the map it is a view of."""
    return (V if plan.view == "spatial" else V.transpose(1, 2)).view(x.shape)


class _Attention(torch.autograd.Function):
    """(x, plan, *layers) -> out, and what is tracked: mean, unbiased variance (2, rows)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Plan, *tensors: Tensor) -> Any:
        layers = Layers.joined(tensors)
        V = reference.nodes(x, plan.view)
        if plan.whole:
            op = getattr(torch.ops, plan.namespace).training_fwd.default
            out, *values, tracked = op(
                V, layers.matrices, layers.norms, plan.eps, plan.batch, *plan.kind
            )
            saved, ctx.total = cuts.Saved(*values), None
        else:
            out, saved, tracked, ctx.total = cuts.forward(plan, V, layers)
        ctx.plan = plan
        ctx.save_for_backward(x, *saved, *layers.weights)
        ctx.mark_non_differentiable(tracked)
        return _map(out, x, plan), tracked

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, _: Any) -> Any:
        plan: Plan = ctx.plan
        x, *rest = ctx.saved_tensors
        count = len(cuts.Saved._fields)
        saved, weights = cuts.Saved(*rest[:count]), [weight.flatten(1) for weight in rest[count:]]
        V = reference.nodes(x, plan.view)
        dout = reference.nodes(_like(dout, x), plan.view)
        embeddings = plan.cuts[0]
        wanted = ctx.needs_input_grad[0], any(ctx.needs_input_grad[2:][embeddings])
        if plan.whole:
            op = getattr(torch.ops, plan.namespace).training_bwd.default
            results = op(dout, V, *saved, weights, plan.batch, *plan.kind, *wanted)
        else:
            results = cuts.backward(plan, ctx.total, dout, V, saved, weights, *wanted)
        dV, dweight_e, dweight_z, *others, sums = results

        widths = [len(weight) for weight in weights]
        stacked = widths[embeddings]
        dweights = [
            *(dweight_e.split(stacked) if wanted[1] else [None] * len(stacked)),
            *((dweight_z,) if plan.relations else ()),
            *others,
        ]
        dweights = [None if w is None else w[:, :, None, None] for w in dweights]
        dshifts, dscales = (torch.split_with_sizes(row, widths) for row in sums.unbind())
        running = (None,) * (2 * len(widths))
        dx = _map(dV, x, plan) if wanted[0] else None
        return dx, None, *dweights, *dscales, *dshifts, *running


def _like(dout: Tensor, x: Tensor) -> Tensor:
    """`dout` in the layout of `x`."""
    return dout if dout.stride() == x.stride() else torch.empty_like(x).copy_(dout)
