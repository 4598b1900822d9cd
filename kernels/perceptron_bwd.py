"""The gradient of the perceptron, up to the activated relations."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rga_fast.kernels.common import (
    activated,
    batch_norm_backward,
    cdiv,
    load_norm,
    multiply,
    relu,
    splits,
)
from rga_fast.kernels.launch import Kernel, jit, power_of_2, precision
from rga_fast.kernels.perceptron import add_hidden_of_relations, hidden_of_psi, load_units_weight
from rga_fast.kernels.relate import (
    Relations,
    load_factors,
    load_P,
    load_Z,
    nodes_of,
    of_memory,
    relations,
    rows_kept,
)
from rga_fast.kernels.statistics import Total, summed


@triton.jit
def hidden_gradient(hidden, norm_h, weight_l, dl, unit, node, n, k):
    """Of a tile (unit, node) of one image: the gradient after its normalisation, xhat, and the
    rest of what `batch_norm_backward` takes."""
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
    Z, PQ, nodes, norm_e, stride_b, stride_d, stride_n, q, rows, psi, norm_z, weight_h, norm_h,
    weight_l, logit, norm_l, dlogit, means_l, hidden, dl, parts, n, m, k, p,
    STORED: tl.constexpr, NORMALISED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Recomputes Z, where it is stored, and W_1 y; the gradient up to W_1 y with its sums.

    A program: (tile of units, node tile, image). More than one tile of units, above 64,
    recomputes Z for each.
    """
    tiles_k = tl.cdiv(k, BLOCK_K)
    tiles_n = tl.cdiv(n, BLOCK_N)
    tile_k = tl.program_id(0) % tiles_k
    part = (tl.program_id(0) // tiles_k).to(tl.int64)
    b = part // tiles_n
    unit = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)
    node = (part % tiles_n).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)
    y_psi = tl.load(psi + b * p * n + node, node < n * p, 0.0)
    acc = hidden_of_psi(weight_h, y_psi, unit, m, k, p)
    nodes += b * stride_b
    PQ += b * m * q
    DTYPE: tl.constexpr = Z.dtype.element_ty
    stored = tl.where(tile_k == 0, n, 0)  # nodes whose Z and dl this program stores
    x = load_factors(
        nodes, norm_e, node, stride_d, stride_n, n, q, rows, STORED, NORMALISED, BLOCK_F
    )
    for start in range(0, m, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        if STORED:
            z = relations(
                PQ, nodes, norm_e, row, node, stride_d, stride_n, n, m, q, rows, NORMALISED,
                PRECISION, BLOCK_M, BLOCK_N, BLOCK_Q,
            ).to(DTYPE)  # fmt: skip
            mask = (row < m)[:, None] & (node < stored)[None, :]
            tl.store(Z + b * m * n + row[:, None] * n + node[None, :], z, mask)
        else:
            P = load_P(PQ, row, m, q, DTYPE, STORED, BLOCK_F)
            z = load_Z(Z, P, x, row, node, n, m, STORED, PRECISION, BLOCK_M, BLOCK_N)
        y = activated(z, norm_z, m, row).to(DTYPE)
        acc = add_hidden_of_relations(weight_h, y, acc, unit, row, m, k, p, PRECISION)
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
    dx = batch_norm_backward(dy, xhat, rstd, weight, means_h, k, unit)
    return tl.where((unit < k)[:, None] & (node < n)[None, :], dx, 0.0)


@jit
def hidden_bwd_kernel(
    Z, PQ, nodes, norm_e, stride_b, stride_d, stride_n, q, rows, psi, norm_z, weight_h, hidden,
    norm_h, means_h, weight_l, dl, dhidden, parts, B, n, m, k, p, splits,
    STORED: tl.constexpr, NORMALISED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr, TILES_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """d(W_1 y), dW_1 and the sums of the gradient after the normalisation of Z.

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
    mean_z, rstd_z, scale_z, bias_z = load_norm(norm_z, m, row)
    slope_z = rstd_z * scale_z
    w = load_units_weight(weight_h, row, unit, m, k, p, DTYPE)
    dweight = tl.zeros([BLOCK_K, BLOCK_M], tl.float32)
    dy_psi = tl.zeros([BLOCK_K, BLOCK_N], tl.float32)  # added up over the nodes after the loop
    sum_dy = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    sum_dy_centred = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    share = tl.cdiv(B * tiles_n, splits)
    begin, end = split * share, tl.minimum((split + 1) * share, B * tiles_n)
    for b in range((begin // tiles_n).to(tl.int64), tl.cdiv(end, tiles_n).to(tl.int64)):
        own, dl_b = hidden + b * k * n, dl + b * n
        P = load_P(PQ + b * m * q, row, m, q, DTYPE, STORED, BLOCK_F)
        first = tl.maximum(begin - b * tiles_n, 0).to(tl.int32)
        for tile_n in range(first, tl.minimum(end - b * tiles_n, tiles_n).to(tl.int32)):
            node = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
            dh = load_dhidden(own, norm_h, means_h, weight_l, dl_b, unit, node, n, k)
            mask = (unit < units)[:, None] & (node < n)[None, :]
            to = dhidden + b * k * n + unit[:, None] * n + node[None, :]
            tl.store(to, dh.to(dhidden.dtype.element_ty), mask)
            y_psi = tl.load(psi + b * p * n + node, node < n * p, 0.0)
            dy_psi += dh * y_psi[None, :]

            x = load_factors(
                nodes + b * stride_b, norm_e, node, stride_d, stride_n, n, q, rows, STORED,
                NORMALISED, BLOCK_F,
            )  # fmt: skip
            z = load_Z(Z + b * m * n, P, x, row, node, n, m, STORED, PRECISION, BLOCK_M, BLOCK_N)
            centred = z.to(tl.float32) - mean_z[:, None]
            y = centred * slope_z[:, None] + bias_z[:, None]
            dh = dh.to(DTYPE)
            dweight = multiply(dh, tl.trans(relu(y).to(DTYPE)), dweight, PRECISION)
            dy = multiply(w, dh, tl.zeros([BLOCK_M, BLOCK_N], tl.float32), PRECISION)
            for tile in tl.static_range(1, TILES_K):
                other = (tile_k + tile) % TILES_K * BLOCK_K + tl.arange(0, BLOCK_K)
                dh = load_dhidden(own, norm_h, means_h, weight_l, dl_b, other, node, n, k)
                w_other = load_units_weight(weight_h, row, other, m, k, p, DTYPE)
                dy = multiply(w_other, dh.to(DTYPE), dy, PRECISION)
            dy = tl.where(y > 0, dy, 0.0)
            sum_dy += dy
            sum_dy_centred += dy * centred
    to = parts + split.to(tl.int64) * (k * (p + m) + 2 * m)
    at = to + unit * (p + m)
    tl.store(at, tl.sum(dy_psi, 1), unit < units * p)
    mask = (unit < k)[:, None] & (row < m)[None, :]
    tl.store(at[:, None] + p + row[None, :], dweight, mask)
    to += k * (p + m) + row
    own_rows = tl.where(tile_k == 0, m, 0)
    tl.store(to, tl.sum(sum_dy, 1), row < own_rows)
    tl.store(to + m, tl.sum(sum_dy_centred, 1) * rstd_z, row < own_rows)


# The product of Z as in relate.py, but all its rows in one program. What is larger spills.
LOGIT_BWD = Kernel(
    logit_bwd_kernel,
    {"BLOCK_K": "k", "BLOCK_M": "m", "BLOCK_N": "n", "BLOCK_Q": "q"},
    [
        {"BLOCK_K": 64, "BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_Q": 16, "num_warps": 4,
         "num_stages": 3},
        {"BLOCK_K": 64, "BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_Q": 32, "num_warps": 8,
         "num_stages": 1},
    ],
)  # fmt: skip
# Where all of theta and phi stay with the program: wide blocks of nodes by few warps cost the
# fewest instructions for each value of Z.
LOGIT_BWD_RECOMPUTED = Kernel(
    logit_bwd_kernel,
    {"BLOCK_K": "k", "BLOCK_M": "m", "BLOCK_N": "n", "BLOCK_Q": "q"},
    [
        {"BLOCK_K": 64, "BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_Q": 32, "num_warps": 4,
         "num_stages": 2},
        {"BLOCK_K": 64, "BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_Q": 32, "num_warps": 4,
         "num_stages": 2},
    ],
)  # fmt: skip
# Tall tiles, because d(W_1 y) is recomputed for each tile of rows; larger ones spill.
HIDDEN_BWD = Kernel(
    hidden_bwd_kernel,
    {"BLOCK_M": "m", "BLOCK_N": "n"},
    [{"BLOCK_M": 128, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1}],
)


def logit_bwd(
    V: Tensor, E: Tensor, norm_e: Tensor, PQ: Tensor, psi: Tensor, norm_z: Tensor,
    weight_h: Tensor, norm_h: Tensor, weight_l: Tensor, logit: Tensor, norm_l: Tensor,
    dlogit: Tensor, means_l: Tensor, embeddings: int, psi_rows: int,
    whole: bool = False, total: Total = summed,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Z as `relate_fwd` returns it."""
    (B, _, n), m, k, p = V.shape, PQ.shape[1], len(weight_h), psi.shape[1]
    x = nodes_of(V, E, embeddings, psi_rows)
    Z = V.new_empty(B, rows_kept(V, m, x) if whole else m, n)
    hidden = psi.new_empty(B, k, n)
    dl, dweight_l = torch.empty_like(logit), torch.empty_like(weight_l)
    z = Relations(Z, PQ, norm_e, x)
    kernel = LOGIT_BWD if z.stored else LOGIT_BWD_RECOMPUTED
    parts = psi.new_empty(B * cdiv(n, kernel.smallest("BLOCK_N")), 3 * k)
    config = kernel(
        lambda g: cdiv(k, g["BLOCK_K"]) * cdiv(n, g["BLOCK_N"]) * B,
        **z.arguments, psi=psi, norm_z=norm_z, weight_h=weight_h, norm_h=norm_h, weight_l=weight_l,
        logit=logit, norm_l=norm_l, dlogit=dlogit, means_l=means_l, hidden=hidden, dl=dl,
        parts=parts, n=n, m=m, k=k, p=p, PRECISION=precision(V), **z.constants,
    )  # fmt: skip
    means_h = total(parts, B * cdiv(n, config["BLOCK_N"]), dweight_l, k)
    return Z, hidden, dl, dweight_l, means_h


def hidden_bwd(
    psi: Tensor, Z: Tensor | Relations, norm_z: Tensor, weight_h: Tensor, hidden: Tensor,
    norm_h: Tensor, means_h: Tensor, weight_l: Tensor, dl: Tensor, whole: bool = False,
    total: Total = summed,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """In a `whole` branch `dhidden` has the dtype of the map, as the products that take it have."""
    z = of_memory(Z, norm_z) if isinstance(Z, Tensor) else Z
    (B, _, n), m, k, p = z.Z.shape, norm_z.shape[1], len(weight_h), psi.shape[1]
    dhidden = torch.empty_like(hidden, dtype=z.Z.dtype if whole else hidden.dtype)
    dweight_h = torch.empty_like(weight_h)
    block_k = min(power_of_2(k), 64)
    tiles_k = cdiv(k, block_k)
    shares = splits(B * cdiv(n, 64), max(1, cdiv(m, 64)) * tiles_k)
    parts = psi.new_empty(shares, k * (p + m) + 2 * m)
    HIDDEN_BWD(
        lambda g: max(1, cdiv(m, g["BLOCK_M"])) * tiles_k * shares,
        **z.arguments, psi=psi, norm_z=norm_z, weight_h=weight_h, hidden=hidden, norm_h=norm_h,
        means_h=means_h, weight_l=weight_l, dl=dl, dhidden=dhidden, parts=parts, B=B, n=n, m=m, k=k,
        p=p, splits=shares, PRECISION=precision(z.Z), BLOCK_K=block_k, TILES_K=tiles_k,
        **z.constants,
    )  # fmt: skip
    return dhidden, dweight_h, total(parts, shares, dweight_h, m)
