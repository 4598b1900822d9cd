"""Which implementation runs, and why."""

from typing import NamedTuple

from torch import Tensor

from rga_fast import validation
from rga_fast.fused import cpp, cuda, operands, triton
from rga_fast.fused.backend import Backend
from rga_fast.reference import Branch

# The fused implementations, the fastest of a device first.
FUSED: dict[str, Backend] = {b.name: b for b in (cpp.BACKEND, cuda.BACKEND, triton.BACKEND)}
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


def choose(impl: str, x: Tensor, branch: Branch | None = None) -> Choice:
    """The implementation that `impl` means for the input `x` (and the layers of `branch`).

    A named implementation is taken at its word. "auto" takes the fastest that supports the input.

    Raises:
        ValueError: for a name that is none of `ARGUMENTS`.
        RuntimeError: for a named implementation that was not built; quotes the import error.
        NotImplementedError: for one that does not support the input; says what it supports.
    """
    validation.check_choice("rga_fast", "impl", impl, ARGUMENTS)
    if impl in ("reference", "torch"):
        return Choice(impl, "asked for by name")
    problems = []
    for backend in FUSED.values():
        if impl not in ("auto", backend.name):
            continue
        problem = backend.problem(x)
        if problem is None and branch is not None:
            problem = operands.unsupported(branch)
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


def _check_named(backend: Backend, problem: str | None) -> None:
    if problem is not None:
        cause = backend.import_error()
        error = NotImplementedError if cause is None else RuntimeError
        raise error(f"rga_fast: impl={backend.name!r} cannot run here: {problem}") from cause
