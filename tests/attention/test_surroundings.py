"""What surrounds a module in practice: tracing, transforms, sharding, offload, counters, copies."""

import copy
import functools
import subprocess
import sys

import parity
import processes
import pytest
import torch
from torch import fx, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import rga_fast
from rga_fast.testing import make_map, make_rga, run

SIZE = (16, (4, 6))
X = (3, 16, 4, 6)


def network():
    return nn.Sequential(nn.Conv2d(3, 16, 1), make_rga(*SIZE), nn.ReLU(), nn.Conv2d(16, 2, 1))


def assert_close(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_symbolic_trace_holds_the_module_as_one_node():
    model, x = network().eval(), torch.randn(2, 3, 4, 6)
    traced = fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["0", "1", "2", "3"]
    assert isinstance(traced.get_submodule("1"), rga_fast.RGA)
    assert_close([traced(x), traced(x[:1])], [model(x), model(x[:1])])


@pytest.mark.parametrize("variant", ["sc", "s//c"])
def test_symbolic_trace_of_the_module_itself(variant):
    """Its layers are the nodes, then."""
    module = make_rga(*SIZE, variant).eval()
    traced = fx.symbolic_trace(module)
    assert "theta_spatial.0" in {str(n.target) for n in traced.graph.nodes}
    assert_close([traced(make_map(X))], [module(make_map(X))])


def test_a_feature_extractor():
    """As libraries build them: trace, let a node in the middle be an output, drop the rest."""
    model, x = network().eval(), torch.randn(2, 3, 4, 6)
    graph = fx.Tracer().trace(model)
    node = next(n for n in graph.nodes if n.target == "1")
    output = next(n for n in graph.nodes if n.op == "output")
    output.args = ({"attended": node},)
    extractor = fx.GraphModule(model, graph)
    extractor.graph.eliminate_dead_code()
    extractor.recompile()
    assert_close([extractor(x)["attended"]], [model[:2](x)])


def test_transforms_of_functions():
    """`auto` takes plain PyTorch within them."""
    module, x = make_rga(*SIZE).eval(), make_map(X)
    singly = torch.func.vmap(lambda image: module(image[None])[0])(x)
    assert_close([singly], [module(x)])
    parameters = dict(module.named_parameters())

    def loss(values, images):
        return torch.func.functional_call(module, values, (images,)).square().mean()

    gradients = torch.func.grad(loss)(parameters, x)
    expected = torch.autograd.grad(module(x).square().mean(), list(parameters.values()))
    assert_close(gradients.values(), expected)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x[:, None])
    assert_close([g.mean(0) for g in each.values()], expected)
    module.impl = "cpp"
    with pytest.raises(NotImplementedError, match=r"transforms of torch.func .* impl='torch'"):
        torch.func.grad(loss)(parameters, x)


@pytest.mark.parametrize("square", [True, False])
def test_gradients_of_gradients(square):
    module, x = make_rga(*SIZE).double(), make_map(X, dtype=torch.float64).requires_grad_()

    def penalty():
        out = module(x).square().sum() if square else module(x).sum()
        (gradient,) = torch.autograd.grad(out, x, create_graph=True)
        parameters = list(module.parameters())
        return torch.autograd.grad(gradient.square().sum(), parameters, materialize_grads=True)

    with pytest.raises(RuntimeError, match="gradients of gradients take impl='torch'"):
        penalty()
    module.impl = "torch"
    second = penalty()
    module.impl = "reference"
    assert_close(second, penalty())


def test_first_gradients_with_a_graph():
    """`create_graph=True` alone is no reason to fail."""
    module, x = make_rga(*SIZE), make_map(X).requires_grad_()
    parameters = list(module.parameters())
    found = torch.autograd.grad(module(x).square().sum(), parameters, create_graph=True)
    assert_close(found, torch.autograd.grad(module(x).square().sum(), parameters))


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    found, expected = [], []
    for impl, results in (("auto", found), ("reference", expected)):
        module, x = make_rga(*SIZE, impl=impl), make_map(X).requires_grad_()
        out = checkpoint(module, x, use_reentrant=reentrant)
        out.backward(make_map(X, seed=1))
        results += [out, x.grad, *(p.grad for p in module.parameters())]
        if reentrant:  # the other form stops in the middle of the second forward pass
            results += module.buffers()
    assert_close(found, expected)


def test_jit_trace():
    module, x = make_rga(*SIZE).eval(), make_map(X)
    traced = torch.jit.trace(module, (x,))
    assert "rga_fast_cpp" not in str(traced.inlined_graph)
    assert_close([traced(x), traced(x[:1])], [module(x), module(x[:1])])
    module.impl = "cpp"
    with pytest.raises(NotImplementedError, match=r"torch\.jit.trace takes impl='torch'"):
        torch.jit.trace(module, (x,))


PROGRAM = """
import sys, torch
assert "rga_fast" not in sys.modules
kind, path = sys.argv[1:]
call = torch.jit.load(path) if kind == "traced" else torch.export.load(path).module()
x, y = torch.load(path + ".maps")
torch.testing.assert_close(call(x), y, rtol=1e-4, atol=1e-5)
assert "rga_fast" not in sys.modules
"""


