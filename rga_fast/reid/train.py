"""Training, from image files to a network and its numbers, in one file from top to bottom."""

from __future__ import annotations

import json
import math
import platform
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rga_fast
from rga_fast.modules import RGA
from rga_fast.reid.augment import Augmentation
from rga_fast.reid.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_weights,
    make_network,
    save_checkpoint,
)
from rga_fast.reid.config import Config
from rga_fast.reid.console import console, dataset_table, metrics_table, progress, skipped_note
from rga_fast.reid.datasets import ReidData, open_datasets
from rga_fast.reid.evaluate import EvalData, extract_features, open_eval_data, score
from rga_fast.reid.loader import TrainBatches, open_images
from rga_fast.reid.losses import reid_losses
from rga_fast.reid.metrics import RankMetrics
from rga_fast.reid.model import ReidNet
from rga_fast.reid.pretrained import load_pretrained
from rga_fast.reid.sampler import IdentitySampler
from rga_fast.reid.schedule import cosine_rate, make_optimizer, set_learning_rate, step_rate

Scores = dict[str, RankMetrics]


def train(
    config: Config, out: Path, resume: Path | None = None, *, restart: bool = False
) -> dict[str, Any]:
    """Trains a network as `config` says, evaluates it before and after, and keeps it in `out`.

    `out` then holds `config.yaml`, `metrics.jsonl` (a row per step and per evaluation),
    `summary.json` and `checkpoints/last.pt`. On the CPU, the same configuration gives the same
    losses. `resume`: a checkpoint of the same configuration, to continue behind its last step with
    the losses of a run that was never interrupted. `restart`: without a checkpoint, a run that is
    in `out` already begins anew. SIGTERM saves a checkpoint and ends the run.

    Returns:
        What `summary.json` holds.

    Raises:
        FileExistsError: if `out` holds a run already, and this one is not its continuation.
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

    data = open_training_data(config)
    console.print(dataset_table(data))
    num_classes = len(np.unique(data.train.labels))
    sampler = IdentitySampler(
        data.train.labels, config.identities_per_batch, config.images_per_identity, config.seed
    )
    model = make_network(config, num_classes)
    if config.pretrained is not None:
        console.print(load_pretrained(model, config.pretrained))
    model.to(device)
    optimizer = make_optimizer(model, config.learning_rate, config.weight_decay)
    if saved is not None:
        load_weights(model, saved.model, str(resume))
        optimizer.load_state_dict(saved.optimizer)
    out.joinpath("checkpoints").mkdir(parents=True, exist_ok=True)

    cache: dict[str, Any] = {"cache": config.cache, "folder": config.cache_folder}
    with progress("decoding images") as bar:
        images = open_images(data.train, config.size, **cache, progress=bar)
        evaluation = open_eval_data(data, config.size, **cache, progress=bar)
    batches = TrainBatches(
        images,
        data.train.labels,
        sampler,
        Augmentation(translate=config.translate, flip=config.flip, erase=config.erase),
        device=device,
        seed=config.seed,
        workers=config.readers,
    )
    console.print(describe_network(model, config, device))
    console.print(f"run folder: {out}")
    config.save(out / "config.yaml")

    def save(epoch: int, step: int = 0) -> None:
        weights, moments = model.state_dict(), optimizer.state_dict()
        state = Checkpoint(config, num_classes, epoch, step, weights, moments)
        save_checkpoint(out / "checkpoints", state)

    first_epoch, first_step = (saved.epoch, saved.step) if saved is not None else (0, 0)
    steps = len(batches)
    log_path = out / "metrics.jsonl"
    with sigterm() as stop, MetricsLog(log_path, keep=first_epoch * steps + first_step) as log:
        before: Scores | None = None
        if saved is None:
            before = evaluate(model, evaluation, config, device)
            log.evaluation(0, 0, before)
        for epoch in range(first_epoch, config.epochs):
            begin = first_step if epoch == first_epoch else 0
            reached = train_epoch(model, optimizer, batches, config, epoch, begin, log, stop)
            if stop.is_set():
                save(epoch, reached)
                raise Terminated(f"stopped by SIGTERM; --resume auto --out {out} continues")
            done = epoch + 1
            last = done == config.epochs
            if last or done % config.checkpoint_every == 0:
                save(done)
            if last or done % config.eval_every == 0:
                after = evaluate(model, evaluation, config, device)
                log.evaluation(done, done * steps, after)
        if first_epoch >= config.epochs:
            after = evaluate(model, evaluation, config, device)

    moments = {"before training": before} if before is not None else {}
    moments["after training"] = after
    console.print(metrics_table(f"{data.name}, {skipped_note(after)}", moments))
    summary = {
        **{
            moment.split()[0]: {name: m._asdict() for name, m in scores.items()}
            for moment, scores in moments.items()
        },
        "epochs": config.epochs,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.perf_counter() - started, 1),
        "device": str(device),
        "versions": {
            "rga_fast": rga_fast.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    console.print(
        f"{summary['seconds']:.0f} s in all. The network is in {out / 'checkpoints' / 'last.pt'}"
    )
    return summary


def train_epoch(
    model: ReidNet,
    optimizer: torch.optim.Optimizer,
    batches: TrainBatches,
    config: Config,
    epoch: int,
    begin: int,
    log: MetricsLog,
    stop: threading.Event,
) -> int:
    """The steps of an epoch from `begin` on, a row of the log for each.

    Returns how many of the epoch are done: all, or those before `stop` was set.
    """
    steps = len(batches)
    model.train()
    batches.set_epoch(epoch, begin)
    seen, correct, loss_sum, clock = 0, 0, 0.0, time.perf_counter()
    with progress(f"epoch {epoch + 1}/{config.epochs}", steps) as bar:
        for step, (images, labels) in enumerate(batches, start=begin):
            rate = learning_rate(config, epoch, step / steps)
            set_learning_rate(optimizer, rate)
            output = model(images)
            losses = reid_losses(
                output.before_neck,
                output.logits,
                labels,
                margin=config.margin,
                label_smoothing=config.label_smoothing,
            )
            optimizer.zero_grad(set_to_none=True)
            losses.total.backward()
            optimizer.step()

            loss = losses.total.item()
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} in epoch {epoch + 1}, step {step + 1}; "
                    "a lower learning_rate may help"
                )
            seen += len(images)
            correct += int((output.logits.argmax(dim=1) == labels).sum())
            loss_sum += loss * len(images)
            speed = seen / (time.perf_counter() - clock)
            log.write(
                step=epoch * steps + step + 1,
                epoch=epoch + 1,
                loss=loss,
                loss_id=losses.identity.item(),
                loss_triplet=losses.triplet.item(),
                lr=rate,
                images_per_s=round(speed, 1),
            )
            left = (config.epochs - epoch) * steps - step - 1
            left_s = left * len(images) / speed
            note = f"loss {loss_sum / seen:.2f}, accuracy {correct / seen:.0%}"
            note += f", {speed:.0f} images/s, {_duration(left_s)} left"
            bar(step + 1, note=note)
            if stop.is_set():
                return step + 1
    console.print(f"epoch {epoch + 1:>3}/{config.epochs}  {note}")
    return steps


def evaluate(model: ReidNet, evaluation: EvalData, config: Config, device: torch.device) -> Scores:
    """The scores of `model` on query and gallery."""
    splits = []
    total = len(evaluation.query) + len(evaluation.gallery)
    done = 0
    with progress("evaluating", total) as bar:

        def advance(images: int) -> None:
            nonlocal done
            done += images
            bar(done)

        for images in (evaluation.query, evaluation.gallery):
            features = extract_features(
                model,
                images,
                batch_size=config.eval_batch,
                device=device,
                workers=config.readers,
                progress=advance,
            )
            splits.append(features)
    return score(evaluation.data, *splits)


def learning_rate(config: Config, epoch: int, fraction: float = 0.0) -> float:
    """The rate in epoch `epoch` (from 0). "step" changes it between epochs, as published; "cosine"
    with every step, `fraction` of the epoch being done, and warms up for half of the run at most,
    so that a short trial needs no other fields."""
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


def open_training_data(config: Config) -> ReidData:
    """The data set of a configuration; the synthetic one is written first where it is missing."""
    if config.data is not None:
        paths = (config.data,) if isinstance(config.data, str) else config.data
        return open_datasets(paths, boxes=config.boxes, val_trains=config.val_trains)
    from rga_fast.reid.synth.cached import cached_dataset

    with progress("drawing the synthetic data set") as bar:
        return open_datasets([cached_dataset(bar)])


def pick_device(name: str) -> torch.device:
    """ "auto" is the first CUDA device, or the CPU.

    Raises:
        ValueError: for a device that torch does not know or cannot reach.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"config: device {name!r} cannot be used: {error}") from error
    return device


