"""Features of many files: decoded by threads, and a damaged file stops nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rga_fast.reid.data.augment import normalise
from rga_fast.reid.data.images import Size, available_cores, read_image
from rga_fast.reid.retrieval.features import batch_features
from rga_fast.reid.retrieval.model import ReidModel

# Batches that are decoded or wait for the network. On a CPU the network takes all cores, and
# threads that decode at the same time delay it by more than they gain.
_AHEAD_ON_CPU, _AHEAD = 1, 3


class Extracted(NamedTuple):
    """The features (n, D) of a batch's readable images, on the network's device; their places in
    the list of files; the errors of the others."""

    features: Tensor
    places: list[int]
    errors: list[str]


@torch.inference_mode()
def extract_files(
    model: ReidModel, files: Sequence[Path], batch_size: int, threads: int | None = None
) -> Iterator[Extracted]:
    """Batches of features of `files`, in order. `threads` decode, by default one a core."""
    model.network.eval()
    ahead = _AHEAD_ON_CPU if model.device.type == "cpu" else _AHEAD
    for pixels, places, errors in _decoded(files, model.config.size, batch_size, ahead, threads):
        batch = torch.from_numpy(pixels)
        if model.device.type == "cuda":
            batch = batch.pin_memory().to(model.device, non_blocking=True)
        if len(batch):
            both = batch_features(model.network, normalise(batch), flip=model.flip)
            features = getattr(both, model.feature).float()
        else:
            features = torch.empty(0, model.feature_dim, device=model.device)
        yield Extracted(features, places, errors)


_Decoded = tuple[np.ndarray, list[int], list[str]]


def _decoded(
    files: Sequence[Path], size: Size, batch_size: int, ahead: int, threads: int | None
) -> Iterator[_Decoded]:
    def decode(place: int) -> np.ndarray | str:
        try:
            return read_image(files[place], size)
        except (OSError, ValueError) as error:
            return str(error)

    pool = ThreadPoolExecutor(threads or available_cores())
    waiting: deque[list[Future[np.ndarray | str]]] = deque()
    starts = range(0, len(files), batch_size)
    try:
        for number, start in enumerate(starts):
            stop = min(start + batch_size, len(files))
            waiting.append([pool.submit(decode, place) for place in range(start, stop)])
            if len(waiting) == ahead:
                yield _collected(waiting.popleft(), starts[number - ahead + 1], size)
        first = len(starts) - len(waiting)
        for number, batch in enumerate(list(waiting), start=first):
            yield _collected(batch, starts[number], size)
    finally:
        pool.shutdown(cancel_futures=True)


def _collected(batch: list[Future[np.ndarray | str]], start: int, size: Size) -> _Decoded:
    pixels, places, errors = [], [], []
    for place, future in enumerate(batch, start=start):
        image = future.result()
        if isinstance(image, str):
            errors.append(image)
        else:
            pixels.append(image)
            places.append(place)
    stacked = np.stack(pixels) if pixels else np.empty((0, *size, 3), np.uint8)
    return stacked, places, errors
