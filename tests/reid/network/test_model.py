"""The network and its pretrained weights."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import save_file
from small_networks import small, torchvision_state
from torch import nn

from rga_fast.reid.network.reidnet import ReidNet
from rga_fast.reid.network.resnet import ARCHITECTURES
from rga_fast.reid.network.weights import load_pretrained


def million_parameters(**options) -> float:
    with torch.device("meta"):
        model = ReidNet(**options)
    return sum(p.numel() for p in model.parameters()) / 1e6


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        # torchvision's counts less its classifier of 1000 (+ bias), plus neck and classifier of 10.
        ("resnet18", 11_689_512 - 513_000 + 2 * 512 + 5_120),
        ("resnet34", 21_797_672 - 513_000 + 2 * 512 + 5_120),
        ("resnet50", 25_557_032 - 2_049_000 + 2 * 2048 + 20_480),
        ("resnet101", 44_549_160 - 2_049_000 + 2 * 2048 + 20_480),
    ],
)
def test_parameters_are_torchvisions(arch, expected):
    assert million_parameters(arch=arch, attention="none", num_classes=10) == expected / 1e6


def torchvision_keys(arch: str) -> set[str]:
    """The keys of torchvision's state dict, written down by its naming rule."""
    depths = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
    bottleneck = arch in ("resnet50", "resnet101")
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = {"conv1.weight", "fc.weight", "fc.bias"} | {f"bn1.{name}" for name in norm}
    for stage, depth in enumerate(depths.get(arch, (3, 4, 6, 3)), start=1):
        for b in range(depth):
            block = f"layer{stage}.{b}"
            for i in range(1, 4 if bottleneck else 3):
                keys |= {f"{block}.conv{i}.weight"} | {f"{block}.bn{i}.{name}" for name in norm}
            if b == 0 and (bottleneck or stage > 1):
                keys |= {f"{block}.downsample.0.weight"}
                keys |= {f"{block}.downsample.1.{name}" for name in norm}
    return keys


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_state_dict_has_torchvisions_and_the_published_keys(arch):
    with torch.device("meta"):
        keys = set(ReidNet(arch, stages=(2, 4)).state_dict())
    attention = {key for key in keys if key.startswith("backbone.rga_att")}
    head = {"feat_bn.weight", "feat_bn.bias", "cls.weight"}
    head |= {f"feat_bn.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    backbone = {f"backbone.{key}" for key in torchvision_keys(arch) if not key.startswith("fc.")}
    assert keys - attention == backbone | head
    assert {key.split(".")[1] for key in attention} == {"rga_att2", "rga_att4"}
    assert "backbone.rga_att2.gg_spatial.0.weight" in attention


@pytest.mark.parametrize("last_stride", [1, 2])
@pytest.mark.parametrize("size", [(64, 32), (61, 35), (33, 7), (1, 1), (50, 129)])
def test_attention_fits_the_maps_of_any_image_size(size, last_stride):
    model = small(size=size, last_stride=last_stride, width=4).eval()
    sizes = []
    for module in model.attention.values():
        module.register_forward_hook(lambda m, x, _: sizes.append((m.size, x[0].shape[2:])))
    with torch.no_grad():
        model(torch.randn(2, 3, *size))
    assert len(sizes) == 4
    assert all(built == tuple(came) for built, came in sizes)


def test_published_sizes_and_last_stride():
    with torch.device("meta"):
        model = ReidNet()
    attention = list(model.attention.values())
    assert [m.size for m in attention] == [(64, 32), (32, 16), (16, 8), (16, 8)]
    assert [m.channels for m in attention] == [256, 512, 1024, 2048]
    assert model.feature_dim == 2048


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("attention", ["none", "rga-s", "rga-sc"])
def test_forward_and_backward(arch, attention):
    torch.manual_seed(0)
    model = small(arch=arch, attention=attention)
    images = torch.randn(4, 3, 64, 32)
    output = model(images)
    width = model.feature_dim
    assert [tuple(t.shape) for t in output] == [(4, width), (4, width), (4, 5)]
    torch.testing.assert_close(
        output.after_neck, nn.functional.batch_norm(output.before_neck, None, None, training=True)
    )
    torch.testing.assert_close(output.logits, output.after_neck @ model.cls.weight.T)
    (output.logits.square().sum() + output.before_neck.sum()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == ["feat_bn.bias"]
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_evaluation_ranks_one_image_like_a_batch():
    torch.manual_seed(0)
    model = small().double()
    model(torch.randn(8, 3, 64, 32, dtype=torch.float64))  # some running statistics
    model.eval()
    images = torch.randn(3, 3, 64, 32, dtype=torch.float64)
    together, alone = model(images), model(images[:1])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[:1], b)
    assert model(images[:0]).logits.shape == (0, 5)


def test_attention_is_applied_after_its_stage():
    torch.manual_seed(0)
    model = small(stages=(3,)).eval()
    images = torch.randn(2, 3, 64, 32)
    backbone = model.backbone
    with torch.no_grad():
        x = backbone.maxpool(backbone.bn1(backbone.conv1(images)).relu())
        x = backbone.layer3(backbone.layer2(backbone.layer1(x)))
        x = backbone.layer4(backbone.rga_att3(x))
        torch.testing.assert_close(model(images).before_neck, x.mean(dim=(2, 3)))
        baseline = small(attention="none").eval()
        baseline.load_state_dict(model.state_dict(), strict=False)
        assert not torch.allclose(baseline(images).before_neck, x.mean(dim=(2, 3)))


def test_a_block_is_he_and_others_residual():
    """One bottleneck with stride, written out with functions: the stride is in the 3x3."""
    torch.manual_seed(0)
    model = small(arch="resnet50", attention="none").eval()
    block = model.backbone.layer2[0]
    x = torch.randn(2, 32, 16, 8).relu()
    conv = nn.functional.conv2d
    with torch.no_grad():
        y = block.bn1(conv(x, block.conv1.weight)).relu()
        y = block.bn2(conv(y, block.conv2.weight, stride=2, padding=1)).relu()
        y = block.bn3(conv(y, block.conv3.weight))
        shortcut = block.downsample[1](conv(x, block.downsample[0].weight, stride=2))
        torch.testing.assert_close(block(x), (y + shortcut).relu())


def test_initialisation():
    torch.manual_seed(0)
    model = ReidNet("resnet18", num_classes=200, attention="none")
    conv = model.backbone.layer3[0].conv1.weight  # fan in 128 * 9
    assert conv.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert conv.abs().max() > 4 * conv.std()  # normal, not uniform
    assert model.cls.weight.std().item() == pytest.approx(0.001, rel=0.02)
    assert model.cls.bias is None
    assert not model.feat_bn.bias.requires_grad
    for norm in (m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))):
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()


