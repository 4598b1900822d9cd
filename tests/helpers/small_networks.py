"""Networks with few channels, and weights for them."""

import torch

from rga_fast.reid.network.reidnet import ReidNet


def small(**options) -> ReidNet:
    defaults = {"arch": "resnet18", "num_classes": 5, "size": (64, 32), "width": 8}
    return ReidNet(**(defaults | options))


def random_weights(model: torch.nn.Module, seed: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {
        key: torch.rand_like(tensor) if tensor.is_floating_point() else tensor + 7
        for key, tensor in model.state_dict().items()
    }


def torchvision_state(arch="resnet18") -> dict[str, torch.Tensor]:
    """As torchvision and timm save a ResNet, with its classifier."""
    state = random_weights(small(arch=arch, attention="none").backbone)
    return state | {"fc.weight": torch.rand(1000, 64), "fc.bias": torch.rand(1000)}
