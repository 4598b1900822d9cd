"""Training, from image files to a network and its numbers, in one file from top to bottom."""

from __future__ import annotations

import json
import platform
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rga_fast
from rga_fast.reid.checkpoint import Checkpoint, load_checkpoint, make_network, save_checkpoint
from rga_fast.reid.config import Config
from rga_fast.reid.console import console, progress
from rga_fast.reid.data.augment import Augmentation
from rga_fast.reid.data.datasets import require_training
from rga_fast.reid.data.images import cache_note, open_images
from rga_fast.reid.data.loader import TrainBatches
from rga_fast.reid.data.source import open_source
from rga_fast.reid.data.tables import dataset_table
from rga_fast.reid.distributed import Ranks, joined, pick_device
from rga_fast.reid.files import write_file
from rga_fast.reid.network.describe import describe_network
from rga_fast.reid.network.pretrained import load_pretrained
from rga_fast.reid.report.curves import curves_note
from rga_fast.reid.retrieval.features import (
    EvalData,
    extract_query_gallery,
    open_eval_data,
    score,
)
from rga_fast.reid.retrieval.tables import metrics_table, skipped_note
from rga_fast.reid.training.batches import make_sampler
from rga_fast.reid.training.gates import gate_statistics, probe_images
from rga_fast.reid.training.monitor import Monitor
from rga_fast.reid.training.record import EpochRecord, MetricsLog, Scores
from rga_fast.reid.training.schedule import cosine_rate, step_rate
from rga_fast.reid.training.step import PendingResult, Training

# A result is read this many steps after its own, so that a GPU always has work queued.
READBACK_LAG = {"cuda": 2}


def train(
    config: Config, out: Path, resume: Path | None = None, *, restart: bool = False
) -> dict[str, Any]:
    """Trains the network of `config` and evaluates it before and after.

    The run's folder `out` then holds `config.yaml`, `metrics.jsonl` (a row per step and per
    evaluation), `summary.json` and `checkpoints/last.pt`. On a CPU the same configuration gives the
    same losses. Under torchrun, every rank takes a share of each batch, and only rank 0 writes.
    SIGTERM saves a checkpoint and ends the run.

    Args:
        resume: a checkpoint of the same configuration, to continue after its last step with the
            losses of an uninterrupted run.
        restart: a run in `out` without a checkpoint starts again from the beginning.

    Returns:
        The content of `summary.json`.

    Raises:
        FileExistsError: if `out` holds another run already.
        ValueError, OSError: for data, weights or folders that cannot be used; nothing is written
            before all of them are open.
        Terminated: after SIGTERM.
    """
    started = time.perf_counter()
    torch.manual_seed(config.seed)
    device = pick_device(config.device)
    saved = _resumable(resume, config) if resume is not None else None
    if saved is None and not restart and (out / "metrics.jsonl").exists():
        raise FileExistsError(f"{out} holds a run already; choose another folder or --resume it")
    with joined(device) as ranks:
        return _train(config, out, device, ranks, saved, started)


