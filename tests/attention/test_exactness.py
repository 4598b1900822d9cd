"""What is not exactly the published structure runs as modules; a named implementation says why."""

import copy

import parity
import pytest
import torch
from torch import nn
from torch.nn.utils import fusion, parametrizations, prune

import rga_fast
from rga_fast.testing import make_map, make_rga, run

SIZE = (16, (4, 6))
X = (3, 16, 4, 6)


class Standardised(nn.Conv2d):
    def forward(self, x):
        centred = self.weight - self.weight.mean(1, keepdim=True)
        return nn.functional.conv2d(x, centred)


class Clamped(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).clamp(-0.1, 0.1)


class Renamed(nn.BatchNorm2d):
    """A subclass with an unchanged `forward`."""


def fold(module):
    module.eval()
    for name, layer in module.named_children():
        if name.startswith(("theta", "gg")):
            layer[0] = fusion.fuse_conv_bn_eval(layer[0], layer[1])
            layer[1] = nn.Identity()


def replace(path, kind):
    def change(module):
        layer, _, index = path.partition(".")
        old = getattr(module, layer)[int(index)]
        new = copy.copy(old)
        new.__class__ = kind
        getattr(module, layer)[int(index)] = new

    return change


def append(layer, extra):
    return lambda module: getattr(module, layer).append(extra)


def weight_norm(module):
    nn.utils.weight_norm(module.theta_channel[0])


def hook(path, register, function):
    return lambda module: getattr(module.get_submodule(path), register)(function)


def replace_forward(module):
    norm = module.gx_spatial[1]
    norm.forward = lambda x: 2 * type(norm).forward(norm, x)


def replace_product(module):
    conv = module.gx_spatial[0]
    conv._conv_forward = lambda x, w, b: 2 * type(conv)._conv_forward(conv, x, w, b)


def add_bias(module):
    module.gg_channel[0].bias = nn.Parameter(torch.full((module.gg_channel[0].out_channels,), 0.3))


def kernel_of_3(module):
    old = module.theta_spatial[0]
    module.theta_spatial[0] = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=False)


def groups(module):
    old = module.theta_spatial[0]
    module.theta_spatial[0] = nn.Conv2d(old.in_channels, old.out_channels, 1, groups=2, bias=False)


def share(module):
    module.phi_spatial = module.theta_spatial


# What is done to the module, which layer the message names, and what stands there.
CHANGES = {
    "folded normalisation": (fold, r"theta_spatial\.0 \(Conv2d\) has a bias"),
    "bias": (add_bias, r"gg_channel\.0 \(Conv2d\) has a bias"),
    "appended layer": (append("gx_channel", nn.Hardtanh(0, 0.1)), r"gx_channel is .*Hardtanh"),
    "appended dropout": (append("W_spatial", nn.Dropout(0.9999)), r"W_spatial is .*Dropout"),
    "own convolution": (replace("phi_spatial.0", Standardised), r"phi_spatial\.0 is Standardised"),
    "own normalisation": (replace("W_channel.4", Clamped), r"W_channel\.4 is Clamped"),
    "own activation": (
        lambda m: m.gg_spatial.__setitem__(2, nn.LeakyReLU()),
        r"gg_spatial\.2 is LeakyReLU",
    ),
    "pruning": (
        lambda m: prune.random_unstructured(m.gg_spatial[0], "weight", 0.5),
        r"gg_spatial\.0 \(Conv2d\) has hooks",
    ),
    "old weight norm": (weight_norm, r"theta_channel\.0 \(Conv2d\) has hooks"),
    "forward hook": (
        hook("W_spatial.4", "register_forward_hook", lambda m, i, out: out + 1),
        r"W_spatial\.4 \(BatchNorm2d\) has hooks",
    ),
    "hook of a whole layer": (
        hook("gx_channel", "register_forward_hook", lambda m, i, out: out * 2),
        r"gx_channel \(Sequential\) has hooks",
    ),
    "forward pre-hook": (
        hook("W_spatial.2", "register_forward_pre_hook", lambda m, i: (i[0] + 1,)),
        r"W_spatial\.2 \(ReLU\) has hooks",
    ),
    "backward hook": (
        hook("gg_channel.1", "register_full_backward_hook", lambda m, i, o: (i[0] * 2,)),
        r"gg_channel\.1 \(BatchNorm2d\) has hooks",
    ),
    "backward pre-hook": (
        hook("gg_channel.1", "register_full_backward_pre_hook", lambda m, o: (o[0] * 2,)),
        r"gg_channel\.1 \(BatchNorm2d\) has hooks",
    ),
    "forward of an object": (replace_forward, r"gx_spatial\.1 \(BatchNorm2d\) has a forward"),
    "product of an object": (replace_product, r"gx_spatial\.0 \(Conv2d\) has a _conv_forward"),
    "kernel of 3": (kernel_of_3, r"theta_spatial\.0 is Conv2d\(16, 2, kernel_size=\(3, 3\)"),
    "groups": (groups, r"theta_spatial\.0 is Conv2d\(.*groups=2"),
    "shared layer": (share, r"phi_spatial is theta_spatial itself"),
}


