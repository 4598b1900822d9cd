"""One detection: a person in front of a camera, cut out of its frame as a detector would."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageFilter

from rga_fast.reid.synth.cameras import CAMERAS, Camera, Sensor, empty_frame
from rga_fast.reid.synth.dress import figure_parts
from rga_fast.reid.synth.figure import Pose
from rga_fast.reid.synth.geometry import Array
from rga_fast.reid.synth.light import Light, shade
from rga_fast.reid.synth.raster import Part, rasterise
from rga_fast.reid.synth.shadow import shadow_mask
from rga_fast.reid.synth.wardrobe import Look, stranger

Box = tuple[float, float, float, float]
COMPANY = 0.22  # share of pictures with a second person in or near the box


@dataclass(frozen=True)
class Track:
    """How one person crosses one camera's view: where, in which direction, at what pace."""

    place: tuple[float, float]
    heading: float
    stride: float
    arms: tuple[str, str]


def walk(camera: Camera, look: Look, rng: np.random.Generator) -> Track:
    """A track through the camera's zone for a person who looks like `look`."""
    x_low, x_high, z_low, z_high = camera.zone
    place = float(rng.uniform(x_low, x_high)), float(rng.uniform(z_low, z_high))
    heading = float(rng.choice(camera.headings)) + camera.spread * float(rng.normal())
    stride = float(np.clip(rng.normal(0.4, 0.09), 0.06, 0.58))
    left, right = ("phone" if p < 0.1 else "pocket" if p < 0.2 else "swing" for p in rng.random(2))
    if look.bag == "hand bag":
        left = "carry"
    elif look.bag == "suitcase":
        right = "carry"
    elif look.bag == "backpack" and rng.random() < 0.2:
        left = "strap"
    return Track(place, heading, stride, (left, right))


def pose_on(track: Track, camera: Camera, rng: np.random.Generator) -> Pose:
    """A moment on the track: a step or more on, at any phase of the gait."""
    x_low, x_high, z_low, z_high = camera.zone
    step = float(rng.normal(0, 0.7))
    heading = track.heading + 0.12 * float(rng.normal())
    x = float(np.clip(track.place[0] + step * math.sin(heading), x_low, x_high))
    z = float(np.clip(track.place[1] + step * math.cos(heading), z_low, z_high))
    phase, turn = float(rng.uniform(0, 2 * math.pi)), 0.3 * float(rng.normal())
    return Pose((x, z), heading, phase, track.stride, turn, track.arms)


def photograph(
    camera_number: int, look: Look, pose: Pose, size: tuple[int, int], rng: np.random.Generator
) -> tuple[Image.Image, int]:
    """The detection of one person at `size` (height, width), and its JPEG quality."""
    camera = CAMERAS[camera_number - 1]
    people = [(look, pose)]
    if rng.random() < COMPANY:
        people.append((stranger(rng), _beside(pose, camera, rng)))
    box = _jitter(_bounds(camera, look, pose, size), rng, 1.0)
    return _expose(camera_number, people, box, size, rng)


def misfire(
    camera_number: int, size: tuple[int, int], rng: np.random.Generator
) -> tuple[Image.Image, int]:
    """A false detection: background, or a small part of somebody."""
    camera = CAMERAS[camera_number - 1]
    look = stranger(rng)
    pose = pose_on(walk(camera, look, rng), camera, rng)
    left, top, right, bottom = _jitter(_bounds(camera, look, pose, size), rng, 1.0)
    width, height = right - left, bottom - top
    grow = float(rng.choice((0.4, 0.55, 1.0, 1.8)))
    dx = float(rng.choice((-1, 1))) * width * float(rng.uniform(0.45, 1.2))
    dy = height * float(rng.uniform(-0.35, 0.35))
    centre = (left + right) / 2 + dx, (top + bottom) / 2 + dy
    box = (
        centre[0] - grow * width / 2,
        centre[1] - grow * height / 2,
        centre[0] + grow * width / 2,
        centre[1] + grow * height / 2,
    )
    people = [(look, pose)] if rng.random() < 0.75 else []
    return _expose(camera_number, people, box, size, rng)


def _beside(pose: Pose, camera: Camera, rng: np.random.Generator) -> Pose:
    """Where a second person walks: close by, mostly behind, at times in front."""
    nearer = rng.random() < 0.35
    depth = float(rng.uniform(-1.1, -0.6) if nearer else rng.uniform(0.6, 3.5))
    aside = float(rng.choice((-1, 1))) * float(rng.uniform(0.3, 0.6 + 0.08 * depth))
    heading = float(rng.choice(camera.headings)) + camera.spread * float(rng.normal())
    place = pose.place[0] * (1 + depth / pose.place[1]) + aside, pose.place[1] + depth
    return Pose(place, heading, float(rng.uniform(0, 2 * math.pi)), 0.4)


def _bounds(camera: Camera, look: Look, pose: Pose, size: tuple[int, int]) -> Box:
    """The tight box of a walker in the frame, widened to the aspect of `size`."""
    x, z = pose.place
    points = np.array([[x, 0, z - 0.15], [x, 1.02 * look.body.height, z]], np.float32)
    across, down, _ = camera.view.project(points)
    tall = 1.07 * float(down[0] - down[1])
    middle = float(down.mean()), float(across.mean())
    wide = tall * size[1] / size[0]
    return (
        middle[1] - wide / 2, middle[0] - tall / 2, middle[1] + wide / 2, middle[0] + tall / 2
    )  # fmt: skip


