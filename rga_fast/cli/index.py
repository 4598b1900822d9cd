"""`rga-fast index`: the features of a gallery in a folder, to be searched."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rga_fast import dispatch

if TYPE_CHECKING:
    import torch

    from rga_fast.reid.distributed import Ranks
    from rga_fast.reid.retrieval.model import ReidModel

HELP = "make an index of images to search, or bring it up to date"


def add_options(verb: argparse.ArgumentParser) -> None:
    from rga_fast.reid.data.datasets import SPLITS
    from rga_fast.reid.retrieval.features import FEATURES
    from rga_fast.reid.retrieval.index.approximate import KINDS

    verb.add_argument(
        "source",
        type=Path,
        metavar="FOLDER",
        help="images in any subfolders, a data set, or a CSV file with the column path and any of "
        "identity, camera, time, split",
    )
    verb.add_argument(
        "--checkpoint",
        type=Path,
        metavar="PATH",
        help="the network: a checkpoint or a run's folder; without it that of the index",
    )
    verb.add_argument("--out", type=Path, metavar="INDEX", help="by default FOLDER.index, here")
    verb.add_argument(
        "--split", choices=(*SPLITS, "all"), help="of a data set; by default its gallery"
    )
    verb.add_argument("--feature", choices=FEATURES, help="by default that of the threshold")
    verb.add_argument(
        "--flip", action="store_true", default=None, help="average image and mirror image"
    )
    verb.add_argument("--batch-size", type=int, metavar="N", help="images at a time")
    verb.add_argument(
        "--remove",
        action="append",
        metavar="PATTERN",
        help="only remove the images whose paths match, such as 'alice/*'",
    )
    verb.add_argument(
        "--approximate", choices=KINDS, help="also for approximate search, with FAISS"
    )
    verb.add_argument("--impl", choices=dispatch.ARGUMENTS, default="auto")


def run(options: argparse.Namespace) -> None:
    from rga_fast.reid.console import console
    from rga_fast.reid.distributed import joined, pick_device
    from rga_fast.reid.retrieval.index.build import add_approximate, remove_images

    if options.batch_size is not None and options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {options.batch_size}")
    out = options.out or Path(f"{options.source.resolve().stem}.index")
    if options.remove:
        console.print(f"{out}: removed {remove_images(out, options.remove):,} images")
        return
    device = pick_device("auto")
    with joined(device) as ranks:
        _build(options, out, device, ranks)
        if options.approximate and ranks.main:
            recall = add_approximate(out, options.approximate)
            console.print(
                f"approximate search ({options.approximate}) finds {recall:.1%} of the 10 nearest "
                "images, of 200 images of the gallery"
            )


def _build(options: argparse.Namespace, out: Path, device: torch.device, ranks: Ranks) -> None:
    import time

    from rga_fast.reid.console import console, progress
    from rga_fast.reid.retrieval.index.build import build_index

    model = _model(options, out, device)
    began = time.monotonic()
    with progress("indexing") as bar:
        changes = build_index(
            model,
            options.source,
            out,
            split=options.split,
            batch_size=options.batch_size,
            ranks=ranks,
            progress=bar,
        )
    seconds = time.monotonic() - began
    console.print(
        f"{out}: {changes.added + changes.kept:,} images, {changes.added:,} of them new, "
        f"{changes.removed:,} removed, in {seconds:.1f} s"
    )
    for error in changes.skipped[:5]:
        console.print(f"skipped: {error}", markup=False)
    if len(changes.skipped) > 5:
        console.print(f"skipped: {len(changes.skipped) - 5:,} more")


def _model(options: argparse.Namespace, out: Path, device: torch.device) -> ReidModel:
    """The network that was named, with the feature of the index, else that of the threshold."""
    from rga_fast.reid.retrieval.index.record import NETWORK
    from rga_fast.reid.retrieval.index.store import MANIFEST, read_manifest
    from rga_fast.reid.retrieval.model import find_checkpoint, load
    from rga_fast.reid.retrieval.threshold import load_threshold

    exists = (out / MANIFEST).exists()
    if options.checkpoint is None and not exists:
        raise ValueError("--checkpoint PATH is needed to make a new index")
    checkpoint = find_checkpoint(options.checkpoint or out / NETWORK)
    decides = read_manifest(out) if exists else load_threshold(checkpoint)
    feature = options.feature or (decides.feature if decides else "after_neck")
    flip = options.flip if options.flip is not None else bool(decides and decides.flip)
    return load(checkpoint, device=device, impl=options.impl, feature=feature, flip=flip)
