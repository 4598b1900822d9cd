"""E = [W_theta; W_phi; W_psi] V with its statistics, and the gradients of V and the weights."""

import torch
import triton.language as tl
from torch import Tensor

from rga_fast.kernels.common import (
    Gate,
    attention_value,
    batch_norm_backward,
    cdiv,
    gate_arguments,
    load_gate,
    load_norm,
    lowered,
    multiply,
    splits,
)
from rga_fast.kernels.launch import Kernel, jit, precision, strides
from rga_fast.kernels.statistics import Finish, merged, parts_of_stats, store_stats, summed


@jit
def embed_fwd_kernel(
    V, gate, norm_g, weight_e, E, parts, stride_b, stride_d, stride_n, d, n, r,
    GATED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program: (row tile, node tile, image)."""
    tiles_r = tl.cdiv(r, BLOCK_R)
    tiles_n = tl.cdiv(n, BLOCK_N)
    part = tl.program_id(0) // tiles_r  # row tiles in sequence: they share the nodes
    b = (part // tiles_n).to(tl.int64)
    row = tl.program_id(0) % tiles_r * BLOCK_R + tl.arange(0, BLOCK_R)
    node = part % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
    for start in range(0, d, BLOCK_D):
        feature = start + tl.arange(0, BLOCK_D)
        mask_w = (row < r)[:, None] & (feature < d)[None, :]
        w = tl.load(weight_e + row[:, None] * d + feature[None, :], mask_w, 0.0)
        if GATED:  # the smaller factor of the two
            a = load_gate(gate, norm_g, b * d + feature, feature < d, GATED)
            w = (w.to(tl.float32) * a[None, :]).to(w.dtype)
        mask_v = (feature < d)[:, None] & (node < n)[None, :]
        at = V + b * stride_b + feature[:, None] * stride_d + node[None, :] * stride_n
        v = tl.load(at, mask_v, 0.0)
        acc = multiply(w.to(v.dtype), v, acc, PRECISION)
    to = E + b * r * n + row[:, None] * n + node[None, :]
    tl.store(to, acc.to(E.dtype.element_ty), (row < r)[:, None] & (node < n)[None, :])
    count = tl.minimum(n - part % tiles_n * BLOCK_N, BLOCK_N)
    store_stats(parts, part.to(tl.int64), acc, row, r, node < n, count)


@jit
def embed_bwd_norm_kernel(
    dE, E, norm_e, means_e, dx, n, r, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradient of E before its normalisation, which may overwrite that after it.

    A program: (row tile, node tile, image). Computed once, because every feature tile of the
    products with it would recompute it.
    """
    tiles_r = tl.cdiv(r, BLOCK_R)
    tiles_n = tl.cdiv(n, BLOCK_N)
    rest = tl.program_id(0) // tiles_r
    b = (rest // tiles_n).to(tl.int64)
    row = tl.program_id(0) % tiles_r * BLOCK_R + tl.arange(0, BLOCK_R)
    node = rest % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (row < r)[:, None] & (node < n)[None, :]
    at = b * r * n + row[:, None] * n + node[None, :]
    mean, rstd, weight, _ = load_norm(norm_e, r, row)
    dy = tl.load(dE + at, mask, 0.0).to(tl.float32)
    xhat = (tl.load(E + at, mask, 0.0).to(tl.float32) - mean[:, None]) * rstd[:, None]
    x = batch_norm_backward(dy, xhat, rstd, weight, means_e, r, row)
    tl.store(dx + at, x.to(dx.dtype.element_ty), mask)


@jit
def embed_bwd_nodes_kernel(
    dout, V, logit, norm_l, weight_e, dx, dnodes, dV, dgate,
    stride_b, stride_d, stride_n, d, n, r, HAS_DNODES: tl.constexpr, GATED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """dV = W_e^T dx + dout a; of a gated map the gradient after the gate, and `dgate`, that of
    the attention values, summed over a node tile. A program: (feature tile, node tile, image)."""
    tiles_d = tl.cdiv(d, BLOCK_D)
    tiles_n = tl.cdiv(n, BLOCK_N)
    rest = tl.program_id(0) // tiles_d
    b = (rest // tiles_n).to(tl.int64)
    feature = tl.program_id(0) % tiles_d * BLOCK_D + tl.arange(0, BLOCK_D)
    node = rest % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    for start in range(0, r, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        mask_w = (feature < d)[:, None] & (row < r)[None, :]
        w = tl.load(weight_e + row[None, :] * d + feature[:, None], mask_w, 0.0)
        mask_x = (row < r)[:, None] & (node < n)[None, :]
        x = tl.load(dx + b * r * n + row[:, None] * n + node[None, :], mask_x, 0.0)
        acc = multiply(w.to(x.dtype), x, acc, PRECISION)
    mask = (feature < d)[:, None] & (node < n)[None, :]
    if HAS_DNODES:
        at = dnodes + b * d * n + feature[:, None] * n + node[None, :]
        acc += tl.load(at, mask, 0.0).to(tl.float32)
    a = attention_value(tl.load(logit + b * n + node, node < n, 0.0), norm_l)
    at = b * stride_b + feature[:, None] * stride_d + node[None, :] * stride_n
    acc += tl.load(dout + at, mask, 0.0).to(tl.float32) * a[None, :]
    tl.store(dV + at, acc.to(dV.dtype.element_ty), mask)
    if GATED:
        total = tl.sum(acc * tl.load(V + at, mask, 0.0).to(tl.float32), 1)
        tl.store(dgate + rest.to(tl.int64) * d + feature, total, feature < d)


@jit
def embed_bwd_weight_kernel(
    V, gate, norm_g, dx, parts, stride_b, stride_d, stride_n, B, d, n, r, splits,
    GATED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dW_e = sum_b dx V^T. A program: (row tile, feature tile, share of all node tiles)."""
    tiles_r = tl.cdiv(r, BLOCK_R)
    tiles_d = tl.cdiv(d, BLOCK_D)
    tiles_n = tl.cdiv(n, BLOCK_N)
    rest = tl.program_id(0) // tiles_r
    split = rest // tiles_d
    row = tl.program_id(0) % tiles_r * BLOCK_R + tl.arange(0, BLOCK_R)
    feature = rest % tiles_d * BLOCK_D + tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    share = tl.cdiv(B * tiles_n, splits)
    begin, end = split * share, tl.minimum((split + 1) * share, B * tiles_n)
    for b in range((begin // tiles_n).to(tl.int64), tl.cdiv(end, tiles_n).to(tl.int64)):
        part = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
        first = tl.maximum(begin - b * tiles_n, 0).to(tl.int32)
        for tile in range(first, tl.minimum(end - b * tiles_n, tiles_n).to(tl.int32)):
            node = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            mask_x = (row < r)[:, None] & (node < n)[None, :]
            x = tl.load(dx + b * r * n + row[:, None] * n + node[None, :], mask_x, 0.0)
            mask_v = (node < n)[:, None] & (feature < d)[None, :]
            at = V + b * stride_b + feature[None, :] * stride_d + node[:, None] * stride_n
            v = tl.load(at, mask_v, 0.0)
            if GATED:
                part = multiply(x, v, part, PRECISION)
            else:
                acc = multiply(x, v, acc, PRECISION)
        if GATED:
            a = load_gate(gate, norm_g, b * d + feature, feature < d, GATED)
            acc += part * a[None, :]
    to = parts + split.to(tl.int64) * r * d + row[:, None] * d + feature[None, :]
    tl.store(to, acc, (row < r)[:, None] & (feature < d)[None, :])


# A wide tile for the tensor cores; a smaller one where there are few images or rows.
EMBED_FWD = Kernel(
    embed_fwd_kernel,
    {"BLOCK_R": "r", "BLOCK_N": "n", "BLOCK_D": "d"},
    [
        {"BLOCK_R": 64, "BLOCK_N": 128, "BLOCK_D": 64, "num_warps": 4, "num_stages": 3},
        {"BLOCK_R": 128, "BLOCK_N": 128, "BLOCK_D": 64, "num_warps": 8, "num_stages": 3},
    ],
)
# Bound by memory: whole cache lines. One configuration only: timing several would repeat what is
# done in place.
EMBED_BWD_NORM = Kernel(
    embed_bwd_norm_kernel,
    {"BLOCK_R": "r", "BLOCK_N": "n"},
    [{"BLOCK_R": 32, "BLOCK_N": 128, "num_warps": 4}],
)
# As the forward pass; shallower steps where float32 weights are converted on load.
EMBED_BWD_NODES = Kernel(
    embed_bwd_nodes_kernel,
    {"BLOCK_D": "d", "BLOCK_N": "n", "BLOCK_R": "r"},
    [
        {"BLOCK_D": 64, "BLOCK_N": 128, "BLOCK_R": 32, "num_warps": 4, "num_stages": 3},
        {"BLOCK_D": 128, "BLOCK_N": 128, "BLOCK_R": 64, "num_warps": 8, "num_stages": 3},
    ],
)
EMBED_BWD_WEIGHT = Kernel(
    embed_bwd_weight_kernel,
    {"BLOCK_R": "r", "BLOCK_D": "d", "BLOCK_N": "n"},
    [
        {"BLOCK_R": 64, "BLOCK_D": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 3},
        {"BLOCK_R": 128, "BLOCK_D": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 3},
    ],
)


def embed_fwd(
    V: Tensor, weight_e: Tensor, gate: Gate | None = None, finish: Finish = merged
) -> tuple[Tensor, Tensor]:
    (B, d, n), r = V.shape, len(weight_e)
    E = V.new_empty(B, r, n)
    parts = parts_of_stats(V, EMBED_FWD, r)
    if r == 0:
        return E, finish(parts, V, 1)
    on_load = gate_arguments(gate, V)
    config = EMBED_FWD(
        lambda c: cdiv(r, c["BLOCK_R"]) * cdiv(n, c["BLOCK_N"]) * B,
        V=V, **on_load, weight_e=lowered(weight_e, V), E=E, parts=parts, **strides(V), d=d, n=n,
        r=r, PRECISION=precision(V),
    )  # fmt: skip
    return E, finish(parts, V, config["BLOCK_N"])


def embed_bwd(
    dout: Tensor, V: Tensor, logit: Tensor, norm_l: Tensor, E: Tensor, norm_e: Tensor,
    means_e: Tensor, weight_e: Tensor, dE: Tensor, dnodes: Tensor, need_dV: bool,
    need_dweight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    d, n = V.shape[1:]
    dV, dweight = V.new_empty(len(V), 0, n), weight_e.new_empty(0, d)
    dx = embed_bwd_norm(dE, E, norm_e, means_e, torch.empty_like(dE))
    if need_dV:
        dV, _ = embed_bwd_nodes(dout, V, logit, norm_l, weight_e, dx, dnodes)
    if need_dweight:
        dweight = embed_bwd_weight(V, dx)
    return dV, dweight


def embed_bwd_norm(dE: Tensor, E: Tensor, norm_e: Tensor, means_e: Tensor, dx: Tensor) -> Tensor:
    """`dx`, which may be dE itself."""
    B, r, n = E.shape
    if r:
        EMBED_BWD_NORM(
            lambda c: cdiv(r, c["BLOCK_R"]) * cdiv(n, c["BLOCK_N"]) * B,
            dE=dE, E=E, norm_e=norm_e, means_e=means_e, dx=dx, n=n, r=r,
        )  # fmt: skip
    return dx


def embed_bwd_nodes(
    dout: Tensor, V: Tensor, logit: Tensor, norm_l: Tensor, weight_e: Tensor, dx: Tensor,
    dnodes: Tensor, gated: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dV; of a gated map that of V a, and the gradient of a (B, tiles, d), to be summed."""
    (B, d, n), r = V.shape, len(weight_e)
    dV = torch.empty_like(V)
    tiles = B * cdiv(n, EMBED_BWD_NODES.smallest("BLOCK_N")) if gated else 0
    dgate = logit.new_empty(tiles, d)
    config = EMBED_BWD_NODES(
        lambda c: cdiv(d, c["BLOCK_D"]) * cdiv(n, c["BLOCK_N"]) * B,
        dout=dout, V=V, logit=logit, norm_l=norm_l, weight_e=lowered(weight_e, V), dx=dx,
        dnodes=dnodes, dV=dV, dgate=dgate, **strides(V), d=d, n=n, r=r,
        HAS_DNODES=dnodes.shape[1] > 0, GATED=gated, PRECISION=precision(V),
    )  # fmt: skip
    tiles = cdiv(n, config["BLOCK_N"]) if gated else 0
    return dV, dgate[: B * tiles].view(B, tiles, d)


def embed_bwd_weight(V: Tensor, dx: Tensor, gate: Gate | None = None) -> Tensor:
    (B, d, n), r = V.shape, dx.shape[1]
    dweight = dx.new_empty(r, d, dtype=torch.float32)
    if r == 0:
        return dweight
    shares = splits(B * cdiv(n, 64), cdiv(r, 64) * cdiv(d, 64))
    parts = dweight if shares == 1 else dweight.new_empty(shares, r, d)
    on_load = gate_arguments(gate, V)
    EMBED_BWD_WEIGHT(
        lambda c: cdiv(r, c["BLOCK_R"]) * cdiv(d, c["BLOCK_D"]) * shares,
        V=V, **on_load, dx=dx, parts=parts, **strides(V), B=B, d=d, n=n, r=r, splits=shares,
        PRECISION=precision(V),
    )  # fmt: skip
    if shares > 1:
        summed(parts, shares, dweight)
    return dweight
