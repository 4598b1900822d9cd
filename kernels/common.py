"""What the kernels share: products, normalisation and attention values on load."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from rga_fast.kernels.launch import INTERPRETED


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr):
    if INTERPRETED:  # its products of bfloat16 are wrong
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def load_norm(norm, rows, row):
    """mean, 1 / deviation, weight, bias of some rows of a `norm` (4, rows); 0 beyond them."""
    valid = row < rows
    mean = tl.load(norm + row, valid, 0.0)
    rstd = tl.load(norm + rows + row, valid, 0.0)
    weight = tl.load(norm + 2 * rows + row, valid, 0.0)
    bias = tl.load(norm + 3 * rows + row, valid, 0.0)
    return mean, rstd, weight, bias


@triton.jit
def relu(x):
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)  # a NaN is not hidden


@triton.jit
def activated(x, norm, rows, row):
    """relu(normalised) of a tile (row, node) before normalisation, in float32."""
    mean, rstd, weight, bias = load_norm(norm, rows, row)
    centred = x.to(tl.float32) - mean[:, None]  # first, so that a large mean costs no digits
    return relu(centred * (rstd * weight)[:, None] + bias[:, None])


@triton.jit
def batch_norm_backward(dy, xhat, rstd, weight, means, rows, row):
    """The gradient before a normalisation from that after it, a tile (row, node)."""
    mean_dy = tl.load(means + row, row < rows, 0.0)
    mean_dy_xhat = tl.load(means + rows + row, row < rows, 0.0)
    dx = dy - mean_dy[:, None] - xhat * mean_dy_xhat[:, None]
    return dx * (rstd * weight)[:, None]


@triton.jit
def attention_value(logit, norm_l):
    mean, rstd = tl.load(norm_l), tl.load(norm_l + 1)
    weight, bias = tl.load(norm_l + 2), tl.load(norm_l + 3)
    return tl.sigmoid((logit - mean) * (rstd * weight) + bias)


@triton.jit
def load_gate(gate, norm_g, at, mask, GATED: tl.constexpr):
    """Attention values of the branch before, from its logits where GATED is 2."""
    a = tl.load(gate + at, mask, 0.0)
    if GATED == 2:
        a = attention_value(a, norm_g)
    return a


@triton.jit
def load_nodes(
    nodes, norm, offset, row, valid, node, stride_n, rows, n, NORMALISED: tl.constexpr
):  # fmt: skip
    """A tile (row, node) of theta and phi: rows of E, normalised, or of V itself.

    `offset` of a row is where it begins. Values beyond the nodes are finite, not zero.
    """
    mask = valid[:, None] & (node < n)[None, :]
    x = tl.load(nodes + offset[:, None] + node[None, :] * stride_n, mask, 0.0)
    if NORMALISED:
        x = activated(x, norm, rows, row).to(x.dtype)
    return x


class Gate(NamedTuple):
    """Factors of the features of a map, applied on load: the attention values (B, d) of the branch
    before, or its logits and their normalisation."""

    values: Tensor
    norm: Tensor | None = None


def gate_arguments(gate: Gate | None, V: Tensor) -> dict[str, Any]:
    """`gate`, `norm_g` and GATED of a kernel that reads `V`."""
    if gate is None:
        return {"gate": V, "norm_g": V, "GATED": 0}  # never read
    if gate.norm is None:
        return {"gate": gate.values, "norm_g": gate.values, "GATED": 1}
    return {"gate": gate.values, "norm_g": gate.norm, "GATED": 2}


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def splits(items: int, tiles: int) -> int:
    """Into how many programs a reduction over `items` is split that has `tiles` results.

    About 264, because a GPU has a hundred processors or more, each of which wants two programs or
    so; every split writes and reads its result once more. The same for every GPU: so are the sums.
    """
    return max(1, min(items, round(264 / tiles)))


def lowered(weight: Tensor, V: Tensor) -> Tensor:
    """A large `weight` in the dtype of the map: every program reads it. A small one is converted
    by each program, which is cheaper than another launch."""
    return weight.to(V.dtype) if weight.numel() >= 1 << 18 else weight
