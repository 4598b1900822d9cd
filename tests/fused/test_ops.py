"""The raw operators: against their plain PyTorch oracle, and as torch.library wants them."""

from itertools import product

import pytest
import torch
from operators import (
    DEVICES,
    KINDS,
    OPERATORS,
    ORDERS,
    SIZES,
    WHOLE_SIZES,
    Case,
    distinct,
    every_operator,
    namespace,
    param,
    runs,
)

from rga_fast.fused import cpp, ops
from rga_fast.testing import check_budget, check_results

needs_cpp = pytest.mark.skipif(cpp.ERROR is not None, reason=f"not built: {cpp.ERROR}")
every_impl = pytest.mark.parametrize("impl", [param("cpp"), param("cuda_host"), param("triton")])


WHOLE = ["attention", *(name for name in OPERATORS["triton"] if name not in ops.SCHEMAS)]


def every_case(*impls, quick=lambda name, kind: True):
    """Parameter sets (impl, name, kind, order)."""
    return [
        param(
            *(impl, name, kind, order),
            id=f"{impl}-{name}-{kind}-{order}",
            slow=not quick(name, kind),
        )
        for impl in impls
        for name in OPERATORS[impl]
        for kind, order in distinct(name)
        if runs(kind, name)
    ]


@pytest.mark.parametrize(
    ("impl", "name", "kind", "order"),
    every_case("triton", quick=lambda name, kind: kind == KINDS[0] and name not in WHOLE),
)
@pytest.mark.usefixtures("_poisoned")
def test_float32_stays_in_the_budget(impl, name, order, kind):
    seeds = range(3 if name in WHOLE else 1)  # a whole branch: what rounds how is by chance
    sizes = WHOLE_SIZES if name in WHOLE else SIZES
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
@pytest.mark.parametrize("impl", [param("triton")])
@pytest.mark.usefixtures("_poisoned")
def test_many_hidden_units(impl, name):
    """More than 64 units in the hidden layer are several tiles of it."""
    case = Case(KINDS[0], (2, 9, 20), "by rows", torch.float32, DEVICES[impl], k=75)
    baseline, oracle = case.call("plain", name), case.double(name).call("plain", name)
    for actual, *values in zip(case.call(impl, name), baseline, oracle, strict=True):
        if actual.numel():
            check_budget(actual, *values, name)


@pytest.mark.parametrize(("impl", "name", "kind", "order"), every_case("cpp", "cuda_host"))
@pytest.mark.usefixtures("_poisoned")
def test_float64_is_the_oracle(impl, name, order, kind):
    for size in SIZES:
        case = Case(kind, size, order)
        before = [tensor.clone() for tensor in case.tensors(name)]
        expected = case.call("plain", name)
        for actual, value in zip(case.call(impl, name), expected, strict=True):
            torch.testing.assert_close(actual, value, rtol=1e-10, atol=1e-10)
        for tensor, copied in zip(case.tensors(name), before, strict=True):
            assert torch.equal(tensor, copied), "an argument was written to"


@pytest.mark.parametrize(("impl", "name"), every_operator("cpp", "triton"))
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


@needs_cpp
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", OPERATORS["cpp"])
def test_any_number_of_threads(name, threads):
    case = Case(KINDS[0], (5, 66, 130))
    expected, before = case.call("plain", name), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for actual, value in zip(case.call("cpp", name), expected, strict=True):
            torch.testing.assert_close(actual, value, rtol=1e-10, atol=1e-10)
    finally:
        torch.set_num_threads(before)


# What an operator is asked with: dtype, size and kinds of a branch.
CHECKED = {
    "cpp": (torch.float32, (3, 16, 12), (KINDS[0], KINDS[2], KINDS[4])),
    "cuda_host": (torch.float64, (2, 16, 12), KINDS[:1]),
    "triton": (torch.bfloat16, (3, 16, 12), KINDS[:1]),
}


@pytest.mark.parametrize(
    ("impl", "name", "order"),
    [
        param(impl, name, order, slow=order != ORDERS[0] or (impl == "triton" and name in WHOLE))
        for impl, order in product(CHECKED, ORDERS)
        for name in OPERATORS[impl]
    ],
)
def test_opcheck(impl, name, order):
    operator = getattr(namespace(impl), name).default
    dtype, size, kinds = CHECKED[impl]
    for kind in kinds if order == ORDERS[0] else kinds[:1]:
        case = Case(kind, size, order, dtype, DEVICES[impl], low_products=impl == "triton")
        torch.library.opcheck(operator, case.arguments[name])


@pytest.mark.parametrize(("impl", "name"), every_operator("cpp", "cuda_host", "triton"))
def test_empty_batch(impl, name):
    for kind in filter(lambda kind: runs(kind, name), KINDS):
        case = Case(kind, (0, 8, 6), dtype=torch.float32, device=DEVICES[impl])
        for actual, expected in zip(case.call(impl, name), case.call("plain", name), strict=True):
            assert actual.shape == expected.shape
            if name.endswith("_bwd"):
                assert not actual.any()


# Around the sides of tiles (12 x 32 and 6 x 16) and of packed blocks (192, 128, 512 and 768).
PRODUCTS = [(12, 128, 32), (13, 129, 33), (193, 257, 769), (5, 1, 16), (1, 7, 1), (191, 40, 17)]


@needs_cpp
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


@needs_cpp
@pytest.mark.parametrize("name", OPERATORS["cpp"])
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


@every_impl
def test_wrong_arguments_raise_with_words(impl):
    embed, device = namespace(impl).embed_fwd, DEVICES[impl]
    V, weight = torch.rand(2, 6, 5, device=device), torch.rand(3, 6, device=device)
    with pytest.raises(RuntimeError, match=r"weight_e must be \(3, 6\), got \(3, 4\)"):
        embed(V, weight[:, :4])
    with pytest.raises(RuntimeError, match="weight_e has the wrong dtype"):
        embed(V, weight.double())
    with pytest.raises(RuntimeError, match="weight_e must be contiguous"):
        embed(V, torch.rand(6, 3, device=device).t())
    with pytest.raises(RuntimeError, match="dense, by rows or by columns"):
        embed(torch.rand(2, 6, 10, device=device)[:, :, ::2], weight)


@pytest.mark.parametrize("impl", [param("cuda_host")])
def test_integers_are_refused(impl):
    with pytest.raises(RuntimeError, match="maps are float32, bfloat16 or float16"):
        namespace(impl).embed_fwd(torch.ones(2, 6, 5, dtype=torch.int32), torch.rand(3, 6))


@needs_cpp
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


@every_impl
def test_variance_survives_a_huge_mean(impl):
    """Statistics are centred: a mean of 1e4 does not eat a deviation of 1."""
    V, one = (torch.randn(4, 6, 500) + 1e4).to(DEVICES[impl]), torch.eye(6, device=DEVICES[impl])
    plain, fused = (namespace(name).embed_fwd for name in ("plain", impl))
    oracle, baseline, actual = (
        embed(V.to(dtype), one.to(dtype))[1][1]
        for embed, dtype in [(plain, torch.float64), (plain, torch.float32), (fused, torch.float32)]
    )
    check_budget(actual, baseline, oracle, "variance")
