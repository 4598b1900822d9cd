"""The benchmarks at tiny sizes: rows, limit, memory, and that a wrong result gets no time."""

import argparse
import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import rga_fast
from rga_fast import eager, testing
from rga_fast.fused import cpp

BENCH = Path(__file__).resolve().parents[2] / "bench"
CPU = torch.device("cpu")
SHAPE = (4, 64, 16, 8)
# fmt: off
COMMON_FIELDS = [
    "op", "impl", "pass", "stage", "shape", "dtype", "layout", "batch", "ms", "ms_p20", "ms_p80",
    "peak_bytes", "saved_bytes", "ratio_reference", "ratio_limit", "device", "torch", "commit",
]
# fmt: on


@pytest.fixture
def bench(monkeypatch):
    """The module `bench_rga` with one tiny stage and quick probes."""
    monkeypatch.syspath_prepend(str(BENCH))
    import bench_rga

    common = bench_rga.common
    monkeypatch.setattr(testing, "STAGES", {1: SHAPE[1:]})
    monkeypatch.setattr(bench_rga, "SIDES", ((8, 4), (16, 8)))
    monkeypatch.setattr(common, "SAMPLE_MS", 0.0)
    a = torch.ones(64, 64)
    calls = {common.PRODUCT: lambda: a @ a, common.COPY: lambda: a.clone()}
    probes = common.Probes(calls, 2.0 * 64**3, 2.0 * a.nbytes)
    monkeypatch.setattr(common, "probes", lambda device: probes)
    return bench_rga


RUN = ["--stages", "1", "--batch", "4", "--rounds", "2", "--device", "cpu", "--impl"]


def test_rows_of_the_operator(bench, tmp_path, capsys):
    files = ["--json", str(tmp_path / "a" / "rows.json"), "--csv", str(tmp_path / "rows.csv")]
    impls = [entry.name for entry in rga_fast.implementations() if entry.available]
    assert bench.main([*RUN[:-1], *files]) == 0
    rows = json.loads((tmp_path / "a" / "rows.json").read_text())
    assert [(row["pass"], row["impl"]) for row in rows] == [
        (name, impl) for name in ("eval", "train") for impl in (*impls, "limit")
    ]
    for row in rows:
        assert list(row) == COMMON_FIELDS
        assert row["shape"] == list(SHAPE)
        assert 0 < row["ms_p20"] <= row["ms"] <= row["ms_p80"]
        assert row["ratio_reference"] > 0
        assert row["op"] == "rga-sc"
        assert socket.gethostname() not in row["device"]
        if row["impl"] == "limit":
            assert (row["ratio_limit"], row["peak_bytes"]) == (1, None)
        else:
            assert row["peak_bytes"] >= 4 * 64 * 16 * 8 * 4  # at least the output
            assert (row["saved_bytes"] > 0) == (row["pass"] == "train")
    assert rows[0]["ratio_reference"] == 1
    with (tmp_path / "rows.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [line["shape"] for line in table] == ["4x64x16x8"] * len(rows)
    assert "training step, 4x64x16x8, float32, contiguous" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_and_channels_last(bench, tmp_path, dtype):
    path = tmp_path / "rows.json"
    options = ["--dtype", dtype, "--layout", "channels_last", "--json", str(path)]
    assert bench.main([*RUN, "torch", *options]) == 0
    rows = json.loads(path.read_text())
    assert {(row["dtype"], row["layout"]) for row in rows} == {(dtype, "channels_last")}
    assert all(row["ratio_reference"] is None for row in rows)


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dout):
        return dout * 1.001


@pytest.mark.parametrize(
    ("wrong", "green"),
    [(lambda out: out * 1.001, []), (WrongGradient.apply, ["eval"])],
    ids=["output", "gradient"],
)
def test_a_wrong_result_is_not_timed(bench, tmp_path, capsys, monkeypatch, wrong, green):
    right = eager.attention
    monkeypatch.setattr(eager, "attention", lambda x, branch: wrong(right(x, branch)))
    path = tmp_path / "rows.json"
    assert bench.main([*RUN, "reference,torch", "--json", str(path)]) == 1
    rows = json.loads(path.read_text())
    assert [row["pass"] for row in rows if row["impl"] == "torch"] == green
    assert "exceeds the budget" in capsys.readouterr().err


