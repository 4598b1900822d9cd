"""The CUDA kernels without a GPU: the same source compiled for the host (tests/emulate/), against
the oracle of the operators; compiled by nvcc; and under ThreadSanitizer."""

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
from operators import OPERATORS, ROUNDED, check_rounding

import rga_fast
from rga_fast import fused
from rga_fast.fused import cpp, cuda
from rga_fast.testing import STAGES, check_results, make_map, make_rga, move_off_relu_kinks

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which(cuda_host.compiler()) is None, reason="no compiler")


@pytest.mark.parametrize("name", ROUNDED)
@pytest.mark.parametrize(
    "dtype",
    [
        torch.bfloat16,
        *(pytest.param(d, marks=pytest.mark.slow) for d in (torch.float32, torch.float16)),
    ],
    ids=str,
)
@pytest.mark.usefixtures("_poisoned")
def test_other_dtypes(name, dtype):
    check_rounding("cuda_host", name, dtype)


def one_launch(variant, ablation, dtype, layout, shape, **options):
    """(actual, baseline, oracle) of a module in evaluation, which is one launch on Hopper. The
    baseline is the plain operators, which round E and Z only: closer than the reference is."""
    for seed in range(5):
        x = make_map(shape, dtype=dtype, layout=layout, seed=seed)
        module = make_rga(shape[1], shape[2:], variant, ablation, seed=seed, **options)
        module = move_off_relu_kinks(module, x).to(dtype).eval()
        results = []
        for impl, precision in [
            ("cuda_host", dtype),
            ("plain", dtype),
            ("reference", torch.double),
        ]:
            module.impl, before = impl, cuda_host.launches()
            with torch.no_grad():
                results.append({"out": module.to(precision)(x.to(precision))})
            assert cuda_host.launches() - before == (impl == "cuda_host")
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
@pytest.mark.usefixtures("_test_impls")
def test_one_launch_of_clusters(variant, layout, dtype, ablation, shape):
    ratios = {"spatial_ratio": 8 if shape == WIDE else 2, "down_ratio": 2}
    check_results(list(one_launch(variant, ablation, dtype, layout, shape, **ratios)))


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.usefixtures("_test_impls")
def test_one_launch_at_the_real_stages(stage):
    draws = one_launch("sc", "full", torch.bfloat16, "contiguous", (1, *STAGES[stage]))
    check_results(list(islice(draws, 1)))


@pytest.mark.usefixtures("_test_impls")
def test_a_pair_that_does_not_fit():
    """It is a launch for each branch, or the portable path, with the same result."""
    shape = (1, 64, 4, 8)  # the embeddings of the channel branch are too narrow
    module = make_rga(64, (4, 8), dtype=torch.bfloat16, channel_ratio=4).eval()
    x = make_map(shape, dtype=torch.bfloat16)
    with torch.no_grad():
        module.impl, before = "cuda_host", cuda_host.launches()
        pair = module(x)
        assert cuda_host.launches() > before + 2
        turn = x
        for view in ("spatial", "channel"):
            turn = fused.attention(turn, [module.branch(view)], "cuda_host")
    assert torch.equal(pair, turn)


# What the kernels are to the compiler.


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA toolkit")
@pytest.mark.parametrize(
    ("target", "sources"),
    [("sm_90a", []), ("sm_80", ["--sources", "embed,relate_bwd"])],  # of most registers
    ids=["sm_90a", "sm_80"],
)
def test_every_kernel_compiles_without_spills(target, sources):
    command = [sys.executable, "bench/cuda_report.py", "--without-half", "--targets", target]
    command += sources
    report = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(report.stdout)
    assert report.returncode == 0, report.stdout[-2000:] + report.stderr[-2000:]


SANITIZED = """
import sys
sys.path.insert(0, "tests/helpers")
import cuda_host, torch
from operators import KINDS, Case
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
    library = cuda_host.build("-O1", "-g1", "-fsanitize=thread", "-DRGA_WITHOUT_HALF")
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
    out, err = sanitized(*OPERATORS["cuda_host"])
    assert "finished" in out, err[-2000:]
    assert "data race" not in err, err[:4000]


@pytest.mark.slow
def test_a_missing_barrier_is_found():
    for name in ("embed_fwd", "attention_pair"):
        assert "data race" in sanitized(name, RGA_DROP_BARRIERS="1")[1]


# What is said where it cannot run.


def test_reasons():
    x = make_map((2, 8, 4, 2))
    assert cuda.BACKEND.problem(x) == "it runs on CUDA GPUs, the map is on cpu"
    with pytest.raises((NotImplementedError, RuntimeError), match="it runs on CUDA GPUs"):
        rga_fast.choose("cuda", x)
    on_gpu = SimpleNamespace(
        device=torch.device("cuda", 0), dtype=torch.float64, shape=x.shape, numel=x.numel
    )
    assert (
        cuda.BACKEND.problem(on_gpu) == "it supports float32, bfloat16, float16, the map is float64"
    )


@pytest.mark.skipif(cpp.ERROR is not None, reason="extension not built")
def test_reasons_of_a_machine(monkeypatch):
    monkeypatch.setattr(cuda, "COMPILED", None)
    assert cuda.BACKEND.note().startswith("the extension has no CUDA kernels")
    monkeypatch.setattr(cuda, "COMPILED", "sm_80")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.BACKEND.note() == "no CUDA driver with a GPU was found"
    assert not cuda.BACKEND.available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cuda.BACKEND.note() == "compiled for sm_80"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    on_gpu = SimpleNamespace(
        device=torch.device("cuda", 0), dtype=torch.float32, shape=(2, 8, 4, 2), numel=lambda: 128
    )
    assert cuda.BACKEND.problem(on_gpu) == (
        "it needs compute capability 8.0 or later, the GPU has 7.5"
    )
