"""A branch in training as one operator, and two of them, between which no map is stored.

The second branch reads the map of the first and the attention values of that. The gradient of these
values is computed where the second computes that of its map. Four maps fewer are read or written.
"""

from collections.abc import Sequence

from torch import Tensor

from rga_fast.fused.ops import halves
from rga_fast.fused.shapes import Saved
from rga_fast.fused.structure import Structure
from rga_fast.kernels.common import Gate
from rga_fast.kernels.embed import (
    embed_bwd_nodes,
    embed_bwd_norm,
    embed_bwd_weight,
    embed_fwd,
)
from rga_fast.kernels.gate import gate_bwd, gate_fwd, gate_sum
from rga_fast.kernels.perceptron import hidden_fwd, logit_fwd
from rga_fast.kernels.perceptron_bwd import hidden_bwd, logit_bwd
from rga_fast.kernels.relate import Relations, nodes_of, relate_fwd
from rga_fast.kernels.relate_bwd import relate_bwd
from rga_fast.kernels.statistics import Finish, Stage, Total


class Branch:
    """The layers of a branch, and the stages at which they are normalised."""

    def __init__(
        self, V: Tensor, weights: Sequence[Tensor], batch: Sequence[bool], structure: Structure
    ) -> None:
        self.rows_of = structure.embeddings, structure.psi_rows(weights)
        self.weight_e = structure.stacked(weights, V)
        self.weight_z = structure.relation_weight(weights, V)
        self.weight_h, self.weight_l = weights[-2:]
        self.slices = structure.stages
        widths = [len(weight) for weight in weights]
        self.rows = sum(widths)
        self.stages = [
            Stage(tuple(widths[at]), tuple(batch[at]), sum(widths[: at.start]), self.rows)
            for at in self.slices
        ]

    def tables(
        self, norms: Sequence[Tensor], eps: Sequence[float], tracked: Tensor
    ) -> list[Finish]:
        def finish(stage: Stage, at: slice) -> Finish:
            own = norms[4 * at.start : 4 * at.stop], eps[at]
            return lambda parts, V, block: stage.table(parts, V, block, *own, tracked)

        return [finish(stage, at) for stage, at in zip(self.stages, self.slices, strict=True)]

    def totals(self, sums: Tensor, values: int) -> list[Total]:
        def total(stage: Stage) -> Total:
            def means(parts: Tensor, count: int, first: Tensor | None, rows: int = 0) -> Tensor:
                return stage.means(parts, count, first, sums, values)

            return means

        return [total(stage) for stage in self.stages]


