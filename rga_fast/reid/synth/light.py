"""Lights what the rasteriser found visible: sun, sky, ground, creases of cloth, cast shadow."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from rga_fast.reid.synth.geometry import Array, View, unit
from rga_fast.reid.synth.raster import Part, Surface, Visible
from rga_fast.reid.synth.wardrobe import Colour

FOLD_TILE = 256  # entries of the crease texture, along each side


@dataclass(frozen=True)
class Light:
    """`direction` points towards the lamp (world axes); colours are gains for red, green, blue."""

    direction: tuple[float, float, float]
    sun: Colour
    sky: Colour
    ground: Colour


@cache
def _creases() -> Array:
    """A tile of smooth noise, drawn out along the tube, with mean 0 and deviation 1."""
    rng = np.random.default_rng(20200619)
    total = np.zeros((FOLD_TILE, FOLD_TILE), np.float32)
    for cells, weight in ((6, 1.0), (14, 0.8), (30, 0.4)):
        noise = rng.standard_normal((cells, cells * 2)).astype(np.float32)
        wide = Image.fromarray(noise).resize((FOLD_TILE, FOLD_TILE), Image.Resampling.BICUBIC)
        total += weight * np.asarray(wide)
    return (total - total.mean()) / total.std()


def shade(seen: Visible, parts: list[Part], view: View, light: Light, scale: float) -> Array:
    """The picture, (4, H, W) float32 in [0, 1]; the last channel is the coverage.

    `scale` is the number of pixels per metre at the person, for the length of cast shadows.
    """
    h, w = seen.near.shape
    out = np.zeros((4, h * w), np.float32)
    where, ids, surface = seen.where, seen.part, seen.surface
    if not len(where):
        return out.reshape(4, h, w)
    flatness, folds, gloss = (
        np.array(values, np.float32).take(ids)
        for values in zip(*((p.flatness, p.folds, p.gloss) for p in parts), strict=True)
    )
    rgb = np.empty((3, len(ids)), np.float32)
    first = np.flatnonzero(np.diff(ids, prepend=-1)).tolist()
    for begin, end in zip(first, [*first[1:], len(ids)], strict=True):
        some = Surface(*(layer[begin:end] for layer in vars(surface).values()))
        rgb[:, begin:end] = parts[ids[begin]].paint(some)
    normals = _normals(surface, flatness, seen.frames.reshape(-1, 9).T.take(ids, 1))
    crease = folds * _crease(surface, ids.astype(np.intp))
    lamp = unit(np.array(light.direction, np.float32))
    lit = 1 - _hidden(seen, view, lamp, scale)
    diffuse = np.clip(0.88 * _dot(normals, lamp) + 0.12 + 0.13 * crease, 0, 1) * lit
    upward = 0.5 + 0.5 * normals[1]
    open_air = 0.75 + 0.07 * crease + 0.25 * lit
    half = unit(lamp + unit(view.position))
    spark = np.clip(_dot(normals, half), 0, 1) ** 16 * (0.04 + gloss) * lit
    for i in range(3):
        ambient = (upward * (light.sky[i] - light.ground[i]) + light.ground[i]) * open_air
        out[i, where] = rgb[i] * (ambient + diffuse * light.sun[i]) + spark * light.sun[i]
    out[3, where] = 1
    return out.reshape(4, h, w)


def _normals(s: Surface, flatness: Array, frame: Array) -> Array:
    """Unit normals (3, N) in world axes. `frame` (9, N) holds each point's side, axis and front.

    Written out: the result of a BLAS product may depend on the number of its threads.
    """
    x, y, z = s.side * flatness, s.along, s.front
    size = 1 / np.sqrt(x * x + y * y + z * z + np.float32(1e-6))
    x, y, z = x * size, y * size, z * size
    return np.stack([x * frame[i] + y * frame[3 + i] + z * frame[6 + i] for i in range(3)])


def _dot(vectors: Array, to: Array) -> Array:
    return vectors[0] * to[0] + vectors[1] * to[1] + vectors[2] * to[2]


def _crease(s: Surface, salt: np.ndarray) -> Array:
    rows = (s.y * np.float32(150)).astype(np.intp) + 37 * salt
    columns = (s.side * np.float32(45)).astype(np.intp) + 53 * salt
    columns += (s.front > 0) * 97 + (rows >> 1)
    return _creases().take((rows % FOLD_TILE) * FOLD_TILE + columns % FOLD_TILE)


def _hidden(seen: Visible, view: View, lamp: Array, scale: float) -> Array:
    """How much of the lamp the figure hides from its own points, 0 to 0.75.

    Looks from every second pixel of the depth map a few steps towards the lamp.
    """
    near = seen.near[::2, ::2]
    h, w = near.shape
    cos, sin = np.cos(view.pitch), np.sin(view.pitch)
    right = float(lamp[0])
    raised = float(lamp[1] * cos + lamp[2] * sin)
    closer = float(lamp[1] * sin - lamp[2] * cos)
    hidden = np.zeros((h, w), np.float32)
    for metres in (0.05, 0.1, 0.16):
        dx, dy = round(right * metres * scale / 2), round(-raised * metres * scale / 2)
        to = slice(max(-dy, 0), min(h, h - dy)), slice(max(-dx, 0), min(w, w - dx))
        source = slice(max(dy, 0), min(h, h + dy)), slice(max(dx, 0), min(w, w + dx))
        step = near[source] - near[to] - np.float32(closer * metres)
        hidden[to] += 0.25 * ((step > 0.012) & (step < 0.5))
    rows, columns = np.divmod(seen.where, seen.near.shape[1])
    return hidden.take((rows >> 1) * w + (columns >> 1))
