"""`rga-fast export`: a trained network as a file for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "a trained network as ONNX, TorchScript, torch.export archive or AOTInductor package"
FORMATS = ("onnx", "torchscript", "pt2", "aoti")


def add_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("source", type=Path, metavar="RUN", help="a run's folder, or a checkpoint")
    verb.add_argument("--format", choices=FORMATS, default="onnx", help="onnx by default")
    verb.add_argument(
        "--out", type=Path, metavar="FILE", help="in the run's folder by default: model.onnx, ..."
    )
    verb.add_argument(
        "--int8",
        choices=("static", "dynamic"),
        help="quantise (onnx only); prints the mAP it costs",
    )
    verb.add_argument(
        "--max-loss",
        type=float,
        default=2.0,
        metavar="MAP",
        help="most mAP, in points, that quantisation may cost (2)",
    )
    verb.add_argument(
        "--data",
        metavar="PATH",
        help="images on which the file is compared with the network; without it: those of the "
        "training",
    )
    verb.add_argument(
        "--images", type=int, default=256, metavar="N", help="about how many of them (256)"
    )


def run(options: argparse.Namespace) -> None:
    from rga_fast.reid.checkpoint import find_checkpoint, open_trained
    from rga_fast.reid.console import console
    from rga_fast.reid.data.source import open_source
    from rga_fast.reid.export.formats import FORMATS as WRITTEN
    from rga_fast.reid.export.write import export_network
    from rga_fast.reid.files import size_text

    if options.images < 1:
        raise ValueError(f"--images must be at least 1, got {options.images}")
    checkpoint = find_checkpoint(options.source)
    trained = open_trained(checkpoint, "cpu", impl="auto")
    config = trained.config
    paths = config.data if options.data is None else options.data
    data = open_source(paths, boxes=config.boxes, train_on_val=config.train_on_val)
    folder = options.source if options.source.is_dir() else checkpoint.parent
    ending = f"-int8-{options.int8}" if options.int8 else ""
    path = options.out or folder / f"model{ending}{WRITTEN[options.format].suffix}"
    rows = export_network(
        trained,
        data,
        path,
        options.format,
        quantise=options.int8,
        images=options.images,
        most_lost=options.max_loss / 100,
    )
    console.print(f"compared with the network on images of {data.name}:", markup=False)
    for row in rows:
        console.print(f"  {row}", markup=False, highlight=False)
    console.print(f"{path}: {size_text(path.stat().st_size)}", markup=False)
