"""A field is declared once; configurations and checkpoints of earlier versions still load."""

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from rga_fast import cli
from rga_fast.reid.checkpoint import FORMAT, load_checkpoint, make_network, open_trained
from rga_fast.reid.config import Config
from rga_fast.reid.field import DECAY, declare, fields_of

FORMER = Path(__file__).with_name("former_config.yaml")  # written before fields were renamed
CHANGED = {
    "data": ("a", "b"),
    "train_on_val": False,
    "attention": "rga-s-no-appearance",
    "stages": (1, 2),
    "learning_rate": 2e-3,
    "clip_norm": 1.5,
    "schedule": "cosine",
}
# SHA-256 of the names and shapes of the weights, one a line, as the code of that time had them.
WEIGHTS = "ef17aba64393a705502e9268a7c2e2b11fe51ec939db4d811049418393e24181"


@dataclass(frozen=True)
class Example:
    """All kinds of fields."""

    rate: float | None = declare(None, "a decay", range=DECAY, option=True, metavar="X")
    sizes: tuple[int, ...] = declare((1, 2), "sizes", option=True, metavar="1,2", may_differ=True)
    mode: str = declare("a", "a mode", choices=("a", "b"), option=True)
    quick: bool = declare(False, "be quick", option=True)
    hidden: int = declare(3, "no option")


def test_a_declaration_is_everything_that_is_known():
    field = fields_of(Example)["sizes"]
    assert (field.kinds, field.default, field.help) == ((tuple,), (1, 2), "sizes")
    assert (field.option, field.metavar, field.may_differ) == (True, "1,2", True)
    assert list(fields_of(Example)) == list(vars(Example()))
    assert fields_of(Example)["rate"].kinds == (float, type(None))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rate", 1.5, "config: rate must be a decay between 0 and 1, got 1.5"),
        ("mode", "c", "config: mode must be one of 'a', 'b', got 'c'"),
    ],
)
def test_values_are_checked(name, value, message):
    with pytest.raises(ValueError, match=message):
        fields_of(Example)[name].check(value)
    fields_of(Example)["rate"].check(None)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("rate", "1e-3", 1e-3),  # as YAML reads it
        ("rate", 1, 1.0),
        ("rate", None, None),
        ("sizes", [1, 2], (1, 2)),
        ("sizes", "3,4", (3, 4)),
        ("mode", False, "off"),
    ],
)
def test_values_are_converted(name, value, expected):
    converted = fields_of(Example)[name].convert(value)
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rate", "fast", "rate must be float or None, got 'fast'"),
        ("quick", 1, "quick must be bool, got 1"),
        ("hidden", True, "hidden must be int, got True"),
        ("sizes", "[", r"sizes: expected a value in YAML, got '\['"),
    ],
)
def test_values_of_another_type(name, value, message):
    with pytest.raises(ValueError, match=message):
        fields_of(Example)[name].convert(value)


def test_every_field_has_a_meaning_and_a_valid_default():
    for name, field in fields_of(Config).items():
        assert field.help, name
        field.check(field.default)


def test_options_are_generated(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    for option in (
        *("--data PATH", "--out DIR", "--recipe NAME", "--epochs N", "--seed S", "--fused"),
        *("--stages 1,2,3,4", "--pretrained FILE", "--amp {off,bf16,fp16}", "--channels-last"),
        *("--compile", "--cuda-graph", "--sync-bn", "--tensorboard", "--profile", "--dry-run"),
        *("--accumulate N", "--clip-norm X", "--ema DECAY", "--freeze-epochs N", "--resume PATH"),
        *("--impl {auto,reference,torch", "--attention NAME"),
    ):
        assert option in text
    for name, field in fields_of(Config).items():
        assert name in text
        assert field.help.split()[0] in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--stages", "1,3", "--sync-bn"], {"stages": [1, 3], "sync_bn": True}),
        (["--attention", "rga-cs"], {"attention": "rga-cs"}),
        (["--ema", "0.5", "--fused", "--data", "a", "--data", "b"], {"ema": 0.5, "impl": "auto"}),
        (["epochs=3", "--epochs", "4", "--amp", "bf16"], {"epochs": 4, "amp": "bf16"}),
    ],
)
def test_options_set_fields(arguments, expected, monkeypatch):
    shown = []
    monkeypatch.setattr("rga_fast.reid.training.dry_run.describe_run", shown.append)
    assert cli.main(["train", "--dry-run", *arguments]) == 0
    fields = yaml.safe_load(shown[0].to_yaml())
    assert {name: fields[name] for name in expected} == expected
    both = [os.path.abspath(name) for name in ("a", "b")]  # continued from another folder, too
    assert fields["data"] == (both if "a" in arguments else None)


