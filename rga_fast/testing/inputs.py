"""Modules and maps on which implementations are compared."""

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn

from rga_fast.modules import EMBEDDINGS, RGA, VARIANTS

# Every variant of the module: how the branches are put together, and what an attention value sees.
ABLATIONS: dict[str, dict] = {
    "full": {},
    "no-relations": {"relations": False},
    "no-appearance": {"appearance": False},
    **{name: {"embedding": name} for name in EMBEDDINGS[1:]},
}
ALL_VARIANTS = [(variant, ablation) for variant in VARIANTS for ablation in ABLATIONS]

# The maps of ResNet-50 at 256x128 after each of its four stages: (C, H, W).
STAGES = {1: (256, 64, 32), 2: (512, 32, 16), 3: (1024, 16, 8), 4: (2048, 16, 8)}


def make_rga(
    channels: int,
    size: tuple[int, int],
    variant: str = "sc",
    ablation: str = "full",
    *,
    seed: int = 0,
    **options,
) -> RGA:
    """An `RGA` in which nothing is trivial: normalisations with random weights and statistics."""
    generator = torch.Generator().manual_seed(seed)
    module = RGA(channels, size, variant, **{**ABLATIONS[ablation], **options})

    def draw(tensor: Tensor, low: float, high: float) -> None:
        values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        tensor.copy_(low + (high - low) * values)

    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                bound = layer.in_channels**-0.5
                draw(layer.weight, -bound, bound)
            elif isinstance(layer, nn.BatchNorm2d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                draw(layer.weight, 0.5, 1.5)
                draw(layer.bias, -0.5, 0.5)
                draw(layer.running_mean, -0.2, 0.2)
                draw(layer.running_var, 0.2, 1.0)
    return module


def move_off_relu_kinks(module: RGA, x: Tensor) -> RGA:
    """A float64 copy whose activations are far from zero on maps like `x`, with the running
    statistics of `x`: half of the units always on, half always off.

    A unit within rounding of the kink of its ReLU falls on either side by chance, and its gradient
    with it: that says nothing about the precision of an implementation.
    """
    module = copy.deepcopy(module).double().train()
    with torch.no_grad():
        for layer in module.children():
            for norm, following in pairwise(layer.children()):
                if isinstance(norm, nn.BatchNorm2d) and isinstance(following, nn.ReLU):
                    norm.weight.mul_(0.5)
                    norm.bias.fill_(4.0)[1::2] = -4.0
        norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        module.impl = "reference"
        module(x.double())
        for norm in norms:
            norm.momentum = 0.1
    return module


def make_map(
    shape: tuple[int, ...],
    *,
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    seed: int = 0,
) -> Tensor:
    """A standard normal map (B, C, H, W) in one of the layouts that a network may hand over:
    "contiguous", "channels_last", or "strided" (a view into a larger map)."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    if layout == "channels_last":
        return values.to(memory_format=torch.channels_last)
    if layout == "strided":
        B, C, H, W = shape
        return values.new_zeros(B, C, H + 1, 2 * W)[:, :, :H, ::2].copy_(values)
    return values
