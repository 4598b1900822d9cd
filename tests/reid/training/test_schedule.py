"""The learning rate at the published values."""

import math

import pytest
import torch
from torch import nn

from rga_fast.reid.config import RECIPES
from rga_fast.reid.training.schedule import (
    cosine_rate,
    make_optimizer,
    set_learning_rate,
    step_rate,
)

PAPER = RECIPES["paper"]
RISE = {"base": PAPER.learning_rate, "start": PAPER.warmup_start, "warmup": PAPER.warmup_epochs}


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [
        (0, 8e-6),
        (1, 8e-6 + (8e-4 - 8e-6) / 20),
        (10, (8e-6 + 8e-4) / 2),
        (10.5, 8e-6 + (8e-4 - 8e-6) * 10.5 / 20),
        (20, 8e-4),
        (79.999, 8e-4),
        (80, 4e-4),
        (119, 4e-4),
        (120, 2e-4),
        (160, 1e-4),
        (200, 5e-5),
        (240, 2.5e-5),
        (280, 1.25e-5),
        (320, 6.25e-6),
        (359, 6.25e-6),
        (360, 3.125e-6),
        (599, 3.125e-6),
    ],
)
def test_published_rates(epoch, rate):
    assert step_rate(epoch, **RISE, milestones=PAPER.milestones) == pytest.approx(rate, rel=1e-12)


def test_published_schedule_has_600_epochs():
    assert PAPER.epochs == 600


def test_cosine_rates():
    def rate(epoch):
        return cosine_rate(epoch, epochs=12, base=1e-3, start=1e-5, warmup=2, final=1e-6)

    assert rate(0) == pytest.approx(1e-5)
    assert rate(1) == pytest.approx((1e-5 + 1e-3) / 2)
    assert rate(2) == pytest.approx(1e-3)
    assert rate(7) == pytest.approx((1e-3 + 1e-6) / 2)
    assert rate(4.5) == pytest.approx(1e-6 + (1e-3 - 1e-6) * (1 + math.sqrt(0.5)) / 2)
    assert rate(12) == rate(13) == pytest.approx(1e-6)
    rates = [rate(2 + i / 100) for i in range(1000)]
    assert rates == sorted(rates, reverse=True)


def test_without_warmup_the_rate_starts_at_its_base():
    rise = {"base": 1e-7, "start": 8e-6, "warmup": 0}
    assert cosine_rate(0, epochs=5, **rise) == 1e-7
    assert step_rate(0, **rise, milestones=()) == 1e-7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch": -1, "epochs": 5}, "negative"),
        ({"epoch": 0, "epochs": 5, "warmup": -1}, "negative"),
        ({"epoch": 0, "epochs": 5, "warmup": 5}, "end before"),
        ({"epoch": 0, "epochs": 5, "warmup": 1, "base": 1e-6}, "rise"),
    ],
)
def test_impossible_schedules_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        cosine_rate(**RISE | {"warmup": 0} | options)


def test_adam_decays_every_trained_parameter():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model[1].bias.requires_grad_(False)
    optimizer = make_optimizer(model, PAPER.learning_rate, PAPER.weight_decay)
    (group,) = optimizer.param_groups
    assert type(optimizer) is torch.optim.Adam
    assert (group["lr"], group["weight_decay"], group["betas"]) == (8e-4, 5e-4, (0.9, 0.999))
    assert not group["decoupled_weight_decay"]
    assert {id(p) for p in group["params"]} == {
        id(p) for p in model.parameters() if p is not model[1].bias
    }
    set_learning_rate(optimizer, 0.25)
    assert group["lr"] == 0.25


def test_step_equals_adams_formula():
    """One step from zero moments: sign(g + decay * w) * lr, whatever the size of the gradient."""
    weight = nn.Linear(1, 1, bias=False).double()
    before = weight.weight.item()
    optimizer = make_optimizer(weight, learning_rate=0.5, weight_decay=0.1)
    weight.weight.grad = torch.full((1, 1), 3.0, dtype=torch.float64)
    optimizer.step()
    gradient = 3 + 0.1 * before
    expected = before - 0.5 * gradient / (abs(gradient) + 1e-8)
    assert weight.weight.item() == pytest.approx(expected, rel=1e-12)