def test_runs_continue_with_other_fields_of_where_and_how():
    config = Config()
    assert config.conflicts(config.replace(impl="auto", data="x", workers=1)) == []
    assert config.conflicts(config.replace(margin=0.5, cache="disk", seed=1)) == ["margin", "seed"]


def test_a_former_configuration_loads():
    config = Config.load(FORMER)
    assert {name: getattr(config, name) for name in CHANGED} == CHANGED
    kept = yaml.safe_load(FORMER.read_text())
    for name, value in yaml.safe_load(config.to_yaml()).items():
        assert name in CHANGED or value == kept.get(name, getattr(Config(), name))


def test_a_former_name_on_the_command_line(monkeypatch):
    shown = []
    monkeypatch.setattr("rga_fast.reid.training.dry_run.describe_run", shown.append)
    assert cli.main(["train", "--dry-run", "val_trains=false", "variant=cs"]) == 0
    assert (shown[0].train_on_val, shown[0].attention) == (False, "rga-cs")


@pytest.fixture
def former(tmp_path):
    """A checkpoint with the fields of that time."""
    fields = yaml.safe_load(FORMER.read_text())
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    model = make_network(Config.load(FORMER), 3).state_dict()
    text = "\n".join(f"{name} {tuple(value.shape)}" for name, value in sorted(model.items()))
    assert hashlib.sha256(text.encode()).hexdigest() == WEIGHTS
    state = {"num_classes": 3, "epoch": 2, "step": 0, "model": model, "optimizer": {}}
    path = tmp_path / "last.pt"
    torch.save({"format": FORMAT, "config": fields, "scaler": {}, "ema": None, **state}, path)
    return path, model


def test_a_former_checkpoint_opens(former):
    path, weights = former
    saved = load_checkpoint(path)
    assert (saved.epoch, saved.num_classes) == (2, 3)
    trained = open_trained(path, "cpu", impl="torch")
    assert trained.epoch == 2
    assert dataclasses.replace(trained.config, impl="reference") == Config.load(FORMER)
    assert not trained.network.training
    for name, value in trained.network.state_dict().items():
        assert torch.equal(value, weights[name])
    assert trained.network(torch.zeros(1, 3, 32, 16)).after_neck.shape == (1, 64)


def test_open_trained_takes_the_averaged_weights(former, tmp_path):
    path, _ = former
    fields = torch.load(path, weights_only=True)
    fields["ema"] = {name: torch.ones_like(value) for name, value in fields["model"].items()}
    torch.save(fields, path)
    assert open_trained(path, "cpu").network.cls.weight.eq(1).all()
    fields["ema"].pop("cls.weight")
    torch.save(fields, path)
    with pytest.raises(ValueError, match="weights of another architecture"):
        open_trained(path, "cpu")


def test_a_trained_network_opens_at_another_size(former):
    """Its relations are resampled; by `size` as by the fields."""
    path, _ = former
    network = open_trained(path, "cpu", size=(64, 32)).network
    assert network(torch.zeros(2, 3, 64, 32)).after_neck.shape == (2, 64)
    by_fields = open_trained(path, "cpu", height=64, width=32).network
    for name, value in network.state_dict().items():
        assert torch.equal(value, by_fields.state_dict()[name]), name
