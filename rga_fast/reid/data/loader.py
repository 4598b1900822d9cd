"""From image files to batches: decoding, the cache in memory, training and evaluation batches."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rga_fast import validation
from rga_fast.reid.data.augment import Augmentation, Draws, normalise
from rga_fast.reid.data.datasets import Split
from rga_fast.reid.data.pixel_cache import map_pixels
from rga_fast.reid.data.sampler import IdentitySampler

CACHES = ("off", "memory", "disk")

Size = tuple[int, int]  # height, width
Progress = Callable[[int, int], None]  # images done, images in all

# What Pillow's decoders raise on damaged files.
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


def read_image(path: str | os.PathLike[str], size: Size) -> np.ndarray:
    """Decodes an image file and resizes it to `size` = (height, width): uint8 (H, W, 3), RGB.

    The resize is Pillow's bilinear one with antialiasing, as published. Grey, palette and CMYK
    images are converted, transparency is dropped, an EXIF orientation is applied.
    FileNotFoundError or PermissionError as they come; ValueError names a damaged or
    foreign file, or one with more than 8 bits per channel.
    """
    try:
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith(("I", "F")):  # Pillow would clip these to 255
                raise ValueError(f"expected 8 bits per channel, got Pillow's mode {image.mode}")
            rgb = image if image.mode == "RGB" else image.convert("RGB")
            return np.asarray(rgb.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    except (FileNotFoundError, PermissionError):
        raise
    except _DAMAGED as error:
        raise ValueError(f"{os.fspath(path)}: not a readable image: {error}") from error


class CachedImages:
    """Images that lie decoded in one uint8 array (N, H, W, 3), in memory or mapped from a file."""

    def __init__(self, pixels: np.ndarray) -> None:
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            raise ValueError(
                "CachedImages: pixels must be uint8 (N, H, W, 3), "
                f"got {pixels.dtype} {pixels.shape}"
            )
        self.pixels = pixels

    def __reduce__(self) -> tuple:
        """A mapped array travels to other processes by its path, not by its content."""
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
    """Images that are decoded whenever they are asked for."""

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
    progress: Progress | None = None,
) -> Images:
    """The images of `split` at `size` = (height, width).

    `cache` "off": each is decoded when it is needed. "memory": all are decoded now, on all cores,
    into N * H * W * 3 bytes, and `progress` is told how far this is. "disk": the same bytes lie in
    a file in `folder` that processes share and later runs find (`map_pixels`). Errors as
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


