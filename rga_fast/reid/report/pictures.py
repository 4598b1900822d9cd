"""Images and maps over them as they are embedded in a page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rga_fast.reid.data.augment import normalise
from rga_fast.reid.data.images import Images, read_image
from rga_fast.reid.network.maps import attention_values, maps_before_attention
from rga_fast.reid.network.reidnet import ReidNet
from rga_fast.reid.report.charts import data_uri

COLOURS = "viridis"  # even in lightness, readable by the colour-blind
HEIGHT = 160  # of an embedded image, in pixels
_BATCH = 64


def photo(file: Path, size: tuple[int, int], height: int = HEIGHT) -> str:
    """An image in the proportions in which the network sees it, as the URI of a JPEG file."""
    pixels = read_image(file, (height, max(1, round(height * size[1] / size[0]))))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80, optimize=True)
    return data_uri(buffer.getvalue(), "image/jpeg")


def coloured(values: np.ndarray, low: float, high: float) -> str:
    """A map (H, W) as the URI of a PNG file with a pixel for each value."""
    import matplotlib

    scaled = (values - low) / max(high - low, 1e-12)
    pixels = matplotlib.colormaps[COLOURS](scaled.clip(0, 1), bytes=True)[..., :3]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", optimize=True)
    return data_uri(buffer.getvalue(), "image/png")


def gradient() -> str:
    """The colours of `coloured` from low to high, as stops of a gradient in CSS."""
    import matplotlib

    colours = matplotlib.colormaps[COLOURS](np.linspace(0, 1, 9), bytes=True)[:, :3]
    return ", ".join("#{:02x}{:02x}{:02x}".format(*colour) for colour in colours.tolist())


@torch.no_grad()
def spatial_maps(network: ReidNet, images: Images, indices: Sequence[int]) -> dict[int, np.ndarray]:
    """The spatial attention of each stage that has one, (N, H, W) float32, of images (N,)."""
    device = next(network.parameters()).device
    parts: dict[int, list[Tensor]] = {}
    for first in range(0, len(indices), _BATCH):
        pixels = images[np.array(indices[first : first + _BATCH])]
        before = maps_before_attention(network, normalise(pixels.to(device)))
        for stage, x in before.items():
            values = attention_values(network.attention[stage], x)
            if "spatial" in values:
                parts.setdefault(stage, []).append(values["spatial"][:, 0].float().cpu())
    return {stage: torch.cat(maps).numpy() for stage, maps in parts.items()}
