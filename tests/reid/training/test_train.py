"""A training run from files to numbers, and what bad input gets."""

import json
import math
import os
import shutil
import signal
import time

import processes
import pytest
import torch
import yaml
from small_runs import SMALL, Killed, assert_same_run, at_step, rows, run, run_until

from rga_fast.reid.checkpoint import load_checkpoint, save_checkpoint
from rga_fast.reid.config import RECIPES, Config, parse_assignments
from rga_fast.reid.training import epoch as training_epoch
from rga_fast.reid.training import evaluation as training_evaluation
from rga_fast.reid.training.epoch import learning_rate
from rga_fast.reid.training.stopping import SIGNALS, Interrupted, continuation, stop_signals


@pytest.fixture(scope="module")
def trained(market, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    assert run("train", "--fused", "--data", market, "--out", out, *SMALL) == 0
    return out


def test_a_run_leaves_everything_that_traces_it(trained, market):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["data"] == str(market)
    assert config["epochs"] == 2
    assert config["impl"] == "auto"
    assert set(config) == set(vars(Config()))
    steps = rows(trained)
    measured = ("accuracy", "images_per_s", "waiting")
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert all(
        set(row) == {"step", "epoch", "loss", "loss_id", "loss_triplet", "lr", *measured}
        for row in steps
    )
    assert all(
        math.isclose(row["loss"], row["loss_id"] + row["loss_triplet"], rel_tol=1e-5)
        for row in steps
    )
    evaluations = rows(trained, "before_neck")
    assert [row["epoch"] for row in evaluations] == [0, 2]
    summary = json.loads((trained / "summary.json").read_text())
    for moment, row in zip(("before", "after"), evaluations, strict=True):
        for feature in ("before_neck", "after_neck"):
            assert summary[moment][feature] == row[feature]
            assert 0 < row[feature]["mAP"] <= 1
    assert summary["before"] != summary["after"]


def test_the_same_seed_gives_the_same_losses(trained, market, tmp_path):
    common = ["train", "--fused", "--data", market, *SMALL, "--out"]
    run_until(5, *common, tmp_path / "b")
    losses = [row["loss"] for row in rows(trained)]
    assert [row["loss"] for row in rows(tmp_path / "b")] == losses[:4]
    run_until(2, *common, tmp_path / "c", "--seed=1")
    assert rows(tmp_path / "c")[0]["loss"] != losses[0]


def test_reference_and_fused_start_alike(trained, market, tmp_path):
    run_until(3, "train", "--data", market, "--out", tmp_path / "r", *SMALL)
    assert yaml.safe_load((tmp_path / "r/config.yaml").read_text())["impl"] == "reference"
    for expected, row in zip(rows(trained)[:2], rows(tmp_path / "r"), strict=True):
        assert math.isclose(expected["loss"], row["loss"], rel_tol=1e-3)


def test_resume_equals_a_run_never_interrupted(trained, market, tmp_path, monkeypatch):
    """Killed in a step, and again when all is trained and saved, but not evaluated. The third start
    reads results late, as on a GPU."""
    out = tmp_path / "resumed"
    common = ["train", "--fused", "--data", market, "--out", out]
    run_until(5, *common, *SMALL)
    saved = load_checkpoint(out / "checkpoints/last.pt")
    assert (saved.epoch, saved.step) == (1, 0)

    def die(*_):
        raise Killed

    monkeypatch.setattr(training_epoch, "READBACK_LAG", {"cpu": 2})
    with monkeypatch.context() as patch:
        patch.setattr(training_evaluation, "evaluate", die)
        with pytest.raises(Killed):
            run(*common, "--resume", "auto")
    assert [row["loss"] for row in rows(out)] == [row["loss"] for row in rows(trained)]
    assert run(*common, "--resume", "auto") == 0
    assert_same_run(out, trained)
    summary, expected = (json.loads((f / "summary.json").read_text()) for f in (out, trained))
    assert {k: summary[k] for k in ("before", "after")} == {
        k: expected[k] for k in ("before", "after")
    }


STATEFUL = [
    *("--amp=bf16", "--ema=0.5", "--accumulate=2", "--clip-norm=1", "--freeze-epochs=1"),
    *("cache=off", "workers=2"),
]


@pytest.mark.slow
def test_resume_with_everything_that_has_state(market, tmp_path, monkeypatch):
    """Averaged weights, slices, mixed precision, frozen layers, workers, and dropout, whose draws
    come from torch's own generator."""
    from rga_fast.reid.network import reidnet

    class Dropping(reidnet.ReidNet):
        def forward(self, images):
            return super().forward(torch.nn.functional.dropout(images, 0.1, self.training))

    monkeypatch.setattr("rga_fast.reid.checkpoint.ReidNet", Dropping)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    common = ["train", "--fused", "--data", market, *SMALL, *STATEFUL, "--out"]
    assert run(*common, whole) == 0
    run_until(5, *common, out)
    run_until(2, *common, out, "--resume", "auto")
    assert run(*common, out, "--resume", "auto") == 0
    assert_same_run(out, whole)
    assert all(row["grad_norm"] > 0 for row in rows(out))
    checkpoint = out / "checkpoints/last.pt"
    assert load_checkpoint(checkpoint).ema is not None
    assert run("evaluate", checkpoint, "--data", market, "--json", tmp_path / "e.json") == 0
    summary = json.loads((out / "summary.json").read_text())
    (found,) = json.loads((tmp_path / "e.json").read_text())
    assert {name: found[name] for name in summary["after"]} == summary["after"]  # of the average


@pytest.mark.parametrize(
    ("name", "step"), [("SIGTERM", 2), ("SIGTERM", 3), ("SIGINT", 2), ("SIGHUP", 1)]
)
def test_signals_save_behind_a_step(name, step, trained, market, tmp_path, capsys):
    """In the middle of an epoch and at its end, when evaluation is still to come."""
    out = tmp_path / "a run"
    common = ["train", "--fused", "--data", market, "--out", out]
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def terminate():
        os.kill(os.getpid(), getattr(signal, name))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", at_step(step, terminate))
        with pytest.raises(SystemExit) as stopped:
            run(*common, *SMALL)
    assert stopped.value.code == 128 + getattr(signal, name)
    told = capsys.readouterr().err.strip()
    assert told == f"rga-fast: stopped by {name}; to continue: {continuation(out)}"
    assert continuation(out) == f"rga-fast train --resume auto --out '{out}'"
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers
    saved = load_checkpoint(out / "checkpoints/last.pt")
    assert (saved.epoch, saved.step) == (0, step)
    if name == "SIGTERM":
        assert run(*common, "--resume", "auto") == 0
        assert_same_run(out, trained)


def test_a_damaged_checkpoint_is_passed_over(trained, market, tmp_path, capsys):
    out = tmp_path / "damaged"
    shutil.copytree(trained, out)
    last, previous = out / "checkpoints/last.pt", out / "checkpoints/previous.pt"
    last.write_bytes(last.read_bytes()[:-100])
    common = ["train", "--fused", "--data", market, "--out", out, "--resume", "auto"]
    with pytest.warns(UserWarning, match="last.pt: damaged"):
        assert run(*common) == 0
    assert_same_run(out, trained)
    last.write_bytes(b"")
    previous.write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"):
        assert run(*common) == 1
    assert "every checkpoint there is damaged" in capsys.readouterr().err


def test_a_signal_in_an_evaluation(trained, market, tmp_path):
    """Ends it at once; the run was saved before."""
    out = tmp_path / "stopped"
    common = ["train", "--fused", "--data", market, "--out", out]

    evaluate, calls = training_evaluation.evaluate, []

    def interrupt(*arguments):
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the evaluation went on")
        return evaluate(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_evaluation, "evaluate", interrupt)
        with pytest.raises(SystemExit):
            run(*common, *SMALL, "eval_every=1", "checkpoint_every=9")
    assert [row["step"] for row in rows(out)] == [1, 2, 3]
    assert run(*common, "--resume", "auto") == 0
    assert [row["loss"] for row in rows(out)] == [row["loss"] for row in rows(trained)]


def test_nohup_is_respected(monkeypatch, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals(tmp_path) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_set()
            with pytest.raises(Interrupted), stop.at_once():
                os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full to play a full disk")
def test_a_full_disk_leaves_the_last_checkpoint(trained, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(trained / "checkpoints", folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "last.pt.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left.*, .* MB needed, .* free: '.*last.pt'"):
        save_checkpoint(folder, load_checkpoint(folder / "last.pt"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.slow
def test_kill_9_at_any_moment(trained, market, tmp_path):
    """Whatever the moment, a new start with --resume auto ends at the losses of the whole run."""
    out = tmp_path / "killed"
    common = ["train", "--fused", "--data", market, "--out", out, *SMALL, "--resume", "auto"]
    for steps in (1, 4, 3):  # before a checkpoint, behind one, while rows are written anew
        process = processes.start(run, *common)
        deadline = time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline:
            if (out / "metrics.jsonl").exists() and len(rows(out)) >= steps:
                process.kill()
            time.sleep(0.002)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert run(*common) == 0
    assert_same_run(out, trained)


def test_learning_rates_of_the_recipes():
    paper, small = RECIPES["paper"], RECIPES["small"]
    assert learning_rate(paper, 0) == pytest.approx(8e-6)
    assert learning_rate(paper, 20) == pytest.approx(8e-4)
    assert learning_rate(paper, 80) == pytest.approx(4e-4)
    assert learning_rate(paper, 599) == pytest.approx(8e-4 / 2**8)
    assert learning_rate(small, small.epochs - 1, 1.0) == pytest.approx(0.0, abs=1e-12)
    assert learning_rate(small, 2) == pytest.approx(small.learning_rate)


def test_assignments():
    fields = parse_assignments(["epochs=5", "stages=1,2", "learning_rate=1e-3", "attention=none"])
    config = Config().replace(**fields)
    assert (config.epochs, config.stages) == (5, (1, 2))
    assert (config.learning_rate, config.attention) == (1e-3, "none")
    assert parse_assignments(["milestones=3"]) == {"milestones": [3]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["epohcs=3"], "unknown field 'epohcs'; did you mean 'epochs'?"),
        (["epochs=many"], "epochs must be int, got 'many'"),
        (["epochs=0"], "epochs must be a positive integer, got 0"),
        (["compile=3"], "compile must be bool, got 3"),
        (["relations=3"], "relations must be bool, got 3"),  # a former field
        (["attention=rga"], "attention must be one of 'none', 'rga-s'"),
        (["cache=ram"], "cache must be one of 'off'"),
        (["arch=resnet19"], "arch must be one of resnet18"),
        (["impl=fast"], "impl must be one of 'auto'"),
        (["epochs"], "expected field=value, got 'epochs'"),
        (["identities_per_batch=64"], "takes 64 identities, but the training images show only 12"),
        (["device=tpu7"], "device 'tpu7' cannot be used"),
        (["--pretrained=missing.pth"], "missing.pth"),
        (["--resume=missing.pt"], "no checkpoint at missing.pt"),
    ],
)
def test_bad_options_are_told_and_leave_nothing(arguments, message, market, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("train", "--data", market, "--out", out, *SMALL, *arguments) == 1
    assert message in capsys.readouterr().err
    assert not (out / "metrics.jsonl").exists()


def test_bad_folders(market, tmp_path, capsys):
    assert run("train", "--data", tmp_path / "nowhere", "--out", tmp_path / "a", *SMALL) == 1
    assert "nowhere" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run("train", "--data", tmp_path / "empty", "--out", tmp_path / "a", *SMALL) == 1
    assert "found an empty folder" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    assert run("train", "--data", market, "--out", tmp_path / "file" / "run", *SMALL) == 1
    assert "Not a directory" in capsys.readouterr().err


def test_a_damaged_image_is_named_and_nothing_is_written(market, tmp_path, capsys):
    root = tmp_path / "market"
    shutil.copytree(market, root)
    damaged = sorted((root / "bounding_box_train").iterdir())[3]
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert run("train", "--data", root, "--out", tmp_path / "out", *SMALL) == 1
    assert damaged.name in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_is_never_overwritten(trained, market, capsys):
    before = (trained / "metrics.jsonl").read_bytes()
    assert run("train", "--data", market, "--out", trained, *SMALL) == 1
    assert "holds a run already" in capsys.readouterr().err
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_foreign_checkpoints(trained, market, tmp_path, capsys):
    foreign = tmp_path / "foreign.pt"
    torch.save({"weight": torch.zeros(3)}, foreign)
    assert run("evaluate", foreign, "--data", market) == 1
    assert "not a checkpoint written by rga-fast train" in capsys.readouterr().err
    foreign.write_bytes((trained / "checkpoints/last.pt").read_bytes()[:1000])
    assert run("evaluate", foreign, "--data", market) == 1
    assert "damaged, or not a checkpoint" in capsys.readouterr().err
    saved = torch.load(trained / "checkpoints/last.pt", weights_only=True)
    saved["config"]["base_width"] = 12
    torch.save(saved, foreign)
    assert run("evaluate", foreign, "--data", market) == 1
    assert "weights of another architecture" in capsys.readouterr().err
    resumed = ["train", "--resume", trained / "checkpoints/last.pt", "--data", market, "margin=0.5"]
    assert run(*resumed, "--out", tmp_path / "x") == 1
    assert "these fields differ: margin (0.3 there)" in capsys.readouterr().err


def test_info_names_every_implementation(capsys):
    assert run("info") == 0
    text = capsys.readouterr().out
    for word in ("reference", "torch", "cpu", "float32"):
        assert word in text
