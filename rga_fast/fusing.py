"""`fuse`: published modules in any model become `RGA`, in place.

A module is recognised by the names and the structure of its layers, whatever its class is called,
and by what it computes: on random weights and one random image, output, gradients and statistics
of it and of `RGA` must agree, in training and in evaluation. The object stays and changes its
class, so parameters and their order, hooks, references and wrappers stay as they are.
"""

import importlib
import itertools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from rga_fast import dispatch, exactness, validation
from rga_fast.modules import RGA, VARIANTS
from rga_fast.reference import Branch

_LAYERS = ("theta", "phi", "gx", "gg", "W")  # of a branch, in the order of `Branch`
_PROBED = 1e-9  # of the largest value, in float64


def fuse(
    model: nn.Module, impl: str = "auto", report: Callable[[str], Any] | None = print
) -> nn.Module:
    """Turns every published relation-aware attention module in `model` into an `RGA`.

    In place: each stays the object that it was, with its parameters in their order, buffers, hooks,
    training mode and `state_dict` keys, so optimisers, checkpoints and wrappers go on working.
    Before or after `DataParallel`, `DistributedDataParallel` and `torch.compile`; before
    `fully_shard`. `unfuse` takes it back.

    Args:
        model: any module. A published module has the layers gx_*, gg_*, theta_*, phi_* and W_* of
            its branches, `*` being spatial or channel, of the published structure, in any sizes.
        impl: for the new modules, see `RGA`.
        report: called with a line for each module that was found: replaced, or why not. For a list
            of them pass its `append`; None for silence.

    Returns:
        `model`.

    Raises:
        ValueError: if it holds neither a published module nor an `RGA`.
    """
    validation.check_choice("fuse", "impl", impl, dispatch.ARGUMENTS)
    found = [(name or "the model", m) for name, m in model.named_modules() if _resembles(m)]
    if not found and not any(isinstance(m, RGA) for m in model.modules()):
        raise ValueError(
            "fuse: the model holds no relation-aware attention: no module with layers gx_*, gg_*, "
            "theta_*, phi_* and W_* of spatial or channel"
        )
    for name, module in found:
        kind = type(module).__name__
        outcome = _obstacle(module)
        if outcome is None:
            with torch.random.fork_rng(devices=[]):
                variant, outcome = _variant(module)
        if outcome is None:
            _become(module, variant, impl)
        if report is not None:
            what = f"is RGA({module.extra_repr()})" if outcome is None else f"left alone: {outcome}"
            report(f"fuse: {name} ({kind}) {what}")
    return model


def unfuse(model: nn.Module) -> nn.Module:
    """Gives every module that `fuse` replaced in `model` its class and its attributes back.

    Raises:
        ValueError: if there is none.
        ImportError: if a class cannot be found, in a model that was saved whole and loaded.
    """
    fused = [m for m in model.modules() if isinstance(m, RGA) and "_fused_from" in m.__dict__]
    if not fused:
        raise ValueError("unfuse: the model holds no module that fuse replaced")
    classes = [module.__dict__["_fused_from"].resolve() for module in fused]
    for module, kind in zip(fused, classes, strict=True):
        origin = module.__dict__.pop("_fused_from")
        for name in _FIELDS:
            del module.__dict__[name]
        module.__dict__.update(origin.hidden)
        module.__class__ = kind
    return model


_FIELDS = ("channels", "size", "variant", "impl")


class _Origin:
    """The class that a module had. It is saved by its name, so that a fused model can be loaded
    where the class is not installed."""

    def __init__(self, kind: type | None, name: tuple[str, str], hidden: dict[str, Any]) -> None:
        self.kind, self.name, self.hidden = kind, name, hidden

    def __deepcopy__(self, memo: Any) -> "_Origin":
        return self

    def __reduce__(self) -> Any:
        return _Origin, (None, self.name, self.hidden)

    def resolve(self) -> type:
        if self.kind is None:
            module, qualified = self.name
            try:
                found: Any = importlib.import_module(module)
                for part in qualified.split("."):
                    found = getattr(found, part)
            except (ImportError, AttributeError) as error:
                raise ImportError(
                    f"unfuse: the class {qualified} of {module} cannot be imported"
                ) from error
            self.kind = found
        return self.kind


def _become(module: nn.Module, variant: str, impl: str) -> None:
    channels, positions = _sizes(module)
    kind = type(module)
    hidden = {name: module.__dict__[name] for name in _FIELDS if name in module.__dict__}
    module.__class__ = RGA
    fields = {"channels": channels, "size": positions, "variant": variant, "impl": impl}
    module.__dict__.update(fields)
    module.__dict__["_fused_from"] = _Origin(kind, (kind.__module__, kind.__qualname__), hidden)


def _views(module: nn.Module) -> list[str]:
    return [view for view in ("spatial", "channel") if f"W_{view}" in module._modules]


def _resembles(module: nn.Module) -> bool:
    """Whether it has all layers of a branch, by their names."""
    names = [f"{name}_{view}" for view in _views(module) for name in _LAYERS]
    return bool(names) and not isinstance(module, RGA) and set(names) <= set(module._modules)


def _branch(module: nn.Module, view: str) -> Branch:
    layers: Any = [module._modules[f"{name}_{view}"] for name in _LAYERS]
    return Branch(view, *layers)


