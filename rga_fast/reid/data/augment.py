"""The published augmentation and colour jitter, for a whole batch on its device.

Random numbers are drawn first, on the CPU (`Augmentation.draw`), then applied. So a generator makes
the same choices for every device, nothing waits for the device, and a process that holds a slice of
a batch applies the same slice of the draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ERASE_ATTEMPTS = 100
GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601, as Pillow's "L"


@contextmanager
def _one_thread() -> Iterator[None]:
    """These passes are so short that a second thread gains nothing. If the cores are busy, as with
    decoding workers, waiting for it in each pass takes up to ten times as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Draws(NamedTuple):
    """The random choices for B images: tensors on the CPU with B rows."""

    translate: Tensor  # bool (B,)
    offset: Tensor  # int64 (B, 2): top and left of the crop from the enlarged image
    flip: Tensor  # bool (B,)
    erase: Tensor  # int64 (B, 4): top, left, height, width; zeros without erasing
    colour: Tensor  # float64 (B, 3): factors of brightness, contrast, saturation; 1 without jitter


@dataclass(frozen=True)
class Augmentation:
    """Random translation, flip and erasing with the published probabilities and ranges; jitter.

    Translation enlarges an image by `enlarge` and crops it at a random place. It enlarges the image
    at training size, so that a cache holds every image once; the published code resizes the file.
    Files of the training size give the same pixels, others a slightly softer image. Erasing fills a
    rectangle with 0 after normalisation; its share of the image and its aspect (height / width) are
    uniform in `erase_area` and `erase_aspect`. Jitter, which the published recipe does not have,
    multiplies brightness, contrast and saturation by factors uniform in `jitter_range`.

    ValueError: a probability outside 0..1, `enlarge` below 1, an invalid range.
    """

    translate: float = 0.5
    enlarge: float = 1.125
    flip: float = 0.5
    erase: float = 0.5
    erase_area: tuple[float, float] = (0.02, 0.4)
    erase_aspect: tuple[float, float] = (0.3, 1 / 0.3)
    jitter: float = 0.0
    jitter_range: tuple[float, float] = (0.7, 1.3)

    def __post_init__(self) -> None:
        for name in ("translate", "flip", "erase", "jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"Augmentation: {name} must be a probability, got {getattr(self, name)}"
                )
        if self.enlarge < 1:
            raise ValueError(f"Augmentation: enlarge must be at least 1, got {self.enlarge}")
        limits = {"erase_area": 1.0, "erase_aspect": math.inf, "jitter_range": math.inf}
        for name, most in limits.items():
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                raise ValueError(
                    f"Augmentation: {name} must be (low, high) with 0 < low <= high <= {most}, "
                    f"got {(low, high)}"
                )

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 (B, H, W, 3) -> float32 (B, 3, H, W), normalised. `generator` is on the CPU."""
        B, H, W, _ = _check_pixels(pixels)
        return self.apply(pixels, self.draw(B, (H, W), generator))

    @_one_thread()
    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Draws:
        """Draws for `count` images of `size` (height, width)."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(count, *shape, generator=generator, dtype=torch.float64)

        room = torch.tensor(self._enlarged(size)) - torch.tensor(size)
        return Draws(
            translate=uniform() < self.translate,
            offset=(uniform(2) * room).round().long(),
            flip=uniform() < self.flip,
            erase=self._rectangles(
                size, uniform() < self.erase, uniform(2, ERASE_ATTEMPTS), uniform(2)
            ),
            colour=self._colours(uniform() < self.jitter, uniform(3)),
        )

    @_one_thread()
    def apply(self, pixels: Tensor, draws: Draws) -> Tensor:
        """uint8 (B, H, W, 3) -> float32 (B, 3, H, W): `draws` applied, then normalised.

        Crops are copied image by image, as views, which is faster on a CPU than masks and gathers
        over the batch.
        """
        _, H, W, _ = _check_pixels(pixels)
        moved = draws.translate.nonzero().flatten()
        pixels = pixels.clone()
        larger = _resize(pixels[moved.to(pixels.device, non_blocking=True)], self._enlarged((H, W)))
        for image, i, (top, left) in zip(
            larger, moved.tolist(), draws.offset[moved].tolist(), strict=True
        ):
            pixels[i] = image[top : top + H, left : left + W]
        for i in draws.flip.nonzero().flatten().tolist():
            pixels[i] = pixels[i].flip(1)
        for i in (draws.colour != 1).any(dim=1).nonzero().flatten().tolist():
            pixels[i] = _jittered(pixels[i], *draws.colour[i].tolist())
        images = normalise(pixels)
        for image, (top, left, height, width) in zip(images, draws.erase.tolist(), strict=True):
            image[:, top : top + height, left : left + width] = 0
        return images

    def _enlarged(self, size: tuple[int, int]) -> tuple[int, int]:
        return round(size[0] * self.enlarge), round(size[1] * self.enlarge)

    def _colours(self, wanted: Tensor, place: Tensor) -> Tensor:
        return torch.where(wanted[:, None], torch.lerp(*_ends(self.jitter_range), place), 1.0)

    def _rectangles(
        self, size: tuple[int, int], wanted: Tensor, shape: Tensor, place: Tensor
    ) -> Tensor:
        """(B, 4): for each image the first attempt in `shape` (B, 2, A) that fits into `size`."""
        H, W = size
        area = torch.lerp(*_ends(self.erase_area), shape[:, 0]) * (H * W)
        aspect = torch.lerp(*_ends(self.erase_aspect), shape[:, 1])
        heights = (area * aspect).sqrt().round().long()
        widths = (area / aspect).sqrt().round().long()
        fits = (heights < H) & (widths < W)
        first = fits.int().argmax(dim=1, keepdim=True)
        height, width = heights.gather(1, first)[:, 0], widths.gather(1, first)[:, 0]
        top = (place[:, 0] * (H - height + 1)).long()
        left = (place[:, 1] * (W - width + 1)).long()
        erased = wanted & fits.any(dim=1)
        return torch.stack([top, left, height, width], dim=1) * erased[:, None]


