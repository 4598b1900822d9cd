"""The operators behind the fused implementations: schemas and fake implementations.

Every fused implementation is a namespace `torch.ops.rga_fast_<impl>` with the operators below; its
kernels are registered for its devices elsewhere (C++: csrc/). `autograd.py` calls them.

Letters as in docs/design.md. A branch sees a map as `V` (B, d, n), whose images are dense, by rows
(strides (d * n, n, 1)) or by columns (strides (d * n, 1, d)); `out` and `dV` have the strides of
`V`, every other tensor is contiguous. Present layers are stacked in the order theta, phi, psi:

- `E` (B, r, n): all embeddings before normalisation. The last `psi_rows` rows are psi's; the rows
  before them are theta's and phi's (`embeddings` = 2), theta's, which is phi too (1), or none:
  theta and phi are `V` itself (0). `q` is the number of relation rows: r - psi_rows, or d where
  `embeddings` is 0.
- `PQ` (B, m, q) is [P, Q]: the relations of the nodes are Z = PQ [theta; phi]. With theta = phi it
  is (W_row + W_col) theta^T. Without relations m is 0.
- `psi` (B, p, n), the mean of psi's rows after normalisation; without appearance p is 0.
- `hidden` (B, k, n) and `logit` (B, n), before normalisation.
- `stats_*` (2, rows): mean and biased variance of each row over batch and nodes, in centred form.
- `norm_*` (4, rows): mean, 1 / sqrt(variance + eps), weight, bias: what normalisation applies.
- `dY` behind a normalisation is the gradient of its output (below the activation, where there is
  one); `sums_*` (2, rows) are its sums over batch and nodes: sum(dY), sum(dY * xhat). `means_*` are
  these divided by their count; zero for a normalisation by running statistics.

dtypes: V, E, Z, out, dout, dE, dV of the map's dtype; everything else of `compute_dtype(V)`, but
PQ of a whole branch is of the map's dtype where an implementation says `low_products`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

SCHEMAS = {
    # The branch in evaluation. `weights`: theta, phi, psi, relation, W_1, W_2, those present, as
    # matrices; `norms`: running mean, running variance, weight, bias of each; `eps` of each.
    "attention": "(Tensor V, Tensor[] weights, Tensor[] norms, float[] eps, int embeddings, "
    "bool relations, bool appearance) -> Tensor out",
    # The branch in training, cut where batch statistics are needed.
    "embed_fwd": "(Tensor V, Tensor weight_e) -> (Tensor E, Tensor stats_e)",
    "relate_fwd": "(Tensor V, Tensor E, Tensor norm_e, Tensor weight_z, int embeddings, "
    "int psi_rows) -> (Tensor PQ, Tensor Z, Tensor psi, Tensor stats_z)",
    "hidden_fwd": "(Tensor psi, Tensor Z, Tensor norm_z, Tensor weight_h) "
    "-> (Tensor hidden, Tensor stats_h)",
    "logit_fwd": "(Tensor hidden, Tensor norm_h, Tensor weight_l) "
    "-> (Tensor logit, Tensor stats_l)",
    "gate_fwd": "(Tensor V, Tensor logit, Tensor norm_l) -> Tensor out",
    # Its gradient, cut likewise.
    "gate_bwd": "(Tensor dout, Tensor V, Tensor logit, Tensor norm_l) "
    "-> (Tensor dlogit, Tensor sums_l)",
    # Z and hidden again, and the gradients through the second layer of the perceptron; `dlogit`
    # arrives behind the normalisation of the logit and `dl` leaves before it.
    "logit_bwd": "(Tensor V, Tensor E, Tensor norm_e, Tensor PQ, Tensor psi, Tensor norm_z, "
    "Tensor weight_h, Tensor norm_h, Tensor weight_l, Tensor logit, Tensor norm_l, Tensor dlogit, "
    "Tensor means_l, int embeddings, int psi_rows) "
    "-> (Tensor Z, Tensor hidden, Tensor dl, Tensor dweight_l, Tensor sums_h)",
    # `dhidden` leaves before the normalisation of the hidden layer.
    "hidden_bwd": "(Tensor psi, Tensor Z, Tensor norm_z, Tensor weight_h, Tensor hidden, "
    "Tensor norm_h, Tensor means_h, Tensor weight_l, Tensor dl) "
    "-> (Tensor dhidden, Tensor dweight_h, Tensor sums_z)",
    # `dE` behind the normalisation. `dnodes` (B, d, n) is the gradient of theta = phi = V where
    # `embeddings` is 0 (contiguous), else (B, 0, n).
    "relate_bwd": "(Tensor V, Tensor E, Tensor norm_e, Tensor weight_z, Tensor PQ, Tensor Z, "
    "Tensor norm_z, Tensor means_z, Tensor weight_h, Tensor dhidden, int embeddings, "
    "int psi_rows) -> (Tensor dE, Tensor dnodes, Tensor dweight_z, Tensor sums_e)",
    # An output nobody needs has no elements: dV (B, 0, n), dweight_e (0, d).
    "embed_bwd": "(Tensor dout, Tensor V, Tensor logit, Tensor norm_l, Tensor E, Tensor norm_e, "
    "Tensor means_e, Tensor weight_e, Tensor dE, Tensor dnodes, bool need_dV, bool need_dweight) "
    "-> (Tensor dV, Tensor dweight_e)",
}

# Two branches in evaluation, one after the other, for implementations that gain by having them in
# one operator: the lists hold the layers of both, and the second sees the map turned around, its
# nodes being the features of the first.
PAIR = {"attention_pair": SCHEMAS["attention"]}

# The branch in training with all its cuts in one operator, where no process group takes part, for
# implementations that gain by it. `weights`, `norms` and `eps` as in `attention`; `batch`: which
# layers are normalised by the statistics of the batch, the others by the running ones in `norms`.
# `stats` is what is tracked: mean and unbiased variance of all rows; `sums` the gradients of the
# biases and weights of all normalisations.
WHOLE = {
    "training_fwd": "(Tensor V, Tensor[] weights, Tensor[] norms, float[] eps, bool[] batch, "
    "int embeddings, bool relations, bool appearance) -> (Tensor out, Tensor E, Tensor PQ, "
    "Tensor psi, Tensor logit, Tensor norm_e, Tensor norm_z, Tensor norm_h, Tensor norm_l, "
    "Tensor stats)",
    "training_bwd": "(Tensor dout, Tensor V, Tensor E, Tensor PQ, Tensor psi, Tensor logit, "
    "Tensor norm_e, Tensor norm_z, Tensor norm_h, Tensor norm_l, Tensor[] weights, bool[] batch, "
    "int embeddings, bool relations, bool appearance, bool need_dV, bool need_dweight) -> "
    "(Tensor dV, Tensor dweight_e, Tensor dweight_z, Tensor dweight_h, Tensor dweight_l, "
    "Tensor sums)",
}

# Both in training, likewise, for implementations that need no map between the two. The lists are
# those of the first branch, then those of the second, which sees the map turned around. `saved` is
# what `training_fwd` returns behind `out`, with `stats` forward and without backward; `gradients`
# what `training_bwd` returns behind dV. Where `embeddings` is 0 there may be no relations.
WHOLE_PAIR = {
    "training_pair_fwd": "(Tensor V, Tensor[] weights, Tensor[] norms, float[] eps, bool[] batch, "
    "int embeddings, bool relations, bool appearance) -> (Tensor out, Tensor[] saved)",
    "training_pair_bwd": "(Tensor dout, Tensor V, Tensor[] saved, Tensor[] weights, bool[] batch, "
    "int embeddings, bool relations, bool appearance, bool need_dV, bool[] need_dweight) -> "
    "(Tensor dV, Tensor[] gradients)",
}


def compute_dtype(V: Tensor) -> torch.dtype:
    """The dtype of weights and statistics: float64 for a float64 map, else float32."""
    return torch.float64 if V.dtype == torch.float64 else torch.float32


def namespace(impl: str) -> str:
    return f"rga_fast_{impl}"


_DEFINED: dict[str, frozenset[str]] = {}


def defined(namespace: str) -> frozenset[str]:
    """The names of the operators that a namespace has."""
    return _DEFINED.get(namespace, frozenset())


def define(
    impl: str, schemas: dict[str, str] = SCHEMAS, low_products: bool = False
) -> torch.library.Library:
    """Declares the operators of an implementation with their fakes; keep what is returned."""
    library = torch.library.Library(namespace(impl), "DEF")
    _DEFINED[namespace(impl)] = frozenset(schemas)
    for name, schema in schemas.items():
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        function = functools.partial(fake, name, low_products=low_products)
        torch.library.register_fake(f"{namespace(impl)}::{name}", function, lib=library)
    return library


def halves(values: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Of what belongs to two branches, that of the first and that of the second."""
    middle = len(values) // 2
    return values[:middle], values[middle:]


