"""What a configuration becomes before training: data, batches, a network in words."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from rga_fast.modules import RGA
from rga_fast.reid.config import Config
from rga_fast.reid.console import progress
from rga_fast.reid.data.datasets import ReidData, Split, open_datasets
from rga_fast.reid.data.sampler import IdentitySampler, rank_positions
from rga_fast.reid.distributed import Ranks
from rga_fast.reid.network.reidnet import ReidNet


def open_training_data(config: Config) -> ReidData:
    """The data set of a configuration; the synthetic one is written first where it is missing."""
    if config.data is not None:
        paths = (config.data,) if isinstance(config.data, str) else config.data
        return open_datasets(paths, boxes=config.boxes, val_trains=config.val_trains)
    from rga_fast.reid.synth.cached import cached_dataset

    with progress("drawing the synthetic data set") as bar:
        return open_datasets([cached_dataset(bar)])


def cache_note(config: Config, splits: Iterable[Split], world: int = 1) -> str:
    """How much the decoded images of `splits` take, and where; `cache` is not "off"."""
    nbytes = sum(map(len, splits)) * config.height * config.width * 3
    note = f"decoded images, {'in memory' if config.cache == 'memory' else 'in a file on disk'}"
    if config.cache == "memory" and world > 1:
        note += f" of each of {world} ranks"
    return f"{note}: {size_text(nbytes)}"


def size_text(nbytes: int) -> str:
    if nbytes >= 1e9:
        return f"{nbytes / 1e9:.2f} GB"
    return f"{nbytes / 1e6:.{0 if nbytes >= 1e7 else 1}f} MB"


def make_sampler(
    data: ReidData, config: Config, ranks: Ranks
) -> tuple[IdentitySampler, np.ndarray]:
    """Batches of the training images, and which of each belong to this rank.

    Raises:
        ValueError: for identities that are too few, or that ranks and slices cannot share.
    """
    P, K = config.identities_per_batch, config.images_per_identity
    sampler = IdentitySampler(data.train.labels, P, K, config.seed)
    parts = config.accumulate
    positions = rank_positions(P, K, rank=ranks.rank, world=ranks.world, parts=parts)
    mined = P // parts // (1 if config.mine_across_ranks else ranks.world)
    if mined < 2 <= P:
        raise ValueError(
            f"config: accumulate = {parts} and {ranks.world} ranks leave {mined} identity to mine "
            "triplets from, and at least 2 are needed"
        )
    return sampler, positions


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
