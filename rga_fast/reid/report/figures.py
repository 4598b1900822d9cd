"""Figures of one image: maps over it with their scales, and the maps of channels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rga_fast.reid.files import write_file
from rga_fast.reid.report.pictures import COLOURS

PANEL = 1.35  # inches, the width of a panel
DPI = 120
MARK = "#D55E00"  # of targets: told apart from every colour of the scale


class Panel(NamedTuple):
    """A map (H, W) that is drawn over the image, or alone; without a map, the image itself.

    `low` and `high` are the ends of its scale. `marks` are positions (y, x) in [0, 1].
    """

    title: str
    map: np.ndarray | None = None
    low: float = 0.0
    high: float = 1.0
    marks: Sequence[tuple[float, float]] = ()
    over: bool = True


def save_panels(target: Path, image: np.ndarray, rows: Sequence[Sequence[Panel]]) -> None:
    """Draws rows of panels to a PNG file. `image` is uint8 (H, W, 3)."""
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    height = PANEL * image.shape[0] / image.shape[1]
    size = (columns * (PANEL + 0.2), len(rows) * (height + 0.75))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for of_row, panels in zip(axes, rows, strict=True):
        for axis in of_row:
            axis.set_axis_off()
        for axis, panel in zip(of_row, panels, strict=False):
            _draw(figure, axis, image, panel)
    write_file(target, lambda path: figure.savefig(path, format="png", dpi=DPI))


def _draw(figure: Any, axis: Any, image: np.ndarray, panel: Panel) -> None:
    height, width = image.shape[:2]
    whole = (0, width, height, 0)  # left, right, bottom, top
    axis.set_title(panel.title, fontsize=9)
    if panel.map is None:
        axis.imshow(image, extent=whole)
    else:
        if panel.over:
            grey = image.mean(axis=2)
            axis.imshow(grey, extent=whole, cmap="gray", vmin=0, vmax=255)
        shown = axis.imshow(
            panel.map,
            extent=whole,
            cmap=COLOURS,
            vmin=panel.low,
            vmax=max(panel.high, panel.low + 1e-12),
            alpha=0.6 if panel.over else 1,
            interpolation="bilinear" if panel.over else "nearest",
        )
        bar = figure.colorbar(shown, ax=axis, orientation="horizontal", pad=0.02, aspect=14)
        bar.solids.set_alpha(1)
        bar.set_ticks([panel.low, panel.high], labels=[f"{panel.low:.3g}", f"{panel.high:.3g}"])
        left, right = bar.ax.get_xticklabels()
        left.set_ha("left")
        right.set_ha("right")
        bar.ax.tick_params(labelsize=8, length=2)
    for y, x in panel.marks:
        axis.plot(x * width, y * height, "o", ms=9, mfc="none", mec="white", mew=3.5)
        axis.plot(x * width, y * height, "o", ms=9, mfc="none", mec=MARK, mew=1.8)
