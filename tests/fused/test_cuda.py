"""The CUDA kernels without a GPU: the same source compiled for the host (tests/emulate/), against
the oracle of the operators; compiled by nvcc; and under ThreadSanitizer."""

import ctypes
import os
import shutil
import subprocess
import sys
from itertools import islice, product
from pathlib import Path
from types import SimpleNamespace

import cuda_host
import pytest
import torch
from test_fused import assert_close
from test_ops import KINDS, ORDERS, Case, check_against_oracle
from test_parity import low_precision_draws

import rga_fast
from rga_fast import dispatch, fused
from rga_fast.fused import cpp, cuda, ops
from rga_fast.testing import (
    ABLATIONS,
    STAGES,
    check_budget,
    check_results,
    leave_the_kinks,
    make_map,
    make_rga,
    run,
)

ROOT = Path(__file__).parents[2]
OPERATORS = [*ops.SCHEMAS, *ops.PAIR]
pytestmark = pytest.mark.skipif(shutil.which(cuda_host.compiler()) is None, reason="no compiler")


@pytest.fixture(scope="module", autouse=True)
def _kernels():
    cuda_host.load(cuda_host.build("-O1", "-g0"))


@pytest.fixture
def host(monkeypatch):
    """impl="cuda_host" and "plain", as any other."""
    module = SimpleNamespace(problem=lambda x: None, import_error=lambda: None, PASSED_OVER="test")
    for name in ("cuda_host", "plain"):
        monkeypatch.setitem(dispatch.FUSED, name, (module, "for tests"))
    monkeypatch.setattr(dispatch, "ARGUMENTS", (*dispatch.ARGUMENTS, "cuda_host", "plain"))
    return "cuda_host"


