"""The articulated walker: from body proportions and a gait phase to joints in the world."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rga_fast.reid.synth.geometry import Array, heading_frame


@dataclass(frozen=True)
class Body:
    """Proportions. `height` in metres; the others are factors around 1."""

    height: float
    girth: float
    shoulders: float
    hips: float
    legs: float


@dataclass(frozen=True)
class Pose:
    """Where and how a person walks. Angles in radians, `place` is the ground point (x, z).

    `phase` is the position in the gait cycle, `stride` the swing of the thigh; each of `arms`
    (left, right) is "swing", "phone", "pocket", "strap" or "carry".
    """

    place: tuple[float, float]
    heading: float
    phase: float
    stride: float
    head_turn: float = 0.0
    arms: tuple[str, str] = ("swing", "swing")


# Shoulder angle, elbow bend and outward angle of an arm that does not swing freely.
ARMS = {
    "phone": (0.35, 1.95, 0.05),
    "pocket": (-0.25, 0.75, 0.28),
    "strap": (0.3, 2.3, 0.3),
    "carry": (0.0, 0.12, 0.16),
}


def joints(body: Body, pose: Pose) -> dict[str, Array]:
    """World positions (3,) of the joints; left ones end in `_l`, right ones in `_r`.

    The soles of the lower foot touch the ground whatever the phase.
    """
    local = _torso(body, pose)
    for tail, sign in (("l", 1.0), ("r", -1.0)):
        local |= _leg(body, pose, tail, sign)
        local |= _arm(body, pose, tail, sign, local[f"shoulder_{tail}"])
    names = list(local)
    points = np.array([local[name] for name in names], np.float32)
    lowest = min(local[f"{end}_{tail}"][1] for end in ("heel", "toe") for tail in "lr")
    points[:, 1] += 0.028 * body.height - lowest
    world = points @ heading_frame(pose.heading)
    world += np.array([pose.place[0], 0, pose.place[1]], np.float32)
    return dict(zip(names, world, strict=True))


def _torso(body: Body, pose: Pose) -> dict[str, tuple[float, float, float]]:
    h, hip = body.height, 0.515 * body.height * body.legs
    lean, twist = 0.035 + 0.06 * pose.stride, 0.22 * pose.stride * math.sin(pose.phase)

    def spine(rise: float, forward: float = 0.0) -> tuple[float, float, float]:
        return 0.0, hip + rise * h, (lean * rise + forward) * h

    crown = 1.0 - 0.515 * body.legs
    neck = crown - 0.158
    points = {
        "pelvis": spine(-0.035),
        "hip": spine(0.0),
        "waist": spine(0.1),
        "neck": spine(neck),
        "chin": spine(crown - 0.137, 0.018),
        "crown": spine(crown, 0.014),
    }
    half = 0.088 * h * body.shoulders
    for tail, sign in (("l", 1.0), ("r", -1.0)):
        side, up, front = spine(neck - 0.056)
        turned = front - sign * half * math.sin(twist)
        points[f"shoulder_{tail}"] = (side + sign * half, up, turned)
    return points


def _leg(body: Body, pose: Pose, tail: str, sign: float) -> dict[str, tuple[float, float, float]]:
    h, phase = body.height, pose.phase + (math.pi if sign > 0 else 0.0)
    thigh = pose.stride * math.sin(phase) + 0.06
    swing = max(0.0, math.cos(phase + 0.35))
    bend = 0.07 + (0.3 + 1.1 * pose.stride) * swing**1.5 * min(1.0, pose.stride / 0.2)
    shin = thigh - bend
    foot = 0.12 + (0.75 * shin if shin < 0 else 0.5 * shin)
    upper, lower = 0.245 * h * body.legs, 0.235 * h * body.legs
    apart = 0.047 * h * body.hips
    hip = (sign * apart, 0.515 * h * body.legs, 0.0)
    knee = (sign * apart * 0.92, hip[1] - upper * math.cos(thigh), upper * math.sin(thigh))
    ankle = (
        sign * apart * 0.8,
        knee[1] - lower * math.cos(shin),
        knee[2] + lower * math.sin(shin),
    )

    def sole(along: float, under: float) -> tuple[float, float, float]:
        up = math.sin(foot) * along - math.cos(foot) * under
        forward = math.cos(foot) * along + math.sin(foot) * under
        outward = sign * 0.018 * h * (along / h > 0.02)
        return ankle[0] + outward, ankle[1] + up * 1.0, ankle[2] + forward

    return {
        f"hip_{tail}": hip,
        f"knee_{tail}": knee,
        f"ankle_{tail}": ankle,
        f"heel_{tail}": sole(-0.012 * h, 0.018 * h),
        f"toe_{tail}": sole(0.088 * h, 0.028 * h),
    }


def _arm(
    body: Body, pose: Pose, tail: str, sign: float, shoulder: tuple[float, float, float]
) -> dict[str, tuple[float, float, float]]:
    h, mode = body.height, pose.arms[0 if sign > 0 else 1]
    if mode == "swing":
        swing = -0.85 * pose.stride * math.sin(pose.phase + (math.pi if sign > 0 else 0.0))
        angle, bend, out = swing + 0.02, 0.28 + 0.5 * max(0.0, swing), 0.13 * body.girth
    else:
        angle, bend, out = ARMS[mode]

    def reach(
        start: tuple[float, float, float], length: float, turn: float, outward: float
    ) -> tuple[float, float, float]:
        return (
            start[0] + sign * length * math.sin(outward),
            start[1] - length * math.cos(turn) * math.cos(outward),
            start[2] + length * math.sin(turn) * math.cos(outward),
        )

    inward = {"phone": -0.45, "strap": -0.6, "pocket": -0.45}.get(mode, out * 0.2)
    elbow = reach(shoulder, 0.165 * h, angle, out)
    wrist = reach(elbow, 0.145 * h, angle + bend, inward)
    hand = reach(wrist, 0.045 * h, angle + bend + 0.15, inward)
    return {f"elbow_{tail}": elbow, f"wrist_{tail}": wrist, f"hand_{tail}": hand}
