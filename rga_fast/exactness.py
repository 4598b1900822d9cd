"""Whether the layers of a branch are exactly what the implementations but `reference` compute.

These take the weights of 1x1 convolutions and batch normalisations and compute with them in their
own way. So nothing else may stand in a branch, nothing may be hooked to its layers, and what
`layer.weight` reads must be what the layer's `forward` would use. A parametrised weight is, since
it is computed where it is read; one that a hook computes before `forward` is not.

Every call reads the layers anew, so no change is missed. To judge what was read takes longer; what
was found exact is remembered.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as registry
from torch.nn.modules.batchnorm import _BatchNorm

from rga_fast.reference import Branch

# As torch defines them. A class or an object with others is not what is computed here.
_CALL = nn.Module._call_impl
_SEQUENTIAL, _CONVOLUTION, _RELU = nn.Sequential.forward, nn.Conv2d.forward, nn.ReLU.forward
_PRODUCT = nn.Conv2d._conv_forward
_NORMALISATIONS = {_BatchNorm.forward, nn.SyncBatchNorm.forward}
_OF_MAPS = (nn.BatchNorm2d._check_input_dim, nn.SyncBatchNorm._check_input_dim)

_NAMES = ("theta", "phi", "gx", "gg", "W")  # how `RGA` calls the layers of a `Branch`
_METHODS = ("forward", "_conv_forward", "_call_impl")

_exact: set[Any] = set()  # what `_read` gave for branches without a problem
_REMEMBERED = 1000


def computes_as_sync_batch_norm(kind: type[nn.SyncBatchNorm]) -> type[nn.SyncBatchNorm]:
    """Declares, as a decorator, that the `forward` of a class computes what torch's computes."""
    _NORMALISATIONS.add(kind.forward)
    return kind


def problem(branch: Branch) -> str | None:
    """Why `branch` cannot be computed from its weights alone; None where it can.

    Names the layer, as `RGA` calls it, and what stands there.
    """
    if torch.compiler.is_compiling():  # reads once, and compiles again for other classes
        return _examine(branch) or _global_hooks()
    facts = _read(branch)
    if facts is None or facts not in _exact:
        if (found := _examine(branch)) is not None:
            return found
        if facts is not None and len(_exact) < _REMEMBERED:
            _exact.add(facts)
    return _global_hooks()


def _read(branch: Branch) -> Any:
    """All that `_examine` judges by, in the fewest steps. None where it is sure to find something,
    or where a class of torch was changed."""
    layers = [layer for layer in branch[1:] if layer is not None]
    try:
        steps = [tuple(layer._modules.values()) for layer in layers]
        modules: list[Any] = [*layers, *chain.from_iterable(steps)]
        if len(modules) != 4 * len(layers) + 2:
            return None
        for module in modules:
            own = module.__dict__
            if _hooked(own) or "forward" in own or "_conv_forward" in own or "_call_impl" in own:
                return None
        last = steps[-1]
        convolutions = [step[0].__dict__ for step in steps] + [last[3].__dict__]
        norms = [step[1].__dict__ for step in steps] + [last[4].__dict__]
        weights = [own["_parameters"] for own in convolutions]
        return (
            tuple([layer is None for layer in branch]),
            branch.theta is branch.phi,
            tuple(map(type, modules)),
            tuple(map(_geometry, convolutions)),
            tuple([w["bias"] is None for w in weights]),
            tuple([w["weight"].numel() if "weight" in w else None for w in weights]),
            tuple([(own["num_features"], own["track_running_stats"]) for own in norms]),
            tuple([_absent(own) for own in norms]),
            (nn.Sequential.forward, nn.Conv2d.forward, nn.Conv2d._conv_forward, nn.ReLU.forward),
            (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward, nn.Module._call_impl),
        )
    except LookupError:
        return None


def _hooked(own: dict[str, Any]) -> bool:
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
    )


def _geometry(own: dict[str, Any]) -> tuple[Any, ...]:
    channels = own["in_channels"], own["out_channels"]
    return *channels, own["kernel_size"], own["stride"], own["padding"], own["groups"]


def _absent(own: dict[str, Any]) -> tuple[bool, bool, bool]:
    """Which statistics a normalisation does not have: mean, variance, number of batches."""
    buffers = own["_buffers"]
    mean, variance = buffers["running_mean"] is None, buffers["running_var"] is None
    return mean, variance, buffers["num_batches_tracked"] is None


def _examine(branch: Branch) -> str | None:
    widths = []
    for name, layer in zip(_NAMES, branch[1:], strict=True):
        if layer is None:
            widths.append((0, 0))
            continue
        found = _layer(layer, 5 if name == "W" else 3)
        if found is not None:
            return f"{name}_{branch.view}{found}"
        steps = [step.__dict__ for step in layer._modules.values()]
        widths.append((steps[0]["in_channels"], steps[3 * (name == "W")]["out_channels"]))
    return _mismatch(branch, *widths)


