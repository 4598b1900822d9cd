"""The record of a run: rows in `metrics.jsonl`, and a line per epoch."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from rga_fast.reid.config import Config
from rga_fast.reid.data.loader import TrainBatches
from rga_fast.reid.files import duration_text, named_errors, write_file
from rga_fast.reid.retrieval.features import FEATURES
from rga_fast.reid.retrieval.metrics import RankMetrics
from rga_fast.reid.training.monitor import Monitor
from rga_fast.reid.training.step import StepResult

Scores = dict[str, RankMetrics]

WAITING_NOTED = 0.1  # share of the time spent waiting for images, from which it is printed


class MetricsLog:
    """`metrics.jsonl`: one JSON object per line.

    Opening drops the rows after step `keep`. Without a path, on ranks other than 0, nothing is
    written.
    """

    def __init__(self, path: Path | None, keep: int, monitor: Monitor) -> None:
        self.monitor = monitor
        self._scores: dict[int, Scores] = {}
        self._file = None
        if path is None:
            return
        self._path = path
        kept = _rows(path, keep) if keep and path.exists() else []
        for row in kept:
            if all(name in row for name in FEATURES):
                scores = {name: RankMetrics(**row[name]) for name in FEATURES}
                self._scores[row["step"]] = scores
        write_file(path, "".join(map(_line, kept)))
        self._file = path.open("a", encoding="utf-8")

    def write(self, **row: Any) -> None:
        """Adds a row to the file, flushed, and to the monitor."""
        if self._file is not None:
            with named_errors(self._path):
                self._file.write(_line(row))
                self._file.flush()
        self.monitor.row(row)

    def evaluation(self, epoch: int, step: int, scores: Scores) -> None:
        """Adds a row of metrics, per feature."""
        self._scores[step] = scores
        self.write(step=step, epoch=epoch, **{name: m._asdict() for name, m in scores.items()})

    def scores(self, step: int) -> Scores | None:
        """The scores of the evaluation after `step`, if there was one, also before a resume."""
        return self._scores.get(step)

    @property
    def evaluations(self) -> dict[int, Scores]:
        """The scores of every evaluation, by step."""
        return dict(self._scores)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _line(row: dict[str, Any]) -> str:
    """Strict JSON, which has no infinity and no NaN: a gradient's norm that overflowed is null."""
    return json.dumps(_finite(row), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _rows(path: Path, keep: int) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the incomplete last line of a run that was killed
            continue
    return [row for row in rows if row["step"] <= keep]


class EpochRecord:
    """The steps of an epoch: a row of the log for each, and `note`, a summary so far."""

    def __init__(self, config: Config, epoch: int, batches: TrainBatches, log: MetricsLog) -> None:
        self.note = "was complete already"  # if the run was stopped after the last step
        self._config, self._epoch, self._batches, self._log = config, epoch, batches, log
        self._batch = config.identities_per_batch * config.images_per_identity
        self._seen, self._correct, self._loss = 0, 0, 0.0
        self.seconds_left = 0.0
        self._clock = time.perf_counter()

    def add(self, step: int, rate: float, result: StepResult) -> None:
        """Records step `step` (from 0), made at learning rate `rate`.

        FloatingPointError: its loss is not finite.
        """
        epoch, steps = self._epoch, len(self._batches)
        if not math.isfinite(result.loss):
            raise FloatingPointError(
                f"the loss is {result.loss} in epoch {epoch + 1}, step {step + 1}; "
                "a lower learning_rate may help"
            )
        self._seen += self._batch
        self._correct += result.correct
        self._loss += result.loss * self._batch
        elapsed = time.perf_counter() - self._clock
        speed, waiting = self._seen / elapsed, self._batches.waited / elapsed
        accuracy = self._correct / self._seen
        self._log.write(
            step=epoch * steps + step + 1,
            epoch=epoch + 1,
            loss=result.loss,
            loss_id=result.identity,
            loss_triplet=result.triplet,
            lr=rate,
            accuracy=round(accuracy, 4),
            images_per_s=round(speed, 1),
            waiting=round(waiting, 3),
            **({} if result.grad_norm is None else {"grad_norm": result.grad_norm}),
        )
        left = (self._config.epochs - epoch) * steps - step - 1
        self.note = f"loss {self._loss / self._seen:.2f}, accuracy {accuracy:.0%}"
        self.seconds_left = left * self._batch / speed
        self.note += f", {speed:.{0 if speed >= 10 else 1}f} images/s"
        self.note += f", {duration_text(self.seconds_left)} of training left"
        if waiting > WAITING_NOTED:
            self.note += f", {waiting:.0%} of it waiting for images"
