"""What surfaces look like: cloth with its patterns, skin, hair, heads. All return colours of shape
(3, N)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rga_fast.reid.synth.geometry import Array
from rga_fast.reid.synth.raster import Surface
from rga_fast.reid.synth.wardrobe import Colour


def fill(n: int, colour: Colour) -> Array:
    """`n` points of one colour, (3, n)."""
    return np.repeat(np.array(colour, np.float32), n).reshape(3, n)


def put(rgb: Array, mask: np.ndarray, colour: Colour, weight: float = 1.0) -> None:
    """Mixes `weight` of `colour` into the points of `rgb` (3, N) that `mask` (N,) chooses."""
    where = np.flatnonzero(mask)
    for channel, value in zip(rgb, colour, strict=True):
        if weight == 1.0:
            channel[where] = value
        else:
            channel[where] = channel[where] * np.float32(1 - weight) + np.float32(weight * value)


@dataclass(frozen=True)
class Plain:
    """One colour; `tip` from position `tip_at` on (trainer soles, cuffs, a hem)."""

    colour: Colour
    tip: Colour | None = None
    tip_at: float = 1.0

    def __call__(self, s: Surface) -> Array:
        rgb = fill(len(s.v), self.colour)
        if self.tip is not None:
            put(rgb, s.v > self.tip_at, self.tip)
        return rgb


@dataclass(frozen=True)
class Shoe:
    """A foot's tube points forward, so that its cross-section's front is the top of the shoe."""

    upper: Colour
    sole: Colour

    def __call__(self, s: Surface) -> Array:
        rgb = fill(len(s.v), self.upper)
        put(rgb, s.front < -0.55, self.sole)
        return rgb


@dataclass(frozen=True)
class Cloth:
    """A garment's fabric. `scale` multiplies the period of the pattern, `start` is added to `y`
    (metres) so that stripes run on from one tube to the next, `girth` is the tube's radius.
    """

    colour: Colour
    second: Colour
    pattern: str = "plain"
    scale: float = 1.0
    girth: float = 0.16
    start: float = 0.0

    def __call__(self, s: Surface) -> Array:
        rgb = fill(len(s.v), self.colour)
        if self.pattern == "plain":
            return rgb
        y = (s.y + np.float32(self.start)) / np.float32(0.088 * self.scale)
        if self.pattern == "hstripes":
            put(rgb, y % 1 < 0.42, self.second)
        elif self.pattern == "yoke":
            put(rgb, s.y + self.start < 0.2 * self.scale, self.second)
        elif self.pattern == "band":
            put(rgb, np.abs(s.y + self.start - 0.27) < 0.06 * self.scale, self.second)
        elif self.pattern == "print":
            self._print(rgb, s)
        else:
            x = np.arctan2(s.side, s.front) * np.float32(self.girth / (0.088 * self.scale))
            if self.pattern == "vstripes":
                put(rgb, (x + 0.22) % 1 < 0.36, self.second)
            elif self.pattern == "checks":
                weight = 0.4 * (x % 1 < 0.5) + 0.4 * (y % 1 < 0.5)
                second = np.array(self.second, np.float32)[:, None]
                rgb += weight.astype(np.float32) * (second - rgb)
            elif self.pattern == "dots":
                row = np.floor(y)
                u, w = (x + 0.5 * (row % 2)) % 1 - 0.5, y - row - 0.5
                put(rgb, u * u + w * w < 0.085, self.second)
        return rgb

    def _print(self, rgb: Array, s: Surface) -> None:
        if self.girth < 0.1:
            return
        x, y = s.side / np.float32(0.62 * self.scale), (s.y - 0.23) / np.float32(0.1 * self.scale)
        front = s.front > 0
        disc = x * x + y * y < 1
        put(rgb, front & disc, self.second)
        put(rgb, front & disc & (np.abs(y) < 0.22), self.colour)


@dataclass(frozen=True)
class Torso:
    """A top's fabric on the trunk, with what lies on it: opening, collar, straps."""

    cloth: Cloth
    inner: Colour | None = None
    opening: float = 0.0
    collar: Colour | None = None
    zip: Colour | None = None
    straps: Colour | None = None
    sash: Colour | None = None
    cut: bool = field(default=False)

    def __call__(self, s: Surface) -> Array:
        rgb = self.cloth(s)
        front = s.front > 0
        if self.inner is not None:
            put(rgb, front & (np.abs(s.side) < self.opening * (0.35 + s.v)), self.inner)
        if self.zip is not None:
            put(rgb, front & (np.abs(s.side) < 0.06), self.zip)
        if self.collar is not None:
            put(rgb, s.v < 0.085 + 0.05 * front * (1 - np.abs(s.side)), self.collar)
        if self.straps is not None:
            put(rgb, front & (np.abs(np.abs(s.side) - 0.52) < 0.1) & (s.v < 0.62), self.straps)
        if self.sash is not None:
            slope = np.where(front, s.side, s.side) * 0.42 + 0.5
            put(rgb, np.abs(slope - s.v) < 0.055, self.sash)
        return rgb