def _layer(layer: nn.Module, count: int) -> str | None:
    kind = type(layer)
    if kind.forward is not _SEQUENTIAL or kind._call_impl is not _CALL:
        return f" is {kind.__name__}, where torch.nn.Sequential is supported"
    if (found := _changed(layer)) is not None:
        return found
    steps: Sequence[Any] = list(layer._modules.values())
    features = None
    for i, (step, check) in enumerate(zip(steps, _CHECKS[:count], strict=False)):
        found = _changed(step)
        if found is None and type(step)._call_impl is not _CALL:
            found = f" is {type(step).__name__}, which is called in its own way"
        found = check(step, features) if found is None else found
        if found is not None:
            return f".{i}{found}"
        features = step.__dict__.get("out_channels", features)
    if len(steps) != count:
        names = ", ".join(type(step).__name__ for step in steps)
        return f" is {names}, where {count} layers are supported"
    return None


def _changed(module: nn.Module) -> str | None:
    """What was done to one module, as opposed to its class."""
    own = module.__dict__
    if _hooked(own):
        return f" ({type(module).__name__}) has hooks"
    for name in _METHODS:
        if name in own:
            return f" ({type(module).__name__}) has a {name} that was replaced"
    return None


def _convolution(step: nn.Module, features: int | None) -> str | None:
    kind, own = type(step), step.__dict__
    if getattr(kind, "_conv_forward", None) is not _PRODUCT or kind.forward is not _CONVOLUTION:
        return f" is {kind.__name__}, where torch.nn.Conv2d is supported"
    if own["_parameters"].get("bias", own) is not None:
        return f" ({kind.__name__}) has a bias"
    inputs, outputs, kernel, stride, padding, groups = _geometry(own)
    plain = kernel == stride == (1, 1) and padding in ((0, 0), "valid", "same") and groups == 1
    if not plain:
        return f" is {step}, where kernel 1, stride 1, no padding and no groups are supported"
    weight = own["_parameters"].get("weight")  # absent where it is parametrised
    if weight is not None and weight.numel() != inputs * outputs:
        return f" ({kind.__name__}) has a weight of shape {tuple(weight.shape)}"
    return _features(step, features, inputs)


def _normalisation(step: nn.Module, features: int | None) -> str | None:
    kind: Any = type(step)
    own = step.__dict__
    if kind.forward not in _NORMALISATIONS or kind._check_input_dim not in _OF_MAPS:
        return f" is {kind.__name__}, where torch.nn.BatchNorm2d or SyncBatchNorm is supported"
    mean, variance, tracked = _absent(own)
    if mean != variance or (own["track_running_stats"] and (mean or tracked)):
        return f" ({kind.__name__}) lacks a part of its running statistics"
    return _features(step, features, own["num_features"])


def _relu(step: nn.Module, features: int | None) -> str | None:
    kind = type(step)
    return None if kind.forward is _RELU else f" is {kind.__name__}, where a ReLU is supported"


def _features(step: nn.Module, given: int | None, taken: int) -> str | None:
    if given is None or given == taken:
        return None
    return f" ({type(step).__name__}) takes {taken} features, {given} come"


_CHECKS = (_convolution, _normalisation, _relu, _convolution, _normalisation)


def _mismatch(branch: Branch, theta: Any, phi: Any, psi: Any, relation: Any, W: Any) -> str | None:
    """Layers that do not fit together, by (inputs, outputs) of each; (0, 0) for an absent one."""
    view = branch.view
    if branch.phi is not None and branch.phi is branch.theta:
        return f"phi_{view} is theta_{view} itself, one layer that runs twice"
    if branch.phi is not None and phi != theta:
        return f"phi_{view} takes and gives {phi} features, theta_{view} {theta}"
    if branch.theta is not None and branch.psi is not None and psi[0] != theta[0]:
        return f"gx_{view} takes {psi[0]} features, theta_{view} {theta[0]}"
    if relation[0] % 2:
        return f"gg_{view} takes {relation[0]} features, where twice the nodes are supported"
    if W[0] != (wanted := relation[1] + (branch.psi is not None)):
        return f"W_{view} takes {W[0]} features, {wanted} come"
    return None if W[1] == 1 else f"W_{view} gives {W[1]} features, where 1 is supported"


def _global_hooks() -> str | None:
    """torch's own, by which it counts operations per module, only watch."""
    for registered in (
        registry._global_forward_hooks,
        registry._global_forward_pre_hooks,
        registry._global_backward_hooks,
        registry._global_backward_pre_hooks,
    ):
        for hook in registered.values():
            if not getattr(hook, "__module__", "").startswith("torch."):
                return "hooks are registered for all modules"
    return None