def _sizes(module: nn.Module) -> tuple[int, int]:
    """Channels and positions."""
    view = _views(module)[0]
    branch: Any = _branch(module, view)
    features, nodes = branch.psi[0].in_channels, branch.relation[0].in_channels // 2
    return (features, nodes) if view == "spatial" else (nodes, features)


def _obstacle(module: nn.Module) -> str | None:
    """Why a module cannot be replaced, from what it holds."""
    kind = type(module)
    if any(base.__module__.startswith("torch.distributed") for base in kind.__mro__):
        return "it is sharded: fuse the model first"
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled by TorchScript"
    if "forward" in module.__dict__ or "_call_impl" in module.__dict__:
        return "its forward was replaced"
    hidden = [name for name in ("branch", "choose") if name in module.__dict__]
    if hidden:
        return f"its attribute {hidden[0]} stands where RGA has a method"
    layers = [f"{name}_{view}" for view in _views(module) for name in _LAYERS]
    others = [name for name in module._modules if name not in layers]
    others += [*module._parameters, *module._buffers]
    if others:
        return f"it holds {', '.join(others)} besides"
    branches = [_branch(module, view) for view in _views(module)]
    problems = [exactness.problem(branch) for branch in branches]
    if any(problems):
        return next(p for p in problems if p is not None)
    sizes = {_sizes(module)}
    for branch in branches:
        theta, relation = cast(Any, branch.theta), cast(Any, branch.relation)
        d, n = theta[0].in_channels, relation[0].in_channels // 2
        sizes.add((d, n) if branch.view == "spatial" else (n, d))
    return None if len(sizes) == 1 else f"its branches are of different sizes, {sorted(sizes)}"


def _variant(module: nn.Module) -> tuple[str, str | None]:
    """The variant of `RGA` that computes what the module computes; else why there is none."""
    views = _views(module)
    variants = [name for name, of in VARIANTS.items() if sorted(of) == sorted(views)]
    try:
        expected = _probe(_twin(module, type(module)), module)
    except Exception as error:  # whatever a foreign forward raises
        return "", f"its forward raises {type(error).__name__} on a map of the size of its layers"
    if isinstance(expected, str):
        return "", expected
    for variant in variants:
        twin = _twin(module, RGA)
        twin.__dict__.update(variant=variant, impl="torch")
        found = _probe(twin, module)
        if not isinstance(found, str) and _agree(found, expected):
            return variant, None
    return "", "its forward computes something else than RGA"


def _twin(module: nn.Module, kind: type) -> nn.Module:
    """A module of class `kind` like `module`, with layers of its own: on the CPU, in float64, with
    random values, always the same ones."""
    twin: nn.Module = object.__new__(kind)
    plain = nn.Module()
    twin.__dict__.update(module.__dict__ if kind is not RGA else {})
    twin.__dict__.update(plain.__dict__)
    if kind is RGA:
        channels, positions = _sizes(module)
        twin.__dict__.update(channels=channels, size=positions)
    generator = torch.Generator().manual_seed(0)
    for name, layer in module._modules.items():
        own = nn.Sequential(*map(_fresh, cast(nn.Sequential, layer)))
        twin._modules[name] = own
        for tensor in itertools.chain(own.parameters(), own.buffers()):
            if tensor.is_floating_point():
                scale = tensor.shape[1] ** -0.5 if tensor.dim() == 4 else 1.0
                low, high = (-scale, scale) if tensor.dim() == 4 else (0.25, 1.0)
                values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.data.copy_(low + (high - low) * values)
    return twin


def _fresh(step: Any) -> nn.Module:
    factory: Any = {"device": "cpu", "dtype": torch.float64}
    if isinstance(step, nn.Conv2d):
        return nn.Conv2d(step.in_channels, step.out_channels, 1, bias=False, **factory)
    if isinstance(step, nn.ReLU):
        return nn.ReLU()
    options = step.eps, step.momentum, step.affine, step.track_running_stats
    return nn.BatchNorm2d(step.num_features, *options, **factory)


def _probe(twin: nn.Module, module: nn.Module) -> list[Tensor] | str:
    """Outputs in training and evaluation, gradients and statistics, for one random image; or what
    the forward does besides."""
    channels, positions = _sizes(module)
    H = next(h for h in range(int((2 * positions) ** 0.5), 0, -1) if positions % h == 0)
    generator = torch.Generator().manual_seed(1)
    shape = (1, channels, H, positions // H)
    x, dout = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
    ):
        twin.train()
        before = dict(twin.__dict__)
        out = twin.forward(x.requires_grad_())
        if not isinstance(out, Tensor) or out.shape != x.shape:
            return "its forward does not return a map of the size that it takes"
        parameters = list(twin.parameters())
        gradients = torch.autograd.grad(out, [x, *parameters], dout)
        statistics = [buffer.clone() for buffer in twin.buffers()]
        if any(twin.__dict__.get(name) is not value for name, value in before.items()) or len(
            before
        ) != len(twin.__dict__):
            return "its forward stores attributes, which others may read"
        twin.eval()
        with torch.no_grad():
            after = twin.forward(x)
    return [out.detach(), after, *gradients, *statistics]


def _agree(found: list[Tensor], expected: list[Tensor]) -> bool:
    for a, b in zip(found, expected, strict=True):
        scale = float(b.abs().max()) if b.numel() else 0.0
        if a.shape != b.shape or not bool(((a - b).abs() <= _PROBED * (scale + 1e-3)).all()):
            return False
    return True
