"""A branch in training as one operator forward and one backward."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rga_fast.fused.operands import Layers, Plan


def forward(
    plans: Sequence[Plan], V: Tensor, layers: Sequence[Layers]
) -> tuple[Tensor, list[Tensor], list[Tensor], Any]:
    """As `staged.forward`; nothing counts beyond this process."""
    (plan,), (own,) = plans, layers
    out, *saved, tracked = plan.operator("training_fwd")(
        V, own.matrices, own.norms, plan.eps, plan.batch, *plan.structure
    )
    return out, saved, [tracked], None


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
    """As `staged.backward`."""
    (plan,), (own,) = plans, weights
    dV, *gradients = plan.operator("training_bwd")(
        dout, V, *saved, own, plan.batch, *plan.structure, need_dV, *need_dweight
    )
    return dV, [gradients]
