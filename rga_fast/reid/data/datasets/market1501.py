"""The layout of Market-1501, also used for repacks of CUHK03 and MSMT17, and for own images."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import numpy as np

from rga_fast.reid.data.datasets.assemble import Row, Rows, assemble, is_junk
from rga_fast.reid.data.datasets.common import ReidData, Split, existing_folder
from rga_fast.reid.data.datasets.listing import IMAGE_SUFFIXES, Listing
from rga_fast.reid.data.datasets.names import DISTRACTOR, MARKET_NAME

MARKET_FOLDERS = ("Market-1501-v15.09.15", "DukeMTMC-reID")
MARKET_SPLITS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


def load_market1501(path: str | os.PathLike[str]) -> ReidData:
    """Reads Market-1501 and other data with its folders and names (`0002_c1s1_000451_03.jpg`,
    `0001_c2_f0046182.jpg` of DukeMTMC, `0001_cam2_1.png`).

    `path`, or a folder with the data set's own name in it, holds `bounding_box_train`, `query` and
    `bounding_box_test`; where one of them is missing, that split is empty. Identity -1 (junk) is
    dropped. Identity 0 in the gallery is a distractor, kept there only, unless it is also a query:
    then the numbering starts at 0, as in repacks of MSMT17, and it is an ordinary person. What is
    not read is counted in the notes, hidden files are ignored. The data set is named `synthetic` if
    `rga-fast synth` wrote it, `market1501`, `dukemtmc`, `cuhk03-labeled`, `cuhk03-detected` or
    `msmt17` by its folder or its numbers of identities and cameras, else `market-like`.

    FileNotFoundError: none of the folders. ValueError: a folder without usable images, a name that
    does not follow the pattern, or a single training identity.
    """
    folder = existing_folder(path)
    root = market_root(folder) or folder
    listing = Listing(root)
    present = [split for split, name in MARKET_SPLITS.items() if (root / name).is_dir()]
    if not present:
        raise FileNotFoundError(
            f"{root}: no folder {', '.join(MARKET_SPLITS.values())}, the folders of Market-1501"
        )
    rows: Rows = {split: _rows(listing, MARKET_SPLITS[split]) for split in present}
    data = assemble(
        root,
        root / MARKET_SPLITS["train"],
        rows,
        layout=f"folders {', '.join(MARKET_SPLITS[split] for split in present)}",
        notes=listing.notes(),
        published=True,
    )
    return dataclasses.replace(data, name=_known_name(root, data.train))


def market_root(folder: Path) -> Path | None:
    """`folder`, or the data set's own folder in it, with images of Market-1501; None if neither."""
    for root in (folder, *(folder / name for name in MARKET_FOLDERS)):
        if any((root / name).is_dir() for name in ("bounding_box_train", "bounding_box_test")):
            return root
    return None


def _rows(listing: Listing, name: str) -> list[Row]:
    folder = listing.root / name
    files = listing.images(name)
    if not files:
        raise ValueError(f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder")
    listing.pass_over(*(f"{name}/{inner}/" for inner in listing.folders(name)))
    rows = [Row(f"{name}/{file}", *_parse_name(folder, file)) for file in files]
    if all(is_junk(row) or DISTRACTOR.fullmatch(row.identity) for row in rows):
        raise ValueError(f"{folder}: all {len(rows)} images are junk (-1) or distractors (0000)")
    return rows


def _parse_name(folder: Path, file: str) -> tuple[str, str]:
    match = MARKET_NAME.match(file)
    if match is None:
        raise ValueError(
            f"{folder / file}: an image's name must start with identity and camera, as in "
            "0002_c1s1_000451_03.jpg or 0002_cam1.jpg"
        )
    return match[1], match[2]


def _known_name(root: Path, train: Split) -> str:
    """By the names of the folder and its parent, else by the training identities and cameras."""
    if (root / "synthetic.json").is_file():
        return "synthetic"
    where = f"{root.absolute().parent.name}/{root.absolute().name}".casefold()
    where = re.sub("[-_ ]", "", where)
    size = len(np.unique(train.identities)), len(np.unique(train.cameras))
    if "market1501" in where or size == (751, 6):
        return "market1501"
    if "duke" in where or size == (702, 8):
        return "dukemtmc"
    if "msmt17" in where or size == (1041, 15):
        return "msmt17"
    if "cuhk03" in where or size == (767, 2):
        detected = "detected" in where or ("labeled" not in where and len(train) == 7365)
        return "cuhk03-detected" if detected else "cuhk03-labeled"
    return "market-like"
