"""What a continued run takes from its folder, and what contradicts it."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from small_runs import SMALL, Killed, assert_same_run, rows, run, run_until

from rga_fast.reid.checkpoint import load_checkpoint, make_network
from rga_fast.reid.config import load_recipe
from rga_fast.reid.data.datasets import Split
from rga_fast.reid.data.fingerprint import difference, fingerprint

STEP = [*SMALL, "schedule=step", "warmup_epochs=0"]


@pytest.fixture(scope="module")
def trained(market, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    assert run("train", "--fused", "--data", market, "--out", out, *STEP, "epochs=1") == 0
    return out


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copied run")


@pytest.fixture(scope="module")
def others(market, tmp_path_factory):
    """As many people with the same numbers and file names, in other colours."""
    root = shutil.copytree(market, tmp_path_factory.mktemp("others") / "data")
    files = sorted((root / "bounding_box_train").iterdir())
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, contents[3:] + contents[:3], strict=True):
        file.write_bytes(content)
    return root


def test_a_run_that_ended_before_its_first_checkpoint(market, tmp_path, capsys):
    """It starts again from its own configuration, not from defaults on synthetic people."""
    out = tmp_path / "run"
    run_until(2, "train", "--fused", "--data", market, "--out", out, *SMALL, "epochs=1")
    assert not list((out / "checkpoints").glob("*.pt"))
    begun = (out / "config.yaml").read_bytes()
    auto = ["train", "--resume", "auto", "--out", out]
    for contradiction, message in (
        (["--recipe=paper"], "these fields differ"),
        (["margin=0.5"], "margin (0.3 there)"),
        (["--data", tmp_path], "this run trains on"),
    ):
        assert run(*auto, *contradiction) == 1
        assert message in capsys.readouterr().err
        assert (out / "config.yaml").read_bytes() == begun
    assert run(*auto) == 0
    assert (out / "config.yaml").read_bytes() == begun
    assert [row["step"] for row in rows(out)] == [1, 2, 3]


def test_a_new_run_in_a_folder_where_nothing_was_trained(market, tmp_path, monkeypatch):
    out = tmp_path / "run"
    common = ["train", "--fused", "--data", market, "--out", out, *SMALL, "epochs=1"]

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("rga_fast.reid.training.evaluation.evaluate", die)
        with pytest.raises(Killed):
            run(*common)
    assert (out / "config.yaml").exists()
    run_until(1, *common)


@pytest.mark.parametrize("kept", ["new", "former"])
def test_other_data_are_refused(kept, copy, others, market, tmp_path, capsys):
    last = copy / "checkpoints" / "last.pt"
    if kept == "former":  # checkpoints that have only the number of people
        saved = torch.load(last, weights_only=True)
        del saved["trained_on"], saved["seconds"]
        torch.save(saved, last)
        fewer = shutil.copytree(market, tmp_path / "fewer")
        for file in (fewer / "bounding_box_train").glob("0012*"):
            file.unlink()
        data, message = fewer, "12 people there, 11 here"
    else:
        data, message = others, "as many people and images with the same numbers, but other images"
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert run("train", "--resume", last, "--data", data, "epochs=2") == 1
    error = capsys.readouterr().err
    assert f"trained on other data than {data}: {message}" in error
    assert "architecture" not in error
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    assert run("train", "--resume", last, "--data", market) == 0


def test_fingerprints(tmp_path):
    def split(folder, *names, identities=(1, 1, 2), content=b"x"):
        for name in names:
            file = tmp_path / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return Split(tmp_path / folder, names, np.array(identities), np.array([1, 2, 1]))

    own = fingerprint(split("a", "0001.jpg", "0002.jpg", "0003.jpg"))
    moved = fingerprint(split("b", "sub/0001.jpg", "sub/0002.jpg", "sub/0003.jpg"))
    assert difference(own, moved) is None
    for other, message in (
        (split("c", "0001.jpg", "0002.jpg", "0003.jpg", content=b"y"), "but other images"),
        (split("d", "1.jpg", "0002.jpg", "0003.jpg"), "but other images"),
        (split("e", "0001.jpg", "0002.jpg", "0003.jpg", identities=(1, 1, 3)), "2 there, 3 here"),
        (split("f", "0001.jpg", "0002.jpg", "0003.jpg", identities=(1, 2, 3)), "2 people there"),
    ):
        assert message in difference(own, fingerprint(other))


def test_more_epochs_and_other_intervals(copy, trained, market, tmp_path):
    """As the run that had them from the start. Its parts' seconds are added up."""
    whole = tmp_path / "whole"
    assert run("train", "--fused", "--data", market, "--out", whole, *STEP, "eval_every=1") == 0
    first = json.loads((copy / "summary.json").read_text())["seconds"]
    assert run("train", "--resume", copy, "--epochs=2", "eval_every=1", "checkpoint_every=2") == 0
    assert_same_run(copy, whole)
    assert yaml.safe_load((copy / "config.yaml").read_text())["epochs"] == 2
    assert json.loads((copy / "summary.json").read_text())["seconds"] > first
    assert load_checkpoint(copy / "checkpoints/last.pt").seconds >= first / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["learning_rate=0.1"], r"learning_rate \(0.002 there\).*begin a new run.*--init"),
        (["epochs=3", "schedule=cosine"], r"epochs \(1 there\), schedule \(step there\)"),
        (["--recipe=small"], r"epochs \(1 there\)"),
    ],
)
def test_what_is_refused_names_the_way_out(arguments, message, copy, capsys):
    assert run("train", "--resume", copy, *arguments) == 1
    assert re.search(message, capsys.readouterr().err)


