"""The data set that a run names, or the synthetic one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

from rga_fast.reid.console import console, progress
from rga_fast.reid.data.damaged import without_damaged
from rga_fast.reid.data.datasets import ReidData, open_datasets
from rga_fast.reid.synth.cached import cached_dataset


def open_source(
    paths: str | os.PathLike[str] | Sequence[str] | None,
    *,
    boxes: str | None = None,
    train_on_val: bool = True,
    pattern: str | None = None,
    skip_damaged: bool = False,
) -> ReidData:
    """The data set at `paths`; several are joined. None: the synthetic data set, which is written
    to the user's cache folder first if it is missing. Options and errors as `open_datasets`, whose
    warnings and notes are printed.

    With `skip_damaged` every image is opened first; those that cannot be read are left out and
    named.
    """
    if paths is None:
        with progress("drawing the synthetic data set") as bar:
            return open_datasets([cached_dataset(bar)])
    listed = [paths] if isinstance(paths, str | os.PathLike) else paths
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        data = open_datasets(listed, boxes=boxes, train_on_val=train_on_val, pattern=pattern)
    for sentence in [*data.notes, *(str(warning.message) for warning in caught)]:
        console.print(f"note: {sentence}")
    if skip_damaged:
        with progress("opening every image") as bar:
            data, damaged = without_damaged(data, bar)
        for sentence in damaged.values():
            console.print(f"left out: {sentence}")
        console.print(f"damaged images that are left out: {len(damaged):,}")
    return data
