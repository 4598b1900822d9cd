"""Networks of timm as backbones."""

import pytest
import torch

from rga_fast import RGA
from rga_fast.reid.config import Config
from rga_fast.reid.network import timm_backbone
from rga_fast.reid.network.reidnet import ReidNet


@pytest.fixture
def _timm():
    try:
        import timm  # noqa: F401
    except Exception as error:
        pytest.skip(f"timm cannot be imported here: {error}")


@pytest.mark.usefixtures("_timm")
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto"])
def test_attention_follows_the_stages_of_timms_networks(name):
    torch.manual_seed(0)
    model = ReidNet(f"timm:{name}", 5, (64, 32), stages=(2, 4), zero_init_gate=True)
    output = model(torch.randn(4, 3, 64, 32))
    assert output.before_neck.shape == (4, model.feature_dim)
    assert list(model.attention) == [2, 4]
    assert all(isinstance(m, RGA) for m in model.attention.values())
    output.logits.square().mean().backward()
    assert all(p.grad is not None for m in model.attention.values() for p in m.parameters())
    attention = {id(p) for m in model.attention.values() for p in m.parameters()}
    trunk = {id(p) for m in model.backbone.trunk.values() for p in m.parameters()}
    assert not attention & trunk
    plain = ReidNet(f"timm:{name}", 5, (64, 32), attention="none").backbone.state_dict()
    assert plain.keys() <= model.backbone.state_dict().keys()


@pytest.mark.usefixtures("_timm")
def test_what_timm_does_not_have():
    with pytest.raises(ValueError, match="timm has no 'resnet5'; near it: "):
        ReidNet("timm:resnet5", 5, (64, 32))
    with pytest.raises(ValueError, match="attention after"):
        ReidNet("timm:resnet18", 5, (64, 32), stages=(1, 9))


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ImportError, match=r'pip install "rga-fast\[timm\]"'):
        timm_backbone.TimmBackbone("resnet18", (64, 32), (), lambda *_: None)


def test_the_field_takes_names_of_both():
    assert Config(arch="timm:convnext_atto").arch == "timm:convnext_atto"
    for wrong in ("resnet51", "timm:"):
        with pytest.raises(ValueError, match=r"arch must be one of resnet18, .* or timm:NAME"):
            Config(arch=wrong)
