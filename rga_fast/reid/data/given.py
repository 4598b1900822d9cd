"""Images as a caller has them: paths, PIL images, arrays and tensors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rga_fast.reid.data.images import Size, read_image, to_pixels

CHANNELS = ("rgb", "bgr")

OneImage = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor
SomeImages = OneImage | Iterable[OneImage]


class GivenImages:
    """Images of any kind and size, resized at each access as those of the training.

    Args:
        images: one image or several: paths; PIL images; uint8 arrays (H, W, 3) or (N, H, W, 3);
            uint8 tensors (3, H, W) or (N, 3, H, W).
        size: (height, width) of the network's input, in pixels.
        channels: the order of the colours in arrays and tensors, "rgb" (Pillow, torchvision) or
            "bgr" (OpenCV). It cannot be seen in the numbers, so it has to be given.

    Raises:
        ValueError: for anything else, and for arrays and tensors without `channels`.
    """

    def __init__(self, images: SomeImages, size: Size, channels: str | None = None) -> None:
        if channels is not None and channels not in CHANNELS:
            raise ValueError(f"channels must be one of {CHANNELS}, got {channels!r}")
        self.images = _listed(images)
        self.size = size
        self.channels = channels
        for number, image in enumerate(self.images):
            _check(image, channels, f"image {number}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """uint8 (B, H, W, 3), RGB: the images at `indices` (B,)."""
        return torch.from_numpy(np.stack([self._pixels(self.images[i]) for i in indices]))

    def _pixels(self, image: OneImage) -> np.ndarray:
        if isinstance(image, str | os.PathLike):
            return read_image(image, self.size)
        if isinstance(image, Image.Image):
            return to_pixels(image, self.size)
        if isinstance(image, Tensor):
            image = image.detach().cpu().permute(1, 2, 0).numpy()
        if self.channels == "bgr":
            image = image[..., ::-1]
        return to_pixels(Image.fromarray(np.ascontiguousarray(image)), self.size)


def _listed(images: SomeImages) -> list[OneImage]:
    if isinstance(images, np.ndarray | Tensor):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, str | os.PathLike | Image.Image):
        return [images]
    if not isinstance(images, Iterable):
        raise ValueError(_unexpected("images", type(images).__name__))
    return list(images)


def _check(image: object, channels: str | None, name: str) -> None:
    if isinstance(image, str | os.PathLike | Image.Image):
        return
    if not isinstance(image, np.ndarray | Tensor):
        raise ValueError(_unexpected(name, type(image).__name__))
    place = 0 if isinstance(image, Tensor) else 2
    right = image.dtype in (np.uint8, torch.uint8) and image.ndim == 3 and 0 not in image.shape
    if not right or image.shape[place] != 3:
        kind = type(image).__name__
        raise ValueError(_unexpected(name, f"{kind} of {image.dtype} {tuple(image.shape)}"))
    if channels is None:
        raise ValueError(
            f'{name} is a {type(image).__name__}: say the order of its colours, channels="rgb" '
            '(Pillow, torchvision) or channels="bgr" (OpenCV)'
        )


def _unexpected(name: str, found: str) -> str:
    return (
        f"{name}: expected paths, PIL images, uint8 arrays (H, W, 3) or uint8 tensors (3, H, W) "
        f"with values from 0 to 255, got {found}"
    )
