"""The compiled operators for the CPU (csrc/), where they were built."""

from typing import Any

import torch

from rga_fast.fused import ops

_LIBRARY = ops.define("cpp", ops.SCHEMAS | ops.PAIR | ops.WHOLE)
PASSED_OVER: str | None = None
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

ERROR: ImportError | None = None
try:
    from rga_fast import _C  # type: ignore[attr-defined]
except ImportError as error:
    ERROR = error


def problem(x: torch.Tensor) -> str | None:
    """Why the operators cannot run on `x`; None where they can."""
    if ERROR is not None:
        return f"the compiled extension could not be imported: {ERROR}"
    if x.device.type != "cpu":
        return f"it runs on the CPU, the map is on {x.device}"
    if x.dtype not in DTYPES:
        return f"it supports {', '.join(str(d)[6:] for d in DTYPES)}, the map is {str(x.dtype)[6:]}"
    return None


def available() -> bool:
    return ERROR is None


def import_error() -> ImportError | None:
    return ERROR


def note() -> str:
    """How the extension was built and what runs, or why it is missing."""
    if ERROR is not None:
        return f"not built: {ERROR}"
    return ", ".join(f"{key} {value}" for key, value in _C.build_info().items())


def extension() -> Any:
    """The extension itself. Raises the ImportError where it was not built."""
    if ERROR is not None:
        raise ERROR
    return _C
