"""The relations of all nodes, Z = [P, Q] [theta; phi]. No n x n tile exists.

P = W_row phi^T and Q = W_col theta^T; where theta is phi, Z = ((W_row + W_col) theta^T) theta:
HALVES is 2 or 1. c is the number of rows of a half, and q = HALVES * c.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rga_fast.kernels.common import activated, cdiv, load_nodes, lowered, multiply
from rga_fast.kernels.launch import EXACT, Kernel, jit, power_of_2, precision, strides
from rga_fast.kernels.statistics import Finish, merged, parts_of_stats, store_stats


class Nodes(NamedTuple):
    """Theta and phi: rows of E, to be normalised, or V itself."""

    tensor: Tensor
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
    return Nodes(x, q, 2 if embeddings == 2 else 1, embeddings > 0)


class Relations(NamedTuple):
    """Z for the kernels after it: in memory, or recomputed from P, Q, theta and phi in each."""

    Z: Tensor  # (B, m, n), or (B, 0, n) where it is recomputed
    PQ: Tensor
    norm_e: Tensor
    nodes: Nodes

    @property
    def arguments(self) -> dict[str, Any]:
        """Of a kernel that reads or recomputes Z; its constants are `constants`."""
        x = self.nodes
        return {
            **{"Z": self.Z, "PQ": self.PQ, "nodes": x.tensor, "norm_e": self.norm_e},
            **{**strides(x.tensor), "q": x.q, "rows": x.rows},
        }

    @property
    def stored(self) -> bool:
        return self.Z.shape[1] == self.PQ.shape[1]

    @property
    def constants(self) -> dict[str, Any]:
        return {
            "STORED": self.stored,
            "NORMALISED": self.nodes.normalised,
            "BLOCK_F": 16 if self.stored else power_of_2(self.nodes.q),
        }


def of_memory(Z: Tensor, norm_z: Tensor) -> Relations:
    """A Z that is in memory, whatever it was computed from."""
    return Relations(Z, Z, norm_z, Nodes(Z, 0, 1, False))


def rows_kept(V: Tensor, m: int, x: Nodes) -> int:
    """How many rows of Z are stored: all or none. None where theta and phi have fewer, which
    are then read instead, and fit one block."""
    exact = V.dtype == torch.float32 and precision(V) == "ieee"
    return 0 if x.q < m and x.q <= (EXACT if exact else 64) else m


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
    factor = column % c + (HALVES - 1 - half) * c  # P is computed from phi, Q from theta
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


@triton.jit
def load_factors(
    nodes, norm_e, node, stride_d, stride_n, n, q, rows, STORED: tl.constexpr,
    NORMALISED: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """All theta and phi of some nodes of an image, where `load_Z` recomputes Z from them."""
    x = 0
    if not STORED:
        factor = tl.arange(0, BLOCK_F)
        x = load_nodes(
            nodes, norm_e, factor * stride_d, factor, factor < q, node, stride_n, rows, n,
            NORMALISED,
        )  # fmt: skip
    return x


@triton.jit
def load_P(
    PQ, row, m, q, DTYPE: tl.constexpr, STORED: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    """Rows of P and Q of an image, where `load_Z` recomputes Z from them."""
    P = 0
    if not STORED:
        factor = tl.arange(0, BLOCK_F)
        mask = (row < m)[:, None] & (factor < q)[None, :]
        P = tl.load(PQ + row[:, None] * q + factor[None, :], mask, 0.0).to(DTYPE)
    return P


@triton.jit
def load_Z(
    Z, rows_of_P, x, row, node, n, m, STORED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A tile (row, node) of Z of one image: from memory, or recomputed from what `load_P` and
    `load_factors` returned, of which one is loaded outside of the loop.

    Zero beyond the rows; finite beyond the nodes.
    """
    if STORED:
        mask = (row < m)[:, None] & (node < n)[None, :]
        z = tl.load(Z + row[:, None] * n + node[None, :], mask, 0.0)
    else:
        z = multiply(rows_of_P, x, tl.zeros([BLOCK_M, BLOCK_N], tl.float32), PRECISION)
    return z


