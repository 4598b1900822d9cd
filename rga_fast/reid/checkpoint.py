"""Checkpoints: the whole state of a run, written so that none is ever half there."""

from __future__ import annotations

import dataclasses
import io
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rga_fast.reid.config import Config
from rga_fast.reid.network.reidnet import ReidNet

FORMAT = "rga_fast checkpoint 1"
LAST, PREVIOUS = "last.pt", "previous.pt"


class Checkpoint(NamedTuple):
    """What a checkpoint file holds. `epoch` epochs are done, and `step` steps of the next.

    Together with the seed in `config` that is the state of the sampler, of the schedule and of
    every generator: what a step draws depends on (seed, epoch, step, rank) alone.
    """

    config: Config
    num_classes: int
    epoch: int
    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any] = {}  # noqa: RUF012  # of fp16 gradients; empty without
    ema: dict[str, Tensor] | None = None  # the averaged weights

    @property
    def weights(self) -> dict[str, Tensor]:
        """Those that are evaluated and used: the averaged ones where there are some."""
        return self.model if self.ema is None else self.ema


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes `last.pt` in `folder`; what was there becomes `previous.pt`.

    The file is written under another name, synced and renamed: whatever interrupts this, a whole
    checkpoint is left.

    Raises:
        OSError: if it cannot be written (a full disk, say); nothing has changed then.
    """
    fields = checkpoint._asdict() | {"config": dataclasses.asdict(checkpoint.config)}
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **fields}, buffer)
    last, partial = folder / LAST, folder / f"{LAST}.partial"
    try:
        with partial.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if last.exists():
        last.replace(folder / PREVIOUS)
    partial.replace(last)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run's checkpoint folder; None if there is none at all.

    A damaged one is passed over with a warning.

    Raises:
        ValueError: if all that are there are damaged.
    """
    present = [path for path in (folder / LAST, folder / PREVIOUS) if path.exists()]
    for path in present:
        try:
            load_checkpoint(path)
        except ValueError as error:
            warnings.warn(f"passed over: {error}", stacklevel=2)
        else:
            return path
    if present:
        raise ValueError(f"{folder}: every checkpoint there is damaged")
    return None


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
