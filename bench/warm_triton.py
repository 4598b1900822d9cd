"""Compiles the Triton kernels for the GPU of this machine, by all processors, into Triton's cache.

    python bench/warm_triton.py                                    # bfloat16, all stages
    python bench/warm_triton.py --dtype float32,float16 --defaults # only the first configurations

A training step would compile them one after the other. At the shapes of ResNet-50 at 256x128, for
any batch; options as in `compile_report.py`.
"""

import argparse
import multiprocessing
import os
import sys
import time
from typing import Any

import common
import compile_report
import torch
from triton.runtime.jit import MockTensor


def warm(launch: compile_report.Launch) -> str | None:
    """What went wrong, if anything."""
    config = launch.config
    options = {key: config[key] for key in ("num_warps", "num_stages") if key in config}
    try:
        launch.kernel.function.warmup(*map(_mocked, launch.values), grid=(1,), **options)
    except Exception as error:  # the others may compile, and its launch will raise it again
        return f"{launch.name} {config}: {type(error).__name__}: {error}"
    return None


def _mocked(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_mocked, value))
    return MockTensor(value) if isinstance(value, torch.dtype) else value


def _share(args: argparse.Namespace, index: int, processes: int) -> list[str]:
    torch.set_num_threads(1)
    found = compile_report.selected(args)[index::processes]
    return [problem for problem in map(warm, found) if problem is not None]


def main(arguments: list[str] | None = None) -> int:
    parser = common.parser(__doc__)
    compile_report.add_selection(parser)
    parser.set_defaults(views=["both"], layout=["contiguous", "channels_last"], stages_too=False)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("no GPU is visible; compile_report.py compiles without one")
    begin, count = time.perf_counter(), args.processes
    shares = [(args, index, count) for index in range(count)]
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        problems = [text for share in pool.starmap(_share, shares) for text in share]
    for text in problems:
        print(f"FAILED: {text}", flush=True)
    seconds = time.perf_counter() - begin
    total = len(compile_report.selected(args))
    print(f"{total} kernels in {seconds:.0f} s by {count} processes, {len(problems)} failed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
