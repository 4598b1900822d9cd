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
from rga_fast.reid.files import READ_ONLY, user_cache, user_path, write_file

VERSION = 2  # to be increased when the same files give other pixels
CHUNK = 512  # images in memory at a time while the file is written

SAMPLE, SAMPLE_BYTES = 64, 1 << 16  # files of a data set whose content is compared, and how much
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

Decode = Callable[[range], np.ndarray]  # the images of these indices, uint8 (n, H, W, 3)


def map_pixels(
    split: Split, size: tuple[int, int], decode: Decode, folder: str | os.PathLike[str] | None
) -> np.memmap:
    """uint8 (N, H, W, 3), read-only: the images of `split`, mapped from a file in `folder`.

    If the file is missing it is written now, which is announced on stderr with its size. It is
    valid for the images' names, sizes, modification times, the content of a sample of them, and for
    `size`; if one of these has changed, a new file replaces it. A moved data set keeps its file.
    The write is atomic; of several processes one writes and the others wait, unless the file system
    has no locks. `folder` None is `pixels` in `user_cache()`.

    OSError: the folder cannot be written, or the disk is full; whatever `decode` raises. No partial
    file remains then.
    """
    folder = user_path(folder or user_cache() / "pixels")
    place = _digest([os.path.realpath(split.root), *split.paths, f"{size[0]}x{size[1]}"])
    state = _state(split, size)
    shape = (len(split), *size, 3)
    found = _found(folder, state, shape)
    if found is not None:
        return found
    target = folder / f"{state}-{place}.npy"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / f"{state}.lock", target) as locked:
            pixels = _found(folder, state, shape)
            if pixels is None:
                _write(target, shape, decode, place if locked else None)
                pixels = _found(folder, state, shape)
    except OSError as error:
        if error.errno in READ_ONLY:
            raise OSError(
                error.errno,
                f"{error.strerror}: the decoded images cannot be written; choose another "
                "cache_folder, or cache=off",
                str(folder),
            ) from error
        raise
    if pixels is None:
        raise OSError(errno.EIO, "the decoded images cannot be read back", str(target))
    return pixels


def _state(split: Split, size: tuple[int, int]) -> str:
    """Changes with every image: its name, size, time. Two data sets may agree in all of these, so
    that a sample of the files is read, too."""
    files = [split.file(index) for index in range(len(split))]
    stats = [os.stat(file) for file in files]
    content = hashlib.sha256()
    for index in np.unique(np.linspace(0, len(files) - 1, min(SAMPLE, len(files)), dtype=int)):
        with files[index].open("rb") as file:
            content.update(file.read(SAMPLE_BYTES))
    return _digest(
        [
            *split.paths,
            *(f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats),
            content.hexdigest(),
            f"{size[0]}x{size[1]}",
            f"version {VERSION}",
        ]
    )


def _found(folder: Path, state: str, shape: tuple[int, ...]) -> np.memmap | None:
    """The file of this `state`, whichever place its images had when it was written."""
    for path in sorted(folder.glob(f"{state}-*.npy")):
        pixels = _mapped(path, shape)
        if pixels is not None:
            return pixels
    return None


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
def _lock(path: Path, target: Path) -> Iterator[bool]:
    """Whether the file system has locks; without them every process writes for itself."""
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"waiting for another process that writes {target}", file=sys.stderr)
        lock.acquire()
    except (NotImplementedError, OSError) as error:  # the first is filelock's for ENOSYS
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _write(target: Path, shape: tuple[int, ...], decode: Decode, place: str | None) -> None:
    """Writes the file. Others of its `place` or state are stale or damaged and removed. `place`
    None: another process may be writing, too."""
    count, nbytes = shape[0], int(np.prod(shape))
    if place is None:
        own = target.with_name(f"{target.stem}-{os.getpid()}.npy")
    else:
        own = target
        state = target.name.partition("-")[0]
        for pattern in (f"*-{place}*", f"{state}-*"):
            for stale in target.parent.glob(pattern):
                stale.unlink()
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
        write_file(own, write_images)
        own.replace(target)
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
