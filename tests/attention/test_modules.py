"""The module as its users hold it: state dict, compile, export, copies, errors, fuse."""

import copy
import pickle

import pytest
import torch

import rga_fast
from rga_fast.testing import (
    ABLATIONS,
    ALL_VARIANTS,
    make_map,
    make_rga,
    run,
)

PUBLISHED_LAYERS = {"theta": 1, "phi": 1, "gx": 1, "gg": 1, "W": 4}


def published_keys(view: str, without: tuple[str, ...] = ()) -> set[str]:
    normalised = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = set()
    for layer in set(PUBLISHED_LAYERS) - set(without):
        keys |= {f"{layer}_{view}.0.weight"}
        keys |= {f"{layer}_{view}.1.{name}" for name in normalised}
        if layer == "W":
            keys |= {f"W_{view}.3.weight"} | {f"W_{view}.4.{name}" for name in normalised}
    return keys


def test_state_dict_is_the_published_one():
    state = rga_fast.RGA(256, (64, 32)).state_dict()
    assert set(state) == published_keys("spatial") | published_keys("channel")
    shapes = {key: tuple(state[key].shape[:2]) for key in state if state[key].dim() == 4}
    assert shapes == {
        "gx_spatial.0.weight": (32, 256),
        "theta_spatial.0.weight": (32, 256),
        "phi_spatial.0.weight": (32, 256),
        "gg_spatial.0.weight": (256, 4096),
        "W_spatial.0.weight": (32, 257),
        "W_spatial.3.weight": (1, 32),
        "gx_channel.0.weight": (256, 2048),
        "theta_channel.0.weight": (256, 2048),
        "phi_channel.0.weight": (256, 2048),
        "gg_channel.0.weight": (32, 512),
        "W_channel.0.weight": (4, 33),
        "W_channel.3.weight": (1, 4),
    }


@pytest.mark.parametrize(
    ("ablation", "without"),
    [
        ("no-relations", ("gg", "theta", "phi")),
        ("no-appearance", ("gx",)),
        ("symmetric", ("phi",)),
        ("none", ("theta", "phi")),
    ],
)
def test_ablations_drop_the_keys_they_do_not_use(ablation, without):
    state = rga_fast.RGA(16, (4, 4), "c", **ABLATIONS[ablation]).state_dict()
    assert set(state) == published_keys("channel", without)


def test_widths_are_at_least_one():
    module = rga_fast.RGA(3, (2, 1))
    assert module.gx_spatial[0].weight.shape == (1, 3, 1, 1)
    assert module.W_spatial[0].weight.shape == (1, 2, 1, 1)
    assert module(torch.randn(2, 3, 2, 1)).shape == (2, 3, 2, 1)


def test_side_by_side_is_the_mean_of_both_branches():
    module = make_rga(8, (3, 4), "s//c").eval()
    x = make_map((2, 8, 3, 4))
    single = [rga_fast.attention(x, module.branch(view)) for view in ("spatial", "channel")]
    torch.testing.assert_close(module(x), (single[0] + single[1]) / 2)


@pytest.mark.parametrize("variant", ["sc", "cs"])
def test_order_of_the_branches(variant):
    module = make_rga(8, (3, 4), variant).eval()
    x = make_map((2, 8, 3, 4))
    views = {"sc": ("spatial", "channel"), "cs": ("channel", "spatial")}[variant]
    expected = rga_fast.attention(
        rga_fast.attention(x, module.branch(views[0])), module.branch(views[1])
    )
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_layout_is_kept(layout):
    x = make_map((2, 8, 3, 4), layout=layout)
    assert make_rga(8, (3, 4))(x).stride() == x.stride()


