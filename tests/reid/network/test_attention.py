"""Attention by name: the systems, and the configurations from before they had names."""

import pytest
import torch

from rga_fast.reid.checkpoint import make_network
from rga_fast.reid.config import Config, parse_assignments
from rga_fast.reid.network.attention import rga
from rga_fast.reid.network.reidnet import ReidNet

FORMER = {"variant": "sc", "relations": True, "appearance": True, "embedding": "asymmetric"}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "rga-sc"),
        ({"variant": None}, "none"),
        ({"variant": None, "relations": False}, "none"),
        ({"variant": "s"}, "rga-s"),
        ({"variant": "s//c"}, "rga-s//c"),
        ({"relations": False}, "rga-sc-no-relations"),
        ({"relations": False, "embedding": "symmetric"}, "rga-sc-no-relations"),
        ({"appearance": False}, "rga-sc-no-appearance"),
        ({"embedding": "symmetric"}, "rga-sc-symmetric"),
        ({"variant": "c", "embedding": "none"}, "rga-c-no-embedding"),
        ({"appearance": False, "embedding": "none"}, "rga-sc-no-appearance-no-embedding"),
    ],
)
def test_a_configuration_from_before_has_the_same_network(tmp_path, changes, name):
    """A `config.yaml` that holds the former fields of RGA, and the weights of its run."""
    file = tmp_path / "config.yaml"
    fields = FORMER | changes
    file.write_text("".join(f"{key}: {_yaml(value)}\n" for key, value in fields.items()))
    config = Config.load(file)
    assert config == Config(attention=name)
    assert Config().replace(**fields) == config  # as in a checkpoint
    config = config.replace(arch="resnet18", base_width=8, height=32, width=16)
    with torch.device("meta"):
        found = make_network(config, 3).state_dict()
        expected = ReidNet("resnet18", 3, (32, 16), attention="none", width=8).state_dict()
        if fields["variant"] is not None:
            whole = ReidNet("resnet18", 3, (32, 16), width=8, **_options(fields)).state_dict()
            expected |= whole
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in expected.items()}


def _yaml(value: object) -> str:
    return "null" if value is None else str(value).lower()


def _options(fields: dict) -> dict:
    return {"attention": f"rga-{fields['variant']}"} | {
        name: fields[name] for name in ("relations", "appearance", "embedding")
    }


def test_former_fields_change_the_name_on_the_command_line():
    config = Config().replace(**parse_assignments(["variant=s", "relations=false"]))
    assert config.attention == "rga-s-no-relations"
    assert config.replace(relations=True).attention == "rga-s"
    assert config.replace(variant="c").attention == "rga-c-no-relations"
    assert config.replace(attention="rga-cs", embedding="none").attention == "rga-cs-no-embedding"
    assert Config(attention="none").replace(variant="s").attention == "rga-s"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("none", {"relations": True}, "relations: an option of RGA, got 'none'"),
        ("rga-sc", {"variant": "x"}, "there is no RGA with variant='x'"),
        ("rga-sc", {"relations": False, "appearance": False}, "no RGA with relations=False, app"),
        ("rga-sc", {"embedding": "half"}, "no RGA with embedding='half'"),
    ],
)
def test_impossible_former_fields_are_errors(name, options, message):
    with pytest.raises(ValueError, match=message):
        Config(attention=name).replace(**options)


def test_every_name_of_rga_is_reached_from_its_options():
    for name, options in rga.OPTIONS.items():
        assert rga.changed_name("none", options) == name
