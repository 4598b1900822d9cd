"""What a run would take, and how it would take less."""

import pytest
import torch
from small_runs import SMALL, run

from rga_fast.reid import console
from rga_fast.reid.config import RECIPES
from rga_fast.reid.training.advice import start_notes, time_note

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PAPER, SMALL_RECIPE = RECIPES["paper"], RECIPES["small"]


def test_the_published_recipe_on_a_cpu():
    note = time_note(PAPER, CPU, 30 * 86400)
    assert note == (
        "about 30.0 days of training on this cpu; less with a GPU, epochs=N, "
        "--recipe small (ResNet-18 at 96x48) or --fused"
    )
    assert time_note(PAPER, CUDA, 7261) == "about 2:01:01 of training on this cuda"
    assert time_note(PAPER, CPU, 61) == "about 1:01 of training on this cpu"
    assert "--fused" not in time_note(PAPER.replace(impl="auto"), CPU, 86400)


def test_what_a_run_goes_without():
    weights, reference = start_notes(PAPER, CPU)
    assert "random weights; --pretrained FILE" in weights
    assert "reference implementation of RGA runs; --fused computes the same, 3.4 times" in reference
    assert "3.4" not in start_notes(PAPER, CUDA)[1]  # not measured there
    assert start_notes(PAPER.replace(pretrained="x.pth", impl="auto"), CPU) == []
    assert start_notes(PAPER.replace(init="x.pt", attention="none"), CPU) == []
    assert len(start_notes(SMALL_RECIPE, CPU)) == 1  # there are no weights of its width


def test_a_run_and_a_dry_run_say_it(market, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rga_fast.reid.training.epoch.WORTH_NOTING", 0)
    monkeypatch.setattr(console, "QUIET", 0)
    common = ["train", "--data", market, *SMALL, "epochs=20", "stages=1"]
    assert run(*common, "--dry-run") == 0
    text = capsys.readouterr().out
    assert "of training on this cpu" in text
    assert "--fused computes the same" in text
    assert run(*common, "--out", tmp_path / "run", "epochs=1", "identities_per_batch=2") == 0
    text = capsys.readouterr().out
    assert text.count("of training on this cpu") == 1
    assert "epoch 1/1  3/6  loss" in text  # not in a terminal
    assert "of training left" in text


@pytest.mark.parametrize("interval", [0, 1000])
def test_progress_outside_a_terminal(interval, capsys, monkeypatch):
    monkeypatch.setattr(console, "QUIET", interval)
    with console.progress("decoding") as bar:
        bar(1000, 2000)
        bar(1500, 2000, note="[x]")
        bar(2000, 2000)
    expected = "decoding  1,000/2,000\ndecoding  1,500/2,000  [x]\n"
    assert capsys.readouterr().out == (expected if interval == 0 else "")
