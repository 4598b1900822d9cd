"""Where a run begins: new, again from its own configuration, or after a checkpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rga_fast.reid.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint
from rga_fast.reid.config import Config, load_recipe
from rga_fast.reid.data.fingerprint import TrainingSet, difference
from rga_fast.reid.training.folder import CHECKPOINTS, CONFIG, METRICS, holds_run

PATH_FIELDS = ("data", "pretrained", "init")


class Beginning(NamedTuple):
    """The arguments of `train`."""

    config: Config
    out: Path
    resume: Path | None = None
    restart: bool = False
    fresh: bool = False


def beginning(
    resume: str | None, out: Path | None, recipe: str | None, fields: Mapping[str, Any]
) -> Beginning:
    """The run that a command line asks for.

    A run that exists is continued with its own configuration; `recipe` and `fields` may only repeat
    it, or change what may differ (`Config.conflicts`). Paths become absolute, so that a run can be
    continued from any folder.

    Args:
        resume: a checkpoint; the folder of a run; "auto" for the run in `out`, if there is one;
            None for a new run.
        out: the folder; None: that of the checkpoint, or a new one in `runs`.
        recipe: None: "small" without data, else "paper".
        fields: of the configuration, as given on the command line.

    Raises:
        ValueError: for what contradicts the run; FileNotFoundError: for a run that is not there.
    """
    given = absolute(fields)
    if resume == "auto":
        if out is None:
            raise ValueError("--resume auto continues the run in --out DIR, and no --out was given")
        checkpoint, folder = latest_checkpoint(out / CHECKPOINTS), out
    elif resume is not None:
        checkpoint, folder = _named(Path(resume), out)
    else:
        checkpoint, folder = None, None
    if checkpoint is not None and folder is not None:
        config = _continued(load_checkpoint(checkpoint).config, recipe, given, str(checkpoint))
        return Beginning(config, folder, checkpoint)
    if folder is not None and (holds_run(folder) or (folder / CONFIG).exists()):
        return Beginning(_restarted(folder, recipe, given), folder, restart=True)
    name = recipe or ("small" if given.get("data") is None else "paper")
    config = load_recipe(name)
    config = config.replace(**absolute(vars(config)) | given)
    if out is not None:
        return Beginning(config, out)
    stamp = time.strftime(f"%Y%m%d-%H%M%S-{Path(name).stem}")
    return Beginning(config, Path("runs") / stamp, fresh=True)


def absolute(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with absolute paths in `PATH_FIELDS`."""

    def whole(value: Any) -> Any:
        if isinstance(value, str):
            return os.path.abspath(os.path.expanduser(value))
        return type(value)(map(whole, value)) if isinstance(value, list | tuple) else value

    return {name: whole(v) if name in PATH_FIELDS else v for name, v in fields.items()}


def _named(path: Path, out: Path | None) -> tuple[Path | None, Path]:
    """Checkpoint and folder of the run that `path` names."""
    if path.is_dir():
        checkpoint, own = latest_checkpoint(path / CHECKPOINTS), path
        if checkpoint is None and not (holds_run(path) or (path / CONFIG).exists()):
            raise FileNotFoundError(f"{path}: no run in this folder")
    else:
        checkpoint = path
        own = path.parent.parent if path.parent.name == CHECKPOINTS else path.absolute().parent
        if own.name == CHECKPOINTS:  # `--resume last.pt` from inside the folder
            own = own.parent
        elif path.parent.name != CHECKPOINTS and out is None and path.exists():
            raise ValueError(
                f"{path} is not in the folder of a run (DIR/{CHECKPOINTS}/); give its folder, or a "
                "new one, as --out DIR"
            )
    if out is not None and os.path.realpath(out) != os.path.realpath(own):
        if holds_run(out):
            raise ValueError(
                f"{out} holds another run than {path}; leave --out out to continue that one in its "
                "folder"
            )
        return checkpoint, out
    return checkpoint, own


def _continued(there: Config, recipe: str | None, given: dict[str, Any], source: str) -> Config:
    if recipe is not None:
        check_continues(load_recipe(recipe).replace(**given), there, f"{source}, --recipe {recipe}")
    config = there.replace(**given)
    check_continues(config, there, source)
    return config


def _restarted(folder: Path, recipe: str | None, given: dict[str, Any]) -> Config:
    """The configuration of a run that was interrupted before its first checkpoint."""
    source = folder / CONFIG
    if not source.exists():
        raise FileNotFoundError(
            f"{folder}: {METRICS} of a run, but neither its {CONFIG} nor a checkpoint; choose "
            "another --out"
        )
    there = Config.load(source)
    config = _continued(there, recipe, given, str(source))
    if absolute({"data": config.data}) != absolute({"data": there.data}):
        raise ValueError(
            f"{source}: this run trains on {_named_data(there)}, not on {_named_data(config)}; "
            "leave --data out, or choose another --out"
        )
    return config


def check_continues(config: Config, there: Config, source: str) -> None:
    """ValueError unless a run with the configuration `there` can go on with `config`."""
    names = config.conflicts(there)
    if not names:
        return
    message = (
        f"{source}: cannot be continued with another configuration; these fields differ: "
        + ", ".join(f"{n} ({getattr(there, n)} there)" for n in names)
    )
    if names == ["epochs"]:
        message += f"; schedule={there.schedule} plans the learning rate over all epochs"
    raise ValueError(
        f"{message}. Leave them out, or begin a new run from its weights: --init CHECKPOINT"
    )


def check_data(saved: Checkpoint, present: TrainingSet, config: Config) -> None:
    """ValueError unless a checkpoint was trained on the images that are present. Checkpoints of
    earlier versions tell the number of people only."""
    if saved.trained_on is not None:
        differs = difference(TrainingSet(*saved.trained_on), present)
    else:
        people = len(present.identities)
        differs = None
        if people != saved.num_classes:
            differs = f"{saved.num_classes:,} people there, {people:,} here"
    if differs is None:
        return
    raise ValueError(
        f"the checkpoint was trained on other data than {_named_data(config)}: {differs}. Continue "
        f"with its own (--data, {_named_data(saved.config)} then), or begin a new run from its "
        "weights: --init CHECKPOINT"
    )


def elsewhere(error: OSError) -> FileNotFoundError:
    """The error of a continued run whose data are not where they were."""
    return FileNotFoundError(f"{error}. If the data of this run are elsewhere now: --data PATH")


def check_progress(config: Config, saved: Checkpoint) -> None:
    """ValueError if more epochs are done than the run is to have."""
    if saved.epoch > config.epochs or (saved.epoch == config.epochs and saved.step):
        raise ValueError(f"epochs={config.epochs}, but {saved.epoch} are done already")


def _named_data(config: Config) -> str:
    if config.data is None:
        return "the synthetic data set"
    return config.data if isinstance(config.data, str) else ", ".join(config.data)
