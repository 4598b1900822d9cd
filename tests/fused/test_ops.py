"""The raw operators: against their plain PyTorch oracle, and as torch.library wants them."""

import copy

import pytest
import torch
from torch import Tensor

from rga_fast.fused import cpp, ops, triton
from rga_fast.testing import check_budget, check_results, oracle

PLAIN = oracle.register()  # kept: the operators live as long as it does
CPP_OPERATORS = [*ops.SCHEMAS, *ops.PAIR, *ops.WHOLE]
CPP = pytest.param(
    "cpp", marks=pytest.mark.skipif(cpp.ERROR is not None, reason=f"not built: {cpp.ERROR}")
)
TRITON = pytest.param(
    "triton",
    marks=pytest.mark.skipif(
        not triton.available() and (triton.import_error() is not None or not triton.INTERPRETED),
        reason=triton.note(),
    ),
)
OPERATORS = [
    *(pytest.param("cpp", name, marks=CPP.marks) for name in CPP_OPERATORS),
    *(pytest.param("triton", name, marks=TRITON.marks) for name in triton.SCHEMAS),
]
# The interpreter runs on the CPU, so that these are the very launchers that a GPU gets.
DEVICES = {"cpp": "cpu", "triton": "cpu" if triton.INTERPRETED else "cuda"}

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
        exact.arguments = {name: torch.utils._pytree.tree_map(_double, self.arguments[name])}
        return exact

    def call(self, impl: str, name: str) -> tuple[Tensor, ...]:
        namespace = ops.namespace(impl)
        if impl == "plain" and name in ops.WHOLE | ops.WHOLE_PAIR:
            results = getattr(oracle, name)(namespace, *self.arguments[name])
        else:
            results = getattr(getattr(torch.ops, namespace), name)(*self.arguments[name])
        results = results if isinstance(results, tuple) else (results,)
        return tuple(t for r in results for t in (r if isinstance(r, list) else [r]))


def _double(value):
    return value.double() if isinstance(value, Tensor) else value