def training_fwd(
    V: Tensor, weights: list[Tensor], norms: list[Tensor], eps: list[float], batch: list[bool],
    embeddings: int, relations: bool, appearance: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    branch = Branch(V, weights, batch, Structure(embeddings, relations, appearance))
    saved, tracked = _forward(branch, V, None, norms, eps)
    return gate_fwd(V, saved.logit, saved.norm_l), *saved, tracked


def training_pair_fwd(
    V: Tensor, weights: list[Tensor], norms: list[Tensor], eps: list[float], batch: list[bool],
    embeddings: int, relations: bool, appearance: bool,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    structure = Structure(embeddings, relations, appearance)
    one, two = zip(*map(halves, (weights, norms, eps, batch)), strict=True)
    W = V.transpose(1, 2)
    first, second = Branch(V, one[0], one[3], structure), Branch(W, two[0], two[3], structure)
    kept, tracked = _forward(first, V, None, *one[1:3])
    gate = Gate(kept.logit, kept.norm_l)
    saved, other = _forward(second, W, gate, *two[1:3])
    out = gate_fwd(W, saved.logit, saved.norm_l, gate).transpose(1, 2)
    return out, [*kept, tracked, *saved, other]


def training_bwd(
    dout: Tensor, V: Tensor, E: Tensor, PQ: Tensor, psi: Tensor, logit: Tensor, norm_e: Tensor,
    norm_z: Tensor, norm_h: Tensor, norm_l: Tensor, weights: list[Tensor], batch: list[bool],
    embeddings: int, relations: bool, appearance: bool, need_dV: bool, need_dweight: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    branch = Branch(V, weights, batch, Structure(embeddings, relations, appearance))
    saved = Saved(E, PQ, psi, logit, norm_e, norm_z, norm_h, norm_l)
    dV, _, *gradients = _backward(branch, dout, V, None, None, saved, need_dV, need_dweight)
    return dV, *gradients


def training_pair_bwd(
    dout: Tensor, V: Tensor, saved: list[Tensor], weights: list[Tensor], batch: list[bool],
    embeddings: int, relations: bool, appearance: bool, need_dV: bool, need_dweight: list[bool],
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    structure = Structure(embeddings, relations, appearance)
    one, two = zip(*map(halves, (saved, weights, batch, need_dweight)), strict=True)
    W = V.transpose(1, 2)
    first, second = Branch(V, *one[1:3], structure), Branch(W, *two[1:3], structure)
    kept = Saved(*one[0])
    gate = Gate(kept.logit, kept.norm_l)
    dW, dgate, *others = _backward(
        second, dout.transpose(1, 2), W, gate, None, Saved(*two[0]), True, *two[3]
    )
    dV, _, *own = _backward(first, dW.transpose(1, 2), V, None, dgate, kept, need_dV, *one[3])
    return dV, own + others


def _forward(
    branch: Branch, V: Tensor, gate: Gate | None, norms: Sequence[Tensor], eps: Sequence[float]
) -> tuple[Saved, Tensor]:
    """What is saved of a branch up to its logit, and what is tracked."""
    tracked = branch.weight_l.new_empty(2, branch.rows)
    at_e, at_z, at_h, at_l = branch.tables(norms, eps, tracked)
    E, norm_e = embed_fwd(V, branch.weight_e, gate, at_e)
    PQ, Z, psi, norm_z = relate_fwd(
        V, E, norm_e, branch.weight_z, *branch.rows_of, whole=True, finish=at_z
    )
    z = Relations(Z, PQ, norm_e, nodes_of(V, E, *branch.rows_of))
    hidden, norm_h = hidden_fwd(psi, z, norm_z, branch.weight_h, at_h)
    logit, norm_l = logit_fwd(hidden, norm_h, branch.weight_l, at_l)
    return Saved(E, PQ, psi, logit, norm_e, norm_z, norm_h, norm_l), tracked


def _backward(
    branch: Branch, dout: Tensor, V: Tensor, gate: Gate | None, dgate: Tensor | None, saved: Saved,
    need_dV: bool, need_dweight: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """dV, the gradient of `gate`, and what else `training_bwd` returns. `dgate` is the gradient of
    the branch's own attention values, where the branch after it left that."""
    E, PQ, psi, logit, norm_e, norm_z, norm_h, norm_l = saved
    weight_h, weight_l = branch.weight_h, branch.weight_l
    sums = weight_l.new_empty(2, branch.rows)
    of_e, of_z, of_h, of_l = branch.totals(sums, V.shape[0] * V.shape[2])
    if dgate is None:
        dlogit, means_l = gate_bwd(dout, V, logit, norm_l, gate, of_l)
    else:
        dlogit, means_l = gate_sum(dgate, logit, norm_l, of_l)
    Z, hidden, dl, dweight_l, means_h = logit_bwd(
        V, E, norm_e, PQ, psi, norm_z, weight_h, norm_h, weight_l, logit, norm_l, dlogit, means_l,
        *branch.rows_of, whole=True, total=of_h,
    )  # fmt: skip
    z = Relations(Z, PQ, norm_e, nodes_of(V, E, *branch.rows_of))
    dhidden, dweight_h, means_z = hidden_bwd(
        psi, z, norm_z, weight_h, hidden, norm_h, means_h, weight_l, dl, whole=True, total=of_z
    )
    del hidden
    dE, dnodes, dweight_z, means_e = relate_bwd(
        V, E, norm_e, branch.weight_z, PQ, Z, norm_z, means_z, weight_h, dhidden, *branch.rows_of,
        total=of_e,
    )  # fmt: skip
    del Z, z, dhidden
    dx = embed_bwd_norm(dE, E, norm_e, means_e, dE)
    dV, dweight_e = V.new_empty(len(V), 0, V.shape[2]), weight_l.new_empty(0, V.shape[1])
    if need_dV:
        dV, dgate = embed_bwd_nodes(
            dout, V, logit, norm_l, branch.weight_e, dx, dnodes, gate is not None
        )
    if need_dweight:
        dweight_e = embed_bwd_weight(V, dx, gate)
    return dV, dgate, dweight_e, dweight_z, dweight_h, dweight_l, sums
