"""Which parts of an image the network's decision comes from."""

from __future__ import annotations

import torch
from torch import Tensor

from rga_fast.reid.network.reidnet import ReidNet


def grad_cam(network: ReidNet, images: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al., ICCV 2017) of the last map, for the training identity that the
    classifier takes each image for.

    Args:
        network: in evaluation mode.
        images: float32 (B, 3, H, W), normalised, on the network's device.

    Returns:
        (B, H', W') in [0, 1]: relative to the highest value of each image, 0 where nothing speaks
        for the identity.
    """
    kept: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0]

    handle = network.backbone.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            best = network(images).logits.amax(dim=1).sum()
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(best, kept[0])
    values = (gradient.mean(dim=(2, 3), keepdim=True) * kept[0].detach()).sum(dim=1).relu()
    return values / values.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
