"""Which implementation runs, and why."""

from typing import NamedTuple

import torch
from torch import Tensor

from rga_fast import exactness, validation
from rga_fast.fused import cpp, cuda, flops, ops, triton
from rga_fast.fused.backend import Backend
from rga_fast.reference import Branch

# The fused implementations, the fastest of a device first.
FUSED: dict[str, Backend] = {b.name: b for b in (cpp.BACKEND, cuda.BACKEND, triton.BACKEND)}
for _name in FUSED:
    flops.register(ops.namespace(_name))
IMPLEMENTATIONS = ("reference", "torch", *FUSED)
ARGUMENTS = ("auto", *IMPLEMENTATIONS)


class Choice(NamedTuple):
    """The implementation that runs, and the reason it was taken."""

    impl: str
    reason: str


class Implementation(NamedTuple):
    """An implementation, whether it can run on this machine, and what to know about it."""

    name: str
    available: bool
    note: str


def implementations() -> list[Implementation]:
    """Every implementation, and for one that is not available, why not."""
    return [
        Implementation("reference", True, "the published form, affinity matrix and all"),
        Implementation("torch", True, "reassociated products in plain PyTorch, on every device"),
        *(Implementation(b.name, b.available(), b.note()) for b in FUSED.values()),
    ]


def choose(impl: str, x: Tensor, *branches: Branch) -> Choice:
    """The implementation that `impl` means for the input `x` (and the layers of `branches`).

    A named implementation is taken at its word. "auto" takes the fastest that supports the input;
    "reference" where layers are not what the others compute, see `rga_fast.exactness`.

    Raises:
        ValueError: for a name that is none of `ARGUMENTS`.
        RuntimeError: for a named implementation that was not built; quotes the import error.
        NotImplementedError: for one that does not support the input or the layers; says what it
            supports.
    """
    validation.check_choice("rga_fast", "impl", impl, ARGUMENTS)
    if impl == "reference":
        return Choice(impl, "asked for by name")
    inexact = next((p for p in map(exactness.problem, branches) if p is not None), None)
    if inexact is not None:
        if impl == "auto":
            return Choice("reference", f"the layers run as modules: {inexact}")
        raise NotImplementedError(
            f"rga_fast: impl={impl!r} cannot run here: {inexact}; impl='reference' runs the layers "
            "as modules"
        )
    if impl == "torch":
        return Choice(impl, "asked for by name")
    problems = []
    surrounding = _surrounding()
    for backend in FUSED.values():
        if impl not in ("auto", backend.name):
            continue
        problem = backend.problem(x) or surrounding
        if impl == backend.name:
            _check_named(backend, problem)
            return Choice(impl, "asked for by name")
        problem = problem or backend.passed_over
        if problem is None:
            return Choice(backend.name, backend.reason)
        problems.append(f"not {backend.name}: {problem}")
    if x.device.type == "cpu":
        cpp.warn_where_missing()
    return Choice("torch", "; ".join(["plain PyTorch runs on every device", *problems]))


@ops.constant
def _surrounding() -> str | None:
    """What around the call takes operations of PyTorch alone."""
    if torch._C._are_functorch_transforms_active():
        return "transforms of torch.func (grad, vmap, ...) take impl='torch'"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace takes impl='torch'"
    return None


def _check_named(backend: Backend, problem: str | None) -> None:
    if problem is not None:
        cause = backend.import_error()
        error = NotImplementedError if cause is None else RuntimeError
        raise error(f"rga_fast: impl={backend.name!r} cannot run here: {problem}") from cause
