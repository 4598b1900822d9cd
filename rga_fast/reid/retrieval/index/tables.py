"""Matches in words and tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from rga_fast.reid.retrieval.index.search import Match, in_gallery
from rga_fast.reid.retrieval.threshold import Threshold


def match_table(query: str, matches: Sequence[Match], threshold: Threshold | None) -> Table:
    """A row for each match; with a threshold, whether it shows the same person."""
    table = Table(title=escape(query), title_justify="left")
    table.add_column("", justify="right")
    table.add_column("distance", justify="right")
    if threshold is not None:
        table.add_column("same person")
    for column in ("identity", "camera", "time"):
        table.add_column(column)
    table.add_column("image", overflow="fold")
    for rank, match in enumerate(matches, start=1):
        row = [str(rank), f"{match.distance:.4f}"]
        if threshold is not None:
            row.append("yes" if match.distance <= threshold.value else "")
        known = (match.identity, match.camera, match.time, match.path)
        table.add_row(*row, *map(escape, known))
    return table


def verdict(matches: Sequence[Match], threshold: Threshold | None) -> str:
    """Whether the person is in the gallery, and by which numbers."""
    if not matches:
        return "no image of the gallery was searched: none is of these cameras and times"
    if threshold is None:
        return (
            "whether this person is in the gallery is unknown: the network has no threshold, which "
            "rga-fast evaluate --verification stores"
        )
    nearest, value = matches[0].distance, threshold.value
    if in_gallery(matches, threshold):
        return f"in the gallery: the nearest image is at {nearest:.3f}, the threshold {value:.3f}"
    return f"not in the gallery: the nearest image is at {nearest:.3f}, the threshold {value:.3f}"
