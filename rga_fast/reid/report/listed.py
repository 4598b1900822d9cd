"""The rank lists of a report with their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rga_fast.reid.data.images import Images
from rga_fast.reid.report import pictures
from rga_fast.reid.report.curves import FEATURE
from rga_fast.reid.report.evaluated import Evaluated
from rga_fast.reid.report.ranklists import RankList, differences, extremes, rank_lists
from rga_fast.reid.retrieval.order import HIT, IGNORED, MISS, SAME_CAMERA

SIGNS = {HIT: "✓", MISS: "✗", SAME_CAMERA: "same camera", IGNORED: "junk"}
RANKS_SHOWN = 20


class Picture(NamedTuple):
    """An image and, by stage, the attention over it, as URIs."""

    photo: str
    maps: dict[int, str]
    alt: str


class Item(NamedTuple):
    """A gallery image in a list."""

    picture: Picture
    kind: str
    sign: str
    rank: str
    caption: str
    gap: bool


class Row(NamedTuple):
    """The list of one query in one run."""

    run: str
    score: str
    query: Picture
    items: list[Item]


class Query(NamedTuple):
    title: str
    rows: list[Row]


class Listed(NamedTuple):
    """Groups of queries by title; the range of the values of each stage, of every run by name;
    those below and above it share a colour;
    and a line for each run that has no spatial attention."""

    groups: dict[str, list[Query]]
    stages: list[int]
    ranges: list[tuple[str, dict[int, tuple[float, float]]]]
    notes: list[str]


def list_queries(runs: Sequence[Evaluated]) -> Listed:
    """The rank lists of the worst, the median and the best queries of the first run, and of those
    that gain and lose most by the second."""
    groups = extremes(runs[0].scores[FEATURE])
    if len(runs) == 2:
        groups += differences(runs[0].scores[FEATURE], runs[1].scores[FEATURE])
    queries = sorted({query for group in groups for query in group.queries})
    albums = [_Album(run, queries) for run in runs]
    data = runs[0].images.data.query
    shown = {}
    for query in queries:
        title = f"{data.paths[query]}: person {data.identities[query]}, camera"
        shown[query] = Query(
            f"{title} {data.cameras[query]}", [album.row(query) for album in albums]
        )
    return Listed(
        {group.title: [shown[query] for query in group.queries] for group in groups},
        sorted({stage for album in albums for stage in album.ranges}),
        [(album.run.name, album.ranges) for album in albums if album.ranges],
        [_note(album.run) for album in albums if not album.ranges],
    )


class _Album:
    """The lists of a run, and the pictures that they need."""

    def __init__(self, run: Evaluated, queries: list[int]) -> None:
        self.run = run
        self.lists = rank_lists(run, queries)
        images = sorted({e.image for found in self.lists.values() for e in found.entries})
        maps = [
            self._maps(run.images.query, queries),
            self._maps(run.images.gallery, images),
        ]
        stages = sorted(maps[0])
        self.ranges = {
            stage: _range(np.concatenate([part[stage].ravel() for part in maps]))
            for stage in stages
        }
        self._query = self._pictures("query", queries, maps[0])
        self._gallery = self._pictures("gallery", images, maps[1])

    def row(self, query: int) -> Row:
        found = self.lists[query]
        score = f"AP {100 * found.ap:.1f} %, {_ranks(found)}"
        items = []
        for entry in found.entries:
            camera = f", camera {self.run.images.data.gallery.cameras[entry.image]}"
            items.append(
                Item(
                    self._gallery[entry.image],
                    entry.kind.replace(" ", "-"),
                    SIGNS[entry.kind],
                    str(entry.rank) if entry.rank else "",
                    f"{entry.distance:.3f}{camera if entry.rank else ''}",
                    entry.gap,
                )
            )
        return Row(self.run.name, score, self._query[query], items)

    def _maps(self, images: Images, indices: list[int]) -> dict[int, np.ndarray]:
        return pictures.spatial_maps(self.run.network, images, indices)

    def _pictures(
        self, name: str, indices: list[int], maps: dict[int, np.ndarray]
    ) -> dict[int, Picture]:
        split = getattr(self.run.images.data, name)
        found = {}
        for place, index in enumerate(indices):
            overlays = {
                stage: pictures.coloured(values[place], *self.ranges[stage])
                for stage, values in maps.items()
            }
            photo = pictures.photo(split.file(index), self.run.config.size)
            found[index] = Picture(photo, overlays, split.paths[index])
        return found


def _range(values: np.ndarray) -> tuple[float, float]:
    """From the first to the last percent: a few extreme values would take the colours."""
    low, high = np.quantile(values, (0.01, 0.99))
    return float(low), float(high)


def _ranks(found: RankList) -> str:
    ranks = ", ".join(map(str, found.ranks[:RANKS_SHOWN]))
    more = len(found.ranks) - RANKS_SHOWN
    rest = f" and {more} more" if more > 0 else ""
    return f"hits at rank{'s' if len(found.ranks) > 1 else ''} {ranks}{rest}"


def _note(run: Evaluated) -> str:
    if not run.network.attention:
        return f"{run.name}: a network without attention."
    return f"{run.name}: {run.config.attention} has no spatial attention, so none is drawn."
