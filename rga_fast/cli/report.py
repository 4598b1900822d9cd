"""`rga-fast report`: one HTML file about a run, or about two."""

from __future__ import annotations

import argparse
from pathlib import Path

from rga_fast import dispatch

HELP = "an HTML page about a run: curves, scores, rank lists, attention"


def add_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("first", type=Path, metavar="RUN", help="the folder of a run")
    verb.add_argument("second", type=Path, nargs="?", metavar="RUN", help="a second one, beside it")
    verb.add_argument("--data", metavar="PATH", help="a data set; without it: that of the training")
    verb.add_argument(
        "--out", type=Path, metavar="FILE", help="the page; without it: report.html in RUN"
    )
    verb.add_argument("--impl", choices=dispatch.ARGUMENTS, default="auto")


def run(options: argparse.Namespace) -> None:
    from rga_fast.reid.console import console
    from rga_fast.reid.files import check_outputs, size_text
    from rga_fast.reid.report import charts
    from rga_fast.reid.report.evaluated import evaluate_run, names_of
    from rga_fast.reid.report.page import write_report

    charts.require()
    folders = [options.first] if options.second is None else [options.first, options.second]
    target = options.first / "report.html" if options.out is None else options.out
    if options.out is not None:
        check_outputs([target])
    runs = [
        evaluate_run(folder, name=name, data=options.data, impl=options.impl)
        for folder, name in zip(folders, names_of(folders), strict=True)
    ]
    write_report(runs, target)
    console.print(f"report: {target} ({size_text(target.stat().st_size)})", markup=False)
