"""The layout of Market-1501, also used for repacks of CUHK03 and MSMT17, and for own images."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from rga_fast.reid.data.datasets.common import (
    IMAGE_SUFFIXES,
    SPLITS,
    Record,
    ReidData,
    Split,
    existing_folder,
    image_names,
    require_identities,
    split_of,
)

MARKET_FOLDER = "Market-1501-v15.09.15"
MARKET_SPLITS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
MARKET_NAME = re.compile(r"(-?\d+)_c(\d+)")
MARKET_JUNK, MARKET_DISTRACTOR = -1, 0


def load_market1501(path: str | os.PathLike[str]) -> ReidData:
    """Reads Market-1501 and other data with its folders and names (`0002_c1s1_000451_03.jpg`).

    `path` or `path/Market-1501-v15.09.15` holds `bounding_box_train`, `query` and
    `bounding_box_test`. Identity -1 (junk) is dropped. Identity 0 in the gallery is a distractor,
    kept there only, unless it is also a query: then the numbering starts at 0, as in repacks of
    MSMT17, and it is an ordinary person. Files without an image's suffix and hidden files are
    ignored. The data set is named `synthetic` if `rga-fast synth` wrote it, `market1501`,
    `cuhk03-labeled`, `cuhk03-detected` or `msmt17` by its folder or its numbers of identities and
    cameras, else `market-like`.

    FileNotFoundError names the missing folder. ValueError: a folder without usable images, a name
    that does not follow the pattern, or fewer than two training identities.
    """
    folder = existing_folder(path)
    root = market_root(folder) or folder
    missing = [name for name in MARKET_SPLITS.values() if not (root / name).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"{root}: no folder {', '.join(missing)}; Market-1501 has "
            f"{', '.join(MARKET_SPLITS.values())}"
        )
    records = {split: _records(root, MARKET_SPLITS[split]) for split in SPLITS}
    shown = {split: {record.identity for record in records[split]} for split in SPLITS}
    distractors = MARKET_DISTRACTOR in shown["gallery"] - shown["query"]
    left_out = {MARKET_JUNK, MARKET_DISTRACTOR} if distractors else {MARKET_JUNK}
    splits = {
        "train": _without(root, "train", records, left_out),
        "query": _without(root, "query", records, left_out),
        "gallery": _without(root, "gallery", records, {MARKET_JUNK}),
    }
    require_identities(root / MARKET_SPLITS["train"], splits["train"])
    return ReidData(
        _known_name(root, splits["train"]),
        **splits,
        distractor_identity=MARKET_DISTRACTOR if distractors else None,
        layout=f"folders {', '.join(MARKET_SPLITS.values())}",
    )


def market_root(folder: Path) -> Path | None:
    """`folder`, or the data set's own folder in it, with images of Market-1501; None if neither."""
    for root in (folder, folder / MARKET_FOLDER):
        if any((root / name).is_dir() for name in ("bounding_box_train", "bounding_box_test")):
            return root
    return None


def _records(root: Path, name: str) -> list[Record]:
    folder = root / name
    files = image_names(folder)
    if not files:
        raise ValueError(f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder")
    return [Record(f"{name}/{file}", *_parse_name(folder, file)) for file in files]


def _parse_name(folder: Path, file: str) -> tuple[int, int]:
    match = MARKET_NAME.match(file)
    if match is None:
        raise ValueError(
            f"{folder / file}: an image's name must start with identity and camera, "
            f"'{MARKET_NAME.pattern}' as in 0002_c1s1_000451_03.jpg"
        )
    return int(match[1]), int(match[2])


def _without(root: Path, split: str, records: dict[str, list[Record]], left_out: set[int]) -> Split:
    found = records[split]
    kept = [record for record in found if record.identity not in left_out]
    if not kept:
        raise ValueError(
            f"{root / MARKET_SPLITS[split]}: all {len(found)} images are junk (-1) or distractors "
            "(0000)"
        )
    return split_of(root, kept, dropped=len(found) - len(kept))


def _known_name(root: Path, train: Split) -> str:
    """By the names of the folder and its parent, else by the training identities and cameras."""
    if (root / "synthetic.json").is_file():
        return "synthetic"
    where = f"{root.absolute().parent.name}/{root.absolute().name}".casefold()
    where = re.sub("[-_ ]", "", where)
    size = len(np.unique(train.identities)), len(np.unique(train.cameras))
    if "market1501" in where or size == (751, 6):
        return "market1501"
    if "msmt17" in where or size == (1041, 15):
        return "msmt17"
    if "cuhk03" in where or size == (767, 2):
        detected = "detected" in where or ("labeled" not in where and len(train) == 7365)
        return "cuhk03-detected" if detected else "cuhk03-labeled"
    return "market-like"
