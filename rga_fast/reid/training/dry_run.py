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
from rga_fast.reid.data.datasets import ReidData, open_dataset
from rga_fast.reid.distributed import Ranks, pick_device
from rga_fast.reid.prepare import (
    cache_note,
    describe_network,
    make_sampler,
    open_training_data,
    size_text,
)
from rga_fast.reid.synth import write_dataset
from rga_fast.reid.synth.cached import IDENTITIES, SEED, cached_folder
from rga_fast.reid.training.memory import step_memory


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
        f"memory of a step: {size_text(memory.peak)} = weights {size_text(memory.weights)} "
        f"+ gradients {size_text(memory.gradients)} + Adam {size_text(memory.optimizer)} "
        f"+ maps and the rest {size_text(memory.activations)}\n"
        "  estimated from the sizes of all tensors; scratch memory of operators, the allocator's "
        "waste and the program itself come on top"
    )
    if config.cache != "off":
        console.print(cache_note(config, (data.train, data.query, data.gallery), world))


def _open(config: Config) -> ReidData:
    if config.data is not None or cached_folder().exists():
        return open_training_data(config)
    with tempfile.TemporaryDirectory() as folder, progress("drawing the synthetic data set") as bar:
        root = Path(folder) / "synthetic"
        write_dataset(root, IDENTITIES, SEED, progress=bar)
        return open_dataset(root)
