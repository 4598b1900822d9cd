"""What a run would do and need: `rga-fast train --dry-run`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from torch._subclasses.fake_tensor import FakeTensorMode

from rga_fast.reid.checkpoint import make_network
from rga_fast.reid.config import Config
from rga_fast.reid.console import console, progress
from rga_fast.reid.data.datasets import ReidData, open_dataset, require_training
from rga_fast.reid.data.images import cache_note
from rga_fast.reid.data.source import open_source
from rga_fast.reid.data.tables import dataset_table
from rga_fast.reid.distributed import Ranks, pick_device
from rga_fast.reid.files import size_text
from rga_fast.reid.network.describe import describe_network
from rga_fast.reid.synth import write_dataset
from rga_fast.reid.synth.cached import IDENTITIES, SEED, cached_folder
from rga_fast.reid.training.advice import start_notes, step_seconds, time_note
from rga_fast.reid.training.batches import make_sampler
from rga_fast.reid.training.memory import step_memory


def describe_run(config: Config) -> None:
    """Prints every field, the data set, sizes, steps and the expected memory; keeps nothing.

    A synthetic data set that is not cached yet is drawn and deleted again. Under torchrun, rank 0
    prints its share.

    Raises:
        ValueError, OSError: as `train`.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if int(os.environ.get("RANK", "0")) > 0:
        return
    device = pick_device(config.device)
    console.print(config.to_yaml().rstrip())
    data = _open(config)
    require_training(data)
    console.print(dataset_table(data))
    num_classes = len(np.unique(data.train.labels))
    sampler, positions = make_sampler(data.train.labels, config, Ranks(0, world))
    with FakeTensorMode(), device:
        network = make_network(config, num_classes)
    console.print(describe_network(network, device))

    P, K, parts = config.identities_per_batch, config.images_per_identity, config.accumulate
    line = f"batch: {P * K} images, {P} identities x {K}"
    if parts * world > 1:
        line += f"; {len(positions) // parts} at a time (ranks: {world}, slices on each: {parts})"
    console.print(line)
    steps = len(sampler)
    console.print(f"steps: {steps:,} an epoch, {steps * config.epochs:,} in {config.epochs} epochs")
    memory = step_memory(config, num_classes, len(positions), device)
    console.print(
        f"memory of a step: {size_text(memory.peak)} = weights {size_text(memory.weights)} "
        f"+ gradients {size_text(memory.gradients)} + Adam {size_text(memory.optimizer)} "
        f"+ maps and the rest {size_text(memory.activations)}\n"
        "  estimated from the sizes of all tensors; scratch memory of operators, fragmentation and "
        "the program itself are not included"
    )
    for note in start_notes(config, device):
        console.print(note)
    if device.type == "cpu":
        seconds = step_seconds(config, num_classes, device) / world
        console.print(time_note(config, device, seconds * steps * config.epochs))
    if data.why_not_evaluated() is not None:  # a note has said why
        console.print("this run would train only")
    if config.cache != "off":
        console.print(
            cache_note(config.cache, (data.train, data.query, data.gallery), config.size, world)
        )


def _open(config: Config) -> ReidData:
    if config.data is not None or cached_folder().exists():
        return open_source(config.data, **config.reading)
    with tempfile.TemporaryDirectory() as folder, progress("drawing the synthetic data set") as bar:
        root = Path(folder) / "synthetic"
        write_dataset(root, IDENTITIES, SEED, progress=bar)
        return open_dataset(root)
