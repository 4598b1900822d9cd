"""The six places that the cameras watch."""

from __future__ import annotations

import numpy as np

from rga_fast.reid.synth.geometry import Array
from rga_fast.reid.synth.props import (
    bench,
    bin_,
    car,
    foliage,
    lamp_post,
    planter,
    post,
    tree,
)
from rga_fast.reid.synth.stage import Stage, cell_noise, noise
from rga_fast.reid.synth.wardrobe import Colour

GREENS: tuple[Colour, ...] = ((0.20, 0.31, 0.12), (0.26, 0.36, 0.15), (0.17, 0.27, 0.14))


def tinted(colour: Colour, value: Array) -> Array:
    """`colour` times `value` per point, (3, N)."""
    return np.array(colour, np.float32)[:, None] * value


def choose(mask: np.ndarray, first: Array, second: Array) -> Array:
    """The points of `first` where `mask`, else of `second`."""
    return np.where(mask, first, second)


def slabs(p: Array, q: Array, side: float, colour: Colour, joint: float = 0.02) -> Array:
    """Paving stones of `side` metres with darker joints, each stone a little different."""
    u, w = p / np.float32(side), q / np.float32(side)
    u = u + 0.5 * (np.floor(w) % 2)
    gap = ((u % 1) < joint / side) | ((w % 1) < joint / side)
    value = 0.9 + 0.16 * cell_noise(u, w) + 0.05 * noise(p, q, 9) - 0.22 * gap
    return tinted(colour, value)


def facade(
    x: Array, y: Array, wall: Colour, bay: float, storey: float, lit: float, salt: int
) -> Array:
    """A house front: windows in bays and storeys, some of them lit, above a plinth."""
    u, w = x / np.float32(bay), (y - 0.7) / np.float32(storey)
    fu, fw = u % 1, w % 1
    frame = (fu > 0.2) & (fu < 0.8) & (fw > 0.2) & (fw < 0.82) & (y > 0.7)
    glass = (fu > 0.24) & (fu < 0.76) & (fw > 0.24) & (fw < 0.79) & (y > 0.7)
    glass &= (np.abs(fu - 0.5) > 0.015) & (np.abs(fw - 0.6) > 0.012)
    value = 0.95 + 0.06 * noise(x, y, 14) - 0.1 * ((y * 12 % 1) < 0.12) - 0.25 * (y < 0.7)
    value -= 0.25 * ((fw < 0.2) & (fw > 0.16) & (fu > 0.16) & (fu < 0.84))
    rgb = tinted(wall, value)
    rgb = choose(frame, tinted((0.75, 0.74, 0.7), np.ones_like(x)), rgb)
    shine = 0.16 + 0.25 * cell_noise(u, w, salt) * (0.4 + fw)
    warm = cell_noise(u, w, salt + 5) < lit
    pane = choose(warm, tinted((0.95, 0.78, 0.5), 0.65 + shine), tinted((0.75, 0.88, 1.0), shine))
    return choose(glass, pane, rgb)


def street(stage: Stage) -> None:
    """A pavement across the view, parked cars, a road and a terrace of houses."""
    rng = np.random.default_rng(11)
    stage.sky((0.55, 0.68, 0.85), (0.85, 0.88, 0.9))
    walls: tuple[Colour, ...] = ((0.56, 0.36, 0.29), (0.72, 0.66, 0.55), (0.5, 0.48, 0.47))

    def ground(x: Array, z: Array) -> Array:
        pavement = slabs(x, z, 0.6, (0.56, 0.54, 0.51))
        road = tinted((0.27, 0.27, 0.29), 0.95 + 0.09 * noise(x, z, 5))
        paint = (np.abs(z - 13.6) < 0.07) & (x % 3 < 1.6)
        road = choose(paint, tinted((0.8, 0.8, 0.77), np.ones_like(x)), road)
        kerb = (np.abs(z - 9.6) < 0.12) | (np.abs(z - 17.6) < 0.12)
        rgb = choose((z > 9.6) & (z < 17.6), road, pavement)
        return choose(kerb, tinted((0.66, 0.65, 0.62), np.ones_like(x)), rgb)

    stage.plane("y", 0, ground)
    for i, low in enumerate((-30.0, -9.5, 1.5, 13.0)):

        def front(x: Array, y: Array, i: int = i) -> Array:
            return facade(x, y, walls[i % 3], (2.6, 3.1, 2.2, 2.9)[i], 3.1, 0.12, i)

        stage.plane("z", 20.5 + 0.3 * (i % 2), front, (low, low + (20.5, 11, 11.5, 20)[i], 0, 11))
    for x, colour in (
        (-6.6, (0.5, 0.1, 0.1)),
        (-1.4, (0.62, 0.64, 0.66)),
        (4.1, (0.12, 0.18, 0.3)),
    ):
        stage.tubes(car(x, 10.9, colour))
    stage.tubes(tree(rng, -3.9, 9.9, GREENS[0], 5.2) + tree(rng, 7.6, 18.6, GREENS[1], 6.0))
    stage.tubes(lamp_post(1.55, 9.3, (0.16, 0.19, 0.18)) + bin_(2.9, 9.2, (0.16, 0.25, 0.2)))
    stage.tubes(post(-1.35, 4.6, 1.0, 0.06, (0.2, 0.2, 0.21)))


