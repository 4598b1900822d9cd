"""The losses against literal loops."""

import math

import pytest
import torch

from rga_fast.reid.training.losses import batch_hard_triplet, reid_losses


def loop_triplet(features, labels, margin):
    total = 0.0
    for a in range(len(labels)):
        positive, negative = 0.0, math.inf
        for b in range(len(labels)):
            distance = math.dist(features[a].tolist(), features[b].tolist())
            if labels[a] == labels[b]:
                positive = max(positive, distance)
            else:
                negative = min(negative, distance)
        total += max(0.0, margin + positive - negative)
    return total / len(labels)


@pytest.mark.parametrize("margin", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [5, 3, 5, 5, 9, 3, 5], [1, 2], [4, 4, 4]])
def test_triplet_equals_the_loop(labels, margin):
    torch.manual_seed(len(labels))
    labels = torch.tensor(labels)
    features = torch.randn(len(labels), 5, dtype=torch.float64)
    expected = loop_triplet(features, labels, margin)
    # An anchor alone in its identity is 1e-6 from itself, by the clamp.
    assert batch_hard_triplet(features, labels, margin).item() == pytest.approx(expected, abs=2e-6)


def test_triplet_gradient():
    torch.manual_seed(0)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    features = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: batch_hard_triplet(x, labels), features)


@pytest.mark.parametrize("scale", [1.0, 1e-7, 1e3])
def test_duplicates_have_finite_gradients(scale):
    labels = torch.tensor([0, 0, 1, 1])
    features = (torch.ones(4, 8) * scale).requires_grad_()
    batch_hard_triplet(features, labels).backward()
    assert features.grad.isfinite().all()


def test_one_identity_gives_zero_loss_and_gradient():
    features = torch.randn(4, 8, requires_grad=True)
    loss = batch_hard_triplet(features, torch.zeros(4, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert (features.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_features_are_compared_in_float32(dtype):
    """Far from the origin a low-precision distance would be mere noise."""
    torch.manual_seed(0)
    labels = torch.arange(4).repeat_interleave(4)
    features = (torch.randn(16, 32) + 20).to(dtype)
    expected = batch_hard_triplet(features.double(), labels)
    with torch.autocast("cpu", dtype=dtype):
        inside = batch_hard_triplet(features, labels)
        from_float32 = batch_hard_triplet(features.float(), labels)
    assert inside.dtype == torch.float32
    for loss in (inside, from_float32, batch_hard_triplet(features, labels)):
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_reid_losses_are_the_published_sum():
    torch.manual_seed(0)
    labels = torch.tensor([0, 0, 3, 3])
    features, logits = torch.randn(4, 6), torch.randn(4, 5)
    losses = reid_losses(features, logits, labels)
    target = torch.full((4, 5), 0.1 / 5)
    target[torch.arange(4), labels] += 0.9
    smoothed = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(losses.identity, smoothed)
    torch.testing.assert_close(losses.triplet, batch_hard_triplet(features, labels, 0.3))
    torch.testing.assert_close(losses.total, losses.identity + losses.triplet)
    assert reid_losses(features, logits.bfloat16(), labels).identity.dtype == torch.float32


def test_losses_compile_in_one_graph():
    labels = torch.tensor([0, 0, 1, 1])
    features, logits = torch.randn(4, 6), torch.randn(4, 2)
    compiled = torch.compile(reid_losses, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        tuple(compiled(features, logits, labels)), tuple(reid_losses(features, logits, labels))
    )


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (torch.randn(4), torch.zeros(4)),
        (torch.randn(4, 2), torch.zeros(3)),
        (torch.zeros(0, 2), torch.zeros(0)),
    ],
)
def test_wrong_shapes_are_named(features, labels):
    with pytest.raises(ValueError, match=r"features must be \(B, D\) and labels \(B,\)"):
        batch_hard_triplet(features, labels.long())
