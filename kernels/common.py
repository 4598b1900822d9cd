"""What the kernels share: products, normalisation on load, statistics, sums over programs.

Every reduction over programs goes through a scratch tensor and a second small kernel that adds in
a fixed order: no floating-point atomics, the same bits in every run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rga_fast.kernels.launch import INTERPRETED, Kernel, jit


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
def through_norm(dy, xhat, rstd, weight, means, rows, row):
    """The gradient before a normalisation from that behind it, a tile (row, node)."""
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
def load_nodes(
    nodes, norm, offset, row, valid, node, stride_n, rows, n, NORMALISED: tl.constexpr
):  # fmt: skip
    """A tile (row, node) of theta and phi: rows of E, normalised, or of V itself.

    `offset` of a row says where it begins. What lies beyond the nodes is finite, not zero.
    """
    mask = valid[:, None] & (node < n)[None, :]
    x = tl.load(nodes + offset[:, None] + node[None, :] * stride_n, mask, 0.0)
    if NORMALISED:
        x = activated(x, norm, rows, row).to(x.dtype)
    return x


@triton.jit
def store_stats(parts, part, x, row, rows, valid, count):
    """Mean and centred square sum of each row of a float32 tile that is zero where not `valid`.

    float64: the mean of a tile must not lose the digits that its distance from others has.
    """
    mean = tl.sum(x, 1) / count
    centred = tl.where(valid[None, :], x - mean[:, None], 0.0)
    rest = tl.sum(centred, 1) / count  # what rounding left of the mean
    square = tl.sum(centred * centred, 1) - count * rest * rest
    to = parts + part * 2 * rows + row
    tl.store(to, mean.to(tl.float64) + rest.to(tl.float64), row < rows)
    tl.store(to + rows, square.to(tl.float64), row < rows)


@jit
def merge_kernel(
    parts, stats, count, rows, n, tiles, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    """(count, 2, rows) of `store_stats` to mean and variance (2, rows) (Chan et al.)."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    pivot = tl.load(parts + row, row < rows, 0.0)
    total = tl.zeros([BLOCK_R], tl.float64)
    squares = tl.zeros([BLOCK_R], tl.float64)
    values = tl.zeros([BLOCK_R], tl.float64)
    for start in range(0, count, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        mask = (part < count)[:, None] & (row < rows)[None, :]
        at = parts + part.to(tl.int64)[:, None] * 2 * rows + row[None, :]
        weight = tl.minimum(n - part % tiles * BLOCK_N, BLOCK_N).to(tl.float64)[:, None]
        weight = tl.where(mask, weight, 0.0)
        mean = tl.load(at, mask, 0.0) - pivot[None, :]
        total += tl.sum(weight * mean, 0)
        squares += tl.sum(tl.load(at + rows, mask, 0.0) + weight * mean * mean, 0)
        values += tl.sum(weight, 0)
    values = tl.maximum(values, 1)  # of rows beyond the last
    mean = total / values
    tl.store(stats + row, (pivot + mean).to(tl.float32), row < rows)
    tl.store(stats + rows + row, (squares / values - mean * mean).to(tl.float32), row < rows)


@jit
def sum_kernel(
    parts, first, second, count, width_first, width_second, BLOCK_P: tl.constexpr,
    BLOCK_W: tl.constexpr,
):  # fmt: skip
    """(count, width_first + width_second) to two tensors of those widths, in a fixed order."""
    width = width_first + width_second
    column = tl.program_id(0).to(tl.int64) * BLOCK_W + tl.arange(0, BLOCK_W)
    total = tl.zeros([BLOCK_W], parts.dtype.element_ty)
    for start in range(0, count, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        mask = (part < count)[:, None] & (column < width)[None, :]
        at = parts + part.to(tl.int64)[:, None] * width + column[None, :]
        total += tl.sum(tl.load(at, mask, 0.0), 0)
    total = total.to(tl.float32)
    tl.store(first + column, total, column < width_first)
    inside = (column >= width_first) & (column < width)
    tl.store(second + column - width_first, total, inside)


# Few rows in a program, because there are few rows; the parts of many images side by side.
MERGE = Kernel(merge_kernel, {}, [{"BLOCK_P": 64, "BLOCK_R": 8, "num_warps": 4}])
SUM = Kernel(sum_kernel, {}, [{"BLOCK_P": 32, "BLOCK_W": 128, "num_warps": 4}])


def parts_of_stats(V: Tensor, kernel: Kernel, rows: int) -> Tensor:
    """Scratch for `store_stats` of every image and node tile, whatever the block."""
    B, _, n = V.shape
    return V.new_empty(B * cdiv(n, kernel.smallest("BLOCK_N")), 2, rows, dtype=torch.float64)


def merged(parts: Tensor, V: Tensor, block: int) -> Tensor:
    """The statistics (2, rows) of what a kernel with `BLOCK_N = block` left in `parts`."""
    B, _, n = V.shape
    rows, tiles = parts.shape[2], cdiv(n, block)
    stats = V.new_empty(2, rows, dtype=torch.float32)
    if rows:
        MERGE(
            lambda c: cdiv(rows, c["BLOCK_R"]), parts, stats, B * tiles, rows, n, tiles,
            BLOCK_N=block,
        )  # fmt: skip
    return stats


def summed(parts: Tensor, count: int, first: Tensor, second: Tensor | None = None) -> None:
    """The first `count` rows of `parts` added up, into `first` and `second`."""
    widths = first.numel(), 0 if second is None else second.numel()
    if sum(widths):
        to = first if second is None else second
        SUM(lambda c: cdiv(sum(widths), c["BLOCK_W"]), parts, first, to, count, *widths)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def splits(items: int, tiles: int) -> int:
    """Into how many programs a reduction over `items` is split that has `tiles` results.

    A GPU has a hundred processors or more, each of which wants two programs or more; every split
    writes and reads its result once more. The same for every GPU: so are the sums.
    """
    return max(1, min(items, cdiv(264, tiles)))


def lowered(weight: Tensor, V: Tensor) -> Tensor:
    """A large `weight` in the dtype of the map: every program reads it. A small one is converted
    by each program, which is cheaper than another launch."""
    return weight.to(V.dtype) if weight.numel() >= 1 << 18 else weight
