"""The compiled operators for the CPU (csrc/), where they were built."""

from typing import Any

import torch

from rga_fast.fused import ops
from rga_fast.fused.backend import Backend

_LIBRARY = ops.define("cpp", ops.SCHEMAS | ops.PAIR | ops.WHOLE)

ERROR: ImportError | None = None
try:
    from rga_fast import _C  # type: ignore[attr-defined]
except ImportError as error:
    ERROR = error


def extension() -> Any:
    """The extension itself. Raises the ImportError where it was not built."""
    if ERROR is not None:
        raise ERROR
    return _C


@ops.constant
def missing() -> str | None:
    """Why no operator of the extension can run in this process; None where they can."""
    return None if ERROR is None else f"the compiled extension could not be imported: {ERROR}"


def _note() -> str:
    if ERROR is not None:
        return f"not built: {ERROR}"
    return ", ".join(f"{key} {value}" for key, value in _C.build_info().items())


BACKEND: Backend = Backend(
    name="cpp",
    reason="fused C++ operators, the fastest on a CPU",
    device="cpu",
    place="the CPU",
    dtypes=(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    missing=missing,
    import_error=lambda: ERROR,
    note=_note,
    available=lambda: ERROR is None,
)
