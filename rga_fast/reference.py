"""The specification: relation-aware global attention as published, affinity matrix and all.

Zhang, Lan, Zeng, Jin, Chen: Relation-Aware Global Attention for Person Re-identification,
CVPR 2020. Slow and large on purpose: every other implementation answers to this file.

Shapes: a branch sees a map `x` of shape (B, C, H, W) as `n` nodes with `d` features, (B, d, n).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Branch(NamedTuple):
    """The layers of one branch; layers disabled by an ablation are None.

    `theta`, `phi`, `psi` and `relation` are convolution, normalisation, activation; `perceptron` is
    the two-layer perceptron of the attention value, up to its logit. With `relation` given, `phi`
    None means that theta is phi (symmetric), `theta` None that both are the nodes themselves.
    """

    view: str  # "spatial" or "channel"
    theta: nn.Sequential | None
    phi: nn.Sequential | None
    psi: nn.Sequential | None
    relation: nn.Sequential | None
    perceptron: nn.Sequential


def nodes(x: Tensor, view: str) -> Tensor:
    """The nodes of a map, a view of it where its strides allow: (B, C, H, W) -> (B, d, n)."""
    V = x.flatten(2)
    return V if view == "spatial" else V.transpose(1, 2)


def gate(x: Tensor, logit: Tensor, view: str) -> Tensor:
    """`x` (B, C, H, W) times the attention values sigmoid(logit), `logit` of shape (B, 1, n)."""
    return x * spread(torch.sigmoid(logit), x, view)


def spread(a: Tensor, x: Tensor, view: str) -> Tensor:
    """A value per node (B, 1, n), in a shape that broadcasts over the features of the map `x`."""
    return a.unflatten(-1, x.shape[2:]) if view == "spatial" else a.transpose(1, 2)[..., None]


def apply(layer: nn.Sequential, V: Tensor) -> Tensor:
    """A 1x1 convolution layer on nodes: (B, d, n) -> (B, d', n)."""
    return layer(V.unsqueeze(-1)).squeeze(-1)


def relation_embedding(theta: Tensor, phi: Tensor, weight: Tensor) -> Tensor:
    """`z_i = W_row R[i, :] + W_col R[:, i]` with `R = theta^T phi` formed: see `rga_fast`."""
    return torch.matmul(weight, stacked_relations(theta, phi))


def stacked_relations(theta: Tensor, phi: Tensor) -> Tensor:
    """Row and column of each node, stacked: (B, c, n), (B, c, n) -> (B, 2n, n)."""
    R = torch.matmul(theta.transpose(1, 2), phi)  # R[i, j] = theta_i . phi_j
    return torch.cat([R.transpose(1, 2), R], dim=1)  # entry (k, i): R[i, k], then R[k, i]


def attention(x: Tensor, branch: Branch) -> Tensor:
    """One branch: (B, C, H, W) -> the same, each node scaled by its attention value."""
    return gate(x, logit(x, branch), branch.view)


def logit(x: Tensor, branch: Branch) -> Tensor:
    """The logits (B, 1, n) of the attention values of a map (B, C, H, W)."""
    V = nodes(x, branch.view)  # (B, d, n)
    y = []
    if branch.psi is not None:
        y.append(apply(branch.psi, V).mean(dim=1, keepdim=True))  # (B, 1, n)
    if branch.relation is not None:
        theta = V if branch.theta is None else apply(branch.theta, V)  # (B, c, n)
        phi = theta if branch.phi is None else apply(branch.phi, V)
        y.append(apply(branch.relation, stacked_relations(theta, phi)))  # (B, m, n)
    return apply(branch.perceptron, torch.cat(y, dim=1))
