"""A branch in evaluation, four launches: the running statistics are constants of the layers."""

from collections.abc import Sequence

import torch
import triton.language as tl
from torch import Tensor

from rga_fast.fused.ops import halves
from rga_fast.fused.structure import Structure
from rga_fast.kernels.common import Gate, cdiv, gate_arguments, load_gate, multiply, relu
from rga_fast.kernels.gate import store_gated
from rga_fast.kernels.launch import Kernel, jit, power_of_2, precision, strides
from rga_fast.kernels.perceptron import add_hidden_of_relations, hidden_of_psi
from rga_fast.kernels.relate import Nodes, columns, relations


@jit
def fold_kernel(
    weights, norms, folded, table, eps, rows, widths, FOLDED: tl.constexpr,
    LAYERS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Weight times scale in the map's dtype, and `table` (2, rows): scale and shift.

    A program: a row of any layer. The perceptron keeps its weights, and its scales are applied to
    its float32 sums.
    """
    pid = tl.program_id(0)
    first = 0
    to = folded
    for i in tl.static_range(LAYERS):
        if (pid >= first) & (pid < first + rows[i]):
            row = pid - first
            rstd = tl.rsqrt(tl.load(norms[4 * i + 1] + row) + eps[i])
            scale = tl.load(norms[4 * i + 2] + row) * rstd
            tl.store(table + pid, scale)
            shift = tl.load(norms[4 * i + 3] + row) - tl.load(norms[4 * i] + row) * scale
            tl.store(table + ROWS + pid, shift)
            if i < FOLDED:
                for start in range(0, widths[i], BLOCK):
                    column = start + tl.arange(0, BLOCK)
                    mask = column < widths[i]
                    w = tl.load(weights[i] + row.to(tl.int64) * widths[i] + column, mask, 0.0)
                    at = row.to(tl.int64) * widths[i] + column
                    tl.store(to + at, (w * scale).to(folded.dtype.element_ty), mask)
        first += rows[i]
        to += rows[i] * widths[i]


@jit
def embed_kernel(
    V, gate, norm_g, folded, table, nodes, psi, stride_b, stride_d, stride_n, d, n, q, r, rows,
    GATED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Theta and phi, activated, and sums of psi over row tiles. A program: (row tile, node tile,
    image), and the row tiles are first those of theta and phi, then those of psi."""
    tiles_q = tl.cdiv(q, BLOCK_R)
    tiles_psi = tl.cdiv(r - q, BLOCK_R)
    tiles_n = tl.cdiv(n, BLOCK_N)
    tile = tl.program_id(0) % (tiles_q + tiles_psi)
    part = tl.program_id(0) // (tiles_q + tiles_psi)
    b = (part // tiles_n).to(tl.int64)
    node = part % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    is_psi = tile >= tiles_q
    row = tl.where(is_psi, q + (tile - tiles_q) * BLOCK_R, tile * BLOCK_R)
    row += tl.arange(0, BLOCK_R)
    end = tl.where(is_psi, r, q)
    acc = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
    for start in range(0, d, BLOCK_D):
        feature = start + tl.arange(0, BLOCK_D)
        mask_w = (row < end)[:, None] & (feature < d)[None, :]
        w = tl.load(folded + row[:, None] * d + feature[None, :], mask_w, 0.0)
        if GATED:
            a = load_gate(gate, norm_g, b * d + feature, feature < d, GATED)
            w = (w.to(tl.float32) * a[None, :]).to(w.dtype)
        mask_v = (feature < d)[:, None] & (node < n)[None, :]
        at = V + b * stride_b + feature[:, None] * stride_d + node[None, :] * stride_n
        acc = multiply(w, tl.load(at, mask_v, 0.0), acc, PRECISION)
    shift = tl.load(table + rows + row, row < end, 0.0)
    y = relu(acc + shift[:, None])
    if is_psi:
        total = tl.sum(tl.where((row < end)[:, None], y, 0.0), 0)
        tl.store(psi + (b * tiles_psi + tile - tiles_q) * n + node, total, node < n)
    else:
        mask = (row < end)[:, None] & (node < n)[None, :]
        to = nodes + b * q * n + row[:, None] * n + node[None, :]
        tl.store(to, y.to(nodes.dtype.element_ty), mask)


@jit
def attend_kernel(
    V, gate, norm_g, nodes, PQ, psi, weight_h, weight_l, table, out, stride_b, stride_d, stride_n,
    nodes_b, nodes_d, nodes_n, d, n, m, q, k, p, r, psi_rows, psi_tiles, rows,
    VALUES: tl.constexpr, GATED: tl.constexpr, PRECISION: tl.constexpr,
    TILES_K: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Z, the perceptron and the gate of some nodes, all features; where VALUES are wanted, `out`
    (B, n) gets these and nothing is gated. A program: (node tile, image).

    More than one tile of units, above 64, recomputes Z for each.
    """
    tiles_n = tl.cdiv(n, BLOCK_N)
    b = (tl.program_id(0) // tiles_n).to(tl.int64)
    node = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    y_psi = tl.zeros([BLOCK_N], tl.float32)
    for tile in range(psi_tiles):
        y_psi += tl.load(psi + (b * psi_tiles + tile) * n + node, node < n, 0.0)
    y_psi = y_psi / tl.maximum(psi_rows, 1)
    logit = tl.zeros([BLOCK_N], tl.float32)
    for tile in tl.static_range(TILES_K):
        unit = tile * BLOCK_K + tl.arange(0, BLOCK_K)
        hidden = hidden_of_psi(weight_h, y_psi, unit, m, k, p)
        for start in range(0, m, BLOCK_M):
            row = start + tl.arange(0, BLOCK_M)
            z = relations(
                PQ + b * m * q, nodes + b * nodes_b, table, row, node, nodes_d, nodes_n, n, m, q,
                q, False, PRECISION, BLOCK_M, BLOCK_N, BLOCK_Q,
            )  # fmt: skip
            shift = tl.load(table + rows + r + row, row < m, 0.0)
            y = relu(z + shift[:, None]).to(V.dtype.element_ty)
            hidden = add_hidden_of_relations(weight_h, y, hidden, unit, row, m, k, p, PRECISION)
        at = table + r + m + unit
        scale, shift = tl.load(at, unit < k, 0.0), tl.load(at + rows, unit < k, 0.0)
        w = tl.load(weight_l + unit, unit < k, 0.0)
        logit += tl.sum(relu(hidden * scale[:, None] + shift[:, None]) * w[:, None], 0)
    a = tl.sigmoid(logit * tl.load(table + rows - 1) + tl.load(table + 2 * rows - 1))
    if VALUES:
        tl.store(out + b * n + node, a, node < n)
    else:
        for start in range(0, d, BLOCK_D):
            feature = start + tl.arange(0, BLOCK_D)
            store_gated(
                V, gate, norm_g, out, a, b, feature, node, stride_b, stride_d, stride_n, d, n, GATED
            )


FOLD = Kernel(fold_kernel, {}, [{"BLOCK": 1024, "num_warps": 4}])
# As in embed.py.
EMBED = Kernel(
    embed_kernel,
    {"BLOCK_R": "r", "BLOCK_N": "n", "BLOCK_D": "d"},
    [
        {"BLOCK_R": 64, "BLOCK_N": 128, "BLOCK_D": 64, "num_warps": 4, "num_stages": 3},
        {"BLOCK_R": 128, "BLOCK_N": 128, "BLOCK_D": 64, "num_warps": 8, "num_stages": 3},
    ],
)
# A program has all features of its nodes: narrow blocks where there are few nodes.
ATTEND = Kernel(
    attend_kernel,
    {"BLOCK_N": "n", "BLOCK_M": "m", "BLOCK_Q": "q", "BLOCK_D": "d"},
    [
        {"BLOCK_N": 64, "BLOCK_M": 64, "BLOCK_Q": 64, "BLOCK_D": 64, "num_warps": 4,
         "num_stages": 2},
        {"BLOCK_N": 32, "BLOCK_M": 32, "BLOCK_Q": 64, "BLOCK_D": 64, "num_warps": 4,
         "num_stages": 3},
    ],
)  # fmt: skip


def attention(
    V: Tensor, weights: list[Tensor], norms: list[Tensor], eps: list[float], embeddings: int,
    relations: bool, appearance: bool,
) -> Tensor:  # fmt: skip
    structure = Structure(embeddings, relations, appearance)
    return _attention(V, None, weights, norms, eps, structure)


def attention_pair(
    V: Tensor, weights: list[Tensor], norms: list[Tensor], eps: list[float], embeddings: int,
    relations: bool, appearance: bool,
) -> Tensor:  # fmt: skip
    """Between the branches are attention values; the map, where it is what the nodes are."""
    structure = Structure(embeddings, relations, appearance)
    first, second = zip(*map(halves, (weights, norms, eps)), strict=True)
    if relations and not embeddings:
        V, gate = _attention(V, None, *first, structure), None
    else:
        gate = Gate(_attention(V, None, *first, structure, values=True))
    return _attention(V.transpose(1, 2), gate, *second, structure).transpose(1, 2)


def _attention(
    V: Tensor, gate: Gate | None, weights: Sequence[Tensor], norms: Sequence[Tensor],
    eps: Sequence[float], structure: Structure, values: bool = False,
) -> Tensor:  # fmt: skip
    """The gated map, or the attention `values` (B, n)."""
    B, d, n = V.shape
    weight_h, weight_l = weights[-2:]
    r, m, q, k, p, psi_rows = structure.sizes(weights, d)
    folded, table = _folded(V, weights, norms, eps, structure.layers - 2)
    rows = table.shape[1]
    on_load = gate_arguments(gate, V)

    E = V.new_empty(B, r - psi_rows, n)
    psi = table.new_empty(B * cdiv(psi_rows, EMBED.smallest("BLOCK_R")) * n if psi_rows else 0)
    psi_tiles = 0
    if r:
        config = EMBED(
            lambda g: (
                (cdiv(r - psi_rows, g["BLOCK_R"]) + cdiv(psi_rows, g["BLOCK_R"]))
                * (cdiv(n, g["BLOCK_N"]) * B)
            ),
            V=V, **on_load, folded=folded, table=table, nodes=E, psi=psi, **strides(V), d=d, n=n,
            q=r - psi_rows, r=r, rows=rows, PRECISION=precision(V),
        )  # fmt: skip
        psi_tiles = cdiv(psi_rows, config["BLOCK_R"])
    nodes = E if structure.embeddings else V
    PQ = V.new_empty(B, m, q)
    if structure.relations:
        x = Nodes(nodes, q, max(structure.embeddings, 1), False)
        columns(x, table, folded[r * d :].view(m, 2 * n), PQ)
    out = table.new_empty(B, n) if values else torch.empty_like(V)
    block_k = min(power_of_2(k), 64)
    ATTEND(
        lambda g: cdiv(n, g["BLOCK_N"]) * B,
        V=V, **on_load, nodes=nodes, PQ=PQ, psi=psi, weight_h=weight_h, weight_l=weight_l,
        table=table, out=out, **strides(V), **strides(nodes, "nodes"), d=d, n=n, m=m, q=q, k=k, p=p,
        r=r, psi_rows=psi_rows, psi_tiles=psi_tiles, rows=rows, VALUES=values,
        PRECISION=precision(V), TILES_K=cdiv(k, block_k), BLOCK_K=block_k,
    )  # fmt: skip
    return out


def _folded(
    V: Tensor, weights: Sequence[Tensor], norms: Sequence[Tensor], eps: Sequence[float], count: int
) -> tuple[Tensor, Tensor]:
    """The first `count` weights with their scales, one after the other; the table of all."""
    rows, widths = [len(w) for w in weights], [w.shape[1] for w in weights]
    folded = V.new_empty(sum(w.numel() for w in weights[:count]))
    table = weights[0].new_empty(2, sum(rows))
    FOLD(
        lambda _: sum(rows),
        weights=tuple(weights), norms=tuple(norms), folded=folded, table=table, eps=tuple(eps),
        rows=tuple(rows), widths=tuple(widths), FOLDED=count, LAYERS=len(weights), ROWS=sum(rows),
    )  # fmt: skip
    return folded, table
