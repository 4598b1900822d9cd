"""An image that somebody sent: its limits, checked before it is decoded."""

from __future__ import annotations

import io
import warnings
from collections.abc import AsyncIterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from rga_fast.reid.data.images import Size, to_pixels

FORMATS = ("JPEG", "PNG", "WEBP")


class Limits(NamedTuple):
    """Of an upload, in bytes and in pixels."""

    nbytes: int = 20_000_000
    pixels: int = 50_000_000


LIMITS = Limits()


class Refused(Exception):
    """An upload that is not taken: the HTTP status, and a sentence for who sent it."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


async def read_body(stream: AsyncIterator[bytes], declared: str | None, limits: Limits) -> bytes:
    """The body of a request; `Refused` as soon as it is known to be too large."""
    too_large = Refused(413, f"The file is larger than {limits.nbytes / 1e6:g} MB.")
    if declared is not None and declared.isdecimal() and int(declared) > limits.nbytes:
        raise too_large
    body = bytearray()
    async for chunk in stream:
        body += chunk
        if len(body) > limits.nbytes:
            raise too_large
    return bytes(body)


def decode(body: bytes, size: Size, limits: Limits) -> np.ndarray:
    """uint8 (H, W, 3): the image in `body`, upright, resized to `size` as in the training.

    `Refused` for another type, too many pixels or a damaged file; only the header is read before
    the pixels are counted.
    """
    if not body:
        raise Refused(400, "No file was sent.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limit first warns
            image = Image.open(io.BytesIO(body), formats=FORMATS)
        width, height = image.size
    except Image.DecompressionBombError:
        raise _too_many_pixels(limits) from None
    except Exception:  # decoders raise any kind on damaged bytes
        kinds = ", ".join(FORMATS)
        sentence = f"The file is not an image of a type that is read here: {kinds}."
        raise Refused(415, sentence) from None
    if width * height > limits.pixels:
        raise _too_many_pixels(limits)
    try:
        return to_pixels(image, size)
    except Exception as error:  # decoders raise any kind on damaged bytes
        raise Refused(
            422, f"The image is damaged, or of a kind that is not read: {error}."
        ) from None


def _too_many_pixels(limits: Limits) -> Refused:
    return Refused(413, f"The image has more than {limits.pixels / 1e6:g} million pixels.")