def decode_files(
    files: Sequence[Path],
    size: Size,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
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
        pool.shutdown(cancel_futures=True)  # after an error, don't decode the rest
    return pixels


def damaged_images(files: Sequence[Path], progress: Progress | None = None) -> list[str]:
    """Decodes all `files`; a sentence for each that cannot be read, as `read_image` puts it."""

    def trouble(file: Path) -> str | None:
        try:
            read_image(file, (1, 1))
        except (OSError, ValueError) as error:
            return str(error)
        return None

    found = []
    with ThreadPoolExecutor(available_cores()) as pool:
        for done, sentence in enumerate(pool.map(trouble, files), start=1):
            if sentence is not None:
                found.append(sentence)
            if progress is not None:
                progress(done, len(files))
    return found


def available_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class TrainBatches:
    """Iterates over an epoch of (images, labels): float32 (B, 3, H, W), int64 (B,), on `device`.

    `set_epoch` chooses the epoch. What a step yields depends on (seed, epoch, step) and the
    sampler, not on what was drawn before: a run resumed in the middle of an epoch sees the same
    images. With `workers`, that many processes read batches ahead; images in memory need none.
    `positions` are the places of a batch that are wanted, all by default; see `rank_positions`.
    `waited` counts the seconds of the epoch that the caller spent waiting for its batches.
    """

    def __init__(
        self,
        images: Images,
        labels: np.ndarray,
        sampler: IdentitySampler,
        augmentation: Augmentation,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        workers: int = 0,
        positions: np.ndarray | None = None,
    ) -> None:
        if len(labels) != len(images):
            raise ValueError(f"TrainBatches: {len(images)} images, but {len(labels)} labels")
        self.labels = torch.tensor(labels)
        self.sampler = sampler
        self.augmentation = augmentation
        self.device = torch.device(device)
        self.seed = seed
        self.waited = 0.0
        self._count = sampler.identities_per_batch * sampler.images_per_identity
        self._positions = np.arange(self._count) if positions is None else positions
        self._steps = _StepsFrom(sampler, self._positions)
        self._loader = _read_ahead(images, self._steps, self.device, workers)

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Chooses the epoch and the step, both from 0, with which the next iteration starts."""
        self.sampler.set_epoch(epoch)
        self._steps.first = first_step
        self.waited = 0.0

    def __len__(self) -> int:
        """Steps in a whole epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self.sampler.epoch
        batches = _batches(self._loader, self.device)
        asked = time.perf_counter()
        for step, (indices, pixels) in enumerate(batches, start=self._steps.first):
            images = self.augmentation.apply(pixels, self._draws(pixels, epoch, step))
            labels = self.labels[indices].to(self.device, non_blocking=True)
            self.waited += time.perf_counter() - asked
            yield images, labels
            asked = time.perf_counter()

    def _draws(self, pixels: Tensor, epoch: int, step: int) -> Draws:
        """For the whole batch, whichever of it is here: the share of a rank looks the same."""
        size = (pixels.shape[1], pixels.shape[2])
        draws = self.augmentation.draw(self._count, size, self._generator(epoch, step))
        return Draws(*(choice[self._positions] for choice in draws))

    def _generator(self, epoch: int, step: int) -> torch.Generator:
        state = np.random.SeedSequence(self.seed, spawn_key=(epoch, step)).generate_state(1, "u8")
        return torch.Generator().manual_seed(int(state[0]))


class EvalBatches:
    """Iterates over all images in order: (images, indices), the last batch perhaps smaller.

    The images are float32 (B, 3, H, W) on `device`, normalised only; the indices int64 (B,) on the
    CPU. `workers` as in TrainBatches. `share` = (i, n): every n-th batch from the i-th on.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int = 64,
        *,
        device: torch.device | str = "cpu",
        workers: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"EvalBatches: batch_size must be at least 1, got {batch_size}")
        self.device = torch.device(device)
        everything = np.arange(len(images))
        steps = [
            everything[first : first + batch_size] for first in range(0, len(images), batch_size)
        ]
        self._steps = steps[share[0] :: share[1]]
        self._loader = _read_ahead(images, self._steps, self.device, workers)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._steps)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for indices, pixels in _batches(self._loader, self.device):
            yield normalise(pixels), indices


class _StepsFrom:
    """The sampler's batches from step `first` on, of each the images at `positions`."""

    def __init__(self, sampler: IdentitySampler, positions: np.ndarray) -> None:
        self.sampler = sampler
        self.positions = positions
        self.first = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for batch in islice(self.sampler, self.first, None):
            yield batch[self.positions]


class _IndexedImages(Dataset):
    """Yields (indices, pixels), or the error: DataLoader would bury its text in a traceback."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __getitem__(self, indices: np.ndarray) -> tuple[Tensor, Tensor] | Exception:
        try:
            return torch.from_numpy(indices), self.images[indices]
        except (OSError, ValueError) as error:
            return error


def _read_ahead(
    images: Images, steps: Iterable[np.ndarray], device: torch.device, workers: int
) -> DataLoader:
    return DataLoader(
        _IndexedImages(images),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_own_session,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # or each epoch would draw from the global one
    )


def _own_session(worker: int) -> None:
    """torchrun and terminals signal whole groups of processes; a worker that died of a SIGTERM
    would keep the run from saving. Workers end by themselves when their parent is gone."""
    if hasattr(os, "setsid"):
        os.setsid()


def _batches(loader: DataLoader, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in loader:
        if isinstance(batch, Exception):
            try:
                raise batch
            finally:
                del batch  # else error and frame keep each other, and workers end 10 s late
        indices, pixels = batch
        yield indices, pixels.to(device, non_blocking=True)
