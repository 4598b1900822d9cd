"""The compiled operators for the CPU (csrc/), where they were built."""

import warnings
from pathlib import Path
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

# What setup.py could not build and why, one problem a line.
PROBLEMS = Path(__file__).parents[1] / "build_problems.txt"
_warned = False


def build_problems() -> str:
    """What could not be built when the package was installed; empty where everything was."""
    try:
        return "; ".join(PROBLEMS.read_text(encoding="utf-8").splitlines())
    except OSError:
        return ""


@ops.constant
def warn_where_missing() -> None:
    """Warns, once a process, that a CPU gets plain PyTorch because the extension is missing: pip
    does not show what an installation that succeeded has to say."""
    global _warned
    if ERROR is None or _warned:
        return
    _warned = True
    warnings.warn(
        'rga_fast: impl="auto" runs plain PyTorch on the CPU, which is slower, because the '
        f"compiled extension is missing: {build_problems() or ERROR}. Install a C++20 compiler "
        "(g++ or clang++) and then rga_fast again from its source; with "
        "RGA_FAST_REQUIRE_EXTENSION=1 in the environment pip fails and shows what went wrong. "
        'impl="torch" asks for plain PyTorch and does not warn.',
        stacklevel=3,
    )


def extension() -> Any:
    """The extension itself. Raises the ImportError where it was not built."""
    if ERROR is not None:
        raise ERROR
    return _C


@ops.constant
def missing() -> str | None:
    """Why no operator of the extension can run in this process; None where they can."""
    if ERROR is None:
        return None
    return f"the compiled extension could not be imported: {build_problems() or ERROR}"


def _note() -> str:
    if ERROR is not None:
        return f"not built: {build_problems() or ERROR}"
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
