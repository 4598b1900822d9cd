"""Weights in the forms in which they circulate: `load_pretrained` and `load_init`."""

import argparse
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_networks import random_weights, small, torchvision_state

from rga_fast.reid.network.weights import load_init, load_pretrained

STATE = torchvision_state()


def prefixed(prefix, state=None):
    return {f"{prefix}{key}": value for key, value in (STATE if state is None else state).items()}


def numbered(prefix=""):
    """The names after `nn.Sequential(*list(resnet.children())[:-1])`."""
    numbers = {"conv1": 0, "bn1": 1, **{f"layer{n}": 3 + n for n in (1, 2, 3, 4)}}
    renamed = {}
    for key, value in STATE.items():
        first, _, rest = key.partition(".")
        if first in numbers:
            renamed[f"{prefix}{numbers[first]}.{rest}"] = value
    return renamed


MOCO = prefixed("module.encoder_q.") | {
    **{key: value + 1 for key, value in prefixed("module.encoder_k.").items()},
    "module.queue": torch.zeros(4, 8),
}


DINO = {
    "student": prefixed("module.backbone.", {key: value + 1 for key, value in STATE.items()}),
    "teacher": prefixed("backbone."),
    "args": argparse.Namespace(lr=0.1),
}
SCORES = {"rank1": np.float64(0.9), "mAP": np.float32(0.8), "epoch": np.int64(3)}
FORMS = {
    "torchvision": (STATE, "", ""),
    "parallel": ({"state_dict": prefixed("module."), "epoch": 3}, "state_dict", "module."),
    "backbone": ({"model": prefixed("backbone.")}, "model", "backbone."),
    "base": ({"state_dict": prefixed("module.base.")}, "state_dict", "module.base."),
    "moco": ({"state_dict": MOCO, "arch": "resnet18"}, "state_dict", "module.encoder_q."),
    "dino": (DINO, "teacher", "backbone."),
    "numbered": (numbered("base."), "", "base."),
    "scores": ({"state_dict": STATE, **SCORES}, "state_dict", ""),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_pretrained_files(form, tmp_path):
    content, inside, prefix = FORMS[form]
    torch.save(content, tmp_path / "weights.pth")
    model = small(stages=(2,))
    report = load_pretrained(model, tmp_path / "weights.pth")
    assert (report.inside, report.prefix) == (inside, prefix)
    after = model.state_dict()
    assert len(report.loaded) == len(STATE) - 2
    assert all(torch.equal(after[k], STATE[k.removeprefix("backbone.")]) for k in report.loaded)
    assert len(str(report).splitlines()) <= 3


def test_the_second_network_of_a_file_is_named_as_not_used(tmp_path):
    torch.save({"state_dict": MOCO}, tmp_path / "moco.pth")
    text = str(load_pretrained(small(), tmp_path / "moco.pth"))
    assert "in state_dict, prefix 'module.encoder_q.' taken off" in text
    assert "not used: fc, module.encoder_k, module.queue" in text


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_trained_network_starts_another(suffix, tmp_path):
    """Attention and neck are taken, the classifier of other people is not, and that is reported."""
    trained = random_weights(small(num_classes=9))
    path = tmp_path / f"trained{suffix}"
    if suffix == ".pt":
        averaged = {key: value + 1 for key, value in trained.items()}
        torch.save({"format": "1", "config": {}, "model": averaged, "ema": trained}, path)
    else:
        save_file(prefixed("module.", trained), path)
    model = small(num_classes=5)
    classifier = model.cls.weight.clone()
    report = load_init(model, path)
    after = model.state_dict()
    assert set(report.loaded) == set(trained) - {"cls.weight"}
    assert all(torch.equal(after[key], trained[key]) for key in report.loaded)
    assert torch.equal(model.cls.weight, classifier)
    assert report.left_out == ["cls.weight"]
    assert "left as initialised: cls (not taken over)" in str(report)


def test_attention_that_does_not_fit_is_left_whole(tmp_path):
    """Of another image size: no module is loaded in part."""
    torch.save(random_weights(small(size=(32, 16))), tmp_path / "x.pth")
    model = small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_init(model, tmp_path / "x.pth")
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in report.other_shape)
    assert {key.split(".")[1] for key in report.other_shape} == {
        f"rga_att{n}" for n in (1, 2, 3, 4)
    }
    assert "rga_att4 (of another shape there)" in str(report)
    assert "feat_bn.weight" in report.loaded


