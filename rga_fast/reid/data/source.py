"""The data set that a run names, or the synthetic one."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rga_fast.reid.console import progress
from rga_fast.reid.data.datasets import ReidData, open_datasets
from rga_fast.reid.synth.cached import cached_dataset


def open_source(
    paths: str | os.PathLike[str] | Sequence[str] | None,
    *,
    boxes: str | None = None,
    train_on_val: bool = True,
) -> ReidData:
    """The data set at `paths`; several are joined. None: the synthetic data set, which is written
    to the user's cache folder first if it is missing. Options and errors as `open_datasets`."""
    if paths is None:
        with progress("drawing the synthetic data set") as bar:
            return open_datasets([cached_dataset(bar)])
    listed = [paths] if isinstance(paths, str | os.PathLike) else paths
    return open_datasets(listed, boxes=boxes, train_on_val=train_on_val)