@pytest.fixture
def _poisoned():
    """`torch.empty` returns NaN, in the extension, too."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.usefixtures("_poisoned")
def test_float64_is_the_oracle(name, order, kind):
    check_against_oracle("cuda_host", name, order, kind)


# With whole tiles, and rows of a multiple of 16 bytes or not: what the branch as a whole makes of
# its rounding is the business of the tests with a budget.
@pytest.mark.parametrize("name", [name for name in ops.SCHEMAS if name != "attention"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.usefixtures("_poisoned")
def test_other_dtypes(name, dtype):
    for kind, size, order in product(KINDS, [(3, 16, 12), (2, 66, 130), (2, 72, 136)], ORDERS):
        case = Case(kind, size, order, dtype=dtype)
        results = case.call("cuda_host", name), case.call("plain", name)
        case.arguments[name] = tuple(in_float64(value) for value in case.arguments[name])
        for actual, plain, exact in zip(*results, case.call("plain", name), strict=True):
            assert (actual.dtype, actual.shape) == (plain.dtype, plain.shape)
            if exact.numel() == 0:
                continue
            error, allowed = ((x.double() - exact).abs().max() for x in (actual, plain))
            assert error <= 2 * allowed + 16 * torch.finfo(dtype).eps * exact.abs().max()


def in_float64(value):
    return value.double() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name):
    operator = getattr(getattr(torch.ops, ops.namespace("cuda_host")), name).default
    for order in ORDERS:
        torch.library.opcheck(operator, Case(KINDS[0], (2, 16, 12), order).arguments[name])


@pytest.mark.parametrize("name", OPERATORS)
def test_empty_batch(name):
    for kind in KINDS:
        case = Case(kind, (0, 8, 6))
        pairs = zip(case.call("cuda_host", name), case.call("plain", name), strict=True)
        for actual, expected in pairs:
            assert actual.shape == expected.shape
            if name.endswith("_bwd"):
                assert not actual.any()


def test_wrong_arguments_raise_with_words():
    V, weight = torch.rand(2, 6, 5), torch.rand(3, 6)
    embed = torch.ops.rga_fast_cuda_host.embed_fwd
    with pytest.raises(RuntimeError, match=r"weight_e must be \(3, 6\), got \(3, 4\)"):
        embed(V, weight[:, :4])
    with pytest.raises(RuntimeError, match="weight_e has the wrong dtype"):
        embed(V, weight.double())
    with pytest.raises(RuntimeError, match="dense, by rows or by columns"):
        embed(torch.rand(2, 6, 10)[:, :, ::2], weight)
    with pytest.raises(RuntimeError, match="maps are float32, bfloat16 or float16"):
        embed(V.int(), weight)


def test_variance_survives_a_huge_mean():
    V, one = torch.randn(4, 6, 500) + 1e4, torch.eye(6)
    plain, kernel = torch.ops.rga_fast_plain.embed_fwd, torch.ops.rga_fast_cuda_host.embed_fwd
    oracle = plain(V.double(), one.double())[1][1]
    check_budget(kernel(V, one)[1][1], plain(V, one)[1][1], oracle, "variance")


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_modules_in_float64(ablation, layout, training, host):
    for shape in [(3, 24, 5, 7), (2, 7, 3, 3), (4, 1, 5, 2), (0, 8, 4, 4)]:
        module = make_rga(shape[1], shape[2:], "sc", ablation, dtype=torch.float64).train(training)
        x = make_map(shape, dtype=torch.float64, layout=layout, seed=1)
        dout = make_map(shape, dtype=torch.float64, seed=2)
        expected = run(module, x, dout, "reference")
        assert_close(run(module, x, dout, host), expected, 1e-9)
        if not training:
            module.impl = host
            with torch.no_grad():
                assert_close({"out": module(x)}, {"out": expected["out"]}, 1e-10)


@pytest.mark.parametrize(
    ("dtype", "ablation"),
    [*product([torch.bfloat16], ABLATIONS), (torch.float32, "full"), (torch.float16, "full")],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_low_precision_stays_in_the_budget(dtype, ablation, training, host):
    draws = low_precision_draws("sc", ablation, host, dtype=dtype, training=training)
    check_results(list(draws))


def launches() -> int:
    return ctypes.CDLL(str(cuda_host.build("-O1", "-g0"))).emulated_launches()


def one_launch(variant, ablation, dtype, layout, shape, **options):
    """(actual, baseline, oracle) of a module in evaluation, which is one launch on Hopper. The
    baseline is the plain operators, which round E and Z only: closer than the reference is."""
    for seed in range(5):
        x = make_map(shape, dtype=dtype, layout=layout, seed=seed)
        module = make_rga(shape[1], shape[2:], variant, ablation, seed=seed, **options)
        module = leave_the_kinks(module, x).to(dtype).eval()
        results = []
        for impl, precision in [
            ("cuda_host", dtype),
            ("plain", dtype),
            ("reference", torch.double),
        ]:
            module.impl, before = impl, launches()
            with torch.no_grad():
                results.append({"out": module.to(precision)(x.to(precision))})
            assert launches() - before == (impl == "cuda_host")
        yield tuple(results)


# Two blocks of several tiles, or one block of half a tile.
WIDE, NARROW = (2, 128, 16, 16), (2, 128, 4, 8)


@pytest.mark.parametrize(
    ("variant", "layout", "dtype", "ablation", "shape"),
    [
        ("s", "contiguous", torch.bfloat16, "full", WIDE),
        ("c", "channels_last", torch.bfloat16, "full", WIDE),
        *product(["sc", "cs"], ["contiguous", "channels_last"], [torch.bfloat16], ["full"], [WIDE]),
        ("sc", "contiguous", torch.bfloat16, "no-appearance", NARROW),
        ("cs", "contiguous", torch.float16, "full", NARROW),
    ],
    ids=str,
)
@pytest.mark.usefixtures("host")
def test_one_launch_of_clusters(variant, layout, dtype, ablation, shape):
    ratios = {"spatial_ratio": 8 if shape == WIDE else 2, "down_ratio": 2}
    check_results(list(one_launch(variant, ablation, dtype, layout, shape, **ratios)))


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.usefixtures("host")
def test_one_launch_at_the_real_stages(stage):
    draws = one_launch("sc", "full", torch.bfloat16, "contiguous", (1, *STAGES[stage]))
    check_results(list(islice(draws, 1)))


@pytest.mark.usefixtures("host")
def test_a_pair_that_does_not_fit():
    """It is a launch for each branch, or the portable path, with the same result."""
    shape = (1, 64, 4, 8)  # the embeddings of the channel branch are too narrow
    module = make_rga(64, (4, 8), dtype=torch.bfloat16, channel_ratio=4).eval()
    x = make_map(shape, dtype=torch.bfloat16)
    with torch.no_grad():
        module.impl, before = "cuda_host", launches()
        pair = module(x)
        assert launches() > before + 2
        turn = x
        for view in ("spatial", "channel"):
            turn = fused.attention(turn, [module.branch(view)], "cuda_host")
    assert torch.equal(pair, turn)


# What the kernels are to the compiler.


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA toolkit")
def test_every_kernel_compiles_without_spills():
    command = [sys.executable, "bench/cuda_report.py", "--without-half"]
    report = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(report.stdout)
    assert report.returncode == 0, report.stdout[-2000:] + report.stderr[-2000:]


SANITIZED = """
import sys
sys.path[:0] = ["tests/helpers", "tests/fused"]
import cuda_host, torch
from rga_fast.fused import ops
from test_ops import KINDS, Case
torch.set_num_threads(1)
cuda_host.load(sys.argv[1])
for name in sys.argv[2:]:
    if name == "attention_pair":  # by a cluster of two blocks
        Case(KINDS[0], (1, 128, 128), dtype=torch.bfloat16).call("cuda_host", name)
        continue
    for dtype in (torch.bfloat16, torch.float32):
        Case(KINDS[0], (2, 16, 70), dtype=dtype).call("cuda_host", name)
