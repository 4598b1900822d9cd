"""Each implementation computes what `reference` specifies: every variant, output, gradients and
statistics. Triton's budget is in tests/fused/test_triton.py: its interpreter is slow."""

import copy
from itertools import product

import pytest
import torch
from operators import param
from parity import (
    DTYPES,
    LAYOUTS,
    SHAPES,
    assert_close,
    check_budget,
    check_float64,
    draws,
)

from rga_fast.testing import ABLATIONS, ALL_VARIANTS, check_results, make_map, make_rga, run

pytestmark = pytest.mark.usefixtures("_test_impls")
TRAINING = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])

BOTH = [("sc", ablation) for ablation in ABLATIONS]
FLOAT64 = [
    *product(["torch", "cpp"], ALL_VARIANTS, product(SHAPES, LAYOUTS[:1])),
    *product(["torch", "cpp"], ALL_VARIANTS, [(SHAPES[0], LAYOUTS[1]), (SHAPES[1], LAYOUTS[2])]),
    *product(["cuda_host"], BOTH, product([*SHAPES[:3], SHAPES[4]], LAYOUTS[:2])),
]


@TRAINING
@pytest.mark.parametrize(
    ("impl", "variant", "ablation", "shape", "layout"),
    [param(impl, *variant, *map_) for impl, variant, map_ in FLOAT64],
    ids=str,
)
def test_float64_parity(impl, variant, ablation, shape, layout, training):
    check_float64(impl, variant, ablation, shape, layout, training)


SINGLE = list(product("sc", ABLATIONS))
LOW = [
    *product(["torch"], [*SINGLE, *product(["sc", "cs", "s//c"], ["full"])], DTYPES),
    *product(["cpp"], [*SINGLE, ("sc", "full")], DTYPES),
    *product(["cuda_host"], BOTH, [torch.bfloat16]),
    *product(["cuda_host"], [("sc", "full")], [torch.float32, torch.float16]),
]


def slow_case(impl, variant, dtype) -> bool:
    """The host runs a GPU's threads one after the other."""
    return impl == "cuda_host" and (variant[1] != "full" or dtype != torch.bfloat16)


@TRAINING
@pytest.mark.parametrize(
    ("impl", "variant", "ablation", "dtype"),
    [
        param(impl, *variant, dtype, slow=slow_case(impl, variant, dtype))
        for impl, variant, dtype in LOW
    ],
    ids=str,
)
def test_low_precision_stays_in_the_budget(impl, variant, ablation, dtype, training):
    check_budget(impl, variant, ablation, dtype, training)


@TRAINING
@pytest.mark.parametrize("impl", [param("torch"), param("cpp")])
@pytest.mark.parametrize("fill", [0.0, 1.0, 1e4], ids=["zero", "constant", "huge"])
def test_maps_without_variance(impl, fill, training):
    module = make_rga(16, (4, 4), "sc", dtype=torch.float64).train(training)
    x, dout = torch.full((2, 16, 4, 4), fill, dtype=torch.float64), make_map((2, 16, 4, 4))
    results = run(module, x, dout, impl)
    assert all(value.isfinite().all() for value in results.values())
    assert_close({"out": results["out"]}, {"out": run(module, x, dout, "reference")["out"]}, 1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("impl", "variant"), [*(param("torch", v) for v in ("s", "c", "sc")), param("cpp", "sc")]
)
def test_autocast(impl, variant, dtype):
    results = list(draws(impl, variant, "full", torch.float32, autocast=dtype))
    for actual, _, oracle in results:
        assert actual["out"].dtype == torch.float32
        # The products did run in low precision: float32 would be a thousand times closer.
        assert not torch.allclose(actual["out"].double(), oracle["out"], rtol=1e-6, atol=1e-7)
    check_results(results, product_dtype=dtype)


@TRAINING
@pytest.mark.parametrize("ablation", ["full", "symmetric", "none"])
@pytest.mark.parametrize("variant", ["s", "c"])
@pytest.mark.parametrize("impl", [param("torch"), param("cpp", slow=True)])
def test_gradcheck(impl, variant, ablation, training):
    module = make_rga(4, (2, 3), variant, ablation, dtype=torch.float64).train(training)
    module.impl = impl
    x = make_map((3, 4, 2, 3), dtype=torch.float64).requires_grad_()
    names, parameters = zip(*module.named_parameters(), strict=True)

    def forward(x, *values):
        replaced = dict(zip(names, values, strict=True))
        return torch.func.functional_call(copy.deepcopy(module), replaced, (x,))

    # Along random directions; `test_float64_parity` compares every entry with the reference.
    assert torch.autograd.gradcheck(forward, (x, *parameters), atol=1e-6, fast_mode=True)


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
