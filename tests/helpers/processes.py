"""Processes for tests, forked from one that has imported torch already: seconds less for each."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.distributed import TCPStore

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch._dynamo", "rga_fast.reid.training.run"])


def start(target: Callable, *arguments: Any, **environment: str) -> BaseProcess:
    """Calls a function of a test module elsewhere; the exit code is what it returns, 0 for None."""
    process = _context.Process(target=_run, args=(environment, target, arguments))
    process.start()
    return process


def run_ranks(target: Callable, *arguments: Any, limit: float = 60) -> list[int]:
    """Calls `target` in two processes as torchrun would start them, but with nobody who ends one
    for the death of the other. Their exit codes; TimeoutError behind `limit` seconds."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        **{"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)},
        **{"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"},
    }
    ranks = [
        start(target, *arguments, **environment, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")
    ]
    deadline = time.monotonic() + limit
    try:
        for process in ranks:
            process.join(max(0, deadline - time.monotonic()))
        if any(process.is_alive() for process in ranks):
            raise TimeoutError(f"{target.__name__}: still running after {limit} s")
        return [process.exitcode for process in ranks]
    finally:
        for process in ranks:
            process.kill()


def _run(environment: dict[str, str], target: Callable, arguments: tuple) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.exit(target(*arguments))
