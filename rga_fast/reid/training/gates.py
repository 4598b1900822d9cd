"""How open the attention of a network is: mean and spread of its attention values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rga_fast.reid.data.augment import normalise
from rga_fast.reid.data.images import Images
from rga_fast.reid.network.maps import maps_before_attention
from rga_fast.reid.network.reidnet import ReidNet

PROBED = 32  # images, enough for two digits


def probe_images(images: Images, device: torch.device) -> Tensor:
    """The first of `images`, as the network takes them: float32 (<= 32, 3, H, W)."""
    return normalise(images[range(min(PROBED, len(images)))].to(device))


@torch.inference_mode()
def gate_statistics(network: ReidNet, images: Tensor) -> dict[str, float]:
    """Mean and standard deviation over images and nodes of the attention values of each branch.

    Args:
        network: left as it is; its running statistics are used.
        images: float32 (B, 3, H, W).

    Returns:
        "gate<stage>_<branch>_mean" and "..._std", such as `gate1_spatial_mean`; nothing for
        attention that has no `attention_values`.
    """
    statistics: dict[str, float] = {}
    if not any(hasattr(module, "attention_values") for module in network.attention.values()):
        return statistics
    for stage, x in maps_before_attention(network, images).items():
        module: Any = network.attention[stage]
        for view, values in module.attention_values(x).items():
            std, mean = torch.std_mean(values.float(), correction=0)
            statistics[f"gate{stage}_{view}_mean"] = round(mean.item(), 4)
            statistics[f"gate{stage}_{view}_std"] = round(std.item(), 4)
    return statistics
