"""The attention without the affinity matrix, in plain PyTorch.

Nothing non-linear stands between `R = theta^T phi` and the weights that embed its rows and columns,
so the products are reassociated (docs/design.md):

    W_row R[i, :] + W_col R[:, i] = (W_row phi^T) theta_i + (W_col theta^T) phi_i
"""

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from rga_fast.reference import Branch, gate, nodes


def attention(x: Tensor, branch: Branch) -> Tensor:
    """One branch: (B, C, H, W) -> the same, each node scaled by its attention value."""
    return gate(x, logit(x, branch), branch.view)


def logit(x: Tensor, branch: Branch) -> Tensor:
    """The logits (B, 1, n) of the attention values of a map (B, C, H, W)."""
    V = nodes(x, branch.view)  # (B, d, n)
    theta, phi, psi = _embed(V, branch)
    y = []
    if branch.psi is not None:
        y.append(psi.mean(dim=1, keepdim=True))
    if branch.relation is not None:
        z = relation_embedding(theta, phi, _matrix(branch.relation[0]))
        y.append(_normalise(branch.relation, z))
    Y = torch.cat(y, dim=1)  # (B, 1 + m, n)
    hidden = _normalise(branch.perceptron, _times(_matrix(branch.perceptron[0]), Y))
    row = _times(_matrix(branch.perceptron[3]), hidden)  # (B, 1, n)
    return branch.perceptron[4](row.unsqueeze(-1)).squeeze(-1)


def _embed(V: Tensor, branch: Branch) -> tuple[Tensor, Tensor, Tensor]:
    """theta, phi, psi from one product with the stacked weights; an absent one is V itself."""
    layers = [layer for layer in (branch.theta, branch.phi, branch.psi) if layer is not None]
    if not layers:
        return V, V, V
    weights = [_matrix(layer[0]) for layer in layers]
    E = _times(torch.cat(weights), V)  # (B, 3c, n)
    rows = iter(E.split([w.shape[0] for w in weights], dim=1))
    theta = V if branch.theta is None else _normalise(branch.theta, next(rows))
    phi = theta if branch.phi is None else _normalise(branch.phi, next(rows))
    psi = V if branch.psi is None else _normalise(branch.psi, next(rows))
    return theta, phi, psi


def _normalise(layer: nn.Sequential, rows: Tensor) -> Tensor:
    """The normalisation and activation after a layer's convolution."""
    return layer[2](layer[1](rows.unsqueeze(-1))).squeeze(-1)


def relation_embedding(theta: Tensor, phi: Tensor, weight: Tensor) -> Tensor:
    """As `rga_fast.relation_embedding`, whose arguments are checked already."""
    n = theta.shape[-1]
    symmetric = phi is theta
    (theta, phi, weight), dtype, products = _product_dtype(theta, phi, weight)
    with products:
        W_row, W_col = weight[:, :n], weight[:, n:]
        if symmetric:
            P = _batched(W_row + W_col, theta.transpose(1, 2))
            return torch.bmm(P, theta).to(dtype)
        P = _batched(W_row, phi.transpose(1, 2))  # (B, m, c)
        Q = _batched(W_col, theta.transpose(1, 2))
        return torch.baddbmm(torch.bmm(P, theta), Q, phi).to(dtype)


def _times(weight: Tensor, V: Tensor) -> Tensor:
    """(m, d), (B, d, n) -> (B, m, n)."""
    (weight, V), dtype, products = _product_dtype(weight, V)
    with products:
        return _batched(weight, V).to(dtype)


def _batched(weight: Tensor, V: Tensor) -> Tensor:
    # `matmul` would copy a transposed V; a batched product does not (up to 4 times faster).
    return torch.bmm(weight.expand(V.shape[0], -1, -1), V)


def _product_dtype(
    *factors: Tensor,
) -> tuple[list[Tensor], torch.dtype, AbstractContextManager]:
    """The factors of products, the dtype of their result, and the context to form them in.

    A CPU multiplies bfloat16 and float16 slower than float32 (50 times where it lacks the
    instructions): there the factors are rounded to that dtype, but multiplied in float32.
    """
    device, dtype = factors[0].device.type, factors[0].dtype
    if dtype == torch.float64:
        return list(factors), dtype, nullcontext()
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if device != "cpu" or dtype == torch.float32:
        return list(factors), dtype, nullcontext()
    rounded = [factor.to(dtype).float() for factor in factors]
    return rounded, dtype, torch.autocast("cpu", enabled=False)


def _matrix(convolution: nn.Module) -> Tensor:
    """The weight of a 1x1 convolution: (m, d, 1, 1) -> (m, d)."""
    return cast(Tensor, convolution.weight).flatten(1)