@pytest.mark.parametrize("frozen", ["theta_spatial", "gg_spatial", "gx_channel", "W_channel"])
def test_frozen_parameters_get_no_gradient(frozen):
    module = make_rga(8, (3, 4))
    expected = run(module, make_map((2, 8, 3, 4)), make_map((2, 8, 3, 4), seed=1), "reference")
    getattr(module, frozen).requires_grad_(False)
    results = run(module, make_map((2, 8, 3, 4)), make_map((2, 8, 3, 4), seed=1), "auto")
    missing = {name for name in expected if name not in results}
    assert missing == {f"d{frozen}.{key}" for key, _ in getattr(module, frozen).named_parameters()}
    torch.testing.assert_close(results["dx"], expected["dx"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("impl", "training", "backend"),
    [
        ("reference", True, "aot_eager"),
        ("reference", False, "inductor"),
        ("torch", True, "inductor"),
        ("torch", False, "aot_eager"),
    ],
)
@pytest.mark.slow
def test_compiles_as_one_graph(impl, training, backend):
    """In float64: in float32 the rounding of compiled code is narrowly over the budget. The graphs
    are captured by every backend; code is generated, by a C++ compiler, for each impl once."""
    shape, dtype = (3, 16, 4, 3), torch.float64
    x, dout = make_map(shape, seed=1, dtype=dtype), make_map(shape, seed=2, dtype=dtype)
    module = make_rga(16, (4, 3), "s" if training else "sc")  # training takes long to compile
    module = module.double().train(training)
    oracle = run(module, x, dout, "reference")
    module.impl = impl
    compiled = torch.compile(copy.deepcopy(module), backend=backend, fullgraph=True, dynamic=False)
    leaf = x.clone().requires_grad_()
    out = compiled(leaf)
    out.backward(dout)
    results = {"out": out.detach(), "dx": leaf.grad}
    results |= {f"d{k}": p.grad for k, p in compiled._orig_mod.named_parameters()}
    results |= dict(compiled._orig_mod.named_buffers())
    assert results.keys() == oracle.keys()
    for name, value in oracle.items():
        torch.testing.assert_close(results[name], value, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("impl", ["reference", "torch", "auto"])
def test_export(impl, grad):
    """Of any batch, with and without the graph of the gradient."""
    module = make_rga(16, (4, 3), impl=impl).eval()
    x = make_map((3, 16, 4, 3))
    batch = {"x": {0: torch.export.Dim("B", min=1, max=64)}}
    with torch.set_grad_enabled(grad):
        exported = torch.export.export(module, (x,), dynamic_shapes=batch).module()
        for images in (x, x[:1]):
            torch.testing.assert_close(exported(images), module(images))


@pytest.mark.parametrize(("variant", "ablation"), ALL_VARIANTS)
def test_copies(variant, ablation):
    module = make_rga(8, (3, 4), variant, ablation).eval()
    x = make_map((2, 8, 3, 4))
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(x), module(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtype_of_the_whole_module(dtype):
    x = make_map((2, 8, 3, 4), dtype=dtype)
    assert make_rga(8, (3, 4)).to(dtype)(x).dtype == dtype
    assert rga_fast.RGA(8, (3, 4), dtype=dtype)(x).dtype == dtype
    assert rga_fast.RGA(8, (3, 4), device="meta").theta_spatial[0].weight.is_meta


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 8, 12), r"x must be \(B, C, H, W\), got \(2, 8, 12\)"),
        ((2, 9, 3, 4), r"x must be \(B, 8, 3, 4\), the size the module was built for, got \(2, 9,"),
        ((2, 8, 4, 3), r"x must be \(B, 8, 3, 4\).* got \(2, 8, 4, 3\)"),
    ],
)
def test_wrong_shapes_are_named(shape, message):
    with pytest.raises(ValueError, match=message):
        make_rga(8, (3, 4))(torch.zeros(shape))


def test_wrong_dtype_device_and_options_are_named():
    module = make_rga(8, (3, 4))
    with pytest.raises(ValueError, match=r"x must have the dtype.*float32, got torch.float64"):
        module(torch.zeros(2, 8, 3, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"x must be of a floating-point dtype, got torch.uint8"):
        module(torch.zeros(2, 8, 3, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"x must be on the device.*cpu, got meta"):
        module(torch.zeros(2, 8, 3, 4, device="meta"))
    for options, message in [
        ({"variant": "cc"}, r"variant must be one of 's', 'c', 'sc', 'cs', 's//c', got 'cc'"),
        ({"embedding": "both"}, r"embedding must be one of 'asymmetric'.* got 'both'"),
        ({"impl": "fast"}, r"impl must be one of 'auto'.* got 'fast'"),
        ({"spatial_ratio": 0}, r"spatial_ratio must be a positive integer, got 0"),
        ({"relations": False, "appearance": False}, r"at least one of relations and appearance"),
        ({"size": (3, 4, 5)}, r"size must be \(H, W\) or their product H \* W, got \(3, 4, 5\)"),
        ({"size": (3, 0)}, r"each side of size must be a positive integer, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            rga_fast.RGA(**{"channels": 8, "size": (3, 4), **options})


def test_size_as_the_number_of_positions():
    module = rga_fast.RGA(8, 12)
    assert module(torch.randn(2, 8, 3, 4)).shape == (2, 8, 3, 4)
    with pytest.raises(ValueError, match=r"\(B, 8, H, W\) with H \* W = 12"):
        module(torch.randn(2, 8, 3, 3))


def test_choose_says_which_and_why():
    module = make_rga(8, (3, 4))
    choice = module.choose(make_map((2, 8, 3, 4)))
    assert choice.impl != "auto"
    assert choice.reason
    assert rga_fast.choose("reference", make_map((2, 8, 3, 4))).impl == "reference"
