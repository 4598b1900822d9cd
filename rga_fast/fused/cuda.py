"""The compiled operators for CUDA GPUs (csrc/cuda/), where the extension was built with them."""

import torch

from rga_fast.fused import cpp, ops

_LIBRARY = ops.define("cuda", ops.SCHEMAS | ops.PAIR)
# Why impl="auto" takes another where this one can run, too.
PASSED_OVER = "it was not measured on a GPU yet; ask for it by name"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CAPABILITY = (8, 0)

COMPILED: str | None = None if cpp.ERROR is not None else cpp.extension().build_info().get("cuda")


def import_error() -> ImportError | None:
    return cpp.ERROR


@ops.constant
def _missing() -> str | None:
    """Why no map of this process can be run; None where one can."""
    if cpp.ERROR is not None:
        return f"the compiled extension could not be imported: {cpp.ERROR}"
    if COMPILED is None:
        return (
            "the extension was built without CUDA, which takes a CUDA build of torch and nvcc: "
            "install them and build again"
        )
    if not torch.cuda.is_available():
        return "no CUDA driver with a GPU was found"
    return None


@ops.constant
def _too_old(index: int) -> str | None:
    has = torch.cuda.get_device_capability(index)
    if has >= CAPABILITY:
        return None
    return f"it needs compute capability 8.0 or later, the GPU has {has[0]}.{has[1]}"


def problem(x: torch.Tensor) -> str | None:
    """Why the operators cannot run on `x`; None where they can."""
    if x.device.type != "cuda":
        return f"it runs on CUDA GPUs, the map is on {x.device}"
    if x.dtype not in DTYPES:
        return f"it supports {', '.join(str(d)[6:] for d in DTYPES)}, the map is {str(x.dtype)[6:]}"
    if x.numel() >= 2**31 * max(1, x.shape[0]):
        return f"it supports maps of less than 2^31 values an image, got {tuple(x.shape)}"
    return _missing() or _too_old(x.device.index)


def note() -> str:
    """For which GPUs the kernels were compiled, or why they cannot run."""
    return _missing() or f"compiled for {COMPILED}"


def available() -> bool:
    return _missing() is None
