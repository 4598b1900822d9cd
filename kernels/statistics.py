"""Statistics and sums over programs.

Every reduction over programs goes through a scratch tensor and a second small kernel that adds in
a fixed order: no floating-point atomics, the same bits in every run.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rga_fast.kernels.common import cdiv
from rga_fast.kernels.launch import Kernel, jit

# What a launcher does with the statistics that its kernel left: `merged`, or `Stage.table`.
Finish = Callable[[Tensor, Tensor, int], Tensor]
# What one does with sums that its kernel left, the first of another width: `summed`, `Stage.means`.
Total = Callable[[Tensor, int, Tensor | None, int], Tensor]


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


@triton.jit
def merged_rows(
    parts, row, count, rows, n, tiles, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Mean and variance of (count, 2, rows) of `store_stats`, in float64 (Chan et al.)."""
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
    return pivot + mean, squares / values - mean * mean


@jit
def merge_kernel(
    parts, stats, count, rows, n, tiles, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    """`store_stats` to mean and variance (2, rows). A program: a few rows."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    mean, variance = merged_rows(parts, row, count, rows, n, tiles, BLOCK_N, BLOCK_P, BLOCK_R)
    tl.store(stats + row, mean.to(tl.float32), row < rows)
    tl.store(stats + rows + row, variance.to(tl.float32), row < rows)


@jit
def sum_kernel(
    parts, first, second, count, width_first, width_second, BLOCK_P: tl.constexpr,
    BLOCK_W: tl.constexpr,
):  # fmt: skip
    """(count, width_first + width_second) to two tensors of those widths, in a fixed order."""
    width = width_first + width_second
    column = tl.program_id(0).to(tl.int64) * BLOCK_W + tl.arange(0, BLOCK_W)
    total = summed_columns(parts, column, count, width, BLOCK_P, BLOCK_W)
    tl.store(first + column, total, column < width_first)
    inside = (column >= width_first) & (column < width)
    tl.store(second + column - width_first, total, inside)


@triton.jit
def summed_columns(
    parts, column, count, width, BLOCK_P: tl.constexpr, BLOCK_W: tl.constexpr
):  # fmt: skip
    """Columns of (count, width), added up in a fixed order."""
    total = tl.zeros([BLOCK_W], parts.dtype.element_ty)
    for start in range(0, count, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        mask = (part < count)[:, None] & (column < width)[None, :]
        at = parts + part.to(tl.int64)[:, None] * width + column[None, :]
        total += tl.sum(tl.load(at, mask, 0.0), 0)
    return total.to(tl.float32)


@jit
def table_kernel(
    parts, norms, eps, widths, table, tracked, count, rows, begin, total, n, tiles,
    BATCH: tl.constexpr, LAYERS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    """`store_stats` to what some layers are normalised by, `table` (4, rows), and to what is
    tracked, `tracked` (2, total): mean and unbiased variance, from column `begin` on.

    A program: a few rows. Bit i of BATCH says whether layer i uses the statistics of the batch.
    """
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    mean, variance = merged_rows(parts, row, count, rows, n, tiles, BLOCK_N, BLOCK_P, BLOCK_R)
    values = (count // tiles).to(tl.float64) * n
    unbiased = variance * (values / tl.maximum(values - 1, 1))
    tl.store(tracked + begin + row, mean.to(tl.float32), row < rows)
    tl.store(tracked + total + begin + row, unbiased.to(tl.float32), row < rows)
    mean, variance = mean.to(tl.float32), tl.where(row < rows, variance, 1.0).to(tl.float32)
    start = 0
    scale = tl.zeros([BLOCK_R], tl.float32)
    shift = tl.zeros([BLOCK_R], tl.float32)
    for i in tl.static_range(LAYERS):
        own = (row >= start) & (row < start + widths[i])
        at = row - start
        if not (BATCH >> i) & 1:
            mean = tl.where(own, tl.load(norms[4 * i] + at, own, 0.0), mean)
            variance = tl.where(own, tl.load(norms[4 * i + 1] + at, own, 0.0), variance)
        variance = tl.where(own, variance + eps[i], variance)
        scale = tl.where(own, tl.load(norms[4 * i + 2] + at, own, 0.0), scale)
        shift = tl.where(own, tl.load(norms[4 * i + 3] + at, own, 0.0), shift)
        start += widths[i]
    tl.store(table + row, mean, row < rows)
    tl.store(table + rows + row, 1 / tl.sqrt_rn(variance), row < rows)
    tl.store(table + 2 * rows + row, scale, row < rows)
    tl.store(table + 3 * rows + row, shift, row < rows)


@jit
def means_kernel(
    parts, first, sums, means, widths, count, width, rows, begin, total, values,
    BATCH: tl.constexpr, LAYERS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """(count, width + 2 rows): to `first`, and the rest to `sums` (2, total), from column `begin`
    on, and divided by the count of values to `means` (2, rows), where BATCH says so."""
    column = tl.program_id(0).to(tl.int64) * BLOCK_W + tl.arange(0, BLOCK_W)
    value = summed_columns(parts, column, count, width + 2 * rows, BLOCK_P, BLOCK_W)
    tl.store(first + column, value, column < width)
    column -= width
    inside = (column >= 0) & (column < 2 * rows)
    row = column % tl.maximum(rows, 1)
    which = column // tl.maximum(rows, 1)
    tl.store(sums + which * total + begin + row, value, inside)
    mean = tl.zeros([BLOCK_W], tl.float32)
    start = 0
    for i in tl.static_range(LAYERS):
        if (BATCH >> i) & 1:
            own = (row >= start) & (row < start + widths[i])
            mean = tl.where(own, value / values, mean)
        start += widths[i]
    tl.store(means + column, mean, inside)


# Few rows in a program, because there are few rows; the parts of many images side by side.
MERGE = Kernel(merge_kernel, {}, [{"BLOCK_P": 64, "BLOCK_R": 8, "num_warps": 4}])
TABLE = Kernel(table_kernel, {}, MERGE.configs)
SUM = Kernel(sum_kernel, {}, [{"BLOCK_P": 32, "BLOCK_W": 128, "num_warps": 4}])
MEANS = Kernel(means_kernel, {}, SUM.configs)


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
            lambda c: cdiv(rows, c["BLOCK_R"]),
            parts=parts, stats=stats, count=B * tiles, rows=rows, n=n, tiles=tiles, BLOCK_N=block,
        )  # fmt: skip
    return stats


def summed(parts: Tensor, count: int, first: Tensor | None, rows: int = 0) -> Tensor:
    """The first `count` rows of `parts` added up, into `first` and the result (2, rows)."""
    width = 0 if first is None else first.numel()
    sums = parts.new_empty(2, rows, dtype=torch.float32)
    if width + 2 * rows:
        to = sums if first is None else first
        SUM(
            lambda c: cdiv(width + 2 * rows, c["BLOCK_W"]),
            parts=parts, first=to, second=sums, count=count, width_first=width, width_second=2 *
            rows,
        )  # fmt: skip
    return sums


class Stage(NamedTuple):
    """The layers of a whole branch that are normalised at one stage, and where their rows are in
    what is returned for all layers."""

    widths: tuple[int, ...]
    batch: tuple[bool, ...]
    begin: int
    total: int

    @property
    def flags(self) -> dict[str, int]:
        return {"BATCH": sum(on << i for i, on in enumerate(self.batch)), "LAYERS": len(self.batch)}

    def table(
        self, parts: Tensor, V: Tensor, block: int, norms: Sequence[Tensor], eps: Sequence[float],
        tracked: Tensor,
    ) -> Tensor:  # fmt: skip
        """As `merged`, but what the layers are normalised by (4, rows); writes to `tracked`."""
        (B, _, n), rows = V.shape, sum(self.widths)
        tiles = cdiv(n, block)
        table = tracked.new_empty(4, rows)
        if rows:
            TABLE(
                lambda c: cdiv(rows, c["BLOCK_R"]),
                parts=parts, norms=tuple(norms), eps=tuple(eps), widths=self.widths, table=table,
                tracked=tracked, count=B * tiles, rows=rows, begin=self.begin, total=self.total,
                n=n, tiles=tiles, BLOCK_N=block, **self.flags,
            )  # fmt: skip
        return table

    def means(
        self, parts: Tensor, count: int, first: Tensor | None, sums: Tensor, values: int
    ) -> Tensor:
        """As `summed`, but the means over the batch (2, rows); writes to `sums`."""
        width, rows = 0 if first is None else first.numel(), sum(self.widths)
        if rows == 0:
            return summed(parts, count, first)
        means = sums.new_empty(2, rows)
        MEANS(
            lambda c: cdiv(width + 2 * rows, c["BLOCK_W"]),
            parts=parts, first=sums if first is None else first, sums=sums, means=means,
            widths=self.widths, count=count, width=width, rows=rows, begin=self.begin,
            total=self.total, values=float(values), **self.flags,
        )  # fmt: skip
        return means
