"""The empty view of a camera: textured planes and tubes with a depth map, painted once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from rga_fast.reid.synth.geometry import Array, View
from rga_fast.reid.synth.light import Light, shade
from rga_fast.reid.synth.raster import Part, rasterise
from rga_fast.reid.synth.shadow import shadow_mask

Texture = Callable[[Array, Array], Array]  # two coordinates in metres -> colours (3, N)
NOISE_TILE = 512


@dataclass
class Stage:
    """A frame under construction: `rgb` (3, H, W) in [0, 1], `near` (H, W) = minus the depth."""

    view: View
    light: Light
    rgb: Array
    near: Array

    @classmethod
    def empty(cls, view: View, light: Light) -> Stage:
        width, height = view.frame
        return cls(
            view,
            light,
            np.zeros((3, height, width), np.float32),
            np.full((height, width), -1e5, np.float32),
        )

    def sky(self, top: tuple[float, float, float], low: tuple[float, float, float]) -> None:
        """A vertical gradient over the whole frame, behind everything."""
        height = self.near.shape[0]
        mix = np.linspace(0, 1, height, dtype=np.float32)[:, None]
        for i in range(3):
            self.rgb[i] = top[i] * (1 - mix) + low[i] * mix

    def plane(
        self,
        axis: str,
        at: float,
        texture: Texture,
        within: tuple[float, float, float, float] = (-1e4, 1e4, -1e4, 1e4),
    ) -> None:
        """Paints the part of the plane `axis` = `at` that lies `within` (low, high, low, high).

        The texture's coordinates are the two other axes in the order x, y, z.
        """
        ray = _rays(self.view)
        index = "xyz".index(axis)
        origin = self.view.position
        with np.errstate(divide="ignore", invalid="ignore"):
            far = (at - origin[index]) / ray[index]
        others = [i for i in range(3) if i != index]
        p, q = (origin[i] + far * ray[i] for i in others)
        inside = (far > 0) & (far < 400) & (-far > self.near)
        inside &= (p >= within[0]) & (p <= within[1]) & (q >= within[2]) & (q <= within[3])
        where = np.flatnonzero(inside)
        colours = texture(p.ravel()[where], q.ravel()[where])
        for channel, values in zip(self.rgb, colours, strict=True):
            channel.ravel()[where] = values
        self.near.ravel()[where] = -far.ravel()[where]

    def tubes(self, parts: list[Part], shadow: float = 0.4) -> None:
        """Adds things made of tubes, lit and hidden like people, with a shadow on the ground."""
        width, height = self.view.frame
        box = (0.0, 0.0, float(width), float(height))
        if shadow:
            mask = shadow_mask(parts, self.view, self.light.direction, box, (height, width))
            soft = Image.fromarray(mask).filter(ImageFilter.GaussianBlur(2.5))
            self.rgb *= 1 - np.float32(shadow / 255) * np.asarray(soft, np.float32)
        seen = rasterise(parts, self.view, box, (height, width))
        picture = shade(seen, parts, self.view, self.light, self.view.focal / 8)
        front = seen.near > self.near
        for channel, values in zip(self.rgb, picture[:3], strict=True):
            np.copyto(channel, values, where=front)
        np.copyto(self.near, seen.near, where=front)

    def fog(self, colour: tuple[float, float, float], metres: float) -> None:
        """Fades what is far towards `colour`, by half at about `metres`."""
        weight = 1 - np.exp(np.maximum(self.near, -300) * np.float32(math.log(2) / metres))
        for channel, value in zip(self.rgb, colour, strict=True):
            channel += weight * (np.float32(value) - channel)


def _rays(view: View) -> tuple[Array, Array, Array]:
    """World directions per pixel, scaled so that a step of 1 is 1 metre of depth."""
    width, height = view.frame
    a = (np.arange(width, dtype=np.float32)[None, :] - width / 2) / np.float32(view.focal)
    b = (height / 2 - np.arange(height, dtype=np.float32)[:, None]) / np.float32(view.focal)
    sin, cos = np.float32(math.sin(view.pitch)), np.float32(math.cos(view.pitch))
    up, ahead = b * cos - sin, b * sin + cos
    shape = (height, width)
    return tuple(np.broadcast_to(r, shape) for r in (a, up, ahead))  # type: ignore[return-value]


@cache
def _noise_tile() -> Array:
    rng = np.random.default_rng(1501)
    total = np.zeros((NOISE_TILE, NOISE_TILE), np.float32)
    for cells, weight in ((8, 1.0), (24, 0.7), (72, 0.5), (216, 0.35), (512, 0.25)):
        # Padded with itself, so that the tile continues where it ends.
        grid = np.pad(rng.standard_normal((cells, cells)).astype(np.float32), 4, "wrap")
        box, size = (4, 4, 4 + cells, 4 + cells), (NOISE_TILE, NOISE_TILE)
        wide = Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC, box=box)
        total += np.float32(weight) * np.asarray(wide)
    return (total - total.mean()) / total.std()


def noise(p: Array, q: Array, metres: float) -> Array:
    """Smooth noise with mean 0 and deviation 1; its tile repeats after `metres`."""
    per = np.float32(NOISE_TILE / metres)
    rows = np.floor(p * per).astype(np.intp) % NOISE_TILE
    columns = np.floor(q * per).astype(np.intp) % NOISE_TILE
    return _noise_tile().take(rows * NOISE_TILE + columns)


def cell_noise(p: Array, q: Array, salt: int = 0) -> Array:
    """Uniform noise in [0, 1), one value per pair of integers, for tiles and windows."""
    i = np.floor(p).astype(np.int64) * 7349 + np.floor(q).astype(np.int64) * 9151 + salt * 331
    i = (i * 2654435761) & 0xFFFFFFFF
    return ((i ^ (i >> 13)) % 1021).astype(np.float32) / np.float32(1021)
