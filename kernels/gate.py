"""out = V a, the attention values a = sigmoid(norm(logit)), and the gradient of the logit."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rga_fast.kernels.common import Gate, attention_value, cdiv, gate_arguments, load_gate
from rga_fast.kernels.launch import Kernel, jit, strides
from rga_fast.kernels.statistics import Total, summed


@triton.jit
def store_gated(
    V, gate, norm_g, out, a, b, feature, node, stride_b, stride_d, stride_n, d, n,
    GATED: tl.constexpr,
):  # fmt: skip
    """A tile (feature, node) of V a of one image."""
    mask = (feature < d)[:, None] & (node < n)[None, :]
    at = b * stride_b + feature[:, None] * stride_d + node[None, :] * stride_n
    v = tl.load(V + at, mask, 0.0)
    x = v.to(tl.float32)
    if GATED:
        x *= load_gate(gate, norm_g, b * d + feature, feature < d, GATED)[:, None]
    tl.store(out + at, (x * a[None, :]).to(v.dtype), mask)


@jit
def gate_fwd_kernel(
    V, gate, norm_g, logit, norm_l, out, stride_b, stride_d, stride_n, d, n, GATED: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program: (feature tile, node tile, image)."""
    tiles_d = tl.cdiv(d, BLOCK_D)
    tiles_n = tl.cdiv(n, BLOCK_N)
    rest = tl.program_id(0) // tiles_d
    b = (rest // tiles_n).to(tl.int64)
    feature = tl.program_id(0) % tiles_d * BLOCK_D + tl.arange(0, BLOCK_D)
    node = rest % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    a = attention_value(tl.load(logit + b * n + node, node < n, 0.0), norm_l)
    store_gated(
        V, gate, norm_g, out, a, b, feature, node, stride_b, stride_d, stride_n, d, n, GATED
    )


@triton.jit
def store_dlogit(total, logit, norm_l, dlogit, parts, part, at, valid):
    """From the gradient of attention values, zero or finite where not `valid`."""
    x = tl.load(logit + at, valid, 0.0)
    a = attention_value(x, norm_l)
    dy = tl.where(valid, total * a * (1 - a), 0.0)
    tl.store(dlogit + at, dy.to(tl.float32), valid)
    xhat = (x - tl.load(norm_l)) * tl.load(norm_l + 1)
    tl.store(parts + part * 2, tl.sum(dy, 0))
    tl.store(parts + part * 2 + 1, tl.sum(dy * xhat, 0))


@jit
def gate_bwd_kernel(
    dout, V, gate, norm_g, logit, norm_l, dlogit, parts, stride_b, stride_d, stride_n, d, n,
    GATED: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradient of the normalised logit, with its sums. A program: (node tile, image)."""
    tiles_n = tl.cdiv(n, BLOCK_N)
    part = tl.program_id(0).to(tl.int64)
    b = part // tiles_n
    node = (part % tiles_n).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    for start in range(0, d, BLOCK_D):
        feature = start + tl.arange(0, BLOCK_D)
        mask = (feature < d)[:, None] & (node < n)[None, :]
        at = b * stride_b + feature[:, None] * stride_d + node[None, :] * stride_n
        v = tl.load(V + at, mask, 0.0).to(tl.float32)
        if GATED:
            v *= load_gate(gate, norm_g, b * d + feature, feature < d, GATED)[:, None]
        acc += tl.load(dout + at, mask, 0.0).to(tl.float32) * v
    # float64: the sums shift every gradient before the normalisation, and here they cost little.
    total = tl.sum(acc.to(tl.float64), 0)
    store_dlogit(total, logit, norm_l, dlogit, parts, part, b * n + node, node < n)


@jit
def gate_sum_kernel(
    dgate, logit, norm_l, dlogit, parts, n, tiles, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """As `gate_bwd_kernel`, from sums over parts of the features (B, tiles, n)."""
    tiles_n = tl.cdiv(n, BLOCK_N)
    part = tl.program_id(0).to(tl.int64)
    b = part // tiles_n
    node = (part % tiles_n).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_N], tl.float64)
    for start in range(0, tiles, BLOCK_P):
        tile = start + tl.arange(0, BLOCK_P)
        mask = (tile < tiles)[:, None] & (node < n)[None, :]
        values = tl.load(dgate + (b * tiles + tile)[:, None] * n + node[None, :], mask, 0.0)
        total += tl.sum(values.to(tl.float64), 0)
    store_dlogit(total, logit, norm_l, dlogit, parts, part, b * n + node, node < n)


# Bound by memory: 64 neighbours are whole cache lines in both layouts.
GATE_FWD = Kernel(
    gate_fwd_kernel,
    {"BLOCK_D": "d", "BLOCK_N": "n"},
    [{"BLOCK_D": 64, "BLOCK_N": 64, "num_warps": 4}],
)
GATE_BWD = Kernel(
    gate_bwd_kernel,
    {"BLOCK_D": "d", "BLOCK_N": "n"},
    [{"BLOCK_D": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 3}],
)


# A map of ResNet-50 has at most 16 tiles of nodes.
GATE_SUM = Kernel(
    gate_sum_kernel, {"BLOCK_N": "n"}, [{"BLOCK_N": 64, "BLOCK_P": 16, "num_warps": 4}]
)


def gate_fwd(V: Tensor, logit: Tensor, norm_l: Tensor, gate: Gate | None = None) -> Tensor:
    B, d, n = V.shape
    out = torch.empty_like(V)
    on_load = gate_arguments(gate, V)
    GATE_FWD(
        lambda g: cdiv(d, g["BLOCK_D"]) * cdiv(n, g["BLOCK_N"]) * B,
        V=V, **on_load, logit=logit, norm_l=norm_l, out=out, **strides(V), d=d, n=n,
    )  # fmt: skip
    return out


def gate_bwd(
    dout: Tensor, V: Tensor, logit: Tensor, norm_l: Tensor, gate: Gate | None = None,
    total: Total = summed,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    B, d, n = V.shape
    dlogit, parts = _results(logit, GATE_BWD)
    on_load = gate_arguments(gate, V)
    config = GATE_BWD(
        lambda g: cdiv(n, g["BLOCK_N"]) * B,
        dout=dout, V=V, **on_load, logit=logit, norm_l=norm_l, dlogit=dlogit, parts=parts,
        **strides(V), d=d, n=n,
    )  # fmt: skip
    return dlogit, total(parts, B * cdiv(n, config["BLOCK_N"]), None, 1)


def gate_sum(dgate: Tensor, logit: Tensor, norm_l: Tensor, total: Total) -> tuple[Tensor, Tensor]:
    """`gate_bwd` from what `embed_bwd_nodes` left of the gradient of the attention values."""
    (B, n), tiles = logit.shape, dgate.shape[1]
    dlogit, parts = _results(logit, GATE_SUM)
    config = GATE_SUM(
        lambda g: cdiv(n, g["BLOCK_N"]) * B,
        dgate=dgate, logit=logit, norm_l=norm_l, dlogit=dlogit, parts=parts, n=n, tiles=tiles,
    )  # fmt: skip
    return dlogit, total(parts, B * cdiv(n, config["BLOCK_N"]), None, 1)


def _results(logit: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
    B, n = logit.shape
    tiles = B * cdiv(n, kernel.smallest("BLOCK_N"))
    return torch.empty_like(logit), logit.new_empty(tiles, 2, dtype=torch.float64)
