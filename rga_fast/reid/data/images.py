"""Images: decoding files, and the caches in memory and on disk."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rga_fast import validation
from rga_fast.reid.console import Advance
from rga_fast.reid.data.datasets import Split
from rga_fast.reid.data.pixel_cache import map_pixels
from rga_fast.reid.files import size_text

CACHES = ("off", "memory", "disk")

Size = tuple[int, int]  # height, width

ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SMALLEST = 2  # pixels on a side: a smaller file is a placeholder
ANIMATED = ("GIF", "PNG", "WEBP")  # a phone's JPEG and a TIFF may hold a preview besides the image


def read_image(path: str | os.PathLike[str], size: Size) -> np.ndarray:
    """Decodes an image file and resizes it to `size` = (height, width): uint8 (H, W, 3), RGB.

    Resizes with Pillow's antialiased bilinear filter, as published. Grey, palette and CMYK images
    are converted, transparency is dropped, an EXIF orientation is applied.
    FileNotFoundError, PermissionError, IsADirectoryError; ValueError names a file that is damaged,
    no image, an animation, narrower than 2 pixels, larger than Pillow's limit of 179 million, or
    has more than 8 bits per channel.
    """
    try:
        with Image.open(path) as image:
            return to_pixels(image, size)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # decoders raise any kind on damaged bytes
        raise ValueError(f"{os.fspath(path)}: not a readable image: {error}") from error


def to_pixels(image: Image.Image, size: Size) -> np.ndarray:
    """An open image, turned, converted and resized as `read_image` does it: uint8 (H, W, 3), RGB.

    ValueError for what `read_image` does not take; whatever decoding raises.
    """
    _check(image)
    upright = UPRIGHT.get(_orientation(image) or 1)
    whole = image if upright is None else image.transpose(upright)
    rgb = whole if whole.mode == "RGB" else whole.convert("RGB")
    return np.asarray(rgb.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _check(image: Image.Image) -> None:
    """ValueError unless the file, which is not decoded yet, can show a person."""
    width, height = image.size
    if min(width, height) < SMALLEST:
        raise ValueError(f"{width} x {height} pixels; expected an image of a person")
    frames = getattr(image, "n_frames", 1)
    if image.format in ANIMATED and frames > 1:
        raise ValueError(f"an animation ({image.format} with {frames} frames)")
    if image.mode.startswith(("I", "F")):  # Pillow would clip these to 255
        raise ValueError(f"expected 8 bits per channel, got Pillow's mode {image.mode}")


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation; None if there is none, or it cannot be read. Nothing else of the EXIF
    data is looked at, so that an odd tag does not matter."""
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:  # whatever its parsers raise on damaged bytes
        return None


class CachedImages:
    """Decoded images in one uint8 array (N, H, W, 3), in memory or mapped from a file."""

    def __init__(self, pixels: np.ndarray) -> None:
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            raise ValueError(
                "CachedImages: pixels must be uint8 (N, H, W, 3), "
                f"got {pixels.dtype} {pixels.shape}"
            )
        self.pixels = pixels

    def __reduce__(self) -> tuple:
        """A mapped array is pickled as its path, not its content."""
        if isinstance(self.pixels, np.memmap):
            return _reopened, (self.pixels.filename,)
        return CachedImages, (self.pixels,)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """uint8 (B, H, W, 3): a copy of the images at `indices` (B,)."""
        return torch.from_numpy(self.pixels[indices])


def _reopened(path: str) -> CachedImages:
    return CachedImages(np.load(path, mmap_mode="r"))


class ImageFiles:
    """Images that are decoded at each access."""

    def __init__(self, files: Sequence[Path], size: Size) -> None:
        self.files = files
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """uint8 (B, H, W, 3): the images at `indices` (B,), read from their files."""
        return torch.from_numpy(np.stack([read_image(self.files[i], self.size) for i in indices]))


Images = CachedImages | ImageFiles


def open_images(
    split: Split,
    size: Size,
    *,
    cache: str = "off",
    folder: str | os.PathLike[str] | None = None,
    progress: Advance | None = None,
) -> Images:
    """The images of `split` at `size` = (height, width).

    `cache` "off": each is decoded at each access. "memory": all are decoded now, on all cores, into
    N * H * W * 3 bytes; `progress` is called after each. "disk": the same bytes are stored in a
    file in `folder` that processes share and later runs reuse (`map_pixels`). Errors as
    `read_image` and `map_pixels`.
    """
    validation.check_choice("open_images", "cache", cache, CACHES)
    files = [split.file(index) for index in range(len(split))]
    if cache == "off":
        return ImageFiles(files, size)
    if cache == "memory":
        return CachedImages(decode_files(files, size, progress=progress))

    def decode(chunk: range) -> np.ndarray:
        def advance(done: int, _: int) -> None:
            if progress is not None:
                progress(chunk.start + done, len(files))

        return decode_files([files[index] for index in chunk], size, progress=advance)

    return CachedImages(map_pixels(split, size, decode, folder))


def cache_note(cache: str, splits: Iterable[Split], size: Size, world: int = 1) -> str:
    """How much the decoded images of `splits` take, and where: `cache` is "memory" or "disk", and
    each of `world` ranks has its own memory."""
    nbytes = sum(map(len, splits)) * size[0] * size[1] * 3
    note = f"decoded images, {'in memory' if cache == 'memory' else 'in a file on disk'}"
    if cache == "memory" and world > 1:
        note += f" of each of {world} ranks"
    return f"{note}: {size_text(nbytes)}"


def decode_files(
    files: Sequence[Path],
    size: Size,
    *,
    threads: int | None = None,
    progress: Advance | None = None,
) -> np.ndarray:
    """uint8 (N, H, W, 3): all `files`, decoded by `threads` (default: one per available core)."""
    pixels = np.empty((len(files), *size, 3), dtype=np.uint8)

    def decode(index: int) -> None:
        pixels[index] = read_image(files[index], size)

    pool = ThreadPoolExecutor(threads or available_cores())
    try:
        for done, _ in enumerate(pool.map(decode, range(len(files))), start=1):
            if progress is not None:
                progress(done, len(files))
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, skip the rest
    return pixels


def available_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
