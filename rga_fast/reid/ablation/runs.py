"""The runs of an ablation: a process each, one at a time on every device."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from rga_fast.reid.ablation.plan import Planned
from rga_fast.reid.config import Config
from rga_fast.reid.console import console

LOG = "train.log"


def is_finished(run: Planned) -> bool:
    """Whether the run's folder holds its summary, the last file that a run writes."""
    return (run.folder / "summary.json").is_file()


def check_folders(runs: Sequence[Planned]) -> None:
    """ValueError if a folder holds a run with other fields than those planned."""
    for run in runs:
        path = run.folder / "config.yaml"
        if path.is_file() and (differing := run.config.conflicts(Config.load(path))):
            raise ValueError(
                f"{run.folder} holds a run with other values of {', '.join(differing)}; "
                "choose another folder, or the values of that run"
            )


def train_all(runs: Sequence[Planned], finished: Callable[[], None]) -> list[Planned]:
    """Trains what is not finished; what was interrupted continues from its last checkpoint.

    Each run is a process with a log beside its results; each GPU has one at a time, a machine
    without a GPU one in all. `finished` is called after each, from this thread. After an interrupt
    the running ones save a checkpoint and end.

    Returns:
        The runs that failed. The others are trained all the same.
    """
    waiting: queue.SimpleQueue[Planned] = queue.SimpleQueue()
    for run in runs:
        if not is_finished(run):
            waiting.put(run)
    count = waiting.qsize()
    ended: queue.SimpleQueue[tuple[Planned, int]] = queue.SimpleQueue()
    running: dict[str, subprocess.Popen[bytes]] = {}

    def work(device: str) -> None:
        while True:
            try:
                run = waiting.get_nowait()
            except queue.Empty:
                return
            running[device] = _start(run, device)
            ended.put((run, running[device].wait()))

    for device in _devices(runs[0].config.device)[:count]:
        threading.Thread(target=work, args=(device,), daemon=True).start()
    failed = []
    try:
        for done in range(count):
            run, code = ended.get()
            console.print(f"{done + 1}/{count}  {run.folder.name}  {_outcome(run, code)}")
            if code != 0:
                failed.append(run)
            finished()
    except BaseException:
        while not waiting.empty():
            waiting.get()
        for process in running.values():
            process.terminate()  # training saves its last step
        for process in running.values():
            process.wait()
        raise
    return failed


def _start(run: Planned, device: str) -> subprocess.Popen[bytes]:
    run.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "rga_fast", "train", "--out", str(run.folder)]
    command += ["--resume", "auto"]
    if not (run.folder / "config.yaml").exists():
        recipe = run.folder / "recipe.yaml"
        run.config.save(recipe)
        command += ["--recipe", str(recipe)]
    environment = dict(os.environ)
    if device != "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = device
    with (run.folder / LOG).open("ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment
        )


def _devices(wanted: str) -> list[str]:
    """What CUDA_VISIBLE_DEVICES of a process can be, or "cpu"."""
    if wanted == "cpu" or not torch.cuda.is_available():
        return ["cpu"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


def _outcome(run: Planned, code: int) -> str:
    if code == 0:
        return "trained"
    log: Path = run.folder / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"failed, {log}: {lines[-1] if lines else f'status {code}'}"
