"""A finished run and its evaluation, from which everything in a report follows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rga_fast.reid.checkpoint import find_checkpoint, open_trained
from rga_fast.reid.config import Config
from rga_fast.reid.console import progress
from rga_fast.reid.data.datasets import require_evaluation
from rga_fast.reid.data.source import open_source
from rga_fast.reid.network.reidnet import ReidNet
from rga_fast.reid.report.curves import FEATURE, Curve, read_curves
from rga_fast.reid.retrieval.features import (
    FEATURES,
    EvalData,
    Ranked,
    extract_query_gallery,
    open_eval_data,
    rank_feature,
)
from rga_fast.reid.retrieval.metrics import QueryScores, query_scores, summary
from rga_fast.reid.retrieval.verification import Pairs, count_pairs


class Evaluated(NamedTuple):
    """A run, evaluated: cosine distance, the rules of Market-1501.

    `scores` are those of both features; `ranked` and `pairs` those of `FEATURE`, which curves,
    lists and histograms show. `curves` and `summary` are empty where the run has no record.
    """

    name: str
    config: Config
    epoch: int
    network: ReidNet
    images: EvalData
    scores: dict[str, QueryScores]
    ranked: Ranked
    pairs: Pairs
    curves: dict[str, Curve]
    summary: dict[str, Any]

    def same_task(self, other: Evaluated) -> bool:
        """Whether both rank the same images for the same queries."""
        ours, theirs = self.images.data, other.images.data
        return all(
            getattr(ours, split).paths == getattr(theirs, split).paths
            and (getattr(ours, split).identities == getattr(theirs, split).identities).all()
            and (getattr(ours, split).cameras == getattr(theirs, split).cameras).all()
            for split in ("query", "gallery")
        )


def names_of(runs: Sequence[Path]) -> list[str]:
    """The names of folders, with those of the folders around them where they would be equal.

    Raises:
        ValueError: for the same folder twice.
    """
    parts = [run.resolve().parts for run in runs]
    if len(set(parts)) < len(parts):
        raise ValueError(f"report: expected different runs, got {runs[0]} twice")
    length = 1
    while len({part[-length:] for part in parts}) < len(parts):
        length += 1
    return ["/".join(part[-length:]) for part in parts]


def evaluate_run(
    run: Path, *, name: str | None = None, data: str | None = None, impl: str = "auto"
) -> Evaluated:
    """Evaluates the newest checkpoint of a run.

    Args:
        run: the folder that `rga-fast train` wrote.
        name: in the report; that of the folder if None.
        data: a data set; that of the training if None.
        impl: implementation of RGA.

    Raises:
        FileNotFoundError, NotADirectoryError: for a folder that is no run, or a data set that is
            missing.
        ValueError: for a damaged checkpoint or data set, and where no query is valid.
    """
    name = names_of([run])[0] if name is None else name
    if run.exists() and not run.is_dir():
        raise NotADirectoryError(f"{run}: expected the folder of a run, got a file")
    if not run.exists():
        raise FileNotFoundError(f"{run}: no such folder")
    network, config, epoch = open_trained(find_checkpoint(run), impl=impl)
    try:
        found = open_source(config.data if data is None else data, **config.reading)
    except OSError as error:
        where = "; --data names another place" if data is None else ""
        raise FileNotFoundError(f"the data set of {name}: {error}{where}") from error
    require_evaluation(found)
    with progress(f"{name}: decoding images") as bar:
        images = open_eval_data(
            found, config.size, cache=config.cache, folder=config.cache_folder, progress=bar
        )
    query, gallery = extract_query_gallery(
        network,
        images,
        batch_size=config.eval_batch,
        device=next(network.parameters()).device,
        workers=config.readers,
    )
    scores = {}
    for feature in sorted(FEATURES, key=lambda feature: feature == FEATURE):  # `FEATURE` is last
        ranked = rank_feature(found, getattr(query, feature), getattr(gallery, feature))
        scores[feature] = query_scores(ranked.ranking)
        summary(scores[feature])  # raises where no query is valid
    return Evaluated(
        *(name, config, epoch, network, images, scores),
        *(ranked, count_pairs(*ranked), _curves(run), _summary(run)),
    )


def _curves(run: Path) -> dict[str, Curve]:
    try:
        return read_curves(run)
    except FileNotFoundError:
        return {}


def _summary(run: Path) -> dict[str, Any]:
    """Of a run that has ended; one that still runs has none yet."""
    try:
        return json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
