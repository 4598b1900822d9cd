"""The Triton implementation as a whole. Without a GPU its kernels run in Triton's interpreter."""

import functools
import importlib.metadata
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from parity import assert_close, check_budget, draws

import rga_fast
from rga_fast.fused import ops, triton
from rga_fast.testing import (
    ABLATIONS,
    STAGES,
    check_results,
    make_map,
    make_rga,
    move_off_relu_kinks,
    run,
)

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(
    triton.import_error() is not None, reason=f"no Triton: {triton.import_error()}"
)
INTERPRETED = triton.INTERPRETED
interpreted = pytest.mark.skipif(
    not INTERPRETED or triton.import_error() is not None,
    reason="runs in Triton's interpreter (TRITON_INTERPRET=1)",
)
gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        INTERPRETED or not triton.BACKEND.available(), reason="needs a CUDA device and Triton"
    ),
]
SHAPE = (3, 24, 5, 7)  # odd sizes: no block divides them


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "ablation", "dtype"),
    [
        *product("sc", ABLATIONS, [torch.float32]),
        ("s", "full", torch.bfloat16),
        ("c", "full", torch.float16),
        ("sc", "full", torch.float32),
        ("cs", "full", torch.bfloat16),
    ],
    ids=str,
)
def test_training_stays_in_the_budget(variant, ablation, dtype):
    check_budget("triton", variant, ablation, dtype, shape=SHAPE)


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_recomputed_relations_stay_in_the_budget(dtype):
    """Of more rows than theta and phi have: they are never stored."""
    check_budget("triton", "s", "full", dtype, shape=(2, 16, 12, 12))


@interpreted
@pytest.mark.slow
def test_the_stages_stay_in_the_budget(monkeypatch):
    """A process group takes the operators of the stages, not those of a whole branch."""
    monkeypatch.setitem(ops._DEFINED, "rga_fast_triton", frozenset(ops.SCHEMAS))
    check_budget("triton", "sc", "full", torch.float32, shape=(2, 8, 6, 5))


@interpreted
def test_wrong_layers_are_said():
    from rga_fast import kernels

    V, kind = torch.rand(2, 8, 5), (0, True, True)
    weights = [torch.rand(*shape) for shape in ((2, 8), (1, 10), (3, 2), (1, 3))]
    norms = [torch.rand(len(weight)) for weight in weights for _ in range(4)]
    arguments = (V, weights, norms, [1e-5] * 4, [True] * 4, *kind)
    kernels.call("training_fwd", *arguments)
    words = "4 layers need 4 weights, 4 batch, got 3 weights, 5 batch"
    with pytest.raises(RuntimeError, match=f"training_fwd: {words}"):
        kernels.call("training_fwd", V, weights[1:], norms, [1e-5] * 4, [True] * 5, *kind)
    with pytest.raises(RuntimeError, match=r"weights\[3\] must be \(1, 3\), got \(1, 4\)"):
        kernels.call("training_fwd", V, [*weights[:3], torch.rand(1, 4)], *arguments[2:])
    doubled = (V, *(2 * values for values in arguments[1:5]), *kind)
    with pytest.raises(RuntimeError, match="supports relations of embeddings, got embeddings = 0"):
        kernels.call("training_pair_fwd", *doubled)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("variant", "ablation"), [*product("sc", ABLATIONS), ("s//c", "full"), ("cs", "full")]
)
def test_evaluation_stays_in_the_budget(variant, ablation, dtype):
    results = []
    for seed, layout in enumerate(["contiguous", "channels_last", "strided"]):
        x = make_map(SHAPE, dtype=dtype, layout=layout, seed=seed)
        module = make_rga(*SHAPE[1:2], SHAPE[2:], variant, ablation, seed=seed).eval()
        module = move_off_relu_kinks(module, x).to(dtype).eval()
        outs = []
        for impl in ("triton", "reference"):
            module.impl = impl
            with torch.no_grad():
                outs.append({"out": module(x)})
        with torch.no_grad():
            outs.append({"out": module.double()(x.double())})
        results.append(tuple(outs))
    check_results(results)


