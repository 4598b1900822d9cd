"""out = V a, the attention values a = sigmoid(norm(logit)), and the gradient of the logit."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rga_fast.kernels.common import attention_value, cdiv, summed
from rga_fast.kernels.launch import Kernel, jit


@triton.jit
def store_gated(V, out, a, feature, node, stride_d, stride_n, d, n):
    """A tile (feature, node) of V a of one image."""
    mask = (feature < d)[:, None] & (node < n)[None, :]
    at = feature[:, None] * stride_d + node[None, :] * stride_n
    v = tl.load(V + at, mask, 0.0)
    tl.store(out + at, (v.to(tl.float32) * a[None, :]).to(v.dtype), mask)


@jit
def gate_fwd_kernel(
    V, logit, norm_l, out, stride_b, stride_d, stride_n, d, n,
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
    b *= stride_b
    store_gated(V + b, out + b, a, feature, node, stride_d, stride_n, d, n)


@jit
def gate_bwd_kernel(
    dout, V, logit, norm_l, dlogit, parts, stride_b, stride_d, stride_n, d, n,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
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
        acc += tl.load(dout + at, mask, 0.0).to(tl.float32) * v
    x = tl.load(logit + b * n + node, node < n, 0.0)
    a = attention_value(x, norm_l)
    # float64: the sums shift every gradient before the normalisation, and here they cost little.
    dy = tl.where(node < n, tl.sum(acc.to(tl.float64), 0) * a * (1 - a), 0.0)
    tl.store(dlogit + b * n + node, dy.to(tl.float32), node < n)
    xhat = (x - tl.load(norm_l)) * tl.load(norm_l + 1)
    tl.store(parts + part * 2, tl.sum(dy, 0))
    tl.store(parts + part * 2 + 1, tl.sum(dy * xhat, 0))


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


def gate_fwd(V: Tensor, logit: Tensor, norm_l: Tensor) -> Tensor:
    B, d, n = V.shape
    out = torch.empty_like(V)
    GATE_FWD(
        lambda g: cdiv(d, g["BLOCK_D"]) * cdiv(n, g["BLOCK_N"]) * B,
        V, logit, norm_l, out, *V.stride(), d, n,
    )  # fmt: skip
    return out


def gate_bwd(dout: Tensor, V: Tensor, logit: Tensor, norm_l: Tensor) -> tuple[Tensor, Tensor]:
    B, d, n = V.shape
    dlogit, sums_l = torch.empty_like(logit), logit.new_empty(2, 1)
    parts = logit.new_empty(B * cdiv(n, GATE_BWD.smallest("BLOCK_N")), 2, dtype=torch.float64)
    config = GATE_BWD(
        lambda g: cdiv(n, g["BLOCK_N"]) * B,
        dout, V, logit, norm_l, dlogit, parts, *V.stride(), d, n,
    )  # fmt: skip
    summed(parts, B * cdiv(n, config["BLOCK_N"]), sums_l)
    return dlogit, sums_l
