"""The fused implementation as a whole: what `reference` specifies, and its place in torch."""

import copy
import os
import subprocess
import sys
import threading

import pytest
import torch
from operators import DEVICES, param
from parity import assert_close
from torch import nn

import rga_fast
from rga_fast import fused
from rga_fast.fused import cpp
from rga_fast.testing import (
    ABLATIONS,
    STAGES,
    check_results,
    make_map,
    make_rga,
    move_off_relu_kinks,
    run,
)

BUILT = cpp.ERROR is None
needs_cpp = pytest.mark.skipif(not BUILT, reason=f"extension not built: {cpp.ERROR}")


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("view", ["spatial", "channel"])
@pytest.mark.usefixtures("_test_impls")
def test_plain_operators_are_the_reference(view, ablation):
    """The oracle of the operators, put together by `fused`, answers to the reference itself."""
    module = make_rga(24, (5, 7), view[0], ablation, dtype=torch.float64)
    for training in (True, False):
        module.train(training)
        results = []
        for forward in (rga_fast.reference.attention, plain_attention):
            trained = copy.deepcopy(module)
            x = make_map((3, 24, 5, 7), dtype=torch.float64).requires_grad_()
            out = forward(x, trained.branch(view))
            out.backward(make_map((3, 24, 5, 7), dtype=torch.float64, seed=1))
            gradients = {name: p.grad for name, p in trained.named_parameters()}
            results.append({"out": out, "dx": x.grad, **gradients, **dict(trained.named_buffers())})
        assert_close(results[1], results[0], 1e-9)


def plain_attention(x, branch):
    return fused.attention(x, [branch], "plain")


@needs_cpp
@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_real_stages(stage):
    C, H, W = STAGES[stage]
    results = []
    for seed in range(5):
        x, dout = (make_map((2, C, H, W), seed=100 * seed + k) for k in (1, 2))
        module = move_off_relu_kinks(make_rga(C, (H, W), seed=seed), x).float()
        actual, baseline = run(module, x, dout, "cpp"), run(module, x, dout, "torch")
        results.append((actual, baseline, run(module.double(), x.double(), dout.double(), "torch")))
    check_results(results)


def set_momentum(layer: nn.BatchNorm2d) -> None:
    layer.momentum = None


def untrack(layer: nn.BatchNorm2d) -> None:
    layer.track_running_stats = False
    layer.running_mean = layer.running_var = layer.num_batches_tracked = None


def freeze(layer: nn.BatchNorm2d) -> None:
    layer.eval().requires_grad_(False)


def without_affine(layer: nn.BatchNorm2d) -> None:
    layer.register_parameter("weight", None)
    layer.register_parameter("bias", None)


@needs_cpp
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("which", ["", "theta", "W_"], ids=["all", "theta", "perceptron"])
@pytest.mark.parametrize("change", [set_momentum, untrack, freeze, without_affine])
def test_normalisations_behave_as_torchs(change, which, training):
    module = make_rga(16, (4, 3), dtype=torch.float64).train(training)
    for name, layer in module.named_modules():
        if isinstance(layer, nn.BatchNorm2d) and name.startswith(which):
            change(layer)
    states = []
    for impl in ("reference", "cpp"):
        trained = copy.deepcopy(module)
        trained.impl = impl
        for seed in range(3):
            x = make_map((2, 16, 4, 3), dtype=torch.float64, seed=seed).requires_grad_()
            trained(x).square().sum().backward()
        gradients = {name: p.grad for name, p in trained.named_parameters() if p.grad is not None}
        states.append({"dx": x.grad, **gradients, **dict(trained.named_buffers())})
    assert_close(states[1], states[0], 1e-9)


@needs_cpp
def test_only_wanted_gradients():
    module = make_rga(16, (4, 3), impl="cpp", dtype=torch.float64)
    x, dout = (make_map((2, 16, 4, 3), dtype=torch.float64, seed=seed) for seed in (1, 2))
    everything = run(module, x, dout, "cpp")
    module.requires_grad_(False)
    module.gg_channel[0].weight.requires_grad_()
    module(x).backward(dout)
    wanted = module.gg_channel[0].weight.grad
    torch.testing.assert_close(wanted, everything["dgg_channel.0.weight"])
    assert all(p.grad is None for p in module.parameters() if not p.requires_grad)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("impl", "variant"),
    [param("cpp", "sc"), param("triton", "s", slow=True), param("triton", "sc", slow=True)],
)
def test_compiles_whole(impl, variant, training):
    torch._dynamo.reset()
    module = make_rga(8, (4, 2), variant, impl=impl).train(training).to(DEVICES[impl])
    x, dout = (make_map((2, 8, 4, 2), seed=seed).to(DEVICES[impl]) for seed in (1, 2))
    expected = run(module, x, dout, impl)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    x = x.clone().requires_grad_()
    compiled(x).backward(dout)
    torch.testing.assert_close(x.grad, expected["dx"])
    for name, value in compiled._orig_mod.named_buffers():
        torch.testing.assert_close(value, expected[name])


