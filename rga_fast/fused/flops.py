"""What `torch.utils.flop_counter.FlopCounterMode` counts for the fused operators.

The products of the reassociated form, two operations a multiply-add, as it counts them for
`impl="torch"`: what an implementation computes twice to save memory is counted once.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from rga_fast.fused import ops

Shape = Sequence[int]


def register(namespace: str) -> None:
    """For the operators that a namespace has."""
    for name in ops.defined(namespace) & set(_FORMULAS):
        packet = getattr(getattr(torch.ops, namespace), name)
        register_flop_formula(packet)(_FORMULAS[name])


def _forward(
    V: Shape, weights: Sequence[Shape], embeddings: int, relations: bool, psi: bool
) -> int:
    """E, P and Q, Z, the hidden layer and the logit."""
    B, d, n = V
    widths = [weight[0] for weight in weights]
    q = sum(widths[:embeddings]) if embeddings else d
    relate = 2 * q * n * widths[-3] if relations else 0
    rows = sum(widths[: embeddings + psi])
    return 2 * B * (rows * d * n + relate + sum(math.prod(w[:2]) for w in weights[-2:]) * n)


def _attention(V, weights, norms, eps, embeddings, relations, appearance, *_, **__):
    return _forward(V, weights, embeddings, relations, appearance)


def _training_bwd(
    dout, V, E, PQ, psi, logit, norm_e, norm_z, norm_h, norm_l, weights, batch, embeddings,
    relations, appearance, need_dV, need_dweight, *_, **__,
):  # fmt: skip
    """Two products for each of the forward pass, but of E only those that are wanted."""
    whole = _forward(V, weights, embeddings, relations, appearance)
    rows = sum(weight[0] for weight in weights[: embeddings + appearance])
    return 2 * whole - (2 - need_dV - need_dweight) * 2 * V[0] * rows * V[1] * V[2]


def _both(call: Callable[..., int]) -> Callable[..., int]:
    """Of two branches, the second of which sees the map turned around."""

    def formula(V, weights, norms, eps, *rest, **__):
        views = (V, (V[0], V[2], V[1]))
        each = zip(views, ops.halves(weights), strict=True)
        return sum(call(view, own, *rest) for view, own in each)

    return formula


def _pair(V, weights, embeddings, relations, appearance, *_):
    return _forward(V, weights, embeddings, relations, appearance)


def _training_pair(V, weights, batch, *kind):
    return _pair(V, weights, *kind)


def _training_pair_bwd(
    dout, V, saved, weights, batch, embeddings, relations, appearance, need_dV, need_dweight,
    *_, **__,
):  # fmt: skip
    total, views = 0, (V, (V[0], V[2], V[1]))
    for i, (view, own) in enumerate(zip(views, ops.halves(weights), strict=True)):
        others = (None,) * 8
        arguments = (own, batch, embeddings, relations, appearance)
        need = need_dV or i > 0  # what passes between the branches
        total += _training_bwd(dout, view, *others, *arguments, need, need_dweight[i])
    return total


def _embed_fwd(V, weight_e, *_, **__):
    return 2 * V[0] * V[2] * math.prod(weight_e)


def _relate_fwd(V, E, norm_e, weight_z, embeddings, psi_rows, *_, **__):
    q = E[1] - psi_rows if embeddings else V[1]
    return 4 * V[0] * q * V[2] * weight_z[0]


def _hidden_fwd(psi, Z, norm_z, weight_h, *_, **__):
    return 2 * Z[0] * Z[2] * math.prod(weight_h[:2])


def _logit_fwd(hidden, norm_h, weight_l, *_, **__):
    return 2 * hidden[0] * hidden[2] * math.prod(weight_l[:2])


def _logit_bwd(V, E, norm_e, PQ, psi, norm_z, weight_h, norm_h, weight_l, *_, **__):
    return 4 * V[0] * V[2] * math.prod(weight_l[:2])


def _hidden_bwd(psi, Z, norm_z, weight_h, *_, **__):
    return 4 * Z[0] * Z[2] * math.prod(weight_h[:2])


def _relate_bwd(
    V, E, norm_e, weight_z, PQ, Z, norm_z, means_z, weight_h, dhidden, embeddings, psi_rows,
    *_, **__,
):  # fmt: skip
    return 2 * _relate_fwd(V, E, norm_e, weight_z, embeddings, psi_rows)


def _embed_bwd(
    dout, V, logit, norm_l, E, norm_e, means_e, weight_e, dE, dnodes, need_dV, need_dweight,
    *_, **__,
):  # fmt: skip
    return (need_dV + need_dweight) * _embed_fwd(V, weight_e)


_FORMULAS: dict[str, Any] = {
    "attention": _attention,
    "attention_pair": _both(_pair),
    "training_fwd": lambda V, w, norms, eps, batch, *kind, **_: _pair(V, w, *kind),
    "training_bwd": _training_bwd,
    "training_pair_fwd": _both(_training_pair),
    "training_pair_bwd": _training_pair_bwd,
    "embed_fwd": _embed_fwd,
    "relate_fwd": _relate_fwd,
    "hidden_fwd": _hidden_fwd,
    "logit_fwd": _logit_fwd,
    "logit_bwd": _logit_bwd,
    "hidden_bwd": _hidden_bwd,
    "relate_bwd": _relate_bwd,
    "embed_bwd": _embed_bwd,
}
