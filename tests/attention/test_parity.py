"""`torch` computes what `reference` specifies: every variant, output, gradients and statistics."""

import copy
from itertools import product

import pytest
import torch

from rga_fast.testing import (
    ABLATIONS,
    ALL_VARIANTS,
    check_results,
    leave_the_kinks,
    make_map,
    make_rga,
    run,
)

LAYOUTS = ["contiguous", "channels_last", "strided"]
SHAPES = [(3, 24, 5, 7), (2, 7, 3, 3), (4, 1, 5, 2), (3, 16, 1, 1), (0, 8, 4, 4)]


def assert_close(actual: dict, expected: dict, relative: float) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        if value.numel() == 0:
            continue
        error = (actual[name] - value).abs().max().item()
        # The gradient of a weight in front of a normalisation can be zero but for rounding.
        assert error <= relative * max(value.abs().max().item(), 1e-3), f"{name}: {error:.3g}"


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("variant", "ablation"), ALL_VARIANTS)
def test_float64_parity(variant, ablation, shape, training):
    module = make_rga(shape[1], shape[2:], variant, ablation, dtype=torch.float64).train(training)
    x, dout = (make_map(shape, dtype=torch.float64, seed=seed) for seed in (1, 2))
    assert_close(run(module, x, dout, "torch"), run(module, x, dout, "reference"), 1e-9)


def low_precision_draws(variant, ablation, impl, *, dtype, training=True, autocast=None):
    """(actual, baseline, oracle) of five draws, in all layouts."""
    for seed, layout in enumerate(LAYOUTS + LAYOUTS[:2]):
        x, dout = (
            make_map((4, 64, 8, 8), dtype=dtype, layout=layout, seed=100 * seed + k) for k in (1, 2)
        )
        module = make_rga(64, (8, 8), variant, ablation, seed=seed, down_ratio=2)
        module = leave_the_kinks(module, x).to(dtype).train(training)
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            actual, baseline = run(module, x, dout, impl), run(module, x, dout, "reference")
        yield actual, baseline, run(module.double(), x.double(), dout.double(), "reference")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("variant", "ablation"), [*product("sc", ABLATIONS), *product(("sc", "cs", "s//c"), ["full"])]
)
def test_low_precision_stays_in_the_budget(variant, ablation, training, dtype):
    draws = low_precision_draws(variant, ablation, "torch", dtype=dtype, training=training)
    check_results(list(draws))


@pytest.mark.parametrize("fill", [0.0, 1.0, 1e4], ids=["zero", "constant", "huge"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_maps_without_variance(fill, training):
    module = make_rga(16, (4, 4), "sc", dtype=torch.float64).train(training)
    x, dout = torch.full((2, 16, 4, 4), fill, dtype=torch.float64), make_map((2, 16, 4, 4))
    results = run(module, x, dout, "torch")
    assert all(value.isfinite().all() for value in results.values())
    assert_close({"out": results["out"]}, {"out": run(module, x, dout, "reference")["out"]}, 1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("variant", ["s", "c", "sc"])
def test_autocast(variant, dtype):
    draws = list(low_precision_draws(variant, "full", "torch", dtype=torch.float32, autocast=dtype))
    for actual, _, oracle in draws:
        assert actual["out"].dtype == torch.float32
        # The products did run in low precision: float32 would be a thousand times closer.
        assert not torch.allclose(actual["out"].double(), oracle["out"], rtol=1e-6, atol=1e-7)
    check_results(draws, product_dtype=dtype)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("ablation", ["full", "symmetric", "none"])
@pytest.mark.parametrize("variant", ["s", "c"])
def test_gradcheck(variant, ablation, training):
    module = make_rga(4, (2, 3), variant, ablation, dtype=torch.float64).train(training)
    module.impl = "torch"
    x = make_map((3, 4, 2, 3), dtype=torch.float64).requires_grad_()
    names, parameters = zip(*module.named_parameters(), strict=True)

    def forward(x, *values):
        replaced = dict(zip(names, values, strict=True))
        return torch.func.functional_call(copy.deepcopy(module), replaced, (x,))

    assert torch.autograd.gradcheck(forward, (x, *parameters), atol=1e-6)


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
def test_statistics_are_those_of_batch_norm(momentum):
    """Three steps: running statistics and step count equal those of the reference exactly kept."""
    module = make_rga(16, (4, 3), dtype=torch.float64)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = momentum
    states = []
    for impl in ("reference", "torch"):
        trained = copy.deepcopy(module)
        trained.impl = impl
        for seed in range(3):
            trained(make_map((2, 16, 4, 3), dtype=torch.float64, seed=seed))
        states.append(dict(trained.named_buffers()))
    assert_close(states[1], states[0], 1e-12)
    assert states[1]["theta_spatial.1.num_batches_tracked"] == 3
    assert not torch.equal(
        states[1]["gg_channel.1.running_var"],
        dict(module.named_buffers())["gg_channel.1.running_var"],
    )
