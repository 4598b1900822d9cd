"""Draws tapered, shaded tubes: the one primitive that every body part, garment and bag is made of.

A tube runs from `a` to `b` with a radius that varies along it and an elliptic cross-section. On the
picture it is a strip around the projected axis; where a pixel lies across the strip tells the point
on the cross-section, hence depth, normal and texture position, without any ray tracing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rga_fast.reid.synth.geometry import Array, View

FAR = -1e6  # nearness of an empty pixel
STEPS = 192  # entries of the table of radii along a tube
POSITIONS = np.linspace(0, 1, STEPS)


@dataclass
class Surface:
    """Points of one tube, arrays of shape (N,).

    `v` runs from 0 at `a` to 1 at `b`; `y` is the same in metres. (`side`, `front`) is the unit
    vector around the axis, `along` its component along it, which only the rounded ends have.
    """

    v: Array
    y: Array
    side: Array
    front: Array
    along: Array


Paint = Callable[[Surface], Array]
Keep = Callable[[Surface], np.ndarray]


@dataclass
class Part:
    """One tube. `radius` holds its half-widths in metres at the positions `knots` in [0, 1].

    `side` is the world direction of the cross-section's first axis; the second has `flatness`
    times its extent. `flat` cuts the ends off straight. `square` in (0, 1] makes the section boxy.
    `keep` returns the mask of what exists of the surface. `folds` scales the creases of cloth.
    """

    a: Array
    b: Array
    radius: tuple[float, ...]
    side: Array
    paint: Paint
    knots: tuple[float, ...] = (0.0, 1.0)
    flatness: float = 1.0
    flat: bool = False
    square: bool = False
    keep: Keep | None = None
    folds: float = 0.0
    gloss: float = 0.0


@dataclass
class Canvas:
    """What is visible at each pixel of an (H, W) picture: `part` is -1 where nothing is.

    `frames` (P, 3, 3) holds, per part, the world directions of the cross-section's side, of the
    axis and of the cross-section's front.
    """

    near: Array
    part: np.ndarray
    v: Array
    side: Array
    front: Array
    along: Array
    frames: Array


@dataclass
class _Strip:
    """A tube on the picture. Lengths in pixels, except `table` (the radii) and `depth` in metres.

    The cross-section as the camera sees it is `stretch` times the radius wide and turned by the
    angle whose cosine and sine are `cos`, `sin`. A ring of the tube dips towards the viewer by
    `dip` of the tube's length, because the camera looks down on it.
    """

    start: tuple[float, float]
    step: tuple[float, float]
    depth: tuple[float, float]
    table: Array
    pixels: Array
    cos: float
    sin: float
    stretch: float
    dip: float


def rasterise(
    parts: list[Part], view: View, box: tuple[float, float, float, float], size: tuple[int, int]
) -> Canvas:
    """Draws `parts` as seen in `box` = (left, top, right, bottom) of the frame, at `size` (H, W)."""
    height, width = size
    near = np.full(size, FAR, np.float32)
    layers = [np.zeros(size, np.float32) for _ in range(4)]
    a = np.array([part.a for part in parts], np.float32)
    b = np.array([part.b for part in parts], np.float32)
    axis = _units(b - a, (0.0, -1.0, 0.0))
    side = np.array([part.side for part in parts], np.float32)
    side = _units(side - (side * axis).sum(1, keepdims=True) * axis, (1.0, 0.0, 0.0))
    frames = np.stack([side, axis, _cross(side, axis)], 1)
    canvas = Canvas(near, np.full(size, -1, np.int16), *layers, frames=frames)

    toward = _units(view.position - (a + b) / 2, (0.0, 0.0, -1.0))
    slope = (toward * axis).sum(1, keepdims=True)
    facing = _units(toward - slope * axis, (0.0, 0.0, -1.0))
    cos = (side * _cross(axis, facing)).sum(1)
    sin = (side * facing).sum(1)
    scale = height / (box[3] - box[1]), width / (box[2] - box[0])
    x, y, depth = view.project(np.stack([a, b], 1))
    x, y = (x - box[0]) * np.float32(scale[1]), (y - box[1]) * np.float32(scale[0])
    for i, part in enumerate(parts):
        strip = _strip(part, x[i], y[i], depth[i], float(cos[i]), float(sin[i]))
        strip.pixels *= np.linspace(1 / depth[i, 0], 1 / depth[i, 1], STEPS, dtype=np.float32)
        strip.pixels *= np.float32(view.focal * scale[0] * strip.stretch)
        strip.dip = -float(slope[i, 0]) * float(strip.pixels[-1]) * part.flatness / strip.stretch**2
        strip.dip /= math.hypot(*strip.step)
        _draw(canvas, i, part, strip)
    return canvas


def _units(vectors: Array, default: tuple[float, float, float]) -> Array:
    """Rows of length 1; a row of length 0 becomes `default`."""
    length = np.sqrt((vectors * vectors).sum(1, keepdims=True))
    short = length < 1e-4
    return np.where(short, np.array(default, np.float32), vectors / np.where(short, 1, length))


def _cross(p: Array, q: Array) -> Array:
    return p[:, [1, 2, 0]] * q[:, [2, 0, 1]] - p[:, [2, 0, 1]] * q[:, [1, 2, 0]]


def _strip(part: Part, x: Array, y: Array, depth: Array, cos: float, sin: float) -> _Strip:
    table = np.interp(POSITIONS, part.knots, part.radius).astype(np.float32)
    dx, dy = float(x[1] - x[0]), float(y[1] - y[0])
    if dx * dx + dy * dy < 1e-4:  # a ball, or a tube seen end on
        dx, dy = 0.0, 0.01
    start, ends = (float(x[0]), float(y[0])), (float(depth[0]), float(depth[1]))
    stretch = math.hypot(cos, part.flatness * sin)
    return _Strip(start, (dx, dy), ends, table, table.copy(), cos, sin, stretch, 0.0)


def _draw(canvas: Canvas, index: int, part: Part, strip: _Strip) -> None:
    (x, y), (dx, dy), (h, w) = strip.start, strip.step, canvas.near.shape
    length = math.hypot(dx, dy)
    reach = float(strip.pixels.max()) + 1
    below = reach + (abs(strip.dip) * length if part.flat else 0.0)
    x0, x1 = max(int(x + min(dx, 0) - reach), 0), min(int(x + max(dx, 0) + reach) + 2, w)
    y0, y1 = max(int(y + min(dy, 0) - below), 0), min(int(y + max(dy, 0) + below) + 2, h)
    if x0 >= x1 or y0 >= y1:
        return
    px = np.arange(x0, x1, dtype=np.float32)[None, :] - np.float32(x)
    py = np.arange(y0, y1, dtype=np.float32)[:, None] - np.float32(y)
    t = px * np.float32(dx / length**2) + py * np.float32(dy / length**2)
    v = np.minimum(np.maximum(t, 0), 1)
    entry = (v * np.float32(STEPS - 1)).astype(np.intp)
    radius = strip.pixels.take(entry)
    s = (px * np.float32(dy / length) - py * np.float32(dx / length)) / radius
    inside = 1 - s * s
    if not part.flat:
        along = (t - v) * np.float32(length) / radius
        inside -= along * along
    chosen = np.flatnonzero(inside > 0)
    s, v = s.take(chosen), v.take(chosen)
    bulge = np.sqrt(inside.take(chosen))
    if part.flat:
        dip, t = bulge * np.float32(strip.dip), t.take(chosen)
        v = np.maximum(t - dip, 0)
    if part.square:
        bulge = np.sqrt(bulge)
    lean = (1 - part.flatness**2) * strip.sin * strip.cos / strip.stretch
    near = s * np.float32(lean) + bulge * np.float32(part.flatness / strip.stretch)
    near *= strip.table.take(entry.take(chosen))
    near -= v * np.float32(strip.depth[1] - strip.depth[0]) + np.float32(strip.depth[0])
    rows, columns = np.divmod(chosen, x1 - x0)
    pixels = (rows + y0) * w + (columns + x0)
    mask = near > canvas.near.take(pixels)
    if part.flat:
        mask &= (t >= -np.abs(dip)) & (t - dip <= 1)
    shown = np.flatnonzero(mask)
    s, bulge, v = s.take(shown), bulge.take(shown), v.take(shown)
    cos, sin = strip.cos / strip.stretch, part.flatness * strip.sin / strip.stretch
    surface = Surface(
        v,
        v * np.float32(np.sqrt(((part.b - part.a) ** 2).sum())),
        s * np.float32(cos) + bulge * np.float32(sin),
        bulge * np.float32(cos) - s * np.float32(sin),
        np.zeros_like(v) if part.flat else along.take(chosen.take(shown)),
    )
    if part.keep is not None:
        kept = part.keep(surface)
        shown = shown[kept]
        surface = Surface(*(layer[kept] for layer in vars(surface).values()))
    pixels, near = pixels.take(shown), near.take(shown)
    canvas.near.ravel()[pixels] = near
    canvas.part.ravel()[pixels] = index
    canvas.v.ravel()[pixels] = surface.v
    canvas.side.ravel()[pixels] = surface.side
    canvas.front.ravel()[pixels] = surface.front
    canvas.along.ravel()[pixels] = surface.along
