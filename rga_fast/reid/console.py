"""What a run shows: progress bars and tables in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from rga_fast.reid.data.datasets import DataReport, ReidData, SplitCounts
from rga_fast.reid.retrieval.metrics import RankMetrics

console = Console(highlight=False, soft_wrap=True)

METRICS = {"rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10", "mAP": "mAP", "mINP": "mINP"}
FEATURE_NAMES = {"before_neck": "before the neck", "after_neck": "after the neck"}

Advance = Callable[[int, int], None]  # done, in all


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A bar; yields `update(done, total=None, note="")`. Without a terminal it shows nothing:
    there the caller's own lines tell how far things are."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(description, total=total, note="")

        def update(done: int, total: int | None = None, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield update


def dataset_table(data: ReidData) -> Table:
    """Images, identities and cameras of each split."""
    table = Table(title=f"{data.name}", title_justify="left")
    table.add_column("split")
    for column in ("images", "identities", "cameras", "distractors", "dropped"):
        table.add_column(column, justify="right")
    for row in data.counts():
        table.add_row(row.split, *(f"{value:,}" for value in row[1:]))
    return table


def report_table(report: DataReport) -> Table:
    """The counts of each split, those found above the published ones."""
    table = Table(title=f"{report.name}: {report.layout}", title_justify="left")
    table.add_column("split")
    for column in SplitCounts._fields[1:]:
        table.add_column(column, justify="right")
    for found, published in report.rows:
        table.add_row(found.split, *(f"{value:,}" for value in found[1:]))
        if published is not None:
            counts = ("" if value is None else f"{value:,}" for value in published)
            table.add_row("  published", *counts)
    return table


def metrics_table(title: str, rows: dict[str, dict[str, RankMetrics]]) -> Table:
    """One row per moment ("before training") and feature, in percent."""
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
    """How many queries entered the mean."""
    metrics = next(iter(scores.values()))
    note = f"{metrics.valid_queries} queries"
    if metrics.skipped_queries:
        note += f", {metrics.skipped_queries} more skipped: no match under another camera"
    return note