def plaza(stage: Stage) -> None:
    """A wide square with a pattern of two stones, planters and distant offices."""
    rng = np.random.default_rng(12)
    stage.sky((0.8, 0.83, 0.87), (0.9, 0.91, 0.92))

    def ground(x: Array, z: Array) -> Array:
        pale, dark = slabs(x, z, 0.9, (0.68, 0.64, 0.57)), slabs(x, z, 0.45, (0.5, 0.42, 0.37))
        bands = ((x + 1.2) % 4.5 < 0.9) | ((z + 0.6) % 4.5 < 0.9)
        return choose(bands, dark, pale)

    def offices(x: Array, y: Array) -> Array:
        return facade(x, y, (0.62, 0.63, 0.64), 1.7, 3.4, 0.05, 3)

    stage.plane("y", 0, ground)
    stage.plane("z", 27, offices, (-40, 3, 0, 14))
    stage.plane(
        "z", 31, lambda x, y: facade(x, y, (0.5, 0.4, 0.34), 2.8, 3.2, 0.1, 8), (5, 60, 0, 12)
    )
    stone = (0.6, 0.58, 0.54)
    for x, z, width in ((-3.7, 11.5, 0.8), (3.4, 14.5, 0.9), (-8.0, 17.0, 1.0), (2.35, 6.9, 0.55)):
        stage.tubes(planter(rng, x, z, width, stone, GREENS[1]))
    stage.tubes(bench(-0.6, 15.5, (0.45, 0.3, 0.18)) + bench(6.8, 18.0, (0.45, 0.3, 0.18)))
    for i in range(5):
        stage.tubes(post(-2.0 + 2.4 * i, 19.5, 0.9, 0.09, (0.3, 0.3, 0.3)))
    stage.fog((0.88, 0.89, 0.9), 60)


def corridor(stage: Stage) -> None:
    """A long indoor passage with doors, skirting boards and a shiny floor under strip lights."""
    stage.sky((0.3, 0.3, 0.3), (0.3, 0.3, 0.3))
    half, height, end = 2.3, 3.1, 21.0

    def floor(x: Array, z: Array) -> Array:
        value = 0.9 + 0.05 * noise(x, z, 4) - 0.06 * ((x % 0.6 < 0.015) | (z % 0.6 < 0.015))
        glare = np.exp(-((x * 1.1) ** 2)) * (0.5 + 0.5 * np.cos(z * 2 * np.pi / 3.2)) ** 2
        return tinted((0.53, 0.53, 0.47), value + 0.5 * glare)

    def ceiling(x: Array, z: Array) -> Array:
        lamp = (np.abs(x) < 0.35) & (z % 3.2 < 1.5)
        panels = tinted((0.7, 0.7, 0.67), 0.95 - 0.1 * ((x % 0.6 < 0.02) | (z % 0.6 < 0.02)))
        return choose(lamp, tinted((1.3, 1.3, 1.25), np.ones_like(x)), panels)

    def wall(shift: float, band: Colour):
        def paint(y: Array, z: Array) -> Array:
            value = 0.9 + 0.04 * noise(y, z, 6) + 0.1 * np.cos((z - 0.7) * 2 * np.pi / 3.2)
            rgb = tinted((0.76, 0.75, 0.67), value)
            rgb = choose((y > 0.9) & (y < 1.15), tinted(band, value), rgb)
            rgb = choose(y < 0.12, tinted((0.25, 0.24, 0.23), value), rgb)
            at = (z + shift) % 4.4
            rgb = choose((at < 1.14) & (y < 2.2), tinted((0.62, 0.6, 0.56), value), rgb)
            rgb = choose(
                (at > 0.07) & (at < 1.07) & (y < 2.12), tinted((0.42, 0.3, 0.2), value), rgb
            )
            poster = (at > 2.1) & (at < 2.9) & (y > 1.3) & (y < 2.3)
            sheet = np.stack([cell_noise(z + shift, y * 0 + 1, salt) for salt in (1, 2, 3)])
            return choose(poster, (0.3 + 0.6 * sheet) * value, rgb)

        return paint

    stage.plane("y", 0, floor, (-half, half, -1, end))
    stage.plane("y", height, ceiling, (-half, half, -1, end))
    stage.plane("x", -half, wall(0.0, (0.3, 0.45, 0.5)), (0, height, -1, end))
    stage.plane("x", half, wall(2.0, (0.3, 0.45, 0.5)), (0, height, -1, end))

    def far_doors(x: Array, y: Array) -> Array:
        rgb = tinted((0.7, 0.69, 0.63), np.ones_like(x))
        door = (np.abs(x) < 1.1) & (y < 2.3)
        rgb = choose(door, tinted((0.3, 0.36, 0.38), np.ones_like(x)), rgb)
        glass = door & (np.abs(np.abs(x) - 0.55) < 0.35) & (y > 1.0) & (y < 2.1)
        return choose(glass, tinted((0.75, 0.85, 0.9), np.ones_like(x)), rgb)

    stage.plane("z", end, far_doors, (-half, half, 0, height))
    stage.tubes(
        post(2.0, 8.2, 0.8, 0.2, (0.3, 0.3, 0.32)) + post(-2.05, 12.5, 1.0, 0.18, (0.5, 0.1, 0.1))
    )
    stage.fog((0.6, 0.6, 0.56), 60)


