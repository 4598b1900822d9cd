"""The relations of all nodes, Z = [P, Q] [theta; phi], and their gradients. No n x n tile exists.

P = W_row phi^T and Q = W_col theta^T; where theta is phi, Z = ((W_row + W_col) theta^T) theta:
HALVES is 2 or 1. c is the number of rows of a half, and q = HALVES * c.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rga_fast.kernels.common import (
    activated,
    cdiv,
    load_nodes,
    load_norm,
    lowered,
    merged,
    multiply,
    parts_of_stats,
    splits,
    store_stats,
    summed,
    through_norm,
)
from rga_fast.kernels.launch import Kernel, jit, power_of_2, precision


class Nodes(NamedTuple):
    """Theta and phi: rows of E, to be normalised, or V itself."""

    tensor: Tensor
    strides: tuple[int, ...]
    q: int
    halves: int
    normalised: bool

    @property
    def c(self) -> int:
        return self.q // self.halves

    @property
    def rows(self) -> int:
        """Rows of the tensor, and of its `norm`."""
        return self.tensor.shape[1]


def nodes_of(V: Tensor, E: Tensor, embeddings: int, psi_rows: int) -> Nodes:
    x = E if embeddings else V
    q = E.shape[1] - psi_rows if embeddings else V.shape[1]
    return Nodes(x, x.stride(), q, 2 if embeddings == 2 else 1, embeddings > 0)


@triton.jit
def load_weight(
    weight_z, row, half, node, m, n, HALVES: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    """A tile (row, node) of W_row (half 0) or W_col (1); of their sum where theta is phi."""
    mask = (row < m)[:, None] & (node < n)[None, :]
    at = weight_z + row.to(tl.int64)[:, None] * 2 * n + node[None, :]
    if HALVES == 2:
        w = tl.load(at + half * n, mask, 0.0)
    else:
        w = tl.load(at, mask, 0.0).to(tl.float32) + tl.load(at + n, mask, 0.0).to(tl.float32)
    return w.to(DTYPE)


@jit
def columns_kernel(
    nodes, norm_e, weight_z, PQ, stride_b, stride_d, stride_n, B, n, m, c, rows,
    HALVES: tl.constexpr, NORMALISED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """P and Q. The columns of all images are one product: c may be as small as 16.

    A program: (row tile, tile of columns of all images, half).
    """
    tiles_m = tl.cdiv(m, BLOCK_M)
    tiles_q = tl.cdiv(B * c, BLOCK_Q)
    half = tl.program_id(0) // (tiles_m * tiles_q)
    row = tl.program_id(0) % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) // tiles_m % tiles_q * BLOCK_Q + tl.arange(0, BLOCK_Q)
    b = (column // c).to(tl.int64)
    factor = column % c + (HALVES - 1 - half) * c  # P is made of phi, Q of theta
    offset = b * stride_b + factor * stride_d
    acc = tl.zeros([BLOCK_Q, BLOCK_M], tl.float32)
    for start in range(0, n, BLOCK_N):
        node = start + tl.arange(0, BLOCK_N)
        x = load_nodes(
            nodes, norm_e, offset, factor, column < B * c, node, stride_n, rows, n, NORMALISED
        )
        w = load_weight(weight_z, row, half, node, m, n, HALVES, x.dtype)
        acc = multiply(x, tl.trans(w), acc, PRECISION)
    q = HALVES * c
    to = PQ + (b * m * q + half * c + column % c)[:, None] + row[None, :] * q
    tl.store(to, acc.to(PQ.dtype.element_ty), (column < B * c)[:, None] & (row < m)[None, :])


@triton.jit
def relations(
    PQ, nodes, norm_e, row, node, stride_d, stride_n, n, m, q, rows,
    NORMALISED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """A float32 tile of Z of one image, zero beyond its rows."""
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, q, BLOCK_Q):
        factor = start + tl.arange(0, BLOCK_Q)
        mask = (row < m)[:, None] & (factor < q)[None, :]
        p = tl.load(PQ + row[:, None] * q + factor[None, :], mask, 0.0)
        x = load_nodes(
            nodes, norm_e, factor * stride_d, factor, factor < q, node, stride_n, rows, n,
            NORMALISED,
        )  # fmt: skip
        acc = multiply(p.to(x.dtype), x, acc, PRECISION)
    return acc


@jit
def relate_fwd_kernel(
    nodes, E, norm_e, PQ, Z, psi, parts, stride_b, stride_d, stride_n, n, m, q, r, psi_rows,
    NORMALISED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Z with its statistics, and psi's mean. A program: (row tile, node tile, image)."""
    tiles_m = tl.maximum(tl.cdiv(m, BLOCK_M), 1)
    tiles_n = tl.cdiv(n, BLOCK_N)
    part = tl.program_id(0) // tiles_m
    b = (part // tiles_n).to(tl.int64)
    tile_m = tl.program_id(0) % tiles_m
    node = part % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    if m > 0:
        row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        z = relations(
            PQ + b * m * q, nodes + b * stride_b, norm_e, row, node, stride_d, stride_n, n, m, q,
            r, NORMALISED, PRECISION, BLOCK_M, BLOCK_N, BLOCK_Q,
        )  # fmt: skip
        z = tl.where((node < n)[None, :], z, 0.0)
        to = Z + b * m * n + row[:, None] * n + node[None, :]
        tl.store(to, z.to(Z.dtype.element_ty), (row < m)[:, None] & (node < n)[None, :])
        count = tl.minimum(n - part % tiles_n * BLOCK_N, BLOCK_N)
        store_stats(parts, part.to(tl.int64), z, row, m, node < n, count)
    if (tile_m == 0) & (psi_rows > 0):
        total = tl.zeros([BLOCK_Q, BLOCK_N], tl.float32)
        for start in range(0, psi_rows, BLOCK_Q):
            factor = start + tl.arange(0, BLOCK_Q)
            row_e = r - psi_rows + factor
            mask = (factor < psi_rows)[:, None] & (node < n)[None, :]
            x = tl.load(E + b * r * n + row_e[:, None] * n + node[None, :], mask, 0.0)
            total += activated(x, norm_e, r, row_e)
        tl.store(psi + b * n + node, tl.sum(total, 0) / psi_rows, node < n)


@triton.jit
def seen_gradient(
    weight_h, dhidden, row, node, n, m, k, p, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TILES_K: tl.constexpr,
):  # fmt: skip
    """W_1^T d(W_1 y) for a tile (row, node) of the activated relations of one image."""
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for tile in tl.static_range(TILES_K):
        unit = tile * BLOCK_K + tl.arange(0, BLOCK_K)
        mask_w = (row < m)[:, None] & (unit < k)[None, :]
        w = tl.load(weight_h + unit[None, :] * (p + m) + p + row[:, None], mask_w, 0.0)
        mask_h = (unit < k)[:, None] & (node < n)[None, :]
        dh = tl.load(dhidden + unit[:, None] * n + node[None, :], mask_h, 0.0)
        acc = multiply(w.to(DTYPE), dh.to(DTYPE), acc, PRECISION)
    return acc


@triton.jit
def load_dZ(
    Z, norm_z, means_z, weight_h, dhidden, row, node, n, m, k, p, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TILES_K: tl.constexpr,
):  # fmt: skip
    """A tile of the gradient of Z of one image; zero beyond rows and nodes. Computed where it is
    needed: storing it would cost as much memory as Z itself."""
    mask = (row < m)[:, None] & (node < n)[None, :]
    z = tl.load(Z + row[:, None] * n + node[None, :], mask, 0.0)
    dy = seen_gradient(
        weight_h, dhidden, row, node, n, m, k, p, z.dtype, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        TILES_K,
    )  # fmt: skip
    mean, rstd, weight, bias = load_norm(norm_z, m, row)
    xhat = (z.to(tl.float32) - mean[:, None]) * rstd[:, None]
    dy = tl.where(xhat * weight[:, None] + bias[:, None] > 0, dy, 0.0)
    dz = through_norm(dy, xhat, rstd, weight, means_z, m, row)
    return tl.where(mask, dz, 0.0).to(z.dtype)


@jit
def columns_bwd_kernel(
    nodes, norm_e, Z, norm_z, means_z, weight_h, dhidden, dPQ, stride_b, stride_d, stride_n,
    n, m, q, rows, k, p, NORMALISED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr, TILES_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dPQ = dZ [theta; phi]^T. A program: (row tile, column tile, image)."""
    tiles_m = tl.cdiv(m, BLOCK_M)
    tiles_q = tl.cdiv(q, BLOCK_Q)
    rest = tl.program_id(0) // tiles_m
    b = (rest // tiles_q).to(tl.int64)
    row = tl.program_id(0) % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    factor = rest % tiles_q * BLOCK_Q + tl.arange(0, BLOCK_Q)
    acc = tl.zeros([BLOCK_M, BLOCK_Q], tl.float32)
    for start in range(0, n, BLOCK_N):
        node = start + tl.arange(0, BLOCK_N)
        dz = load_dZ(
            Z + b * m * n, norm_z, means_z, weight_h, dhidden + b * k * n, row, node, n, m, k, p,
            PRECISION, BLOCK_M, BLOCK_N, BLOCK_K, TILES_K,
        )  # fmt: skip
        x = load_nodes(
            nodes + b * stride_b, norm_e, factor * stride_d, factor, factor < q, node, stride_n,
            rows, n, NORMALISED,
        )  # fmt: skip
        acc = multiply(dz, tl.trans(x), acc, PRECISION)
    to = dPQ + b * m * q + row[:, None] * q + factor[None, :]
    tl.store(to, acc.to(dPQ.dtype.element_ty), (row < m)[:, None] & (factor < q)[None, :])


@triton.jit
def store_gradient(
    dy, E, norm_e, dE, parts, part, row, valid, node, r, n,
):  # fmt: skip
    """A tile of the gradient of E behind its normalisation, with its sums over the nodes."""
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
    E, norm_e, weight_z, PQ, dPQ, Z, norm_z, means_z, weight_h, dhidden, dE, dnodes, parts,
    n, m, c, r, psi_rows, k, p, HALVES: tl.constexpr, NORMALISED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_K: tl.constexpr, TILES_K: tl.constexpr,
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
    q = HALVES * c
    if tile < tiles_c:
        factor = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
        DTYPE: tl.constexpr = Z.dtype.element_ty
        dtheta = tl.zeros([BLOCK_Q, BLOCK_N], tl.float32)
        dphi = tl.zeros([BLOCK_Q, BLOCK_N], tl.float32)
        for start in range(0, m, BLOCK_M):
            row = start + tl.arange(0, BLOCK_M)
            dz = load_dZ(
                Z + b * m * n, norm_z, means_z, weight_h, dhidden, row, node, n, m, k, p,
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
        for unit in range(k):
            dh = tl.load(dhidden + unit * n + node, node < n, 0.0)
            dpsi += tl.load(weight_h + unit * (p + m)) * dh
        dy = tl.zeros([BLOCK_Q, BLOCK_N], tl.float32) + (dpsi / psi_rows)[None, :]
        row_e = r - psi_rows + own
        store_gradient(dy, E, norm_e, dE, parts, part, row_e, own < psi_rows, node, r, n)


@jit
def relate_bwd_weight_kernel(
    nodes, norm_e, dPQ, dweight_z, stride_b, stride_d, stride_n, B, n, m, c, rows, splits,
    HALVES: tl.constexpr, NORMALISED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """dW_row = sum_b dP phi and dW_col = sum_b dQ theta, one product over the rows of all images.

    A program: (row tile, node tile, half, share of the images' rows).
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
    share = tl.cdiv(tl.cdiv(B * c, BLOCK_Q), splits) * BLOCK_Q
    for start in range(split * share, tl.minimum((split + 1) * share, B * c), BLOCK_Q):
        column = start + tl.arange(0, BLOCK_Q)
        b = (column // c).to(tl.int64)
        factor = column % c + (HALVES - 1 - half) * c
        x = load_nodes(
            nodes, norm_e, b * stride_b + factor * stride_d, factor, column < B * c, node,
            stride_n, rows, n, NORMALISED,
        )  # fmt: skip
        mask = (row < m)[:, None] & (column < B * c)[None, :]
        at = (b * m * q + half * c + column % c)[None, :] + row[:, None] * q
        acc = multiply(tl.load(dPQ + at, mask, 0.0), x, acc, PRECISION)
    mask = (row < m)[:, None] & (node < n)[None, :]
    to = dweight_z + (split.to(tl.int64) * m + row)[:, None] * 2 * n + node[None, :]
    tl.store(to + half * n, acc, mask)
    if HALVES == 1:
        tl.store(to + n, acc, mask)


# m and c are 16 to 256, so a tile holds most of one of them; the second configuration is for the
# wide ones.
COLUMNS = Kernel(
    columns_kernel,
    {"BLOCK_M": "m", "BLOCK_N": "n"},
    [
        {"BLOCK_M": 64, "BLOCK_Q": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 3},
        {"BLOCK_M": 128, "BLOCK_Q": 64, "BLOCK_N": 64, "num_warps": 8, "num_stages": 3},
    ],
)
RELATE_FWD = Kernel(
    relate_fwd_kernel,
    {"BLOCK_M": "m", "BLOCK_N": "n", "BLOCK_Q": "q"},
    [
        {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_Q": 32, "num_warps": 4, "num_stages": 3},
        {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_Q": 64, "num_warps": 4, "num_stages": 3},
    ],
)
COLUMNS_BWD = Kernel(
    columns_bwd_kernel,
    {"BLOCK_M": "m", "BLOCK_Q": "q", "BLOCK_N": "n"},
    [
        {"BLOCK_M": 64, "BLOCK_Q": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2},
        {"BLOCK_M": 128, "BLOCK_Q": 64, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2},
    ],
)
# Four products share a tile of dZ. With 8 warps, or 32 nodes, a value of it costs 1.5 to 3 times as
# many instructions; anything larger spills.
RELATE_BWD = Kernel(
    relate_bwd_kernel,
    {"BLOCK_Q": "c", "BLOCK_N": "n", "BLOCK_M": "m"},
    [{"BLOCK_Q": 32, "BLOCK_N": 64, "BLOCK_M": 32, "num_warps": 4, "num_stages": 2}],
)
# Shallow steps: which image and row a column is costs registers, deeper ones spill for AMD.
RELATE_BWD_WEIGHT = Kernel(
    relate_bwd_weight_kernel,
    {"BLOCK_M": "m", "BLOCK_N": "n"},
    [
        {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_Q": 32, "num_warps": 4, "num_stages": 3},
        {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_Q": 32, "num_warps": 8, "num_stages": 3},
    ],
)


def columns(x: Nodes, norm_e: Tensor, weight_z: Tensor, PQ: Tensor) -> None:
    """Writes PQ (B, m, q)."""
    (B, m, _), n = PQ.shape, weight_z.shape[1] // 2
    COLUMNS(
        lambda g: cdiv(m, g["BLOCK_M"]) * cdiv(B * x.c, g["BLOCK_Q"]) * x.halves,
        x.tensor, norm_e, weight_z, PQ, *x.strides, B, n, m, x.c, x.rows,
        HALVES=x.halves, NORMALISED=x.normalised, PRECISION=precision(x.tensor),
    )  # fmt: skip


def relate_fwd(
    V: Tensor, E: Tensor, norm_e: Tensor, weight_z: Tensor, embeddings: int, psi_rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (B, _, n), m, r = V.shape, len(weight_z), E.shape[1]
    x = nodes_of(V, E, embeddings, psi_rows)
    PQ, Z = norm_e.new_empty(B, m, x.q), V.new_empty(B, m, n)
    psi = norm_e.new_empty(B, 1 if psi_rows else 0, n)
    parts = parts_of_stats(V, RELATE_FWD, m)
    if m:
        columns(x, norm_e, lowered(weight_z, V), PQ)
    config = RELATE_FWD(
        lambda g: max(cdiv(m, g["BLOCK_M"]), 1) * cdiv(n, g["BLOCK_N"]) * B,
        x.tensor, E, norm_e, PQ, Z, psi, parts, *x.strides, n, m, x.q, r, psi_rows,
        NORMALISED=x.normalised, PRECISION=precision(V),
    )  # fmt: skip
    return PQ, Z, psi, merged(parts, V, config["BLOCK_N"])


def relate_bwd(
    V: Tensor, E: Tensor, norm_e: Tensor, weight_z: Tensor, PQ: Tensor, Z: Tensor, norm_z: Tensor,
    means_z: Tensor, weight_h: Tensor, dhidden: Tensor, embeddings: int, psi_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (B, d, n), m, r, k = V.shape, len(weight_z), E.shape[1], len(weight_h)
    x = nodes_of(V, E, embeddings, psi_rows)
    p = 1 if psi_rows else 0
    block_k = min(power_of_2(k), 64)
    hidden = {"BLOCK_K": block_k, "TILES_K": cdiv(k, block_k), "PRECISION": precision(V)}
    kind = {"HALVES": x.halves, "NORMALISED": x.normalised}
    dE, dweight_z, sums_e = (torch.empty_like(t) for t in (E, weight_z, norm_e[:2]))
    dnodes = V.new_empty(B, d if m and not embeddings else 0, n)
    dPQ = V.new_empty(B, m, x.q)
    if m:
        COLUMNS_BWD(
            lambda g: cdiv(m, g["BLOCK_M"]) * cdiv(x.q, g["BLOCK_Q"]) * B,
            x.tensor, norm_e, Z, norm_z, means_z, weight_h, dhidden, dPQ, *x.strides,
            n, m, x.q, x.rows, k, p, NORMALISED=x.normalised, **hidden,
        )  # fmt: skip
        _weight_bwd(x, norm_e, dPQ, dweight_z, kind)
    tiles = B * cdiv(n, RELATE_BWD.smallest("BLOCK_N"))
    parts = norm_e.new_empty(tiles, 2, r)
    if r or m:
        config = RELATE_BWD(
            lambda g: (
                (cdiv(x.c, g["BLOCK_Q"]) * (m > 0) + cdiv(psi_rows, g["BLOCK_Q"]))
                * (cdiv(n, g["BLOCK_N"]) * B)
            ),
            E, norm_e, lowered(weight_z, V), PQ, dPQ, Z, norm_z, means_z, weight_h, dhidden, dE,
            dnodes, parts, n, m, x.c, r, psi_rows, k, p, **kind, **hidden,
        )  # fmt: skip
        summed(parts, B * cdiv(n, config["BLOCK_N"]), sums_e)
    return dE, dnodes, dweight_z, sums_e


def _weight_bwd(
    x: Nodes, norm_e: Tensor, dPQ: Tensor, dweight_z: Tensor, kind: dict[str, int]
) -> None:
    (B, m, _), n = dPQ.shape, dweight_z.shape[1] // 2
    shares = splits(cdiv(B * x.c, 64), cdiv(m, 64) * cdiv(n, 64) * x.halves)
    parts = dweight_z if shares == 1 else dweight_z.new_empty(shares, *dweight_z.shape)
    RELATE_BWD_WEIGHT(
        lambda g: cdiv(m, g["BLOCK_M"]) * cdiv(n, g["BLOCK_N"]) * x.halves * shares,
        x.tensor, norm_e, dPQ, parts, *x.strides, B, n, m, x.c, x.rows, shares,
        PRECISION=precision(x.tensor), **kind,
    )  # fmt: skip
    if shares > 1:
        summed(parts, shares, dweight_z)
