"""How the gate begins, and the attention values as they can be looked at."""

import copy

import pytest
import torch

from rga_fast import RGA
from rga_fast.testing import ALL_VARIANTS, make_map, make_rga


def last_norms(module: RGA) -> list[torch.nn.Module]:
    return [layer[-1] for name, layer in module.named_children() if name.startswith("W_")]


def test_published_start_halves():
    module = RGA(8, (4, 4))
    assert all(norm.bias.item() == 0 and norm.weight.item() == 1 for norm in last_norms(module))
    values = module.attention_values(make_map((2, 8, 4, 4)))
    for value in values.values():
        assert 0.3 < value.mean() < 0.7


@pytest.mark.parametrize("impl", ["reference", "torch", "auto"])
def test_zero_initialised_gate_is_one_half(impl):
    module = RGA(8, (4, 3), zero_init_gate=True, impl=impl, dtype=torch.float64)
    x = make_map((3, 8, 4, 3), dtype=torch.float64)
    torch.testing.assert_close(module(x), x / 4)  # two branches


def test_zero_initialised_gate_learns():
    module = RGA(8, (4, 3), zero_init_gate=True)
    module(make_map((3, 8, 4, 3))).square().sum().backward()
    assert all(norm.weight.grad.abs().item() > 0 for norm in last_norms(module))


def test_zero_init_changes_no_other_parameter():
    torch.manual_seed(0)
    published = RGA(8, (4, 3)).state_dict()
    torch.manual_seed(0)
    constant = RGA(8, (4, 3), zero_init_gate=True).state_dict()
    differ = {name for name in published if not torch.equal(published[name], constant[name])}
    assert differ == {"W_spatial.4.weight", "W_channel.4.weight"}


@pytest.mark.parametrize(("variant", "ablation"), ALL_VARIANTS)
def test_attention_values_are_what_multiplies(variant, ablation):
    module = make_rga(8, (4, 3), variant, ablation).double().eval()
    x = make_map((3, 8, 4, 3), dtype=torch.float64)
    values = module.attention_values(x)
    shapes = {"spatial": (3, 1, 4, 3), "channel": (3, 8, 1, 1)}
    assert {view: tuple(value.shape) for view, value in values.items()} == {
        view: shape for view, shape in shapes.items() if view in values
    }
    expected = x
    if variant == "s//c":
        expected = (x * values["spatial"] + x * values["channel"]) / 2
    else:
        for value in values.values():
            expected = expected * value
    torch.testing.assert_close(module(x), expected)


def test_looking_changes_nothing():
    module = make_rga(8, (4, 3)).train()
    module.gx_spatial.eval()  # frozen, say
    before, modes = copy.deepcopy(module.state_dict()), [m.training for m in module.modules()]
    values = module.attention_values(make_map((3, 8, 4, 3)).requires_grad_())
    assert not any(value.requires_grad for value in values.values())
    assert [m.training for m in module.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
