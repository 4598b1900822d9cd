"""Checkpoints on data sets: features, scores, and verification, as rows for tables and files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rga_fast.reid.checkpoint import Trained, open_trained
from rga_fast.reid.console import console, progress
from rga_fast.reid.data.datasets import ReidData, require_evaluation
from rga_fast.reid.data.images import cache_note
from rga_fast.reid.data.source import open_source
from rga_fast.reid.distributed import Ranks
from rga_fast.reid.retrieval.features import (
    EvalData,
    Features,
    extract_query_gallery,
    open_eval_data,
    score,
)
from rga_fast.reid.retrieval.metrics import RankMetrics
from rga_fast.reid.retrieval.ranking import Rule
from rga_fast.reid.retrieval.rerank import Reranking
from rga_fast.reid.retrieval.verified import Verified, verify

# The fields of a configuration that matter in an evaluation.
FIELDS = (
    *(
        "boxes",
        "train_on_val",
        "pattern",
        "skip_damaged",
        "height",
        "width",
        "cache",
        "cache_folder",
        "workers",
    ),
    *("impl", "eval_batch", "device"),
)


class Options(NamedTuple):
    """What is computed from the features. false_accept: of the threshold, with `verification`."""

    flip: bool = False
    rerank: Reranking | None = None
    rule: Rule = Rule()
    verification: bool = False
    false_accept: float = 1e-4


class Evaluation(NamedTuple):
    """A checkpoint on a data set. reranked, verified: by feature, None unless asked for."""

    checkpoint: Path
    epoch: int
    data: str
    paths: tuple[str, ...]
    options: Options
    scores: dict[str, RankMetrics]
    reranked: dict[str, RankMetrics] | None
    verified: dict[str, Verified] | None

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        fields: dict[str, Any] = self._origin() | {"paths": list(self.paths)}
        fields |= {name: metrics._asdict() for name, metrics in self.scores.items()}
        if self.reranked is not None:
            again = {name: metrics._asdict() for name, metrics in self.reranked.items()}
            fields["reranked"] = again | {"with": list(self.options.rerank or ())}
        if self.verified is not None:
            fields["verification"] = {name: v.as_dict() for name, v in self.verified.items()}
        return fields

    def rows(self) -> list[dict[str, Any]]:
        """For a CSV file: one for each feature, without and with re-ranking."""
        moments = {"": self.scores}
        if self.reranked is not None:
            moments[",".join(map(str, self.options.rerank or ()))] = self.reranked
        return [
            self._origin() | {"rerank": rerank, "feature": name, **metrics._asdict()}
            for rerank, scores in moments.items()
            for name, metrics in scores.items()
        ]

    def _origin(self) -> dict[str, Any]:
        options = self.options
        return {
            **{"checkpoint": str(self.checkpoint), "epoch": self.epoch, "data": self.data},
            **{"flip": options.flip, "keep_same_camera": options.rule.keep_same_camera},
        }


def csv_text(evaluations: Sequence[Evaluation]) -> str:
    """Their rows as a CSV file with a header."""
    rows = [row for evaluation in evaluations for row in evaluation.rows()]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class Evaluator:
    """Evaluates checkpoints one after the other; what they share is opened once.

    Args:
        fields: of the configurations, to replace; some of `FIELDS`.
        ranks: they share the extraction of features; only rank 0 has results.
    """

    def __init__(self, options: Options, fields: dict[str, Any], ranks: Ranks) -> None:
        unknown = sorted(fields.keys() - set(FIELDS))
        if unknown:
            raise ValueError(
                f"evaluate: the field {unknown[0]!r} has no effect on an evaluation; those that "
                f"have are {', '.join(FIELDS)}"
            )
        self.options, self.ranks, self._fields = options, ranks, fields
        self._sources: dict[Any, ReidData] = {}
        self._images: tuple[Any, EvalData] | None = None
        self.latest: tuple[ReidData, Features, Features] | None = None  # what was evaluated

    def run(self, checkpoint: Path, paths: Sequence[str | None]) -> list[Evaluation]:
        """A checkpoint on each data set; None is that of the training.

        Raises:
            FileNotFoundError, ValueError: as `open_trained` and `open_source`; ValueError, too,
                where no query is valid.
        """
        trained = open_trained(checkpoint, **self._fields)
        return [
            found
            for path in paths
            if (found := self._evaluate(checkpoint, trained, path)) is not None
        ]

    def _evaluate(self, checkpoint: Path, trained: Trained, path: str | None) -> Evaluation | None:
        config, options = trained.config, self.options
        named = config.data if path is None else path
        listed = (named,) if isinstance(named, str) else tuple(named or ())
        images = self._open(trained, listed)
        query, gallery = extract_query_gallery(
            trained.network,
            images,
            batch_size=config.eval_batch,
            device=next(trained.network.parameters()).device,
            workers=config.readers,
            ranks=self.ranks,
            flip=options.flip,
        )
        if not self.ranks.main:
            return None
        data = images.data
        self.latest = data, query, gallery
        reranked = verified = None
        try:
            scores = score(data, query, gallery, rule=options.rule)
            if options.rerank is not None:
                reranked = score(data, query, gallery, options.rerank, options.rule)
            if options.verification:
                verified = verify(
                    data, query, gallery, options.rule, options.false_accept, options.flip
                )
        except ValueError as error:
            raise ValueError(f"{', '.join(listed) or data.name}: {error}") from error
        return Evaluation(
            checkpoint, trained.epoch, data.name, listed, options, scores, reranked, verified
        )

    def _open(self, trained: Trained, paths: tuple[str, ...]) -> EvalData:
        config = trained.config
        source = (paths, *config.reading.values())
        if source not in self._sources:
            with self.ranks.main_first():
                self._sources[source] = open_source(paths or None, **config.reading)
            if not self.options.rule.keep_same_camera:
                require_evaluation(self._sources[source])
            self.ranks.check_same("data set", self._sources[source].counts())
        key = (source, config.size, config.cache, config.cache_folder)
        if self._images is None or self._images[0] != key:
            self._images = None  # before the next one is read: two might not fit
            data = self._sources[source]
            if config.cache == "memory":
                splits = (data.query, data.gallery)
                console.print(cache_note(config.cache, splits, config.size, self.ranks.world))
            with progress("decoding images") as bar:
                images = open_eval_data(
                    data,
                    config.size,
                    cache=config.cache,
                    folder=config.cache_folder,
                    progress=bar,
                )
            self._images = key, images
        return self._images[1]