def park(stage: Stage) -> None:
    """Lawn, a winding gravel path, trees and bushes in low sun."""
    rng = np.random.default_rng(14)
    stage.sky((0.6, 0.72, 0.85), (0.93, 0.9, 0.8))

    def ground(x: Array, z: Array) -> Array:
        value = 0.85 + 0.16 * noise(x, z, 7) + 0.1 * noise(x, z, 1.7)
        grass = tinted((0.30, 0.39, 0.15), value)
        path = np.abs(x - 0.8 * np.sin(z * 0.22)) < 1.9 + 0.05 * noise(x, z, 8)
        gravel = tinted((0.62, 0.55, 0.44), 0.95 + 0.07 * noise(x, z, 1.5) + 0.03 * noise(x, z, 9))
        shade = 1 - 0.33 * (noise(x + 3, z, 15) + 0.4 * noise(x, z, 4) > 0.45)
        return choose(path, gravel, grass) * shade

    stage.plane("y", 0, ground)
    for x, z in ((-9, 30), (-3, 34), (2.5, 31), (8, 33), (14, 30), (-15, 33)):
        stage.tubes(tree(rng, x, z, GREENS[rng.integers(3)], 8.5), shadow=0)
        stage.tubes(foliage(rng, (x + 2, 1.2, z + 1), 3.2, GREENS[rng.integers(3)], 14), shadow=0.2)
    for x, z, tall in ((-5.4, 16, 6.5), (5.8, 13.5, 6.0), (-4.4, 9.6, 5.5), (4.4, 21, 7)):  # type: ignore[assignment]
        stage.tubes(tree(rng, x, z, GREENS[rng.integers(3)], tall))
    stage.tubes(bench(-2.75, 12.0, (0.42, 0.28, 0.16)) + lamp_post(2.7, 10.5, (0.13, 0.2, 0.16)))
    for x, z, size in ((3.1, 6.6, 0.75), (-3.3, 7.4, 0.7), (-1.95, 4.3, 0.5)):  # type: ignore[assignment]
        stage.tubes(foliage(rng, (x, 0.4, z), size, GREENS[rng.integers(3)], 26))
    stage.fog((0.85, 0.86, 0.78), 70)


