"""The images of a data set, their identities and cameras. Reads names, opens no image."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from rga_fast.reid.data.datasets.common import (
    SPLITS,
    ReidData,
    Split,
    SplitCounts,
    existing_folder,
)
from rga_fast.reid.data.datasets.cuhk03 import is_cuhk03, load_cuhk03
from rga_fast.reid.data.datasets.join import join_training
from rga_fast.reid.data.datasets.market1501 import load_market1501, market_root
from rga_fast.reid.data.datasets.msmt17 import load_msmt17, msmt17_root
from rga_fast.reid.data.datasets.own import csv_in, has_identity_folders, load_csv, load_folders
from rga_fast.reid.data.datasets.report import DataReport, dataset_report

__all__ = [
    "SPLITS",
    "DataReport",
    "ReidData",
    "Split",
    "SplitCounts",
    "dataset_report",
    "is_dataset",
    "join_training",
    "load_csv",
    "load_cuhk03",
    "load_folders",
    "load_market1501",
    "load_msmt17",
    "open_dataset",
    "open_datasets",
    "read_dataset",
]

LAYOUTS = (
    "Market-1501 and repacks like it (bounding_box_train/, query/, bounding_box_test/)",
    "CUHK03 (labeled/ or detected/ with these folders, images_labeled/, cuhk-03.mat)",
    "MSMT17 (train/ and test/ or mask_train_v2/ and mask_test_v2/, list_train.txt)",
    "own images (train/, query/ and gallery/ with a folder per identity; a folder per identity; "
    "a CSV file with the columns path,identity,camera,split)",
)


def open_dataset(
    path: str | os.PathLike[str], *, boxes: str | None = None, train_on_val: bool = True
) -> ReidData:
    """Recognises the layout of the data set at `path`, a folder or a CSV file, and reads it.

    `boxes` chooses between CUHK03's `labeled` (the default) and `detected`; `train_on_val` adds
    MSMT17's validation images to the training images (the default). Other data sets ignore them.

    FileNotFoundError or NotADirectoryError if there is no such folder, ValueError for an unknown
    layout; otherwise the errors of the layout's reader. UserWarning if no query is valid: none has
    an image of its identity from another camera in the gallery.
    """
    return open_datasets([path], boxes=boxes, train_on_val=train_on_val)


def open_datasets(
    paths: Sequence[str | os.PathLike[str]], *, boxes: str | None = None, train_on_val: bool = True
) -> ReidData:
    """Reads one or several data sets: all are trained on, the first is evaluated
    (`join_training`).

    Options and errors as `open_dataset`, for each of them; the warning is for the first only.
    """
    data = join_training(
        [read_dataset(path, boxes=boxes, train_on_val=train_on_val) for path in paths]
    )
    if not data.valid_queries().any():
        cameras = len({*data.query.cameras.tolist(), *data.gallery.cameras.tolist()})
        warnings.warn(
            f"{paths[0]}: no valid query remains: the gallery shows none of the query identities "
            f"from another camera ({cameras} in all), so that nothing can be evaluated",
            stacklevel=3,
        )
    return data


def is_dataset(folder: Path) -> bool:
    """Whether `folder` has the folders of a data set with train, query and gallery images."""
    inside = {entry.name.casefold() for entry in folder.iterdir() if entry.is_dir()}
    named = market_root(folder) is not None or msmt17_root(folder) is not None
    return named or is_cuhk03(folder) or inside.issuperset(SPLITS)


def read_dataset(
    path: str | os.PathLike[str], *, boxes: str | None = None, train_on_val: bool = True
) -> ReidData:
    """`open_dataset` without its warning."""
    path = Path(path)
    if path.is_file() and path.suffix.lower() == ".csv":
        return load_csv(path)
    folder = existing_folder(path)
    if market_root(folder) is not None:
        return load_market1501(folder)
    if is_cuhk03(folder):
        return load_cuhk03(folder, boxes=boxes)
    if msmt17_root(folder) is not None:
        return load_msmt17(folder, train_on_val=train_on_val)
    table = csv_in(folder)
    if table is not None:
        return load_csv(table)
    if has_identity_folders(folder):
        return load_folders(folder)
    found = sorted(entry.name for entry in folder.iterdir())
    shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
    raise ValueError(
        f"{folder}: not a known data set layout. Expected {'; '.join(LAYOUTS)}; "
        f"found {shown or 'an empty folder'}"
    )
