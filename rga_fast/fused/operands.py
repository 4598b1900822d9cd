"""From the modules of a branch to what the operators take: its structure and its tensors."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rga_fast.fused import ops, shapes
from rga_fast.fused.structure import Structure
from rga_fast.reference import Branch


class Plan(NamedTuple):
    """How a branch is computed, whatever its tensors hold."""

    namespace: str
    view: str
    structure: Structure
    batch: tuple[bool, ...]  # per layer: normalised by the statistics of the batch
    eps: tuple[float, ...]
    group: Any  # the process group that shares batch statistics, or None

    def operator(self, name: str) -> Callable[..., Any]:
        return getattr(getattr(torch.ops, self.namespace), name).default

    @property
    def whole(self) -> bool:
        """Whether a training step has one operator forward and one backward."""
        return self.group is None and "training_fwd" in ops.defined(self.namespace)


class Layers(NamedTuple):
    """The tensors of the layers, in the compute dtype."""

    weights: tuple[Tensor, ...]  # of 1x1 convolutions
    scales: tuple[Tensor, ...]
    shifts: tuple[Tensor, ...]
    means: tuple[Any, ...]  # running statistics, None where the batch's are used
    variances: tuple[Any, ...]

    @classmethod
    def joined(cls, tensors: Sequence[Any]) -> "Layers":
        """From the tensors of all fields, one field after the other."""
        count = len(tensors) // len(cls._fields)
        return cls(*(tuple(tensors[i : i + count]) for i in range(0, len(tensors), count)))

    @property
    def matrices(self) -> list[Tensor]:
        return [weight.flatten(1) for weight in self.weights]

    @property
    def norms(self) -> list[Tensor]:
        """Mean, variance, weight and bias of each layer; a bias stands for absent statistics."""
        four = zip(self.means, self.variances, self.scales, self.shifts, strict=True)
        return [shift if t is None else t for *most, shift in four for t in (*most, shift)]


class PreparedBranch(NamedTuple):
    """Modules, structure and operands of a branch."""

    norms: Sequence[_BatchNorm]
    plan: Plan
    layers: Layers


def prepare(x: Tensor, branch: Branch, impl: str) -> PreparedBranch:
    """What the operators of `impl` need of `branch` for the map `x`."""
    convolutions, norms = _modules(branch)
    plan = _plan(impl, branch, norms)
    layers = _layers(convolutions, norms, plan.batch, shapes.compute_dtype(x))
    return PreparedBranch(norms, plan, layers)


def track(branches: Sequence[PreparedBranch], statistics: Sequence[Tensor], empty: bool) -> None:
    """Updates the running statistics of all branches from mean and unbiased variance (2, rows) of
    each; of an `empty` batch only the number of batches."""
    counters: list[Tensor] = []
    old: list[Tensor] = []
    new: list[Tensor] = []
    factors: list[float | None] = []
    for (norms, plan, _), stats in zip(branches, statistics, strict=True):
        widths = [norm.num_features for norm in norms]
        rows = [torch.split_with_sizes(row, widths) for row in stats.unbind()]
        for norm, by_batch, new_mean, new_variance in zip(norms, plan.batch, *rows, strict=True):
            if by_batch and norm.training and norm.track_running_stats:
                counters.append(cast(Tensor, norm.num_batches_tracked))
                old += (cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var))
                new += (new_mean, new_variance)
                factors += (norm.momentum, norm.momentum)
    if not counters:
        return
    torch._foreach_add_(counters, 1)
    if empty:
        return
    new = [value.to(buffer.dtype) for value, buffer in zip(new, old, strict=True)]
    if len(set(factors)) == 1 and factors[0] is not None:
        torch._foreach_lerp_(old, new, factors[0])
        return
    for i, (buffer, value) in enumerate(zip(old, new, strict=True)):
        factor: Any = factors[i]
        if factor is None:  # the mean over all batches
            factor = counters[i // 2].to(buffer.dtype).reciprocal()
        buffer.lerp_(value, factor)


def _modules(branch: Branch) -> tuple[list[nn.Conv2d], list[_BatchNorm]]:
    layers: list[Any] = [branch.theta, branch.phi] if branch.relation is not None else []
    layers = [layer for layer in [*layers, branch.psi, branch.relation] if layer is not None]
    steps: list[Any] = [tuple(layer) for layer in [*layers, branch.perceptron]]
    convolutions = [step[0] for step in steps] + [steps[-1][3]]
    return convolutions, [step[1] for step in steps] + [steps[-1][4]]


def _plan(impl: str, branch: Branch, norms: Sequence[_BatchNorm]) -> Plan:
    relations = branch.relation is not None
    return Plan(
        ops.namespace(impl),
        branch.view,
        Structure(
            embeddings=relations * ((branch.theta is not None) + (branch.phi is not None)),
            relations=relations,
            appearance=branch.psi is not None,
        ),
        batch=tuple(norm.training or norm.running_mean is None for norm in norms),
        eps=tuple(norm.eps for norm in norms),
        group=_group(norms),
    )


def _group(norms: Sequence[_BatchNorm]) -> Any:
    """The process group of the synchronised normalisations, if they are training in one."""
    synchronised = [n for n in norms if isinstance(n, nn.SyncBatchNorm) and n.training]
    if not synchronised or not (dist.is_available() and dist.is_initialized()):
        return None
    group = synchronised[0].process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def _layers(
    convolutions: Sequence[nn.Conv2d],
    norms: Sequence[_BatchNorm],
    batch: Sequence[bool],
    dtype: torch.dtype,
) -> Layers:
    fields: Any = ([], [], [], [], [])
    weights, scales, shifts, means, variances = fields
    for convolution, norm, by_batch in zip(convolutions, norms, batch, strict=True):
        weight, scale, shift = convolution.weight, norm.weight, norm.bias
        weights.append(weight)
        scales.append(weight.new_ones(len(weight)) if scale is None else scale)
        shifts.append(weight.new_zeros(len(weight)) if shift is None else shift)
        means.append(None if by_batch else norm.running_mean)
        variances.append(None if by_batch else norm.running_var)
    return Layers(
        *(
            tuple(t if t is None or t.dtype == dtype else t.to(dtype) for t in field)
            for field in fields
        )
    )