def out_of_registers(*args):
    raise RuntimeError("out of registers")


def test_what_fails_to_run_costs_no_other_its_rows(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(eager, "attention", out_of_registers)
    path = tmp_path / "rows.json"
    options = ["--passes", "eval", "--json", str(path)]
    assert bench.main([*RUN, "torch,reference", *options]) == 1
    assert [row["impl"] for row in json.loads(path.read_text())] == ["reference", "limit"]
    assert "torch failed: RuntimeError: out of registers" in capsys.readouterr().err


def test_a_compiled_peer_is_timed_and_its_error_said(bench, tmp_path, capsys, monkeypatch):
    def compiled(module, **options):
        assert options == {"dynamic": False, "fullgraph": True}
        return lambda x: module(x) * 1.001

    monkeypatch.setattr(torch, "compile", compiled)
    path = tmp_path / "rows.json"
    assert bench.main([*RUN, "reference,compiled-torch", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())
    assert [row["impl"] for row in rows[:3]] == ["reference", "compiled-torch", "limit"]
    assert "compiled-torch, timed all the same: out: relative error" in capsys.readouterr().err


def test_unknown_names_are_listed(bench, capsys):
    with pytest.raises(SystemExit, match=r"expected some of reference, torch, .*got 'fast'"):
        bench.main([*RUN, "fast"])
    with pytest.raises(SystemExit):
        bench.main(["--stages", "5"])
    assert "expected some of 1, got '5'" in capsys.readouterr().err


def test_limit(bench):
    """Against the table of docs/design.md, in multiply-adds, and by its definition."""
    common = bench.common
    for shape, spatial, channel in [
        ((1, 256, 64, 32), 50.3 + 67.1, 402.7 + 8.4),
        ((1, 512, 32, 16), 50.3 + 8.4, 50.3 + 8.4),
        ((1, 1024, 16, 8), 50.3 + 1.05, 6.3 + 8.4),
        ((1, 2048, 16, 8), 201.3 + 2.1, 12.6 + 33.6),
    ]:
        s, c, both = (common.branch_operations(shape, v) / 2e6 for v in ("s", "c", "s//c"))
        assert s == pytest.approx(spatial, rel=5e-3)
        assert c == pytest.approx(channel, rel=5e-3)
        assert both == pytest.approx(s + c)
    probe = common.Probes({}, operations=100.0, nbytes=10.0)
    samples = {common.PRODUCT: [1.0, 2.0], common.COPY: [3.0, 4.0]}
    assert common.limit(samples, probe, 50.0, 5, training=False) == [0.5 + 3, 1 + 4]
    assert common.limit(samples, probe, 50.0, 5, training=True) == [1.5 + 7.5, 3 + 10]


def test_everything_runs_once_a_round_in_order(bench):
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    samples = bench.common.time_in_turn(calls, 3, CPU)
    assert "".join(order) == "abc" * 4  # the first time to see how long each takes
    assert [len(values) for values in samples.values()] == [3, 3, 3]


def test_spread_and_ratios(bench):
    common = bench.common
    assert common.spread([4.0, 1.0, 2.0, 3.0, 5.0, 6.0]) == (3.5, 2.0, 5.0)
    assert common.ratios([4.0, 9.0], [2.0, 3.0]) == [2.0, 3.0]


def test_peak_bytes(bench):
    before = torch.ones(1000)

    def call():
        a = before + 1.0  # 4000
        b = torch.cat([a, a])  # 8000
        del a
        c = b + b  # 8000
        del b
        return c[:10]

    assert 16000 <= bench.common.peak_bytes(call, CPU) < 16064  # and a scalar at most
    assert bench.common.peak_bytes(lambda: before[:10], CPU) == 0


@pytest.mark.slow
@pytest.mark.skipif(cpp.ERROR is not None, reason="needs the compiled extension")
def test_memory_of_a_training_step(bench):
    """At n = 8192 a branch needs at most 200 MB beyond results and gradients."""
    module, x = rga_fast.RGA(256, (128, 64), "s", impl="cpp"), torch.randn(4, 256, 128, 64)
    x.requires_grad_()

    def step():
        out = module(x)
        return out.detach(), *torch.autograd.grad(out, [x, *module.parameters()], x.detach())

    held = sum(tensor.nbytes for tensor in step())
    assert held < bench.common.peak_bytes(step, CPU) <= held + 200e6


def test_saved_bytes(bench):
    x, weight = torch.ones(1000, requires_grad=True), torch.ones(1000, requires_grad=True)

    def call():
        y = (x.view(10, 100) * weight.view(10, 100)).exp()  # saves x and weight, then its result
        return y.sigmoid()  # saves its result

    assert bench.common.saved_bytes(call, [x, weight]) == 8000
    assert bench.common.saved_bytes(call, []) == 16000


def test_no_activation_has_an_input_near_zero(bench):
    module = testing.make_rga(64, (16, 8), impl="reference")
    x = testing.make_map(SHAPE)

    def smallest():
        nearest = []
        hooks = [
            layer[1].register_forward_hook(lambda m, i, out: nearest.append(out.abs().min().item()))
            for layer in module.modules()
            if isinstance(layer, nn.Sequential)
        ]
        module(x)
        for hook in hooks:
            hook.remove()
        return min(nearest)

    biases = {name: value.clone() for name, value in module.named_parameters()}
    assert smallest() < 2e-4
    bench.gate.move_off_kinks(module, x)
    assert smallest() > 2e-3
    moved = [n for n, value in module.named_parameters() if not torch.equal(value, biases[n])]
    assert moved
    assert all(name.endswith(".1.bias") for name in moved)


def test_sweep_and_pictures(bench, tmp_path):
    pytest.importorskip("matplotlib")
    files = ["--plot", str(tmp_path), "--json", str(tmp_path / "rows.json")]
    assert bench.main(["--batch", "2", "--rounds", "1", "--device", "cpu", *files]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {tuple(row["shape"]) for row in rows} == {(2, 256, 8, 4), (2, 256, 16, 8)}
    (picture,) = tmp_path.glob("*.png")
    assert picture.name == "rga-sc-against-n-float32-contiguous.png"
    assert picture.stat().st_size > 10_000


def test_pictures_without_matplotlib(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'rga-fast\[plots\]'"):
        bench.plots.pyplot()


STEP = ["--arch", "resnet18", "--size", "32x16", "--batch", "4", "--rounds", "1", "--device", "cpu"]


@pytest.fixture
def step(bench):
    import bench_step

    return bench_step


@pytest.mark.slow
def test_price_of_attention(step, tmp_path):
    path = tmp_path / "rows.json"
    assert step.main([*STEP, "--impl", "reference,torch", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())
    assert [(row["pass"], row["impl"]) for row in rows] == [
        (name, impl)
        for name in ("eval", "train")
        for impl in ("no attention", "reference", "torch")
    ]
    for row in rows:
        assert list(row) == [*COMMON_FIELDS, "price"]
        assert (row["price"] == 1) == (row["impl"] == "no attention")
        assert (row["saved_bytes"] > 0) == (row["pass"] == "train")
    plain, reference, fast = rows[3:]
    assert plain["saved_bytes"] < fast["saved_bytes"] < reference["saved_bytes"]
    weights = 4 * sum(p.numel() for p in step.ReidNet("resnet18", attention="none").parameters())
    assert plain["peak_bytes"] > weights - 4 * 512  # the gradients; the neck's bias is frozen


def test_a_wrong_network_is_not_timed(step, tmp_path, monkeypatch, capsys):
    right = eager.attention
    monkeypatch.setattr(eager, "attention", lambda x, branch: right(x, branch) * 1.001)
    path = tmp_path / "rows.json"
    assert step.main([*STEP, "--passes", "eval", "--impl", "torch", "--json", str(path)]) == 1
    assert [row["impl"] for row in json.loads(path.read_text())] == ["no attention"]
    assert "torch is wrong: features: relative error" in capsys.readouterr().err


def test_a_network_that_fails_to_train_costs_no_other_its_rows(step, tmp_path, monkeypatch, capsys):
    right = eager.attention
    monkeypatch.setattr(
        eager,
        "attention",
        lambda *args: (out_of_registers if torch.is_grad_enabled() else right)(*args),
    )
    path = tmp_path / "rows.json"
    options = ["--passes", "train,eval", "--impl", "torch", "--json", str(path)]
    assert step.main([*STEP, *options]) == 1
    rows = [(row["pass"], row["impl"]) for row in json.loads(path.read_text())]
    assert rows == [("train", "no attention"), ("eval", "no attention"), ("eval", "torch")]
    assert "training step: torch failed: RuntimeError: out of registers" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replay_from_cuda_graphs(bench, tmp_path):
    path = tmp_path / "rows.json"
    options = ["--device", "cuda", "--cuda-graph", "--dtype", "bfloat16", "--json", str(path)]
    assert (
        bench.main(["--rounds", "2", "--stages", "1", "--impl", "reference,torch", *options]) == 0
    )
    rows = json.loads(path.read_text())
    assert all(row["device"].endswith(", CUDA graph") for row in rows)
    assert all(row["ratio_limit"] > 0 for row in rows)


@pytest.mark.slow
def test_gpu_suite_dry_run(tmp_path):
    environment = {**os.environ, "SMALL": "1", "OUT": str(tmp_path)}
    command = ["bash", str(BENCH / "gpu_suite.sh")]
    subprocess.run(command, env={**environment, "PYTHON": sys.executable}, check=True)
    rows = {"bench_rga.json", "bench_rga-compiled.json", "bench_step.json"}
    assert {path.name for path in tmp_path.iterdir()} == {*rows, "gpu_suite.log"}
    broken = subprocess.run(command, env={**environment, "PYTHON": "false"}, capture_output=True)
    assert broken.returncode == 1
    parts = b"failed: warm bench_rga bench_step warm_tests tests bench_rga_compiled"
    assert parts in broken.stdout


def test_the_roofline_in_the_documents(monkeypatch):
    """docs/triton.md has the figures that the launchers give."""
    monkeypatch.syspath_prepend(str(BENCH))
    roofline = pytest.importorskip("roofline", reason="no Triton", exc_type=ImportError)
    document = (BENCH.parent / "docs" / "triton.md").read_text()
    args = argparse.Namespace(
        stages=["1", "2", "3", "4"], dtype="bfloat16", layout="contiguous", rate=790e12,
        bandwidth=4.3e12,
    )  # fmt: skip
    lines = roofline.summary(args)
    for evaluation, step in zip(lines[::2], lines[1::2], strict=True):
        assert f"| {' | '.join([evaluation[0], *evaluation[2:5], *step[2:5]])} |" in document
    every = roofline.launches((512, 32, 16), "both", "bfloat16", "contiguous")
    assert [launch.name for launch in every["evaluation"]] == 2 * [
        "fold", "embed", "columns", "attend",
    ]  # fmt: skip


def test_the_roofline_as_a_picture(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(BENCH))
    roofline = pytest.importorskip("roofline", reason="no Triton", exc_type=ImportError)
    pytest.importorskip("matplotlib")
    assert roofline.main(["--plot", str(tmp_path / "new" / "n.png")]) == 0
    assert (tmp_path / "new" / "n.png").stat().st_size > 10_000
    with pytest.raises(SystemExit):
        roofline.main(["--rate", "0"])
    assert "expected a number above 0, got '0'" in capsys.readouterr().err
