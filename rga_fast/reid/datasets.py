"""Which images a data set holds, of whom, from which camera. Reads names, opens no image."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

MARKET_FOLDER = "Market-1501-v15.09.15"
MARKET_SPLITS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
MARKET_NAME = re.compile(r"(-?\d+)_c(\d+)")
MARKET_JUNK, MARKET_DISTRACTOR = -1, 0
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True, eq=False)
class Split:
    """The images of one split, in the order of their sorted paths.

    `paths` are relative to `root`, with forward slashes; `identities` and `cameras` are int64 (N,),
    read-only, numbered as in the data set. `dropped` counts the files that were left out: junk, and
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
        """Where image `index` lies."""
        return self.root / self.paths[index]

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (N,): the identities numbered from 0 without gaps, in their sorted order."""
        labels = np.unique(self.identities, return_inverse=True)[1].astype(np.int64)
        labels.setflags(write=False)
        return labels


class SplitCounts(NamedTuple):
    """A row of the table of counts. `images` = those of `identities` persons + `distractors`."""

    split: str
    images: int
    identities: int
    cameras: int
    distractors: int
    dropped: int


@dataclass(frozen=True, eq=False)
class ReidData:
    """A re-identification data set: who trains, who is searched for, and where.

    The people of `train` are never those of `query` and `gallery`, even where their numbers meet.
    Gallery images of `distractor_identity` (None: the data set has none) show nobody who is
    searched for; they stay in the gallery under that number, which no query has.
    """

    name: str
    train: Split
    query: Split
    gallery: Split
    distractor_identity: int | None = None

    def counts(self) -> list[SplitCounts]:
        """Images, identities, cameras, distractors and dropped files of each split."""
        rows = []
        for name in ("train", "query", "gallery"):
            split: Split = getattr(self, name)
            identities = set(np.unique(split.identities).tolist()) - {self.distractor_identity}
            distractors = int((split.identities == self.distractor_identity).sum())
            cameras = len(np.unique(split.cameras))
            row = SplitCounts(
                name, len(split), len(identities), cameras, distractors, split.dropped
            )
            rows.append(row)
        return rows


def open_dataset(path: str | os.PathLike[str]) -> ReidData:
    """Recognises the layout of the data set at `path` and reads it. Today: that of Market-1501.

    FileNotFoundError or NotADirectoryError if there is no such folder, ValueError if its layout is
    not known; otherwise the errors of the layout's own reader.
    """
    folder = _folder(path)
    if _market_root(folder) is None:
        found = sorted(entry.name for entry in folder.iterdir())
        shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
        expected = ", ".join(f"{name}/" for name in MARKET_SPLITS.values())
        raise ValueError(
            f"{folder}: not a known data set layout. Expected the Market-1501 folders {expected} "
            f"(or {MARKET_FOLDER}/ with these in it), found {shown or 'an empty folder'}"
        )
    return load_market1501(folder)


def load_market1501(path: str | os.PathLike[str]) -> ReidData:
    """Reads Market-1501 and whatever else has its folders and names (`0002_c1s1_000451_03.jpg`).

    `path` holds `bounding_box_train`, `query` and `bounding_box_test`, or holds
    `Market-1501-v15.09.15` which does. Identity -1 (junk) is dropped; identity 0 (distractor) stays
    in the gallery only. Files without an image's suffix and hidden files are ignored.

    FileNotFoundError names the missing folder. ValueError: a folder without usable images, a name
    that does not follow the pattern, or fewer than two identities to train on.
    """
    folder = _folder(path)
    root = _market_root(folder) or folder
    missing = [name for name in MARKET_SPLITS.values() if not (root / name).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"{root}: no folder {', '.join(missing)}; Market-1501 has "
            f"{', '.join(MARKET_SPLITS.values())}"
        )
    splits = {
        split: _market_split(root, name, keep_distractors=split == "gallery")
        for split, name in MARKET_SPLITS.items()
    }
    identities = np.unique(splits["train"].identities)
    if len(identities) < 2:
        raise ValueError(
            f"{root / MARKET_SPLITS['train']}: training needs images of at least 2 identities, "
            f"got only identity {identities[0]}"
        )
    return ReidData("market1501", **splits, distractor_identity=MARKET_DISTRACTOR)


def _folder(path: str | os.PathLike[str]) -> Path:
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: expected the folder of a data set, got a file")
    return folder


def _market_root(folder: Path) -> Path | None:
    for root in (folder, folder / MARKET_FOLDER):
        if any((root / name).is_dir() for name in MARKET_SPLITS.values()):
            return root
    return None


def _market_split(root: Path, name: str, *, keep_distractors: bool) -> Split:
    folder = root / name
    files = _image_names(folder)
    if not files:
        raise ValueError(f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder")
    left_out = {MARKET_JUNK} if keep_distractors else {MARKET_JUNK, MARKET_DISTRACTOR}
    parsed = ((file, *_parse_market_name(folder, file)) for file in files)
    kept = [record for record in parsed if record[1] not in left_out]
    if not kept:
        raise ValueError(f"{folder}: all {len(files)} images are junk (-1) or distractors (0000)")
    return Split(
        root=root,
        paths=tuple(f"{name}/{file}" for file, _, _ in kept),
        identities=_int64(identity for _, identity, _ in kept),
        cameras=_int64(camera for _, _, camera in kept),
        dropped=len(files) - len(kept),
    )


def _image_names(folder: Path) -> list[str]:
    """Sorted, so that labels do not depend on the file system."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if entry.name.lower().endswith(IMAGE_SUFFIXES)
            and not entry.name.startswith(".")
            and entry.is_file()
        )


def _parse_market_name(folder: Path, file: str) -> tuple[int, int]:
    match = MARKET_NAME.match(file)
    if match is None:
        raise ValueError(
            f"{folder / file}: an image's name must start with identity and camera, "
            f"'{MARKET_NAME.pattern}' as in 0002_c1s1_000451_03.jpg"
        )
    return int(match[1]), int(match[2])


def _int64(values: Iterable[int]) -> np.ndarray:
    return np.fromiter(values, dtype=np.int64)
