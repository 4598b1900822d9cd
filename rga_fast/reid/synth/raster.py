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
POSITIONS = np.linspace(0, 1, STEPS, dtype=np.float32)


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
class Visible:
    """What a picture shows, point by point: N points at the pixels `where` of the flat picture.

    `part` (N,) is the part that each point lies on. `frames` (P, 3, 3) holds, per part, the world
    directions of the cross-section's side, of the axis and of the cross-section's front. `near`
    (H, W) is minus the depth in metres, `FAR` where nothing is.
    """

    where: np.ndarray
    part: np.ndarray
    surface: Surface
    frames: Array
    near: Array


@dataclass
class _Canvas:
    """A picture under construction. `source` (H, W) points into the joined patches, or is -1.

    A patch is a list of flat arrays over the pixels of a tube's box: position along the tube,
    place across it, bulge towards the camera, and the component along the axis.
    """

    near: Array
    source: np.ndarray
    patches: list[tuple[Array, Array, Array, Array]]
    parts: list[int]
    points: int = 0

    def add(self, index: int, patch: tuple[Array, ...]) -> np.ndarray:
        """Remembers the patch of part `index`; returns what to write into `source`."""
        v, across, bulge, along = patch
        self.patches.append((v.ravel(), across.ravel(), bulge.ravel(), along.ravel()))
        self.parts.append(index)
        start, self.points = self.points, self.points + v.size
        return np.arange(start, self.points, dtype=np.int32).reshape(v.shape)


def rasterise(
    parts: list[Part], view: View, box: tuple[float, float, float, float], size: tuple[int, int]
) -> Visible:
    """Draws `parts` in `box` = (left, top, right, bottom) of the frame, at `size` (H, W)."""
    a = np.array([part.a for part in parts], np.float32)
    b = np.array([part.b for part in parts], np.float32)
    axis = _units(b - a, (0.0, -1.0, 0.0))
    side = np.array([part.side for part in parts], np.float32)
    side = _units(side - (side * axis).sum(1, keepdims=True) * axis, (1.0, 0.0, 0.0))
    frames = np.stack([side, axis, _cross(side, axis)], 1)

    # The camera sees the cross-section turned by an angle and hence `stretch` radii wide.
    toward = _units(view.position - (a + b) / 2, (0.0, 0.0, -1.0))
    slope = (toward * axis).sum(1)
    facing = _units(toward - slope[:, None] * axis, (0.0, 0.0, -1.0))
    cos, sin = (side * _cross(axis, facing)).sum(1), (side * facing).sum(1)
    flatness = np.array([part.flatness for part in parts], np.float32)
    stretch = np.hypot(cos, flatness * sin)
    lean = (1 - flatness**2) * sin * cos / stretch
    turns = np.stack([cos, flatness * sin], 1) / stretch[:, None]

    canvas = _Canvas(np.full(size, FAR, np.float32), np.full(size, -1, np.int32), [], [])
    scale = size[1] / (box[2] - box[0]), size[0] / (box[3] - box[1])
    x, y, depth = view.project(np.stack([a, b], 1))
    x, y = (x - box[0]) * np.float32(scale[0]), (y - box[1]) * np.float32(scale[1])
    per_metre = stretch[:, None] * np.float32(view.focal * scale[1]) / depth
    columns = (x, y, depth, per_metre, stretch, lean, slope)
    with np.errstate(invalid="ignore"):  # roots of negative numbers mark what lies outside
        for i, values in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            _draw(canvas, i, parts[i], turns[i], *values)
    return _collect(canvas, parts, turns, frames)


def _collect(canvas: _Canvas, parts: list[Part], turns: Array, frames: Array) -> Visible:
    """The visible points, in the order of their parts."""
    source = canvas.source.ravel()
    where = np.flatnonzero(source >= 0)
    if not len(where):
        nothing = np.zeros(0, np.float32)
        surface = Surface(nothing, nothing, nothing, nothing, nothing)
        return Visible(where, where, surface, frames, canvas.near)
    source = source.take(where)
    sizes = [patch[0].size for patch in canvas.patches]
    part = np.repeat(np.array(canvas.parts, np.int16), sizes).take(source)
    order = np.argsort(part, kind="stable")
    where, source, part = where.take(order), source.take(order), part.take(order)
    v, across, bulge, along = (
        np.concatenate(layer).take(source) for layer in zip(*canvas.patches, strict=True)
    )
    lengths = np.array([math.dist(p.a, p.b) for p in parts], np.float32).take(part)
    cos, sin = turns.T.take(part, 1)
    surface = Surface(v, v * lengths, across * cos + bulge * sin, bulge * cos - across * sin, along)
    return Visible(where, part, surface, frames, canvas.near)


