"""Attention that begins constant or as published, and how its attention values are recorded."""

import copy

import pytest
import torch
from small_runs import SMALL, rows, run

from rga_fast.reid.network.reidnet import ReidNet
from rga_fast.reid.training.gates import gate_statistics
from rga_fast.reid.training.losses import reid_losses


def network(attention: str, **options) -> ReidNet:
    torch.manual_seed(0)
    net = ReidNet("resnet18", 4, (32, 16), attention=attention, width=4, **options)
    return net.double()


def first_loss(net: ReidNet, images: torch.Tensor) -> float:
    labels = torch.arange(4).repeat_interleave(2)
    out = net.train()(images)
    return reid_losses(out.before_neck, out.logits, labels).total.item()


def test_constant_attention_begins_with_the_loss_of_no_attention():
    """But for the epsilon of the normalisations that take its factor out; the published start is
    another network."""
    images = torch.randn(8, 3, 32, 16, dtype=torch.float64)
    baseline = network("none")
    expected = first_loss(copy.deepcopy(baseline), images)
    far = {}
    for zero in (True, False):
        net = network("rga-sc", stages=(1, 2, 3), zero_init_gate=zero)
        net.load_state_dict(baseline.state_dict(), strict=False)
        far[zero] = abs(first_loss(net, images) - expected)
    assert far[True] < 1e-3 * expected < far[False], (far, expected)


@pytest.mark.parametrize(("attention", "views"), [("rga-sc", 2), ("rga-c", 1), ("se", 0)])
def test_statistics_name_stage_and_branch(attention, views):
    options = {"zero_init_gate": True} if views else {}
    net = network(attention, stages=(1, 3), **options).train()
    images = torch.randn(4, 3, 32, 16, dtype=torch.float64)
    for _ in range(50):
        net(images)  # until the running statistics are those of the images
    modes = [m.training for m in net.modules()]
    statistics = gate_statistics(net, images)
    assert len(statistics) == 2 * 2 * views
    assert [m.training for m in net.modules()] == modes
    if views:
        assert statistics["gate1_channel_mean"] == statistics["gate3_channel_mean"] == 0.5
        assert statistics["gate1_channel_std"] == statistics["gate3_channel_std"] == 0


def test_a_run_records_its_gates(market, tmp_path):
    out = tmp_path / "run"
    options = ["--fused", "--data", market, "--out", out, *SMALL, "zero_init_gate=false"]
    assert run("train", *options) == 0
    recorded = rows(out, "gate1_spatial_mean")
    assert [row["epoch"] for row in recorded] == [1, 2]
    assert 0.3 < recorded[-1]["gate1_spatial_mean"] < 0.7
    assert recorded[-1]["gate1_spatial_std"] > 0
