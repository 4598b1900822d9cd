"""Modules under an implementation, against what `reference` specifies."""

from itertools import cycle, islice

import torch

from rga_fast.testing import check_results, make_map, make_rga, move_off_relu_kinks, run

LAYOUTS = ["contiguous", "channels_last", "strided"]
SHAPES = [(3, 24, 5, 7), (2, 7, 3, 3), (4, 1, 5, 2), (3, 16, 1, 1), (0, 8, 4, 4)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def assert_close(actual: dict, expected: dict, relative: float) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        if value.numel() == 0:
            continue
        error = (actual[name] - value).abs().max().item()
        # The gradient of a weight in front of a normalisation can be zero but for rounding.
        assert error <= relative * max(value.abs().max().item(), 1e-3), f"{name}: {error:.3g}"


def check_float64(impl, variant, ablation, shape, layout, training) -> None:
    """Output, gradients and statistics; evaluation without gradients; the map is left as it is."""
    module = make_rga(shape[1], shape[2:], variant, ablation, dtype=torch.float64).train(training)
    x = make_map(shape, dtype=torch.float64, layout=layout, seed=1)
    dout = make_map(shape, dtype=torch.float64, seed=2)
    expected, before = run(module, x, dout, "reference"), x.clone()
    assert_close(run(module, x, dout, impl), expected, 1e-9)
    assert torch.equal(x, before)
    if not training:
        module.impl = impl
        with torch.no_grad():
            assert_close({"out": module(x)}, {"out": expected["out"]}, 1e-10)


def draws(
    impl, variant, ablation, dtype, training=True, *, autocast=None, shape=(4, 64, 8, 8), count=5
):
    """(actual, baseline, oracle) of some draws, in all layouts."""
    for seed, layout in zip(range(count), cycle(LAYOUTS)):
        x, dout = (make_map(shape, dtype=dtype, layout=layout, seed=100 * seed + k) for k in (1, 2))
        module = make_rga(shape[1], shape[2:], variant, ablation, seed=seed, down_ratio=2)
        module = move_off_relu_kinks(module, x).to(dtype).train(training)
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            actual, baseline = run(module, x, dout, impl), run(module, x, dout, "reference")
        yield actual, baseline, run(module.double(), x.double(), dout.double(), "reference")


def check_budget(impl, variant, ablation, dtype, training=True, **options) -> None:
    """The median of five draws; where that misses, the median of twenty-one, all other draws.

    The gradients of a perceptron cancel, so that one draw in seven misses by chance, and three of
    five in 2 % of all cases. Eleven of twenty-one do not, unless an implementation is worse.
    """
    every = draws(impl, variant, ablation, dtype, training, count=26, **options)
    try:
        check_results(list(islice(every, 5)))
    except AssertionError:
        check_results(list(every))
