"""Shadows on the ground: every tube, projected along the light."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from rga_fast.reid.synth.geometry import Array, View
from rga_fast.reid.synth.raster import Part


def shadow_mask(
    parts: list[Part],
    view: View,
    direction: tuple[float, float, float],
    box: tuple[float, float, float, float],
    size: tuple[int, int],
) -> np.ndarray:
    """Where the lamp at `direction` is hidden from the ground, as uint8 (H, W), 255 in shadow."""
    height, width = size
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    ends = np.array([(part.a, part.b) for part in parts], np.float32)
    fallen = _fall(ends, direction)
    x, y, depth = view.project(fallen)
    x = (x - box[0]) * (width / (box[2] - box[0]))
    y = (y - box[1]) * (height / (box[3] - box[1]))
    per_metre = view.focal * (height / (box[3] - box[1])) / depth.mean(1)
    for part, xs, ys, ppm in zip(parts, x, y, per_metre, strict=True):
        radius = 0.8 * sum(part.radius) / len(part.radius) * float(ppm)
        line = [(float(xs[0]), float(ys[0])), (float(xs[1]), float(ys[1]))]
        draw.line(line, fill=255, width=max(1, round(1.5 * radius)))
        for cx, cy in line:
            draw.ellipse((cx - radius, cy - 0.5 * radius, cx + radius, cy + 0.5 * radius), fill=255)
    return np.asarray(mask)


def _fall(points: Array, direction: tuple[float, float, float]) -> Array:
    """The points, moved along the light onto the ground."""
    lamp = np.array(direction, np.float32)
    return points - np.maximum(points[..., 1:2], 0) * (lamp / lamp[1])
