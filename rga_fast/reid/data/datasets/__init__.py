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
    require_evaluation,
    require_identities,
    require_training,
)
from rga_fast.reid.data.datasets.csv_file import CSV_SUFFIXES, csv_in, load_csv
from rga_fast.reid.data.datasets.cuhk03 import is_cuhk03, load_cuhk03
from rga_fast.reid.data.datasets.join import join_training
from rga_fast.reid.data.datasets.listing import Listing
from rga_fast.reid.data.datasets.market1501 import load_market1501, market_root
from rga_fast.reid.data.datasets.msmt17 import load_msmt17, msmt17_root
from rga_fast.reid.data.datasets.names import EXAMPLES
from rga_fast.reid.data.datasets.own import has_own_images, load_folders, split_folders
from rga_fast.reid.data.datasets.pattern import load_pattern
from rga_fast.reid.data.datasets.report import DataReport, dataset_report
from rga_fast.reid.files import user_path

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
    "load_pattern",
    "open_dataset",
    "open_datasets",
    "read_dataset",
    "require_evaluation",
    "require_identities",
    "require_training",
]

LAYOUTS = (
    "Market-1501, DukeMTMC and repacks like them (bounding_box_train/, query/, bounding_box_test/)",
    "CUHK03 (labeled/ or detected/ with these folders, images_labeled/, cuhk-03.mat)",
    "MSMT17 (train/ and test/ or mask_train_v2/ and mask_test_v2/, list_train.txt)",
    "own images (train/, query/ and gallery/ with a folder per identity; a folder per identity; "
    f"images named like {EXAMPLES}; a CSV file with the columns path,identity,camera,split; any "
    "other naming with --pattern)",
)


def open_dataset(
    path: str | os.PathLike[str],
    *,
    boxes: str | None = None,
    train_on_val: bool = True,
    pattern: str | None = None,
) -> ReidData:
    """Recognises the layout of the data set at `path`, a folder or a CSV file, and reads it.

    `boxes` chooses between CUHK03's `labeled` (the default) and `detected`; `train_on_val` adds
    MSMT17's validation images to the training images (the default). Other data sets ignore them.
    With a `pattern` the images are read by it, whatever the layout (`load_pattern`).

    FileNotFoundError or NotADirectoryError if there is no such folder, ValueError for an unknown
    layout; otherwise the errors of the layout's reader. UserWarning if nothing can be evaluated: no
    query has an image of its identity from another camera in the gallery, or one of both is empty.
    """
    return open_datasets([path], boxes=boxes, train_on_val=train_on_val, pattern=pattern)


def open_datasets(
    paths: Sequence[str | os.PathLike[str]],
    *,
    boxes: str | None = None,
    train_on_val: bool = True,
    pattern: str | None = None,
) -> ReidData:
    """Reads one or several data sets: all are trained on, the first is evaluated
    (`join_training`).

    Options and errors as `open_dataset`, for each of them; the warning is for the first only.
    """
    data = join_training(
        [
            read_dataset(path, boxes=boxes, train_on_val=train_on_val, pattern=pattern)
            for path in paths
        ]
    )
    reason = data.why_not_evaluated()
    if reason is not None:
        warnings.warn(f"{paths[0]}: {reason}", stacklevel=3)
    return data


def is_dataset(folder: Path) -> bool:
    """Whether `folder` has training and test images, in a way that `read_dataset` knows."""
    known = market_root(folder) is not None or msmt17_root(folder) is not None
    return known or is_cuhk03(folder) or len(split_folders(folder)) > 1


def read_dataset(
    path: str | os.PathLike[str],
    *,
    boxes: str | None = None,
    train_on_val: bool = True,
    pattern: str | None = None,
) -> ReidData:
    """`open_dataset` without its warning."""
    path = user_path(path)
    if path.is_file() and path.suffix.lower() in CSV_SUFFIXES:
        return load_csv(path)
    folder = existing_folder(path)
    if pattern is not None:
        return load_pattern(folder, pattern)
    if market_root(folder) is not None:
        return load_market1501(folder)
    if is_cuhk03(folder):
        return load_cuhk03(folder, boxes=boxes)
    if msmt17_root(folder) is not None:
        return load_msmt17(folder, train_on_val=train_on_val)
    own = has_own_images(folder)
    table = csv_in(folder, alone=not own)
    if table is not None:
        return load_csv(table)
    if own:
        return load_folders(folder)
    raise ValueError(_unknown(folder))


def _unknown(folder: Path) -> str:
    images = Listing(folder).images()
    if images:
        return (
            f"{folder}: {len(images):,} images, but their names do not show identity and camera as "
            f"{EXAMPLES} do; the first is {images[0]}. For other names: "
            "--pattern '(?P<identity>...)(?P<camera>...)'"
        )
    found = sorted(entry.name for entry in folder.iterdir())
    shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
    return (
        f"{folder}: not a known data set layout. Expected {'; '.join(LAYOUTS)}; "
        f"found {shown or 'an empty folder'}"
    )
