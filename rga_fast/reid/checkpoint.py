"""Checkpoints: the whole state of a run, written so that none is ever half there."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rga_fast.reid.config import Config
from rga_fast.reid.model import ReidNet

FORMAT = "rga_fast checkpoint 1"


class Checkpoint(NamedTuple):
    """What a checkpoint file holds. `epoch`: how many are done."""

    config: Config
    num_classes: int
    epoch: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes beside `path`, syncs, renames: at any moment the file is the old or the new one."""
    partial = path.with_name(path.name + ".partial")
    fields = checkpoint._asdict() | {"config": dataclasses.asdict(checkpoint.config)}
    try:
        with partial.open("wb") as file:
            torch.save({"format": FORMAT, **fields}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint; code in it is never run.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or something else than a checkpoint of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        fields = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f"{path}: damaged, or not a checkpoint: {error}") from error
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
        raise ValueError(f"{path}: not a checkpoint written by rga-fast train")
    fields["config"] = Config().replace(**fields["config"])
    return Checkpoint(**fields)


def make_network(config: Config, num_classes: int) -> ReidNet:
    """The network that a configuration describes, freshly initialised."""
    return ReidNet(
        config.arch,
        num_classes,
        config.size,
        stages=config.stages,
        variant=config.variant,
        width=config.base_width,
        last_stride=config.last_stride,
        impl=config.impl,
        spatial_ratio=config.spatial_ratio,
        channel_ratio=config.channel_ratio,
        down_ratio=config.down_ratio,
        relations=config.relations,
        appearance=config.appearance,
        embedding=config.embedding,
    )


def load_weights(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """`model.load_state_dict` with one readable error for weights of another architecture."""
    own = model.state_dict()
    wrong = [k for k in own if k not in state or state[k].shape != own[k].shape]
    wrong += [k for k in state if k not in own]
    if wrong:
        raise ValueError(
            f"{source} holds the weights of another architecture: {len(wrong)} of {len(own)} "
            f"tensors are missing, unknown or of another shape, the first is {wrong[0]}"
        )
    model.load_state_dict(state)
