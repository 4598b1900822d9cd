"""The network to export: pre-processing included, normalisations folded into the products.

Everything is plain tensor operations, so a file needs no operator of this package.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rga_fast import exactness
from rga_fast.modules import RGA
from rga_fast.reference import Branch, gate, nodes
from rga_fast.reid.data.augment import IMAGENET_MEAN, IMAGENET_STD
from rga_fast.reid.network.reidnet import ReidNet
from rga_fast.reid.network.resnet import Backbone, BasicBlock, Bottleneck

# Where a normalisation named bnX follows the convolution named convX.
_PAIRED = (Backbone, BasicBlock, Bottleneck)


class Deployable(nn.Module):
    """A trained network from pixels to both features, without its classifier.

    uint8 (B, H, W, 3), RGB -> (B, D) before the neck, (B, D) after it, float32.
    """

    mean: Tensor
    std: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, network: ReidNet) -> None:
        super().__init__()
        network = copy.deepcopy(network).cpu().float().eval()
        self.backbone = fold(network.backbone)
        scale, shift = _affine(network.feat_bn)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, 255 * torch.tensor(values)[:, None, None])
        self.requires_grad_(False)
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        images = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        before = self.backbone(images).mean(dim=(2, 3))
        return before, before * self.scale + self.shift


def fold(module: nn.Module) -> nn.Module:
    """`module` in evaluation mode, changed in place: every normalisation that directly follows a
    convolution is folded into it, and every `RGA` becomes a `FoldedRGA`. Returns the module."""
    if isinstance(module, RGA) and all(exactness.problem(b) is None for b in module._branches()):
        return FoldedRGA(module)
    for name, child in list(module.named_children()):
        setattr(module, name, fold(child))
    pairs: list[tuple[str, str]] = []
    names = [name for name, _ in module.named_children()]
    if isinstance(module, nn.Sequential):
        pairs = list(pairwise(names))
    elif isinstance(module, _PAIRED):
        pairs = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3) if f"conv{i}" in names]
    for first, second in pairs:
        convolution, norm = getattr(module, first), getattr(module, second)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, first, fuse_conv_bn_eval(convolution, norm))
            setattr(module, second, nn.Identity())
    return module


class FoldedRGA(nn.Module):
    """The reassociated form of an `RGA` in evaluation. (B, C, H, W) -> the same shape."""

    def __init__(self, module: RGA) -> None:
        super().__init__()
        self.parallel = module.variant == "s//c"
        self.branches = nn.ModuleList(FoldedBranch(branch) for branch in module._branches())

    def forward(self, x: Tensor) -> Tensor:
        if self.parallel:
            first, second = self.branches
            return (first(x) + second(x)) / 2
        for branch in self.branches:
            x = branch(x)
        return x


class FoldedBranch(nn.Module):
    """One branch: products with the folded weights, nothing of size n x n.

    (B, C, H, W) -> the same shape. Names as in docs/design.md.
    """

    W_row: Tensor
    W_col: Tensor
    relation_bias: Tensor

    def __init__(self, branch: Branch) -> None:
        super().__init__()
        self.view = branch.view
        layers: dict[str, Any] = {"theta": branch.theta, "phi": branch.phi, "psi": branch.psi}
        layers |= {"hidden": branch.perceptron[:3], "logit": branch.perceptron[3:]}
        for name, layer in layers.items():
            if layer is not None:
                weight, bias = _folded(layer)
                self.register_buffer(f"{name}_weight", weight)
                self.register_buffer(f"{name}_bias", bias)
        self.appearance, self.relations = branch.psi is not None, branch.relation is not None
        self.embedded, self.symmetric = branch.theta is not None, branch.phi is None
        if branch.relation is not None:
            weight, bias = _folded(branch.relation)
            W_row, W_col = weight.chunk(2, dim=1)
            self.register_buffer("relation_bias", bias)
            if self.symmetric:  # theta is phi: one product for both
                W_row = W_row + W_col
            else:
                self.register_buffer("W_col", W_col.contiguous())
            self.register_buffer("W_row", W_row.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        V = nodes(x, self.view)  # (B, d, n)
        y = []
        if self.appearance:
            y.append(self._layer("psi", V).relu().mean(dim=1, keepdim=True))
        if self.relations:
            y.append((self._relations(V) + self.relation_bias).relu())
        hidden = self._layer("hidden", torch.cat(y, dim=1)).relu()
        return gate(x, self._layer("logit", hidden), self.view)

    def _relations(self, V: Tensor) -> Tensor:
        theta = self._layer("theta", V).relu() if self.embedded else V  # (B, c, n)
        if self.symmetric:
            return torch.matmul(torch.matmul(self.W_row, theta.transpose(1, 2)), theta)
        phi = self._layer("phi", V).relu()
        P = torch.matmul(self.W_row, phi.transpose(1, 2))  # (B, m, c)
        Q = torch.matmul(self.W_col, theta.transpose(1, 2))
        return torch.matmul(P, theta) + torch.matmul(Q, phi)

    def _layer(self, name: str, V: Tensor) -> Tensor:
        weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")
        return torch.matmul(weight, V) + bias


def _folded(layer: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Weight (m, d) and bias (m, 1) of a convolution and the normalisation after it."""
    scale, shift = _affine(layer[1])
    weight = cast(Tensor, layer[0].weight).detach().flatten(1)
    return weight * scale[:, None], shift[:, None]


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Factor and summand, (m,) each, of a batch normalisation in evaluation."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale.detach(), (norm.bias - norm.running_mean * scale).detach()
