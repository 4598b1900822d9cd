"""Training, from image files to a network and its numbers, in one file from top to bottom."""

from __future__ import annotations

import platform
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rga_fast
from rga_fast.reid.checkpoint import Checkpoint, load_checkpoint, make_network, save_checkpoint
from rga_fast.reid.config import Config
from rga_fast.reid.console import console, progress
from rga_fast.reid.data.augment import Augmentation
from rga_fast.reid.data.datasets import ReidData, require_training
from rga_fast.reid.data.fingerprint import fingerprint
from rga_fast.reid.data.images import cache_note, open_images
from rga_fast.reid.data.loader import TrainBatches
from rga_fast.reid.data.source import open_source
from rga_fast.reid.data.tables import dataset_table
from rga_fast.reid.distributed import Ranks, joined, pick_device
from rga_fast.reid.files import json_text, write_file
from rga_fast.reid.network.describe import describe_network
from rga_fast.reid.report.curves import curves_note
from rga_fast.reid.retrieval.features import EvalData, open_eval_data
from rga_fast.reid.retrieval.tables import metrics_table, skipped_note
from rga_fast.reid.training.advice import start_notes
from rga_fast.reid.training.batches import make_sampler
from rga_fast.reid.training.epoch import train_epoch
from rga_fast.reid.training.evaluation import Evaluations
from rga_fast.reid.training.folder import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    SUMMARY,
    holds_run,
    run_folder,
)
from rga_fast.reid.training.gates import gate_statistics, probe_images
from rga_fast.reid.training.initial import initialise
from rga_fast.reid.training.monitor import Monitor
from rga_fast.reid.training.record import MetricsLog
from rga_fast.reid.training.resume import check_continues, check_data, check_progress, elsewhere
from rga_fast.reid.training.step import Training
from rga_fast.reid.training.stopping import Terminated, stop_signals


