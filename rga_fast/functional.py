"""The public functions: each validates its arguments, chooses an implementation and runs it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rga_fast import dispatch, eager, fused, reference, validation
from rga_fast.reference import Branch


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
    return eager.relation_embedding(theta, phi, weight)


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
    return in_turn(x, [branch], dispatch.choose(impl, x, branch).impl)


def attention_values(x: Tensor, branch: Branch) -> Tensor:
    """What `attention` multiplies the map by: in (0, 1).

    Args:
        x, branch: as for `attention`.

    Returns:
        (B, 1, H, W) for a spatial branch, (B, C, 1, 1) for a channel branch.
    """
    exact = dispatch.choose("auto", x, branch).impl != "reference"
    logit = (eager if exact else reference).logit(x, branch)
    return reference.spread(torch.sigmoid(logit), x, branch.view)


def in_turn(x: Tensor, branches: Sequence[Branch], chosen: str) -> Tensor:
    """One branch after the other, by the implementation that was chosen."""
    if chosen in dispatch.FUSED:
        return fused.attention(x, branches, chosen)
    for branch in branches:
        x = (reference if chosen == "reference" else eager).attention(x, branch)
    return x
