"""The public functions, and the promise that the affinity matrix is never held."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rga_fast
from rga_fast import reference
from rga_fast.testing import ABLATIONS, make_map, make_rga


def make_embeddings(B=2, c=5, n=13, m=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    theta, phi, weight = (
        torch.randn(shape, generator=generator, dtype=dtype)
        for shape in [(B, c, n), (B, c, n), (m, 2 * n)]
    )
    return theta, phi, weight


@pytest.mark.parametrize("c", [1, 5])
@pytest.mark.parametrize("n", [1, 2, 13])
@pytest.mark.parametrize("B", [0, 1, 3])
def test_relation_embedding_equals_the_published_form(B, c, n):
    theta, phi, weight = make_embeddings(B, c, n)
    for other in (phi, theta):
        expected = reference.relation_embedding(theta, other, weight)
        torch.testing.assert_close(
            rga_fast.relation_embedding(theta, other, weight), expected, rtol=1e-11, atol=1e-12
        )


def test_relation_embedding_by_its_definition():
    """Node by node: the first n weights meet the row, the last n the column."""
    theta, phi, weight = make_embeddings()
    n = theta.shape[-1]
    Z = rga_fast.relation_embedding(theta, phi, weight)
    for i in range(n):
        row = torch.stack([(theta[0, :, i] * phi[0, :, j]).sum() for j in range(n)])
        column = torch.stack([(theta[0, :, j] * phi[0, :, i]).sum() for j in range(n)])
        torch.testing.assert_close(Z[0, :, i], weight @ torch.cat([row, column]))


def test_relation_embedding_gradcheck():
    inputs = [t.requires_grad_() for t in make_embeddings(n=6)]
    assert torch.autograd.gradcheck(rga_fast.relation_embedding, inputs)
    assert torch.autograd.gradcheck(
        lambda theta, weight: rga_fast.relation_embedding(theta, theta, weight),
        (inputs[0], inputs[2]),
    )


def test_affinity_gives_rows_of_the_matrix():
    theta, phi, _ = make_embeddings()
    R = theta.transpose(1, 2) @ phi
    torch.testing.assert_close(rga_fast.affinity(theta, phi, [4, 0, 4]), R[:, [4, 0, 4]])
    torch.testing.assert_close(rga_fast.affinity(theta, phi, torch.tensor([12])), R[:, 12:])
    assert rga_fast.affinity(theta, phi, []).shape == (2, 0, 13)


class Largest(TorchDispatchMode):
    """The largest number of elements in any tensor that an operator returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize(
    ("variant", "channels", "size"), [("s", 8, (24, 24)), ("c", 512, (2, 2))], ids=["s", "c"]
)
def test_no_tensor_of_n_by_n(variant, channels, size, ablation, training):
    module = make_rga(channels, size, variant, ablation).train(training)
    n = size[0] * size[1] if variant == "s" else channels
    largest = {}
    for impl in ("torch", "reference"):
        module.impl = impl
        x = make_map((1, channels, *size)).requires_grad_()
        with Largest() as mode:
            module(x).sum().backward()
        largest[impl] = mode.numel
    assert largest["torch"] < n * n
    if "relations" not in ABLATIONS[ablation]:  # the check does see the matrix where there is one
        assert largest["reference"] >= 2 * n * n


def test_wrong_arguments_are_named():
    theta, phi, weight = make_embeddings()
    embed, rows = rga_fast.relation_embedding, rga_fast.affinity
    with pytest.raises(ValueError, match=r"weight must be \(m, 2n\) = \(m, 26\), got \(4, 25\)"):
        embed(theta, phi, weight[:, 1:])
    with pytest.raises(ValueError, match=r"phi must have the shape of theta.*got \(2, 5, 12\)"):
        embed(theta, phi[..., 1:], weight)
    with pytest.raises(ValueError, match=r"theta must be \(B, c, n\), got \(5, 13\)"):
        embed(theta[0], phi[0], weight)
    with pytest.raises(ValueError, match=r"weight must have the dtype.*float64.*got torch.float32"):
        embed(theta, phi, weight.float())
    with pytest.raises(ValueError, match=r"phi must be on the device of theta, cpu, got meta"):
        embed(theta, phi.to("meta"), weight)
    with pytest.raises(ValueError, match=r"floating-point dtype, got torch.int64"):
        embed(theta.long(), phi, weight)
    with pytest.raises(TypeError, match=r"theta must be a tensor, got list"):
        embed([1.0], phi, weight)
    with pytest.raises(ValueError, match=r"nodes must be in \[0, 13\)|nodes must be in"):
        rows(theta, phi, [13])
    with pytest.raises(ValueError, match=r"nodes must be a list or 1-d integer tensor"):
        rows(theta, phi, torch.zeros(2, 2))