@interpreted
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_autocast(training):
    """A float32 map under autocast, as behind a layer that returns float32."""
    low = torch.bfloat16
    results = draws(
        "triton", "s", "full", torch.float32, training, autocast=low, shape=SHAPE, count=1
    )
    check_results(list(results), product_dtype=low)


@interpreted
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_nan_is_not_hidden(training):
    """A ReLU that took the larger of NaN and 0 would end a diverged run in silence."""
    module = make_rga(8, (4, 2), "s", impl="triton").train(training)
    x = make_map((2, 8, 4, 2))
    x[0, 0, 0, 0] = float("nan")
    with torch.no_grad():
        out = module(x)
    assert out[0, :, 0, 0].isnan().all()
    assert out[1].isnan().all() == training  # by the statistics of the batch


@interpreted
def test_addresses_beyond_2_to_the_31():
    """The second image begins 2^31 values after the first; untouched pages cost no memory."""
    from rga_fast import kernels

    memory = torch.empty(2**31 + 60, dtype=torch.bfloat16)
    V = memory.as_strided((2, 6, 10), (2**31, 10, 1))
    values = make_map((2, 6, 10, 1), dtype=torch.bfloat16)[..., 0]
    V.copy_(values)
    weight = torch.rand(3, 6)
    E, _ = kernels.LAUNCHERS["embed_fwd"](V, weight)
    expected, _ = kernels.LAUNCHERS["embed_fwd"](values, weight)
    assert torch.equal(E, expected)


