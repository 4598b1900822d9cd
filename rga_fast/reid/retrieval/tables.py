"""Retrieval scores as a table."""

from __future__ import annotations

from rich.table import Table

from rga_fast.reid.retrieval.metrics import RankMetrics

METRICS = {"rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10", "mAP": "mAP", "mINP": "mINP"}
FEATURE_NAMES = {"before_neck": "before the neck", "after_neck": "after the neck"}


def metrics_table(title: str, rows: dict[str, dict[str, RankMetrics]]) -> Table:
    """A row for each moment ("before training") and feature, in percent."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("feature")
    for column in METRICS.values():
        table.add_column(column, justify="right")
    for moment, scores in rows.items():
        for name, metrics in scores.items():
            values = (f"{100 * getattr(metrics, key):.1f}" for key in METRICS)
            table.add_row(moment, FEATURE_NAMES[name], *values)
    return table


def skipped_note(scores: dict[str, RankMetrics]) -> str:
    """The number of queries that were averaged, and of those that were skipped."""
    metrics = next(iter(scores.values()))
    note = f"{metrics.valid_queries} queries"
    if metrics.skipped_queries:
        note += f", {metrics.skipped_queries} more skipped: no match under another camera"
    return note
