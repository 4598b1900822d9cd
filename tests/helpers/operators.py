"""The raw operators in tests: who has which, a case of arguments for each, and their oracle."""

import copy
import shutil
from itertools import product

import cuda_host
import pytest
import torch
from torch import Tensor

from rga_fast.fused import cpp, ops, triton
from rga_fast.testing import oracle as plain_operators

PLAIN = plain_operators.register()  # kept: the operators live as long as it does

# The interpreter runs on the CPU, so that these are the very launchers that a GPU gets.
DEVICES = {"cpp": "cpu", "cuda_host": "cpu", "plain": "cpu", "cuda": "cuda"}
DEVICES["triton"] = "cpu" if triton.INTERPRETED else "cuda"
OPERATORS = {
    "cpp": [*ops.SCHEMAS, *ops.PAIR, *ops.WHOLE],
    "cuda_host": [*ops.SCHEMAS, *ops.PAIR],
    "triton": list(triton.SCHEMAS),
}
_MISSING = {
    "cpp": f"not built: {cpp.ERROR}" if cpp.ERROR is not None else None,
    "cuda_host": None if shutil.which(cuda_host.compiler()) else "no compiler",
    "triton": None
    if triton.BACKEND.available() or (triton.import_error() is None and triton.INTERPRETED)
    else triton.BACKEND.note(),
}


def param(impl: str, *values, marks=()):
    """A parameter set that is skipped, with the reason, where the implementation cannot run."""
    reason = _MISSING.get(impl)
    skipped = [] if reason is None else [pytest.mark.skip(reason=f"impl={impl!r}: {reason}")]
    return pytest.param(impl, *values, marks=[*marks, *skipped])


def every_operator(*impls: str) -> list:
    """Parameter sets (impl, name)."""
    return [param(impl, name) for impl in impls for name in OPERATORS[impl]]


def namespace(impl: str):
    """`torch.ops.rga_fast_<impl>`, ready to be called."""
    if impl == "cuda_host":
        cuda_host.load()
    return getattr(torch.ops, ops.namespace(impl))


# embeddings, relations, appearance
KINDS = [(2, True, True), (1, True, True), (0, True, True), (2, True, False), (0, False, True)]
SIZES = [(3, 16, 12), (2, 13, 37), (3, 7, 1), (2, 1, 5), (5, 66, 130), (3, 88, 21)]  # B, d, n
# Of a whole branch or two: relations that are stored, and some made again, in one tile and in
# several.
WHOLE_SIZES = [(3, 16, 12), (2, 13, 37), (2, 5, 300)]
ORDERS = ["by rows", "by columns"]


def runs(kind, name):
    """Two branches in training need the map between them where its values are related."""
    return name not in ops.WHOLE_PAIR or kind[0] or not kind[1]