def constant(function: Callable) -> Callable:
    """`torch.compiler.assume_constant_result`, which would import the compiler: half of the time
    that `import rga_fast` takes."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def fake(name: str, *args: Any, low_products: bool = False) -> Any:
    """Empty tensors in the shapes, dtypes and layouts that the operator `name` returns."""
    more = {"low_products": low_products} if name in ("training_fwd", "training_pair_fwd") else {}
    return _FAKES[name](*args, **more)


def _new(V: Tensor, *shape: int) -> Tensor:
    return V.new_empty(shape, dtype=compute_dtype(V))


def _attention(V, weights, norms, eps, embeddings, relations, appearance):
    return torch.empty_like(V)


def _training_fwd(
    V, weights, norms, eps, batch, embeddings, relations, appearance, low_products=False
):
    B, d, n = V.shape
    widths = [len(weight) for weight in weights]
    r, m = sum(widths[: embeddings + appearance]), widths[-3] if relations else 0
    q = sum(widths[:embeddings]) if embeddings else d
    tables = (_new(V, 4, rows) for rows in (r, m, *widths[-2:]))
    return (
        torch.empty_like(V),
        V.new_empty(B, r, n),
        V.new_empty(B, m, q) if low_products else _new(V, B, m, q),
        _new(V, B, int(appearance), n),
        _new(V, B, n),
        *tables,
        _new(V, 2, sum(widths)),
    )


def _training_bwd(
    dout, V, E, PQ, psi, logit, norm_e, norm_z, norm_h, norm_l, weights, batch, embeddings,
    relations, appearance, need_dV, need_dweight,
):  # fmt: skip
    B, d, n = V.shape
    r, rows = E.shape[1], sum(len(weight) for weight in weights)
    return (
        torch.empty_like(V) if need_dV else V.new_empty(B, 0, n),
        _new(V, r if need_dweight else 0, d),
        _new(V, norm_z.shape[1], 2 * n),
        *(torch.empty_like(weight) for weight in weights[-2:]),
        _new(V, 2, rows),
    )


def _training_pair_fwd(V, weights, norms, eps, batch, *kind, low_products=False):
    saved: list[Tensor] = []
    for view, own in zip((V, V.transpose(1, 2)), halves(weights), strict=True):
        saved += fake("training_fwd", view, own, *[()] * 3, *kind, low_products=low_products)[1:]
    return torch.empty_like(V), saved


def _training_pair_bwd(dout, V, saved, weights, batch, *rest):
    *kind, need_dV, need_dweight = rest
    gradients: list[Tensor] = []
    lists = map(halves, (saved, weights, need_dweight))
    for view, kept, own, need in zip((V, V.transpose(1, 2)), *lists, strict=True):
        arguments = (view, view, *kept, own, (), *kind, False, *need)
        gradients += _training_bwd(*arguments)[1:]
    return torch.empty_like(V) if need_dV else V.new_empty(len(V), 0, V.shape[2]), gradients


def _embed_fwd(V, weight_e):
    r = weight_e.shape[0]
    return V.new_empty(V.shape[0], r, V.shape[2]), _new(V, 2, r)


def _relate_fwd(V, E, norm_e, weight_z, embeddings, psi_rows):
    B, d, n = V.shape
    m = weight_z.shape[0]
    q = E.shape[1] - psi_rows if embeddings else d
    return (
        _new(V, B, m, q),
        V.new_empty(B, m, n),
        _new(V, B, 1 if psi_rows else 0, n),
        _new(V, 2, m),
    )


def _hidden_fwd(psi, Z, norm_z, weight_h):
    k = weight_h.shape[0]
    return psi.new_empty(psi.shape[0], k, psi.shape[2]), psi.new_empty(2, k)


def _logit_fwd(hidden, norm_h, weight_l):
    return hidden.new_empty(hidden.shape[0], hidden.shape[2]), hidden.new_empty(2, 1)


def _gate_fwd(V, logit, norm_l):
    return torch.empty_like(V)


def _gate_bwd(dout, V, logit, norm_l):
    return torch.empty_like(logit), logit.new_empty(2, 1)


def _logit_bwd(
    V, E, norm_e, PQ, psi, norm_z, weight_h, norm_h, weight_l, logit, norm_l, dlogit, means_l,
    embeddings, psi_rows,
):  # fmt: skip
    B, _, n = V.shape
    k = weight_h.shape[0]
    return (
        V.new_empty(B, norm_z.shape[1], n),
        _new(V, B, k, n),
        torch.empty_like(logit),
        torch.empty_like(weight_l),
        _new(V, 2, k),
    )


def _hidden_bwd(psi, Z, norm_z, weight_h, hidden, norm_h, means_h, weight_l, dl):
    return torch.empty_like(hidden), torch.empty_like(weight_h), torch.empty_like(norm_z[:2])


def _relate_bwd(
    V, E, norm_e, weight_z, PQ, Z, norm_z, means_z, weight_h, dhidden, embeddings, psi_rows
):
    B, d, n = V.shape
    return (
        torch.empty_like(E),
        V.new_empty(B, d if weight_z.shape[0] and not embeddings else 0, n),
        torch.empty_like(weight_z),
        torch.empty_like(norm_e[:2]),
    )


def _embed_bwd(
    dout, V, logit, norm_l, E, norm_e, means_e, weight_e, dE, dnodes, need_dV, need_dweight
):
    B, d, n = V.shape
    return (
        torch.empty_like(V) if need_dV else V.new_empty(B, 0, n),
        torch.empty_like(weight_e) if need_dweight else weight_e.new_empty(0, d),
    )


_FAKES: dict[str, Callable[..., Any]] = {
    "attention": _attention,
    "attention_pair": _attention,
    "training_fwd": _training_fwd,
    "training_bwd": _training_bwd,
    "training_pair_fwd": _training_pair_fwd,
    "training_pair_bwd": _training_pair_bwd,
    "embed_fwd": _embed_fwd,
    "relate_fwd": _relate_fwd,
    "hidden_fwd": _hidden_fwd,
    "logit_fwd": _logit_fwd,
    "gate_fwd": _gate_fwd,
    "gate_bwd": _gate_bwd,
    "logit_bwd": _logit_bwd,
    "hidden_bwd": _hidden_bwd,
    "relate_bwd": _relate_bwd,
    "embed_bwd": _embed_bwd,
}
