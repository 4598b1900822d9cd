"""What a run writes down: rows that survive any interruption, and a loss that is no number."""

import json
from pathlib import Path

import pytest

from rga_fast.reid.config import RECIPES
from rga_fast.reid.retrieval.metrics import RankMetrics
from rga_fast.reid.training.monitor import Monitor
from rga_fast.reid.training.record import EpochRecord, MetricsLog
from rga_fast.reid.training.step import StepResult

SCORES = {
    "before_neck": RankMetrics(0.5, 0.75, 1.0, 0.25, 0.125, 8, 1),
    "after_neck": RankMetrics(0.25, 0.5, 0.75, 0.2, 0.1, 8, 1),
}


def opened(folder: Path, keep: int = 0) -> MetricsLog:
    return MetricsLog(folder / "metrics.jsonl", keep, Monitor(folder))


@pytest.fixture
def interrupted(tmp_path):
    """The folder of a run that was killed while it wrote the row of its third step."""
    with opened(tmp_path) as log:
        log.evaluation(0, 0, SCORES)
        for step in (1, 2):
            log.write(step=step, loss=1.0 / step)
        log.evaluation(1, 2, SCORES)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    return tmp_path


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]


def test_a_continued_run_drops_what_comes_again(interrupted):
    with opened(interrupted, keep=1) as log:
        assert steps(interrupted) == [0, 1]
        assert log.scores(0) == SCORES
        assert log.scores(2) is None
        log.write(step=2, loss=0.5)
        assert steps(interrupted) == [0, 1, 2]  # at once
    assert not list(interrupted.glob("*.partial"))


@pytest.mark.parametrize("moment", ["pathlib.Path.replace", "os.fsync"])
def test_a_kill_while_it_opens_loses_no_row(moment, interrupted, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    before = (interrupted / "metrics.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(moment, killed)
        with pytest.raises(KeyboardInterrupt):
            opened(interrupted, keep=2)
    assert (interrupted / "metrics.jsonl").read_bytes() == before
    with opened(interrupted, keep=2) as log:
        assert log.scores(2) == SCORES
    assert steps(interrupted) == [0, 1, 2, 2]


def test_a_loss_that_is_no_number_is_named(tmp_path):
    class Batches:
        waited = 0.5

        def __len__(self):
            return 4

    with opened(tmp_path) as log:
        record = EpochRecord(RECIPES["small"], 2, Batches(), log)
        record.add(0, 1e-3, StepResult(2.0, 1.5, 0.5, 16))
        with pytest.raises(FloatingPointError, match="the loss is nan in epoch 3, step 2; a lower"):
            record.add(1, 1e-3, StepResult(float("nan"), 1.5, float("nan"), 16))
    (row,) = map(json.loads, (tmp_path / "metrics.jsonl").open())
    assert (row["step"], row["epoch"], row["accuracy"]) == (9, 3, 0.25)
    assert record.note.startswith("loss 2.00, accuracy 25%, ")


def test_rows_are_strict_json(tmp_path):
    """The norm of a gradient overflows in float16, and its step is skipped."""

    def constant(name):
        raise ValueError(name)

    with opened(tmp_path) as log:
        log.write(step=1, loss=1.0, grad_norm=float("inf"))
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=constant) == {"step": 1, "loss": 1.0, "grad_norm": None}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full to play a full disk")
def test_a_full_disk_names_the_file(tmp_path):
    log = opened(tmp_path)
    log._file = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(OSError, match="No space left") as error:
        log.write(step=1, loss=1.0)
    assert error.value.filename == str(tmp_path / "metrics.jsonl")
