"""The operators of the fused implementations: schemas and fake implementations.

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
- `dY` after a normalisation is the gradient of its output (below the activation, where there is
  one); `sums_*` (2, rows) are its sums over batch and nodes: sum(dY), sum(dY * xhat). `means_*` are
  these divided by their count; zero for a normalisation by running statistics.

dtypes: V, E, Z, out, dout, dE, dV of the map's dtype; everything else of `compute_dtype(V)`, but
PQ of a whole branch is of the map's dtype where an implementation says `low_products`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rga_fast.fused import shapes

SCHEMAS = {
    # The branch in evaluation. `weights`: theta, phi, psi, relation, W_1, W_2, those present, as
    # matrices; `norms`: running mean, running variance, weight, bias of each; `eps` of each.
    "attention": "(Tensor V, Tensor[] weights, Tensor[] norms, float[] eps, int embeddings, "
    "bool relations, bool appearance) -> Tensor out",
    # The branch in training: a stage ends where batch statistics are needed.
    "embed_fwd": "(Tensor V, Tensor weight_e) -> (Tensor E, Tensor stats_e)",
    "relate_fwd": "(Tensor V, Tensor E, Tensor norm_e, Tensor weight_z, int embeddings, "
    "int psi_rows) -> (Tensor PQ, Tensor Z, Tensor psi, Tensor stats_z)",
    "hidden_fwd": "(Tensor psi, Tensor Z, Tensor norm_z, Tensor weight_h) "
    "-> (Tensor hidden, Tensor stats_h)",
    "logit_fwd": "(Tensor hidden, Tensor norm_h, Tensor weight_l) "
    "-> (Tensor logit, Tensor stats_l)",
    "gate_fwd": "(Tensor V, Tensor logit, Tensor norm_l) -> Tensor out",
    # Its gradient, by the same stages.
    "gate_bwd": "(Tensor dout, Tensor V, Tensor logit, Tensor norm_l) "
    "-> (Tensor dlogit, Tensor sums_l)",
    # Z and hidden recomputed, and the gradients through the second layer of the perceptron:
    # `dlogit` after the normalisation of the logit, `dl` before it.
    "logit_bwd": "(Tensor V, Tensor E, Tensor norm_e, Tensor PQ, Tensor psi, Tensor norm_z, "
    "Tensor weight_h, Tensor norm_h, Tensor weight_l, Tensor logit, Tensor norm_l, Tensor dlogit, "
    "Tensor means_l, int embeddings, int psi_rows) "
    "-> (Tensor Z, Tensor hidden, Tensor dl, Tensor dweight_l, Tensor sums_h)",
    # `dhidden` is the gradient before the normalisation of the hidden layer.
    "hidden_bwd": "(Tensor psi, Tensor Z, Tensor norm_z, Tensor weight_h, Tensor hidden, "
    "Tensor norm_h, Tensor means_h, Tensor weight_l, Tensor dl) "
    "-> (Tensor dhidden, Tensor dweight_h, Tensor sums_z)",
    # `dE` is the gradient after the normalisation. `dnodes` (B, d, n) is that of theta = phi = V
    # where `embeddings` is 0 (contiguous), else (B, 0, n).
    "relate_bwd": "(Tensor V, Tensor E, Tensor norm_e, Tensor weight_z, Tensor PQ, Tensor Z, "
    "Tensor norm_z, Tensor means_z, Tensor weight_h, Tensor dhidden, int embeddings, "
    "int psi_rows) -> (Tensor dE, Tensor dnodes, Tensor dweight_z, Tensor sums_e)",
    # An output nobody needs has no elements: dV (B, 0, n), dweight_e (0, d).
    "embed_bwd": "(Tensor dout, Tensor V, Tensor logit, Tensor norm_l, Tensor E, Tensor norm_e, "
    "Tensor means_e, Tensor weight_e, Tensor dE, Tensor dnodes, bool need_dV, bool need_dweight) "
    "-> (Tensor dV, Tensor dweight_e)",
}

# Two branches in evaluation, one after the other, for implementations that gain by having them in
# one operator: the lists hold the layers of both, and the second operates on the
# transposed view: its nodes are the features of the first.
PAIR = {"attention_pair": SCHEMAS["attention"]}

# The branch in training with all its stages in one operator, where no process group takes part, for
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
# those of the first branch, then those of the second, which operates on the transposed view.
# `saved` is what `training_fwd` returns after `out`, with `stats` forward and without backward;
# `gradients` what `training_bwd` returns after dV. Where `embeddings` is 0 there may be no
# relations.
WHOLE_PAIR = {
    "training_pair_fwd": "(Tensor V, Tensor[] weights, Tensor[] norms, float[] eps, bool[] batch, "
    "int embeddings, bool relations, bool appearance) -> (Tensor out, Tensor[] saved)",
    "training_pair_bwd": "(Tensor dout, Tensor V, Tensor[] saved, Tensor[] weights, bool[] batch, "
    "int embeddings, bool relations, bool appearance, bool need_dV, bool[] need_dweight) -> "
    "(Tensor dV, Tensor[] gradients)",
}


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


def fake(name: str, *values: Any, low_products: bool = False) -> Any:
    """Empty tensors in the shapes, dtypes and layouts that the operator `name` returns."""
    return shapes.fake(named(name, values), _parsed(name)[1], branches(name), low_products)


def named(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """The arguments of the operator `name`, by their names in its schema."""
    return dict(zip(_parsed(name)[0], values, strict=True))


def branches(name: str) -> int:
    """For how many branches the operator `name` is."""
    return 2 if name in PAIR | WHOLE_PAIR else 1


@functools.cache
def _parsed(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of arguments and results."""
    schema = torch._C.parse_schema(name + (SCHEMAS | PAIR | WHOLE | WHOLE_PAIR)[name])
    return tuple(a.name for a in schema.arguments), tuple(r.name for r in schema.returns)


def halves(values: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Of what belongs to two branches, that of the first and that of the second."""
    return shapes.share(values, 0, 2), shapes.share(values, 1, 2)


def constant(function: Callable) -> Callable:
    """`torch.compiler.assume_constant_result`, which would import the compiler: half of the time
    that `import rga_fast` takes."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