@pytest.fixture
def _poisoned():
    """`torch.empty` returns NaN, in the extension, too."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, id=f"{kind}-{name}")
        for kind in KINDS
        for name in triton.SCHEMAS
        if runs(kind, name)
    ],
)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("impl", [TRITON])
@pytest.mark.usefixtures("_poisoned")
def test_float32_stays_in_the_budget(impl, name, order, kind):
    whole = name not in ops.SCHEMAS or name == "attention"
    seeds = range(5 if whole else 1)  # a whole branch: what rounds how is by chance
    sizes = WHOLE_SIZES if whole else SIZES
    sizes = sizes if kind == KINDS[0] else sizes[:-1]  # the interpreter is slow
    for size in sizes:
        draws = []
        for seed in seeds:
            case = Case(kind, size, order, torch.float32, DEVICES[impl], seed=seed)
            before = [tensor.clone() for tensor in case.tensors(name)]
            results = case.call(impl, name), case.call("plain", name)
            for actual, plain in zip(*results, strict=True):
                assert actual.stride() == plain.stride() or not actual.numel()
            for tensor, copied in zip(case.tensors(name), before, strict=True):
                assert torch.equal(tensor, copied), "an argument was written to"
            exact = case.double(name).call("plain", name)
            draws.append(tuple({str(i): t for i, t in enumerate(r)} for r in (*results, exact)))
        check_results(draws)


@pytest.mark.parametrize("name", [n for n in ops.SCHEMAS if "embed" not in n])
@pytest.mark.parametrize("impl", [TRITON])
@pytest.mark.usefixtures("_poisoned")
def test_many_hidden_units(impl, name):
    """More than 64 units in the hidden layer are several tiles of it."""
    case = Case(KINDS[0], (2, 9, 20), "by rows", torch.float32, DEVICES[impl], k=75)
    baseline, oracle = case.call("plain", name), case.double(name).call("plain", name)
    for actual, *values in zip(case.call(impl, name), baseline, oracle, strict=True):
        if actual.numel():
            check_budget(actual, *values, name)


@pytest.mark.skipif(cpp.ERROR is not None, reason=f"not built: {cpp.ERROR}")
@pytest.mark.parametrize("name", CPP_OPERATORS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.usefixtures("_poisoned")
def test_float64_is_the_oracle(name, order, kind):
    check_against_oracle("cpp", name, order, kind)


def check_against_oracle(impl, name, order, kind):
    for size in SIZES:
        case = Case(kind, size, order)
        before = [tensor.clone() for tensor in case.tensors(name)]
        expected = case.call("plain", name)
        for actual, value in zip(case.call(impl, name), expected, strict=True):
            torch.testing.assert_close(actual, value, rtol=1e-10, atol=1e-10)
        for tensor, copied in zip(case.tensors(name), before, strict=True):
            assert torch.equal(tensor, copied), "an argument was written to"


@pytest.mark.parametrize(("impl", "name"), OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(impl, name, dtype):
    """The plain operators round where these do, so few roundings lie between the two."""
    low = impl == "triton"
    case = Case(KINDS[0], (3, 16, 12), dtype=dtype, device=DEVICES[impl], low_products=low)
    for actual, expected in zip(case.call(impl, name), case.call("plain", name), strict=True):
        assert actual.shape == expected.shape
        assert actual.dtype in (dtype, expected.dtype)  # P and Q may be rounded
        if expected.numel() == 0:
            continue
        error = (actual.double() - expected.double()).abs().max()
        assert error <= 16 * torch.finfo(dtype).eps * expected.double().abs().max()


@pytest.mark.skipif(cpp.ERROR is not None, reason=f"not built: {cpp.ERROR}")
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", CPP_OPERATORS)
def test_any_number_of_threads(name, threads):
    case = Case(KINDS[0], (5, 66, 130))
    expected, before = case.call("plain", name), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for actual, value in zip(case.call("cpp", name), expected, strict=True):
            torch.testing.assert_close(actual, value, rtol=1e-10, atol=1e-10)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("impl", "name"), OPERATORS)
@pytest.mark.parametrize("order", ORDERS)
def test_opcheck(impl, name, order):
    operator = getattr(getattr(torch.ops, ops.namespace(impl)), name).default
    dtype = torch.float32 if impl == "cpp" else torch.bfloat16
    for kind in (KINDS[0], KINDS[2], KINDS[4]) if impl == "cpp" else KINDS[:1]:
        case = Case(kind, (3, 16, 12), order, dtype, DEVICES[impl], low_products=impl == "triton")
        torch.library.opcheck(operator, case.arguments[name])


@pytest.mark.parametrize(("impl", "name"), OPERATORS)
def test_empty_batch(impl, name):
    for kind in filter(lambda kind: runs(kind, name), KINDS):
        case = Case(kind, (0, 8, 6), dtype=torch.float32, device=DEVICES[impl])
        for actual, expected in zip(case.call(impl, name), case.call("plain", name), strict=True):
            assert actual.shape == expected.shape
            if name.endswith("_bwd"):
                assert not actual.any()


# Around the sides of tiles (12 x 32 and 6 x 16) and of packed blocks (192, 128, 512 and 768).
PRODUCTS = [(12, 128, 32), (13, 129, 33), (193, 257, 769), (5, 1, 16), (1, 7, 1), (191, 40, 17)]


@pytest.mark.skipif(cpp.ERROR is not None, reason=f"not built: {cpp.ERROR}")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("r", "d", "n"), PRODUCTS)
def test_products_in_float32(r, d, n, order):
    """Both factors given either way, into rows that end and into sums: exact on small integers."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randint(-4, 5, shape, generator=generator).float()

    V, W, logit = draw(2, d, n), draw(r, d), torch.full((2, n), -200.0)  # a gate that is shut
    V = V if order == "by rows" else V.transpose(1, 2).contiguous().transpose(1, 2)
    E, dE, dout = draw(2, r, n), draw(2, r, n), torch.zeros_like(V)
    one = torch.tensor([0.0, 1.0, 1.0, 0.0])[:, None]
    norm, means, none = one.expand(4, r).contiguous(), torch.zeros(2, r), torch.zeros(2, 0, n)
    operators = torch.ops.rga_fast_cpp
    assert torch.equal(operators.embed_fwd(V, W)[0], W @ V)
    dV, dW = operators.embed_bwd(dout, V, logit, one, E, norm, means, W, dE, none, True, True)
    assert torch.equal(dV, W.t() @ dE)
    assert torch.equal(dW, (dE @ V.transpose(1, 2)).sum(0))


