"""The spatial attention over a query, as pictures."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from rga_fast.reid.data.augment import normalise
from rga_fast.reid.network.maps import attention_values, maps_before_attention
from rga_fast.reid.network.reidnet import ReidNet

# From low to high, even in lightness.
_COLOURS = np.array([[38, 30, 92], [122, 40, 130], [214, 69, 96], [250, 157, 84], [252, 240, 178]])
_SHARE = 0.55  # of the colour, against the image


class AttentionPicture(NamedTuple):
    name: str
    image: Image.Image


@torch.inference_mode()
def attention_pictures(network: ReidNet, pixels: np.ndarray) -> list[AttentionPicture]:
    """The spatial attention of each stage over an image, named with its range of values.

    Args:
        network: in evaluation mode. One without spatial attention gives no pictures.
        pixels: uint8 (H, W, 3) at the network's size.
    """
    images = normalise(torch.tensor(pixels, device=next(network.parameters()).device)[None])
    pictures = []
    for stage, x in maps_before_attention(network, images).items():
        values = attention_values(network.attention[stage], x).get("spatial")
        if values is not None:
            grid = values[0, 0].float().cpu().numpy()
            name = f"attention, stage {stage}: {grid.min():.3f} to {grid.max():.3f}"
            pictures.append(AttentionPicture(name, _over(grid, pixels)))
    return pictures


def _over(values: np.ndarray, pixels: np.ndarray) -> Image.Image:
    """`values` (h, w), stretched to their range, in colours over the image in grey."""
    height, width = pixels.shape[:2]
    low, high = float(values.min()), float(values.max())
    even = (values - low) / max(high - low, 1e-12)
    large = Image.fromarray(even.astype(np.float32)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    place = np.asarray(large).clip(0, 1) * (len(_COLOURS) - 1)
    stops = np.arange(len(_COLOURS))
    colour = np.stack([np.interp(place, stops, channel) for channel in _COLOURS.T], axis=-1)
    grey = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    return Image.fromarray((_SHARE * colour + (1 - _SHARE) * grey).astype(np.uint8))