def test_a_checkpoint_of_another_image_size(tmp_path):
    """Its relations are resampled, and all modules are loaded."""
    config = {"height": 32, "width": 16, "spatial_ratio": 8, "down_ratio": 8}
    content = {"config": config, "model": small(size=(32, 16)).state_dict()}
    torch.save(content, tmp_path / "x.pt")
    model = small()
    report = load_init(model, tmp_path / "x.pt")
    assert set(report.loaded) == set(model.state_dict()) - {"cls.weight"}
    assert "backbone.rga_att1.gg_spatial.0.weight" in report.reshaped


class TimmStub:
    """Two stages with timm's surroundings: their names begin otherwise than a ResNet's."""

    @staticmethod
    def list_models():
        return ["stub"]

    @staticmethod
    def create_model(name, **_):
        body = torch.nn.Sequential()
        body.add_module("stem", torch.nn.Conv2d(3, 8, 3, stride=4, padding=1))
        for stage in ("one", "two"):
            body.add_module(stage, torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, padding=1)))
        body.feature_info = [{"module": "one"}, {"module": "two"}]
        body.forward_features = body.forward
        return body


def test_networks_of_timm(tmp_path, monkeypatch):
    monkeypatch.setattr("rga_fast.reid.network.timm_backbone._timm", TimmStub)
    options = {"arch": "timm:stub", "stages": (2,)}
    weights = random_weights(small(**options))
    body = {k.removeprefix("backbone.body."): v for k, v in weights.items() if ".body." in k}
    torch.save({"model": weights}, tmp_path / "own.pt")
    torch.save({k: v for k, v in body.items() if "attention" not in k}, tmp_path / "timm.pth")
    report = load_init(small(**options), tmp_path / "own.pt")
    assert set(report.loaded) == set(weights) - {"cls.weight"}
    model = small(**options)
    report = load_pretrained(model, tmp_path / "timm.pth")
    assert torch.equal(model.state_dict()["backbone.body.two.0.weight"], body["two.0.weight"])
    assert {k.split(".")[3] for k in report.missing if k.startswith("backbone")} == {"attention"}


def test_a_trained_network_as_a_backbone(tmp_path):
    torch.save(random_weights(small()), tmp_path / "x.pth")
    model = small(stages=(2,))
    report = load_pretrained(model, tmp_path / "x.pth")
    assert "initialised: rga_att2, feat_bn, cls (not taken over)" in str(report)
    assert "not used: rga_att1, rga_att2, rga_att3, rga_att4, feat_bn, cls" in str(report)
    assert "backbone.rga_att2.gg_channel.0.weight" in load_init(model, tmp_path / "x.pth").loaded


def test_files_without_attention(tmp_path):
    torch.save(prefixed("backbone."), tmp_path / "x.pth")
    report = load_init(small(stages=(1,)), tmp_path / "x.pth")
    assert "rga_att1, feat_bn (not in the file)" in str(report)


def test_dimensions_of_size_one_are_added(tmp_path):
    trained = random_weights(small())
    name = "backbone.rga_att1.gg_channel.0.weight"
    flat = trained | {name: trained[name].flatten(1)}
    torch.save(flat, tmp_path / "x.pth")
    model = small()
    report = load_init(model, tmp_path / "x.pth")
    assert report.reshaped == [name]
    assert torch.equal(model.state_dict()[name], trained[name])
    assert "1 of them reshaped" in str(report)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("load", [load_pretrained, load_init])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(load, zipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in (Malicious(), STATE | {"x": Malicious()}, {"model": STATE, "args": Malicious()}):
        torch.save(content, "x.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match="is not a file of weights: UnpicklingError"):
            load(small(), "x.pth")
    assert not os.path.exists("executed")
    torch.load("x.pth", weights_only=False)  # elsewhere it would be run
    assert os.path.exists("executed")
