"""Evaluations in the course of a run: shown, recorded, the best kept; and runs that only train."""

import json

import pytest
import torch
from small_runs import SMALL, rows, run

from rga_fast.reid.checkpoint import keep_best, load_checkpoint
from rga_fast.reid.retrieval.metrics import RankMetrics
from rga_fast.reid.training import evaluation as training_evaluation


def scores(value):
    metrics = RankMetrics(0.5, 0.75, 1.0, value, 0.125, 8, 1)
    return {"before_neck": metrics._replace(mAP=value / 2), "after_neck": metrics}


def test_the_best_epoch_is_kept(market, tmp_path, monkeypatch, capsys):
    """By mAP, beside the last, also over a restart; each evaluation is shown when it is done."""
    out = tmp_path / "run"
    found = iter([0.9, 0.3, 0.6, 0.6, 0.2])  # before training, and after each epoch
    monkeypatch.setattr(training_evaluation, "evaluate", lambda *_: scores(next(found)))
    common = ["train", "--fused", "--data", market, "--out", out, *SMALL]
    often = ["eval_every=1", "checkpoint_every=9", "schedule=step", "warmup_epochs=0"]
    assert run(*common, *often) == 0
    text = capsys.readouterr().out
    assert "before training: mAP 45.0 / 90.0, rank-1 50.0 / 50.0 (before / after the neck)" in text
    assert "after epoch 1: mAP 15.0 / 30.0, rank-1 50.0 / 50.0 (before / after the neck); the best"
    assert "after (best)" in text
    assert run("train", "--resume", out, "epochs=4") == 0
    text = capsys.readouterr().out
    assert "after epoch 3: mAP 30.0 / 60.0" in text
    assert "best, epoch 2" in text
    best, last = (load_checkpoint(out / f"checkpoints/{name}.pt") for name in ("best", "last"))
    assert (best.epoch, last.epoch) == (2, 4)
    assert not torch.equal(best.model["cls.weight"], last.model["cls.weight"])
    summary = json.loads((out / "summary.json").read_text())
    assert summary["best_epoch"] == 2
    assert [summary[k]["after_neck"]["mAP"] for k in ("before", "after", "best")] == [0.9, 0.2, 0.6]
    assert run("evaluate", out / "checkpoints/best.pt", "--data", market) == 0
    assert "epoch 2" in capsys.readouterr().out


@pytest.mark.parametrize("links", [True, False])
def test_best_does_not_change_with_last(links, tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr("os.link", no_links)
    for text in ("1", "2"):
        (tmp_path / "last.pt").write_text(text)
        keep_best(tmp_path)
        assert (tmp_path / "best.pt").read_text() == text
        (tmp_path / "next").write_text("3")
        (tmp_path / "next").replace(tmp_path / "last.pt")
        assert (tmp_path / "best.pt").read_text() == text
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("missing", ["query and gallery", "cameras"])
def test_data_that_cannot_be_evaluated_train(missing, market, tmp_path, capsys):
    lines = ["path,identity,camera,split"]
    for file in sorted((market / "bounding_box_train").iterdir()):
        lines.append(f"bounding_box_train/{file.name},{file.name[:4]},1,train")
    if missing == "cameras":
        for folder, split in (("query", "query"), ("bounding_box_test", "gallery")):
            for file in sorted((market / folder).iterdir()):
                lines.append(f"{folder}/{file.name},{file.name[:4]},1,{split}")
    table = market / f"{missing[:5]}.csv"
    table.write_text("\n".join(lines))
    out = tmp_path / "run"
    common = ["train", "--fused", "--data", table, *SMALL, "stages=1", "epochs=1"]
    if missing == "cameras":
        assert run(*common, "--dry-run") == 0
        assert "would train only" in capsys.readouterr().out
    assert run(*common, "--out", out) == 0
    text = capsys.readouterr().out
    assert "nothing can be evaluated" in text
    assert "this run trains only" in text
    assert text.index("trains only") < text.index("run folder")
    summary = json.loads((out / "summary.json").read_text())
    assert not {"before", "after", "best"} & set(summary)
    assert len(rows(out)) == 3
    assert not rows(out, "before_neck")
    assert not (out / "checkpoints/best.pt").exists()
    table.unlink()
