"""Own images: a folder per identity, or a CSV file."""

from __future__ import annotations

import csv
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

from rga_fast.reid.data.datasets.common import (
    IMAGE_SUFFIXES,
    SPLITS,
    Record,
    ReidData,
    existing_folder,
    image_names,
    require_files,
    require_identities,
    split_of,
)

CSV_COLUMNS = ("path", "identity", "camera", "split")
HELD_OUT = 4  # every fourth identity is a test identity
OWN_CAMERA = re.compile(r"(?:^|[_-])c(\d+)(?=s\d|[_.-])", re.IGNORECASE)

Row = tuple[str, str, str]  # path, identity, camera, as named in the data


def load_folders(path: str | os.PathLike[str]) -> ReidData:
    """Reads a folder per identity: `alice/c1_0001.jpg`.

    If `path` holds the folders `train`, `query` and `gallery` (in any case), each of them holds a
    folder per identity. Otherwise `path` itself does, and every fourth identity in sorted order is
    held out: all its images form the gallery, the first from each camera is a query (the evaluation
    excludes the query's own image, which has the same camera).

    The camera is the `c2` of a name, at its start or after `_` or `-`. If no name has one, all
    images have camera 1. Identities that are whole numbers keep them, others are numbered from 1 in
    sorted order. Folders whose names start with a dot or `__` are ignored.

    ValueError: a folder without images, cameras in some names but not in all, fewer than 4
    identities to divide, fewer than 2 for training. UserWarning: an identity is in training and
    test images.
    """
    root = existing_folder(path)
    found = _split_folders(root)
    if found:
        missing = [name for name in SPLITS if name not in found]
        if missing:
            raise FileNotFoundError(
                f"{root}: no folder {', '.join(missing)}; expected {', '.join(SPLITS)}, "
                f"or one folder per identity"
            )
        rows = {split: _folder_rows(root, f"{found[split]}/") for split in SPLITS}
        layout = "train, query and gallery with a folder per identity"
    else:
        rows = _divided(root, _folder_rows(root, ""))
        layout = f"a folder per identity, every {HELD_OUT}th held out"
    return _own_data(root, root, rows, layout)


def load_csv(path: str | os.PathLike[str]) -> ReidData:
    """Reads a CSV file with the columns `path,identity,camera,split`, in UTF-8.

    Paths are relative to the file's folder; identities and cameras are any names, numbered as in
    `load_folders`; the split is `train`, `query` or `gallery`. Further columns are ignored.

    FileNotFoundError: no such file, or one of its images is missing. ValueError names the wrong
    line or the split without images. UserWarning: an identity is in training and test images.
    """
    source = Path(path)
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            _check_header(source, reader.fieldnames)
            for fields in reader:
                split, row = _csv_row(f"{source}, line {reader.line_num}", fields)
                rows[split].append(row)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{source}: expected UTF-8, got byte {error.object[error.start]:#x}; "
            "save the file as 'CSV UTF-8'"
        ) from None
    except csv.Error as error:
        raise ValueError(f"{source}: not a CSV file: {error}") from None
    for split in SPLITS:
        if not rows[split]:
            raise ValueError(
                f"{source}: expected images of the splits {', '.join(SPLITS)}, got none of {split}"
            )
    require_files(source.parent, (row[0] for split in SPLITS for row in rows[split]), source)
    return _own_data(source.parent, source, rows, f"{source.name}: {','.join(CSV_COLUMNS)}")


def csv_in(folder: Path) -> Path | None:
    """The CSV file in `folder` to read: the only one with the right columns, or the only one.

    A file without the right columns is taken only if there are no folders of identities.
    """
    found = [path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".csv"]
    right = [path for path in found if _has_columns(path)]
    if not right and not _split_folders(folder) and len(_subfolders(folder)) < HELD_OUT:
        right = found
    return right[0] if len(right) == 1 else None


def has_identity_folders(folder: Path) -> bool:
    """Whether `folder` looks like what `load_folders` reads."""
    if _split_folders(folder):
        return True
    return any(image_names(folder / name) for name in _subfolders(folder))


def _split_folders(root: Path) -> dict[str, str]:
    """{"train": "Train", ...}: the existing folders of splits, by their names on disk."""
    return {name.casefold(): name for name in _subfolders(root) if name.casefold() in SPLITS}


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if entry.is_dir() and not entry.name.startswith((".", "__"))
        )


