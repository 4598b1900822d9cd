"""`rga-fast synth`: synthetic people, written as a data set."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write a synthetic data set in the Market-1501 layout"


def add_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("out", type=Path, metavar="OUT")
    verb.add_argument("--identities", type=int, default=240, metavar="N")
    verb.add_argument("--seed", type=int, default=0, metavar="S")


def run(options: argparse.Namespace) -> None:
    from rga_fast.reid.console import console, progress
    from rga_fast.reid.data.datasets import open_dataset
    from rga_fast.reid.data.tables import dataset_table
    from rga_fast.reid.synth import contact_sheet, write_dataset

    with progress("drawing") as bar:
        write_dataset(options.out, options.identities, seed=options.seed, progress=bar)
    sheet = options.out / "contact_sheet.jpg"
    contact_sheet(options.out).save(sheet, quality=90)
    console.print(dataset_table(open_dataset(options.out)))
    console.print(f"some of these people: {sheet}")
