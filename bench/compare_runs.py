"""Several runs in one picture, and their last numbers in a table.

    python bench/compare_runs.py runs/reference runs/fused --png curves.png

Needs matplotlib for the picture (`pip install 'rga-fast[plots]'`).
"""

import argparse
import json
import sys
from pathlib import Path

import common

from rga_fast.reid.curves import FEATURE, draw_curves, read_curves


def numbers(run: Path) -> list[str]:
    """Seconds per run, images/s of its best epoch, loss of the last one, mAP and rank-1."""
    curves = read_curves(run)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    after = summary["after"][FEATURE]
    return [
        run.name,
        f"{summary['seconds']:.0f}",
        f"{max(curves['images_per_s'].y):.0f}",
        f"{curves['loss'].y[-1]:.3f}",
        *(f"{100 * after[name]:.1f}" for name in ("mAP", "rank1")),
    ]


def main(arguments: list[str] | None = None) -> int:
    description, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the curves here")
    args = parser.parse_args(arguments)
    columns = ["", "seconds", "images/s", "loss", "mAP", "rank-1"]
    lines = [numbers(run) for run in args.runs]
    common.print_table("runs", columns, lines, f"after the last epoch; feature {FEATURE}")
    if args.png:
        draw_curves({run.name: run for run in args.runs}, args.png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
