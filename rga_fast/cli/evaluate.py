"""`rga-fast evaluate`: scores of checkpoints on data sets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rga_fast import dispatch

if TYPE_CHECKING:
    from rga_fast.reid.retrieval.evaluation import Evaluation, Evaluator

HELP = "rank-k, mAP and mINP of checkpoints; verification"


def add_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="the folder of a run (its newest checkpoint) or a checkpoint; then, if any, "
        "field=value such as eval_batch=256",
    )
    verb.set_defaults(more="runs")
    verb.add_argument(
        "--data",
        action="append",
        metavar="PATH",
        help="a data set, may be repeated; without it: that of the training",
    )
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
    verb.add_argument(
        "--keep-same-camera",
        action="store_true",
        help="matches under the query's own camera count, too: for data of one camera",
    )
    verb.add_argument(
        "--verification",
        action="store_true",
        help="also ROC, equal error rate, search for people who are not in the gallery; chooses a "
        "threshold for the same person and stores it beside the checkpoint",
    )
    verb.add_argument(
        "--far",
        type=float,
        default=1e-4,
        metavar="RATE",
        help="share of pairs of two people that this threshold may accept (default 0.0001)",
    )
    verb.add_argument("--json", type=Path, metavar="FILE", help="write everything to a file")
    verb.add_argument("--csv", type=Path, metavar="FILE", help="write the scores to a file")
    verb.add_argument(
        "--features",
        type=Path,
        metavar="FILE",
        help="write features and labels to a file (.safetensors)",
    )
    verb.add_argument("--device", default="auto", help="auto (default): cuda if there is one")
    verb.add_argument("--impl", choices=dispatch.ARGUMENTS, default="auto")


def field_names() -> tuple[str, ...]:
    """What can be set as field=value."""
    from rga_fast.reid.retrieval.evaluation import FIELDS

    return FIELDS


def run(options: argparse.Namespace) -> None:
    from rga_fast.reid.checkpoint import find_checkpoint
    from rga_fast.reid.config import parse_assignments
    from rga_fast.reid.console import console
    from rga_fast.reid.distributed import joined, pick_device
    from rga_fast.reid.files import check_outputs
    from rga_fast.reid.retrieval.evaluation import Evaluator, Options
    from rga_fast.reid.retrieval.ranking import Rule
    from rga_fast.reid.retrieval.rerank import Reranking
    from rga_fast.reid.retrieval.tables import (
        evaluation_lines,
        evaluation_table,
        verification_table,
    )

    runs, assignments = _divided(options.runs)
    paths = options.data or [None]
    if options.features is not None and len(runs) * len(paths) > 1:
        raise ValueError("--features takes one checkpoint and one data set")
    if not 0 < options.far < 1:
        raise ValueError(f"--far must be above 0 and below 1, got {options.far}")
    wanted = Options(
        options.flip,
        None if options.rerank is None else Reranking.parse(options.rerank),
        Rule(keep_same_camera=options.keep_same_camera),
        options.verification,
        options.far,
    )
    fields = {"device": options.device, "impl": options.impl} | parse_assignments(assignments)
    with joined(pick_device(str(fields["device"]))) as ranks:
        evaluator = Evaluator(wanted, fields, ranks)
        if ranks.main:
            check_outputs([p for p in (options.json, options.csv, options.features) if p])
        checkpoints = [find_checkpoint(run) for run in runs]
        found = [row for path in checkpoints for row in evaluator.run(path, paths)]
        if not ranks.main:
            return
        _write(options, evaluator, found)
        for line in evaluation_lines(found):
            console.print(line, markup=False)
        console.print(evaluation_table(found))
        if options.verification:
            console.print(verification_table(found))
            for path in checkpoints:
                _store(next(row for row in found if row.checkpoint == path))


def _divided(texts: list[str]) -> tuple[list[str], list[str]]:
    """Runs, and field=value; a path may hold the sign, too."""
    fields = [text for text in texts if text.partition("=")[0].isidentifier() and "=" in text]
    fields = [text for text in fields if not Path(text).exists()]
    return [text for text in texts if text not in fields], fields


def _write(options: argparse.Namespace, evaluator: Evaluator, found: list[Evaluation]) -> None:
    from rga_fast.reid.files import json_text, write_file
    from rga_fast.reid.retrieval.evaluation import csv_text
    from rga_fast.reid.retrieval.features import save_features

    if options.json is not None:
        write_file(options.json, json_text([row.as_dict() for row in found]))
    if options.csv is not None:
        write_file(options.csv, csv_text(found))
    if options.features is not None and evaluator.latest is not None:
        save_features(options.features, *evaluator.latest)


def _store(row: Evaluation) -> None:
    """The threshold of the first data set, beside the checkpoint."""
    from rga_fast.reid.console import console
    from rga_fast.reid.retrieval.tables import threshold_note
    from rga_fast.reid.retrieval.threshold import save_threshold, threshold_path

    assert row.verified is not None
    verified = row.verified["after_neck"]
    console.print(threshold_note(verified.threshold, verified.mistaken), markup=False)
    try:
        save_threshold(row.checkpoint, verified.threshold)
        console.print(f"Stored in {threshold_path(row.checkpoint)}", markup=False)
    except OSError as error:
        console.print(f"Not stored beside the checkpoint: {error}", markup=False)
