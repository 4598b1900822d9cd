"""What file and folder names say: identity, camera, junk, distractor."""

from __future__ import annotations

import re

_CAMERA_WORD = r"(?:c|(?:camera|cam)[-_ ]?)"

MARKET_NAME = re.compile(rf"(-?\d+)_{_CAMERA_WORD}(\d+)", re.IGNORECASE)
MARS_NAME = re.compile(r"(\d{4}|00-1)C(\d+)T\d+F\d+", re.IGNORECASE)
# `c2` or `cam2` at the start of a name or after anything but a letter or digit
OWN_CAMERA = re.compile(rf"(?<![^\W_]){_CAMERA_WORD}(\d+)(?=s\d|[\W_]|$)", re.IGNORECASE)
CAMERA_FOLDER = re.compile(rf"{_CAMERA_WORD}(\d+)|(?:camera|cam)[-_ ]?([a-z])", re.IGNORECASE)

JUNK = re.compile(r"0*-0*1")  # -1; MARS writes 00-1
DISTRACTOR = re.compile(r"0+")

EXAMPLES = "0002_c1s1_000451_03.jpg or 0001C1T0001F001.jpg"


def identity_and_camera(name: str) -> tuple[str, str] | None:
    """Identity and camera of an image named as in Market-1501 (`0002_c1s1_000451_03.jpg`; also
    DukeMTMC, and `cam1` for `c1`) or MARS (`0001C1T0001F001.jpg`); None for another name."""
    match = MARKET_NAME.match(name) or MARS_NAME.match(name)
    return None if match is None else (match[1], match[2])


def camera_in(name: str) -> str:
    """The camera in an image's name, such as `c2_1.jpg` or `x_cam2.jpg`; empty if it has none."""
    match = OWN_CAMERA.search(name)
    if match is not None:
        return match[1]
    mars = MARS_NAME.match(name)
    return "" if mars is None else mars[2]


def camera_folder(name: str) -> str:
    """The camera of a folder that is named after one (`cam1`, `camera_b`); empty for others."""
    match = CAMERA_FOLDER.fullmatch(name)
    return "" if match is None else (match[1] or match[2].lower())