def test_fewer_epochs_than_are_done(copy, market, capsys):
    assert run("train", "--resume", copy, "epochs=2") == 0
    assert run("train", "--resume", copy, "epochs=1") == 1
    assert "epochs=1, but 2 are done already" in capsys.readouterr().err


def test_moved_folders_and_data(copy, market, tmp_path, monkeypatch, capsys):
    moved = shutil.copytree(market, tmp_path / "moved data")
    last = copy / "checkpoints" / "last.pt"
    saved = torch.load(last, weights_only=True)
    saved["config"]["data"] = str(tmp_path / "gone")
    torch.save(saved, last)
    monkeypatch.chdir(last.parent)
    assert run("train", "--resume", "last.pt") == 1
    assert re.search(r"gone.*elsewhere now: --data PATH", capsys.readouterr().err)
    assert run("train", "--resume", "last.pt", "--data", os.path.relpath(moved), "epochs=2") == 0
    assert [row["step"] for row in rows(copy)] == [1, 2, 3, 4, 5, 6]
    assert yaml.safe_load((copy / "config.yaml").read_text())["data"] == str(moved)


def test_a_checkpoint_outside_a_run(copy, trained, tmp_path, capsys):
    alone = shutil.copy(copy / "checkpoints/last.pt", tmp_path / "alone.pt")
    assert run("train", "--resume", alone) == 1
    assert "give its folder, or a new one, as --out DIR" in capsys.readouterr().err
    assert run("train", "--resume", alone, "--out", trained) == 1
    assert "holds another run than" in capsys.readouterr().err
    assert run("train", "--resume", tmp_path / "nothing") == 1
    assert "no checkpoint at" in capsys.readouterr().err
    assert run("train", "--resume", tmp_path) == 1
    assert "no run in this folder" in capsys.readouterr().err


def test_pretrained_weights_are_not_needed_again(market, tmp_path):
    config = load_recipe("small").replace(base_width=8, height=32, width=16)
    file = tmp_path / "weights.pth"
    torch.save(make_network(config, 3).backbone.state_dict(), file)
    out = tmp_path / "run"
    common = ["train", "--fused", "--data", market, "--out", out]
    run_until(5, *common, *SMALL, "--pretrained", file)
    file.unlink()
    run_until(2, *common, "--resume", "auto")


def test_fine_tuning(copy, others, tmp_path, capsys):
    """A new run from the weights of another, on other people; the classifier is left out."""
    out, last = tmp_path / "tuned", copy / "checkpoints/last.pt"
    common = ["train", "--fused", "--data", others, "--out", out, *SMALL]
    run_until(1, *common, "--init", last)
    text = capsys.readouterr().out
    assert re.search(
        r"last.pt: \d+ tensors loaded \(in model, prefix 'backbone.' taken off\)", text
    )
    assert "cls (not taken over)" in text
    assert run(*common, "--init", last, "--pretrained", last) == 1
    assert "pretrained and init exclude each other" in capsys.readouterr().err
