"""What the attention of a network does to images: the values by which it multiplies its maps, and
the affinities of chosen positions, for every system of `attention/`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rga_fast import functional, reference
from rga_fast.modules import RGA
from rga_fast.reid.network.attention import cbam, fc, non_local, se
from rga_fast.reid.network.reidnet import ReidNet

GATES: dict[type[nn.Module], str] = {
    cbam.SpatialAttention: "spatial",
    cbam.ChannelAttention: "channel",
    se.SqueezeExcitation: "channel",
    fc.FCSpatial: "spatial",
    fc.FCChannel: "channel",
}


@torch.no_grad()
def maps_before_attention(network: ReidNet, images: Tensor) -> dict[int, Tensor]:
    """The maps that enter the attention of each stage, by its number, in evaluation mode.

    Args:
        network: its modes are restored.
        images: float32 (B, 3, H, W), normalised, on the network's device.

    Returns:
        (B, C, H', W') of every stage with attention; nothing for the baseline.
    """
    maps: dict[int, Tensor] = {}

    def keep(stage: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            maps[stage] = inputs[0]

        return hook

    if not network.attention:
        return maps
    hooks = [m.register_forward_pre_hook(keep(stage)) for stage, m in network.attention.items()]
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        network(images)
    finally:
        for handle in hooks:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return maps


@torch.no_grad()
def attention_values(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What an attention module, in evaluation mode, weighs positions and channels by.

    Args:
        module: an attention of `make_attention`.
        x: (B, C, H, W), the map before it.

    Returns:
        "spatial" (B, 1, H, W), "channel" (B, C, 1, 1), those that it has. Factors in (0, 1); of
        "snl" the weights of the positions in its mean, whose sum is 1. "nl" has none: it has
        `affinities`.
    """
    if isinstance(module, RGA):
        return module.attention_values(x)
    if isinstance(module, nn.Sequential):  # one after the other
        values: dict[str, Tensor] = {}
        for part in module:
            values |= attention_values(part, x)
            x = part(x)
        return values
    if isinstance(module, fc.FCParallel):
        return attention_values(module.spatial, x) | attention_values(module.channel, x)
    if isinstance(module, non_local.SimplifiedNonLocal):
        return {"spatial": module.weights(x).unflatten(2, x.shape[2:])}
    if type(module) in GATES:
        gate: Any = module
        return {GATES[type(module)]: gate.gate(x)}
    return {}


@torch.no_grad()
def affinities(module: nn.Module, x: Tensor, positions: Tensor) -> Tensor | None:
    """How strongly chosen positions relate to every position; only these rows are computed.

    Args:
        module: an attention of `make_attention`, in evaluation mode.
        x: (B, C, H, W), the map before it.
        positions: (k,) int64, each in [0, H * W).

    Returns:
        (B, k, H, W): of the spatial branch of RGA the rows of R = theta^T phi, not negative where
        it is embedded; of "nl" the rows after the softmax, whose sums are 1. None for a module that
        relates no positions to each other.
    """
    if isinstance(module, non_local.NonLocal):
        theta, phi, _ = module.embed(x).flatten(2).chunk(3, dim=1)
        rows = functional.affinity(theta, phi, positions).softmax(dim=-1)
        return rows.unflatten(2, x.shape[2:])
    if not isinstance(module, RGA) or "s" not in module.variant:
        return None
    if module.variant == "cs":  # the spatial branch sees the map that the other has multiplied
        x = x * module.attention_values(x)["channel"]
    branch = module.branch("spatial")
    if branch.relation is None:
        return None
    V = reference.nodes(x, "spatial")
    theta = V if branch.theta is None else reference.apply(branch.theta, V)
    phi = theta if branch.phi is None else reference.apply(branch.phi, V)
    return functional.affinity(theta, phi, positions).unflatten(2, x.shape[2:])
