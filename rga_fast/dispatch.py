"""Which implementation runs, and why."""

from typing import NamedTuple

from torch import Tensor

from rga_fast import validation

IMPLEMENTATIONS = ("reference", "torch")
ARGUMENTS = ("auto", *IMPLEMENTATIONS)


class Choice(NamedTuple):
    """The implementation that runs, and the reason it was taken."""

    impl: str
    reason: str


def choose(impl: str, x: Tensor) -> Choice:
    """The implementation that `impl` means for the input `x`.

    A named implementation is taken at its word. "auto" takes the fastest that supports the input.

    Raises:
        ValueError: for a name that is none of `ARGUMENTS`.
    """
    validation.check_choice("rga_fast", "impl", impl, ARGUMENTS)
    if impl != "auto":
        return Choice(impl, "asked for by name")
    return Choice("torch", "reassociated products in plain PyTorch run on every device")
