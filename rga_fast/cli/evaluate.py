"""`rga-fast evaluate`: scores of a checkpoint on a data set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rga_fast import dispatch

HELP = "rank-k, mAP and mINP of a checkpoint"


def add_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    verb.add_argument("--data", metavar="PATH", help="a data set; without it: that of the training")
    verb.add_argument(
        "--flip", action="store_true", help="average the features of image and mirror image"
    )
    verb.add_argument(
        "--rerank",
        action="store_const",
        const="20,6,0.3",
        help="also after k-reciprocal re-ranking with k1 20, k2 6 and lambda 0.3",
    )
    verb.add_argument(
        "--rerank-with", dest="rerank", metavar="K1,K2,LAMBDA", help="the same with other numbers"
    )
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the scores to a file")
    verb.add_argument(
        "--features",
        type=Path,
        metavar="FILE",
        help="write features and labels to a file (.safetensors)",
    )
    verb.add_argument("--impl", choices=dispatch.ARGUMENTS, default="auto")


def run(options: argparse.Namespace) -> None:
    import json

    from rga_fast.reid.checkpoint import open_trained
    from rga_fast.reid.console import console, progress
    from rga_fast.reid.data.datasets import require_evaluation
    from rga_fast.reid.data.images import cache_note
    from rga_fast.reid.data.source import open_source
    from rga_fast.reid.files import write_file
    from rga_fast.reid.retrieval import features
    from rga_fast.reid.retrieval.rerank import Reranking
    from rga_fast.reid.retrieval.tables import metrics_table, skipped_note

    rerank = None if options.rerank is None else Reranking.parse(options.rerank)
    network, config, epoch = open_trained(options.checkpoint, impl=options.impl)
    paths = config.data if options.data is None else options.data
    data = open_source(paths, **config.reading)
    require_evaluation(data)
    if config.cache == "memory":
        console.print(cache_note(config.cache, (data.query, data.gallery), config.size))
    with progress("decoding images") as bar:
        images = features.open_eval_data(
            data, config.size, cache=config.cache, folder=config.cache_folder, progress=bar
        )
    query, gallery = features.extract_query_gallery(
        network,
        images,
        batch_size=config.eval_batch,
        device=next(network.parameters()).device,
        workers=config.readers,
        flip=options.flip,
    )
    scores = features.score(data, query, gallery)
    moments = {f"epoch {epoch}": scores}
    if rerank is not None:
        moments["re-ranked"] = features.score(data, query, gallery, rerank)
    console.print(metrics_table(f"{data.name}, {skipped_note(scores)}", moments))
    if options.json is not None:
        rows: dict[str, Any] = {name: metrics._asdict() for name, metrics in scores.items()}
        if rerank is not None:
            again = moments["re-ranked"].items()
            rows["reranked"] = {name: metrics._asdict() for name, metrics in again}
        write_file(options.json, json.dumps(rows, indent=2) + "\n")
    if options.features is not None:
        features.save_features(options.features, data, query, gallery)
