"""What a run would be and need: `rga-fast train --dry-run`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from torch._subclasses.fake_tensor import FakeTensorMode

from rga_fast.reid.checkpoint import make_network
from rga_fast.reid.config import Config
from rga_fast.reid.console import console, dataset_table, progress
from rga_fast.reid.datasets import ReidData, open_dataset
from rga_fast.reid.distributed import Ranks, pick_device
from rga_fast.reid.memory import step_memory
from rga_fast.reid.prepare import describe_network, make_sampler, open_training_data
from rga_fast.reid.synth import write_dataset
from rga_fast.reid.synth.cached import IDENTITIES, SEED, cached_folder


def describe_run(config: Config) -> None:
    """Prints every field, the data set, sizes, steps and the memory that is expected.

    Nothing is kept: a synthetic data set that is not there yet is drawn for this alone. Started by
    torchrun, rank 0 tells about its share.

    Raises:
        ValueError, OSError: as `train`, before anything is trained.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if int(os.environ.get("RANK", "0")) > 0:
        return
    device = pick_device(config.device)
    console.print(config.to_yaml().rstrip())
    data = _open(config)
    console.print(dataset_table(data))
    num_classes = len(np.unique(data.train.labels))
    sampler, positions = make_sampler(data, config, Ranks(0, world))
    with FakeTensorMode(), device:
        network = make_network(config, num_classes)
    console.print(describe_network(network, config, device))

    P, K, parts = config.identities_per_batch, config.images_per_identity, config.accumulate
    line = f"batch: {P * K} images, {P} identities x {K}"
    if parts * world > 1:
        line += f"; {len(positions) // parts} at a time (ranks: {world}, slices on each: {parts})"
    console.print(line)
    steps = len(sampler)
    console.print(f"steps: {steps:,} an epoch, {steps * config.epochs:,} in {config.epochs} epochs")
    memory = step_memory(config, num_classes, len(positions), device)
    console.print(
        f"memory of a step: {_size(memory.peak)} = weights {_size(memory.weights)} + gradients "
        f"{_size(memory.gradients)} + Adam {_size(memory.optimizer)} + maps and the rest "
        f"{_size(memory.activations)}\n"
        "  estimated from the sizes of all tensors; scratch memory of operators, the allocator's "
        "waste and the program itself come on top"
    )
    if config.cache != "off":
        where = "in memory" if config.cache == "memory" else "in a file on disk"
        images = sum(len(split) for split in (data.train, data.query, data.gallery))
        console.print(
            f"decoded images, {where}: {_size(images * config.height * config.width * 3)}"
        )


def _open(config: Config) -> ReidData:
    if config.data is not None or cached_folder().exists():
        return open_training_data(config)
    with tempfile.TemporaryDirectory() as folder, progress("drawing the synthetic data set") as bar:
        root = Path(folder) / "synthetic"
        write_dataset(root, IDENTITIES, SEED, progress=bar)
        return open_dataset(root)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
