"""Heads: face, neck, hair styles, hats, scarf."""

from __future__ import annotations

import math

from rga_fast.reid.synth.geometry import Array
from rga_fast.reid.synth.paint import Behind, Face, Hair, Hairline, Plain
from rga_fast.reid.synth.raster import Part
from rga_fast.reid.synth.wardrobe import Look

HEAD = 0.0515  # half-width, of the height
HAIRLINES = {
    "short": Hairline(0.27, 0.7),
    "crop": Hairline(0.24, 0.62),
    "bob": Hairline(0.3, 0.95),
    "long": Hairline(0.26, 0.95),
    "ponytail": Hairline(0.25, 0.74),
    "bun": Hairline(0.25, 0.74),
    "afro": Hairline(0.24, 0.85),
}


def head_parts(look: Look, j: dict[str, Array], frame: Array, turn: float) -> list[Part]:
    """The head, turned by `turn` radians against the body, with all it carries."""
    h = look.body.height
    up = frame[1]
    left = math.cos(turn) * frame[0] + math.sin(turn) * frame[2]
    front = math.cos(turn) * frame[2] - math.sin(turn) * frame[0]
    top, low = j["crown"] - 0.056 * h * up, j["chin"] + 0.047 * h * up
    face = Face(look.skin, look.hair_colour, look.beard, look.glasses, look.hair == "crop")
    head = HEAD * h
    parts = [
        Part(j["neck"] - 0.01 * h * up, j["chin"] + 0.03 * h * up, (0.033 * h, 0.029 * h),
             left, Plain(look.skin)),
        Part(top, low, (head, 0.9 * head), left, face, flatness=1.16),
        Part(low + 0.012 * h * up + 0.05 * h * front, low - 0.002 * h * up + 0.057 * h * front,
             (0.004 * h, 0.007 * h), left, Plain(look.skin)),
    ]  # fmt: skip
    middle = (top + low) / 2
    for sign in (1, -1):
        ear = middle + sign * 0.05 * h * left - 0.004 * h * front
        parts.append(
            Part(ear, ear - 0.012 * h * up, (0.011 * h, 0.008 * h), left, Plain(look.skin))
        )
    if look.scarf is not None:
        around = j["neck"] + 0.022 * h * up
        parts.append(Part(around, around - 0.012 * h * up, (0.052 * h, 0.056 * h), left,
                          Plain(look.scarf), flatness=0.95, folds=1.6))  # fmt: skip
    return parts + _hair(look, top, low, left, up, front) + _hat(look, top, left, up, front)


def _hair(look: Look, top: Array, low: Array, left: Array, up: Array, front: Array) -> list[Part]:
    if look.hair in ("bald", "crop"):
        return []
    h, paint = look.body.height, Hair(look.hair_colour)
    grow = {"afro": 1.42, "bob": 1.2, "long": 1.12, "short": 1.1}.get(look.hair, 1.07)
    if look.hat in ("cap", "beanie"):
        grow = min(grow, 1.12)
    radius = HEAD * h * grow
    back = -0.006 * h * front
    parts = [
        Part(top + back + (grow - 1.07) * 0.02 * h * up, low + back, (radius, 0.95 * radius),
             left, paint, flatness=1.14, keep=HAIRLINES[look.hair])
    ]  # fmt: skip
    middle = (top + low) / 2
    if look.hair in ("bob", "long"):
        length = 0.062 if look.hair == "bob" else 0.15
        end = middle - length * h * up - 0.012 * h * front
        parts.append(Part(middle + 0.01 * h * up, end, (0.056 * h, 0.062 * h, 0.045 * h), left,
                          paint, (0.0, 0.5, 1.0), 1.05, keep=Behind(0.25)))  # fmt: skip
    elif look.hair == "ponytail":
        root = middle + 0.018 * h * up - 0.066 * h * front
        tip = root - 0.12 * h * up - 0.022 * h * front
        parts.append(Part(root, tip, (0.014 * h, 0.024 * h, 0.01 * h), left, paint,
                          (0.0, 0.4, 1.0)))  # fmt: skip
    elif look.hair == "bun":
        knot = top + 0.028 * h * up - 0.035 * h * front
        parts.append(Part(knot, knot + 0.004 * h * up, (0.027 * h, 0.025 * h), left, paint))
    return parts


def _hat(look: Look, top: Array, left: Array, up: Array, front: Array) -> list[Part]:
    h, paint = look.body.height, Plain(look.hat_colour)
    crown = Hairline(0.33, 0.42)
    if look.hat == "none":
        return []
    shell = Part(top + 0.008 * h * up, top - 0.03 * h * up, (0.06 * h, 0.059 * h), left, paint,
                 flatness=1.14, folds=0.3, keep=crown)  # fmt: skip
    if look.hat == "beanie":
        tuft = top + 0.062 * h * up
        return [shell, Part(tuft, tuft, (0.014 * h, 0.014 * h), left, paint, folds=1.0)]
    if look.hat == "cap":
        start, end = top - 0.004 * h * up, top - 0.014 * h * up + 0.1 * h * front
        return [shell, Part(start, end, (0.045 * h, 0.032 * h), left, paint, flatness=0.22)]
    rim = top - 0.002 * h * up
    return [
        shell,
        Part(rim + 0.004 * h * up, rim - 0.01 * h * up, (0.09 * h, 0.102 * h), left, paint,
             flat=True, flatness=1.05),
    ]  # fmt: skip
