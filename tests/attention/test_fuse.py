"""`fuse` in models as people have them: which modules it replaces, and what stays as it was."""

import copy
import io
import pickle
import subprocess
import sys

import processes
import pytest
import torch
from torch import nn

import rga_fast
from rga_fast import fuse_demo
from rga_fast.fuse_demo import RelationAttention
from rga_fast.testing import make_map, make_rga

SIZE = (16, (4, 6))
X = (3, 16, 4, 6)


def published(branches=("spatial", "channel"), kind=RelationAttention, **ratios):
    """A module of the published structure in which nothing is trivial."""
    module = kind(16, 24, branches, **ratios)
    variant = {1: branches[0][0], 2: "sc"}[len(branches)]
    if not ratios:
        module.load_state_dict(make_rga(*SIZE, variant).state_dict(), strict=False)
    return module


class Network(nn.Module):
    """A network that holds two of them, and a batch normalisation of its own."""

    def __init__(self, kind=RelationAttention):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.first, self.norm, self.second = published(kind=kind), nn.BatchNorm2d(16), published()

    def forward(self, x):
        return self.second(self.norm(self.first(self.stem(x)))).mean((2, 3))


class Anything(RelationAttention):
    """A subclass with an unchanged `forward`, an attribute and a method."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.size = "mine"


class Residual(RelationAttention):
    def forward(self, x):
        return x + super().forward(x)


class Detached(RelationAttention):
    def forward(self, x):
        return super().forward(x) * 0.5 + super().forward(x).detach() * 0.5


class InTraining(RelationAttention):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


class Remembers(RelationAttention):
    def forward(self, x):
        self.last = super().forward(x)
        return self.last


class Holds(RelationAttention):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.scale = nn.Parameter(torch.ones(1))


class ChannelFirst(RelationAttention):
    def forward(self, x):
        return self.attend(self.attend(x, "channel"), "spatial")


class SideBySide(RelationAttention):
    def forward(self, x):
        return (self.attend(x, "channel") + self.attend(x, "spatial")) / 2


def steps(model, optimiser, x, count=2):
    for _ in range(count):
        optimiser.zero_grad()
        model(x).square().mean().backward()
        optimiser.step()
    return [p.detach().clone() for p in model.parameters()]


def assert_close(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("branches", [("spatial",), ("channel",), ("spatial", "channel")], ids=str)
@pytest.mark.parametrize("ratios", [{}, {"channel_ratio": 3, "spatial_ratio": 5, "down_ratio": 2}])
def test_same_numbers_and_the_order_of_parameters(branches, ratios):
    module = published(branches, **ratios)
    model = copy.deepcopy(module)
    before = dict(model.state_dict())
    parameters = list(model.parameters())
    assert rga_fast.fuse(model, report=None) is model
    assert isinstance(model, rga_fast.RGA)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert list(model.state_dict()) == list(before)
    for training in (True, False):
        results = []
        for each in (module.train(training), model.train(training)):
            x = make_map(X).requires_grad_()
            out = each(x)
            gradients = torch.autograd.grad(out, [x, *each.parameters()], make_map(X, seed=1))
            results.append([out, *gradients, *each.buffers()])
        assert_close(*reversed(results))


def test_a_run_continues_with_its_optimiser():
    """A state of the optimiser goes by position."""
    x = torch.randn(4, 3, 4, 6)
    model = Network()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    steps(model, optimiser, x)
    state, kept = model.state_dict(), copy.deepcopy(optimiser.state_dict())
    resumed = Network()
    resumed.load_state_dict(state)
    rga_fast.fuse(resumed, report=None)
    continued = torch.optim.Adam(resumed.parameters(), 1e-2)
    continued.load_state_dict(kept)
    for name, parameter in resumed.named_parameters():
        assert continued.state[parameter]["exp_avg"].shape == parameter.shape, name
    expected = steps(model, optimiser, x)
    for found, value in zip(steps(resumed, continued, x), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-2, atol=1e-3)


def test_any_name_and_subclasses():
    model = nn.ModuleDict({"a": published(kind=Anything), "b": published()})
    lines = []
    rga_fast.fuse(model, report=lines.append)
    assert isinstance(model["a"], rga_fast.RGA)
    assert lines == [
        "fuse: a (Anything) is RGA(16, 24, variant='sc', impl='auto')",
        "fuse: b (RelationAttention) is RGA(16, 24, variant='sc', impl='auto')",
    ]


@pytest.mark.parametrize(("kind", "variant"), [(ChannelFirst, "cs"), (SideBySide, "s//c")])
def test_other_orders_of_the_branches_are_recognised(kind, variant):
    module, x = published(kind=kind), make_map(X)
    expected = module.eval()(x)
    assert rga_fast.fuse(module, report=None).variant == variant
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Residual, "its forward computes something else than RGA"),
        (Detached, "its forward computes something else than RGA"),
        (InTraining, "its forward computes something else than RGA"),
        (Remembers, "its forward stores attributes, which others may read"),
        (Holds, "it holds scale besides"),
    ],
)
def test_what_computes_something_else_is_left_alone(kind, reason):
    model, lines = nn.Sequential(published(kind=kind), published()), []
    rga_fast.fuse(model, report=lines.append)
    assert type(model[0]) is kind
    assert isinstance(model[1], rga_fast.RGA)
    assert lines[0] == f"fuse: 0 ({kind.__name__}) left alone: {reason}"


def test_layers_and_objects_that_were_changed_are_left_alone():
    dropout, hooked, replaced = published(), published(), published()
    dropout.gx_spatial.append(nn.Dropout(0.5))
    hooked.phi_channel[0].register_forward_hook(lambda m, i, out: out)
    replaced.forward = lambda x: x
    model, lines = nn.Sequential(dropout, hooked, replaced), []
    rga_fast.fuse(nn.Sequential(*model, published()), report=lines.append)
    assert [type(m) for m in model] == [RelationAttention] * 3
    assert "gx_spatial is Conv2d, BatchNorm2d, ReLU, Dropout, where 3 layers" in lines[0]
    assert "phi_channel.0 (Conv2d) has hooks" in lines[1]
    assert "its forward was replaced" in lines[2]


def test_hooks_move_along_and_the_generator_is_left_alone():
    module, seen = published(), []
    module.register_forward_hook(lambda m, i, out: seen.append("after"))
    module.register_forward_pre_hook(lambda m, i: seen.append("before"))
    state = torch.get_rng_state()
    rga_fast.fuse(module, report=None)
    assert seen == []
    assert torch.equal(torch.get_rng_state(), state)
    module(make_map(X))
    assert seen == ["before", "after"]


def test_shared_modules_frozen_layers_and_dtypes():
    shared = published().bfloat16().eval().requires_grad_(False)
    model = rga_fast.fuse(nn.Sequential(shared, shared), report=None)
    assert model[0] is model[1] is shared
    assert not shared.training
    assert not any(p.requires_grad for p in shared.parameters())
    assert model(make_map(X, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_on_the_meta_device():
    with torch.device("meta"):
        model = Network()
    rga_fast.fuse(model, report=None)
    assert isinstance(model.first, rga_fast.RGA)
    assert model.first.theta_spatial[0].weight.is_meta
    model.to_empty(device="cpu").load_state_dict(Network().state_dict())
    assert model.eval()(torch.randn(2, 3, 4, 6)).isfinite().all()


def test_twice_and_none():
    model = rga_fast.fuse(Network(), report=None)
    lines = []
    assert rga_fast.fuse(model, report=lines.append) is model
    assert lines == []
    with pytest.raises(ValueError, match="holds no relation-aware attention"):
        rga_fast.fuse(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="impl must be one of 'auto'"):
        rga_fast.fuse(Network(), impl="fast")


def test_unfuse_restores():
    model, x = Network(kind=Anything).eval(), torch.randn(2, 3, 4, 6)
    expected = model(x)
    fused = copy.deepcopy(rga_fast.fuse(model, report=None))
    for each in (model, fused):
        rga_fast.unfuse(each)
        assert type(each.first) is Anything
        assert each.first.size == "mine"
        assert not {"channels", "variant", "impl", "_fused_from"} & set(each.first.__dict__)
        torch.testing.assert_close(each(x), expected)
    with pytest.raises(ValueError, match="holds no module that fuse replaced"):
        rga_fast.unfuse(model)


def test_whole_pickled_models():
    """Before and after; what is loaded can be restored."""
    model, x = Network().eval(), torch.randn(2, 3, 4, 6)
    expected = model(x)
    loaded = rga_fast.fuse(pickle.loads(pickle.dumps(model)), report=None)
    file = io.BytesIO()
    torch.save(loaded, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    torch.testing.assert_close(again(x), expected)
    assert isinstance(again.first, rga_fast.RGA)
    assert type(rga_fast.unfuse(again).first) is RelationAttention


def test_a_fused_model_loads_where_its_class_is_missing(tmp_path):
    """The class of a module is saved by its name alone."""
    program = (
        "import sys, torch, rga_fast\n"
        "m = torch.load(sys.argv[1], weights_only=False)\n"
        "print(type(m).__name__, tuple(m(torch.zeros(2, 16, 4, 6)).shape))\n"
        "try: rga_fast.unfuse(m)\n"
        "except ImportError as error: print(error)\n"
    )
    module = rga_fast.fuse(published(kind=ChannelFirst), report=None)
    torch.save(module, tmp_path / "m.pt")
    command = [sys.executable, "-c", program, str(tmp_path / "m.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.stdout.startswith("RGA (2, 16, 4, 6)\nunfuse: the class ChannelFirst"), done


@pytest.mark.slow
def test_after_compile():
    """Compiled code notices: it guards the classes of modules."""
    from torch._dynamo.testing import CompileCounter

    model, x, counter = Network().eval(), torch.randn(2, 3, 4, 6), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        expected = compiled(x)
        rga_fast.fuse(compiled, report=None)
        torch.testing.assert_close(compiled(x), expected)
        assert counter.frame_count == 2
        rga_fast.unfuse(compiled)
        torch.testing.assert_close(compiled(x), expected)


def test_data_parallel_and_its_replicas():
    """Replicas, which hold their weights as plain attributes, are made without a GPU here."""
    model = rga_fast.fuse(nn.DataParallel(published()), report=None).eval()
    assert isinstance(model.module, rga_fast.RGA)
    rga = rga_fast.fuse(published().eval(), report=None)
    replica = replicate(rga)
    assert not replica._parameters
    assert replica.choose(make_map(X)).impl == "cpp"
    torch.testing.assert_close(replica(make_map(X)), rga(make_map(X)))


def replicate(module):
    """As `torch.nn.parallel.replicate` does it."""
    replica = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        replica._modules[name] = None if child is None else replicate(child)
    for name, parameter in module._parameters.items():
        if parameter is None:
            replica._parameters[name] = None
        else:
            setattr(replica, name, parameter.detach().clone())
    return replica


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_data_distributed(when):
    assert processes.run_ranks(train_distributed, when, limit=120) == [0, 0]


def train_distributed(when):
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model, x = Network(), torch.randn(2, 4, 3, 4, 6)
    plain = DistributedDataParallel(copy.deepcopy(model))
    if when == "before":
        rga_fast.fuse(model, report=None)
    wrapped = DistributedDataParallel(model)
    if when == "after":
        steps(wrapped, torch.optim.SGD(wrapped.parameters(), 0.0), x[dist.get_rank()], 1)
        steps(plain, torch.optim.SGD(plain.parameters(), 0.0), x[dist.get_rank()], 1)
        rga_fast.fuse(wrapped, report=None)
    assert isinstance(wrapped.module.first, rga_fast.RGA)
    results = []
    for each in (wrapped, plain):
        optimiser = torch.optim.SGD(each.parameters(), 0.1)
        results.append(steps(each, optimiser, x[dist.get_rank()]))
    assert_close(*results)
    dist.destroy_process_group()


def test_demo(capsys):
    fuse_demo.main(["--width", "16", "--height", "32", "--images", "2", "--rounds", "1"])
    printed = capsys.readouterr().out
    assert "fuse: attention.0 (RelationAttention) is RGA(" in printed
    assert "parameters in the same order: yes" in printed
