"""A fused implementation as a value: where it runs, for what, and why not."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from rga_fast.fused import ops


class Backend(NamedTuple):
    """One implementation of the operators of rga_fast/fused/ops.py.

    `missing`, `capability` and what calls them are constants to `torch.compile`: they depend on the
    process and its devices, not on the input.
    """

    name: str
    reason: str  # why impl="auto" takes it
    device: str  # the type of torch's devices that it runs on
    place: str  # the same in words
    dtypes: tuple[torch.dtype, ...]
    missing: Callable[[], str | None]  # why no map of this process can be run; None: one can
    import_error: Callable[[], ImportError | None]  # the cause, where something is not importable
    note: Callable[[], str]  # how it was built, or why it cannot run
    available: Callable[[], bool]  # whether it runs on this machine at a speed worth having
    passed_over: str | None = None  # why impl="auto" takes another where this one can run, too
    capability: tuple[int, int] | None = None  # the least of a CUDA GPU
    largest: int | None = None  # values of an image must be fewer

    def problem(self, x: torch.Tensor) -> str | None:
        """Why the operators cannot run on `x`; None where they can."""
        if x.device.type != self.device:
            return f"it runs on {self.place}, the map is on {x.device}"
        if x.dtype not in self.dtypes:
            supported = ", ".join(str(dtype)[6:] for dtype in self.dtypes)
            return f"it supports {supported}, the map is {str(x.dtype)[6:]}"
        if self.largest is not None and x.numel() >= self.largest * max(1, x.shape[0]):
            power = self.largest.bit_length() - 1
            return f"it supports maps of less than 2^{power} values an image, got {tuple(x.shape)}"
        problem = self.missing()
        if problem is None and self.capability is not None and self.device == "cuda":
            problem = _too_old(x.device.index, self.capability)
        return problem


@ops.constant
def _too_old(index: int, needed: tuple[int, int]) -> str | None:
    if torch.version.hip is not None:
        return None
    has = torch.cuda.get_device_capability(index)
    if has >= needed:
        return None
    least = ".".join(map(str, needed))
    return f"it needs compute capability {least} or later, the GPU has {has[0]}.{has[1]}"
