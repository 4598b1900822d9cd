"""The six cameras: where they hang, what they watch, how people walk there, how the sensor sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from rga_fast.reid.synth import backdrops
from rga_fast.reid.synth.geometry import View
from rga_fast.reid.synth.light import Light
from rga_fast.reid.synth.stage import Stage

FRAME = (640, 360)
ACROSS, ALONG = math.pi / 2, math.pi


@dataclass(frozen=True)
class Sensor:
    """`gain` per channel and `gamma` give exposure and colour cast; `blur` in output pixels;
    `noise` is a standard deviation in [0, 1]; `sharpness` the share of resolution that is kept;
    `quality` the range of the JPEG quality.
    """

    gain: tuple[float, float, float]
    gamma: float
    saturation: float
    blur: float
    noise: float
    sharpness: float
    quality: tuple[int, int]


@dataclass(frozen=True)
class Camera:
    """`zone` = (x low, x high, z low, z high) is where people walk, in metres; `headings` the
    directions they prefer, `spread` the deviation around these (radians). `shadow` and `softness`
    are the strength and the blur (of a person's height) of shadows on the ground.
    """

    view: View
    light: Light
    paint: Callable[[Stage], None]
    zone: tuple[float, float, float, float]
    headings: tuple[float, ...]
    spread: float
    shadow: float
    softness: float
    sensor: Sensor


CAMERAS: tuple[Camera, ...] = (
    Camera(
        View(3.0, 0.24, 560, FRAME),
        Light((-0.7, 0.9, -0.55), (0.72, 0.68, 0.60), (0.40, 0.45, 0.54), (0.26, 0.25, 0.23)),
        backdrops.street,
        (-2.6, 2.6, 5.2, 8.8),
        (ACROSS, -ACROSS, ACROSS, -ACROSS, ALONG),
        0.25,
        0.5,
        0.006,
        Sensor((1.27, 1.22, 1.16), 0.92, 1.0, 0.35, 0.010, 0.95, (75, 92)),
    ),
    Camera(
        View(4.3, 0.4, 600, FRAME),
        Light((0.25, 1.0, -0.35), (0.36, 0.36, 0.36), (0.74, 0.75, 0.77), (0.40, 0.39, 0.37)),
        backdrops.plaza,
        (-2.8, 2.8, 6.8, 11.5),
        (0.0, ALONG, ACROSS, -ACROSS, 0.8, -0.8, 2.4, -2.4),
        0.4,
        0.32,
        0.016,
        Sensor((1.06, 1.06, 1.08), 0.92, 0.85, 0.4, 0.010, 0.85, (70, 88)),
    ),
    Camera(
        View(2.6, 0.2, 520, FRAME),
        Light((0.1, 1.0, -0.25), (0.5, 0.51, 0.46), (0.5, 0.51, 0.47), (0.30, 0.30, 0.27)),
        backdrops.corridor,
        (-1.5, 1.5, 4.4, 10.0),
        (0.0, ALONG),
        0.15,
        0.4,
        0.012,
        Sensor((0.98, 1.07, 0.88), 0.95, 0.9, 0.45, 0.014, 0.8, (65, 85)),
    ),
    Camera(
        View(2.9, 0.22, 540, FRAME),
        Light((0.75, 0.6, 0.6), (0.85, 0.72, 0.48), (0.38, 0.42, 0.46), (0.24, 0.26, 0.16)),
        backdrops.park,
        (-1.6, 1.7, 4.8, 10.0),
        (0.0, ALONG, ALONG, 0.6, -2.6),
        0.3,
        0.5,
        0.008,
        Sensor((1.46, 1.36, 1.14), 0.9, 1.0, 0.35, 0.010, 0.9, (72, 90)),
    ),
    Camera(
        View(2.7, 0.2, 560, FRAME),
        Light((-0.2, 0.75, 0.7), (0.62, 0.46, 0.28), (0.34, 0.32, 0.34), (0.24, 0.19, 0.15)),
        backdrops.shops,
        (-2.5, 2.5, 4.8, 8.0),
        (ACROSS, -ACROSS, ACROSS, -ACROSS, 0.0, ALONG),
        0.3,
        0.35,
        0.02,
        Sensor((1.42, 1.2, 0.98), 0.9, 0.95, 0.5, 0.018, 0.85, (62, 84)),
    ),
    Camera(
        View(3.3, 0.28, 540, FRAME),
        Light((0.15, 1.0, 0.1), (0.42, 0.46, 0.52), (0.32, 0.35, 0.4), (0.17, 0.18, 0.2)),
        backdrops.station,
        (-1.2, 1.6, 4.9, 10.0),
        (0.0, ALONG, 0.4, 2.8, -0.4),
        0.3,
        0.4,
        0.014,
        Sensor((1.12, 1.3, 1.5), 0.86, 0.8, 0.5, 0.022, 0.68, (60, 82)),
    ),
)


@cache
def empty_frame(camera: int) -> tuple[Image.Image, Image.Image]:
    """The empty view of camera 1 to 6: an RGB image and the depth map, minus metres, mode F."""
    which = CAMERAS[camera - 1]
    stage = Stage.empty(which.view, which.light)
    which.paint(stage)
    rgb = np.clip(stage.rgb * 255 + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(rgb)), Image.fromarray(stage.near)
