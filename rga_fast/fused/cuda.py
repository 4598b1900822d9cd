"""The compiled operators for CUDA GPUs (csrc/cuda/), where the extension was built with them."""

import torch

from rga_fast.fused import cpp, ops
from rga_fast.fused.backend import Backend

_LIBRARY = ops.define("cuda", ops.SCHEMAS | ops.PAIR)
COMPILED: str | None = None if cpp.ERROR is not None else cpp.extension().build_info().get("cuda")


@ops.constant
def missing() -> str | None:
    """Why no map of this process can be run; None where one can."""
    if (problem := cpp.missing()) is not None:
        return problem
    if COMPILED is None:
        why = cpp.build_problems() or "no CUDA toolkit was found, or RGA_FAST_CUDA=0 was set"
        return f"the extension has no CUDA kernels: {why}. Install the toolkit and build again"
    if not torch.cuda.is_available():
        return "no CUDA driver with a GPU was found"
    return None


BACKEND: Backend = Backend(
    name="cuda",
    reason="fused CUDA C++ kernels",
    device="cuda",
    place="CUDA GPUs",
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    missing=missing,
    import_error=lambda: cpp.ERROR,
    note=lambda: missing() or f"compiled for {COMPILED}",
    available=lambda: missing() is None,
    passed_over="it was not measured on a GPU yet; ask for it by name",
    capability=(8, 0),
    largest=2**31,
)
