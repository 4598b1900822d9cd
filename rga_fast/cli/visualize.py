"""`rga-fast visualize`: pictures of what a network attends to."""

from __future__ import annotations

import argparse
from pathlib import Path

from rga_fast import dispatch

HELP = "pictures of the attention, affinities, Grad-CAM and channels of images"


def add_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint, or the folder of a run"
    )
    verb.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    verb.add_argument(
        "--baseline", type=Path, metavar="CHECKPOINT", help="its Grad-CAM is drawn beside"
    )
    verb.add_argument(
        "--target",
        type=_target,
        action="append",
        metavar="Y,X",
        help="a position whose affinities are drawn, from 0,0 (top left) to 1,1; several are "
        "allowed; without it: chest, legs and background",
    )
    verb.add_argument(
        "--out",
        type=Path,
        default=Path("pictures"),
        metavar="DIR",
        help="folder for the pictures and index.html; default: pictures",
    )
    verb.add_argument("--impl", choices=dispatch.ARGUMENTS, default="auto")


def run(options: argparse.Namespace) -> None:
    from rga_fast.reid.checkpoint import find_checkpoint, open_trained
    from rga_fast.reid.console import console
    from rga_fast.reid.report.charts import require
    from rga_fast.reid.report.visualize import TARGETS, visualize

    require()
    network, config, epoch = open_trained(find_checkpoint(options.checkpoint), impl=options.impl)
    baseline = None
    if options.baseline is not None:
        baseline = open_trained(find_checkpoint(options.baseline), impl=options.impl).network
    notes = visualize(
        network,
        options.images,
        options.out,
        name=f"{config.attention if network.attention else 'no attention'}, epoch {epoch}",
        baseline=baseline,
        targets=options.target or TARGETS,
    )
    for note in notes:
        console.print(note, markup=False)
    console.print(f"pictures: {options.out / 'index.html'}", markup=False)


def _target(text: str) -> tuple[float, float]:
    try:
        y, x = (float(part) for part in text.split(","))
    except ValueError:
        y = x = -1.0
    if not (0 <= y <= 1 and 0 <= x <= 1):
        raise argparse.ArgumentTypeError(
            f"expected Y,X, two numbers from 0 to 1, such as 0.35,0.5, got {text!r}"
        )
    return y, x