def shops(stage: Stage) -> None:
    """A parade of lit shop windows close behind the pavement, at dusk."""
    stage.sky((0.2, 0.22, 0.3), (0.3, 0.3, 0.36))

    def ground(x: Array, z: Array) -> Array:
        rgb = slabs(x, z, 0.5, (0.44, 0.42, 0.42))
        glow = np.clip(1 - (9.2 - z) / 4.5, 0, 1) ** 2 * (0.6 + 0.4 * np.cos(x * 1.6))
        return rgb + tinted((0.3, 0.22, 0.12), glow)

    def front(x: Array, y: Array) -> Array:
        bay, at = np.floor(x / 3.4), (x % 3.4) / 3.4
        rgb = slabs(x, y, 0.3, (0.4, 0.33, 0.3), 0.015)
        hue = np.stack([0.12 + 0.45 * cell_noise(bay, bay * 0, salt) for salt in (1, 2, 6)])
        rgb = choose((at > 0.03) & (at < 0.97) & (y < 3.3), hue * 0.7, rgb)
        sign = (at > 0.06) & (at < 0.94) & (y > 2.65) & (y < 3.2)
        letters = (np.abs(y - 2.92) < 0.13) & (at > 0.25) & (at < 0.75)
        letters &= cell_noise(x * 7, y * 0 + bay, 9) < 0.62
        rgb = choose(sign, hue, rgb)
        rgb = choose(letters, tinted((1.0, 0.93, 0.75), np.ones_like(x)), rgb)
        window = (at > 0.08) & (at < 0.66) & (y > 0.55) & (y < 2.5)
        goods = np.stack([cell_noise(x * 2.2, y * 2.4, salt) for salt in (3, 4, 5)])
        shelf = (y * 2.4 % 1 < 0.72) & (x * 2.2 % 1 < 0.66) & (y < 1.9)
        inside = tinted((0.95, 0.8, 0.56), 0.55 + 0.4 * np.clip((y - 0.5) / 2, 0, 1))
        rgb = choose(window, choose(shelf, 0.15 + 0.6 * goods, inside), rgb)
        door = (at > 0.71) & (at < 0.92) & (y < 2.5)
        rgb = choose(door, tinted((0.7, 0.62, 0.48), 0.5 + 0.25 * (np.abs(at - 0.815) < 0.08)), rgb)
        upper = facade(x, y - 0.4, (0.3, 0.27, 0.27), 1.7, 3.0, 0.3, 2)
        return choose(y > 3.5, upper, rgb)

    def awning(x: Array, z: Array) -> Array:
        red = tinted((0.6, 0.17, 0.14), np.ones_like(x))
        return choose(x % 0.5 < 0.25, red, tinted((0.75, 0.7, 0.62), np.ones_like(x)))

    stage.plane("y", 0, ground)
    stage.plane("z", 9.2, front)
    stage.plane("y", 2.62, awning, (-3.3, -0.1, 8.1, 9.2))
    stage.tubes(post(2.9, 8.6, 1.1, 0.28, (0.2, 0.3, 0.36)) + bin_(-3.6, 8.4, (0.15, 0.16, 0.17)))
    stage.tubes(lamp_post(1.9, 4.4, (0.13, 0.13, 0.14)))


def station(stage: Stage) -> None:
    """An underground platform: tiled wall, pillars, a yellow line, the dark track."""
    stage.sky((0.05, 0.05, 0.06), (0.05, 0.05, 0.06))
    edge, wall, far = 2.6, -2.9, 30.0

    def platform(x: Array, z: Array) -> Array:
        rgb = slabs(x, z, 0.8, (0.42, 0.43, 0.45), 0.015)
        rgb = choose(np.abs(x - 1.95) < 0.09, tinted((0.8, 0.66, 0.15), np.ones_like(x)), rgb)
        return rgb * (0.8 + 0.2 * np.cos(z * 2 * np.pi / 4.0))

    def tiles(y: Array, z: Array) -> Array:
        joint = (y % 0.15 < 0.012) | ((z + 0.15 * (np.floor(y / 0.15) % 2)) % 0.3 < 0.012)
        value = 0.86 + 0.1 * cell_noise(y / 0.15, z / 0.3) - 0.25 * joint
        value *= 0.8 + 0.2 * np.cos(z * 2 * np.pi / 4.0)
        rgb = tinted((0.66, 0.71, 0.72), value)
        rgb = choose((y > 1.95) & (y < 2.3), tinted((0.12, 0.25, 0.5), value), rgb)
        ad = (z % 3.6 < 1.7) & (y > 0.8) & (y < 1.85)
        sheet = np.stack([cell_noise(z / 3.6, y * 0, salt) for salt in (4, 7, 8)])
        sheet = sheet * (0.6 + 0.4 * cell_noise(z * 3, y * 4, 2))
        return choose(ad, (0.15 + 0.75 * sheet) * value, rgb)

    stage.plane("y", 0, platform, (wall, edge, -2, far))
    stage.plane("y", -1.1, lambda x, z: tinted((0.12, 0.11, 0.1), 1 + 0.4 * (z % 0.7 < 0.25)),
                (edge, 8, -2, far))  # fmt: skip
    stage.plane("x", wall, tiles, (0, 3.6, -2, far))
    stage.plane("x", 7.0, lambda y, z: tiles(y, z) * 0.5, (-1.1, 3.6, -2, far))
    stage.plane("y", 3.6, lambda x, z: tinted((0.2, 0.2, 0.22), 1 + 4.5 * (np.abs(x) < 0.1)),
                (wall, 7, -2, far))  # fmt: skip
    stage.plane("z", far, lambda x, y: tinted((0.1, 0.1, 0.11), np.ones_like(x)), (wall, 7, -2, 4))
    for z in (7.6, 12.6, 17.6, 22.6):
        stage.tubes(post(-1.75, z, 3.6, 0.2, (0.5, 0.52, 0.54)))
    stage.tubes(bench(-2.2, 10.3, (0.35, 0.36, 0.4)) + bin_(-2.3, 5.9, (0.3, 0.32, 0.36)))
