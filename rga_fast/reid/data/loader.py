"""Batches for training and evaluation."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rga_fast.reid.data.augment import Augmentation, Draws, normalise
from rga_fast.reid.data.given import GivenImages
from rga_fast.reid.data.images import Images
from rga_fast.reid.data.sampler import IdentitySampler


class TrainBatches:
    """Iterates over an epoch of (images, labels): float32 (B, 3, H, W), int64 (B,), on `device`.

    `set_epoch` chooses the epoch. A step depends on (seed, epoch, step) and the sampler only: a run
    resumed in the middle of an epoch sees the same images. `workers` processes prefetch batches;
    images in memory need none. `positions` selects the rows of each batch for this rank, all by
    default; see `rank_positions`. `waited` is the time in seconds that the caller has waited for
    batches in this epoch.
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
        """Chooses the epoch and the first step, both from 0, of the next iteration."""
        self.sampler.set_epoch(epoch)
        self._steps.first = first_step
        self.waited = 0.0

    def __len__(self) -> int:
        """Steps in a complete epoch."""
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
        """Draws for the global batch, then selects this rank's rows: ranks change no draw."""
        size = (pixels.shape[1], pixels.shape[2])
        draws = self.augmentation.draw(self._count, size, self._generator(epoch, step))
        return Draws(*(choice[self._positions] for choice in draws))

    def _generator(self, epoch: int, step: int) -> torch.Generator:
        state = np.random.SeedSequence(self.seed, spawn_key=(epoch, step)).generate_state(1, "u8")
        return torch.Generator().manual_seed(int(state[0]))


class EvalBatches:
    """Iterates over all images in order: (images, indices). The last batch may be smaller.

    The images are float32 (B, 3, H, W) on `device`, normalised only; the indices int64 (B,) on the
    CPU. `workers` as in TrainBatches. `share` = (i, n): every n-th batch, starting with the i-th.
    """

    def __init__(
        self,
        images: Images | GivenImages,
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
    """The sampler's batches from step `first`, reduced to `positions`."""

    def __init__(self, sampler: IdentitySampler, positions: np.ndarray) -> None:
        self.sampler = sampler
        self.positions = positions
        self.first = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for batch in islice(self.sampler, self.first, None):
            yield batch[self.positions]


class _IndexedImages(Dataset):
    """Returns (indices, pixels), or the error: DataLoader would wrap it in a traceback."""

    def __init__(self, images: Images | GivenImages) -> None:
        self.images = images

    def __getitem__(self, indices: np.ndarray) -> tuple[Tensor, Tensor] | Exception:
        try:
            return torch.from_numpy(indices), self.images[indices]
        except (OSError, ValueError) as error:
            return error


def _read_ahead(
    images: Images | GivenImages, steps: Iterable[np.ndarray], device: torch.device, workers: int
) -> DataLoader:
    return DataLoader(
        _IndexedImages(images),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_own_session,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else each epoch draws from the global one
    )


def _own_session(worker: int) -> None:
    """torchrun and terminals signal the whole process group, and a worker killed by SIGTERM would
    keep the run from saving. Workers exit when their parent has gone."""
    if hasattr(os, "setsid"):
        os.setsid()


def _batches(loader: DataLoader, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in loader:
        if isinstance(batch, Exception):
            try:
                raise batch
            finally:
                del batch  # else error and frame reference each other, and workers exit 10 s late
        indices, pixels = batch
        yield indices, pixels.to(device, non_blocking=True)
