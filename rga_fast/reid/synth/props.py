"""Street furniture made of tubes: trees, bushes, cars, lamp posts, benches, pillars."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rga_fast.reid.synth.geometry import Array
from rga_fast.reid.synth.paint import Plain, fill
from rga_fast.reid.synth.raster import Part, Surface
from rga_fast.reid.synth.wardrobe import Colour

ACROSS: Array = np.array([1, 0, 0], np.float32)
AHEAD: Array = np.array([0, 0, 1], np.float32)


def _at(x: float, y: float, z: float) -> Array:
    return np.array([x, y, z], np.float32)


@dataclass(frozen=True)
class Leaves:
    """Foliage: a colour broken up by dark and light patches."""

    colour: Colour

    def __call__(self, s: Surface) -> Array:
        angle = np.arctan2(s.side, s.front)
        spots = np.sin(angle * 11 + s.along * 5) * np.sin(s.along * 17 + angle * 7)
        return fill(len(s.v), self.colour) * (1 + np.float32(0.35) * spots)


def _ragged(s: Surface) -> np.ndarray:
    """Frays the outline of a ball of leaves."""
    angle = np.arctan2(s.along, s.side)
    rim = np.hypot(s.along, s.side)
    return rim < 0.8 + 0.2 * np.sin(angle * 9) * np.sin(angle * 23 + 4 * s.front)


def post(
    x: float, z: float, height: float, radius: float, colour: Colour, gloss: float = 0.1
) -> list[Part]:
    """An upright pole or pillar."""
    ends = _at(x, height, z), _at(x, 0, z)
    return [Part(*ends, (radius, radius), ACROSS, Plain(colour), flat=True, gloss=gloss)]


def lamp_post(x: float, z: float, colour: Colour) -> list[Part]:
    """A street lamp with an arm."""
    head = Part(_at(x, 5.0, z), _at(x + 1.0, 5.15, z), (0.05, 0.12), ACROSS, Plain(colour))
    return [*post(x, z, 5.0, 0.07, colour), *post(x, z, 0.6, 0.12, colour), head]


def foliage(
    rng: np.random.Generator,
    centre: tuple[float, float, float],
    size: float,
    colour: Colour,
    n: int,
) -> list[Part]:
    """`n` balls of leaves around `centre`, filling about `size` metres."""
    parts = []
    for _ in range(n):
        offset = rng.normal(0, 0.42, 3) * size * (1.15, 0.75, 0.6)
        place = np.array(centre, np.float32) + offset.astype(np.float32)
        radius = size * float(rng.uniform(0.16, 0.36))
        place[1] = max(place[1], radius * 0.5)
        r, g, b = (float(c * rng.uniform(0.75, 1.25)) for c in colour)
        parts.append(Part(place, place, (radius, radius), ACROSS, Leaves((r, g, b)), keep=_ragged,
                          folds=1.5))  # fmt: skip
    return parts


def tree(rng: np.random.Generator, x: float, z: float, colour: Colour, tall: float) -> list[Part]:
    """A tree with a crown that starts at about two metres."""
    bark: Colour = (0.27, 0.21, 0.16)
    trunk = Part(_at(x, 0.62 * tall, z), _at(x, 0, z), (0.1, 0.14, 0.24), ACROSS, Plain(bark),
                 (0.0, 0.8, 1.0), flat=True, folds=2.5)  # fmt: skip
    return [trunk, *foliage(rng, (x, 0.78 * tall, z), 0.42 * tall, colour, 60)]


def car(x: float, z: float, colour: Colour, length: float = 4.2) -> list[Part]:
    """A parked car, seen from its side."""
    half, glass = length / 2, Plain((0.1, 0.12, 0.14))
    body = Part(
        _at(x - half, 0.55, z),
        _at(x + half, 0.55, z),
        (0.27, 0.33, 0.33, 0.27),
        AHEAD,
        Plain(colour),
        (0.0, 0.04, 0.96, 1.0),
        2.4,
        flat=True,
        square=True,
        gloss=0.5,
    )
    belt = Part(
        _at(x - 0.48 * length, 0.82, z),
        _at(x + 0.4 * length, 0.82, z),
        (0.1, 0.16, 0.12),
        AHEAD,
        Plain(colour),
        (0.0, 0.5, 1.0),
        4.0,
        square=True,
        gloss=0.5,
    )
    cabin = Part(
        _at(x - 0.06 * length, 1.42, z),
        _at(x - 0.06 * length, 0.85, z),
        (0.25 * length, 0.36 * length),
        ACROSS,
        glass,
        flatness=0.5,
        flat=True,
        square=True,
        gloss=0.8,
    )
    roof = Part(_at(x - 0.06 * length, 1.47, z), _at(x - 0.06 * length, 1.38, z),
                (0.24 * length, 0.26 * length), ACROSS, Plain(colour), flatness=0.5, flat=True,
                square=True, gloss=0.5)  # fmt: skip
    pillar = Part(_at(x - 0.06 * length, 1.42, z - 0.62), _at(x - 0.06 * length, 0.9, z - 0.85),
                  (0.05, 0.05), ACROSS, Plain(colour))  # fmt: skip
    parts = [body, belt, cabin, roof, pillar]
    for side in (-0.31, 0.31):
        hub = _at(x + side * length, 0.31, z - 0.72)
        tyre = Part(hub, hub - 0.08 * AHEAD, (0.31, 0.3), ACROSS, Plain((0.06, 0.06, 0.06)))
        rim = Part(hub - 0.1 * AHEAD, hub - 0.3 * AHEAD, (0.16, 0.1), ACROSS, Plain((0.55,) * 3))
        parts += [tyre, rim]
    return parts


def bench(x: float, z: float, colour: Colour) -> list[Part]:
    """A bench of planks along x."""
    wood, iron = Plain(colour), Plain((0.15, 0.15, 0.16))
    parts = []
    for y, dz in ((0.45, 0.0), (0.45, -0.16), (0.62, 0.14), (0.78, 0.18)):
        parts.append(
            Part(_at(x - 0.9, y, z + dz), _at(x + 0.9, y, z + dz), (0.06, 0.06), AHEAD, wood,
                 flatness=0.4)
        )  # fmt: skip
    for dx in (-0.75, 0.75):
        parts.append(Part(_at(x + dx, 0.45, z), _at(x + dx, 0, z), (0.04, 0.04), ACROSS, iron))
    return parts


def planter(
    rng: np.random.Generator, x: float, z: float, width: float, stone: Colour, green: Colour
) -> list[Part]:
    """A stone tub with a shrub."""
    tub = Part(_at(x, 0.55, z), _at(x, 0, z), (width, 0.85 * width), ACROSS, Plain(stone),
               flat=True, folds=0.6)  # fmt: skip
    return [tub, *foliage(rng, (x, 0.75, z), 0.75 * width, green, 34)]


def bin_(x: float, z: float, colour: Colour) -> list[Part]:
    """A litter bin."""
    return [
        *post(x, z, 0.85, 0.22, colour),
        Part(_at(x, 0.95, z), _at(x, 0.83, z), (0.2, 0.25), ACROSS, Plain((0.12, 0.12, 0.12)),
             flat=True),
    ]  # fmt: skip
