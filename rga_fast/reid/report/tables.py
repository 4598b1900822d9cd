"""The tables of a report, of one run or of several that rank the same images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from rga_fast.reid.config import Config
from rga_fast.reid.field import fields_of
from rga_fast.reid.report.curves import FEATURE
from rga_fast.reid.report.evaluated import Evaluated
from rga_fast.reid.retrieval.breakdown import (
    CameraPairScores,
    bootstrap,
    bootstrap_difference,
    by_identity,
)
from rga_fast.reid.retrieval.metrics import summary
from rga_fast.reid.retrieval.tables import FEATURE_NAMES, METRICS
from rga_fast.reid.retrieval.verification import (
    at_false_accept,
    equal_error,
    identification,
    roc,
)
from rga_fast.reid.retrieval.verified import PAIR_RATES, SEARCH_RATES


class Cell(NamedTuple):
    """What is shown, and the number it is sorted by; text where that is None."""

    text: str
    value: float | None = None


class Table(NamedTuple):
    """A table that can be sorted and filtered."""

    name: str
    title: str
    headers: list[str]
    rows: list[list[Cell]]


def metrics_table(runs: Sequence[Evaluated]) -> Table:
    """The scores of both features with 95 % intervals. Of two runs on the same images also their
    difference, with the interval of the paired bootstrap."""
    headers = ["feature", "metric", *_per_run(runs, [""])]
    paired = len(runs) == 2 and runs[0].same_task(runs[1])
    if paired:
        headers.append("difference")
    rows = []
    for feature in sorted(FEATURE_NAMES):
        means = [summary(run.scores[feature])._asdict() for run in runs]
        intervals = [bootstrap(run.scores[feature], run.ranked.labels.query_ids) for run in runs]
        if paired:
            ours, theirs = (run.scores[feature] for run in runs)
            gaps = bootstrap_difference(ours, theirs, runs[0].ranked.labels.query_ids)
        for key, metric in METRICS.items():
            cells = [_interval(m[key], *i[key]) for m, i in zip(means, intervals, strict=True)]
            if paired:
                cells.append(_interval(means[1][key] - means[0][key], *gaps[key], sign="+"))
            rows.append([Cell(FEATURE_NAMES[feature]), Cell(metric), *cells])
    return Table("metrics", "Metrics", headers, rows)


def verification_table(runs: Sequence[Evaluated]) -> Table:
    """How well two images are told to show one person or two, and search for people who may not be
    in the gallery."""
    columns = []
    for run in runs:
        curve = roc(run.pairs)
        equal = equal_error(curve)
        cells = {"equal error rate": _percent((equal.false_accept + 1 - equal.true_accept) / 2)}
        for rate in PAIR_RATES:
            name = f"the same person accepted, at {100 * rate:g} % of different people"
            cells[name] = _percent(at_false_accept(curve, rate).true_accept)
        for rate in SEARCH_RATES:
            name = f"found at rank 1, at {100 * rate:g} % of absent people taken for somebody"
            cells[name] = _percent(identification(run.pairs, run.ranked.ranking, rate).true_accept)
        columns.append(cells)
    rows = [[Cell(name), *(cells[name] for cells in columns)] for name in columns[0]]
    return Table("verification", "Verification", ["percent", *_per_run(runs, [""])], rows)


def camera_table(runs: Sequence[Evaluated], pairs: Sequence[CameraPairScores]) -> Table:
    """Every pair of cameras that has a valid query."""
    headers = ["query camera", "gallery camera", "queries", *_per_run(runs, ["rank-1", "mAP"])]
    rows = []
    cameras = pairs[0].query_cameras.tolist(), pairs[0].gallery_cameras.tolist()
    for row, column in (pairs[0].queries > 0).nonzero().tolist():
        cells = [_whole(cameras[0][row]), _whole(cameras[1][column])]
        cells.append(_whole(int(pairs[0].queries[row, column])))
        for of_run in pairs:
            cells += [_percent(float(of_run.rank1[row, column]))]
            cells += [_percent(float(of_run.mAP[row, column]))]
        rows.append(cells)
    return Table("cameras", "Pairs of cameras", headers, rows)


def identity_table(runs: Sequence[Evaluated]) -> Table:
    """Every identity that has a valid query."""
    found = [by_identity(run.scores[FEATURE], run.ranked.labels.query_ids) for run in runs]
    headers = ["identity", "queries", *_per_run(runs, ["rank-1", "mAP", "mINP"])]
    rows = []
    for index, identity in enumerate(found[0].identity.tolist()):
        cells = [_whole(identity), _whole(int(found[0].queries[index]))]
        for scores in found:
            fields = (scores.rank1, scores.mAP, scores.mINP)
            cells += [_percent(float(field[index])) for field in fields]
        rows.append(cells)
    return Table("identities", "Identities", headers, rows)


def query_table(runs: Sequence[Evaluated]) -> Table:
    """Every valid query."""
    split = runs[0].images.data.query
    scores = [run.scores[FEATURE] for run in runs]
    headers = ["query", "identity", "camera", "hits", *_per_run(runs, ["first hit", "AP"])]
    rows = []
    for query in scores[0].valid.nonzero().flatten().tolist():
        cells = [Cell(split.paths[query]), _whole(int(split.identities[query]))]
        cells += [_whole(int(split.cameras[query])), _whole(int(scores[0].hits[query]))]
        for of_run in scores:
            cells += [_whole(int(of_run.first[query])), _percent(float(of_run.ap[query]))]
        rows.append(cells)
    return Table("queries", "Queries", headers, rows)


def config_table(runs: Sequence[Evaluated]) -> Table:
    """Every field of the configurations; of two, the rows that differ first."""
    values = [dataclasses.asdict(run.config) for run in runs]
    rows = []
    for field in fields_of(Config).values():
        texts = [_in_words(value[field.name]) for value in values]
        cells = [Cell(field.name), *map(Cell, texts)]
        if len(runs) == 2:
            cells.append(Cell("same" if texts[0] == texts[1] else "differs"))
        rows.append([*cells, Cell(field.help)])
    headers = ["field", *(run.name for run in runs), *["compared"][: len(runs) - 1], "what it is"]
    if len(runs) == 2:
        rows.sort(key=lambda row: row[3].text)
    return Table("configuration", "Configuration", headers, rows)


def _per_run(runs: Sequence[Evaluated], columns: list[str]) -> list[str]:
    if len(runs) == 1 and columns != [""]:
        return columns
    return [f"{column} {run.name}".strip() for run in runs for column in columns]


def _interval(value: float, low: float, high: float, sign: str = "") -> Cell:
    text = f"{100 * value:{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"
    return Cell(text, value)


def _percent(value: float) -> Cell:
    return Cell(f"{100 * value:.1f}", value)


def _whole(value: int) -> Cell:
    return Cell(str(value), value)


def _in_words(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)
