"""Several data sets that train one network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rga_fast.reid.data.datasets.common import ReidData, Split


def join_training(datasets: Sequence[ReidData]) -> ReidData:
    """All `datasets` train together; query and gallery are those of the first.

    Identities and cameras are kept apart: those of the first keep their numbers, those of each
    further data set are shifted past them, so that equal numbers never meet. A person who is in two
    data sets becomes two identities. ValueError: no data set, the same one twice, or folders that
    no common folder holds (different drives).
    """
    if not datasets:
        raise ValueError("join_training: expected at least one data set, got none")
    first = datasets[0]
    if len(datasets) == 1:
        return first
    trains = [data.train for data in datasets]
    _refuse_twice(trains)
    return ReidData(
        name=" + ".join(data.name for data in datasets),
        train=_joined(trains),
        query=first.query,
        gallery=first.gallery,
        distractor_identity=first.distractor_identity,
        layout=f"{len(datasets)} data sets train, {first.name} is searched",
    )


def _refuse_twice(trains: list[Split]) -> None:
    seen: set[str] = set()
    for split in trains:
        first = os.path.abspath(split.file(0))
        if first in seen:
            raise ValueError(f"join_training: {split.root} is there twice (image {first})")
        seen.add(first)


def _joined(trains: list[Split]) -> Split:
    roots = [os.path.abspath(split.root) for split in trains]
    try:
        common = os.path.commonpath(roots)
    except ValueError:
        raise ValueError(
            f"join_training: no common folder holds {', '.join(roots)}; put them on one drive"
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
