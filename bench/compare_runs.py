"""Several runs in one picture, and their last numbers in a table.

    python bench/compare_runs.py runs/reference-0 runs/reference-1 runs/fused-0 runs/fused-1 \\
        --png curves.png --json rows.json

Runs whose names differ by their seed alone are one line of the second table, and have one colour.
Needs matplotlib for the picture (`pip install 'rga-fast[plots]'`).
"""

import json
import statistics
import sys
from pathlib import Path

import common
import torch

from rga_fast.reid.config import Config
from rga_fast.reid.report.curves import FEATURE, draw_curves, read_curves

MEASURED = ("mAP", "rank1")


def run_row(run: Path) -> common.Row:
    """The last numbers of a run; speed is that of its best epoch."""
    config, curves = Config.load(run / "config.yaml"), read_curves(run)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    batch = config.identities_per_batch * config.images_per_identity
    speed = max(curves["images_per_s"].y)
    row = {
        **dict.fromkeys(common.FIELDS),
        "op": f"run {run.name.removesuffix(f'-{config.seed}')}",
        "impl": config.impl,
        "pass": "train",
        "shape": [batch, 3, *config.size],
        "dtype": "float32" if config.amp == "off" else config.amp,
        "layout": "channels-last" if config.channels_last else "contiguous",
        "batch": batch,
        "ms": batch / speed * 1e3,
        "images_per_s": speed,
        "seed": config.seed,
        "epochs": config.epochs,
        "loss": curves["loss"].y[-1],
        **{name: summary["after"][FEATURE][name] for name in MEASURED},
    }
    return common.finish_row(row, torch.device(summary["device"]))


def show(rows: list[common.Row]) -> None:
    columns = ["", "seed", "epochs", "images/s", "loss", "mAP", "rank-1"]
    lines = [
        [
            *(str(row[name]) for name in ("op", "seed", "epochs")),
            f"{row['images_per_s']:.0f}",
            f"{row['loss']:.3f}",
            *(f"{100 * row[name]:.1f}" for name in MEASURED),
        ]
        for row in rows
    ]
    where = f"after the last epoch; feature {FEATURE}; images/s of the best epoch"
    common.print_table("runs", columns, lines, where)


def show_seeds(rows: list[common.Row]) -> None:
    """Mean and standard deviation over the seeds of each kind of run that has several."""
    lines = []
    for op in dict.fromkeys(row["op"] for row in rows):
        of_op = [row for row in rows if row["op"] == op]
        if len(of_op) < 2:
            continue
        values = [[100 * row[name] for row in of_op] for name in MEASURED]
        spread = (f"{statistics.mean(v):.1f} \u00b1 {statistics.stdev(v):.1f}" for v in values)
        lines.append([op, str(len(of_op)), *spread])
    if lines:
        columns = ["", "seeds", "mAP", "rank-1"]
        common.print_table("over the seeds", columns, lines, "mean \u00b1 standard deviation, %")


def main(arguments: list[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the curves here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    args = parser.parse_args(arguments)
    rows = [run_row(run) for run in args.runs]
    show(rows)
    show_seeds(rows)
    if args.json:
        common.write_json(args.json, rows)
    if args.png:
        named: dict[str, list[Path]] = {}
        for row, run in zip(rows, args.runs, strict=True):
            named.setdefault(row["op"].removeprefix("run "), []).append(run)
        draw_curves(named, args.png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
