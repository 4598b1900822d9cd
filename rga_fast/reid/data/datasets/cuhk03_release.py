"""The MATLAB files of CUHK03: the images (version 7.3, which is HDF5), the protocol (version 5)."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rga_fast.reid.files import user_cache

RELEASE_FILE = "cuhk-03.mat"
RELEASE_NAME = re.compile(r"(?P<pair>\d+)_(?P<person>\d+)_(?P<view>[12])_(?P<index>\d+)\.png")
PROTOCOL_ARRAYS = ("labels", "train_idx", "query_idx", "gallery_idx")


def read_protocol(source: Path) -> dict[str, Any]:
    """`filelist` (list of N names), `labels` int64 (N,), `{train,query,gallery}_idx` int64, from 1.

    ImportError names the extra. ValueError: not a MATLAB file of version 4 to 7, or one without
    these variables.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise _missing(source, "scipy") from error
    try:
        content = loadmat(source, variable_names=["filelist", *PROTOCOL_ARRAYS])
    except Exception as error:  # scipy raises many kinds for damaged bytes
        start = source.read_bytes()[:20]
        hint = "; this looks like a web page saved under this name" if b"<" in start else ""
        raise ValueError(
            f"{source}: expected a complete MATLAB 5 file, got one that starts with {start!r} "
            f"({error}){hint}"
        ) from error
    missing = [name for name in ("filelist", *PROTOCOL_ARRAYS) if name not in content]
    if missing:
        raise ValueError(f"{source}: expected the variables of the protocol, got no {missing[0]}")
    protocol: dict[str, Any] = {
        name: content[name].ravel().astype(np.int64) for name in PROTOCOL_ARRAYS
    }
    protocol["filelist"] = [str(cell.item()) for cell in content["filelist"].ravel()]
    files, labels = len(protocol["filelist"]), len(protocol["labels"])
    if files != labels:
        raise ValueError(f"{source}: expected a label per file, got {labels} for {files} files")
    return protocol


def extract_images(release: Path, boxes: str, names: list[str], target: Path) -> Path:
    """Writes the images `names` of `release` as PNG files into `target`; returns their folder.

    If `target` cannot be created, a folder in the user's cache is used instead, named after the
    release's size and first bytes; if that exists, nothing is written. An interrupted extraction
    leaves no partial folder.
    ImportError names the extra. ValueError: not the release, or it lacks one of `names`.
    """
    if not os.access(target.parent, os.W_OK):
        target = user_cache() / f"cuhk03-{_fingerprint(release)}" / target.name
        if target.is_dir():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
    with _open_release(release) as file:
        cells = _cells(release, file, boxes, names)
        size = sum(file[cell].size for cell in cells)
        print(
            f"{release}: extracting {len(names):,} images into {target}, at most "
            f"{size / 2**20:,.0f} MiB, once",
            file=sys.stderr,
        )
        partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
        try:
            partial.chmod(0o755)
            for name, cell in zip(names, cells, strict=True):
                pixels = file[cell][:].T  # MATLAB's order: (3, W, H) in the file
                Image.fromarray(np.ascontiguousarray(pixels)).save(partial / name, compress_level=1)
            _rename(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def _fingerprint(release: Path) -> str:
    with release.open("rb") as file:
        return f"{release.stat().st_size:x}-{zlib.crc32(file.read(1 << 20)):08x}"


@contextmanager
def _open_release(release: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise _missing(release, "h5py") from error
    try:
        file = h5py.File(release, "r")
    except OSError as error:
        raise ValueError(f"{release}: expected a MATLAB 7.3 (HDF5) file: {error}") from error
    with file:
        yield file


def _cells(release: Path, file: Any, boxes: str, names: list[str]) -> list[Any]:
    """The reference of each image: `boxes` is (1, 5) pairs, each (10, persons) images."""
    if boxes not in file:
        raise ValueError(
            f"{release}: expected the variable {boxes}, got {', '.join(sorted(file)) or 'none'}"
        )
    pairs = [file[reference][:] for reference in file[boxes][0]]
    cells = []
    for name in names:
        match = RELEASE_NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{release}: expected names like 1_001_1_01.png, got {name!r}")
        pair, person, index = (int(match[key]) - 1 for key in ("pair", "person", "index"))
        try:
            cell = pairs[pair][index, person]
        except IndexError:
            raise ValueError(
                f"{release}: no cell for {name} in {boxes}, which has {len(pairs)} pairs of "
                f"cameras of shapes {', '.join(str(pair.shape) for pair in pairs)}"
            ) from None
        if file[cell].ndim != 3 or file[cell].dtype != np.uint8:
            raise ValueError(
                f"{release}: {name} of {boxes} must be uint8 (3, W, H), "
                f"got {file[cell].dtype} {file[cell].shape}"
            )
        cells.append(cell)
    return cells


def _rename(partial: Path, target: Path) -> None:
    try:
        partial.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was faster
            raise


def _missing(source: Path, module: str) -> ImportError:
    return ImportError(
        f"{source}: reading it needs {module}; install it with pip install 'rga-fast[cuhk03]'"
    )
