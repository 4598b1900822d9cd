"""A pinhole camera over a ground plane, in metres.

World axes: x to the right, y up, z away from the camera; the ground is y = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]  # float32 wherever there are many
UP: Array = np.array([0.0, 1.0, 0.0], np.float32)


@dataclass(frozen=True)
class View:
    """A camera `height` metres above the ground, tilted down by `pitch` radians.

    `focal` is in pixels of the full frame, whose size is `frame` = (width, height).
    """

    height: float
    pitch: float
    focal: float
    frame: tuple[int, int]

    @property
    def position(self) -> Array:
        return np.array([0.0, self.height, 0.0], np.float32)

    def project(self, points: Array) -> tuple[Array, Array, Array]:
        """World points (..., 3) to frame pixels x, y (each (...)) and depth in metres."""
        sin, cos = math.sin(self.pitch), math.cos(self.pitch)
        up = points[..., 1] - self.height
        depth = np.maximum(points[..., 2] * cos - up * sin, 0.05)
        across = points[..., 0]
        x = self.frame[0] / 2 + self.focal * across / depth
        y = self.frame[1] / 2 - self.focal * (up * cos + points[..., 2] * sin) / depth
        return x, y, depth

    def ground(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Frame pixels to ground points (x, z); rows at or above the horizon give a far z."""
        sin, cos = math.sin(self.pitch), math.cos(self.pitch)
        a = (x - self.frame[0] / 2) / self.focal
        b = (self.frame[1] / 2 - y) / self.focal
        fall = np.maximum(sin - b * cos, 1e-4)
        far = self.height / fall
        return a * far, (cos + b * sin) * far

    @property
    def horizon(self) -> float:
        """The frame row of the horizon (it may lie outside the frame)."""
        return self.frame[1] / 2 - self.focal * math.tan(self.pitch)


def heading_frame(heading: float) -> Array:
    """Rows: left, up and front of a person who walks towards `heading` (0 is away, pi towards)."""
    sin, cos = math.sin(heading), math.cos(heading)
    return np.array([[-cos, 0, sin], [0, 1, 0], [sin, 0, cos]], np.float32)


def unit(vector: Array) -> Array:
    """The vector over its length."""
    return vector / max(float(np.sqrt((vector * vector).sum())), 1e-9)
