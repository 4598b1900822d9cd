"""Branches of the attention on fused operators (rga_fast/fused/ops.py), with their gradient.

Evaluation is one operator, for both branches where the implementation has one. Training takes one
of three strategies, modules with the same two functions: `pair` (both branches in one operator),
`whole` (a branch in one operator), `staged` (a branch stage by stage, where a process group shares
batch statistics or the implementation has no operator for the whole).
"""

from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rga_fast import reference
from rga_fast.fused import ops, pair, staged, whole
from rga_fast.fused.once import differentiable_once
from rga_fast.fused.operands import Layers, Plan, PreparedBranch, prepare, track
from rga_fast.fused.shapes import Saved
from rga_fast.reference import Branch


def attention(x: Tensor, branches: Sequence[Branch], impl: str) -> Tensor:
    """One branch after the other, (B, C, H, W) -> the same, by the operators of `impl`.

    Differentiable once; statistics are tracked as `torch.nn.BatchNorm2d` tracks them. Layers with
    a `SyncBatchNorm` in training share their statistics with its process group.

    All branches are prepared before the first operator and tracked after the last: interleaving
    Python with kernels evicts the interpreter's working set, and costs several times as much.

    Precondition: `rga_fast.exactness.problem(branch)` is None.

    Raises:
        ValueError: in training, for a single value per channel.
    """
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    if not dense:
        by_channels = x.stride(1) == 1 and x.shape[1] > 1
        format = torch.channels_last if by_channels else torch.contiguous_format
        x = x.contiguous(memory_format=format)
    prepared = [prepare(x, branch, impl) for branch in branches]
    if not _learns(x, prepared):
        return _evaluate(x, prepared)
    for branch in prepared:
        _check_count(x, branch.plan)
    segments = _segments([branch.plan for branch in prepared])
    tensors = (t for branch in prepared for field in branch.layers for t in field)
    out, *statistics = _Attention.apply(x, segments, *tensors)
    track(prepared, statistics, empty=not x.shape[0] and prepared[0].plan.group is None)
    return out


def _learns(x: Tensor, prepared: Sequence[PreparedBranch]) -> bool:
    """Whether batch statistics or gradients are wanted."""
    if any(any(branch.plan.batch) for branch in prepared):
        return True
    learnt = (t for _, _, layers in prepared for field in layers[:3] for t in field)
    return torch.is_grad_enabled() and any(t.requires_grad for t in (x, *learnt))


def _check_count(x: Tensor, plan: Plan) -> None:
    """As batch normalisation itself refuses to learn from one value."""
    B, C, H, W = x.shape
    if any(plan.batch) and plan.group is None and B * (H * W if plan.view == "spatial" else C) == 1:
        raise ValueError(
            f"RGA: training needs more than 1 value per channel, got a map {(B, C, H, W)} in the "
            f"{plan.view} branch"
        )


def _evaluate(x: Tensor, prepared: Sequence[PreparedBranch]) -> Tensor:
    """Two branches with the same structure by one operator, where there is one."""
    plans = [branch.plan for branch in prepared]
    lists: Any = [(b.layers.matrices, b.layers.norms, b.plan.eps) for b in prepared]
    name = "attention"
    if _paired(plans, "attention_pair"):
        name, plans, lists = "attention_pair", plans[:1], [pair.joined(lists)]
    for plan, operands in zip(plans, lists, strict=True):
        V = plan.operator(name)(reference.nodes(x, plan.view), *operands, *plan.structure)
        x = _map(V, x, plan.view)
    return x


def _paired(plans: Sequence[Plan], name: str) -> bool:
    """Whether there are two branches, and an operator `name` that takes both."""
    if len(plans) != 2 or name not in ops.defined(plans[0].namespace):
        return False
    first, second = plans
    return first.structure == second.structure and first.view != second.view


class _Segment(NamedTuple):
    """Branches that a strategy computes at once: two in a pair, else one."""

    strategy: ModuleType
    plans: Sequence[Plan]

    @property
    def view(self) -> str:
        return self.plans[0].view

    @property
    def operands(self) -> int:
        """How many tensors the layers of its branches are."""
        return sum(map(_operands, self.plans))

    @property
    def kept(self) -> int:
        """How many tensors are saved for its gradient: the map, `Saved` and weights of each."""
        return 1 + sum(len(Saved._fields) + plan.structure.layers for plan in self.plans)


def _operands(plan: Plan) -> int:
    return plan.structure.layers * len(Layers._fields)


def _segments(plans: Sequence[Plan]) -> list[_Segment]:
    if all(plan.whole for plan in plans) and _paired(plans, "training_pair_fwd"):
        # The map between two branches cannot be left out where its values are what is related.
        structure = plans[0].structure
        if structure.embeddings or not structure.relations:
            return [_Segment(pair, plans)]
    return [_Segment(whole if plan.whole else staged, [plan]) for plan in plans]


