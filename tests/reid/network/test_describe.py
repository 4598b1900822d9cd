"""A network in words."""

import pytest
import torch

from rga_fast.reid.network.describe import describe_network
from rga_fast.reid.network.reidnet import ReidNet


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"attention": "none"}, "resnet18 (base width 8) at 32x16, {:.2f} M parameters, on cpu, "),
        ({"stages": (1, 2), "impl": "torch"}, "\nrga-sc after stages 1, 2: torch (asked for"),
    ],
)
def test_size_and_attention(options, text):
    model = ReidNet("resnet18", 3, (32, 16), width=8, **options)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert text.format(count) in describe_network(model, torch.device("cpu"))