@needs_cpp
def test_exports():
    module, x = make_rga(8, (4, 2), impl="cpp").eval(), make_map((2, 8, 4, 2))
    with torch.no_grad():
        program = torch.export.export(module, (x,))
        torch.testing.assert_close(program.module()(x), module(x))
    assert "rga_fast_cpp.attention" in str(program.graph)


@needs_cpp
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_two_threads_at_once(training):
    module = make_rga(64, (16, 8), impl="cpp", dtype=torch.float64).train(training)
    maps = [make_map((3, 64, 16, 8), dtype=torch.float64, seed=seed) for seed in range(4)]
    expected = [run(module, x, x, "cpp") for x in maps]
    results: list = [None] * len(maps)

    def work(start):
        for _ in range(3):
            for i in range(start, len(maps), 2):
                results[i] = run(module, maps[i], maps[i], "cpp")

    threads = [threading.Thread(target=work, args=(start,)) for start in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for actual, value in zip(results, expected, strict=True):
        assert_close(actual, value, 1e-12)


@needs_cpp
@pytest.mark.parametrize("view", ["spatial", "channel"])
def test_saved_bytes(view):
    """At stage 1 a branch keeps at most half of its map beyond the map itself."""
    module, x = make_rga(256, (64, 32), view[0], impl="cpp"), make_map((2, 256, 64, 32))
    own = {p.untyped_storage().data_ptr() for p in module.parameters()} | {x.data_ptr()}
    saved: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = module(x.requires_grad_())
    assert 0 < sum(saved.values()) <= 0.5 * x.numel() * x.element_size()
    del out


@needs_cpp
def test_choice_says_why():
    x = make_map((2, 8, 4, 2))
    assert rga_fast.choose("auto", x).impl == "cpp"
    impl, reason = rga_fast.choose("auto", x.to("meta"))
    assert impl == "torch"
    assert reason.startswith(
        "plain PyTorch runs on every device; not cpp: it runs on the CPU, the map is on meta"
    )
    with pytest.raises(NotImplementedError, match="it runs on the CPU, the map is on meta"):
        rga_fast.choose("cpp", x.to("meta"))


@needs_cpp
def test_other_layers_are_refused_by_name_and_passed_over_by_auto():
    module, x = make_rga(8, (4, 2)), make_map((2, 8, 4, 2))
    module.theta_spatial[2] = nn.GELU()
    assert module(x).shape == x.shape
    module.impl = "cpp"
    with pytest.raises(NotImplementedError, match=r"theta_spatial\.2 is GELU, where a ReLU"):
        module(x)


MISSING = """
import sys
sys.modules["rga_fast._C"] = sys.modules["triton"] = None
import rga_fast, torch
x = torch.randn(2, 8, 4, 4)
print(rga_fast.choose("auto", x).reason)
for impl in ("cpp", "triton"):
    print(next(i for i in rga_fast.implementations() if i.name == impl))
    try:
        rga_fast.RGA(8, (4, 4), impl=impl)(x)
    except RuntimeError as error:
        assert isinstance(error.__cause__, ImportError)
        print(error)
"""


def test_without_the_extension_and_triton():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", MISSING]
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    reason, cpp_entry, cpp_error, triton_entry, triton_error = out.stdout.splitlines()
    assert reason.startswith("plain PyTorch runs on every device; not cpp: the compiled extension")
    assert "available=False" in cpp_entry
    assert "available=False" in triton_entry
    cannot = "rga_fast: impl='{}' cannot run here: the {} could"
    assert cpp_error.startswith(cannot.format("cpp", "compiled extension"))
    assert triton_error.startswith(cannot.format("triton", "Triton kernels") + " not be imported: ")


SYNCHRONISED = """
import copy, os, sys, torch, torch.distributed as dist
from torch import nn
from rga_fast.testing import make_rga, make_map
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
module = make_rga(8, (4, 3), impl="cpp", dtype=torch.float64)
x, dout = (make_map((5, 8, 4, 3), dtype=torch.float64, seed=s) for s in (1, 2))
whole = copy.deepcopy(module)
x_all = x.clone().requires_grad_()
out_all = whole(x_all)
out_all.backward(dout)
share = slice(0, 2) if rank == 0 else slice(2, 5)
split = nn.SyncBatchNorm.convert_sync_batchnorm(module)
x_own = x[share].clone().requires_grad_()
out = split(x_own)
out.backward(dout[share])
torch.testing.assert_close(out, out_all[share])
torch.testing.assert_close(x_own.grad, x_all.grad[share])
for name, value in whole.named_buffers():
    torch.testing.assert_close(dict(split.named_buffers())[name], value)
for name, parameter in split.named_parameters():
    dist.all_reduce(parameter.grad)
    torch.testing.assert_close(parameter.grad, dict(whole.named_parameters())[name].grad)
"""


@needs_cpp
@pytest.mark.slow
def test_synchronised_statistics(tmp_path):
    """Two processes with unequal shares of a batch compute what one computes on the whole."""
    processes = [
        subprocess.Popen([sys.executable, "-c", SYNCHRONISED, str(rank), str(tmp_path / "store")])
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