@pytest.mark.skipif(cpp.ERROR is not None, reason=f"not built: {cpp.ERROR}")
@pytest.mark.parametrize("name", CPP_OPERATORS)
def test_products_of_the_dispatcher(name):
    """Where torch exports no library function the dispatcher multiplies."""
    case, extension = Case(KINDS[0], (3, 16, 12)), cpp.extension()
    expected = case.call("cpp", name)
    extension.use_gemm_library(False)
    try:
        assert extension.build_info()["products"] == "torch's dispatcher"
        for actual, value in zip(case.call("cpp", name), expected, strict=True):
            torch.testing.assert_close(actual, value, rtol=1e-10, atol=1e-10)
    finally:
        extension.use_gemm_library(True)


@pytest.mark.parametrize("impl", [CPP, TRITON])
def test_wrong_arguments_raise_with_words(impl):
    torch.set_default_device(DEVICES[impl])
    try:
        _wrong_arguments(getattr(torch.ops, ops.namespace(impl)).embed_fwd)
    finally:
        torch.set_default_device("cpu")


@pytest.mark.skipif(cpp.ERROR is not None, reason=f"not built: {cpp.ERROR}")
def test_wrong_layers_raise_with_words():
    operators, case = torch.ops.rga_fast_cpp, Case(KINDS[0], (3, 16, 12))
    V, weights, norms, eps, batch, *kind = case.arguments["training_fwd"]
    with pytest.raises(RuntimeError, match="expected 6 layers, got 5 weights and 6 flags"):
        operators.training_fwd(V, weights[:-1], norms, eps, batch, *kind)
    with pytest.raises(RuntimeError, match="each of 6 normalisations, got 23 and 6"):
        operators.training_fwd(V, weights, norms[:-1], eps, batch, *kind)
    V, weights, *rest = case.arguments["attention_pair"]
    with pytest.raises(RuntimeError, match="attention_pair got the tensors of 11 layers"):
        operators.attention_pair(V, weights[:-1], *rest)


def _wrong_arguments(embed):
    V, weight = torch.rand(2, 6, 5), torch.rand(3, 6)
    with pytest.raises(RuntimeError, match=r"weight_e must be \(3, 6\), got \(3, 4\)"):
        embed(V, weight[:, :4])
    with pytest.raises(RuntimeError, match="weight_e has the wrong dtype"):
        embed(V, weight.double())
    with pytest.raises(RuntimeError, match="weight_e must be contiguous"):
        embed(V, torch.rand(6, 3).t())
    with pytest.raises(RuntimeError, match="dense, by rows or by columns"):
        embed(torch.rand(2, 6, 10)[:, :, ::2], weight)


@pytest.mark.parametrize("impl", [CPP, TRITON])
def test_variance_survives_a_huge_mean(impl):
    """Statistics are centred: a mean of 1e4 does not eat a deviation of 1."""
    V, one = (torch.randn(4, 6, 500) + 1e4).to(DEVICES[impl]), torch.eye(6, device=DEVICES[impl])
    plain, fused = (getattr(torch.ops, ops.namespace(name)).embed_fwd for name in ("plain", impl))
    oracle, baseline, actual = (
        embed(V.to(dtype), one.to(dtype))[1][1]
        for embed, dtype in [(plain, torch.float64), (plain, torch.float32), (fused, torch.float32)]
    )
    check_budget(actual, baseline, oracle, "variance")
