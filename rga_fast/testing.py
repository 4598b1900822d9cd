"""Inputs and the error budget of the tests and benchmarks."""

import copy

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


def run(module: RGA, x: Tensor, dout: Tensor, impl: str) -> dict[str, Tensor]:
    """Output, gradients and buffers of one forward and backward pass, by name.

    The module and `x` are left as they are: the pass runs on a copy.
    """
    module = copy.deepcopy(module)
    module.impl = impl
    x = x.detach().clone().requires_grad_()
    out = module(x)
    out.backward(dout.to(out.dtype))
    assert x.grad is not None
    results = {"out": out.detach(), "dx": x.grad}
    results |= {f"d{name}": p.grad for name, p in module.named_parameters() if p.grad is not None}
    return results | dict(module.named_buffers())


def check_budget(actual: Tensor, baseline: Tensor, oracle: Tensor, name: str = "result") -> None:
    """`actual` may be twice as far from the float64 `oracle` as the `baseline`, which is the
    reference in the dtype of `actual`, plus one rounding of the largest value.

    Raises:
        AssertionError: with the figures, if it is further away, or has another shape or dtype.
    """
    assert actual.shape == oracle.shape, f"{name}: {tuple(actual.shape)} != {tuple(oracle.shape)}"
    assert actual.dtype == baseline.dtype, f"{name}: {actual.dtype} != {baseline.dtype}"
    if oracle.numel() == 0:
        return
    eps = torch.finfo(baseline.dtype).eps if baseline.is_floating_point() else 0.0
    error = (actual.double() - oracle.double()).abs().max().item()
    allowed = (baseline.double() - oracle.double()).abs().max().item()
    budget = 2 * (allowed + eps * oracle.abs().max().item())
    assert error <= budget, f"{name}: error {error:.3g} exceeds the budget {budget:.3g}"
