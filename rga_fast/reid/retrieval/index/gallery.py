"""The images of a gallery, with identity, camera and time where they are known."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from rga_fast.reid.data.datasets import SPLITS, ReidData, is_dataset, read_dataset
from rga_fast.reid.data.datasets.common import existing_folder
from rga_fast.reid.data.datasets.listing import IMAGE_SUFFIXES, Listing
from rga_fast.reid.data.datasets.names import (
    DISTRACTOR,
    JUNK,
    camera_folder,
    camera_in,
    identity_and_camera,
)
from rga_fast.reid.files import user_path

ALL = "all"  # splits
TIME = re.compile(
    r"(?<!\d)((?:19|20)\d\d)[-_.]?(\d\d)[-_.]?(\d\d)[T_ -]?(\d\d)[-_.:]?(\d\d)[-_.:]?(\d\d)(?!\d)"
)


class Entry(NamedTuple):
    """An image: its path relative to the gallery, with forward slashes; identity and camera as
    named in the data, "" if unknown; the time, ISO 8601, in UTC unless it names a zone, or "";
    size in bytes and time of modification in ns, by which a changed file is noticed."""

    path: str
    identity: str
    camera: str
    time: str
    size: int
    modified: int


class Gallery(NamedTuple):
    """The folder that the paths of `entries` are relative to, and the entries by path."""

    root: Path
    entries: list[Entry]


def open_gallery(source: str | os.PathLike[str], split: str | None = None) -> Gallery:
    """The images of a data set, a folder or a table.

    - A data set with train, query and gallery: the images of `split`, by default the gallery;
      "all": of all three.
    - A CSV file with the column `path` and any of `identity`, `camera`, `time` (ISO 8601) and
      `split`; paths are relative to its folder.
    - Any other folder: all images in it and its subfolders. The first folder of a path is the
      identity, else that of a name like those of Market-1501; a folder `cam2`, else `c2` in a name,
      the camera; 20260131T142530 or a spelling like it the time.

    FileNotFoundError or NotADirectoryError if there is no such thing, or an image is missing;
    ValueError for a split of what has none, a wrong table, or no images.
    """
    source = user_path(source)
    if split is not None and split not in (*SPLITS, ALL):
        raise ValueError(f"split must be one of {', '.join((*SPLITS, ALL))}, got {split!r}")
    if source.is_file() and source.suffix.lower() == ".csv":
        root, rows = source.parent, list(_table_rows(source, split))
    elif is_dataset(existing_folder(source)) or split is not None:
        root, rows = source, list(_dataset_rows(source, read_dataset(source), split or "gallery"))
    else:
        root, rows = source, list(_folder_rows(source))
    if not rows:
        raise ValueError(f"{source}: no images ({', '.join(IMAGE_SUFFIXES)})")
    entries = {row[0]: _entry(root, *row) for row in rows}
    return Gallery(root, [entries[path] for path in sorted(entries)])


def parse_time(text: str) -> float:
    """Seconds since 1970 of an ISO 8601 time; without a zone it is in UTC.

    ValueError if it is none.
    """
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return moment.timestamp()


def _entry(root: Path, path: str, identity: str, camera: str, time: str) -> Entry:
    found = os.stat(root / path)
    return Entry(path, identity, camera, time, found.st_size, found.st_mtime_ns)


def _dataset_rows(source: Path, data: ReidData, split: str) -> Iterator[tuple[str, str, str, str]]:
    for name in SPLITS if split == ALL else (split,):
        part = getattr(data, name)
        inside = Path(os.path.relpath(part.root, source)).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        for path, identity, camera in zip(
            part.paths, part.identities.tolist(), part.cameras.tolist(), strict=True
        ):
            known = "" if identity == data.distractor_identity else str(identity)
            yield prefix + path, known, str(camera), _time_in(path)


def _folder_rows(root: Path) -> Iterator[tuple[str, str, str, str]]:
    for path in Listing(root).tree():
        *folders, name = path.split("/")
        cameras = [camera for camera in map(camera_folder, folders) if camera]
        people = [folder for folder in folders if not camera_folder(folder)]
        named = identity_and_camera(name)
        identity = people[0] if people else named[0] if named else ""
        unknown = not people and (JUNK.fullmatch(identity) or DISTRACTOR.fullmatch(identity))
        camera = cameras[0] if cameras else camera_in(name)
        number = str(int(camera)) if camera.isdecimal() else camera
        yield path, "" if unknown else identity, number, _time_in(name)


def _time_in(path: str) -> str:
    """The time in an image's name, "" if there is none."""
    found = TIME.search(path.rsplit("/", 1)[-1])
    if found is None:
        return ""
    try:
        return datetime(*map(int, found.groups())).isoformat()  # type: ignore[arg-type]
    except ValueError:
        return ""


def _table_rows(source: Path, split: str | None) -> Iterator[tuple[str, str, str, str]]:
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if "path" not in columns:
                raise ValueError(f"{source}: expected the column path, got {','.join(columns)}")
            if split is not None and "split" not in columns:
                raise ValueError(
                    f"{source}: the split {split} was asked for, there is no such column"
                )
            wanted = None if split == ALL or "split" not in columns else split or "gallery"
            for fields in reader:
                if wanted is None or (fields["split"] or "").strip() == wanted:
                    yield _table_row(f"{source}, line {reader.line_num}", fields)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{source}: not a CSV file in UTF-8: {error}") from None


def _table_row(where: str, fields: dict[str, str | None]) -> tuple[str, str, str, str]:
    path, identity, camera, time = (
        (fields.get(name) or "").strip() for name in ("path", "identity", "camera", "time")
    )
    path = path.replace("\\", "/")
    if not path or path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"{where}: expected a path inside the table's folder, got {path!r}")
    try:
        time and parse_time(time)
    except ValueError:
        raise ValueError(f"{where}: expected a time as 2026-01-31T14:25:30, got {time!r}") from None
    return path, identity, camera, time