def _units(vectors: Array, default: tuple[float, float, float]) -> Array:
    """Rows of length 1; a row of length 0 becomes `default`."""
    length = np.sqrt((vectors * vectors).sum(1, keepdims=True))
    short = length < 1e-4
    return np.where(short, np.array(default, np.float32), vectors / np.where(short, 1, length))


def _cross(p: Array, q: Array) -> Array:
    return p[:, [1, 2, 0]] * q[:, [2, 0, 1]] - p[:, [2, 0, 1]] * q[:, [1, 2, 0]]


def _draw(
    canvas: _Canvas,
    index: int,
    part: Part,
    turn: Array,
    x: list[float],
    y: list[float],
    depth: list[float],
    per_metre: list[float],
    stretch: float,
    lean: float,
    slope: float,
) -> None:
    """One tube; `x`, `y`, `depth` and `per_metre` (pixels, across the tube) are of its two ends."""
    (dx, dy), (h, w) = (x[1] - x[0], y[1] - y[0]), canvas.near.shape
    if dx * dx + dy * dy < 1e-4:  # a ball, or a tube seen end on
        dx, dy = 0.0, 0.01
    length = math.hypot(dx, dy)
    grow = per_metre[1] - per_metre[0]
    radii = [r * (per_metre[0] + k * grow) for r, k in zip(part.radius, part.knots, strict=True)]
    # A ring of the tube dips towards the viewer, because the camera looks down on it.
    dip = -slope * radii[-1] * part.flatness / stretch**2 if part.flat else 0.0
    reach, below = max(radii) + 1, max(radii) + 1 + abs(dip)
    x0, x1 = max(int(min(x) - reach), 0), min(int(max(x) + reach) + 2, w)
    y0, y1 = max(int(min(y) - below), 0), min(int(max(y) + below) + 2, h)
    if x0 >= x1 or y0 >= y1:
        return
    px = np.arange(x0 - x[0], x1 - x[0] - 0.5, dtype=np.float32)[None, :] / np.float32(length)
    py = np.arange(y0 - y[0], y1 - y[0] - 0.5, dtype=np.float32)[:, None] / np.float32(length)
    t = px * np.float32(dx / length) + py * np.float32(dy / length)
    s = px * np.float32(dy) - py * np.float32(dx)
    v = t.clip(0, 1)
    if len(radii) == 2:
        radius = v * np.float32(radii[1] - radii[0]) + np.float32(radii[0])
    else:
        table = np.interp(POSITIONS, part.knots, radii).astype(np.float32)
        radius = table.take((v * np.float32(STEPS - 1)).astype(np.intp))
    s /= radius
    bulge = 1 - s * s
    exists = None
    if part.flat:
        along = np.zeros_like(v)
        np.sqrt(bulge, out=bulge)
        drop = bulge * np.float32(dip / length)
        exists = (t >= -np.abs(drop)) & (t - drop <= 1)
        v = np.maximum(t - drop, 0)
    else:
        along = (t - v) * np.float32(length) / radius
        bulge -= along * along
        np.sqrt(bulge, out=bulge)
    if part.square:
        np.sqrt(bulge, out=bulge)
    near = (s * np.float32(lean) + bulge * np.float32(part.flatness / stretch)) * radius
    near *= np.float32(2 / (per_metre[0] + per_metre[1]))
    near -= v * np.float32(depth[1] - depth[0]) + np.float32(depth[0])
    if part.keep is not None:
        side, front = s * turn[0] + bulge * turn[1], bulge * turn[0] - s * turn[1]
        kept = part.keep(Surface(v, v * math.dist(part.a, part.b), side, front, along))
        exists = kept if exists is None else exists & kept
    window = (slice(y0, y1), slice(x0, x1))
    visible = near > canvas.near[window]
    if exists is not None:
        visible &= exists
        near = np.where(visible, near, np.float32(FAR))
    # Outside the tube `near` is not a number, which fmax passes over.
    np.fmax(canvas.near[window], near, out=canvas.near[window])
    source = canvas.add(index, (v, s, bulge, along))
    np.copyto(canvas.source[window], source, where=visible)