print("finished")
"""


def sanitized(*names: str, **environment: str) -> tuple[str, str]:
    """What the operators print, and the sanitizer, of a run in a process of its own."""
    library = cuda_host.build("-O1", "-g", "-fsanitize=thread")
    runtime = subprocess.run(
        [cuda_host.compiler(), "-print-file-name=libtsan.so"], capture_output=True, text=True
    ).stdout.strip()
    if not Path(runtime).exists():
        pytest.skip("no ThreadSanitizer")
    command = [sys.executable, "-c", SANITIZED, library, *names]
    preset = {"LD_PRELOAD": runtime, "OMP_NUM_THREADS": "1", "TSAN_OPTIONS": "halt_on_error=1"}
    environment = os.environ | preset | environment
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return result.stdout, result.stderr


@pytest.mark.slow
def test_no_barrier_is_missing():
    out, err = sanitized(*OPERATORS)
    assert "finished" in out, err[-2000:]
    assert "data race" not in err, err[:4000]


@pytest.mark.slow
def test_a_missing_barrier_is_found():
    for name in ("embed_fwd", "attention_pair"):
        assert "data race" in sanitized(name, RGA_DROP_BARRIERS="1")[1]


# What is said where it cannot run.


def test_reasons():
    x = make_map((2, 8, 4, 2))
    assert cuda.problem(x) == "it runs on CUDA GPUs, the map is on cpu"
    with pytest.raises((NotImplementedError, RuntimeError), match="it runs on CUDA GPUs"):
        rga_fast.choose("cuda", x)
    on_gpu = SimpleNamespace(
        device=torch.device("cuda", 0), dtype=torch.float64, shape=x.shape, numel=x.numel
    )
    assert cuda.problem(on_gpu) == "it supports float32, bfloat16, float16, the map is float64"


@pytest.mark.skipif(cpp.ERROR is not None, reason="extension not built")
def test_reasons_of_a_machine(monkeypatch):
    monkeypatch.setattr(cuda, "COMPILED", None)
    assert cuda.note().startswith("the extension was built without CUDA")
    monkeypatch.setattr(cuda, "COMPILED", "sm_80")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.note() == "no CUDA driver with a GPU was found"
    assert not cuda.available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cuda.note() == "compiled for sm_80"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    on_gpu = SimpleNamespace(
        device=torch.device("cuda", 0), dtype=torch.float32, shape=(2, 8, 4, 2), numel=lambda: 128
    )
    assert cuda.problem(on_gpu) == ("it needs compute capability 8.0 or later, the GPU has 7.5")
