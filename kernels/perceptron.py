"""The perceptron that turns what a node sees, y = [psi, relu(norm(Z))], into its logit."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rga_fast.kernels.common import (
    activated,
    cdiv,
    load_norm,
    merged,
    multiply,
    parts_of_stats,
    relu,
    splits,
    store_stats,
    summed,
    through_norm,
)
from rga_fast.kernels.launch import Kernel, jit, power_of_2, precision
from rga_fast.kernels.relate import nodes_of, relations


@triton.jit
def through_psi(weight_h, psi, unit, m, k, p):
    """The part of W_1 y that psi has: a float32 tile (unit, node) of one image."""
    w = tl.load(weight_h + unit * (p + m), unit < k * p, 0.0)
    return w[:, None] * psi[None, :]


@triton.jit
def through_relations(weight_h, y, hidden, unit, row, m, k, p, PRECISION: tl.constexpr):
    """Adds W_1 y for a tile (row, node) of activated relations."""
    mask = (unit < k)[:, None] & (row < m)[None, :]
    w = tl.load(weight_h + unit[:, None] * (p + m) + p + row[None, :], mask, 0.0)
    return multiply(w.to(y.dtype), y, hidden, PRECISION)


@jit
def hidden_fwd_kernel(
    psi, Z, norm_z, weight_h, hidden, parts, n, m, k, p, PRECISION: tl.constexpr,
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
    acc = through_psi(weight_h, y_psi, unit, m, k, p)
    for start in range(0, m, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        mask = (row < m)[:, None] & (node < n)[None, :]
        z = tl.load(Z + b * m * n + row[:, None] * n + node[None, :], mask, 0.0)
        y = activated(z, norm_z, m, row).to(z.dtype)
        acc = through_relations(weight_h, y, acc, unit, row, m, k, p, PRECISION)
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


@triton.jit
def hidden_gradient(hidden, norm_h, weight_l, dl, unit, node, n, k):
    """Of a tile (unit, node) of one image: the gradient behind its normalisation, xhat, and what
    `through_norm` needs."""
    mask = (unit < k)[:, None] & (node < n)[None, :]
    mean, rstd, weight, bias = load_norm(norm_h, k, unit)
    x = tl.load(hidden + unit[:, None] * n + node[None, :], mask, 0.0)
    xhat = (x - mean[:, None]) * rstd[:, None]
    w = tl.load(weight_l + unit, unit < k, 0.0)
    dy = w[:, None] * tl.load(dl + node, node < n, 0.0)[None, :]
    dy = tl.where(mask & (xhat * weight[:, None] + bias[:, None] > 0), dy, 0.0)
    return dy, xhat, rstd, weight


@jit
def logit_bwd_kernel(
    nodes, norm_e, PQ, psi, norm_z, weight_h, norm_h, weight_l, logit, norm_l, dlogit, means_l,
    Z, hidden, dl, parts, stride_b, stride_d, stride_n, n, m, q, rows, k, p,
    NORMALISED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Z and W_1 y once more, and the gradient up to W_1 y with its sums.

    A program: (tile of units, node tile, image). More than one tile of units, above 64, makes Z
    again for each.
    """
    tiles_k = tl.cdiv(k, BLOCK_K)
    tiles_n = tl.cdiv(n, BLOCK_N)
    tile_k = tl.program_id(0) % tiles_k
    part = (tl.program_id(0) // tiles_k).to(tl.int64)
    b = part // tiles_n
    unit = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)
    node = (part % tiles_n).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)
    y_psi = tl.load(psi + b * p * n + node, node < n * p, 0.0)
    acc = through_psi(weight_h, y_psi, unit, m, k, p)
    stored = tl.where(tile_k == 0, n, 0)  # nodes whose Z this program stores
    for start in range(0, m, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        z = relations(
            PQ + b * m * q, nodes + b * stride_b, norm_e, row, node, stride_d, stride_n, n, m, q,
            rows, NORMALISED, PRECISION, BLOCK_M, BLOCK_N, BLOCK_Q,
        ).to(Z.dtype.element_ty)  # fmt: skip
        mask = (row < m)[:, None] & (node < stored)[None, :]
        tl.store(Z + b * m * n + row[:, None] * n + node[None, :], z, mask)
        y = activated(z, norm_z, m, row).to(z.dtype)
        acc = through_relations(weight_h, y, acc, unit, row, m, k, p, PRECISION)
    mask = (unit < k)[:, None] & (node < n)[None, :]
    tl.store(hidden + b * k * n + unit[:, None] * n + node[None, :], acc, mask)

    mean, rstd, weight = tl.load(norm_l), tl.load(norm_l + 1), tl.load(norm_l + 2)
    xhat_l = (tl.load(logit + b * n + node, node < n, 0.0) - mean) * rstd
    dy_l = tl.load(dlogit + b * n + node, node < n, 0.0)
    dx_l = (dy_l - tl.load(means_l) - xhat_l * tl.load(means_l + 1)) * (rstd * weight)
    dx_l = tl.where(node < n, dx_l, 0.0)
    tl.store(dl + b * n + node, dx_l, node < stored)

    mean_h, rstd_h, weight_n, bias_h = load_norm(norm_h, k, unit)
    xhat = (acc - mean_h[:, None]) * rstd_h[:, None]
    y = xhat * weight_n[:, None] + bias_h[:, None]
    w = tl.load(weight_l + unit, unit < k, 0.0)
    dy = tl.where(y > 0, w[:, None] * dx_l[None, :], 0.0)
    to = parts + part * 3 * k + unit
    tl.store(to, tl.sum(relu(y) * dx_l[None, :], 1), unit < k)
    tl.store(to + k, tl.sum(dy, 1), unit < k)
    tl.store(to + 2 * k, tl.sum(dy * xhat, 1), unit < k)


@triton.jit
def load_dhidden(hidden, norm_h, means_h, weight_l, dl, unit, node, n, k):
    """A tile (unit, node) of d(W_1 y) of one image; zero beyond both."""
    dy, xhat, rstd, weight = hidden_gradient(hidden, norm_h, weight_l, dl, unit, node, n, k)
    dx = through_norm(dy, xhat, rstd, weight, means_h, k, unit)
    return tl.where((unit < k)[:, None] & (node < n)[None, :], dx, 0.0)


@jit
def hidden_bwd_kernel(
    psi, Z, norm_z, weight_h, hidden, norm_h, means_h, weight_l, dl, dhidden, parts,
    B, n, m, k, p, splits, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr, TILES_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """d(W_1 y), dW_1 and the sums of the gradient behind the normalisation of Z.

    A program: (row tile, tile of units, share of all node tiles). Only those of the first row tile
    store d(W_1 y), only those of the first tile of units the sums.
    """
    DTYPE: tl.constexpr = Z.dtype.element_ty
    tiles_m = tl.maximum(tl.cdiv(m, BLOCK_M), 1)
    tiles_n = tl.cdiv(n, BLOCK_N)
    tile_m = tl.program_id(0) % tiles_m
    tile_k = tl.program_id(0) // tiles_m % TILES_K
    split = tl.program_id(0) // tiles_m // TILES_K
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    unit = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)
    units = tl.where(tile_m == 0, k, 0)
    rows = tl.where(tile_k == 0, m, 0)
    mean_z, rstd_z, scale_z, bias_z = load_norm(norm_z, m, row)
    dweight = tl.zeros([BLOCK_K, BLOCK_M], tl.float32)
    dweight_psi = tl.zeros([BLOCK_K], tl.float32)
    sum_dy = tl.zeros([BLOCK_M], tl.float32)
    sum_dy_xhat = tl.zeros([BLOCK_M], tl.float32)
    share = tl.cdiv(B * tiles_n, splits)
    for item in range(split * share, tl.minimum((split + 1) * share, B * tiles_n)):
        b = (item // tiles_n).to(tl.int64)
        node = item % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
        own, dl_b = hidden + b * k * n, dl + b * n
        dh = load_dhidden(own, norm_h, means_h, weight_l, dl_b, unit, node, n, k)
        mask = (unit < units)[:, None] & (node < n)[None, :]
        tl.store(dhidden + b * k * n + unit[:, None] * n + node[None, :], dh, mask)
        y_psi = tl.load(psi + b * p * n + node, node < n * p, 0.0)
        dweight_psi += tl.sum(dh * y_psi[None, :], 1)

        mask = (row < m)[:, None] & (node < n)[None, :]
        z = tl.load(Z + b * m * n + row[:, None] * n + node[None, :], mask, 0.0)
        xhat = (z.to(tl.float32) - mean_z[:, None]) * rstd_z[:, None]
        y = xhat * scale_z[:, None] + bias_z[:, None]
        dh = dh.to(DTYPE)
        dweight = multiply(dh, tl.trans(relu(y).to(DTYPE)), dweight, PRECISION)
        dy = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for tile in tl.static_range(TILES_K):
            other = tile * BLOCK_K + tl.arange(0, BLOCK_K)
            if TILES_K > 1:
                dh = load_dhidden(own, norm_h, means_h, weight_l, dl_b, other, node, n, k)
                dh = dh.to(DTYPE)
            mask_w = (row < m)[:, None] & (other < k)[None, :]
            w = tl.load(weight_h + other[None, :] * (p + m) + p + row[:, None], mask_w, 0.0)
            dy = multiply(w.to(DTYPE), dh, dy, PRECISION)
        dy = tl.where(y > 0, dy, 0.0)
        sum_dy += tl.sum(dy, 1)
        sum_dy_xhat += tl.sum(dy * xhat, 1)
    to = parts + split.to(tl.int64) * (k * (p + m) + 2 * m)
    at = to + unit * (p + m)
    tl.store(at, dweight_psi, unit < units * p)
    mask = (unit < k)[:, None] & (row < m)[None, :]
    tl.store(at[:, None] + p + row[None, :], dweight, mask)
    to += k * (p + m) + row
    tl.store(to, sum_dy, row < rows)
    tl.store(to + m, sum_dy_xhat, row < rows)


# These read Z or the hidden layer once: a wide block of nodes, and m in few steps.
HIDDEN_FWD = Kernel(
    hidden_fwd_kernel,
    {"BLOCK_K": "k", "BLOCK_N": "n", "BLOCK_M": "m"},
    [
        {"BLOCK_K": 64, "BLOCK_N": 64, "BLOCK_M": 64, "num_warps": 4, "num_stages": 3},
        {"BLOCK_K": 64, "BLOCK_N": 128, "BLOCK_M": 32, "num_warps": 4, "num_stages": 4},
    ],
)
LOGIT_FWD = Kernel(
    logit_fwd_kernel,
    {"BLOCK_K": "k", "BLOCK_N": "n"},
    [{"BLOCK_K": 32, "BLOCK_N": 128, "num_warps": 4}],
)
# The product of Z as in relate.py, but all its rows in one program.
LOGIT_BWD = Kernel(
    logit_bwd_kernel,
    {"BLOCK_K": "k", "BLOCK_M": "m", "BLOCK_N": "n", "BLOCK_Q": "q"},
    [
        {"BLOCK_K": 64, "BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_Q": 32, "num_warps": 8,
         "num_stages": 2},
        {"BLOCK_K": 64, "BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_Q": 32, "num_warps": 8,
         "num_stages": 3},
    ],
)  # fmt: skip
HIDDEN_BWD = Kernel(
    hidden_bwd_kernel,
    {"BLOCK_M": "m", "BLOCK_N": "n"},
    [
        {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2},
    ],
)


def hidden_fwd(psi: Tensor, Z: Tensor, norm_z: Tensor, weight_h: Tensor) -> tuple[Tensor, Tensor]:
    (B, m, n), k, p = Z.shape, len(weight_h), psi.shape[1]
    hidden = psi.new_empty(B, k, n)
    parts = parts_of_stats(Z, HIDDEN_FWD, k)
    config = HIDDEN_FWD(
        lambda g: cdiv(k, g["BLOCK_K"]) * cdiv(n, g["BLOCK_N"]) * B,
        psi, Z, norm_z, weight_h, hidden, parts, n, m, k, p, PRECISION=precision(Z),
    )  # fmt: skip
    return hidden, merged(parts, Z, config["BLOCK_N"])


def logit_fwd(hidden: Tensor, norm_h: Tensor, weight_l: Tensor) -> tuple[Tensor, Tensor]:
    B, k, n = hidden.shape
    logit = hidden.new_empty(B, n)
    parts = parts_of_stats(hidden, LOGIT_FWD, 1)
    config = LOGIT_FWD(
        lambda g: cdiv(n, g["BLOCK_N"]) * B, hidden, norm_h, weight_l, logit, parts, n, k
    )
    return logit, merged(parts, hidden, config["BLOCK_N"])


def logit_bwd(
    V: Tensor, E: Tensor, norm_e: Tensor, PQ: Tensor, psi: Tensor, norm_z: Tensor,
    weight_h: Tensor, norm_h: Tensor, weight_l: Tensor, logit: Tensor, norm_l: Tensor,
    dlogit: Tensor, means_l: Tensor, embeddings: int, psi_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (B, _, n), m, k, p = V.shape, PQ.shape[1], len(weight_h), psi.shape[1]
    x = nodes_of(V, E, embeddings, psi_rows)
    Z, hidden, dl = V.new_empty(B, m, n), psi.new_empty(B, k, n), torch.empty_like(logit)
    dweight_l, sums_h = torch.empty_like(weight_l), psi.new_empty(2, k)
    parts = psi.new_empty(B * cdiv(n, LOGIT_BWD.smallest("BLOCK_N")), 3 * k)
    config = LOGIT_BWD(
        lambda g: cdiv(k, g["BLOCK_K"]) * cdiv(n, g["BLOCK_N"]) * B,
        x.tensor, norm_e, PQ, psi, norm_z, weight_h, norm_h, weight_l, logit, norm_l, dlogit,
        means_l, Z, hidden, dl, parts, *x.strides, n, m, x.q, x.rows, k, p,
        NORMALISED=x.normalised, PRECISION=precision(V),
    )  # fmt: skip
    summed(parts, B * cdiv(n, config["BLOCK_N"]), dweight_l, sums_h)
    return Z, hidden, dl, dweight_l, sums_h


def hidden_bwd(
    psi: Tensor, Z: Tensor, norm_z: Tensor, weight_h: Tensor, hidden: Tensor, norm_h: Tensor,
    means_h: Tensor, weight_l: Tensor, dl: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    (B, m, n), k, p = Z.shape, len(weight_h), psi.shape[1]
    dhidden, dweight_h = torch.empty_like(hidden), torch.empty_like(weight_h)
    sums_z = torch.empty_like(norm_z[:2])
    block_k = min(power_of_2(k), 64)
    tiles_k = cdiv(k, block_k)
    shares = splits(B * cdiv(n, 64), max(1, cdiv(m, 64)) * tiles_k)
    parts = psi.new_empty(shares, k * (p + m) + 2 * m)
    HIDDEN_BWD(
        lambda g: max(1, cdiv(m, g["BLOCK_M"])) * tiles_k * shares,
        psi, Z, norm_z, weight_h, hidden, norm_h, means_h, weight_l, dl, dhidden, parts,
        B, n, m, k, p, shares, PRECISION=precision(Z), BLOCK_K=block_k, TILES_K=tiles_k,
    )  # fmt: skip
    summed(parts, shares, dweight_h, sums_z)
    return dhidden, dweight_h, sums_z
