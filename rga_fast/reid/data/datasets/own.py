"""Own images: a folder per identity, or images whose names hold identity and camera."""

from __future__ import annotations

import os
from pathlib import Path

from rga_fast.reid.data.datasets.assemble import UNDIVIDED, Row, Rows, assemble
from rga_fast.reid.data.datasets.common import ReidData, existing_folder
from rga_fast.reid.data.datasets.listing import IMAGE_SUFFIXES, Listing, join
from rga_fast.reid.data.datasets.names import (
    EXAMPLES,
    camera_folder,
    camera_in,
    identity_and_camera,
)

# Folders of a split, in any case; the first that exists is read. `train_all` is train and val.
SPLIT_FOLDERS = {
    "train": ("train_all", "train", "training", "bbox_train", "bounding_box_train"),
    "query": ("query", "queries", "probe"),
    "gallery": (
        "gallery",
        "bbox_test",
        "bounding_box_test",
        "test",
        "testing",
        "val",
        "validation",
    ),
}
NAMES_OF_PEOPLE = ("test", "testing", "val", "validation")  # alone they are no sign of a split


def load_folders(path: str | os.PathLike[str]) -> ReidData:
    """Reads images in folders: `alice/c1_0001.jpg`, `alice/cam1/0001.jpg`, `cam1/alice/0001.jpg`,
    or without folders, with names as in Market-1501 or MARS.

    `path`, or `pytorch` in it, holds a folder for some of the splits (`SPLIT_FOLDERS`, in any
    case), each with such images, or holds them itself; then they are divided. A missing query is
    taken from the gallery. See `assemble` for both, and for junk and distractors.

    The camera is that of a folder or the `c2`, `cam2` or `camera2` of a name, at its start or after
    anything but a letter or digit. If no image has one, all have camera 1. Folders whose names
    start with a dot or `__` are ignored; what else is not read is counted in the notes.

    ValueError: a folder without images, an image without an identity, and the errors of `assemble`.
    """
    root = _root(existing_folder(path))
    listing = Listing(root)
    found = split_folders(root)
    if found:
        parts = {split: _rows(listing, folder) for split, folder in found.items()}
        listing.pass_over(*_other_folders(listing, found))
        kinds = dict.fromkeys(kind for kind, _ in parts.values())
        layout = f"{', '.join(found.values())} with {' and '.join(kinds)}"
    else:
        parts = {UNDIVIDED: _rows(listing, "")}
        layout = parts[UNDIVIDED][0]
    rows: Rows = {split: images for split, (_, images) in parts.items()}
    name = "mars" if "bbox_train" in map(str.casefold, found.values()) else "own images"
    return assemble(root, root, rows, layout=layout, name=name, notes=listing.notes())


def has_own_images(folder: Path) -> bool:
    """Whether `folder` looks like what `load_folders` reads."""
    root = _root(folder)
    if split_folders(root):
        return True
    listing = Listing(root)
    if any(identity_and_camera(name) for name in listing.images()):
        return True
    return any(_holds_images(listing, name) for name in listing.folders())


def split_folders(root: Path) -> dict[str, str]:
    """{"train": "Train", ...}: the existing folders of splits, by their names on disk."""
    names = {name.casefold(): name for name in reversed(Listing(root).folders())}
    found = {
        split: names[known[0]]
        for split, candidates in SPLIT_FOLDERS.items()
        if (known := [name for name in candidates if name in names])
    }
    sure = set(found) - {"gallery"} or found.get("gallery", "").casefold() not in NAMES_OF_PEOPLE
    return found if sure else {}


def _root(folder: Path) -> Path:
    """`folder`, or `pytorch` in it, where a much-used baseline writes its own layout."""
    inner = folder / "pytorch"
    return inner if inner.is_dir() and split_folders(inner) else folder


def _other_folders(listing: Listing, found: dict[str, str]) -> list[str]:
    """Folders next to those that are read, if they hold images."""
    others = set(listing.folders()) - set(found.values())
    return [f"{name}/" for name in sorted(others) if _holds_images(listing, name)]


def _holds_images(listing: Listing, folder: str) -> bool:
    """Whether there are images in `folder` or the folders directly in it."""
    probe = Listing(listing.root)
    if probe.images(folder):
        return True
    return any(probe.images(f"{folder}/{name}") for name in probe.folders(folder))


def _rows(listing: Listing, part: str) -> tuple[str, list[Row]]:
    """The layout and the images of the folder `part` of the data set."""
    names = listing.images(part)
    folders = listing.folders(part)
    parsed = {name: identity_and_camera(name) for name in names}
    if any(parsed.values()) or (names and not folders):
        listing.pass_over(*(f"{join(part, name)}/" for name in folders))
        rows = [_flat_row(listing, part, name, parsed[name]) for name in names]
        return "identity and camera in the names", rows
    listing.pass_over(*(join(part, name) for name in names))
    if not folders:
        raise ValueError(
            f"{listing.root / part}: expected images named like {EXAMPLES}, or a folder per "
            "identity, got none"
        )
    if all(camera_folder(name) for name in folders):
        return "a folder per camera, a folder per identity in it", _cameras_first(
            listing, part, folders
        )
    people = (_identity_rows(listing, join(part, name), name, "") for name in folders)
    return "a folder per identity", [row for rows in people for row in rows]


def _flat_row(listing: Listing, part: str, name: str, parsed: tuple[str, str] | None) -> Row:
    if parsed is None:
        raise ValueError(
            f"{listing.root / join(part, name)}: expected a name with identity and camera, like "
            f"{EXAMPLES}; for other names: --pattern '(?P<identity>...)(?P<camera>...)'"
        )
    return Row(join(part, name), *parsed)


def _cameras_first(listing: Listing, part: str, cameras: list[str]) -> list[Row]:
    rows = []
    for folder in cameras:
        place = join(part, folder)
        listing.pass_over(*(join(place, name) for name in listing.images(place)))
        identities = listing.folders(place)
        if not identities:
            raise ValueError(
                f"{listing.root / place}: expected a folder per identity in this camera's folder, "
                "got none; for other names: --pattern"
            )
        for name in identities:
            rows += _identity_rows(listing, join(place, name), name, camera_folder(folder))
    return rows


def _identity_rows(listing: Listing, folder: str, identity: str, camera: str) -> list[Row]:
    """The images of a person: in `folder`, or in folders of cameras in it. `camera` empty: it is in
    their names."""
    rows = [
        Row(join(folder, name), identity, camera or camera_in(name))
        for name in listing.images(folder)
    ]
    inner = listing.folders(folder)
    for name in inner:
        if camera or not camera_folder(name):
            listing.pass_over(f"{join(folder, name)}/")
            continue
        place = join(folder, name)
        rows += [Row(join(place, n), identity, camera_folder(name)) for n in listing.images(place)]
    if not rows:
        found = f"; its folders {', '.join(inner[:3])} are not named like cam1" if inner else ""
        raise ValueError(
            f"{listing.root / folder}: no images ({', '.join(IMAGE_SUFFIXES)}) in this identity's "
            f"folder{found}"
        )
    return rows