@jit
def relate_fwd_kernel(
    Z, PQ, nodes, norm_e, stride_b, stride_d, stride_n, q, rows, E, psi, parts, n, m, r, psi_rows,
    STORED: tl.constexpr, NORMALISED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Z, where it is stored, its statistics, and psi's mean. A program: (node tile, image)."""
    tiles_n = tl.cdiv(n, BLOCK_N)
    part = tl.program_id(0)
    b = (part // tiles_n).to(tl.int64)
    node = part % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    nodes += b * stride_b
    PQ += b * m * q
    x = load_factors(
        nodes, norm_e, node, stride_d, stride_n, n, q, rows, STORED, NORMALISED, BLOCK_F
    )
    count = tl.minimum(n - part % tiles_n * BLOCK_N, BLOCK_N)
    for start in range(0, m, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        if STORED:
            z = relations(
                PQ, nodes, norm_e, row, node, stride_d, stride_n, n, m, q, rows, NORMALISED,
                PRECISION, BLOCK_M, BLOCK_N, BLOCK_Q,
            )  # fmt: skip
            to = Z + b * m * n + row[:, None] * n + node[None, :]
            tl.store(to, z.to(Z.dtype.element_ty), (row < m)[:, None] & (node < n)[None, :])
        else:
            P = load_P(PQ, row, m, q, Z.dtype.element_ty, STORED, BLOCK_F)
            z = load_Z(Z, P, x, row, node, n, m, STORED, PRECISION, BLOCK_M, BLOCK_N)
        z = tl.where((node < n)[None, :], z, 0.0)
        store_stats(parts, part.to(tl.int64), z, row, m, node < n, count)
    if psi_rows > 0:
        total = tl.zeros([BLOCK_Q, BLOCK_N], tl.float32)
        for start in range(0, psi_rows, BLOCK_Q):
            factor = start + tl.arange(0, BLOCK_Q)
            row_e = r - psi_rows + factor
            mask = (factor < psi_rows)[:, None] & (node < n)[None, :]
            y = tl.load(E + b * r * n + row_e[:, None] * n + node[None, :], mask, 0.0)
            total += activated(y, norm_e, r, row_e)
        tl.store(psi + b * n + node, tl.sum(total, 0) / psi_rows, node < n)


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
        {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_Q": 64, "num_warps": 4, "num_stages": 2},
    ],
)


def columns(x: Nodes, norm_e: Tensor, weight_z: Tensor, PQ: Tensor) -> None:
    """Writes PQ (B, m, q)."""
    (B, m, _), n = PQ.shape, weight_z.shape[1] // 2
    COLUMNS(
        lambda g: cdiv(m, g["BLOCK_M"]) * cdiv(B * x.c, g["BLOCK_Q"]) * x.halves,
        nodes=x.tensor, norm_e=norm_e, weight_z=weight_z, PQ=PQ, **strides(x.tensor), B=B, n=n, m=m,
        c=x.c, rows=x.rows, HALVES=x.halves, NORMALISED=x.normalised, PRECISION=precision(x.tensor),
    )  # fmt: skip


def relate_fwd(
    V: Tensor, E: Tensor, norm_e: Tensor, weight_z: Tensor, embeddings: int, psi_rows: int,
    whole: bool = False, finish: Finish = merged,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """In a `whole` branch Z is (B, 0, n) where recomputing it is better, and P and Q have the dtype
    of the map, to which every product rounds them."""
    (B, _, n), m, r = V.shape, len(weight_z), E.shape[1]
    x = nodes_of(V, E, embeddings, psi_rows)
    PQ = (V if whole else norm_e).new_empty(B, m, x.q)
    Z = V.new_empty(B, rows_kept(V, m, x) if whole else m, n)
    psi = norm_e.new_empty(B, 1 if psi_rows else 0, n)
    parts = parts_of_stats(V, RELATE_FWD, m)
    if m:
        columns(x, norm_e, lowered(weight_z, V), PQ)
    z = Relations(Z, PQ, norm_e, x)
    config = RELATE_FWD(
        lambda g: cdiv(n, g["BLOCK_N"]) * B,
        **z.arguments, E=E, psi=psi, parts=parts, n=n, m=m, r=r, psi_rows=psi_rows,
        PRECISION=precision(V), **z.constants,
    )  # fmt: skip
    return PQ, Z, psi, finish(parts, V, config["BLOCK_N"])
