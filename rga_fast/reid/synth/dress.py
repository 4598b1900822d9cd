"""Dresses the joints of a walker: the list of tubes that is the person in that pose."""

from __future__ import annotations

import numpy as np

from rga_fast.reid.synth.bags import bag_parts
from rga_fast.reid.synth.figure import Pose, joints
from rga_fast.reid.synth.geometry import Array, heading_frame
from rga_fast.reid.synth.hair import head_parts
from rga_fast.reid.synth.paint import Cloth, OpenFront, Plain, Shoe, Torso
from rga_fast.reid.synth.raster import Paint, Part
from rga_fast.reid.synth.wardrobe import Look

TRUNK_KNOTS = (0.0, 0.05, 0.1, 0.19, 0.32, 0.5, 0.68, 0.9, 1.0)
PUFF = {"tshirt": 1.0, "shirt": 1.02, "sweater": 1.07, "hoodie": 1.1, "jacket": 1.13, "coat": 1.12}
FOLDS = {"tshirt": 0.8, "shirt": 0.9, "sweater": 0.6, "hoodie": 1.0, "jacket": 1.2, "coat": 0.9}


def figure_parts(look: Look, pose: Pose) -> list[Part]:
    """All tubes of a dressed person in world coordinates."""
    j = joints(look.body, pose)
    frame = heading_frame(pose.heading)
    return [
        *_trunk(look, j, frame),
        *_arms(look, j, frame),
        *_legs(look, j, frame),
        *head_parts(look, j, frame, pose.head_turn),
        *bag_parts(look, j, frame),
    ]


def trunk_radii(look: Look, puff: float) -> tuple[float, ...]:
    """Half-widths of the trunk at `TRUNK_KNOTS`, from the neck to the crotch, in metres."""
    body = look.body
    wide = (0.033, 0.052, 0.09, 0.106, 0.099, 0.091)
    shoulders = [r * body.shoulders * body.girth**0.5 for r in wide]
    hips = [0.083 * body.girth, 0.092 * body.hips * body.girth**0.5, 0.09 * body.hips]
    loose = [1.0, 1.0, *[puff] * 4, 1 + (puff - 1) * 1.6, puff * 1.02, puff * 1.05]
    return tuple(body.height * r * f for r, f in zip(shoulders + hips, loose, strict=True))


def _trunk(look: Look, j: dict[str, Array], frame: Array) -> list[Part]:
    left, up, _ = frame
    puff, h = PUFF[look.top], look.body.height
    cloth = Cloth(look.top_colour, look.top_second, look.pattern, look.pattern_scale)
    flat = 0.71 * look.body.girth**0.5
    paint = Torso(cloth, **_closure(look), **_straps(look))
    radii = trunk_radii(look, puff)
    parts = [
        Part(
            j["neck"] + 0.01 * h * up, j["pelvis"], radii, left, paint, TRUNK_KNOTS, flat,
            flat=True, folds=FOLDS[look.top],
        )
    ]  # fmt: skip
    if look.top in ("coat", "jacket", "hoodie", "sweater") or look.bottom == "long skirt":
        hem = 0.2 if look.top == "coat" else 0.02
        keep = OpenFront(0.3) if look.top == "coat" and look.inner != look.top_colour else None
        parts.append(
            Part(
                j["waist"], j["pelvis"] - hem * h * up,
                (radii[6] * 1.02, radii[7] * 1.07, radii[8] * (1.14 + 0.9 * (hem > 0.1) * 0.3)),
                left, Cloth(
                    look.top_colour,
                    look.top_second,
                    look.pattern,
                    look.pattern_scale,
                    start=0.24 * h,
                ) if look.pattern in ("hstripes", "vstripes", "checks", "dots")
                else Plain(look.top_colour),
                (0.0, 0.5, 1.0), flat + 0.08, flat=True, keep=keep, folds=FOLDS[look.top],
            )
        )  # fmt: skip
    return parts


def _closure(look: Look) -> dict:
    dark = tuple(0.55 * c for c in look.top_colour)
    if look.top == "coat":
        return {"inner": look.inner, "opening": 0.34, "collar": dark}
    if look.top == "jacket":
        return {"zip": dark, "collar": dark} if look.pattern_scale != 1.0 else {
            "inner": look.inner, "opening": 0.42, "collar": look.top_colour,
        }  # fmt: skip
    if look.top == "shirt":
        return {"zip": tuple(0.85 * c for c in look.top_colour), "collar": (0.92, 0.92, 0.9)}
    if look.top == "hoodie":
        return {"collar": dark}
    return {}


def _straps(look: Look) -> dict:
    if look.bag == "backpack":
        return {"straps": look.bag_colour}
    return {"sash": look.bag_colour} if look.bag == "shoulder bag" else {}


