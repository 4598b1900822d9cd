"""`rga-fast data`: what a folder holds, and what is wrong with it."""

from __future__ import annotations

import argparse

HELP = "recognise a data set, count it, and report what is wrong"


def add_options(verb: argparse.ArgumentParser) -> None:
    from rga_fast.reid.data.datasets.cuhk03 import BOXES

    verb.epilog = (
        "The status is 1 if the data cannot be used or compared: it cannot be read, a count is "
        "not the published one, no query is valid, an image is damaged (--decode). Remarks leave "
        "it 0."
    )
    verb.add_argument("paths", nargs="+", metavar="PATH", help="several are also shown joined")
    verb.add_argument("--boxes", choices=BOXES, help="of CUHK03")
    verb.add_argument(
        "--without-val",
        action="store_true",
        help="do not train on MSMT17's validation images; by default they are training images",
    )
    verb.add_argument(
        "--pattern",
        metavar="REGEX",
        help="for names of images: '(?P<identity>\\d{4})(?P<camera>\\d{3})', as for train",
    )
    verb.add_argument("--decode", action="store_true", help="open every image, too")


def run(options: argparse.Namespace) -> int:
    from rga_fast.reid.console import console, progress
    from rga_fast.reid.data.check import check_dataset
    from rga_fast.reid.data.datasets import join_training
    from rga_fast.reid.data.tables import dataset_table

    datasets, wrong = [], False
    for path in options.paths:
        with progress(f"decoding {path}") as bar:
            dataset, right = check_dataset(
                path,
                boxes=options.boxes,
                train_on_val=not options.without_val,
                pattern=options.pattern,
                decode=options.decode,
                progress=bar,
            )
        datasets.append(dataset)
        wrong |= not right
    if len(datasets) > 1:
        console.print(dataset_table(join_training(datasets)))
    return int(wrong)
