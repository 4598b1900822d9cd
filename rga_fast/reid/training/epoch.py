"""The steps of an epoch, and what each depends on: its seed and its learning rate."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from rga_fast.reid.config import Config
from rga_fast.reid.console import console, progress
from rga_fast.reid.data.loader import TrainBatches
from rga_fast.reid.training.advice import time_note
from rga_fast.reid.training.record import EpochRecord, MetricsLog
from rga_fast.reid.training.schedule import cosine_rate, step_rate
from rga_fast.reid.training.step import PendingResult, Training
from rga_fast.reid.training.stopping import Stop

# A result is read this many steps after its own, so that a GPU always has work queued.
READBACK_LAG = {"cuda": 2}

TIMED_STEPS = 4  # after which the time left is estimated
WORTH_NOTING = 60  # seconds


def train_epoch(
    training: Training,
    batches: TrainBatches,
    epoch: int,
    begin: int,
    log: MetricsLog,
    stop: Stop,
    *,
    announce: bool = False,
) -> tuple[int, bool]:
    """Trains the steps of an epoch from step `begin`, with a row of the log for each; `announce`
    prints the time that is left after the first of them, if it is long.

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
                if announce and (last or done - begin == TIMED_STEPS):
                    announce = False
                    if record.seconds_left > WORTH_NOTING:
                        console.print(time_note(config, training.device, record.seconds_left))
            if stopped:
                return step + 1, True
    console.print(f"epoch {epoch + 1:>3}/{config.epochs}  {record.note}")
    return steps, False


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
