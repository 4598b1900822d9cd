"""Bags: backpack, shoulder bag, hand bag, suitcase."""

from __future__ import annotations

from rga_fast.reid.synth.geometry import Array
from rga_fast.reid.synth.paint import Plain
from rga_fast.reid.synth.raster import Part
from rga_fast.reid.synth.wardrobe import Look


def bag_parts(look: Look, j: dict[str, Array], frame: Array) -> list[Part]:
    """The tubes of the bag that belongs to `look`; straps on the chest are the trunk's paint."""
    left, up, front = frame
    h = look.body.height
    dark = Plain((look.bag_colour[0] * 0.6, look.bag_colour[1] * 0.6, look.bag_colour[2] * 0.6))
    colour = Plain(look.bag_colour, dark.colour, 0.93)
    if look.bag == "backpack":
        high = j["neck"] - 0.075 * h * up - 0.098 * h * front
        low = j["waist"] - 0.03 * h * up - 0.1 * h * front
        pocket = high + 0.6 * (low - high) - 0.04 * h * front
        return [
            Part(high, low, (0.062 * h, 0.082 * h, 0.086 * h, 0.078 * h), left, colour,
                 (0.0, 0.15, 0.8, 1.0), 0.6, square=True, folds=0.6),
            Part(pocket, low - 0.03 * h * front, (0.055 * h, 0.06 * h), left, dark, flatness=0.5,
                 square=True, folds=0.5),
        ]  # fmt: skip
    if look.bag == "shoulder bag":
        # The sash of the trunk runs from the right shoulder to the left hip.
        top = j["hip"] + 0.115 * h * look.body.hips * left + 0.055 * h * up
        return [
            Part(top, top - 0.1 * h * up, (0.082 * h, 0.088 * h), front, colour, flatness=0.38,
                 flat=True, square=True, folds=0.4)
        ]  # fmt: skip
    if look.bag == "hand bag":
        grip = j["hand_l"]
        top = grip - 0.07 * h * up
        handles = [
            Part(grip, top + sign * 0.045 * h * front, (0.006 * h, 0.006 * h), left, dark)
            for sign in (1, -1)
        ]
        body = Part(top, top - 0.12 * h * up, (0.06 * h, 0.085 * h), front, colour, flatness=0.42,
                    flat=True, square=True, folds=0.5)  # fmt: skip
        return [body, *handles]
    if look.bag == "suitcase":
        grip = j["hand_r"]
        base = grip * (1, 0, 1) + 0.03 * h * up - 0.2 * h * front
        top = base + 0.3 * h * up + 0.045 * h * front
        case = Part(
            top, base, (0.1 * h, 0.1 * h), left, colour, flatness=0.6, square=True, gloss=0.3
        )
        return [case, Part(grip, top, (0.008 * h, 0.008 * h), left, Plain((0.25, 0.25, 0.27)))]
    return []