def _arms(look: Look, j: dict[str, Array], frame: Array) -> list[Part]:
    left = frame[0]
    h, g = look.body.height, look.body.girth**0.6
    puff = PUFF[look.top] * g
    patterned = look.pattern in ("hstripes", "vstripes", "checks", "dots")
    pattern = look.pattern if patterned else "plain"
    colour = look.top_second if look.pattern == "yoke" else look.top_colour
    sleeve = Cloth(colour, look.top_second, pattern, look.pattern_scale, 0.05)
    cuffs = Plain(colour) if not patterned else sleeve
    skin, folds = Plain(look.skin), FOLDS[look.top]
    parts = []
    for tail in "lr":
        shoulder, elbow = j[f"shoulder_{tail}"], j[f"elbow_{tail}"]
        wrist, hand = j[f"wrist_{tail}"], j[f"hand_{tail}"]
        parts.append(Part(wrist, hand, (0.017 * h, 0.022 * h, 0.015 * h), left, skin,
                          (0.0, 0.5, 1.0), 0.75))  # fmt: skip
        if look.top == "tshirt":
            cut = shoulder + 0.62 * (elbow - shoulder)
            parts += [
                Part(shoulder, elbow, (0.03 * h * g, 0.025 * h * g), left, skin),
                Part(elbow, wrist, (0.025 * h * g, 0.017 * h), left, skin),
                Part(shoulder, shoulder, (0.034 * h * g,) * 2, left, sleeve, folds=folds),
                Part(shoulder, cut, (0.034 * h * g, 0.037 * h * g), left, sleeve, flat=True,
                     folds=folds),
            ]  # fmt: skip
            continue
        parts += [
            Part(shoulder, elbow, (0.034 * h * puff, 0.031 * h * puff), left, sleeve, folds=folds),
            Part(elbow, wrist, (0.031 * h * puff, 0.025 * h * puff), left, cuffs, folds=folds),
        ]
    return parts


def _legs(look: Look, j: dict[str, Array], frame: Array) -> list[Part]:
    left, up, _ = frame
    h, g = look.body.height, look.body.girth**0.6
    cloth = Plain(look.bottom_colour)
    skirt = look.bottom in ("skirt", "long skirt")
    trousers = look.bottom in ("trousers", "jeans")
    hips = 0.092 * h * look.body.hips * look.body.girth**0.5
    flat = 0.66 * look.body.girth**0.5
    # The trunk's lower end hides all of this but the seat.
    parts = [
        Part(j["waist"], j["pelvis"], (0.8 * hips, 0.94 * hips, 0.8 * hips), left, cloth,
             (0.0, 0.7, 1.0), 0.9 * flat, folds=0.5)
    ]  # fmt: skip
    if skirt:
        parts.append(_skirt(look, j, frame, hips, flat))
    leg: Paint = cloth if trousers else Plain(look.skin)
    wide = 1.12 if look.bottom == "trousers" else 1.0
    for tail in "lr":
        hip, knee, ankle = j[f"hip_{tail}"], j[f"knee_{tail}"], j[f"ankle_{tail}"]
        heel, toe = j[f"heel_{tail}"], j[f"toe_{tail}"]
        shoe = Shoe(look.shoes, look.soles)
        parts.append(Part(heel, toe, (0.024 * h, 0.029 * h, 0.02 * h), left, shoe,
                          (0.0, 0.6, 1.0), 0.85, gloss=0.15))  # fmt: skip
        if trousers:
            thigh = tuple(r * h * g * wide for r in (0.036, 0.051, 0.041))
            shin = tuple(r * h * g * wide for r in (0.041, 0.037, 0.031))
            cuff = ankle + 0.012 * h * up
            parts += [
                Part(hip, knee, thigh, left, leg, (0.0, 0.3, 1.0), folds=0.8),
                Part(knee, knee, (0.04 * h * g * wide,) * 2, left, leg, folds=0.8),
                Part(knee, cuff, shin, left, leg, (0.0, 0.35, 1.0), flat=True, folds=1.1),
            ]
            continue
        thigh = tuple(r * h * g for r in (0.036, 0.046, 0.034))
        shin = tuple(r * h * g for r in (0.033, 0.037, 0.021))
        sock = look.soles if look.pattern_scale > 1 and not skirt else look.skin
        parts += [
            Part(hip, knee, thigh, left, leg, (0.0, 0.3, 1.0)),
            Part(knee, ankle, shin, left, Plain(look.skin, sock, 0.72), (0.0, 0.35, 1.0)),
        ]
        if look.bottom == "shorts":
            cut = hip + 0.86 * (knee - hip)
            shorts = tuple(r * h * g for r in (0.038, 0.055, 0.053))
            parts.append(
                Part(hip, cut, shorts, left, cloth, (0.0, 0.35, 1.0), flat=True, folds=1.0)
            )
    return parts


def _skirt(look: Look, j: dict[str, Array], frame: Array, hips: float, flat: float) -> Part:
    left, up, front = frame
    h = look.body.height
    knees = (j["knee_l"] + j["knee_r"]) / 2
    drop = 0.14 if look.bottom == "skirt" else 0.36
    spread = float(np.abs((j["knee_l"] - j["knee_r"]) @ front)) / 2 * drop / 0.24
    hem = j["pelvis"] - drop * h * up + (knees - j["hip"]) @ front * front * 0.7
    flare = hips * (1.18 if look.bottom == "skirt" else 1.3)
    depth = max(flat * flare, spread + 0.06 * h) / flare
    paint = Cloth(look.bottom_colour, look.top_second,
                  "hstripes" if look.pattern == "band" else "plain", 1.2)  # fmt: skip
    return Part(j["waist"], hem, (0.8 * hips, hips, flare), left, paint,
                (0.0, 0.4, 1.0), depth, flat=True, folds=1.3)  # fmt: skip
