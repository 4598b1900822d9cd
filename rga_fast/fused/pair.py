"""Two branches in training, one after the other, as one operator forward and one backward."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rga_fast.fused import ops
from rga_fast.fused.operands import Layers, Plan


def forward(
    plans: Sequence[Plan], V: Tensor, layers: Sequence[Layers]
) -> tuple[Tensor, list[Tensor], list[Tensor], Any]:
    """As `staged.forward`, what is saved of the second branch after that of the first."""
    weights, norms, eps, batch = joined(
        (own.matrices, own.norms, plan.eps, plan.batch)
        for plan, own in zip(plans, layers, strict=True)
    )
    out, results = plans[0].operator("training_pair_fwd")(
        V, weights, norms, eps, batch, *plans[0].structure
    )
    (*first, tracked), (*second, other) = ops.halves(results)
    return out, [*first, *second], [tracked, other], None


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
    """As `staged.backward`, the gradients of both branches."""
    own = [weight for of_branch in weights for weight in of_branch]
    batch = [flag for plan in plans for flag in plan.batch]
    dV, gradients = plans[0].operator("training_pair_bwd")(
        dout, V, saved, own, batch, *plans[0].structure, need_dV, need_dweight
    )
    return dV, list(ops.halves(gradients))


def joined(lists: Any) -> tuple[list[Any], ...]:
    """Several lists of each of two branches: those of the first before those of the second."""
    return tuple([*first, *second] for first, second in zip(*lists, strict=True))
