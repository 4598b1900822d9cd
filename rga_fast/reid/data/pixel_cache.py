"""Decoded images in a file: written once, then mapped by every process that uses them."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from rga_fast.reid.data.datasets import Split
from rga_fast.reid.files import user_cache, write_file

VERSION = 1  # to be increased when the same files give other pixels
CHUNK = 512  # images in memory at a time while the file is written

Decode = Callable[[range], np.ndarray]  # the images of these indices, uint8 (n, H, W, 3)


def map_pixels(
    split: Split, size: tuple[int, int], decode: Decode, folder: str | os.PathLike[str] | None
) -> np.memmap:
    """uint8 (N, H, W, 3), read-only: the images of `split`, mapped from a file in `folder`.

    If the file is missing it is written now, which is announced on stderr with its size. It is
    valid for the images' names, sizes and modification times and for `size`; if one of these has
    changed, a new file replaces it. The write is atomic; of several processes one writes and the
    others wait. `folder` None is `pixels` in `user_cache()`.

    OSError: the folder cannot be written, or the disk is full; whatever `decode` raises. No partial
    file remains then.
    """
    folder = Path(folder or user_cache() / "pixels")
    names = _digest([*split.paths, f"{size[0]}x{size[1]}", f"version {VERSION}"])
    stats = [os.stat(split.file(index)) for index in range(len(split))]
    state = _digest(f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats)
    target = folder / f"{names}-{state}.npy"
    shape = (len(split), *size, 3)
    pixels = _mapped(target, shape)
    if pixels is None:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / f"{names}.lock", target):
            pixels = _mapped(target, shape)
            if pixels is None:
                for stale in [*folder.glob(f"{names}-*.npy"), *folder.glob(f"{names}-*.partial")]:
                    stale.unlink()
                _write(target, shape, decode)
                pixels = _mapped(target, shape)
    if pixels is None:
        raise OSError(errno.EIO, "the decoded images cannot be read back", str(target))
    return pixels


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _mapped(path: Path, shape: tuple[int, ...]) -> np.memmap | None:
    """The file at `path`; None if it is missing or damaged."""
    try:
        pixels = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        return None
    except (ValueError, EOFError) as error:
        warnings.warn(f"{path}: damaged, it is written again: {error}", stacklevel=4)
        return None
    return pixels if pixels.shape == shape and pixels.dtype == np.uint8 else None


@contextmanager
def _lock(path: Path, target: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"waiting for another process that writes {target}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write(target: Path, shape: tuple[int, ...], decode: Decode) -> None:
    count, nbytes = shape[0], int(np.prod(shape))
    print(
        f"{target}: writing {count:,} decoded images, {_megabytes(nbytes)}, once", file=sys.stderr
    )
    free = shutil.disk_usage(target.parent).free
    if free < nbytes:
        raise _no_room(target, nbytes, f"only {_megabytes(free)} are free")
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}

    def write_images(path: Path) -> None:
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for first in range(0, count, CHUNK):
                file.write(decode(range(first, min(first + CHUNK, count))).data)

    try:
        write_file(target, write_images)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _no_room(target, nbytes, "the disk is full") from error
        raise


def _no_room(target: Path, nbytes: int, found: str) -> OSError:
    return OSError(
        errno.ENOSPC,
        f"the decoded images take {_megabytes(nbytes)}, but {found}; "
        "choose another cache_folder, or cache=off",
        str(target),
    )


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.0f} MB"