def as_modules(module, x):
    """The published form with every layer called as a module, written once more."""
    for view in ("spatial", "channel"):
        gx, gg, W, theta, phi = (
            getattr(module, f"{name}_{view}") for name in ("gx", "gg", "W", "theta", "phi")
        )
        V = x.flatten(2) if view == "spatial" else x.flatten(2).transpose(1, 2)
        V = V.unsqueeze(-1)
        psi = gx(V).mean(1, keepdim=True)
        R = torch.matmul(theta(V).squeeze(-1).transpose(1, 2), phi(V).squeeze(-1))
        z = gg(torch.cat([R.transpose(1, 2), R], 1).unsqueeze(-1))
        a = torch.sigmoid(W(torch.cat([psi, z], 1))).squeeze(-1)
        x = x * (a.view(-1, 1, *x.shape[2:]) if view == "spatial" else a.transpose(1, 2)[..., None])
    return x


def results(call, module, training):
    torch.manual_seed(0)  # dropout
    x = make_map(X).requires_grad_()
    module.train(training)
    out = call(x)
    learnt = [p for p in module.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(out, [x, *learnt], make_map(X, seed=1))
    return [out, *gradients, *(b.clone() for b in module.buffers())]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("change", CHANGES)
def test_auto_computes_what_the_layers_compute(change, training):
    """Twice: what a hook computes before `forward` is stale at the second step."""
    module = make_rga(*SIZE)
    CHANGES[change][0](module)
    other = make_rga(*SIZE)
    CHANGES[change][0](other)
    other.load_state_dict(module.state_dict())
    choice = module.choose(make_map(X))
    assert choice.impl == "reference"
    for _ in range(2):
        found = results(module, module, training)
        expected = results(lambda x: as_modules(other, x), other, training)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            for p, q in zip(module.parameters(), other.parameters(), strict=True):
                p.add_(0.01)
                q.add_(0.01)


@pytest.mark.parametrize("impl", ["torch", "cpp", "cuda", "triton"])
@pytest.mark.parametrize("change", CHANGES)
def test_named_implementations_name_what_stands_there(change, impl):
    module = make_rga(*SIZE, impl=impl)
    CHANGES[change][0](module)
    message = rf"impl='{impl}' cannot run here: {CHANGES[change][1]}.*impl='reference'"
    with pytest.raises(NotImplementedError, match=message):
        module(make_map(X))
    with pytest.raises(NotImplementedError, match=message):
        module.choose(make_map(X))


@pytest.mark.parametrize(
    "change",
    ["forward hook", "appended layer", "forward of an object", "own activation"],
)
def test_changes_are_noticed_after_a_call_and_when_they_are_taken_back(change):
    module = make_rga(*SIZE, down_ratio=1).double().eval()  # units enough that some are active
    x = make_map(X, dtype=torch.float64)
    before, state = module(x), copy.deepcopy(module)
    assert module.choose(x).impl == "cpp"
    CHANGES[change][0](module.double())
    assert module.choose(x).impl == "reference"
    assert (module(x) - before).abs().max() > 1e-6
    assert state.choose(x).impl == "cpp"


def test_a_hook_that_was_removed_leaves_the_fast_form():
    module, x = make_rga(*SIZE), make_map(X)
    handle = module.gx_spatial[1].register_forward_hook(lambda m, i, out: out * 2)
    assert module.choose(x).impl == "reference"
    handle.remove()
    assert module.choose(x).impl == "cpp"


def test_hooks_of_all_modules():
    module, x, seen = make_rga(*SIZE), make_map(X), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, out: seen.append(m))
    try:
        assert module.choose(x).impl == "reference"
        module(x)
    finally:
        handle.remove()
    assert module.W_channel[4] in seen
    assert module.choose(x).impl == "cpp"


def test_a_class_of_torch_that_was_changed(monkeypatch):
    module, x = make_rga(*SIZE).eval(), make_map(X)
    before = module(x)
    plain = nn.ReLU.forward
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: plain(self, x) * 2)
    assert module.choose(x).impl == "reference"
    assert not torch.allclose(module(x), before)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_what_is_exact_stays_fast(training):
    """Subclasses with an unchanged forward, and parametrised weights, which are computed where they
    are read: each once a call."""
    module, dtype = make_rga(*SIZE).double(), torch.float64
    replace("gg_channel.1", Renamed)(module.double())
    parametrizations.weight_norm(module.theta_spatial[0])
    parametrizations.spectral_norm(module.W_spatial[0])
    module.phi_channel[0].dilation = (2, 2)
    module.train(training)
    x, dout = make_map(X, dtype=dtype), make_map(X, dtype=dtype, seed=1)
    assert module.choose(x).impl == "cpp"
    parity.assert_close(run(module, x, dout, "cpp"), run(module, x, dout, "reference"), 1e-9)


def test_layers_that_do_not_fit_together_are_left_to_torch():
    module, x = make_rga(*SIZE), make_map(X)
    module.gx_spatial[1] = nn.BatchNorm2d(5)
    assert "takes 5 features, 2 come" in module.choose(x).reason
    with pytest.raises(RuntimeError, match="running_mean should contain 2 elements"):
        module(x)


def test_choose_is_what_forward_acts_on_when_one_branch_is_not_exact():
    module, x = make_rga(*SIZE), make_map(X)
    append("gx_channel", nn.Dropout(0.5))(module)
    assert module.choose(x).impl == "reference"
    assert "gx_channel" in module.choose(x).reason
    assert rga_fast.choose("auto", x, module.branch("spatial")).impl == "cpp"
