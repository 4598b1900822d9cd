"""What a run shows: TensorBoard, the profile, the curves, and where an extra is missing."""

import gzip
import json
import sys

import pytest
import torch
from PIL import Image
from small_runs import SMALL, rows, run

from rga_fast.reid.data.augment import denormalise, normalise
from rga_fast.reid.report.curves import curves_note, draw_curves, read_curves
from rga_fast.reid.training.monitor import Monitor


def scalars(folder):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found


@pytest.mark.slow
def test_a_run_that_is_watched(market, tmp_path, capsys):
    out = tmp_path / "run"
    watched = ["--tensorboard", "--profile", "cache=disk", f"cache_folder={tmp_path / 'c'}"]
    assert run("train", "--fused", "--data", market, "--out", out, *SMALL, *watched) == 0
    text = capsys.readouterr().out
    assert "the 10 most expensive operators" in text
    assert "aten::convolution_backward" in text
    assert "pip install 'rga-fast[profile]'" in text
    (trace,) = (out / "profile").glob("*.pt.trace.json.gz")
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]

    seen = scalars(out)
    losses = seen.Scalars("train/loss")
    assert [event.step for event in losses] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in losses] == pytest.approx([row["loss"] for row in rows(out)])
    precision = [event.value for event in seen.Scalars("after_neck/mAP")]
    assert precision == pytest.approx([row["after_neck"]["mAP"] for row in rows(out, "after_neck")])
    assert seen.Tags()["images"] == ["batch"]
    (table,) = (out / "tensorboard").glob("*/query/tensors.tsv")
    assert len(table.read_text().splitlines()) == 12
    with Image.open(table.with_name("sprite.png")) as sprite:
        assert sprite.size == (4 * 32, 4 * 32)
    with Image.open(out / "curves.png") as curves:
        assert curves.format == "PNG"


def test_a_continued_run_withdraws_later_steps(tmp_path):
    for begun in (0, 2):
        with Monitor(tmp_path, tensorboard=True).resume_after(begun) as monitor:
            for step in range(begun + 1, 5):
                monitor.row({"step": step, "loss": float(begun)})
    values = [(event.step, event.value) for event in scalars(tmp_path).Scalars("train/loss")]
    assert values == [(1, 0), (2, 0), (3, 2), (4, 2)]


def test_nothing_is_written_unless_wanted(tmp_path):
    with Monitor(tmp_path) as monitor:
        monitor.row({"step": 1, "loss": 1.0})
        monitor.step(torch.zeros(1, 3, 4, 2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("steps", "calls"), [(3, None), (4, 7), (5, 7)])
def test_few_steps_to_profile(steps, calls, tmp_path, capsys):
    """What was recorded is shown per step of those that were."""
    with Monitor(tmp_path, profile=True) as monitor:
        for _ in range(steps):
            for _ in range(7):
                torch.ones(3).cumsum(0)
            monitor.step(torch.zeros(1, 3, 4, 2))
    text = capsys.readouterr().out
    assert ("a run of at least 4 steps" in text) == (calls is None)
    if calls is not None:
        (line,) = [line for line in text.splitlines() if "aten::cumsum" in line]
        assert line.split("│")[2].strip() == str(calls)


def test_missing_extras_are_named(market, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    out = tmp_path / "run"
    assert run("train", "--data", market, "--out", out, *SMALL, "--tensorboard") == 1
    assert "pip install 'rga-fast[tensorboard]'" in capsys.readouterr().err
    assert not out.exists()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert curves_note(tmp_path).endswith("pip install 'rga-fast[plots]'")


def write_run(folder, losses):
    folder.mkdir()
    lines = [{"step": 0, "epoch": 0, "after_neck": {"mAP": 0.1, "rank1": 0.2}}]
    for step, loss in enumerate(losses):
        epoch = 1 + step // 2
        lines.append({"step": step + 1, "epoch": epoch, "loss": loss, "lr": 0.1, "accuracy": 0.5})
    folder.joinpath("metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_curves_are_means_of_epochs(tmp_path):
    curves = read_curves(write_run(tmp_path / "a", [4.0, 2.0, 1.0, 2.0]))
    assert curves["loss"] == ([1, 2], [3.0, 1.5])
    assert curves["accuracy"] == ([1, 2], [0.5, 0.5])
    assert curves["mAP"] == ([0], [0.1])
    assert curves["images_per_s"] == ([], [])


def test_runs_in_one_picture(tmp_path):
    runs = {n: [write_run(tmp_path / f"{n}{i}", [3.0, 2.0]) for i in (0, 1)] for n in ("a", "b")}
    draw_curves(runs, tmp_path / "both.png")
    with Image.open(tmp_path / "both.png") as picture:
        assert picture.size == (960, 480)
    (tmp_path / "a1" / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="expected rows of steps, got none"):
        draw_curves(runs, tmp_path / "neither.png")
    assert not (tmp_path / "neither.png").exists()


def test_denormalise_undoes_normalise():
    pixels = torch.arange(2 * 4 * 2 * 3, dtype=torch.uint8).reshape(2, 4, 2, 3)
    shown = denormalise(normalise(pixels)) * 255
    torch.testing.assert_close(shown.round().byte(), pixels.permute(0, 3, 1, 2))
