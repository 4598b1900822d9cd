"""Training on several data sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rga_fast.reid.data.datasets.common import ReidData, Split, require_training


def join_training(datasets: Sequence[ReidData]) -> ReidData:
    """The training images of all `datasets`; query and gallery of the first.

    Identities and cameras of the first keep their numbers, those of each further data set are
    shifted past them, so that numbers stay distinct. A person in two data sets becomes two
    identities. ValueError: no data set, one without training images, an image in two of them (links
    followed), or folders without a common parent (different drives).
    """
    if not datasets:
        raise ValueError("join_training: expected at least one data set, got none")
    first = datasets[0]
    if len(datasets) == 1:
        return first
    for data in datasets[1:]:
        require_training(data)
    trains = [data.train for data in datasets if len(data.train)]
    _refuse_twice(trains)
    return ReidData(
        name=" + ".join(data.name for data in datasets),
        train=_joined(trains),
        query=first.query,
        gallery=first.gallery,
        distractor_identity=first.distractor_identity,
        layout=f"{len(datasets)} data sets for training, evaluated on {first.name}",
        notes=tuple(f"{data.train.root}: {note}" for data in datasets for note in data.notes),
    )


def _refuse_twice(trains: list[Split]) -> None:
    seen: set[str] = set()
    for split in trains:
        root = os.path.realpath(split.root)
        files = {os.path.normpath(os.path.join(root, path)) for path in split.paths}
        twice = min(seen & files, default=None)
        if twice is not None:
            raise ValueError(f"join_training: {split.root} is given twice (image {twice})")
        seen |= files


def _joined(trains: list[Split]) -> Split:
    roots = [os.path.abspath(split.root) for split in trains]
    try:
        common = os.path.commonpath(roots)
    except ValueError:
        raise ValueError(
            f"join_training: no common folder holds {', '.join(roots)}; move them to one drive"
        ) from None
    paths = [
        (Path(os.path.relpath(root, common)) / path).as_posix()
        for root, split in zip(roots, trains, strict=True)
        for path in split.paths
    ]
    return Split(
        root=Path(common),
        paths=tuple(paths),
        identities=_kept_apart([split.identities for split in trains]),
        cameras=_kept_apart([split.cameras for split in trains]),
        dropped=sum(split.dropped for split in trains),
    )


def _kept_apart(numbers: list[np.ndarray]) -> np.ndarray:
    """Shifts each array past the largest number of those before it. All numbers are 0 or more."""
    starts = np.cumsum([0, *(array.max() + 1 for array in numbers[:-1])])
    return np.concatenate([array + start for array, start in zip(numbers, starts, strict=True)])
