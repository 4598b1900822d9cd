"""Gradients that are not differentiated again."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.autograd.function.once_differentiable`, with an error that says what to do.

    The error comes when a gradient of the gradient is asked for, not where its graph is built; and
    it always comes: torch's own overlooks what depends on the inputs of the function alone.
    """

    def wrapper(ctx: Any, *gradients: Tensor) -> Any:
        with torch.no_grad():
            results = backward(ctx, *gradients)
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return results
        inputs = [t for t in (*ctx.saved_tensors, *gradients) if t is not None and t.requires_grad]
        tensors = [t for t in results if t is not None]
        ends = iter(_End.apply(len(tensors), *tensors, *inputs))
        return tuple(None if t is None else next(ends) for t in results)

    return wrapper


class _End(torch.autograd.Function):
    """The first `count` tensors, as functions of all, without a gradient."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            "rga_fast: the fused implementations are differentiable once; gradients of gradients "
            "take impl='torch'"
        )
