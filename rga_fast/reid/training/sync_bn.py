"""Batch normalisation by the statistics of all ranks, on every device.

torch has it for GPUs alone."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def synchronised(model: nn.Module) -> nn.Module:
    """`model` with every batch normalisation synchronised: same parameters, same `state_dict`."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.SyncBatchNorm:
            module.__class__ = SyncBatchNorm  # which differs by its `forward` alone
    return model


class SyncBatchNorm(nn.SyncBatchNorm):
    """`torch.nn.SyncBatchNorm`, which refuses maps on a CPU, and there the same in plain PyTorch.

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
        if factor is None:  # the mean over all batches
            factor = 1.0 / self.num_batches_tracked.item()
        cast(Tensor, self.running_mean).lerp_(mean, factor)
        cast(Tensor, self.running_var).lerp_(variance, factor)


class Parallel(DistributedDataParallel):
    """`DistributedDataParallel` that takes the layers of this module on a CPU, too."""

    def _passing_sync_batchnorm_handle(self, module: nn.Module) -> None:
        """The place where it refuses them."""


class _Sum(torch.autograd.Function):
    """The sum over the ranks; each of them adds to the gradient."""

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