def test_attention_options_reach_the_modules():
    model = small(attention="rga-cs-symmetric", impl="reference", spatial_ratio=4, stages=(4, 1))
    assert list(model.attention) == [1, 4]
    assert {(m.variant, m.impl) for m in model.attention.values()} == {("cs", "reference")}
    keys = model.state_dict()
    assert not [key for key in keys if "phi_" in key]
    with pytest.raises(TypeError, match="ratio_of_nothing"):
        small(ratio_of_nothing=3)


def test_copies_and_pickles():
    torch.manual_seed(0)
    model = small().eval()
    images = torch.randn(2, 3, 64, 32)
    expected = model(images).after_neck
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(images).after_neck, expected)


@pytest.mark.slow
def test_compiles_in_one_graph():
    torch.manual_seed(0)
    model = small(stages=(2,))
    images = torch.randn(2, 3, 64, 32)
    expected = copy.deepcopy(model)(images)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(tuple(compiled(images)), tuple(expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "resnet52"}, "one of resnet18, .*'resnet52'"),
        ({"num_classes": 0}, "num_classes"),
        ({"size": (0, 32)}, "size must be"),
        ({"stages": (0, 1)}, "stages must be"),
        ({"stages": (2, 2)}, "stages must be"),
        ({"width": 0}, "width"),
        ({"last_stride": 3}, "last_stride"),
        ({"attention": "x"}, "name must be one of 'none', 'rga-s', .*'x'"),
        ({"impl": "x"}, "impl"),
    ],
)
def test_impossible_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


@pytest.mark.parametrize("shape", [(2, 3, 32, 64), (2, 1, 64, 32), (3, 64, 32)])
def test_images_of_another_shape_are_an_error(shape):
    with pytest.raises(ValueError, match=r"images must be \(B, 3, 64, 32\), got"):
        small()(torch.zeros(shape))


# Pretrained weights


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_pretrained_weights_load(tmp_path, suffix):
    state = torchvision_state()
    path = tmp_path / f"resnet18{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    model = small(stages=(1, 3))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    report = load_pretrained(model, path)
    after = model.state_dict()
    assert set(report.loaded) == {f"backbone.{k}" for k in state if not k.startswith("fc.")}
    assert sorted(report.unexpected) == ["fc.bias", "fc.weight"]
    assert {*report.missing, *report.left_out} == set(after) - set(report.loaded)
    assert all(
        torch.equal(after[f"backbone.{key}"], state[key]) for key in state if key[:2] != "fc"
    )
    assert all(torch.equal(after[key], before[key]) for key in report.missing + report.left_out)
    assert "rga_att1, rga_att3, feat_bn (not in the file), cls (not taken over)" in str(report)
    assert str(report).endswith("not used: fc")


def test_files_from_before_num_batches_tracked_load(tmp_path):
    state = {k: v for k, v in torchvision_state().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    model = small()
    load_pretrained(model, tmp_path / "old.pth")
    assert torch.equal(model.backbone.bn1.running_var, state["bn1.running_var"])


def test_other_architectures_are_errors_and_change_nothing(tmp_path):
    path = tmp_path / "weights.pth"
    model = small()
    before = copy.deepcopy(model.state_dict())
    state = torchvision_state()
    cases = {
        "unknown .*layer1.0.conv3.weight.*of another shape": torchvision_state("resnet50"),
        "unknown .*layer1.2.conv1": torchvision_state("resnet34"),  # a superset of the names
        "missing \\(1\\): layer4.1.bn2.bias": {
            k: v for k, v in state.items() if k != "layer4.1.bn2.bias"
        },
        r"of another shape \(1\): conv1.weight is \(8, 1, 7, 7\), expected \(8, 3, 7, 7\)": state
        | {"conv1.weight": torch.zeros(8, 1, 7, 7)},
        "missing .*unknown .*stem": {"stem": torch.zeros(2)},
        "missing": {},
    }
    for message, wrong in cases.items():
        torch.save(wrong, path)
        with pytest.raises(ValueError, match=message):
            load_pretrained(model, path)
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_files_that_hold_no_weights_are_errors(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(FileNotFoundError, match=name):
        load_pretrained(small(), path)
    with pytest.raises(FileNotFoundError):
        load_pretrained(small(), tmp_path)
    for content in (b"", b"not weights at all" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is not a file of weights"):
            load_pretrained(small(), path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "got a list"),
        (torch.zeros(2), "got a Tensor"),
        ({"epoch": 3, "model": {}}, "a dict with the keys epoch, model"),
        ({0: torch.zeros(2)}, "a dict with the keys 0"),
    ],
)
def test_other_objects_are_errors(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=message):
        load_pretrained(small(), tmp_path / "x.pth")