class Case:
    """Tensors of a branch in which nothing is trivial, and what each operator takes of them."""

    def __init__(
        self, kind, size, order="by rows", dtype=torch.float64, device="cpu", k=3, seed=0,
        low_products=False,
    ):  # fmt: skip
        embeddings, relations, appearance = kind
        B, d, n = size
        generator = torch.Generator().manual_seed(seed)
        compute = torch.float64 if dtype == torch.float64 else torch.float32

        def draw(*shape, dtype=compute, low=-1.0):
            values = torch.rand(shape, generator=generator, dtype=torch.float64)
            return (low + (1 - low) * values).to(device, dtype)

        def norm(rows):
            return torch.stack([draw(rows), draw(rows, low=0.5), draw(rows), draw(rows)])

        def nodes():
            if order == "by rows":
                return draw(B, d, n, dtype=dtype)
            return draw(B, n, d, dtype=dtype).transpose(1, 2)

        c, m, p = max(1, d // 4), max(1, n // 4) * relations, int(appearance)
        r, q = (embeddings + p) * c, embeddings * c or d
        two = (embeddings, c * p)
        V, dout = nodes(), nodes()
        E, dE, Z = (draw(B, rows, n, dtype=dtype) for rows in (r, r, m))
        weight_e, weight_z, weight_h = draw(r, d), draw(m, 2 * n), draw(k, p + m)
        weight_l, PQ, psi = draw(1, k), draw(B, m, q), draw(B, p, n)
        hidden, logit, dhidden, dlogit = draw(B, k, n), draw(B, n), draw(B, k, n), draw(B, n)
        norm_e, norm_z, norm_h, norm_l = norm(r), norm(m), norm(k), norm(1)
        means_e, means_z, means_h, means_l = draw(2, r), draw(2, m), draw(2, k), draw(2, 1)
        dnodes = draw(B, d if relations and not embeddings else 0, n, dtype=dtype)

        def evaluation(*layers):
            return (
                V, [draw(*shape) for shape in layers],
                [draw(rows, low=0.1) for rows, _ in layers for _ in range(4)],
                [1e-5] * len(layers), *kind,
            )  # fmt: skip

        def layers(d, n):
            c, m = max(1, d // 4), max(1, n // 4) * relations
            nodes = [(c, d)] * (embeddings + p) + [(m, 2 * n)] * relations
            return [*nodes, (k, p + m), (1, k)]

        self.arguments = {
            "attention": evaluation(*layers(d, n)),
            "embed_fwd": (V, weight_e),
            "relate_fwd": (V, E, norm_e, weight_z, *two),
            "hidden_fwd": (psi, Z, norm_z, weight_h),
            "logit_fwd": (hidden, norm_h, weight_l),
            "gate_fwd": (V, logit, norm_l),
            "gate_bwd": (dout, V, logit, norm_l),
            "logit_bwd": (
                V, E, norm_e, PQ, psi, norm_z, weight_h, norm_h, weight_l, logit, norm_l, dlogit,
                means_l, *two,
            ),
            "hidden_bwd": (psi, Z, norm_z, weight_h, hidden, norm_h, means_h, weight_l, dlogit),
            "relate_bwd": (
                V, E, norm_e, weight_z, PQ, Z, norm_z, means_z, weight_h, dhidden, *two,
            ),
            "embed_bwd": (
                dout, V, logit, norm_l, E, norm_e, means_e, weight_e, dE, dnodes, True, True,
            ),
        }  # fmt: skip
        self.arguments["attention_pair"] = evaluation(*layers(d, n), *layers(n, d))
        whole = layers(d, n)
        products = dtype if low_products else compute
        batch = [i % 3 != 1 for i in range(len(whole))]  # some by running statistics
        _, weights, norms, eps, *_ = evaluation(*whole)
        self.arguments["training_fwd"] = (V, weights, norms, eps, batch, *kind)
        rows = [sum(width for width, _ in whole[: embeddings + p]), m]
        tables = (norm(rows[0]), norm_z, norm(len(weights[-2])), norm_l)
        self.arguments["training_bwd"] = (
            dout, V, E, PQ.to(products), psi, logit, *tables, weights, batch, *kind, True, True,
        )  # fmt: skip

        def saved(d, n):
            (c, _), (m, _) = layers(d, n)[0], (layers(d, n) if relations else [(0, 0)] * 3)[-3]
            rows = [(embeddings + p) * c, m, k, 1]
            E = draw(B, rows[0], n, dtype=dtype)
            PQ = draw(B, m, embeddings * c or d, dtype=products)
            return [E, PQ, draw(B, p, n), draw(B, n), *map(norm, rows)]

        _, weights, norms, eps, *_ = self.arguments["attention_pair"]
        batch = batch + [i % 2 == 0 for i in range(len(whole))]
        self.arguments["training_pair_fwd"] = (V, weights, norms, eps, batch, *kind)
        self.arguments["training_pair_bwd"] = (
            dout, V, saved(d, n) + saved(n, d), weights, batch, *kind, True, [True, True],
        )  # fmt: skip

    def tensors(self, name: str) -> list[Tensor]:
        values = [a if isinstance(a, list) else [a] for a in self.arguments[name]]
        return [t for value in values for t in value if isinstance(t, Tensor)]

    def double(self, name: str) -> "Case":
        """The arguments of an operator in float64."""
        exact = copy.copy(self)
        exact.arguments = {name: torch.utils._pytree.tree_map(in_float64, self.arguments[name])}
        return exact

    def call(self, impl: str, name: str) -> tuple[Tensor, ...]:
        operators = namespace(impl)
        if impl == "plain" and name in ops.WHOLE | ops.WHOLE_PAIR:
            results = getattr(plain_operators, name)(ops.namespace(impl), *self.arguments[name])
        else:
            results = getattr(operators, name)(*self.arguments[name])
        results = results if isinstance(results, tuple) else (results,)
        return tuple(t for r in results for t in (r if isinstance(r, list) else [r]))


def in_float64(value):
    return value.double() if isinstance(value, Tensor) else value


# What the branch as a whole makes of its rounding is the business of the tests with a budget.
ROUNDED = [name for name in ops.SCHEMAS if name != "attention"]


def check_rounding(impl: str, name: str, dtype: torch.dtype) -> None:
    """An operator of the CUDA kernels, with whole tiles, and rows of a multiple of 16 bytes or not:
    it may be twice as far from the oracle in float64 as the oracle in `dtype`, on the CPU, is."""

    def moved(value):
        return value.to(DEVICES[impl]) if isinstance(value, Tensor) else value

    for kind, size, order in product(KINDS, [(3, 16, 12), (2, 66, 130), (2, 72, 136)], ORDERS):
        case = Case(kind, size, order, dtype=dtype)
        plain, exact = case.call("plain", name), case.double(name).call("plain", name)
        case.arguments[name] = tuple(moved(value) for value in case.arguments[name])
        for actual, baseline, oracle in zip(case.call(impl, name), plain, exact, strict=True):
            assert (actual.dtype, actual.shape) == (baseline.dtype, baseline.shape)
            if oracle.numel() == 0:
                continue
            error, allowed = ((x.double() - oracle).abs().max() for x in (actual.cpu(), baseline))
            assert error <= 2 * allowed + 16 * torch.finfo(dtype).eps * oracle.abs().max()