def _train(
    config: Config,
    out: Path,
    device: torch.device,
    ranks: Ranks,
    saved: Checkpoint | None,
    started: float,
) -> dict[str, Any]:
    first_epoch, first_step = (saved.epoch, saved.step) if saved is not None else (0, 0)
    ranks.check_same("configuration", config)
    monitor = Monitor(
        out,
        tensorboard=config.tensorboard and ranks.main,
        profile=config.profile and ranks.main,
    )
    ranks.check_same("checkpoint to continue", f"epoch {first_epoch}, step {first_step}")
    with ranks.main_first():
        data = open_source(config.data, **config.reading)
    require_training(data)
    ranks.check_same("data set", data.counts())
    console.print(dataset_table(data))
    num_classes = len(np.unique(data.train.labels))
    sampler, positions = make_sampler(data.train.labels, config, ranks)
    model = make_network(config, num_classes)
    if config.pretrained is not None:
        console.print(load_pretrained(model, config.pretrained))
    training = Training(model, config, device, ranks)
    if saved is not None:
        training.load(saved, "the checkpoint")
    cache: dict[str, Any] = {"cache": config.cache, "folder": config.cache_folder}
    if config.cache == "memory":  # a file on disk is announced when it is written
        splits = (data.train, data.query, data.gallery)
        console.print(cache_note(config.cache, splits, config.size, ranks.world))
    folder = run_folder(out) if ranks.main else nullcontext()
    with folder, progress("decoding images") as bar:
        images = open_images(data.train, config.size, **cache, progress=bar)
        evaluation = None  # one camera, or no query or gallery: the notes say so
        if data.why_not_evaluated() is None:
            evaluation = open_eval_data(data, config.size, **cache, progress=bar)
    batches = TrainBatches(
        images,
        data.train.labels,
        sampler,
        Augmentation(
            translate=config.translate,
            flip=config.flip,
            erase=config.erase,
            jitter=config.jitter,
        ),
        device=device,
        seed=config.seed,
        workers=config.readers,
        positions=positions,
    )
    console.print(describe_network(training.model, device))
    console.print(f"run folder: {out}")
    if ranks.main:
        config.save(out / "config.yaml")

    def save(epoch: int, step: int = 0) -> None:
        if ranks.main:
            state = Checkpoint(config, num_classes, epoch, step, **training.state())
            save_checkpoint(out / "checkpoints", state)

    probe = probe_images(images if evaluation is None else evaluation.query, device)
    steps = len(batches)
    log_path = out / "metrics.jsonl" if ranks.main else None
    begun = first_epoch * steps + first_step
    with (
        sigterm() as stop,
        monitor.resume_after(begun),
        MetricsLog(log_path, begun, monitor) as log,
    ):

        def due(done: int) -> bool:
            return done == config.epochs or done % config.eval_every == 0

        def evaluated(done: int) -> Scores | None:
            """After `done` epochs; read from the log if the run is continued after them."""
            if evaluation is None:
                return None
            scores = ranks.from_main(lambda: log.scores(done * steps))
            if scores is None:
                scores = evaluate(training, evaluation, monitor if done == config.epochs else None)
                log.evaluation(done, done * steps, scores)
            return scores

        if first_step == 0 and due(first_epoch):
            after = evaluated(first_epoch)
        for epoch in range(first_epoch, config.epochs):
            begin = first_step if epoch == first_epoch else 0
            reached, stopped = train_epoch(training, batches, epoch, begin, log, stop)
            if stopped:
                save(epoch, reached)
                ranks.wait()  # or torchrun might end rank 0 while it is still writing
                raise Terminated(f"stopped by SIGTERM; --resume auto --out {out} continues")
            done = epoch + 1
            if ranks.main and (gates := gate_statistics(training.model, probe)):
                log.write(step=done * steps, epoch=done, **gates)
            if done == config.epochs or done % config.checkpoint_every == 0:
                save(done)
            if due(done):
                after = evaluated(done)
        before = ranks.from_main(lambda: log.scores(0))

    moments = {"before training": before} if before is not None else {}
    if after is not None:
        moments["after training"] = after
        console.print(metrics_table(f"{data.name}, {skipped_note(after)}", moments))
    summary = {
        **{
            moment.split()[0]: {name: m._asdict() for name, m in scores.items()}
            for moment, scores in moments.items()
        },
        "epochs": config.epochs,
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "seconds": round(time.perf_counter() - started, 1),
        "device": str(device),
        "versions": {
            "rga_fast": rga_fast.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    if ranks.main:
        write_file(out / "summary.json", json.dumps(summary, indent=2) + "\n")
        console.print(curves_note(out))
    console.print(
        f"{summary['seconds']:.0f} s in all. The network is in {out / 'checkpoints' / 'last.pt'}"
    )
    return summary


def train_epoch(
    training: Training,
    batches: TrainBatches,
    epoch: int,
    begin: int,
    log: MetricsLog,
    stop: threading.Event,
) -> tuple[int, bool]:
    """Trains the steps of an epoch from step `begin`, with a row of the log for each.

    Returns how many of the epoch's steps are done, and whether the run ends because `stop` is set.
    """
    config, ranks, steps = training.config, training.ranks, len(batches)
    lag = READBACK_LAG.get(training.device.type, 0)
    training.start_epoch(epoch)
    batches.set_epoch(epoch, begin)
    record = EpochRecord(config, epoch, batches, log)
    running: deque[tuple[int, float, PendingResult]] = deque()
    with progress(f"epoch {epoch + 1}/{config.epochs}", steps) as bar:
        for step, (images, labels) in enumerate(batches, start=begin):
            seed_step(config.seed, epoch, step, ranks.rank)
            rate = learning_rate(config, epoch, step / steps)
            running.append((step, rate, training.step(images, labels, rate)))
            log.monitor.step(images)
            stopped = ranks.any(stop.is_set())
            last = stopped or step + 1 == steps
            while len(running) > (0 if last else lag):
                done, its_rate, result = running.popleft()
                record.add(done, its_rate, result.read())
                bar(done + 1, note=record.note)
            if stopped:
                return step + 1, True
    console.print(f"epoch {epoch + 1:>3}/{config.epochs}  {record.note}")
    return steps, False


def evaluate(training: Training, evaluation: EvalData, monitor: Monitor | None = None) -> Scores:
    """The scores of the network on query and gallery (of its averaged weights, if there are any).
    The `monitor` shows the features of the queries."""
    query, gallery = extract_query_gallery(
        training.evaluated(),
        evaluation,
        batch_size=training.config.eval_batch,
        device=training.device,
        workers=training.config.readers,
        ranks=training.ranks,
    )
    if monitor is not None:
        monitor.embeddings(evaluation.query, evaluation.data.query, query.after_neck)
    return training.ranks.from_main(lambda: score(evaluation.data, query, gallery))


def seed_step(*place: int) -> None:
    """Seeds torch by (seed, epoch, step, rank): a resumed run draws the same random numbers."""
    state = np.random.SeedSequence(place[0], spawn_key=place[1:]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def learning_rate(config: Config, epoch: int, fraction: float = 0.0) -> float:
    """The learning rate after `fraction` of epoch `epoch` (from 0).

    "step" changes it between epochs, as published. "cosine" changes it with every step; its warm-up
    takes at most half of the run, so that a short trial needs no other fields.
    """
    base, start, warmup = config.learning_rate, config.warmup_start, config.warmup_epochs
    if config.schedule == "step":
        return step_rate(epoch, base=base, start=start, warmup=warmup, milestones=config.milestones)
    return cosine_rate(
        epoch + fraction,
        epochs=config.epochs,
        base=base,
        start=start,
        warmup=min(warmup, config.epochs / 2),
    )


@contextmanager
def run_folder(out: Path) -> Iterator[None]:
    """Creates the folder before the body runs, whose work would be lost if the folder could not be
    written. If the body fails, no empty folder remains."""
    checkpoints = out / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in (checkpoints, out):
            with suppress(OSError):  # not empty
                folder.rmdir()
        raise


class Terminated(Exception):
    """The run was stopped by SIGTERM, and is saved."""


@contextmanager
def sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, so that the run ends after the current step."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread can handle signals
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


def _resumable(path: Path, config: Config) -> Checkpoint:
    saved = load_checkpoint(path)
    differing = config.conflicts(saved.config)
    if differing:
        raise ValueError(
            f"{path}: cannot be continued with another configuration; these fields differ: "
            + ", ".join(f"{n} ({getattr(saved.config, n)} there)" for n in differing)
        )
    return saved
