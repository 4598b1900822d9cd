"""What a folder holds: images, folders, and what is passed over."""

from __future__ import annotations

import os
from pathlib import Path

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png"),
    *(".bmp", ".webp", ".tif", ".tiff"),
)
SYSTEM_FILES = ("thumbs.db", "desktop.ini")  # of Windows; those of others begin with a dot
SHOWN = 3  # files that a note names


class Listing:
    """Lists the images and folders in a data set's folder, and remembers what it passed over.

    Paths are relative to `root`, with forward slashes; names are sorted, so that nothing depends on
    the file system's order. Hidden files, `Thumbs.db` and `desktop.ini` are ignored, as are folders
    whose names start with `__`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.passed: list[str] = []

    def images(self, folder: str = "") -> list[str]:
        """The names of the images directly in `folder`. Suffixes may be in any case."""
        names = []
        with os.scandir(self.root / folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(".") or name.casefold() in SYSTEM_FILES:
                    continue
                image = name.lower().endswith(IMAGE_SUFFIXES)
                if image and _is(entry, os.DirEntry.is_file):
                    names.append(name)
                elif not _is(entry, os.DirEntry.is_dir):
                    self.passed.append(join(folder, name))
                elif image:
                    self.passed.append(f"{join(folder, name)}/")
        return sorted(names)

    def folders(self, folder: str = "") -> list[str]:
        """The names of the folders directly in `folder`."""
        with os.scandir(self.root / folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith((".", "__")) and _is(entry, os.DirEntry.is_dir)
            )

    def tree(self, folder: str = "") -> list[str]:
        """The paths of all images in `folder` and the folders in it, links included."""
        found, seen, waiting = [], set(), [folder]
        while waiting:
            here = waiting.pop()
            place = os.path.realpath(self.root / here)
            if place in seen:  # a link to a folder above it
                continue
            seen.add(place)
            found += [join(here, name) for name in self.images(here)]
            waiting += [join(here, name) for name in self.folders(here)]
        return sorted(found)

    def pass_over(self, *paths: str) -> None:
        """Counts `paths` as not read."""
        self.passed += paths

    def notes(self) -> tuple[str, ...]:
        """A sentence with the number of files that were not read and some of their names."""
        passed = sorted(set(self.passed))
        if not passed:
            return ()
        shown = ", ".join(passed[:SHOWN]) + (", ..." if len(passed) > SHOWN else "")
        return (f"{len(passed):,} not read: {shown} (images end in {' '.join(IMAGE_SUFFIXES)})",)


def join(folder: str, name: str) -> str:
    """`folder/name`; `name` if the folder is the data set's own."""
    return f"{folder}/{name}" if folder else name


def _is(entry: os.DirEntry, kind) -> bool:
    """Whether an entry is of a kind, links followed; False for a link that leads nowhere."""
    try:
        return kind(entry)
    except OSError:
        return False
