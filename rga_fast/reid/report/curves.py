"""Curves of one or several runs in one figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rga_fast.reid.files import write_file

PANELS = {
    "loss": "loss",
    "lr": "learning rate",
    "accuracy": "accuracy on the training batches",
    "mAP": "mAP, query and gallery",
    "rank1": "rank-1, query and gallery",
    "images_per_s": "images/s",
}
FEATURE = "after_neck"  # its mAP and rank-1 are shown
WANTED = "drawing curves needs matplotlib: pip install 'rga-fast[plots]'"


class Curve(NamedTuple):
    """Points of a curve: completed epochs and values, of equal length."""

    x: list[float]
    y: list[float]


def read_curves(run: Path) -> dict[str, Curve]:
    """The curves in a run's `metrics.jsonl`, by the names of `PANELS`: means over the steps of each
    epoch, and every evaluation.

    ValueError: a file without steps.
    """
    source = run / "metrics.jsonl"
    rows = []
    for line in source.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):  # the incomplete last line of a run that was killed
            rows.append(json.loads(line))
    steps: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if "loss" in row:
            steps.setdefault(row["epoch"], []).append(row)
    if not steps:
        raise ValueError(f"{source}: expected rows of steps, got none")
    curves = {name: Curve([], []) for name in PANELS}
    for epoch, of_epoch in sorted(steps.items()):
        for name in ("loss", "lr"):
            _add(curves[name], epoch, float(np.mean([row[name] for row in of_epoch])))
        for name in ("accuracy", "images_per_s"):  # the last row covers the whole epoch
            if name in of_epoch[-1]:
                _add(curves[name], epoch, of_epoch[-1][name])
    for row in rows:
        for name in ("mAP", "rank1"):
            if FEATURE in row:
                _add(curves[name], row["epoch"], row[FEATURE][name])
    return curves


def draw_curves(runs: Mapping[str, Sequence[Path]], target: Path) -> None:
    """Draws loss, learning rate, accuracy, mAP, rank-1 and images/s over the epochs to a PNG file.

    `runs` maps names in the legend to folders of runs; the runs of a name, with different seeds,
    share a colour. ImportError names the extra that is missing; ValueError and OSError as
    `read_curves`.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(WANTED) from error
    curves = {label: [read_curves(run) for run in folders] for label, folders in runs.items()}
    every = [of_run for of_label in curves.values() for of_run in of_label]
    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.subplots(2, 3)
    for axis, (name, title) in zip(axes.flat, PANELS.items(), strict=True):
        for index, (label, of_label) in enumerate(curves.items()):
            style = {"color": f"C{index}", "markersize": 3, "linewidth": 1.5 / len(of_label) ** 0.5}
            for number, of_run in enumerate(of_label):
                marker = "o" if len(of_run[name].x) < 30 else None
                shown = label if number == 0 else None  # once in the legend
                axis.plot(*of_run[name], label=shown, marker=marker, **style)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch", fontsize=9)
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if name != "loss":
            most = max((max(c[name].y, default=0.0) for c in every), default=0.0)
            axis.set_ylim(0, 1.05 * most or 1)
    if len(curves) > 1:
        axes[0, 0].legend()
    write_file(target, lambda path: figure.savefig(path, format="png", dpi=80))


def curves_note(run: Path) -> str:
    """Draws `curves.png` in a run's folder, if matplotlib is installed. Returns a line to print."""
    target = run / "curves.png"
    try:
        draw_curves({run.name: [run]}, target)
    except ImportError as error:
        return str(error)
    return f"its curves: {target}"


def _add(curve: Curve, x: float, y: float) -> None:
    curve.x.append(x)
    curve.y.append(y)
