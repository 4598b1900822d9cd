"""The operators in Triton (kernels/), for GPUs; on the CPU only in Triton's interpreter."""

import functools
import os
from typing import Any

import torch

from rga_fast.fused import ops
from rga_fast.fused.backend import Backend

SCHEMAS = ops.SCHEMAS | ops.PAIR | ops.WHOLE | ops.WHOLE_PAIR
_LIBRARY = ops.define("triton", SCHEMAS, low_products=True)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def import_error() -> ImportError | None:
    """Why the kernels cannot be imported; None where they can. Imports Triton, so not earlier."""
    try:
        import rga_fast.kernels  # noqa: F401
    except ImportError as error:
        return error
    return None


@ops.constant
def missing() -> str | None:
    """Why no map of this process can be run; None where one can."""
    error = import_error()
    return None if error is None else f"the Triton kernels could not be imported: {error}"


def _note() -> str:
    if (problem := missing()) is not None:
        return problem
    import triton

    release = f"Triton {triton.__version__}"
    if INTERPRETED:
        return f"{release}, interpreted on the CPU, for tests"
    return release if torch.cuda.is_available() else f"{release}, no GPU is visible"


BACKEND: Backend = Backend(
    name="triton",
    reason="fused Triton kernels",
    device="cpu" if INTERPRETED else "cuda",
    place="the CPU, under Triton's interpreter," if INTERPRETED else "a GPU",
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    missing=missing,
    import_error=import_error,
    note=_note,
    # On a GPU: what the interpreter does is not worth timing.
    available=lambda: missing() is None and torch.cuda.is_available() and not INTERPRETED,
    passed_over="it was not measured on a GPU yet; ask for it by name",
    capability=(8, 0),
    largest=2**31,
)


def _implement(name: str) -> None:
    def operator(*args: Any) -> Any:
        from rga_fast import kernels

        return kernels.call(name, *args)

    _LIBRARY.impl(name, operator, "CPU" if INTERPRETED else "CUDA")


for _name in SCHEMAS:
    _implement(_name)
