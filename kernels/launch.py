"""Kernels, the configurations that each is tried with, and how one is chosen."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))
OPTIONS = ("num_warps", "num_stages")
LOW = (torch.bfloat16, torch.float16)
# Float32 products without TF32 are unrolled, not tensor-core instructions: in larger blocks they
# spill, and compile for minutes.
EXACT = 32
Config = dict[str, int]
# Kernels are `jit`, what they call is `triton.jit`. These sizes align no address, so one compiled
# kernel serves them all: the last batch of an epoch, and most of a network's stages.
ANY = ("B", "k", "psi_rows", "psi_tiles", "splits", "count", "tiles", "begin", "total", "width")
jit = triton.jit(do_not_specialize=ANY)


class Kernel:
    """A Triton kernel with a short list of configurations (block sizes, warps, stages).

    `blocks` names the argument that each block divides: no block is larger than the power of 2
    above it. The first call for such sizes times the configurations, and Triton keeps the choice
    in its cache folder. The first of the list is the default: RGA_FAST_TRITON_TUNE=0 pins it, and
    so do PyTorch's deterministic algorithms, because another block adds in another order.
    """

    def __init__(self, function: Any, blocks: Mapping[str, str], configs: Sequence[Config]) -> None:
        self.function = function
        self.configs = list(configs)
        self._divided = dict(blocks)
        self._key = list(dict.fromkeys(blocks.values()))
        self._tuners: dict[Any, Any] = {}

    def __call__(self, programs: Callable[[Config], int], **arguments: Any) -> Config:
        """Runs `programs(config)` programs; the configuration that was taken."""

        def grid(config: Config) -> tuple[int]:
            return (programs(config),)

        configs = self.fitted_to(arguments)
        if len(configs) == 1 or _pinned():
            self.function[grid](**arguments, **configs[0])
            return configs[0]
        kind = tuple(tuple(config.items()) for config in configs)
        if kind not in self._tuners:
            self._tuners[kind] = _tuner(self.function, self._key, configs)
        tuner = self._tuners[kind]
        tuner[grid](**arguments)
        return tuner.best_config.all_kwargs()

    def fitted_to(self, arguments: Mapping[str, Any]) -> list[Config]:
        """The configurations for these arguments, no block larger than what it divides; only the
        first where products are exact float32."""
        most = {block: power_of_2(arguments[size]) for block, size in self._divided.items()}
        candidates = self.configs
        exact = arguments.get("PRECISION") == "ieee" and not INTERPRETED.value
        if exact and not _low(arguments.values()):
            small = {b: min(v, EXACT) for b, v in candidates[0].items() if b.startswith("BLOCK")}
            candidates = [{**small, "num_warps": 8, "num_stages": 2}]
        configs: list[Config] = []
        for config in candidates:
            own = {name: min(value, most.get(name, value)) for name, value in config.items()}
            if own not in configs:
                configs.append(own)
        return configs

    def smallest(self, block: str) -> int:
        """Over all configurations: what scratch must be large enough for."""
        return min(EXACT, *(config[block] for config in self.configs))


def _low(arguments: Iterable[Any]) -> bool:
    return any(isinstance(a, torch.Tensor) and a.dtype in LOW for a in arguments)


def _tuner(function: Any, key: list[str], configs: Sequence[Config]) -> Any:
    candidates = [
        triton.Config(
            {name: value for name, value in config.items() if name not in OPTIONS},
            **{name: config[name] for name in OPTIONS if name in config},
        )
        for config in configs
    ]
    return triton.autotune(candidates, key=key, cache_results=True, do_bench=_bench)(function)


def _bench(call: Callable[[], Any], quantiles: Sequence[float]) -> Any:
    # Triton's own default times each for 125 ms, and a network has a hundred kernels and shapes.
    return triton.testing.do_bench(call, warmup=5, rep=20, quantiles=quantiles)


def _pinned() -> bool:
    return (
        INTERPRETED.value
        or os.environ.get("RGA_FAST_TRITON_TUNE") == "0"
        or torch.are_deterministic_algorithms_enabled()
    )


def strides(tensor: torch.Tensor, name: str = "stride") -> dict[str, int]:
    """Those of a tensor (B, d, n), as a kernel names them."""
    return dict(zip((f"{name}_b", f"{name}_d", f"{name}_n"), tensor.stride(), strict=True))


def power_of_2(rows: int) -> int:
    """The smallest side of a product's tile that holds `rows`."""
    return max(16, triton.next_power_of_2(rows))


def precision(x: torch.Tensor) -> str:
    """How float32 factors are multiplied: in TF32 only where PyTorch may do so, too."""
    cuda = x.is_cuda and torch.version.hip is None
    allowed = cuda and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed else "ieee"
