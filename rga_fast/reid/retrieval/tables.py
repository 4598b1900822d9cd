"""Retrieval scores as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from rga_fast.reid.retrieval.evaluation import Evaluation
from rga_fast.reid.retrieval.metrics import RankMetrics
from rga_fast.reid.retrieval.threshold import Threshold
from rga_fast.reid.retrieval.verified import PAIR_RATES, SEARCH_RATES

METRICS = {"rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10", "mAP": "mAP", "mINP": "mINP"}
FEATURE_NAMES = {"before_neck": "before the neck", "after_neck": "after the neck"}


def metrics_table(title: str, rows: dict[str, dict[str, RankMetrics]]) -> Table:
    """A row for each moment ("before training") and feature, in percent."""
    table = _table(title, ["", "feature"], METRICS.values())
    for moment, scores in rows.items():
        for name, metrics in scores.items():
            table.add_row(Text(moment), FEATURE_NAMES[name], *_percent(metrics))
    return table


def evaluation_lines(evaluations: Sequence[Evaluation]) -> list[str]:
    """`1: runs/a, epoch 80, on synthetic, 326 queries`: what the numbers in the tables stand for;
    a single one needs none."""
    lines = [f"{_source(e)}, on {e.data}, {skipped_note(e.scores)}" for e in evaluations]
    if len(lines) == 1:
        return lines
    return [f"{number}: {line}" for number, line in enumerate(lines, start=1)]


def evaluation_table(evaluations: Sequence[Evaluation]) -> Table:
    """A row for each checkpoint and data set, feature, and for the re-ranked ones, in percent."""
    reranked = any(e.reranked for e in evaluations)
    heads = ["feature", "distances"] if reranked else ["feature"]
    table = _table("", [*_numbered(evaluations), *heads], METRICS.values())
    for number, evaluation in enumerate(evaluations, start=1):
        for kind, scores in (("", evaluation.scores), ("re-ranked", evaluation.reranked or {})):
            for name, metrics in scores.items():
                first = [str(number) for _ in _numbered(evaluations)]
                distances = [kind] if reranked else []
                table.add_row(*first, FEATURE_NAMES[name], *distances, *_percent(metrics))
    return table


def verification_table(evaluations: Sequence[Evaluation]) -> Table:
    """A row for each checkpoint and data set that was verified, and feature, in percent."""
    rates = [f"TAR at FAR {100 * rate:g}" for rate in PAIR_RATES]
    rates += [f"rank-1 at FAR {100 * rate:g}" for rate in SEARCH_RATES]
    title = (
        "verification in percent: equal error rate (EER), true accept rate (TAR) at a false accept "
        "rate (FAR); rank-1 with people who are not in the gallery"
    )
    table = _table(title, [*_numbered(evaluations), "feature"], ["EER", *rates])
    for number, evaluation in enumerate(evaluations, start=1):
        for name, verified in (evaluation.verified or {}).items():
            points = [*verified.accept.values(), *verified.search.values()]
            shares = [verified.equal_error_rate, *(point.true_accept for point in points)]
            first = [str(number) for _ in _numbered(evaluations)]
            numbers = (f"{100 * share:.1f}" for share in shares)
            table.add_row(*first, FEATURE_NAMES[name], *numbers)
    return table


def threshold_note(threshold: Threshold, mistaken: float) -> str:
    """What a threshold means, in two sentences."""
    low, high = threshold.interval
    return (
        f"{threshold.data}, {FEATURE_NAMES[threshold.feature]}: the same person up to distance "
        f"{threshold.value:.4f} (95 %: {low:.4f} to {high:.4f}), chosen on half of the people. "
        f"Of the other half it accepts {100 * threshold.true_accept_rate:.1f} % of the pairs of "
        f"one person and {100 * threshold.false_accept_rate:.2g} % of those of two; "
        f"{100 * mistaken:.1f} % of people who are not in the gallery are taken for somebody."
    )


def skipped_note(scores: dict[str, RankMetrics]) -> str:
    """The number of queries that were averaged, and of those that were skipped."""
    metrics = next(iter(scores.values()))
    note = f"{metrics.valid_queries} queries"
    if metrics.skipped_queries:
        note += f", {metrics.skipped_queries} more skipped: no match under another camera"
    return note


def _source(evaluation: Evaluation) -> str:
    """`runs/a, epoch 80` for `runs/a/checkpoints/last.pt`."""
    path = evaluation.checkpoint
    name = path.parent.parent if path.parts[-2:] == ("checkpoints", "last.pt") else path
    return f"{name}, epoch {evaluation.epoch}"


def _numbered(evaluations: Sequence[Evaluation]) -> list[str]:
    return ["#"] if len(evaluations) > 1 else []


def _table(title: str, texts: Sequence[str], numbers: Iterable[str]) -> Table:
    table = Table(title=Text(title) if title else None, title_justify="left")
    for column in texts:
        table.add_column(column)
    for column in numbers:
        table.add_column(column, justify="right")
    return table


def _percent(metrics: RankMetrics) -> list[str]:
    return [f"{100 * getattr(metrics, key):.1f}" for key in METRICS]
