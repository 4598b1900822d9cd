"""A data set in memory, and helpers of all readers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

SPLITS = ("train", "query", "gallery")


@dataclass(frozen=True, eq=False)
class Split:
    """The images of one split, in the order of their sorted paths.

    `paths` are relative to `root`, with forward slashes; `identities` and `cameras` are int64 (N,),
    read-only, numbered as in the data set. `dropped` counts the excluded files: junk, and
    distractors outside the gallery.
    """

    root: Path
    paths: tuple[str, ...]
    identities: np.ndarray
    cameras: np.ndarray
    dropped: int = 0

    def __post_init__(self) -> None:
        for name in ("identities", "cameras"):
            array = getattr(self, name)
            if array.shape != (len(self.paths),):
                raise ValueError(
                    f"Split: {name} must be ({len(self.paths)},), one per path, got {array.shape}"
                )
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, index: int) -> Path:
        """The path of image `index`."""
        return self.root / self.paths[index]

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (N,): the identities numbered from 0 without gaps, in their sorted order."""
        labels = np.unique(self.identities, return_inverse=True)[1].astype(np.int64)
        labels.setflags(write=False)
        return labels


class SplitCounts(NamedTuple):
    """A row of the table of counts. `images` includes `distractors`, `identities` does not."""

    split: str
    images: int
    identities: int
    cameras: int
    distractors: int
    dropped: int


@dataclass(frozen=True, eq=False)
class ReidData:
    """A re-identification data set: training, query and gallery images.

    The people in `train` are not those in `query` and `gallery`, even if their numbers are equal.
    Gallery images of `distractor_identity` (None: the data set has none) show nobody from the
    queries; they stay in the gallery under that number, which no query has. `layout` describes the
    files that were read, `notes` are sentences on what was decided and what was not read. A split
    may be empty: see `require_training`, `why_not_evaluated`.
    """

    name: str
    train: Split
    query: Split
    gallery: Split
    distractor_identity: int | None = None
    layout: str = ""
    notes: tuple[str, ...] = ()

    def counts(self) -> list[SplitCounts]:
        """Images, identities, cameras, distractors and dropped files of each split."""
        rows = []
        for name in SPLITS:
            split: Split = getattr(self, name)
            identities = set(np.unique(split.identities).tolist()) - {self.distractor_identity}
            distractors = int((split.identities == self.distractor_identity).sum())
            cameras = len(np.unique(split.cameras))
            row = SplitCounts(
                name, len(split), len(identities), cameras, distractors, split.dropped
            )
            rows.append(row)
        return rows

    def valid_queries(self) -> np.ndarray:
        """bool (Q,): whether the gallery shows the query's identity from another camera.

        The evaluation skips queries without such an image (Market-1501's rule).
        """
        gallery, query = self.gallery, self.query
        seen = Counter(gallery.identities.tolist())
        pairs = zip(gallery.identities.tolist(), gallery.cameras.tolist(), strict=True)
        seen_there = Counter(pairs)
        queries = zip(query.identities.tolist(), query.cameras.tolist(), strict=True)
        valid = [seen[person] > seen_there[person, camera] for person, camera in queries]
        return np.array(valid, dtype=bool)

    def why_not_evaluated(self) -> str | None:
        """Why nothing can be evaluated, in a sentence; None if a query is valid."""
        missing = [name for name in ("query", "gallery") if not len(getattr(self, name))]
        if missing:
            return f"no {' and no '.join(missing)} images: nothing can be evaluated"
        if self.valid_queries().any():
            return None
        cameras = len({*self.query.cameras.tolist(), *self.gallery.cameras.tolist()})
        return (
            f"no valid query remains: the gallery shows none of the query identities from another "
            f"camera ({cameras} in all), so that nothing can be evaluated"
        )


class Record(NamedTuple):
    """An image: its path relative to the data set's folder, its identity and its camera."""

    path: str
    identity: int
    camera: int


def split_of(root: Path, records: Iterable[Record], dropped: int = 0) -> Split:
    """Sorts by path, so that labels do not depend on the order of a file system or list."""
    ordered = sorted(records)
    paths, identities, cameras = zip(*ordered, strict=True) if ordered else ((), (), ())
    return Split(root, paths, int64(identities), int64(cameras), dropped)


def int64(values: Iterable[int]) -> np.ndarray:
    return np.fromiter(values, dtype=np.int64)


def existing_folder(path: str | os.PathLike[str]) -> Path:
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: expected the folder of a data set, got a file")
    return folder


def one_line(text: str) -> str:
    """As it was given; escaped if it would break the line of a message."""
    return text if text.isprintable() else repr(text)


def require_files(root: Path, paths: Iterable[str], source: Path) -> None:
    """FileNotFoundError unless all `paths`, which `source` lists, exist."""
    listed = list(paths)
    missing = [path for path in listed if not os.path.isfile(os.path.join(root, path))]
    if missing:
        raise FileNotFoundError(
            f"{source}: {len(missing)} of the {len(listed)} images it lists are missing, "
            f"the first is {root / missing[0]}"
        )


def require_identities(source: Path, train: Split) -> None:
    """ValueError if there are training images of a single identity."""
    identities = np.unique(train.identities)
    if len(identities) == 1:
        raise ValueError(
            f"{source}: training needs images of at least 2 identities, "
            f"got only identity {identities[0]}"
        )


def require_training(data: ReidData) -> None:
    """ValueError unless there are training images."""
    if not len(data.train):
        raise ValueError(
            f"{data.train.root}: no training images ({data.layout}); it can be evaluated only"
        )


def require_evaluation(data: ReidData) -> None:
    """ValueError unless a query is valid."""
    reason = data.why_not_evaluated()
    if reason is not None:
        raise ValueError(f"{data.query.root}: {reason}")
