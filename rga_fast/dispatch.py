"""Which implementation runs, and why."""

from types import ModuleType
from typing import NamedTuple

from torch import Tensor

from rga_fast import validation
from rga_fast.fused import cpp, cuda, operands, triton
from rga_fast.reference import Branch

# The fused implementations, the fastest of a device first.
FUSED: dict[str, tuple[ModuleType, str]] = {
    "cpp": (cpp, "fused C++ operators, the fastest on a CPU"),
    "cuda": (cuda, "fused CUDA C++ kernels"),
    "triton": (triton, "fused Triton kernels"),
}
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
        *(Implementation(name, m.available(), m.note()) for name, (m, _) in FUSED.items()),
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
    for name, (module, reason) in FUSED.items():
        if impl not in ("auto", name):
            continue
        problem = module.problem(x)
        if problem is None and branch is not None:
            problem = operands.unsupported(branch)
        if impl == name:
            _check_named(name, module, problem)
            return Choice(impl, "asked for by name")
        problem = problem or module.PASSED_OVER
        if problem is None:
            return Choice(name, reason)
        problems.append(f"not {name}: {problem}")
    return Choice("torch", "; ".join(["plain PyTorch runs on every device", *problems]))


def _check_named(name: str, module: ModuleType, problem: str | None) -> None:
    if problem is not None:
        cause = module.import_error()
        error = NotImplementedError if cause is None else RuntimeError
        raise error(f"rga_fast: impl={name!r} cannot run here: {problem}") from cause