class _Attention(torch.autograd.Function):
    """(x, segments, *layers of each branch) -> out, and what each branch tracks: mean, unbiased
    variance (2, rows)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, segments: Sequence[_Segment], *tensors: Tensor) -> Any:
        ctx.segments, ctx.totals = segments, []
        kept: list[Tensor] = []
        statistics: list[Tensor] = []
        shares = _split(tensors, [segment.operands for segment in segments])
        for segment, own in zip(segments, shares, strict=True):
            layers = [Layers.joined(t) for t in _split(own, map(_operands, segment.plans))]
            V = reference.nodes(x, segment.view)
            out, saved, tracked, total = segment.strategy.forward(segment.plans, V, layers)
            kept += (x, *saved, *(weight for of_branch in layers for weight in of_branch.weights))
            ctx.totals.append(total)
            statistics += tracked
            x = _map(out, x, segment.view)
        ctx.save_for_backward(*kept)
        ctx.mark_non_differentiable(*statistics)
        return x, *statistics

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, dout: Tensor | None, *_: Any) -> Any:
        segments: Sequence[_Segment] = ctx.segments
        need_dx, _, *needed = ctx.needs_input_grad
        kept = _split(ctx.saved_tensors, [segment.kept for segment in segments])
        wanted = _split(needed, [segment.operands for segment in segments])
        before = list(zip(segments, ctx.totals, kept, wanted, strict=True))
        gradients: list[Any] = []
        while before:
            segment, total, tensors, own = before.pop()
            if dout is None:  # nothing is wanted of this segment and those before it
                gradients[:0] = [None] * len(own)
                continue
            need_dV = need_dx or any(any(wanted) for *_, wanted in before)
            dout, dlayers = _backward(segment, total, dout, tensors, own, need_dV)
            gradients[:0] = dlayers
        return dout if need_dx else None, None, *gradients


def _backward(
    segment: _Segment,
    total: Any,
    dout: Tensor,
    kept: Sequence[Tensor],
    wanted: Sequence[bool],
    need_dV: bool,
) -> tuple[Tensor | None, list[Any]]:
    """The gradients of the map and of the layers of a segment."""
    strategy, plans = segment
    count = 1 + len(plans) * len(Saved._fields)
    x, saved = kept[0], kept[1:count]
    weights = _split([w.flatten(1) for w in kept[count:]], [p.structure.layers for p in plans])
    need_dweight = [
        any(own[plan.structure.stages.embed])
        for plan, own in zip(plans, _split(wanted, map(_operands, plans)), strict=True)
    ]
    V, dV = (reference.nodes(t, segment.view) for t in (x, _like(dout, x)))
    dV, results = strategy.backward(plans, total, dV, V, saved, weights, need_dV, need_dweight)
    each = zip(plans, weights, results, need_dweight, strict=True)
    gradients = [gradient for own in each for gradient in _of_layers(*own)]
    return _map(dV, x, segment.view) if need_dV else None, gradients


def _of_layers(
    plan: Plan, weights: Sequence[Tensor], gradients: Sequence[Tensor], need_dweight: bool
) -> Iterator[Any]:
    """The gradients of the layers of one branch, from those of `shapes.GRADIENTS`."""
    dweight_e, dweight_z, *others, sums = gradients
    widths = [len(weight) for weight in weights]
    stacked = widths[plan.structure.stages.embed]
    dweights = [
        *(dweight_e.split(stacked) if need_dweight else [None] * len(stacked)),
        *((dweight_z,) if plan.structure.relations else ()),
        *others,
    ]
    yield from (None if w is None else w[:, :, None, None] for w in dweights)
    dshifts, dscales = (torch.split_with_sizes(row, widths) for row in sums.unbind())
    yield from dscales
    yield from dshifts
    yield from (None,) * (2 * len(widths))  # of the running statistics


def _split(values: Sequence[Any], counts: Iterable[int]) -> list[Sequence[Any]]:
    """Consecutive shares of `values`, of these lengths."""
    shares, start = [], 0
    for count in counts:
        shares.append(values[start : start + count])
        start += count
    return shares


def _map(V: Tensor, x: Tensor, view: str) -> Tensor:
    """(B, d, n) as the map it is a view of."""
    return (V if view == "spatial" else V.transpose(1, 2)).view(x.shape)


def _like(dout: Tensor, x: Tensor) -> Tensor:
    """`dout` in the layout of `x`."""
    return dout if dout.stride() == x.stride() else torch.empty_like(x).copy_(dout)
