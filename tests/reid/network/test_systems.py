"""The systems that the paper compares RGA with: shapes, sizes, published forms, training."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rga_fast import cli
from rga_fast.reid.checkpoint import make_network
from rga_fast.reid.config import RECIPES
from rga_fast.reid.data.datasets import open_dataset
from rga_fast.reid.data.images import read_image
from rga_fast.reid.network.attention import FAMILIES, NAMES, SYSTEMS, TABLE_3, make_attention, rga
from rga_fast.reid.network.reidnet import ReidNet
from rga_fast.reid.synth import write_dataset
from rga_fast.reid.training.step import Training
from rga_fast.testing import STAGES, make_map

PEERS = [name for name in SYSTEMS if name not in rga.SYSTEMS]
BRIEF = [name for name in rga.SYSTEMS if rga.OPTIONS[name].keys() == {"variant"}] + PEERS


def randomised(module: nn.Module) -> nn.Module:
    """In float64, without a weight that is zero or one by its initialisation."""
    generator = torch.Generator().manual_seed(0)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            bound = max(1, parameter[0].numel() if parameter.ndim > 1 else 1) ** -0.5
            draw = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_((2 * draw - 1) * 2 * bound)
    return module


def gradients(call, x: Tensor, module: nn.Module) -> list[Tensor]:
    """The output of `call(x)`, then what flows back to `x` and every parameter of `module`."""
    x = x.clone().requires_grad_()
    out = call(x)
    weight = make_map(tuple(out.shape), dtype=out.dtype, seed=7)
    return [out, *torch.autograd.grad((out * weight).sum(), [x, *module.parameters()])]


@pytest.mark.parametrize(
    "name",
    [name if name in BRIEF else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_every_system_after_every_stage(name):
    torch.manual_seed(0)
    for channels, *size in STAGES.values():
        module = make_attention(name, channels, tuple(size))
        x = make_map((2, channels, *size), layout="channels_last").requires_grad_()
        out = module(x)
        assert out.shape == x.shape
        assert out.isfinite().all()
        out.square().sum().backward()
        assert x.grad.isfinite().all()
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", TABLE_3)
def test_parameters_beside_table_3(name):
    """Equal to the decimal that is printed, but for the two whose docstrings say why not."""
    with torch.device("meta"):
        baseline = ReidNet(attention="none")
        added = [make_attention(name, channels, tuple(s)) for channels, *s in STAGES.values()]
    count = sum(p.numel() for module in (baseline, *added) for p in module.parameters())
    expected = TABLE_3 | {"cbam-s": 25.1, "se": 25.8}
    assert round(count / 1e6, 1) == expected[name]


def test_counts_of_published_forms():
    """The two that differ from Table 3 have the parameters of their own papers."""

    def count(name: str) -> int:
        return sum(p.numel() for p in make_attention(name, 256, (64, 32)).parameters())

    assert count("cbam-s") == 2 * 7 * 7 + 2  # the filter, and a normalisation of one map
    assert count("se") == 2 * 256 * 16 + 16 + 256


def test_names_of_the_weights():
    keys = {name: set(make_attention(name, 16, (4, 2)).state_dict()) for name in PEERS}
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    filters = {"filter.0.weight"} | {f"filter.1.{k}" for k in norm}
    shared = {"reduce.weight", "expand.weight"}
    embedding = {"embed.0.weight"} | {f"embed.1.{k}" for k in norm}
    affine = ("weight", "bias")
    spatial = embedding | {f"connect.{i}.{k}" for i in (0, 2) for k in affine}
    channel = embedding | {f"connect.{k}" for k in affine}
    assert keys == {
        "cbam-s": filters,
        "cbam-c": shared,
        "cbam-cs": {f"0.{k}" for k in shared} | {f"1.{k}" for k in filters},
        "se": {f"{layer}.{k}" for layer in ("reduce", "expand") for k in affine},
        "nl": {"embed.weight", "embed.bias", "W.0.weight"} | {f"W.1.{k}" for k in norm},
        "snl": {"key.weight", "value.weight"},
        "fc-s": spatial,
        "fc-c": channel,
        "fc-s//c": {f"spatial.{k}" for k in spatial} | {f"channel.{k}" for k in channel},
    }
    model = ReidNet("resnet18", 3, (32, 16), attention="se", width=4, stages=(2,))
    assert {k for k in model.state_dict() if ".rga_att" in k} == {
        f"backbone.rga_att2.{k}" for k in keys["se"]
    }


# The published forms, written with the operations of their papers


def literal_se(x: Tensor, m: nn.Module) -> Tensor:
    z = F.adaptive_avg_pool2d(x, 1).flatten(1)
    s = F.linear(z, m.reduce.weight.flatten(1), m.reduce.bias).relu()
    s = torch.sigmoid(F.linear(s, m.expand.weight.flatten(1), m.expand.bias))
    return x * s[:, :, None, None]


def literal_cbam_channel(x: Tensor, m: nn.Module) -> Tensor:
    def mlp(pooled: Tensor) -> Tensor:
        hidden = F.linear(pooled.flatten(1), m.reduce.weight.flatten(1)).relu()
        return F.linear(hidden, m.expand.weight.flatten(1))

    logit = mlp(F.adaptive_avg_pool2d(x, 1)) + mlp(F.adaptive_max_pool2d(x, 1))
    return x * torch.sigmoid(logit)[:, :, None, None]


def literal_cbam_spatial(x: Tensor, m: nn.Module) -> Tensor:
    pooled = torch.stack([x.mean(1), x.max(1).values], dim=1)
    y = F.conv2d(pooled, m.filter[0].weight, padding=3)
    y = F.batch_norm(y, None, None, m.filter[1].weight, m.filter[1].bias, training=True)
    return x * torch.sigmoid(y)


def literal_non_local(x: Tensor, m: nn.Module) -> Tensor:
    V = x.flatten(2)  # (B, C, n)
    weights, biases = m.embed.weight.flatten(1).chunk(3), m.embed.bias.chunk(3)
    theta, phi, g = (w @ V + b[:, None] for w, b in zip(weights, biases, strict=True))
    f = torch.exp(theta.transpose(1, 2) @ phi)  # (B, n, n)
    y = g @ (f / f.sum(dim=2, keepdim=True)).transpose(1, 2)
    z = m.W[0].weight.flatten(1) @ y
    z = F.batch_norm(z, None, None, m.W[1].weight, m.W[1].bias, training=True)
    return x + z.view_as(x)


def literal_simplified_non_local(x: Tensor, m: nn.Module) -> Tensor:
    V = x.flatten(2)
    f = torch.exp(m.key.weight.flatten(1) @ V)  # (B, 1, n)
    values = m.value.weight.flatten(1) @ V  # of every position, before they are summed
    return x + (values * f / f.sum(dim=2, keepdim=True)).sum(dim=2)[:, :, None, None]


def literal_fc_spatial(x: Tensor, m: nn.Module) -> Tensor:
    first, _, second = m.connect
    v = _embedded(x, m).mean(dim=1)
    a = torch.sigmoid((v @ first.weight.T + first.bias).relu() @ second.weight.T + second.bias)
    return (x.flatten(2) * a[:, None]).view_as(x)


def literal_fc_channel(x: Tensor, m: nn.Module) -> Tensor:
    a = torch.sigmoid(_embedded(x, m).mean(dim=2) @ m.connect.weight.T + m.connect.bias)
    return x * a[:, :, None, None]


def _embedded(x: Tensor, m: nn.Module) -> Tensor:
    E = m.embed[0].weight.flatten(1) @ x.flatten(2)
    norm = m.embed[1]
    return F.batch_norm(E, None, None, norm.weight, norm.bias, training=True).relu()


LITERAL = {
    "se": literal_se,
    "cbam-c": literal_cbam_channel,
    "cbam-s": literal_cbam_spatial,
    "cbam-cs": lambda x, m: literal_cbam_spatial(literal_cbam_channel(x, m[0]), m[1]),
    "nl": literal_non_local,
    "snl": literal_simplified_non_local,
    "fc-s": literal_fc_spatial,
    "fc-c": literal_fc_channel,
    "fc-s//c": lambda x, m: (
        (literal_fc_spatial(x, m.spatial) + literal_fc_channel(x, m.channel)) / 2
    ),
}


@pytest.mark.parametrize("size", [(8, 4), (5, 3), (1, 1)])
@pytest.mark.parametrize("name", PEERS)
def test_a_system_is_its_published_form(name, size):
    module = randomised(make_attention(name, 32, size))
    x = make_map((4, 32, *size), dtype=torch.float64, layout="strided")
    expected = gradients(lambda x: LITERAL[name](x, module), x, module)
    assert_close(gradients(module, x, module), expected)


def test_systems_as_in_timm():
    """Beside the literal forms above; timm needs a torchvision that fits the torch at hand."""
    try:
        from timm.layers import SEModule
        from timm.layers.cbam import CbamModule
    except Exception as error:
        pytest.skip(f"timm cannot be imported: {type(error).__name__}: {error}")
    x = make_map((4, 32, 8, 4), dtype=torch.float64)
    theirs = CbamModule(32, rd_ratio=1 / 8, rd_divisor=1)
    pairs = [("se", SEModule(32, rd_channels=2)), ("cbam-cs", theirs)]
    pairs += [("cbam-c", theirs.channel), ("cbam-s", theirs.spatial)]
    for name, peer in pairs:
        ours = randomised(make_attention(name, 32, (8, 4)))
        peer = copy.deepcopy(peer).double()
        with torch.no_grad():
            for ours_p, peer_p in zip(ours.parameters(), peer.parameters(), strict=True):
                peer_p.copy_(ours_p)
        assert_close(gradients(ours, x, ours), gradients(peer, x, peer))


@pytest.mark.parametrize("name", ["nl", "snl"])
def test_non_local_starts_as_the_identity(name):
    x = make_map((2, 16, 4, 2))
    assert torch.equal(make_attention(name, 16, (4, 2))(x), x)


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that an operator returns while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.elements = max([self.elements, *(t.numel() for t in tensors)])
        return result


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["nl", "snl"])
def test_non_local_forms_no_matrix_of_all_pairs(name, layout):
    module = make_attention(name, 16, (64, 32))
    x = make_map((2, 16, 64, 32), layout=layout).requires_grad_()
    with Largest() as largest:
        module(x).sum().backward()
    assert largest.elements <= x.numel()


def test_other_systems_take_no_options():
    with pytest.raises(ValueError, match="'se' takes no options, got ratio"):
        make_attention("se", 16, (4, 2), ratio=4)
    with pytest.raises(ValueError, match=r"name must be one of 'none', .*, got 'cbam'"):
        make_attention("cbam", 16, (4, 2))


# In a network


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A batch of the synthetic set, four identities twice: images (8, 3, 32, 16), labels."""
    root = tmp_path_factory.mktemp("people") / "set"
    write_dataset(root, 6, size=(32, 16), workers=1)
    train = open_dataset(root).train
    found: dict[int, list[int]] = {}
    for index, label in enumerate(train.labels):
        found.setdefault(int(label), []).append(index)
    chosen = [index for label in sorted(found)[:4] for index in found[label][:2]]
    pixels = np.stack([read_image(train.file(i), (32, 16)) for i in chosen])  # (8, 32, 16, 3)
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 110) / 60
    return images, torch.arange(4).repeat_interleave(2)


@pytest.mark.parametrize("name", BRIEF)
def test_every_system_trains(name, people):
    config = RECIPES["small"].replace(
        attention=name, stages=(1, 2), height=32, width=16, base_width=8, identities_per_batch=4
    )
    torch.manual_seed(0)
    training = Training(make_network(config, 4), config, torch.device("cpu"))
    training.start_epoch(0)
    before = {k: v.clone() for k, v in training.model.named_parameters()}
    losses = [training.step(*people, 2e-3).read().loss for _ in range(12)]
    assert min(losses[-3:]) < 0.8 * losses[0], losses
    still = [k for k, v in training.model.named_parameters() if torch.equal(v, before[k])]
    assert still == ["feat_bn.bias"]


def test_the_command_line_lists_and_takes_them(capsys):
    assert cli.main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for family, systems in FAMILIES.items():
        (line,) = [line for line in lines if line.startswith(f"  {family} ")]
        assert all(name in line for name in systems if name in BRIEF)
    arguments = ["train", "--attention", "cbam-cs"]
    parsed = cli._parser(arguments).parse_args(arguments)
    assert parsed.attention == "cbam-cs"
