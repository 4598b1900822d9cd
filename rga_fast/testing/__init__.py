"""Inputs and the error budget of the tests and benchmarks."""

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from rga_fast.modules import EMBEDDINGS, RGA, VARIANTS

Results = dict[str, Tensor]

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


def leave_the_kinks(module: RGA, x: Tensor) -> RGA:
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


def run(module: RGA, x: Tensor, dout: Tensor, impl: str) -> Results:
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
    check_results([({name: actual}, {name: baseline}, {name: oracle})])


def check_results(
    draws: Sequence[tuple[Results, Results, Results]], product_dtype: torch.dtype | None = None
) -> None:
    """The error budget for what `run` returns: (actual, baseline, oracle) of several random draws.

    The gradient of a weight in front of a normalisation may cancel to nothing and has no digits
    then. So the parameters of a layer are compared together, and the median draw counts.
    `product_dtype`: what autocast computes in, if it is on.

    Raises:
        AssertionError: with the figures.
    """
    errors: dict[str, list[tuple[float, float]]] = {}
    for actual, baseline, oracle in draws:
        assert actual.keys() == baseline.keys() == oracle.keys()
        for name, value in baseline.items():
            assert actual[name].shape == value.shape, f"{name}: {tuple(actual[name].shape)}"
            assert actual[name].dtype == value.dtype, f"{name}: {actual[name].dtype}"
        pools = [_by_layer(results) for results in (actual, baseline, oracle)]
        for name, exact in pools[2].items():
            scale = exact.abs().max().item() or 1.0
            far, allowed = ((pool[name] - exact).abs().max().item() / scale for pool in pools[:2])
            errors.setdefault(name, []).append((far, allowed))
    dtypes = {v.dtype for v in baseline.values() if v.is_floating_point()}
    if product_dtype is not None:
        dtypes.add(product_dtype)
    eps = max(torch.finfo(dtype).eps for dtype in dtypes)
    for name, pairs in errors.items():
        # Each draw against its own baseline: how much of a gradient cancels differs between them.
        ranked = sorted(pairs, key=lambda pair: pair[0] / (pair[1] + eps))
        far, allowed = ranked[len(pairs) // 2]
        budget = 2 * (allowed + eps)
        assert far <= budget, f"{name}: relative error {far:.3g} exceeds the budget {budget:.3g}"


def _by_layer(results: Results) -> Results:
    """The floating-point results in float64; those of one layer, `dtheta_spatial.*`, together."""
    pools: dict[str, list[Tensor]] = {}
    for name, value in results.items():
        if value.is_floating_point() and value.numel():
            layer, *rest = name.split(".")
            key = f"{layer} statistics" if rest and "running" in rest[-1] else layer
            pools.setdefault(key, []).append(value.detach().double().flatten())
    return {name: torch.cat(values) for name, values in pools.items()}
