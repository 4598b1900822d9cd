"""Tables of a data set's counts."""

from __future__ import annotations

from rich.table import Table

from rga_fast.reid.data.datasets import DataReport, ReidData, SplitCounts


def dataset_table(data: ReidData) -> Table:
    """Images, identities, cameras, distractors and dropped files of each split."""
    table = _table(data.name)
    for row in data.counts():
        table.add_row(row.split, *(f"{value:,}" for value in row[1:]))
    return table


def report_table(report: DataReport) -> Table:
    """The counts of each split, followed by the published ones."""
    table = _table(f"{report.name}: {report.layout}")
    for found, published in report.rows:
        table.add_row(found.split, *(f"{value:,}" for value in found[1:]))
        if published is not None:
            counts = ("" if value is None else f"{value:,}" for value in published)
            table.add_row("  published", *counts)
    return table


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("split")
    for column in SplitCounts._fields[1:]:
        table.add_column(column, justify="right")
    return table
