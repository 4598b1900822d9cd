"""The perceptron: a node's input y = [psi, relu(norm(Z))] to its logit."""

import triton
import triton.language as tl
from torch import Tensor

from rga_fast.kernels.common import activated, cdiv, multiply
from rga_fast.kernels.launch import Kernel, jit, precision
from rga_fast.kernels.relate import Relations, load_factors, load_P, load_Z, of_memory
from rga_fast.kernels.statistics import Finish, merged, parts_of_stats, store_stats


@triton.jit
def hidden_of_psi(weight_h, psi, unit, m, k, p):
    """psi's share of W_1 y: a float32 tile (unit, node) of one image."""
    w = tl.load(weight_h + unit * (p + m), unit < k * p, 0.0)
    return w[:, None] * psi[None, :]


@triton.jit
def add_hidden_of_relations(weight_h, y, hidden, unit, row, m, k, p, PRECISION: tl.constexpr):
    """Adds W_1 y for a tile (row, node) of activated relations."""
    mask = (unit < k)[:, None] & (row < m)[None, :]
    w = tl.load(weight_h + unit[:, None] * (p + m) + p + row[None, :], mask, 0.0)
    return multiply(w.to(y.dtype), y, hidden, PRECISION)


@triton.jit
def load_units_weight(weight_h, row, unit, m, k, p, DTYPE: tl.constexpr):
    """A tile (row, unit) of the columns of W_1 that multiply the relations, transposed."""
    mask = (row < m)[:, None] & (unit < k)[None, :]
    return tl.load(weight_h + unit[None, :] * (p + m) + p + row[:, None], mask, 0.0).to(DTYPE)


@jit
def hidden_fwd_kernel(
    Z, PQ, nodes, norm_e, stride_b, stride_d, stride_n, q, rows, psi, norm_z, weight_h, hidden,
    parts, n, m, k, p, STORED: tl.constexpr, NORMALISED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """A program: (tile of units, node tile, image)."""
    tiles_k = tl.cdiv(k, BLOCK_K)
    tiles_n = tl.cdiv(n, BLOCK_N)
    part = tl.program_id(0) // tiles_k
    b = (part // tiles_n).to(tl.int64)
    unit = tl.program_id(0) % tiles_k * BLOCK_K + tl.arange(0, BLOCK_K)
    node = part % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    y_psi = tl.load(psi + b * p * n + node, node < n * p, 0.0)
    acc = hidden_of_psi(weight_h, y_psi, unit, m, k, p)
    DTYPE: tl.constexpr = Z.dtype.element_ty
    x = load_factors(
        nodes + b * stride_b, norm_e, node, stride_d, stride_n, n, q, rows, STORED, NORMALISED,
        BLOCK_F,
    )  # fmt: skip
    for start in range(0, m, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        P = load_P(PQ + b * m * q, row, m, q, DTYPE, STORED, BLOCK_F)
        z = load_Z(Z + b * m * n, P, x, row, node, n, m, STORED, PRECISION, BLOCK_M, BLOCK_N)
        y = activated(z, norm_z, m, row).to(DTYPE)
        acc = add_hidden_of_relations(weight_h, y, acc, unit, row, m, k, p, PRECISION)
    acc = tl.where((node < n)[None, :], acc, 0.0)
    to = hidden + b * k * n + unit[:, None] * n + node[None, :]
    tl.store(to, acc, (unit < k)[:, None] & (node < n)[None, :])
    count = tl.minimum(n - part % tiles_n * BLOCK_N, BLOCK_N)
    store_stats(parts, part.to(tl.int64), acc, unit, k, node < n, count)


@jit
def logit_fwd_kernel(
    hidden, norm_h, weight_l, logit, parts, n, k, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program: (node tile, image)."""
    tiles_n = tl.cdiv(n, BLOCK_N)
    part = tl.program_id(0)
    b = (part // tiles_n).to(tl.int64)
    node = part % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, k, BLOCK_K):
        unit = start + tl.arange(0, BLOCK_K)
        mask = (unit < k)[:, None] & (node < n)[None, :]
        x = tl.load(hidden + b * k * n + unit[:, None] * n + node[None, :], mask, 0.0)
        w = tl.load(weight_l + unit, unit < k, 0.0)
        acc += tl.sum(activated(x, norm_h, k, unit) * w[:, None], 0)
    acc = tl.where(node < n, acc, 0.0)
    tl.store(logit + b * n + node, acc, node < n)
    count = tl.minimum(n - part % tiles_n * BLOCK_N, BLOCK_N)
    one = tl.arange(0, 1)
    store_stats(parts, part.to(tl.int64), acc[None, :], one, 1, node < n, count)


# Z is read or recomputed once, the hidden layer read: a wide block of nodes, and m in few steps.
HIDDEN_FWD = Kernel(
    hidden_fwd_kernel,
    {"BLOCK_K": "k", "BLOCK_N": "n", "BLOCK_M": "m"},
    [
        {"BLOCK_K": 64, "BLOCK_N": 64, "BLOCK_M": 64, "num_warps": 4, "num_stages": 3},
        {"BLOCK_K": 64, "BLOCK_N": 128, "BLOCK_M": 64, "num_warps": 4, "num_stages": 2},
    ],
)
LOGIT_FWD = Kernel(
    logit_fwd_kernel,
    {"BLOCK_K": "k", "BLOCK_N": "n"},
    [{"BLOCK_K": 32, "BLOCK_N": 128, "num_warps": 4}],
)


def hidden_fwd(
    psi: Tensor, Z: Tensor | Relations, norm_z: Tensor, weight_h: Tensor, finish: Finish = merged
) -> tuple[Tensor, Tensor]:
    z = of_memory(Z, norm_z) if isinstance(Z, Tensor) else Z
    (B, _, n), m, k, p = z.Z.shape, norm_z.shape[1], len(weight_h), psi.shape[1]
    hidden = psi.new_empty(B, k, n)
    parts = parts_of_stats(z.Z, HIDDEN_FWD, k)
    config = HIDDEN_FWD(
        lambda g: cdiv(k, g["BLOCK_K"]) * cdiv(n, g["BLOCK_N"]) * B,
        **z.arguments, psi=psi, norm_z=norm_z, weight_h=weight_h, hidden=hidden, parts=parts, n=n,
        m=m, k=k, p=p, PRECISION=precision(z.Z), **z.constants,
    )  # fmt: skip
    return hidden, finish(parts, z.Z, config["BLOCK_N"])


def logit_fwd(
    hidden: Tensor, norm_h: Tensor, weight_l: Tensor, finish: Finish = merged
) -> tuple[Tensor, Tensor]:
    B, k, n = hidden.shape
    logit = hidden.new_empty(B, n)
    parts = parts_of_stats(hidden, LOGIT_FWD, 1)
    config = LOGIT_FWD(
        lambda g: cdiv(n, g["BLOCK_N"]) * B,
        hidden=hidden, norm_h=norm_h, weight_l=weight_l, logit=logit, parts=parts, n=n, k=k,
    )  # fmt: skip
    return logit, finish(parts, hidden, config["BLOCK_N"])
