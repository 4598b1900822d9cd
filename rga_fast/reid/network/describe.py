"""A network in words."""

from __future__ import annotations

import torch

from rga_fast.modules import RGA
from rga_fast.reid.network.reidnet import ReidNet
from rga_fast.reid.network.timm_backbone import PREFIX


def describe_network(model: ReidNet, device: torch.device) -> str:
    """The network, its size and device; on a second line its attention and, for RGA, which
    implementation runs and why."""
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    width = "" if model.arch.startswith(PREFIX) else f" (base width {model.width})"
    line = f"{model.arch}{width} at {model.size[0]}x{model.size[1]}"
    line += f", {parameters:.2f} M parameters, on {device}"
    if not model.attention:
        return f"{line}, without attention"
    line += f"\n{model.attention_name} after stages {', '.join(map(str, model.attention))}"
    first = next(iter(model.attention.values()))
    if not isinstance(first, RGA):  # the others have one implementation
        return line
    assert isinstance(first.size, tuple)
    choice = first.choose(torch.empty(1, first.channels, *first.size, device=device))
    return f"{line}: {choice.impl} ({choice.reason})"
