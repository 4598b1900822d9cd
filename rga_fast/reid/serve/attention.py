"""The spatial attention of RGA over a query, as pictures."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rga_fast.modules import RGA
from rga_fast.reid.data.augment import normalise
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
        network: in evaluation mode. One without a spatial RGA gives no pictures.
        pixels: uint8 (H, W, 3) at the network's size.
    """
    before: dict[int, Tensor] = {}

    def keep(stage: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            before[stage] = inputs[0]

        return hook

    spatial = {
        stage: module
        for stage, module in network.attention.items()
        if isinstance(module, RGA) and "s" in module.variant
    }
    hooks = [module.register_forward_pre_hook(keep(stage)) for stage, module in spatial.items()]
    try:
        device = next(network.parameters()).device
        network(normalise(torch.tensor(pixels, device=device)[None]))
    finally:
        for handle in hooks:
            handle.remove()
    pictures = []
    for stage, module in spatial.items():
        values = module.attention_values(before[stage])["spatial"][0, 0].float().cpu().numpy()
        name = f"attention, stage {stage}: {values.min():.3f} to {values.max():.3f}"
        pictures.append(AttentionPicture(name, _over(values, pixels)))
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
