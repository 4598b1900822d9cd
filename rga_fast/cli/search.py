"""`rga-fast search`: who is this? The nearest images of an index."""

from __future__ import annotations

import argparse
from pathlib import Path

from rga_fast import dispatch

HELP = "find the nearest images of an index"


def add_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("index", type=Path, metavar="INDEX")
    verb.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    verb.add_argument("-k", type=int, default=10, metavar="N", help="matches of an image (10)")
    verb.add_argument(
        "--camera", action="append", default=[], metavar="NAME", help="only of these cameras"
    )
    verb.add_argument("--from", dest="begin", metavar="TIME", help="as 2026-01-31T14:25:30")
    verb.add_argument("--to", dest="end", metavar="TIME")
    verb.add_argument("--approximate", action="store_true", help="with FAISS, see index")
    verb.add_argument("--png", type=Path, metavar="FILE", help="draw the matches")
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the matches to a file")
    verb.add_argument(
        "--checkpoint", type=Path, metavar="PATH", help="by default the network of the index"
    )
    verb.add_argument("--impl", choices=dispatch.ARGUMENTS, default="auto")


def run(options: argparse.Namespace) -> None:
    import json

    from rga_fast.reid.console import console
    from rga_fast.reid.files import write_file
    from rga_fast.reid.retrieval.index.record import check_same_model, open_network
    from rga_fast.reid.retrieval.index.search import Filter, Index
    from rga_fast.reid.retrieval.index.sheet import match_sheet
    from rga_fast.reid.retrieval.index.tables import match_table, verdict
    from rga_fast.reid.retrieval.model import load

    index = Index(options.index)
    manifest = index.manifest
    if options.checkpoint is None:
        model = open_network(index.folder, manifest, impl=options.impl)
    else:
        model = load(
            options.checkpoint, impl=options.impl, feature=manifest.feature, flip=manifest.flip
        )
        check_same_model(index.folder, manifest, model)
    where = Filter(tuple(options.camera), options.begin, options.end)
    features = model.features(options.images)
    found = index.search(features, options.k, where, exact=not options.approximate)
    for image, matches in zip(options.images, found, strict=True):
        console.print(match_table(str(image), matches, index.threshold))
        console.print(verdict(matches, index.threshold))
    if options.png is not None:
        sheet = match_sheet(options.images, found, index.images, index.threshold)
        write_file(options.png, lambda partial: sheet.save(partial, format="PNG"))
    if options.json is not None:
        rows = [
            {"image": str(image), "matches": [match._asdict() for match in matches]}
            for image, matches in zip(options.images, found, strict=True)
        ]
        write_file(options.json, json.dumps(rows, indent=2) + "\n")
