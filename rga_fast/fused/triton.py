"""The operators in Triton (kernels/), for GPUs; on the CPU only in Triton's interpreter."""

import functools
import os
from typing import Any

import torch

from rga_fast.fused import ops

SCHEMAS = ops.SCHEMAS | ops.PAIR | ops.WHOLE | ops.WHOLE_PAIR
_LIBRARY = ops.define("triton", SCHEMAS, low_products=True)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Why impl="auto" takes another where this one can run, too.
PASSED_OVER = "it was not measured on a GPU yet; ask for it by name"
CAPABILITY = (8, 0)


@functools.cache
def import_error() -> ImportError | None:
    """Why the kernels cannot be imported; None where they can. Imports Triton, so not earlier."""
    try:
        import rga_fast.kernels  # noqa: F401
    except ImportError as error:
        return error
    return None


@ops.constant
def _missing() -> str | None:
    error = import_error()
    return None if error is None else f"the Triton kernels could not be imported: {error}"


@ops.constant
def _too_old(index: int) -> str | None:
    if torch.version.hip is not None or torch.cuda.get_device_capability(index) >= CAPABILITY:
        return None
    return f"it needs compute capability 8.0, the GPU has {torch.cuda.get_device_capability(index)}"


def problem(x: torch.Tensor) -> str | None:
    """Why the operators cannot run on `x`; None where they can."""
    if x.device.type != ("cpu" if INTERPRETED else "cuda"):
        where = "the CPU, under Triton's interpreter," if INTERPRETED else "a GPU"
        return f"it runs on {where}, the map is on {x.device}"
    if x.dtype not in DTYPES:
        return f"it supports {', '.join(str(d)[6:] for d in DTYPES)}, the map is {str(x.dtype)[6:]}"
    if x.numel() >= 2**31 * max(1, x.shape[0]):
        return f"it supports maps of less than 2^31 values an image, got {tuple(x.shape)}"
    return _missing() or (None if INTERPRETED else _too_old(x.device.index))


def note() -> str:
    """The release of Triton, or why the kernels cannot run on this machine."""
    if (missing := _missing()) is not None:
        return missing
    import triton

    release = f"Triton {triton.__version__}"
    if INTERPRETED:
        return f"{release}, interpreted on the CPU, for tests"
    return release if torch.cuda.is_available() else f"{release}, no GPU is visible"


def available() -> bool:
    """On a GPU: what the interpreter does is not worth timing."""
    return import_error() is None and torch.cuda.is_available() and not INTERPRETED


def _implement(name: str) -> None:
    def operator(*args: Any) -> Any:
        from rga_fast import kernels

        return kernels.call(name, *args)

    _LIBRARY.impl(name, operator, "CPU" if INTERPRETED else "CUDA")


for _name in SCHEMAS:
    _implement(_name)
