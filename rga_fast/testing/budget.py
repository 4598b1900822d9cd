"""What implementations return, and how far from the float64 oracle that may be."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from rga_fast.modules import RGA

Results = dict[str, Tensor]


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
