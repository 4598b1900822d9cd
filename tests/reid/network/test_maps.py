"""The values and affinities that are drawn are those by which the attention works."""

import pytest
import torch
from torch import nn

from rga_fast import reference
from rga_fast.reid.network.attention import SYSTEMS, make_attention
from rga_fast.reid.network.maps import affinities, attention_values, maps_before_attention
from rga_fast.reid.network.reidnet import ReidNet

H, W, C = 6, 4, 16


def attention_and_map(name):
    torch.manual_seed(0)
    module = make_attention(name, C, (H, W)).double().eval()
    for part in module.modules():  # as after a training: nothing is still zero
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
    if name == "snl":
        nn.init.normal_(module.value.weight)
    return module, torch.randn(3, C, H, W, dtype=torch.float64)


@pytest.mark.parametrize("name", SYSTEMS)
def test_attention_values_are_the_factors(name):
    module, x = attention_and_map(name)
    values = attention_values(module, x)
    spatial, channel = values.get("spatial"), values.get("channel")
    with torch.no_grad():
        if name == "nl":
            assert not values
            return
        if name == "snl":
            mean = (x * spatial).sum((2, 3), keepdim=True)
            expected = x + module.value(mean)
            assert not torch.allclose(expected, x)
        elif "s//c" in name:
            expected = (x * spatial + x * channel) / 2
        else:
            expected = x
            for factor in values.values():
                expected = expected * factor
        torch.testing.assert_close(module(x), expected)
    assert spatial is None or spatial.shape == (3, 1, H, W)
    assert channel is None or channel.shape == (3, C, 1, 1)


def full_affinities(module, x):
    """All of R = theta^T phi, literally."""
    if module.variant == "cs":
        x = x * module.attention_values(x)["channel"]
    branch, V = module.branch("spatial"), x.flatten(2)
    theta = V if branch.theta is None else reference.apply(branch.theta, V)
    phi = theta if branch.phi is None else reference.apply(branch.phi, V)
    return theta.transpose(1, 2) @ phi


@pytest.mark.parametrize("name", SYSTEMS)
@torch.no_grad()
def test_affinities_are_rows_of_the_matrix(name):
    module, x = attention_and_map(name)
    rows = affinities(module, x, torch.tensor([7, 0, 23]))
    related = name == "nl" or (
        name.startswith("rga") and name.split("-")[1] != "c" and "no-relations" not in name
    )
    assert (rows is not None) == related
    if not related:
        return
    assert rows.shape == (3, 3, H, W)
    every = affinities(module, x, torch.arange(H * W)).flatten(2)
    torch.testing.assert_close(every[:, [7, 0, 23]], rows.flatten(2))
    if name == "nl":  # the output follows from them
        g = module.embed(x).flatten(2).chunk(3, dim=1)[2]
        y = (every @ g.transpose(1, 2)).transpose(1, 2).unflatten(2, (H, W))
        torch.testing.assert_close(module(x), x + module.W(y))
    else:
        torch.testing.assert_close(every, full_affinities(module, x))


def test_maps_before_attention():
    torch.manual_seed(0)
    network = ReidNet("resnet18", 5, (32, 16), stages=(2, 4), width=8).train()
    images = torch.randn(2, 3, 32, 16)
    maps = maps_before_attention(network, images)
    assert network.training
    assert network.backbone.rga_att2.training
    assert not network.backbone.rga_att2._forward_pre_hooks
    network.eval()
    backbone = network.backbone
    with torch.no_grad():
        x = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(images))))
        torch.testing.assert_close(maps[2], backbone.layer2(backbone.layer1(x)))
    assert list(maps) == [2, 4]
    baseline = ReidNet("resnet18", 5, (32, 16), attention="none", width=8)
    assert maps_before_attention(baseline, images) == {}