@_one_thread()
def normalise(pixels: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W), contiguous: by ImageNet's mean and deviation."""
    _check_pixels(pixels)
    factor, shift = _affine(pixels.device)
    images = pixels.permute(0, 3, 1, 2).contiguous().float()
    return images.mul_(factor).sub_(shift)


@cache
def _affine(device: torch.device) -> tuple[Tensor, Tensor]:
    """(3, 1, 1) each: 1 / (255 std), mean / std. Cached: copying them would wait for a GPU."""
    with torch.inference_mode(False):
        mean, std = (torch.tensor(c)[:, None, None] for c in (IMAGENET_MEAN, IMAGENET_STD))
        return (1 / (255 * std)).to(device), (mean / std).to(device)


def denormalise(images: Tensor) -> Tensor:
    """The inverse of `normalise`, for display: float32 (B, 3, H, W) in 0..1, on the CPU."""
    mean, std = (torch.tensor(c)[:, None, None] for c in (IMAGENET_MEAN, IMAGENET_STD))
    return (images.detach().float().cpu() * std + mean).clamp(0, 1)


def _check_pixels(pixels: Tensor) -> torch.Size:
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        raise ValueError(
            f"pixels must be uint8 (B, H, W, 3), got {pixels.dtype} {tuple(pixels.shape)}"
        )
    return pixels.shape


def _resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (B, h, w, 3) -> uint8 (B, H, W, 3), bilinear, rounded as Pillow does."""
    images = pixels.permute(0, 3, 1, 2)
    if pixels.is_cpu:  # only the CPU interpolates bytes, 5 times as fast as floats
        images = F.interpolate(images, size=size, mode="bilinear")
    else:
        images = F.interpolate(images.float(), size=size, mode="bilinear").round().byte()
    return images.permute(0, 2, 3, 1)


def _jittered(pixels: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """uint8 (H, W, 3) -> the same shape. Contrast is about the image's mean grey, saturation about
    each pixel's grey."""
    image = pixels.float() * brightness
    red, green, blue = image.split(1, dim=2)
    grey = GREY[0] * red + GREY[1] * green + GREY[2] * blue
    image = grey + saturation * (image - grey)  # keeps the mean grey
    mean = grey.mean()
    return (mean + contrast * (image - mean)).round().clamp(0, 255).byte()


def _ends(interval: tuple[float, float]) -> tuple[Tensor, Tensor]:
    low, high = interval
    return torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)
