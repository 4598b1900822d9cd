"""CUHK03, new protocol (767 training identities, 700 test), in all forms it is distributed in."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np

from rga_fast.reid.data.datasets.common import (
    Record,
    ReidData,
    existing_folder,
    require_files,
    require_identities,
    split_of,
)
from rga_fast.reid.data.datasets.cuhk03_release import (
    RELEASE_FILE,
    RELEASE_NAME,
    extract_images,
    read_protocol,
)
from rga_fast.reid.data.datasets.market1501 import load_market1501, market_root

BOXES = ("labeled", "detected")


def load_cuhk03(path: str | os.PathLike[str], *, boxes: str | None = None) -> ReidData:
    """Reads CUHK03 with the boxes drawn by hand (`labeled`) or by a detector (`detected`).

    `boxes` None takes `labeled` if it is available. `path` holds one of
    - `labeled/`, `detected/`, in the layout of Market-1501 (`cuhk03-np`, or a folder with it);
    - `images_labeled/`, `images_detected/`: extracted images, `1_001_1_01.png`, and the protocol,
      `cuhk03_new_protocol_config_{labeled,detected}.mat`;
    - `cuhk03_release/cuhk-03.mat` or `cuhk-03.mat`: the HDF5 release, and the protocol. Its images
      are extracted once into `images_{labeled,detected}/` next to the protocol, or into the user's
      cache folder if that folder cannot be written; this is announced on stderr.
    The protocol may also be in `cuhk03_release/`. It is read with scipy, the release with h5py
    (`pip install 'rga-fast[cuhk03]'`; ImportError without them). Cameras are the third token of a
    name, identities the protocol's `labels`.

    FileNotFoundError names the missing folder or file, or the first missing image. ValueError:
    unknown `boxes`, a protocol or release that is damaged or does not fit the images.
    """
    if boxes not in (None, *BOXES):
        raise ValueError(f"load_cuhk03: boxes must be one of {', '.join(BOXES)}, got {boxes!r}")
    folder = existing_folder(path)
    root = _market_like_root(folder)
    if root is not None:
        chosen = boxes or next(kind for kind in BOXES if market_root(root / kind))
        data = load_market1501(root / chosen)
        return dataclasses.replace(data, name=f"cuhk03-{chosen}")
    return _load_protocol(folder, boxes)


def is_cuhk03(folder: Path) -> bool:
    """Whether `folder` looks like what `load_cuhk03` reads."""
    if _market_like_root(folder) or _release_file(folder):
        return True
    return any(
        (folder / f"images_{kind}").is_dir() or _protocol_file(folder, kind) for kind in BOXES
    )


def _market_like_root(folder: Path) -> Path | None:
    for root in (folder, folder / "cuhk03-np"):
        if any(market_root(root / kind) for kind in BOXES):
            return root
    return None


def _release_file(folder: Path) -> Path | None:
    return _first_file(folder, RELEASE_FILE)


def _protocol_file(folder: Path, boxes: str) -> Path | None:
    return _first_file(folder, _protocol_name(boxes))


def _first_file(folder: Path, name: str) -> Path | None:
    places = (folder / name, folder / "cuhk03_release" / name)
    return next((place for place in places if place.is_file()), None)


def _protocol_name(boxes: str) -> str:
    return f"cuhk03_new_protocol_config_{boxes}.mat"


def _load_protocol(folder: Path, boxes: str | None) -> ReidData:
    if boxes is None:
        boxes = max(BOXES, key=lambda kind: _completeness(folder, kind))  # the first of equal ones
    source = _protocol_file(folder, boxes)
    if source is None:
        raise FileNotFoundError(
            f"{folder}: no {_protocol_name(boxes)}, the file of the new protocol (also looked in "
            f"cuhk03_release/)"
        )
    protocol = read_protocol(source)
    root, layout = _image_root(folder, boxes, protocol["filelist"])
    require_files(root, protocol["filelist"], source)
    data = ReidData(
        name=f"cuhk03-{boxes}",
        train=split_of(root, _records(source, protocol, "train_idx")),
        query=split_of(root, _records(source, protocol, "query_idx")),
        gallery=split_of(root, _records(source, protocol, "gallery_idx")),
        layout=layout,
    )
    require_identities(source, data.train)
    return data


def _completeness(folder: Path, boxes: str) -> int:
    """How many of the two required parts exist: images, protocol."""
    images = (folder / f"images_{boxes}").is_dir() or _release_file(folder) is not None
    return int(images) + int(_protocol_file(folder, boxes) is not None)


def _image_root(folder: Path, boxes: str, names: list[str]) -> tuple[Path, str]:
    """The folder of the extracted images, and a description of their origin."""
    extracted = folder / f"images_{boxes}"
    if extracted.is_dir():
        return extracted, f"extracted images_{boxes}, {_protocol_name(boxes)}"
    release = _release_file(folder)
    if release is None:
        raise FileNotFoundError(
            f"{folder}: no images; expected the folder images_{boxes} or the release "
            f"cuhk03_release/{RELEASE_FILE}"
        )
    root = extract_images(release, boxes, names, extracted)
    return root, f"{RELEASE_FILE} extracted into {root}, {_protocol_name(boxes)}"


def _records(source: Path, protocol: dict, key: str) -> list[Record]:
    names, labels = protocol["filelist"], protocol["labels"]
    indices: np.ndarray = protocol[key]
    wrong = indices[(indices < 1) | (indices > len(names))]
    if len(wrong) or not len(indices):
        got = f"index {wrong[0]}" if len(wrong) else "none"
        raise ValueError(f"{source}: {key} must be indices from 1 to {len(names)}, got {got}")
    return [
        Record(names[index], int(labels[index]), _camera(source, names[index]))
        for index in indices - 1
    ]


def _camera(source: Path, name: str) -> int:
    match = RELEASE_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{source}: filelist: expected names like 1_001_1_01.png, got {name!r}")
    return int(match["view"])
