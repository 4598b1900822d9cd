"""A trained network as a few lines of Python use it: features, comparisons, searches."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rga_fast import validation
from rga_fast.reid.checkpoint import Trained, latest_checkpoint, open_trained
from rga_fast.reid.data.given import GivenImages, SomeImages
from rga_fast.reid.distributed import pick_device
from rga_fast.reid.retrieval.distances import FeatureDistances
from rga_fast.reid.retrieval.features import FEATURES, extract_features

if TYPE_CHECKING:
    from rga_fast.reid.retrieval.index.search import Filter, Index, Match

# With the weights these decide the features.
_DECIDES = ("arch", "height", "width", "base_width", "last_stride", "attention", "stages")


def load(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    impl: str = "auto",
    feature: str = "after_neck",
    flip: bool = False,
) -> ReidModel:
    """The trained network of a run or checkpoint, ready to use.

    Args:
        path: a checkpoint (`last.pt`), or the folder of a run: its newest intact checkpoint.
        device: by default a GPU if there is one, else the CPU.
        impl: of the attention, see `rga_fast.RGA`.
        feature: "after_neck" or "before_neck": after or before the last batch normalisation.
        flip: average the features of image and mirror image.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if it is damaged, or an argument is wrong.
    """
    validation.check_choice("load", "feature", feature, FEATURES)
    checkpoint = find_checkpoint(path)
    # Not the device of the configuration: only the machine of the training may have it.
    trained = open_trained(checkpoint, pick_device(str(device or "auto")), impl=impl)
    return ReidModel(trained, checkpoint, feature, flip)


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The checkpoint at `path`, or the newest intact one of the run in this folder.

    Raises:
        FileNotFoundError: if there is none. ValueError: if all are damaged.
    """
    path = Path(path)
    if not path.is_dir():
        return path  # where it is missing, `load_checkpoint` says so
    for folder in (path / "checkpoints", path):
        found = latest_checkpoint(folder)
        if found is not None:
            return found
    raise FileNotFoundError(f"{path}: no checkpoint in this folder, nor in checkpoints/")


class ReidModel:
    """A trained network with the pre-processing of its training. Made by `load`.

    Attributes: `network` (in evaluation mode), `config` (of its run), `epoch`, `path` (of the
    checkpoint), `feature`, `flip`, `device`.
    """

    def __init__(self, trained: Trained, path: Path, feature: str, flip: bool) -> None:
        self.network, self.config, self.epoch = trained
        self.path = path
        self.feature = feature
        self.flip = flip

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @cached_property
    def hash(self) -> str:
        """SHA-256, in hexadecimal, of the weights and of what else decides the features: the same
        for every copy of a checkpoint, on every device."""
        fields = [getattr(self.config, name) for name in _DECIDES]
        digest = hashlib.sha256(repr(fields).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def feature_dim(self) -> int:
        return self.network.feature_dim

    def features(
        self,
        images: SomeImages,
        *,
        channels: str | None = None,
        batch_size: int | None = None,
        workers: int = 0,
    ) -> Tensor:
        """The features of images, as `rga-fast evaluate` extracts them: float32 (N, D), on the CPU.

        Args:
            images: one image or several: paths; PIL images; uint8 arrays (H, W, 3) or
                (N, H, W, 3); uint8 tensors (3, H, W) or (N, 3, H, W), of any size.
            channels: "rgb" or "bgr", required for arrays and tensors. OpenCV reads "bgr".
            batch_size: images at a time, by default that of the evaluation (`eval_batch`).
            workers: processes that read ahead.

        Raises:
            OSError, ValueError: for images that cannot be read; ValueError for other input.
        """
        given = GivenImages(images, self.config.size, channels)
        features = extract_features(
            self.network,
            given,
            batch_size=self.config.eval_batch if batch_size is None else batch_size,
            device=self.device,
            workers=workers,
            flip=self.flip,
        )
        return getattr(features, self.feature)

    def compare(self, a: SomeImages, b: SomeImages, *, channels: str | None = None) -> Tensor:
        """The cosine distances, 0 to 2, of images `a` from images `b`: float32 (Na, Nb).

        Small distances mean the same person. Both may be images as `features` takes them, or
        features (N, D).
        """
        distances = FeatureDistances(
            self._as_features(a, channels), self._as_features(b, channels), caller="compare"
        )
        return distances.rows(0, distances.shape[0])

    def search(
        self,
        index: Index | str | os.PathLike[str],
        images: SomeImages,
        k: int = 10,
        *,
        where: Filter | None = None,
        channels: str | None = None,
    ) -> list[list[Match]]:
        """The k nearest images of an index for each image, nearest first; exact.

        Args:
            index: the folder that `rga-fast index` wrote, or an open `Index`.
            images: images as `features` takes them, or features (N, D).
            where: the cameras and times that may be found, see `Filter`.

        Raises:
            FileNotFoundError, ValueError: if it is no index; ValueError if another network made it.
        """
        from rga_fast.reid.retrieval.index.record import check_same_model
        from rga_fast.reid.retrieval.index.search import Index

        index = index if isinstance(index, Index) else Index(index)
        check_same_model(index.folder, index.manifest, self)
        return index.search(self._as_features(images, channels), k, where)

    def _as_features(self, given: SomeImages, channels: str | None) -> Tensor:
        if isinstance(given, Tensor) and given.is_floating_point() and given.ndim == 2:
            return given
        return self.features(given, channels=channels)
