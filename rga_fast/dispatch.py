"""Which implementation runs, and why."""

from typing import NamedTuple

from torch import Tensor

from rga_fast import cpp, fused, validation
from rga_fast.reference import Branch

IMPLEMENTATIONS = ("reference", "torch", "cpp")
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
        Implementation("cpp", cpp.ERROR is None, cpp.note()),
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
    problem = cpp.problem(x)
    if problem is None and branch is not None:
        problem = fused.unsupported(branch)
    if impl == "cpp":
        if problem is not None:
            error = NotImplementedError if cpp.ERROR is None else RuntimeError
            raise error(f"rga_fast: impl='cpp' cannot run here: {problem}") from cpp.ERROR
        return Choice(impl, "asked for by name")
    if problem is None:
        return Choice("cpp", "fused C++ operators, the fastest on a CPU")
    return Choice("torch", f"plain PyTorch runs on every device; not cpp: {problem}")
