"""The counts of a data set beside the published ones, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rga_fast.reid.datasets.common import ReidData, SplitCounts


class Published(NamedTuple):
    """What a right loader counts. None: not published."""

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

    def cells(self) -> tuple[str, ...]:
        """Printable, in the order of `DataReport.header`; `12,930 of 12,936` where they differ."""
        counts = self.found._asdict()
        split = counts.pop("split")
        return (split, *(self._cell(name, count) for name, count in counts.items()))

    def _cell(self, name: str, count: int) -> str:
        expected = self.expected(name)
        if expected in (None, count):
            return f"{count:,}"
        return f"{count:,} (published {expected:,})"

    def expected(self, name: str) -> int | None:
        """The published count `name`, a field of SplitCounts."""
        return None if self.published is None else getattr(self.published, name)


@dataclass(frozen=True)
class DataReport:
    """`rows` of counts, and `problems` in sentences (none: nothing is wrong)."""

    name: str
    layout: str
    rows: list[ReportRow]
    problems: list[str]

    header = SplitCounts._fields


def dataset_report(data: ReidData) -> DataReport:
    """Compares the counts of `data` with the published ones of its name, and looks for traps.

    Problems are: counts that are not the published ones, queries that the evaluation will skip
    because no other camera saw their identity, and fewer identities than a batch of the published
    recipe takes.
    """
    published = PUBLISHED.get(data.name, {})
    rows = [ReportRow(counts, published.get(counts.split)) for counts in data.counts()]
    problems = [problem for row in rows for problem in _wrong_counts(row)]
    return DataReport(data.name, data.layout, rows, problems + _traps(data, rows[0].found))


def _wrong_counts(row: ReportRow) -> list[str]:
    counts = row.found._asdict()
    split = counts.pop("split")
    return [
        f"{split}: {count:,} {name}, published are {expected:,}"
        for name, count in counts.items()
        if (expected := row.expected(name)) not in (None, count)
    ]


def _traps(data: ReidData, train: SplitCounts) -> list[str]:
    problems = []
    valid = int(data.valid_queries().sum())
    if valid < len(data.query):
        problems.append(
            f"query: {len(data.query) - valid:,} of {len(data.query):,} will be skipped, as the "
            "gallery shows their identity from no other camera"
        )
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
    images = [0] * (int(data.train.labels.max()) + 1)
    for label in data.train.labels.tolist():
        images[label] += 1
    return images.count(1)
