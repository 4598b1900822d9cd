"""Checkpoints: the whole state of a run, saved atomically; and the trained network in one."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rga_fast.reid.config import Config
from rga_fast.reid.distributed import pick_device
from rga_fast.reid.files import write_file
from rga_fast.reid.network.attention import rga
from rga_fast.reid.network.reidnet import ReidNet
from rga_fast.resizing import resize_relations

FORMAT = "rga_fast checkpoint 1"
LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"


class Checkpoint(NamedTuple):
    """What a checkpoint file holds, after `epoch` epochs and `step` steps of the next.

    Together with the seed in `config` these determine the sampler, the schedule and every random
    generator: what a step draws depends on (seed, epoch, step, rank) alone.
    """

    config: Config
    num_classes: int
    epoch: int
    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any] = {}  # noqa: RUF012  # of fp16 gradients; empty without
    ema: dict[str, Tensor] | None = None  # the averaged weights
    seconds: float = 0.0  # of all parts of the run until here
    trained_on: tuple[Any, ...] | None = None  # the fields of a `fingerprint.TrainingSet`

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights to evaluate: the averaged ones if there are any."""
        return self.model if self.ema is None else self.ema


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes `last.pt` in `folder`; the file that was there becomes `previous.pt`.

    Whatever interrupts this, a complete checkpoint remains.

    Raises:
        OSError: if it cannot be written (a full disk, say); nothing has changed then.
    """
    fields = checkpoint._asdict() | {"config": dataclasses.asdict(checkpoint.config)}
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **fields}, buffer)
    write_file(folder / LAST, buffer.getbuffer(), previous=folder / PREVIOUS)


def keep_best(folder: Path) -> None:
    """Keeps the checkpoint `last.pt` in `folder` as `best.pt`, too: as a link, where there are any,
    so that it takes no space until `last.pt` is replaced."""
    partial = folder / f"{BEST}.partial"
    partial.unlink(missing_ok=True)
    try:
        os.link(folder / LAST, partial)
    except OSError:  # a file system without links
        shutil.copyfile(folder / LAST, partial)
    partial.replace(folder / BEST)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest intact checkpoint in a run's checkpoint folder; None if there is no file.

    A damaged one is skipped with a warning.

    Raises:
        ValueError: if all of them are damaged.
    """
    present = [path for path in (folder / LAST, folder / PREVIOUS) if path.exists()]
    for path in present:
        try:
            load_checkpoint(path)
        except ValueError as error:
            warnings.warn(f"skipped: {error}", stacklevel=2)
        else:
            return path
    if present:
        raise ValueError(f"{folder}: every checkpoint there is damaged")
    return None


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The checkpoint that a path names: a file, or the newest intact one of a run's folder.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if all of a run are damaged.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    folders = [folder for folder in (path / "checkpoints", path) if folder.is_dir()]
    found = next(filter(None, map(latest_checkpoint, folders)), None)
    if found is None:
        raise FileNotFoundError(f"{path}: expected the folder of a run, with checkpoints/{LAST}")
    return found


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint, of earlier versions too. Code in the file is never run.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or no checkpoint of this package.
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


class Trained(NamedTuple):
    """A trained network on its device, in evaluation mode, and where it comes from."""

    network: ReidNet
    config: Config
    epoch: int


def open_trained(
    path: str | os.PathLike[str],
    device: torch.device | str = "auto",
    *,
    size: tuple[int, int] | None = None,
    **fields: Any,
) -> Trained:
    """The network in a checkpoint, with the weights to evaluate (averaged if there are any).

    Args:
        device: for the network, by default a GPU where there is one; not that of the
            configuration, which belongs to the machine of the training.
        size: (height, width) of the images, short for these two fields. For another size than that
            of the training, the weights are resampled (`rga_fast.resize_relations`).
        fields: of the configuration, to replace, such as `impl`.

    Raises:
        FileNotFoundError, ValueError: as `load_checkpoint`.
        ValueError: for weights of another architecture, fields that do not exist, or a device that
            cannot be used.
    """
    saved = load_checkpoint(path)
    if size is not None:
        fields = {**fields, "height": size[0], "width": size[1]}
    config = saved.config.replace(**fields)
    network = make_network(config, saved.num_classes)
    state = resized(saved.weights, saved.config, config.size)
    load_weights(network, state, str(path))
    network.to(pick_device(device) if isinstance(device, str) else device).eval()
    return Trained(network, config, saved.epoch)


def make_network(config: Config, num_classes: int) -> ReidNet:
    """The network that a configuration describes, freshly initialised."""
    options: dict[str, Any] = {}
    if config.attention in rga.SYSTEMS:  # the others are as published
        names = ("impl", "zero_init_gate", "spatial_ratio", "channel_ratio", "down_ratio")
        options = {name: getattr(config, name) for name in names}
    return ReidNet(
        config.arch,
        num_classes,
        config.size,
        stages=config.stages,
        attention=config.attention,
        width=config.base_width,
        last_stride=config.last_stride,
        **options,
    )


def resized(state: dict[str, Tensor], config: Config, size: tuple[int, int]) -> dict[str, Tensor]:
    """The weights of the network that `config` describes, for images of another `size`."""
    if config.attention not in rga.SYSTEMS or size == config.size:
        return state
    return resize_relations(
        state,
        config.size,
        size,
        spatial_ratio=config.spatial_ratio,
        down_ratio=config.down_ratio,
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
