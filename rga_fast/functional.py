"""Relation-aware global attention without the affinity matrix, in plain PyTorch.

Nothing non-linear stands between `R = theta^T phi` and the weights that embed its rows and columns,
so the products are reassociated (docs/design.md):

    W_row R[i, :] + W_col R[:, i] = (W_row phi^T) theta_i + (W_col theta^T) phi_i
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from rga_fast import dispatch, fused, reference, validation
from rga_fast.reference import Branch, gate, nodes


def relation_embedding(theta: Tensor, phi: Tensor, weight: Tensor) -> Tensor:
    """Embeds the relations of every node to all nodes, without forming them.

    `z_i = W_row R[i, :] + W_col R[:, i]` with `R[i, j] = theta_i . phi_j` and
    `weight = [W_row, W_col]`: section 3.1 of the paper, before normalisation and activation.

    Args:
        theta, phi: (B, c, n), floating point. The same tensor twice is recognised (the symmetric
            embedding) and costs half.
        weight: (m, 2n), the first n columns for the row of R, the last n for its column.

    Returns:
        (B, m, n), of the dtype of the inputs (of autocast where it is on). Differentiable.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit together.
    """
    validation.check_embeddings("relation_embedding", theta, phi)
    validation.check_relation_weight("relation_embedding", weight, theta)
    return _relation_embedding(theta, phi, weight)


def affinity(theta: Tensor, phi: Tensor, nodes: Tensor | Sequence[int]) -> Tensor:
    """Chosen rows of the affinity matrix `R[i, j] = theta_i . phi_j`, for looking at them.

    Args:
        theta, phi: (B, c, n), floating point.
        nodes: the k rows wanted, each in [0, n).

    Returns:
        (B, k, n).

    Raises:
        ValueError: for shapes that do not fit together, or a row outside [0, n).
    """
    validation.check_embeddings("affinity", theta, phi)
    rows = torch.as_tensor(nodes, device=theta.device)
    rows = rows.long() if rows.numel() == 0 else rows  # an empty list has no integer dtype
    validation.check_rows("affinity", rows, theta.shape[-1])
    return torch.matmul(theta[:, :, rows].transpose(1, 2), phi)


def attention(x: Tensor, branch: Branch, impl: str = "auto") -> Tensor:
    """One branch of the attention: each node of `x` scaled by its attention value.

    Args:
        x: (B, C, H, W), the size for which the layers of `branch` were made.
        branch: the layers, see `rga_fast.reference.Branch`.
        impl: "auto", or the name of an implementation, see `rga_fast.choose`.

    Returns:
        (B, C, H, W), in the layout of `x`.
    """
    return _run(x, branch, dispatch.choose(impl, x, branch).impl)


def in_turn(x: Tensor, branches: Sequence[Branch], impl: str) -> Tensor:
    """`attention` by one branch after the other."""
    chosen = [dispatch.choose(impl, x, branch).impl for branch in branches]
    if len(set(chosen)) == 1 and chosen[0] in dispatch.FUSED:
        return fused.attention(x, branches, chosen[0])
    for branch, name in zip(branches, chosen, strict=True):
        x = _run(x, branch, name)
    return x


def _run(x: Tensor, branch: Branch, name: str) -> Tensor:
    if name == "reference":
        return reference.attention(x, branch)
    if name == "torch":
        return _attention(x, branch)
    return fused.attention(x, [branch], name)


def _relation_embedding(theta: Tensor, phi: Tensor, weight: Tensor) -> Tensor:
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
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if device != "cpu" or dtype == torch.float32:
        return list(factors), dtype, nullcontext()
    rounded = [factor.to(dtype).float() for factor in factors]
    return rounded, dtype, torch.autocast("cpu", enabled=False)


def _matrix(convolution: nn.Module) -> Tensor:
    """The weight of a 1x1 convolution: (m, d, 1, 1) -> (m, d)."""
    return cast(Tensor, convolution.weight).flatten(1)


def _attention(x: Tensor, branch: Branch) -> Tensor:
    V = nodes(x, branch.view)  # (B, d, n)
    theta, phi, psi = _embed(V, branch)
    y = []
    if branch.psi is not None:
        y.append(psi.mean(dim=1, keepdim=True))
    if branch.relation is not None:
        z = _relation_embedding(theta, phi, _matrix(branch.relation[0]))
        y.append(_normalise(branch.relation, z))
    Y = torch.cat(y, dim=1)  # (B, 1 + m, n)
    hidden = _normalise(branch.weight, _times(_matrix(branch.weight[0]), Y))
    logit = _times(_matrix(branch.weight[3]), hidden)  # (B, 1, n)
    return gate(x, branch.weight[4](logit.unsqueeze(-1)).squeeze(-1), branch.view)


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
    """The normalisation and activation behind a layer's convolution."""
    return layer[2](layer[1](rows.unsqueeze(-1))).squeeze(-1)