@interpreted
def test_offsets_within_an_image_fit_32_bits():
    """Z of a small map may be larger than that: it would be written beyond its memory."""
    from rga_fast.kernels import checks

    n, meta = 2**17, functools.partial(torch.empty, device="meta")
    arguments = {"V": meta(1, 1, n), "E": meta(1, 0, n), "norm_e": meta(4, 0)}
    arguments |= {"weight_z": meta(n // 8, 2 * n), "embeddings": 0, "psi_rows": 0}
    with pytest.raises(RuntimeError, match=r"relate_fwd: it supports less than 2\^31 values"):
        checks.check("relate_fwd", arguments)
    arguments["weight_z"] = meta(n // 8 - 1, 2 * n)
    checks.check("relate_fwd", arguments)


@needs_triton
def test_auto_never_interprets():
    x = make_map((2, 8, 4, 2))
    if INTERPRETED:
        assert rga_fast.choose("triton", x).impl == "triton"
    assert rga_fast.choose("auto", x).impl != "triton"


@needs_triton
def test_unsupported_inputs_are_said():
    x = make_map((2, 8, 4, 2), dtype=torch.float64)
    words = "the map is float64" if INTERPRETED else "it runs on a GPU, the map is on cpu"
    with pytest.raises(NotImplementedError, match=words):
        rga_fast.choose("triton", x)


CHOICES = """
import os, sys, torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from rga_fast import kernels
from rga_fast.kernels import embed, launch

class Pretended:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

timed, taken = [], []

def bench(call, quantiles):
    timed.append(call)
    return [1 / len(timed)] * 3  # the last of the list is the fastest

def run(kernel, **options):
    if kernel is embed.embed_fwd_kernel:
        taken.append(options["BLOCK_R"])

driver.set_active(Pretended())
launch._bench, JITFunction.run = bench, run
V, weight = torch.zeros(2, 256, 256, dtype=torch.bfloat16), torch.zeros(96, 256)

def embedded(batch=2):
    kernels.call("embed_fwd", V[:batch], weight)

embedded(); embedded(1)
embed.EMBED_FWD._tuners.clear()  # as a new process
embedded()
print("tuned", taken, len(timed))
taken.clear()
torch.use_deterministic_algorithms(True)
embedded()
torch.use_deterministic_algorithms(False)
os.environ["RGA_FAST_TRITON_TUNE"] = "0"
embedded()
print("pinned", taken, len(timed))
"""


@needs_triton
@pytest.mark.slow
def test_a_choice_is_kept_on_disk_and_can_be_pinned(tmp_path):
    """With a pretended GPU: nothing is compiled or run."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", CHOICES]
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert out.stdout.splitlines() == ["tuned [128, 128, 128] 2", "pinned [64, 64] 2"]
    assert len(list(tmp_path.rglob("*.autotune.json"))) == 1


COMPILE = [sys.executable, ROOT / "bench" / "compile_report.py", "--stages", "1"]


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "sm_80 --defaults", "gfx942 --defaults"])
def test_compiles_ahead_of_time(target, tmp_path):
    """Without spills, products on tensor cores."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [*COMPILE, "--views", "spatial", "--targets", *target.split()]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    spilled = [int(count) for count in re.findall(r"FAILED: spills (\d+)", result.stdout)]
    if importlib.metadata.version("triton") < "3.9" and spilled and max(spilled) <= 16:
        pytest.xfail(f"compilers before 3.9 spill {spilled} bytes (docs/triton.md)")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 failed" in result.stdout


# What needs a GPU. The default configurations: tuning is for speed, and takes time.


@pytest.fixture
def _untuned(monkeypatch):
    monkeypatch.setenv("RGA_FAST_TRITON_TUNE", "0")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def on_gpu(stage, dtype, layout="contiguous", batch=4):
    C, H, W = STAGES[stage]
    module = make_rga(C, (H, W))
    x, dout = (
        make_map((batch, C, H, W), dtype=dtype, layout=layout, seed=seed).cuda() for seed in (1, 2)
    )
    return move_off_relu_kinks(module.cuda(), x).float(), x, dout


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.usefixtures("_untuned")
class TestOnGpu:
    pytestmark = gpu

    def test_real_stages(self, stage, dtype, layout):
        """Under autocast, as training runs it; what is left of float32 is exact."""
        module, x, dout = on_gpu(stage, dtype, layout)
        low = dtype != torch.float32
        with torch.autocast("cuda", dtype if low else None, enabled=low):
            actual, baseline = run(module, x, dout, "triton"), run(module, x, dout, "reference")
        oracle = run(module.double(), x.double(), dout.double(), "reference")
        check_results([(actual, baseline, oracle)], product_dtype=dtype)


@pytest.mark.usefixtures("_untuned")
class TestWithTorchOnGpu:
    pytestmark = gpu

    def test_the_same_bits_every_time(self):
        module, x, dout = on_gpu(2, torch.bfloat16)
        first, second = (run(module, x, dout, "triton") for _ in range(2))
        assert all(torch.equal(value, second[name]) for name, value in first.items())

    def test_compiles_whole(self):
        torch._dynamo.reset()
        module, x, dout = on_gpu(3, torch.float32)
        expected = run(module, x, dout, "triton")
        module.impl = "triton"
        compiled = torch.compile(module, fullgraph=True, dynamic=False)
        x = x.clone().requires_grad_()
        compiled(x).backward(dout)
        assert_close({"dx": x.grad}, {"dx": expected["dx"]}, 1e-4)

    def test_replays_from_a_cuda_graph(self):
        module, x, dout = on_gpu(4, torch.bfloat16)
        module.impl = "triton"
        x.requires_grad_()

        def step():
            return torch.autograd.grad(module(x), x, dout)[0]

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        with torch.no_grad():
            x.copy_(make_map(x.shape, dtype=x.dtype, seed=3))
        graph.replay()
        assert torch.equal(captured, step())

    def test_tunes_and_remembers(self, monkeypatch, tmp_path):
        monkeypatch.setenv("RGA_FAST_TRITON_TUNE", "1")
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        module, x, _ = on_gpu(4, torch.bfloat16)
        module.impl = "triton"
        with torch.no_grad():
            module.eval()(x)
        assert list(tmp_path.rglob("*.autotune.json"))

    def test_auto_takes_it(self):
        x = torch.randn(2, 8, 4, 4, device="cuda")
        assert rga_fast.choose("auto", x).impl in ("cuda", "triton")
