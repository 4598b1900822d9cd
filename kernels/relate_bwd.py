"""The gradients of the relations: dP and dQ, dW_rel, and those of theta, phi and psi."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rga_fast.kernels.common import (
    batch_norm_backward,
    cdiv,
    load_nodes,
    load_norm,
    lowered,
    multiply,
    splits,
)
from rga_fast.kernels.launch import Kernel, jit, power_of_2, precision, strides
from rga_fast.kernels.perceptron import load_units_weight
from rga_fast.kernels.relate import (
    Nodes,
    Relations,
    load_factors,
    load_P,
    load_weight,
    load_Z,
    nodes_of,
)
from rga_fast.kernels.statistics import Total, summed


@triton.jit
def load_units(dhidden, unit, node, n, k, DTYPE: tl.constexpr):
    """A tile (unit, node) of d(W_1 y) of one image."""
    mask = (unit < k)[:, None] & (node < n)[None, :]
    return tl.load(dhidden + unit[:, None] * n + node[None, :], mask, 0.0).to(DTYPE)


@triton.jit
def dZ_of(
    z, w, dh, norm_z, means_z, weight_h, dhidden, row, node, n, m, k, p, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, TILES_K: tl.constexpr,
):  # fmt: skip
    """A tile of the gradient of Z of one image; zero beyond rows and nodes. Computed where it is
    needed: storing it would cost as much memory as Z itself. `w` and `dh` are the factors of the
    first tile of units, one of which a program needs only once."""
    dy = multiply(w, dh, tl.zeros([BLOCK_M, BLOCK_N], tl.float32), PRECISION)
    for tile in tl.static_range(1, TILES_K):
        unit = tile * BLOCK_K + tl.arange(0, BLOCK_K)
        w = load_units_weight(weight_h, row, unit, m, k, p, DTYPE)
        dy = multiply(w, load_units(dhidden, unit, node, n, k, DTYPE), dy, PRECISION)
    mean, rstd, weight, bias = load_norm(norm_z, m, row)
    xhat = (z.to(tl.float32) - mean[:, None]) * rstd[:, None]
    dy = tl.where(xhat * weight[:, None] + bias[:, None] > 0, dy, 0.0)
    dz = batch_norm_backward(dy, xhat, rstd, weight, means_z, m, row)
    return tl.where((row < m)[:, None] & (node < n)[None, :], dz, 0.0).to(DTYPE)


@jit
def columns_bwd_kernel(
    Z, PQ, nodes, norm_e, stride_b, stride_d, stride_n, q, rows, norm_z, means_z, weight_h,
    dhidden, dPQ, n, m, k, p, STORED: tl.constexpr, NORMALISED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr, TILES_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dPQ = dZ [theta; phi]^T. A program: (row tile, column tile, image)."""
    tl.static_assert(STORED or BLOCK_F == BLOCK_Q, "Z is recomputed from a tile of all factors")
    tiles_m = tl.cdiv(m, BLOCK_M)
    tiles_q = tl.cdiv(q, BLOCK_Q)
    rest = tl.program_id(0) // tiles_m
    b = (rest // tiles_q).to(tl.int64)
    row = tl.program_id(0) % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    factor = rest % tiles_q * BLOCK_Q + tl.arange(0, BLOCK_Q)
    DTYPE: tl.constexpr = dPQ.dtype.element_ty
    dhidden += b * k * n
    unit = tl.arange(0, BLOCK_K)
    w = load_units_weight(weight_h, row, unit, m, k, p, DTYPE)
    P = load_P(PQ + b * m * q, row, m, q, DTYPE, STORED, BLOCK_F)
    acc = tl.zeros([BLOCK_M, BLOCK_Q], tl.float32)
    for start in range(0, n, BLOCK_N):
        node = start + tl.arange(0, BLOCK_N)
        x = load_nodes(
            nodes + b * stride_b, norm_e, factor * stride_d, factor, factor < q, node, stride_n,
            rows, n, NORMALISED,
        )  # fmt: skip
        z = load_Z(Z + b * m * n, P, x, row, node, n, m, STORED, PRECISION, BLOCK_M, BLOCK_N)
        dz = dZ_of(
            z, w, load_units(dhidden, unit, node, n, k, DTYPE), norm_z, means_z, weight_h, dhidden,
            row, node, n, m, k, p, DTYPE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K, TILES_K,
        )  # fmt: skip
        acc = multiply(dz, tl.trans(x), acc, PRECISION)
    to = dPQ + b * m * q + row[:, None] * q + factor[None, :]
    tl.store(to, acc.to(DTYPE), (row < m)[:, None] & (factor < q)[None, :])


@triton.jit
def store_gradient(
    dy, E, norm_e, dE, parts, part, row, valid, node, r, n,
):  # fmt: skip
    """A tile of the gradient of E after its normalisation, with its sums over the nodes."""
    mask = valid[:, None] & (node < n)[None, :]
    at = row[:, None] * n + node[None, :]
    mean, rstd, weight, bias = load_norm(norm_e, r, row)
    xhat = (tl.load(E + at, mask, 0.0).to(tl.float32) - mean[:, None]) * rstd[:, None]
    on = mask & (xhat * weight[:, None] + bias[:, None] > 0)
    dy = tl.where(on, dy, 0.0)
    tl.store(dE + at, dy.to(dE.dtype.element_ty), mask)
    tl.store(parts + part * 2 * r + row, tl.sum(dy, 1), valid)
    tl.store(parts + part * 2 * r + r + row, tl.sum(dy * xhat, 1), valid)


@jit
def relate_bwd_kernel(
    Z, PQ, nodes, norm_e, stride_b, stride_d, stride_n, q, rows, E, weight_z, dPQ, norm_z,
    means_z, weight_h, dhidden, dE, dnodes, parts, n, m, c, r, psi_rows, k, p,
    HALVES: tl.constexpr, STORED: tl.constexpr, NORMALISED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr, TILES_K: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The gradients of theta, phi and psi. A program: (row tile, node tile, image), and the row
    tiles are first those of theta and phi, a tile of both at once, then those of psi."""
    tiles_c = tl.cdiv(c, BLOCK_Q) * (m > 0)
    tiles_r = tiles_c + tl.cdiv(psi_rows, BLOCK_Q)
    tiles_n = tl.cdiv(n, BLOCK_N)
    tile = tl.program_id(0) % tiles_r
    part = tl.program_id(0) // tiles_r
    b = (part // tiles_n).to(tl.int64)
    part = part.to(tl.int64)
    node = part.to(tl.int32) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    E += b * r * n
    dE += b * r * n
    dhidden += b * k * n
    if tile < tiles_c:
        factor = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
        DTYPE: tl.constexpr = dPQ.dtype.element_ty
        x = load_factors(
            nodes + b * stride_b, norm_e, node, stride_d, stride_n, n, q, rows, STORED, NORMALISED,
            BLOCK_F,
        )  # fmt: skip
        unit = tl.arange(0, BLOCK_K)
        dh = load_units(dhidden, unit, node, n, k, DTYPE)
        dtheta = tl.zeros([BLOCK_Q, BLOCK_N], tl.float32)
        dphi = tl.zeros([BLOCK_Q, BLOCK_N], tl.float32)
        for start in range(0, m, BLOCK_M):
            row = start + tl.arange(0, BLOCK_M)
            rows_of_P = load_P(PQ + b * m * q, row, m, q, DTYPE, STORED, BLOCK_F)
            z = load_Z(
                Z + b * m * n, rows_of_P, x, row, node, n, m, STORED, PRECISION, BLOCK_M, BLOCK_N
            )
            w = load_units_weight(weight_h, row, unit, m, k, p, DTYPE)
            dz = dZ_of(
                z, w, dh, norm_z, means_z, weight_h, dhidden, row, node, n, m, k, p, DTYPE,
                PRECISION, BLOCK_M, BLOCK_N, BLOCK_K, TILES_K,
            )  # fmt: skip
            mask = (factor < c)[:, None] & (row < m)[None, :]
            at = b * m * q + row[None, :] * q + factor[:, None]
            P = tl.load(PQ + at, mask, 0.0).to(DTYPE)
            dtheta = multiply(P, dz, dtheta, PRECISION)
            W = load_weight(weight_z, row, HALVES - 1, node, m, n, HALVES, DTYPE)
            dQ = tl.load(dPQ + at + (HALVES - 1) * c, mask, 0.0)
            dtheta = multiply(dQ, W, dtheta, PRECISION)
            if HALVES == 2:
                Q = tl.load(PQ + at + c, mask, 0.0).to(DTYPE)
                dphi = multiply(Q, dz, dphi, PRECISION)
                W = load_weight(weight_z, row, 0, node, m, n, HALVES, DTYPE)
                dP = tl.load(dPQ + at, mask, 0.0)
                dphi = multiply(dP, W, dphi, PRECISION)
        if NORMALISED:
            valid = factor < c
            store_gradient(dtheta, E, norm_e, dE, parts, part, factor, valid, node, r, n)
            if HALVES == 2:
                store_gradient(dphi, E, norm_e, dE, parts, part, c + factor, valid, node, r, n)
        else:
            mask = (factor < c)[:, None] & (node < n)[None, :]
            to = dnodes + b * c * n + factor[:, None] * n + node[None, :]
            tl.store(to, dtheta.to(dnodes.dtype.element_ty), mask)
    else:
        own = (tile - tiles_c) * BLOCK_Q + tl.arange(0, BLOCK_Q)
        dpsi = tl.zeros([BLOCK_N], tl.float32)
        for one in range(k):
            of_unit = tl.load(dhidden + one * n + node, node < n, 0.0).to(tl.float32)
            dpsi += tl.load(weight_h + one * (p + m)) * of_unit
        dy = tl.zeros([BLOCK_Q, BLOCK_N], tl.float32) + (dpsi / psi_rows)[None, :]
        row_e = r - psi_rows + own
        store_gradient(dy, E, norm_e, dE, parts, part, row_e, own < psi_rows, node, r, n)


@jit
def relate_bwd_weight_kernel(
    nodes, norm_e, dPQ, dweight_z, stride_b, stride_d, stride_n, B, n, m, c, rows, splits,
    HALVES: tl.constexpr, NORMALISED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """dW_row = sum_b dP phi and dW_col = sum_b dQ theta.

    A program: (row tile, node tile, half, share of the images' tiles of theta or phi).
    """
    tiles_m = tl.cdiv(m, BLOCK_M)
    tiles_n = tl.cdiv(n, BLOCK_N)
    rest = tl.program_id(0) // tiles_m
    half = rest // tiles_n % HALVES
    split = rest // tiles_n // HALVES
    row = tl.program_id(0) % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    node = rest % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    q = HALVES * c
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    tiles_c = tl.cdiv(c, BLOCK_Q)
    share = tl.cdiv(B * tiles_c, splits)
    for item in range(split * share, tl.minimum((split + 1) * share, B * tiles_c)):
        b = (item // tiles_c).to(tl.int64)
        own = item % tiles_c * BLOCK_Q + tl.arange(0, BLOCK_Q)
        factor = own + (HALVES - 1 - half) * c
        x = load_nodes(
            nodes + b * stride_b, norm_e, factor * stride_d, factor, own < c, node, stride_n, rows,
            n, NORMALISED,
        )  # fmt: skip
        mask = (row < m)[:, None] & (own < c)[None, :]
        at = dPQ + b * m * q + half * c + row[:, None] * q + own[None, :]
        acc = multiply(tl.load(at, mask, 0.0), x, acc, PRECISION)
    mask = (row < m)[:, None] & (node < n)[None, :]
    to = dweight_z + (split.to(tl.int64) * m + row)[:, None] * 2 * n + node[None, :]
    tl.store(to + half * n, acc, mask)
    if HALVES == 1:
        tl.store(to + n, acc, mask)


COLUMNS_BWD = Kernel(
    columns_bwd_kernel,
    {"BLOCK_M": "m", "BLOCK_Q": "q", "BLOCK_N": "n"},
    [
        {"BLOCK_M": 64, "BLOCK_Q": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2},
        {"BLOCK_M": 128, "BLOCK_Q": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": 2},
    ],
)
# Four products share a tile of dZ. With 8 warps, or 32 nodes, a value of it costs 1.5 to 3 times as
# many instructions; anything larger spills.
RELATE_BWD = Kernel(
    relate_bwd_kernel,
    {"BLOCK_Q": "c", "BLOCK_N": "n", "BLOCK_M": "m"},
    [{"BLOCK_Q": 32, "BLOCK_N": 64, "BLOCK_M": 32, "num_warps": 4, "num_stages": 2}],
)
# A step is a tile of theta or phi, which have 16 rows at least.
RELATE_BWD_WEIGHT = Kernel(
    relate_bwd_weight_kernel,
    {"BLOCK_M": "m", "BLOCK_N": "n", "BLOCK_Q": "c"},
    [
        {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_Q": 32, "num_warps": 4, "num_stages": 3},
        {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_Q": 32, "num_warps": 8, "num_stages": 2},
    ],
)


def relate_bwd(
    V: Tensor, E: Tensor, norm_e: Tensor, weight_z: Tensor, PQ: Tensor, Z: Tensor, norm_z: Tensor,
    means_z: Tensor, weight_h: Tensor, dhidden: Tensor, embeddings: int, psi_rows: int,
    total: Total = summed,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (B, d, n), m, r, k = V.shape, len(weight_z), E.shape[1], len(weight_h)
    x = nodes_of(V, E, embeddings, psi_rows)
    p, z = 1 if psi_rows else 0, Relations(Z, PQ, norm_e, x)
    block_k = min(power_of_2(k), 64)
    constants = {"BLOCK_K": block_k, "TILES_K": cdiv(k, block_k), "PRECISION": precision(V)}
    constants |= z.constants
    dE, dweight_z = torch.empty_like(E), torch.empty_like(weight_z)
    dnodes = V.new_empty(B, d if m and not embeddings else 0, n)
    dPQ = V.new_empty(B, m, x.q)
    if m:
        COLUMNS_BWD(
            lambda g: cdiv(m, g["BLOCK_M"]) * cdiv(x.q, g["BLOCK_Q"]) * B,
            **z.arguments, norm_z=norm_z, means_z=means_z, weight_h=weight_h, dhidden=dhidden,
            dPQ=dPQ, n=n, m=m, k=k, p=p, **constants,
        )  # fmt: skip
        _weight_bwd(x, norm_e, dPQ, dweight_z)
    if not (r or m):
        return dE, dnodes, dweight_z, total(norm_e.new_empty(0, 0), 0, None, 0)
    parts = norm_e.new_empty(B * cdiv(n, RELATE_BWD.smallest("BLOCK_N")), 2, r)
    config = RELATE_BWD(
        lambda g: (
            (cdiv(x.c, g["BLOCK_Q"]) * (m > 0) + cdiv(psi_rows, g["BLOCK_Q"]))
            * (cdiv(n, g["BLOCK_N"]) * B)
        ),
        **z.arguments, E=E, weight_z=lowered(weight_z, V), dPQ=dPQ, norm_z=norm_z, means_z=means_z,
        weight_h=weight_h, dhidden=dhidden, dE=dE, dnodes=dnodes, parts=parts, n=n, m=m, c=x.c, r=r,
        psi_rows=psi_rows, k=k, p=p, HALVES=x.halves, **constants,
    )  # fmt: skip
    return dE, dnodes, dweight_z, total(parts, B * cdiv(n, config["BLOCK_N"]), None, r)


def _weight_bwd(x: Nodes, norm_e: Tensor, dPQ: Tensor, dweight_z: Tensor) -> None:
    (B, m, _), n = dPQ.shape, dweight_z.shape[1] // 2
    shares = splits(B * cdiv(x.c, 64), cdiv(m, 64) * cdiv(n, 64) * x.halves)
    parts = dweight_z if shares == 1 else dweight_z.new_empty(shares, *dweight_z.shape)
    RELATE_BWD_WEIGHT(
        lambda g: cdiv(m, g["BLOCK_M"]) * cdiv(n, g["BLOCK_N"]) * x.halves * shares,
        nodes=x.tensor, norm_e=norm_e, dPQ=dPQ, dweight_z=parts, **strides(x.tensor), B=B, n=n, m=m,
        c=x.c, rows=x.rows, splits=shares, HALVES=x.halves, NORMALISED=x.normalised,
        PRECISION=precision(x.tensor),
    )  # fmt: skip
    if shares > 1:
        summed(parts, shares, dweight_z)