def describe_network(model: ReidNet, config: Config, device: torch.device) -> str:
    """One line: the network, its size, and which implementation its attention runs on."""
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    line = f"{config.arch} (base width {config.base_width}) at {config.height}x{config.width}"
    line += f", {parameters:.2f} M parameters, on {device}"
    attention = [m for m in model.modules() if isinstance(m, RGA)]
    if not attention:
        return f"{line}, without attention"
    stages = ", ".join(map(str, config.stages))
    size = attention[0].size
    assert isinstance(size, tuple)
    probe = torch.empty(1, attention[0].channels, *size, device=device)
    choice = attention[0].choose(probe)
    return f"{line}\nRGA-{config.variant} after stages {stages}: {choice.impl} ({choice.reason})"


class Terminated(Exception):
    """SIGTERM came; the run is saved."""


@contextmanager
def sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, so that a run can end between two steps."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


class MetricsLog:
    """`metrics.jsonl`: one JSON object per line. Opening keeps the rows up to step `keep`."""

    def __init__(self, path: Path, keep: int = 0) -> None:
        rows = path.read_text(encoding="utf-8").splitlines() if keep and path.exists() else []
        kept = [row for row in map(_row, rows) if row is not None and row["step"] <= keep]
        self._file = path.open("w", encoding="utf-8")
        for row in kept:
            self.write(**row)

    def write(self, **row: Any) -> None:
        """Adds a row, on disk at once."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def evaluation(self, epoch: int, step: int, scores: Scores) -> None:
        """Adds a row of metrics, per feature."""
        self.write(step=step, epoch=epoch, **{name: m._asdict() for name, m in scores.items()})

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _row(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:  # the last line of a run that was killed
        return None


def _resumable(path: Path, config: Config) -> Checkpoint:
    saved = load_checkpoint(path)
    differing = [
        name
        for name, value in vars(saved.config).items()
        if value != getattr(config, name) and name not in ("impl", "data", "device", "workers")
    ]
    if differing:
        raise ValueError(
            f"{path}: cannot be continued with another configuration; these fields differ: "
            + ", ".join(f"{n} ({getattr(saved.config, n)} there)" for n in differing)
        )
    return saved


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
