"""The counts of a data set compared with the published ones, and its problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rga_fast.reid.data.datasets.common import ReidData, SplitCounts


class Published(NamedTuple):
    """The published counts of a split. None: not published."""

    images: int | None
    identities: int
    cameras: int
    distractors: int = 0
    dropped: int = 0


_CUHK03_QUERY = Published(1400, 700, 2)
_MSMT17_TEST = {"query": Published(11659, 3060, 15), "gallery": Published(82161, 3060, 15)}

PUBLISHED = {
    "market1501": {
        "train": Published(12936, 751, 6),
        "query": Published(3368, 750, 6),
        "gallery": Published(15913, 750, 6, distractors=2798, dropped=3819),
    },
    "dukemtmc": {  # 408 people of the gallery are in no query
        "train": Published(16522, 702, 8),
        "query": Published(2228, 702, 8),
        "gallery": Published(17661, 1110, 8),
    },
    "cuhk03-labeled": {
        "train": Published(7368, 767, 2),
        "query": _CUHK03_QUERY,
        "gallery": Published(5328, 700, 2),
    },
    "cuhk03-detected": {
        "train": Published(7365, 767, 2),
        "query": _CUHK03_QUERY,
        "gallery": Published(5332, 700, 2),
    },
    "msmt17": {"train": Published(32621, 1041, 15), **_MSMT17_TEST},
    "msmt17-without-val": {"train": Published(None, 1041, 15), **_MSMT17_TEST},
}

BATCH_IDENTITIES = 16  # of the published recipe


class ReportRow(NamedTuple):
    """A split's counts, found and published (None: not a known data set)."""

    found: SplitCounts
    published: Published | None


@dataclass(frozen=True)
class DataReport:
    """`rows` of counts, and problems in sentences.

    With `errors`, scores cannot be compared with published ones, or cannot be computed; `remarks`
    are worth knowing. `problems` are both.
    """

    name: str
    layout: str
    rows: list[ReportRow]
    errors: list[str]
    remarks: list[str]

    @property
    def problems(self) -> list[str]:
        return self.errors + self.remarks


def dataset_report(data: ReidData) -> DataReport:
    """Compares the counts of `data` with the published ones for its name, and looks for pitfalls.

    Errors: counts that differ from the published ones, no valid query. Remarks: queries that the
    evaluation will skip because no other camera shows their identity, a part without images, fewer
    identities than a batch of the published recipe needs, identities with a single image, and the
    notes of `data`.
    """
    published = PUBLISHED.get(data.name, {})
    rows = [ReportRow(counts, published.get(counts.split)) for counts in data.counts()]
    errors = [problem for row in rows for problem in _wrong_counts(row)]
    remarks = _training_traps(data, rows[0].found)
    skipped = len(data.query) - int(data.valid_queries().sum())
    if not (len(data.query) and len(data.gallery)):
        remarks.insert(0, str(data.why_not_evaluated()))
    elif skipped:
        sentence = (
            f"query: {skipped:,} of {len(data.query):,} will be skipped, as the gallery shows "
            "their identity from no other camera"
        )
        if skipped < len(data.query):
            remarks.insert(0, sentence)
        else:
            errors.append(f"{sentence}: nothing can be evaluated")
    return DataReport(data.name, data.layout, rows, errors, [*remarks, *data.notes])


def _wrong_counts(row: ReportRow) -> list[str]:
    if row.published is None:
        return []
    return [
        f"{row.found.split}: {found:,} {name}, published are {expected:,}"
        for name, expected in row.published._asdict().items()
        if (found := getattr(row.found, name)) != expected and expected is not None
    ]


def _training_traps(data: ReidData, train: SplitCounts) -> list[str]:
    problems: list[str] = []
    if not train.images:
        return ["train: no images: the data can be evaluated only"]
    if train.identities < BATCH_IDENTITIES:
        problems.append(
            f"train: {train.identities} identities, but a batch of the published recipe takes "
            f"{BATCH_IDENTITIES}: lower identities_per_batch"
        )
    single = _single_images(data)
    if single:
        problems.append(
            f"train: {single:,} of {train.identities:,} identities have a single image, from "
            "which the triplet loss learns little"
        )
    return problems


def _single_images(data: ReidData) -> int:
    return int((np.bincount(data.train.labels) == 1).sum())