@dataclass(frozen=True)
class Face:
    """A head: skin, eyes, brows, mouth, perhaps beard and glasses. `round` is radius / length."""

    skin: Colour
    hair: Colour
    beard: bool
    glasses: bool
    stubble: bool

    def __call__(self, s: Surface) -> Array:
        rgb = fill(len(s.v), self.skin)
        down = _down(s)
        front = s.front > 0
        if self.stubble:
            scalp = (down < 0.3) | ((s.front < -0.1) & (down < 0.72))
            put(rgb, scalp, self.hair, 0.55)
        if self.beard:
            chin = (down > 0.68) & (s.front > -0.15) & ~((down < 0.76) & (np.abs(s.side) < 0.2))
            put(rgb, chin, self.hair, 0.75)
        across = np.abs(s.side)
        eyes = front & (np.abs(across - 0.36) < 0.12) & (np.abs(down - 0.5) < 0.03)
        brows = front & (np.abs(across - 0.36) < 0.2) & (np.abs(down - 0.42) < 0.02)
        mouth = front & (across < 0.25) & (np.abs(down - 0.79) < 0.022)
        put(rgb, mouth, (0.45, 0.12, 0.12), 0.5)
        put(rgb, brows, self.hair, 0.6)
        put(rgb, eyes, (0.1, 0.08, 0.08))
        if self.glasses:
            rims = (s.front > -0.1) & (np.abs(down - 0.5) < 0.055) & (across > 0.1)
            put(rgb, rims, (0.03, 0.03, 0.03), 0.8)
        return rgb


@dataclass(frozen=True)
class Hair:
    """Strands: streaks of lightness around the axis."""

    colour: Colour

    def __call__(self, s: Surface) -> Array:
        angle = np.arctan2(s.side, s.front)
        streak = 1 + 0.16 * np.sin(angle * 17 + 3 * np.sin(angle * 5)) + 0.08 * np.sin(s.y * 60)
        return fill(len(s.v), self.colour) * streak.astype(np.float32)


def _down(s: Surface) -> Array:
    """Position on a head from 0 at the crown to 1 at the chin."""
    return (0.38 * s.along + 0.24 * s.v + 0.38).astype(np.float32)


@dataclass(frozen=True)
class Hairline:
    """Keeps the part of a hair shell above the hairline: `brow` at the front, `nape` behind."""

    brow: float
    nape: float

    def __call__(self, s: Surface) -> np.ndarray:
        back = np.clip((0.45 - s.front / np.sqrt(s.front**2 + s.side**2 + 1e-6)) / 0.9, 0, 1)
        back = back * back * (3 - 2 * back)
        return _down(s) < self.brow + (self.nape - self.brow) * back


@dataclass(frozen=True)
class Behind:
    """Keeps the back of a tube: long hair leaves the face free."""

    limit: float

    def __call__(self, s: Surface) -> np.ndarray:
        return s.front < self.limit


@dataclass(frozen=True)
class OpenFront:
    """Leaves out a widening gap at the front: the tails of an open coat."""

    gap: float

    def __call__(self, s: Surface) -> np.ndarray:
        return (s.front < 0) | (np.abs(s.side) > self.gap * (0.6 + s.v))
