"""How open the attention of a network is: mean and spread of its attention values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rga_fast.reid.data.augment import normalise
from rga_fast.reid.data.images import Images
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
    maps = _maps_before_attention(network, images)
    statistics = {}
    for stage, x in maps.items():
        module: Any = network.attention[stage]
        for view, values in module.attention_values(x).items():
            std, mean = torch.std_mean(values.float(), correction=0)
            statistics[f"gate{stage}_{view}_mean"] = round(mean.item(), 4)
            statistics[f"gate{stage}_{view}_std"] = round(std.item(), 4)
    return statistics


def _maps_before_attention(network: ReidNet, images: Tensor) -> dict[int, Tensor]:
    maps: dict[int, Tensor] = {}

    def keep(stage: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            maps[stage] = inputs[0]

        return hook

    asked = {s: m for s, m in network.attention.items() if hasattr(m, "attention_values")}
    if not asked:
        return maps
    hooks = [module.register_forward_pre_hook(keep(stage)) for stage, module in asked.items()]
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return maps
