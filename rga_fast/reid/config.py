"""Everything that decides a training run, in one place, with its name, type and meaning."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rga_fast import dispatch, validation
from rga_fast.modules import EMBEDDINGS, VARIANTS
from rga_fast.reid.data.datasets.cuhk03 import BOXES
from rga_fast.reid.data.loader import CACHES
from rga_fast.reid.network.reidnet import ARCHITECTURES

SCHEDULES = ("step", "cosine")
AMP = ("off", "bf16", "fp16")


@dataclass(frozen=True)
class Config:
    """A training run. The defaults are the published recipe (see `RECIPES` for the others).

    `data` None means the synthetic data set, written once into the user's cache folder; of several
    paths all train and the first is evaluated. Sizes are in pixels, rates per step,
    `warmup_epochs` and `milestones` in epochs. A batch is that of one step of the optimiser: ranks
    and `accumulate` divide it.
    """

    data: str | tuple[str, ...] | None = None
    boxes: str | None = None  # of CUHK03: labeled, detected; None: labeled where it is there
    val_trains: bool = True  # MSMT17's validation images train, too
    height: int = 256
    width: int = 128
    cache: str = "off"  # decode every image once, into memory or into a file on disk
    cache_folder: str | None = None  # of that file; None: the user's cache folder
    workers: int = 4  # processes that read ahead, where images are not in memory

    arch: str = "resnet50"
    base_width: int = 64  # channels of the stem
    last_stride: int = 1
    pretrained: str | None = None  # ImageNet weights of the backbone
    variant: str | None = "sc"  # None: without attention
    stages: tuple[int, ...] = (1, 2, 3, 4)  # attention follows these
    spatial_ratio: int = 8
    channel_ratio: int = 8
    down_ratio: int = 8
    relations: bool = True
    appearance: bool = True
    embedding: str = "asymmetric"
    impl: str = "reference"

    identities_per_batch: int = 16
    images_per_identity: int = 4
    epochs: int = 600
    learning_rate: float = 8e-4
    weight_decay: float = 5e-4
    schedule: str = "step"
    warmup_epochs: float = 20
    warmup_start: float = 8e-6
    milestones: tuple[float, ...] = (80, 120, 160, 200, 240, 280, 320, 360)
    label_smoothing: float = 0.1
    margin: float = 0.3
    freeze_epochs: int = 0  # first train attention, neck and classifier alone
    clip_norm: float | None = None  # the most that the gradient's norm may be
    ema: float | None = None  # decay of the averaged weights, which are then evaluated

    accumulate: int = 1  # slices in which a batch goes through the network, to save memory
    amp: str = "off"  # "bf16", "fp16": autocast
    channels_last: bool = False
    compile: bool = False
    cuda_graph: bool = False  # compile, and replay the step from CUDA graphs
    sync_bn: bool = False  # with several ranks: batch statistics of all of them
    mine_across_ranks: bool = True  # with several ranks: triplets from the batches of all of them

    translate: float = 0.5
    flip: float = 0.5
    erase: float = 0.5

    eval_every: int = 40  # epochs between evaluations; after the last one there always is one
    checkpoint_every: int = 20
    eval_batch: int = 64
    tensorboard: bool = False  # scalars, a batch and embeddings in the run's folder
    profile: bool = False  # a few steps, for torch-tb-profiler
    seed: int = 0
    device: str = "auto"  # "cuda" if there is one, else "cpu"

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            validation.check_positive("config", name, getattr(self, name))
        validation.check_choice("config", "cache", self.cache, CACHES)
        if self.boxes is not None:
            validation.check_choice("config", "boxes", self.boxes, BOXES)
        validation.check_choice("config", "arch", self.arch, tuple(ARCHITECTURES))
        if self.variant is not None:
            validation.check_choice("config", "variant", self.variant, tuple(VARIANTS))
        validation.check_choice("config", "embedding", self.embedding, EMBEDDINGS)
        validation.check_choice("config", "impl", self.impl, dispatch.ARGUMENTS)
        validation.check_choice("config", "schedule", self.schedule, SCHEDULES)
        if not (self.data is None or isinstance(self.data, str) or _are_texts(self.data)):
            raise ValueError(f"config: data must be a path or several, got {self.data!r}")
        validation.check_choice("config", "amp", self.amp, AMP)
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"config: {name} must be positive, got {value}")
        for name in ("workers", "seed", "freeze_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"config: {name} must be at least 0, got {getattr(self, name)}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"config: ema must be a decay between 0 and 1, got {self.ema}")

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def readers(self) -> int:
        """Processes that read ahead: none where the images lie in memory."""
        return 0 if self.cache == "memory" else self.workers

    def replace(self, **fields: Any) -> Config:
        """A copy with other values.

        Raises:
            ValueError: for a field that does not exist (with the nearest name) or a value of
                another type than the field's.
        """
        return dataclasses.replace(self, **{k: _checked(k, v) for k, v in fields.items()})

    def to_yaml(self) -> str:
        """Every field, one to a line where it fits."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
        return yaml.safe_dump(fields, sort_keys=False, default_flow_style=None)

    def save(self, path: Path) -> None:
        """Writes every field to a YAML file."""
        path.write_text(self.to_yaml(), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Config:
        """Reads what `save` wrote; fields that are missing have their defaults."""
        try:
            fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a YAML file: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{path}: expected `field: value` lines, got {type(fields).__name__}")
        try:
            return Config().replace(**{str(name): value for name, value in fields.items()})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _are_texts(values: tuple[Any, ...]) -> bool:
    return bool(values) and all(isinstance(value, str) for value in values)


_POSITIVE = (
    *("height", "width", "base_width", "last_stride", "spatial_ratio", "channel_ratio"),
    *("down_ratio", "identities_per_batch", "images_per_identity", "epochs", "eval_every"),
    *("checkpoint_every", "eval_batch", "accumulate"),
)

RECIPES = {
    # The published one to the letter.
    "paper": Config(),
    # A shorter schedule for a GPU, put together from what later work found to help. Nobody has
    # measured it on a real data set yet.
    "fast": Config(
        epochs=60,
        learning_rate=3.5e-4,
        schedule="cosine",
        warmup_epochs=5,
        warmup_start=3.5e-6,
        amp="bf16",
        channels_last=True,
        eval_every=10,
        checkpoint_every=5,
        eval_batch=256,
    ),
    # The main job: learns on two CPU cores within minutes, from nothing.
    "small": Config(
        height=96,
        width=48,
        cache="memory",
        workers=0,
        arch="resnet18",
        base_width=24,
        stages=(1, 2),
        epochs=40,
        learning_rate=2e-3,
        schedule="cosine",
        warmup_epochs=2,
        warmup_start=2e-4,
        erase=0.25,
        eval_every=20,
        checkpoint_every=5,
        eval_batch=128,
    ),
}


def load_recipe(name: str) -> Config:
    """One of `RECIPES`, or a YAML file with some of the fields; the others have their defaults.

    Raises:
        OSError: if the file cannot be read.
        ValueError: for a name that is neither, or a file with other content.
    """
    if name in RECIPES:
        return RECIPES[name]
    if name.endswith((".yaml", ".yml")):
        return Config.load(Path(name))
    nearest = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(RECIPES)}"
    raise ValueError(f"unknown recipe {name!r}; {hint} (a file of your own ends in .yaml)")


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["epochs=5", "stages=1,2"]` -> `{"epochs": 5, "stages": (1, 2)}`, values read as YAML."""
    fields = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"expected field=value, got {assignment!r}")
        _kinds(name)  # an unknown name is the more helpful error
        listed = f"[{text}]" if tuple in _kinds(name) and not text.startswith("[") else text
        fields[name] = yaml.safe_load(listed)
    return fields


def _kinds(name: str) -> tuple[type, ...]:
    """The types that a field takes, `tuple` for its sequences."""
    hints = typing.get_type_hints(Config)
    if name not in hints:
        nearest = difflib.get_close_matches(name, hints, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; there are {', '.join(hints)}"
        raise ValueError(f"config: unknown field {name!r}{hint}")
    hint = hints[name]
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(typing.get_origin(part) or part for part in parts)


def _checked(name: str, value: Any) -> Any:
    kinds = _kinds(name)
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(value, tuple) and len(value) == 1 and str in kinds:
        value = value[0]  # one of several that may be
    if value is False and str in kinds:  # YAML reads off as false
        value = "off"
    if float in kinds and isinstance(value, str):  # YAML reads 1e-3 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    wrong_bool = isinstance(value, bool) and bool not in kinds
    if not isinstance(value, kinds) or wrong_bool:
        expected = " or ".join("None" if k is types.NoneType else k.__name__ for k in kinds)
        raise ValueError(f"config: {name} must be {expected}, got {value!r}")
    return value