def _folder_rows(root: Path, prefix: str) -> list[Row]:
    """The images of all identities in `root / prefix`; the camera is empty if a name has none."""
    identities = _subfolders(root / prefix)
    if not identities:
        raise ValueError(f"{root / prefix}: expected a folder per identity, got none")
    rows = []
    for identity in identities:
        folder = root / prefix / identity
        names = image_names(folder)
        if not names:
            raise ValueError(
                f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}) in this identity's folder"
            )
        for name in names:
            camera = OWN_CAMERA.search(name)
            number = str(int(camera[1])) if camera else ""
            rows.append((f"{prefix}{identity}/{name}", identity, number))
    return rows


def _divided(root: Path, rows: list[Row]) -> dict[str, list[Row]]:
    identities = sorted({identity for _, identity, _ in rows})
    if len(identities) < HELD_OUT:
        raise ValueError(
            f"{root}: expected folders of at least {HELD_OUT} identities (every {HELD_OUT}th is "
            f"held out for the evaluation), got {', '.join(identities)}"
        )
    held_out = set(identities[HELD_OUT - 1 :: HELD_OUT])
    gallery = [row for row in rows if row[1] in held_out]
    first_seen = {row[1:]: row for row in reversed(gallery)}  # by identity and camera
    return {
        "train": [row for row in rows if row[1] not in held_out],
        "query": list(first_seen.values()),
        "gallery": gallery,
    }


def _has_columns(source: Path) -> bool:
    with source.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return set(CSV_COLUMNS) <= set(next(csv.reader(file), []))


def _check_header(source: Path, header: Iterable[str] | None) -> None:
    found = list(header or ())
    if not set(CSV_COLUMNS) <= set(found):
        raise ValueError(
            f"{source}: expected the columns {','.join(CSV_COLUMNS)} in the first line, "
            f"got {','.join(found) or 'an empty file'}"
        )


def _csv_row(where: str, fields: dict[str, str | None]) -> tuple[str, Row]:
    path, identity, camera, split = ((fields[name] or "").strip() for name in CSV_COLUMNS)
    for name, value in (("path", path), ("identity", identity), ("camera", camera)):
        if not value:
            raise ValueError(f"{where}: expected {','.join(CSV_COLUMNS)}, got no {name}")
    if split not in SPLITS:
        raise ValueError(f"{where}: split must be one of {', '.join(SPLITS)}, got {split!r}")
    return split, (path.replace("\\", "/"), identity, camera)


def _own_data(root: Path, source: Path, rows: dict[str, list[Row]], layout: str) -> ReidData:
    everything = {row for split in SPLITS for row in rows[split]}
    without = sorted(path for path, _, camera in everything if not camera)
    if without and len(without) < len(everything):
        raise ValueError(
            f"{root / without[0]}: expected a camera (_c2_) in every image's name or in none, "
            f"got none in {len(without)} of {len(everything)}"
        )
    identity = _numbers(row[1] for row in everything)
    camera = _numbers(row[2] or "1" for row in everything)
    train, query, gallery = (
        split_of(root, [Record(p, identity[i], camera[c or "1"]) for p, i, c in rows[split]])
        for split in SPLITS
    )
    require_identities(source, train)
    _warn_of_known_people(source, rows)
    return ReidData("own images", train, query, gallery, layout=layout)


def _numbers(names: Iterable[str]) -> dict[str, int]:
    """Whole numbers are kept, unless too long or ambiguous (1, 01); other names count from 1."""
    unique = sorted(set(names))
    if all(name.isdecimal() and len(name) < 10 for name in unique):
        numbers = {name: int(name) for name in unique}
        if len(set(numbers.values())) == len(unique):
            return numbers
    return {name: number for number, name in enumerate(unique, start=1)}


def _warn_of_known_people(source: Path, rows: dict[str, list[Row]]) -> None:
    trained = {identity for _, identity, _ in rows["train"]}
    tested = {identity for split in ("query", "gallery") for _, identity, _ in rows[split]}
    both = sorted(trained & tested)
    if both:
        warnings.warn(
            f"{source}: {len(both)} identities are in training and test images, the first is "
            f"{both[0]}; the scores will be too high",
            stacklevel=4,
        )