def train(
    config: Config,
    out: Path,
    resume: Path | None = None,
    *,
    restart: bool = False,
    fresh: bool = False,
) -> dict[str, Any]:
    """Trains the network of `config` and evaluates it before and after.

    The run's folder `out` then holds `config.yaml`, `metrics.jsonl` (a row per step and per
    evaluation), `summary.json`, `checkpoints/last.pt` and `checkpoints/best.pt`. On a CPU the same
    configuration gives the same losses. Under torchrun, every rank takes a share of each batch, and
    only rank 0 writes. SIGTERM, SIGINT and SIGHUP save a checkpoint and end the run. Data that
    cannot be evaluated are trained on only.

    Args:
        resume: a checkpoint of the same configuration and data, to continue after its last step
            with the losses of an uninterrupted run.
        restart: a run in `out` without a checkpoint starts again from the beginning.
        fresh: if `out` exists, a number is appended.

    Returns:
        The content of `summary.json`.

    Raises:
        FileExistsError: if `out` holds another run already, or one is running in it.
        ValueError, OSError: for data, weights or folders that cannot be used; nothing is written
            before all of them are open.
        Terminated: after a signal.
    """
    started = time.perf_counter()
    torch.manual_seed(config.seed)
    device = pick_device(config.device)
    saved = None
    if resume is not None:
        saved = load_checkpoint(resume)
        check_continues(config, saved.config, str(resume))
        check_progress(config, saved)
    elif not restart and not fresh and holds_run(out):
        raise FileExistsError(f"{out} holds a run already; choose another folder or --resume {out}")
    with (
        joined(device) as ranks,
        run_folder(out, fresh=fresh) if ranks.main else nullcontext(out) as folder,
    ):
        folder = ranks.from_main(lambda: folder)
        return _train(config, folder, device, ranks, saved, started)


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
    data = _open_data(config, ranks, saved)
    trained_on = fingerprint(data.train)
    if saved is not None:
        check_data(saved, trained_on, config)
    evaluable = data.why_not_evaluated() is None
    if not evaluable:  # a note has said why
        console.print("this run trains only")
    num_classes = len(np.unique(data.train.labels))
    sampler, positions = make_sampler(data.train.labels, config, ranks)
    model = make_network(config, num_classes)
    if saved is None:
        initialise(model, config)
    training = Training(model, config, device, ranks)
    if saved is not None:
        training.load(saved, "the checkpoint")
    for note in start_notes(config, device):
        console.print(note)
    cache: dict[str, Any] = {"cache": config.cache, "folder": config.cache_folder}
    if config.cache == "memory":  # a file on disk is announced when it is written
        splits = (data.train, data.query, data.gallery)
        console.print(cache_note(config.cache, splits, config.size, ranks.world))
    evaluation: EvalData | None = None
    with progress("decoding images") as bar:
        images = open_images(data.train, config.size, **cache, progress=bar)
        if evaluable:
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
        config.save(out / CONFIG)
    before = 0.0 if saved is None else saved.seconds

    def seconds() -> float:
        return before + time.perf_counter() - started

    saved_at: tuple[int, int] | None = None

    def save(epoch: int, step: int = 0) -> None:
        nonlocal saved_at
        if ranks.main and saved_at != (epoch, step):
            own = {"seconds": seconds(), "trained_on": tuple(trained_on)}
            state = training.state() | own
            save_checkpoint(
                out / CHECKPOINTS, Checkpoint(config, num_classes, epoch, step, **state)
            )
            saved_at = (epoch, step)

    probe = probe_images(images if evaluation is None else evaluation.query, device)
    steps = len(batches)
    begun = first_epoch * steps + first_step
    with (
        stop_signals(out) as stop,
        monitor.resume_after(begun),
        MetricsLog(out / METRICS if ranks.main else None, begun, monitor) as log,
    ):
        evaluations = Evaluations(
            training, evaluation, log, steps=steps, save=save, checkpoints=out / CHECKPOINTS
        )
        if first_step == 0:
            evaluations.after(first_epoch, stop, monitor)
        for epoch in range(first_epoch, config.epochs):
            begin = first_step if epoch == first_epoch else 0
            reached, stopped = train_epoch(
                training, batches, epoch, begin, log, stop, announce=epoch == first_epoch
            )
            if stopped:
                save(epoch, reached)
                ranks.wait()  # or torchrun might end rank 0 while it is still writing
                raise Terminated(stop.number or signal.SIGTERM, out)
            done = epoch + 1
            if ranks.main and (gates := gate_statistics(training.model, probe)):
                log.write(step=done * steps, epoch=done, **gates)
            if done == config.epochs or done % config.checkpoint_every == 0:
                save(done)
            evaluations.after(done, stop, monitor)

    summary = {
        **_scores(evaluations, data, config, ranks),
        "epochs": config.epochs,
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "seconds": round(seconds(), 1),
        "device": str(device),
        "versions": {
            "rga_fast": rga_fast.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    if ranks.main:
        write_file(out / SUMMARY, json_text(summary))
        console.print(curves_note(out))
    parts = " in all parts of the run" if before else " in all"
    console.print(
        f"{summary['seconds']:.0f} s{parts}. The network is in {out / CHECKPOINTS / 'last.pt'}",
    )
    return summary


def _open_data(config: Config, ranks: Ranks, saved: Checkpoint | None) -> ReidData:
    try:
        with ranks.main_first():
            data = open_source(config.data, **config.reading)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise error if saved is None else elsewhere(error) from None
    require_training(data)
    ranks.check_same("data set", data.counts())
    console.print(dataset_table(data))
    return data


def _scores(
    evaluations: Evaluations, data: ReidData, config: Config, ranks: Ranks
) -> dict[str, Any]:
    """Prints the table of the run's scores. Returns its part of the summary: "before", if that was
    evaluated in this folder, "after" and "best"; nothing for a run that only trains."""
    before, after, best = ranks.from_main(
        lambda: (evaluations.at(0), evaluations.at(config.epochs), evaluations.best())
    )
    if after is None or best is None:
        return {}
    moments = {} if before is None else {"before training": before}
    if best[0] == config.epochs:
        moments["after (best)"] = after
    else:
        moments |= {"after training": after, f"best, epoch {best[0]}": best[1]}
    console.print(metrics_table(f"{data.name}, {skipped_note(after)}", moments))
    found = {"before": before, "after": after, "best": best[1]}
    summary: dict[str, Any] = {
        moment: {name: metrics._asdict() for name, metrics in scores.items()}
        for moment, scores in found.items()
        if scores is not None
    }
    return summary | {"best_epoch": best[0]}
