"""RGA after stages of networks of other families."""

import copy
import pickle

import pytest
import torch
from torch import nn

import rga_fast
from rga_fast import RGA, insert_rga, map_sizes

IMAGE = (32, 16)


def conv(inputs, outputs, kernel=3, stride=1, groups=1):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


class InstanceBatchNorm(nn.Module):
    """IBN-a: instance normalisation of half of the channels, batch normalisation of the rest."""

    def __init__(self, channels):
        super().__init__()
        self.half = channels // 2
        self.IN = nn.InstanceNorm2d(self.half, affine=True)
        self.BN = nn.BatchNorm2d(channels - self.half)

    def forward(self, x):
        first, second = x.split([self.half, x.shape[1] - self.half], dim=1)
        return torch.cat([self.IN(first), self.BN(second)], dim=1)


class IBNBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, stride=stride), InstanceBatchNorm(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.down = conv(inputs, outputs, 1, stride)

    def forward(self, x):
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + self.down(x)).relu()


class ResNetIBN(nn.Module):
    stages = ("layer1", "layer2")

    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 8, stride=2)
        self.layer1 = nn.Sequential(IBNBlock(8, 16, 1), IBNBlock(16, 16, 1))
        self.layer2 = nn.Sequential(IBNBlock(16, 24, 2))

    def forward(self, x):
        return self.layer2(self.layer1(self.conv1(x))).mean((2, 3))


class InvertedResidual(nn.Sequential):
    def __init__(self, inputs, outputs, stride):
        super().__init__(
            conv(inputs, 2 * inputs, 1), nn.BatchNorm2d(2 * inputs), nn.ReLU6(),
            conv(2 * inputs, 2 * inputs, 3, stride, 2 * inputs), nn.BatchNorm2d(2 * inputs),
            nn.ReLU6(), conv(2 * inputs, outputs, 1), nn.BatchNorm2d(outputs),
        )  # fmt: skip


class MobileNet(nn.Module):
    stages = ("features.2", "features.3")

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            conv(3, 8, stride=2),
            nn.ReLU6(),
            InvertedResidual(8, 12, 1),
            InvertedResidual(12, 20, 2),
        )

    def forward(self, x):
        return self.features(x).mean((2, 3))


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.depthwise = conv(channels, channels, 7, groups=channels)
        self.norm, self.wide = nn.LayerNorm(channels), nn.Linear(channels, 2 * channels)
        self.narrow = nn.Linear(2 * channels, channels)

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.narrow(nn.functional.gelu(self.wide(y))).permute(0, 3, 1, 2)


class ConvNeXtStage(nn.Module):
    """Not a `Sequential`."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.downsample = nn.Conv2d(inputs, outputs, stride, stride)
        self.blocks = nn.ModuleList([ConvNeXtBlock(outputs), ConvNeXtBlock(outputs)])

    def forward(self, x):
        x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


class ConvNeXt(nn.Module):
    stages = ("body.0", "body.1")

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(ConvNeXtStage(3, 16, 4), ConvNeXtStage(16, 24, 2))

    def forward(self, x):
        return self.body(x).mean((2, 3))


class OmniScaleBlock(nn.Module):
    """OSNet's: streams of 1 to 3 light convolutions, fused by one gate that they share."""

    def __init__(self, channels):
        super().__init__()
        self.streams = nn.ModuleList(
            nn.Sequential(*(conv(channels, channels, groups=channels) for _ in range(depth)))
            for depth in (1, 2, 3)
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), conv(channels, channels, 1), nn.Sigmoid()
        )

    def forward(self, x):
        outs = [stream(x) for stream in self.streams]
        return (x + sum(out * self.gate(out) for out in outs)).relu()


class OSNet(nn.Module):
    stages = ("conv2", "conv3")

    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 16, stride=2)
        self.conv2 = OmniScaleBlock(16)
        self.conv3 = nn.Sequential(nn.AvgPool2d(2), OmniScaleBlock(16))

    def forward(self, x):
        return self.conv3(self.conv2(self.conv1(x))).mean((2, 3))


FAMILIES = [ResNetIBN, MobileNet, ConvNeXt, OSNet]


@pytest.fixture(params=FAMILIES, ids=lambda family: family.__name__)
def family(request):
    torch.manual_seed(0)
    return request.param


def test_attention_stands_after_the_stages(family):
    """What leaves a stage is its former output, with RGA; former parameters keep their names."""
    plain = family().double().eval()
    names = family.stages
    sizes = map_sizes(plain, names, IMAGE)
    model = insert_rga(copy.deepcopy(plain), sizes, zero_init_gate=True)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in plain.state_dict().items())
    assert sum(isinstance(m, RGA) for m in model.modules()) == len(names)
    x = torch.randn(2, 3, *IMAGE, dtype=torch.float64)
    outputs = {}
    for which, network in (("plain", plain), ("with", model)):
        stage = network.get_submodule(names[0])
        stage.register_forward_hook(lambda m, a, out, which=which: outputs.update({which: out}))
        network(x)
    # Gates that begin constant are 1/2 in both branches.
    torch.testing.assert_close(outputs["with"], outputs["plain"] / 4)


def test_it_trains_and_travels(family):
    model = insert_rga(family(), map_sizes(family(), family.stages, IMAGE), variant="s")
    x = torch.randn(4, 3, *IMAGE)
    model(x).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    model.eval()
    copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        for network in (copied, pickled):
            assert torch.equal(network(x), model(x))
            attention = next(m for m in network.modules() if isinstance(m, RGA))
            before = network(x)
            attention.W_spatial[4].bias += 3
            assert not torch.allclose(network(x), before), "the copy runs its own attention"
        exported = torch.export.export(model, (x,)).module()(x)
        torch.testing.assert_close(exported, model(x))


def test_probing_leaves_no_trace():
    model = ResNetIBN().train()
    model.layer2.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert map_sizes(model, ["layer1", "layer2"], IMAGE) == {
        "layer1": (16, 16, 8),
        "layer2": (24, 8, 4),
    }
    assert model.layer1.training
    assert not model.layer2.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not model.layer1._forward_hooks


def test_what_cannot_be_inserted():
    model = ResNetIBN()
    with pytest.raises(ValueError, match="no stage 'layer9'; at its top are conv1, layer1, layer2"):
        insert_rga(model, {"layer1": (16, 16, 8), "layer9": (1, 1, 1)})
    assert not any(isinstance(m, RGA) for m in model.modules())
    insert_rga(model, {"layer1": (16, 16, 8)})
    with pytest.raises(ValueError, match="layer1 has a child 'rga' already"):
        insert_rga(model, {"layer1": (16, 16, 8)})
    with pytest.raises(ValueError, match=r"conv1 must return one map .*got \[\]"):
        map_sizes(Unused(), ["conv1"], IMAGE)
    shared = nn.Sequential(conv(3, 3), conv(3, 3))
    shared[1] = shared[0]
    with pytest.raises(ValueError, match="one module at several places: 0, 1"):
        map_sizes(shared, ["0"], IMAGE)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 3)

    def forward(self, x):
        return x


def test_published_names_and_device():
    model = insert_rga(ResNetIBN().to("meta"), {"layer1": (16, 16, 8)}, impl="torch")
    assert model.layer1.rga.gg_spatial[0].weight.device.type == "meta"
    assert model.layer1.rga.impl == "torch"
    assert rga_fast.insert_rga is insert_rga
