"""Images that cannot be read: found, and left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from rga_fast.reid.console import Advance
from rga_fast.reid.data.datasets import ReidData, Split, require_identities
from rga_fast.reid.data.images import available_cores, read_image


def damaged_images(files: Sequence[Path], progress: Advance | None = None) -> dict[Path, str]:
    """Decodes all `files`. Returns those that cannot be read, in their order, with the error of
    `read_image`."""

    def trouble(file: Path) -> str | None:
        try:
            read_image(file, (1, 1))
        except OSError as error:
            return f"{file}: {error.strerror}"
        except ValueError as error:
            return str(error)
        return None

    found = {}
    with ThreadPoolExecutor(available_cores()) as pool:
        for done, (file, sentence) in enumerate(
            zip(files, pool.map(trouble, files), strict=True), start=1
        ):
            if sentence is not None:
                found[file] = sentence
            if progress is not None:
                progress(done, len(files))
    return found


def files_of(data: ReidData) -> list[Path]:
    """All image files of a data set, each once, sorted."""
    splits = (data.train, data.query, data.gallery)
    return sorted({split.file(index) for split in splits for index in range(len(split))})


def without_damaged(
    data: ReidData, progress: Advance | None = None
) -> tuple[ReidData, dict[Path, str]]:
    """`data` without the images that cannot be read, which are returned as by `damaged_images`.

    Opens every image. ValueError if a single training identity remains.
    """
    damaged = damaged_images(files_of(data), progress)
    if not damaged:
        return data, {}
    splits = (data.train, data.query, data.gallery)
    train, query, gallery = (_without(split, damaged) for split in splits)
    require_identities(train.root, train)
    return dataclasses.replace(data, train=train, query=query, gallery=gallery), damaged


def _without(split: Split, damaged: dict[Path, str]) -> Split:
    kept = np.array([split.file(index) not in damaged for index in range(len(split))], dtype=bool)
    return Split(
        split.root,
        tuple(path for path, keep in zip(split.paths, kept, strict=True) if keep),
        split.identities[kept],
        split.cameras[kept],
        split.dropped + int((~kept).sum()),
    )
