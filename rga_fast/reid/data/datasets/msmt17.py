"""MSMT17 as released: V1, and V2 with masked faces. Market-like repacks: market1501.py."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rga_fast.reid.data.datasets.common import (
    Record,
    ReidData,
    existing_folder,
    require_files,
    require_identities,
    split_of,
)
from rga_fast.reid.data.datasets.listing import Listing

MSMT17_VERSIONS = {
    "MSMT17_V1": ("train", "test"),
    "MSMT17_V2": ("mask_train_v2", "mask_test_v2"),
}
MSMT17_NAME = re.compile(r"\d{4}_\d{3}_\d{2}_\d{4}(morning|noon|afternoon)_")
MSMT17_LISTS = {name: f"list_{name}.txt" for name in ("train", "val", "query", "gallery")}


def load_msmt17(path: str | os.PathLike[str], *, train_on_val: bool = True) -> ReidData:
    """Reads MSMT17, V1 or V2: two folders of images, and lists with a line `path identity` each.

    `path`, or `MSMT17_V1` or `MSMT17_V2` in it, holds `train` and `test` (V1) or `mask_train_v2`
    and `mask_test_v2` (V2), and the lists `list_{train,val,query,gallery}.txt`. The camera is the
    third token of a name, `0000_000_01_0303morning_0008_0.jpg`. `train_on_val`, the default, adds
    the images of `list_val.txt` to the training images: 32,621, the published number. The data set
    is then named `msmt17`, otherwise `msmt17-without-val`.

    FileNotFoundError names a missing folder, list or image. ValueError: both versions in `path`, a
    line or name that does not follow the pattern, an empty list, fewer than two identities.
    """
    folder = existing_folder(path)
    root = msmt17_root(folder) or folder
    version, train, test = _version(root)
    lists = ("train", "val") if train_on_val else ("train",)
    training = [record for name in lists for record in _read_list(root, name, train)]
    data = ReidData(
        name="msmt17" if train_on_val else "msmt17-without-val",
        train=split_of(root, training),
        query=split_of(root, _read_list(root, "query", test)),
        gallery=split_of(root, _read_list(root, "gallery", test)),
        layout=f"{version}: {train}, {test}; {' and '.join(MSMT17_LISTS[n] for n in lists)} train",
    )
    require_identities(root / MSMT17_LISTS["train"], data.train)
    return data


def msmt17_root(folder: Path) -> Path | None:
    """The folder with MSMT17's lists or folders: `folder`, or MSMT17_V1 or V2 in it; or None."""
    found = [
        root for root in (folder, *(folder / name for name in MSMT17_VERSIONS)) if _looks_like(root)
    ]
    if len(found) > 1:
        raise ValueError(
            f"{folder}: holds more than one copy of MSMT17, name one of them: "
            f"{', '.join(str(root) for root in found)}"
        )
    return found[0] if found else None


def _looks_like(root: Path) -> bool:
    """Whether there are lists of MSMT17; or its folders, with an image named as its are."""
    if any((root / name).is_file() for name in MSMT17_LISTS.values()):
        return True
    return any(
        (root / train).is_dir() and (root / test).is_dir() and _first_is_msmt17(root / train)
        for train, test in MSMT17_VERSIONS.values()
    )


def _first_is_msmt17(folder: Path) -> bool:
    listing = Listing(folder)
    for person in listing.folders()[:1]:
        return any(MSMT17_NAME.match(name) for name in listing.images(person)[:1])
    return False


def _version(root: Path) -> tuple[str, str, str]:
    """The version in `root`, and its two folders."""
    for version, (train, test) in MSMT17_VERSIONS.items():
        if (root / train).is_dir() and (root / test).is_dir():
            return version, train, test
    expected = " or ".join(f"{train}/ and {test}/" for train, test in MSMT17_VERSIONS.values())
    raise FileNotFoundError(f"{root}: MSMT17 has the folders {expected} next to its lists")


def _read_list(root: Path, name: str, folder: str) -> list[Record]:
    source = root / MSMT17_LISTS[name]
    if not source.is_file():
        hint = (
            "or set train_on_val=false"
            if name == "val"
            else "own images need train, query, gallery"
        )
        expected = ", ".join(MSMT17_LISTS.values())
        raise FileNotFoundError(f"{source}: no such file; MSMT17 has {expected} ({hint})")
    try:
        lines = source.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{source}: expected UTF-8, got byte {error.object[error.start]:#x}"
        ) from None
    records = [
        _parse_line(f"{source}, line {number}", line, folder)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not records:
        raise ValueError(f"{source}: expected lines 'path identity', got an empty file")
    require_files(root, (record.path for record in records), source)
    return records


def _parse_line(where: str, line: str, folder: str) -> Record:
    path, identity = [*line.strip().rsplit(maxsplit=1), ""][:2]
    path = path.replace("\\", "/")
    tokens = path.rpartition("/")[2].split("_")
    if not (identity.isdecimal() and len(tokens) > 2 and tokens[2].isdecimal()):
        raise ValueError(
            f"{where}: expected 'path identity' with the camera as the third token of the name, "
            f"as in '0000/0000_000_01_0303morning_0008_0.jpg 0', got {line!r}"
        )
    return Record(f"{folder}/{path}", int(identity), int(tokens[2]))
