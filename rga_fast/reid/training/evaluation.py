"""Evaluations in the course of a run: when, their record, and the best epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rga_fast.reid.checkpoint import BEST, keep_best
from rga_fast.reid.console import console
from rga_fast.reid.retrieval.features import EvalData, extract_query_gallery, score
from rga_fast.reid.training.monitor import Monitor
from rga_fast.reid.training.record import MetricsLog, Scores
from rga_fast.reid.training.step import Training
from rga_fast.reid.training.stopping import Stop


class Evaluations:
    """The evaluations of a run; without `data` there are none.

    Every rank calls the same methods in the same order. `save(epoch)` saves the run after so many
    epochs; it is called before an evaluation, which a signal then may interrupt. `checkpoints` is
    the folder; `steps` are those of an epoch.
    """

    def __init__(
        self,
        training: Training,
        data: EvalData | None,
        log: MetricsLog,
        *,
        steps: int,
        save: Callable[[int], None],
        checkpoints: Path,
    ) -> None:
        self._training, self._data, self._log = training, data, log
        self._steps, self._save, self._checkpoints = steps, save, checkpoints

    def after(self, done: int, stop: Stop, monitor: Monitor) -> None:
        """Evaluates after `done` epochs if that is due, unless the log of a run that is continued
        has the scores. The best epoch so far is kept as `best.pt`."""
        config, ranks = self._training.config, self._training.ranks
        if self._data is None or not (done == config.epochs or done % config.eval_every == 0):
            return
        if ranks.from_main(lambda: self._log.scores(done * self._steps) is not None):
            return
        if done > 0:
            self._save(done)
        with stop.at_once():
            scores = evaluate(
                self._training, self._data, monitor if done == config.epochs else None
            )
        note = scores_line(done, scores)
        if ranks.main and done > 0:
            best = self.best()
            if best is None or best_map(scores) > best_map(best[1]):
                keep_best(self._checkpoints)
                note += f"; the best so far, kept in {BEST}"
        console.print(note)
        self._log.evaluation(done, done * self._steps, scores)

    def at(self, done: int) -> Scores | None:
        """The scores after `done` epochs, on rank 0."""
        return self._log.scores(done * self._steps)

    def best(self) -> tuple[int, Scores] | None:
        """The epochs and scores of the best evaluation after a step, on rank 0: by `best_map`, the
        first of equal ones."""
        found = {step: s for step, s in self._log.evaluations.items() if step > 0}
        if not found:
            return None
        step = max(found, key=lambda step: (best_map(found[step]), -step))
        return step // self._steps, found[step]


def evaluate(training: Training, evaluation: EvalData, monitor: Monitor | None = None) -> Scores:
    """The scores of the network on query and gallery (of its averaged weights, if there are any).
    The `monitor` shows the features of the queries."""
    query, gallery = extract_query_gallery(
        training.evaluated(),
        evaluation,
        batch_size=training.config.eval_batch,
        device=training.device,
        workers=training.config.readers,
        ranks=training.ranks,
    )
    if monitor is not None:
        monitor.embeddings(evaluation.query, evaluation.data.query, query.after_neck)
    return training.ranks.from_main(lambda: score(evaluation.data, query, gallery))


def best_map(scores: Scores) -> float:
    """The higher mAP of both features."""
    return max(metrics.mAP for metrics in scores.values())


def scores_line(done: int, scores: Scores) -> str:
    """An evaluation in a line, in percent: before the neck / after it."""
    values = (
        f"{name} " + " / ".join(f"{100 * getattr(m, key):.1f}" for m in scores.values())
        for key, name in (("mAP", "mAP"), ("rank1", "rank-1"))
    )
    moment = "before training" if done == 0 else f"after epoch {done}"
    return f"{moment}: {', '.join(values)} (before / after the neck)"
