"""Batch normalisation with the statistics of all ranks, on every device.

torch supports it on GPUs only."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rga_fast.exactness import computes_as_sync_batch_norm


def synchronised(model: nn.Module) -> nn.Module:
    """`model` with every batch normalisation synchronised: same parameters, same `state_dict`."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.SyncBatchNorm:
            module.__class__ = SyncBatchNorm  # the subclass overrides `forward` only
    return model


@computes_as_sync_batch_norm
class SyncBatchNorm(nn.SyncBatchNorm):
    """`torch.nn.SyncBatchNorm` on a GPU; on a CPU, which that refuses, the same in plain PyTorch.

    Ranks may hold batches of different sizes. Low precision is computed in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        shared = self.training and dist.is_available() and dist.is_initialized()
        if not (shared and x.is_cpu and dist.get_world_size(self.process_group) > 1):
            return super().forward(x)
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        dims = [0, *range(2, x.ndim)]
        count = values.new_tensor([x.numel() // x.shape[1]])
        dist.all_reduce(count, group=self.process_group)

        def row(channels: Tensor) -> Tensor:
            return channels.view(-1, *[1] * (x.ndim - 2))

        mean = cast(Tensor, _Sum.apply(values.sum(dims), self.process_group)) / count
        centred = values - row(mean)
        sums = cast(Tensor, _Sum.apply(centred.square().sum(dims), self.process_group))
        variance = sums / count
        if self.track_running_stats:
            self._track(mean.detach(), sums.detach() / (count - 1).clamp(min=1))
        out = centred * row((variance + self.eps).rsqrt())
        if self.affine:
            out = out * row(self.weight) + row(self.bias)
        return out.to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor: Any = self.momentum
        if factor is None:  # cumulative mean
            factor = 1.0 / self.num_batches_tracked.item()
        cast(Tensor, self.running_mean).lerp_(mean, factor)
        cast(Tensor, self.running_var).lerp_(variance, factor)


class Parallel(DistributedDataParallel):
    """`DistributedDataParallel` that accepts `SyncBatchNorm` on a CPU."""

    def _passing_sync_batchnorm_handle(self, module: nn.Module) -> None:
        """Without the check that rejects it."""


class _Sum(torch.autograd.Function):
    """The sum over the ranks. The gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