@pytest.mark.parametrize("kind", ["traced", pytest.param("exported", marks=pytest.mark.slow)])
def test_a_program_without_rga_fast_loads(kind, tmp_path):
    """What was traced, and what was exported with impl="torch"."""
    module, x = make_rga(*SIZE).eval(), make_map(X)
    with torch.no_grad():
        if kind == "traced":
            torch.jit.save(torch.jit.trace(module, (x,)), tmp_path / "m.pt2")
        else:
            module.impl = "torch"
            torch.export.save(torch.export.export(module, (x,)), tmp_path / "m.pt2")
        torch.save((x, module(x)), tmp_path / "m.pt2.maps")
    command = [sys.executable, "-c", PROGRAM, kind, str(tmp_path / "m.pt2")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr


def test_flops_are_counted():
    """As those of plain PyTorch, whose products torch counts itself."""
    for options in ({}, {"embedding": "symmetric"}, {"appearance": False}, {"relations": False}):
        counts = {}
        for impl in ("torch", "cpp"):
            module, x = make_rga(*SIZE, impl=impl, **options), make_map(X).requires_grad_()
            modes = [FlopCounterMode(display=False) for _ in range(3)]
            with modes[0]:
                out = module(x)
            with modes[1]:
                out.sum().backward()
            with modes[2], torch.no_grad():
                module.eval()(x)
            counts[impl] = [mode.get_total_flops() for mode in modes]
        assert counts["cpp"] == counts["torch"], options


def test_averaged_copies():
    module, x = make_rga(*SIZE), make_map(X)
    averaged = torch.optim.swa_utils.AveragedModel(module, use_buffers=True)
    averaged.update_parameters(module)
    assert averaged.module.choose(x).impl == "cpp"
    assert_close([averaged.eval()(x)], [module.eval()(x)])


@pytest.mark.parametrize("impl", ["auto", "torch"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("channels_last", [True, False])
def test_slices_with_an_odd_batch_stride(channels_last, batch, impl):
    dense = make_map((batch, *X[1:]), layout="channels_last" if channels_last else "contiguous")
    strides = (dense[0].numel() + 7, *dense.stride()[1:])
    x = torch.zeros(batch * strides[0]).as_strided(dense.shape, strides).copy_(dense)
    results = []
    for maps in (x, dense):
        maps = maps.detach().requires_grad_()
        module = make_rga(*SIZE, impl=impl)
        out = module(maps)
        gradients = torch.autograd.grad(out.square().sum(), [maps, *module.parameters()])
        results.append([out, *gradients, module.eval()(maps)])
    assert_close(*results)
    if batch > 1:
        assert results[0][0].stride() == dense.stride()


class Offload:
    """Weights that are stored elsewhere until a layer is called: a hook around its `forward`."""

    def __init__(self, layer):
        self.layer, self.plain = layer, layer.forward
        self.values = {n: p.detach().clone() for n, p in layer.named_parameters()}
        self.leave()
        layer.forward = functools.partial(self)

    def leave(self):
        for name in self.values:
            parameter = nn.Parameter(torch.empty_like(self.values[name], device="meta"))
            setattr(self.layer, name, parameter)

    def __call__(self, *inputs):
        for name, value in self.values.items():
            setattr(self.layer, name, nn.Parameter(value))
        out = self.plain(*inputs)
        self.leave()
        return out


def test_offloaded_weights():
    module, x = make_rga(*SIZE).eval(), make_map(X)
    expected = module(x)
    for layer in list(module.modules()):
        if next(layer.parameters(recurse=False), None) is not None:
            Offload(layer)
    assert module.W_spatial[0].weight.is_meta
    assert module.choose(x).impl == "reference"
    assert_close([module(x)], [expected])


def test_initialised_on_the_meta_device():
    original, x = make_rga(*SIZE).double(), make_map(X, dtype=torch.float64)
    with torch.device("meta"):
        module = rga_fast.RGA(*SIZE, dtype=torch.float64)
    assert module(x.to("meta")).is_meta
    module.load_state_dict(original.state_dict(), assign=True)
    assert module.choose(x).impl == "cpp"
    parity.assert_close(run(module, x, x, "auto"), run(original, x, x, "reference"), 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["module", "layers"])
def test_fully_sharded(where):
    assert processes.run_ranks(train_sharded, where, limit=200) == [0, 0]


def train_sharded(where):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    x = make_map(X)
    plain = make_rga(*SIZE)
    model = copy.deepcopy(plain)
    if where == "layers":
        for layer in model.children():
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert model.choose(x).impl == ("reference" if where == "layers" else "cpp")
    results = []
    for each in (model, plain):
        optimiser = torch.optim.SGD(each.parameters(), 0.1)
        for _ in range(2):
            optimiser.zero_grad()
            each(x).square().mean().backward()
            optimiser.step()
        values = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in each.parameters()]
        results.append([v.detach() for v in values])
    assert_close(*results)
    lines = []
    rga_fast.fuse(model, report=lines.append)  # it holds an RGA: nothing to do
    assert lines == []
    dist.destroy_process_group()