def _jitter(box: Box, rng: np.random.Generator, amount: float) -> Box:
    """What a detector makes of a true box: off centre, too large or small, at times cut off."""
    width, height = box[2] - box[0], box[3] - box[1]
    dx = amount * float(rng.normal(0, 0.05)) * width
    dy = amount * float(rng.normal(0, 0.025)) * height
    grow = 1 + amount * float(rng.normal(0.02, 0.05))
    cut = rng.random()
    low = height * amount * float(rng.uniform(0.08, 0.3)) if cut < 0.09 else 0.0
    high = height * amount * float(rng.uniform(0.04, 0.1)) if 0.09 < cut < 0.13 else 0.0
    return (
        box[0] + dx - (grow - 1) * width / 2,
        box[1] + dy - (grow - 1) * height / 2 + high,
        box[2] + dx + (grow - 1) * width / 2,
        box[3] + dy + (grow - 1) * height / 2 - low,
    )


def _inside(box: Box, frame: tuple[int, int]) -> Box:
    """A detector's box ends at the frame's border."""
    left, right = max(box[0], 0.0), min(box[2], float(frame[0]))
    top, bottom = max(box[1], 0.0), min(box[3], float(frame[1]))
    if right - left < 8:
        left = min(max(left, 0.0), frame[0] - 16.0)
        right = left + 16
    if bottom - top < 16:
        top = min(max(top, 0.0), frame[1] - 32.0)
        bottom = top + 32
    return left, top, right, bottom


def _expose(
    number: int,
    people: list[tuple[Look, Pose]],
    box: Box,
    size: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[Image.Image, int]:
    camera = CAMERAS[number - 1]
    box = _inside(box, camera.view.frame)
    frame, depth = empty_frame(number)
    height, width = size
    ground = frame.resize((width, height), Image.Resampling.BICUBIC, box=box)
    rgb = np.asarray(ground, np.float32).transpose(2, 0, 1) / np.float32(255)
    light = _weather(camera.light, rng)
    parts = [part for look, pose in people for part in figure_parts(look, pose)]
    if parts:
        rgb = rgb * _shadow(camera, light, parts, box, size)
        rgb = _add_people(rgb, depth, parts, camera, light, box, size)
    return _sense(rgb, camera.sensor, rng)


def _weather(light: Light, rng: np.random.Generator) -> Light:
    """The camera's light at one moment: clouds pass, lamps flicker."""
    sun = float(rng.uniform(0.75, 1.1))
    return replace(light, sun=(light.sun[0] * sun, light.sun[1] * sun, light.sun[2] * sun))


def _shadow(
    camera: Camera, light: Light, parts: list[Part], box: Box, size: tuple[int, int]
) -> Array:
    height, _width = size
    soft = ImageFilter.GaussianBlur(max(camera.softness * height, 0.5))
    cast = Image.fromarray(shadow_mask(parts, camera.view, light.direction, box, size))
    low = [part for part in parts if min(part.a[1], part.b[1]) < 0.3]
    contact = Image.fromarray(shadow_mask(low, camera.view, (0.0, 1.0, 0.0), box, size))
    dark = np.asarray(cast.filter(soft), np.float32) * np.float32(camera.shadow / 255)
    feet = np.asarray(contact.filter(ImageFilter.BoxBlur(1.2)), np.float32)
    return (1 - dark) * (1 - feet * np.float32(0.35 / 255))


def _add_people(
    rgb: Array,
    depth: Image.Image,
    parts: list[Part],
    camera: Camera,
    light: Light,
    box: Box,
    size: tuple[int, int],
) -> Array:
    height, width = size
    large = height * 2, width * 2
    seen = rasterise(parts, camera.view, box, large)
    per_metre = large[0] / (box[3] - box[1]) * camera.view.focal / 7
    picture = shade(seen, parts, camera.view, light, per_metre)
    # Posts, bushes and the like stand in front where the empty frame is nearer.
    nearest = Image.Resampling.NEAREST
    behind = np.asarray(depth.resize((large[1], large[0]), nearest, box=box))
    picture *= seen.near > behind
    picture = picture[:, ::2] + picture[:, 1::2]
    small = (picture[:, :, ::2] + picture[:, :, 1::2]) * np.float32(0.25)
    return rgb * (1 - small[3]) + small[:3]


def _sense(rgb: Array, sensor: Sensor, rng: np.random.Generator) -> tuple[Image.Image, int]:
    """Exposure, colour cast, loss of resolution, blur and noise."""
    gain = np.array(sensor.gain, np.float32) * np.float32(rng.uniform(0.85, 1.15))
    gain = gain * rng.uniform(0.96, 1.04, 3).astype(np.float32)
    rgb = np.clip(rgb * gain[:, None, None], 0, 1) ** np.float32(sensor.gamma)
    grey = rgb.mean(0)
    rgb = grey + (rgb - grey) * np.float32(sensor.saturation)
    image = Image.fromarray(_bytes(rgb))
    width, height = image.size
    keep = sensor.sharpness * float(rng.uniform(0.75, 1.0))
    image = image.resize((round(width * keep), round(height * keep)), Image.Resampling.BILINEAR)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    image = image.filter(ImageFilter.GaussianBlur(sensor.blur * float(rng.uniform(0.5, 1.5))))
    grain = rng.standard_normal((height, width, 3), np.float32)
    noisy = np.asarray(image, np.float32) + grain * np.float32(255 * sensor.noise)
    quality = int(rng.integers(*sensor.quality))
    return Image.fromarray(np.clip(noisy + 0.5, 0, 255).astype(np.uint8)), quality


def _bytes(rgb: Array) -> np.ndarray:
    pixels = np.clip(rgb * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))
