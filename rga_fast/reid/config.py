"""Everything that decides a training run: each field is declared once, in `Config`."""

from __future__ import annotations

import dataclasses
import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rga_fast import dispatch
from rga_fast.reid.data.datasets.cuhk03 import BOXES
from rga_fast.reid.data.datasets.pattern import compile_pattern
from rga_fast.reid.data.images import CACHES
from rga_fast.reid.field import (
    DECAY,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_INTEGER,
    PROBABILITY,
    Field,
    Range,
    declare,
    fields_of,
    kinds_of,
)
from rga_fast.reid.files import write_file
from rga_fast.reid.network import attention
from rga_fast.reid.network.attention import rga
from rga_fast.reid.network.resnet import ARCHITECTURES
from rga_fast.reid.network.timm_backbone import PREFIX
from rga_fast.reid.words import meant

SCHEDULES = ("step", "cosine")
AMP = ("off", "bf16", "fp16")


def _are_paths(value: Any) -> bool:
    listed = (value,) if isinstance(value, str) else value
    return bool(listed) and all(isinstance(path, str) for path in listed)


def _is_pattern(value: Any) -> bool:
    compile_pattern(value)  # ValueError in its own words
    return True


PATHS = Range("a path or several", _are_paths)
NETWORK = Range(
    f"one of {', '.join(ARCHITECTURES)}, or timm:NAME",
    lambda value: value in ARCHITECTURES or (value.startswith(PREFIX) and value != PREFIX),
)
PATTERN = Range("a regular expression", _is_pattern)


@dataclass(frozen=True)
class Config:
    """A training run. The defaults are the published recipe (see `RECIPES` for the others).

    Sizes are in pixels, learning rates per step, `warmup_epochs` and `milestones` in epochs. A
    batch is that of one step of the optimiser: ranks and `accumulate` divide it.
    """

    data: str | tuple[str, ...] | None = declare(
        None,
        "a data set; several train together, the first is evaluated; none: a synthetic one",
        range=PATHS,
        option=True,
        metavar="PATH",
        may_differ=True,
    )
    boxes: str | None = declare(
        None, "boxes of CUHK03; none: labeled if it has them", choices=BOXES
    )
    train_on_val: bool = declare(True, "train on the validation images of MSMT17, too")
    pattern: str | None = declare(
        None,
        "regular expression for names of images, with (?P<identity>...) and (?P<camera>...)",
        range=PATTERN,
        option=True,
        metavar="REGEX",
    )
    skip_damaged: bool = declare(
        False, "open every image first, and leave out those that cannot be read", option=True
    )
    height: int = declare(256, "of the images, in pixels", range=POSITIVE_INTEGER)
    width: int = declare(128, "of the images, in pixels", range=POSITIVE_INTEGER)
    cache: str = declare(
        "off",
        "decode every image once, to memory or a file on disk",
        choices=CACHES,
        may_differ=True,
    )
    cache_folder: str | None = declare(
        None, "folder of that file; none: the user's cache folder", may_differ=True
    )
    workers: int = declare(
        4,
        "processes that decode ahead, unless images are in memory",
        range=NOT_NEGATIVE,
        may_differ=True,
    )

    arch: str = declare(
        "resnet50",
        f"the network: {', '.join(ARCHITECTURES)}, or timm:NAME",
        range=NETWORK,
        option=True,
        metavar="NAME",
    )
    base_width: int = declare(64, "channels of a ResNet's stem", range=POSITIVE_INTEGER)
    last_stride: int = declare(1, "stride of a ResNet's stage 4, 1 or 2", range=POSITIVE_INTEGER)
    pretrained: str | None = declare(
        None, "weights of the backbone (ImageNet, MoCo, ...)", option=True, metavar="FILE"
    )
    init: str | None = declare(
        None,
        "a checkpoint to fine-tune: its weights except the classifier",
        option=True,
        metavar="FILE",
    )
    attention: str = declare(
        "rga-sc",
        "rga-sc, cbam-cs, ..., none (the baseline): `rga-fast info` lists them",
        choices=attention.NAMES,
        option=True,
        metavar="NAME",
    )
    stages: tuple[int, ...] = declare(
        (1, 2, 3, 4), "attention follows these stages", option=True, metavar="1,2,3,4"
    )
    spatial_ratio: int = declare(
        8, "RGA: reduction of positions where they are embedded", range=POSITIVE_INTEGER
    )
    channel_ratio: int = declare(
        8, "RGA: reduction of channels where they are embedded", range=POSITIVE_INTEGER
    )
    down_ratio: int = declare(
        8, "RGA: reduction in the hidden layer of the perceptrons", range=POSITIVE_INTEGER
    )
    zero_init_gate: bool = declare(
        False, "RGA: attention begins constant (weight 0 of its last normalisation), not as noise"
    )
    impl: str = declare(
        "reference",
        "implementation of RGA",
        choices=dispatch.ARGUMENTS,
        option=True,
        may_differ=True,
    )

    identities_per_batch: int = declare(16, "identities of a batch", range=POSITIVE_INTEGER)
    images_per_identity: int = declare(4, "images of each", range=POSITIVE_INTEGER)
    epochs: int = declare(
        600, "passes over all identities", range=POSITIVE_INTEGER, option=True, metavar="N"
    )
    learning_rate: float = declare(8e-4, "the highest of the run", range=POSITIVE)
    weight_decay: float = declare(5e-4, "of all parameters")
    schedule: str = declare("step", "how the learning rate falls", choices=SCHEDULES)
    warmup_epochs: float = declare(20, "epochs in which the learning rate rises")
    warmup_start: float = declare(8e-6, "learning rate at the beginning of the warm-up")
    milestones: tuple[float, ...] = declare(
        (80, 120, 160, 200, 240, 280, 320, 360), "schedule=step halves the rate at these epochs"
    )
    label_smoothing: float = declare(0.1, "of the identity loss")
    margin: float = declare(0.3, "of the triplet loss")
    freeze_epochs: int = declare(
        0, "first train the new layers alone", range=NOT_NEGATIVE, option=True, metavar="N"
    )
    clip_norm: float | None = declare(
        None, "clip the gradient's norm", range=POSITIVE, option=True, metavar="X"
    )
    ema: float | None = declare(
        None,
        "average the weights and evaluate the average",
        range=DECAY,
        option=True,
        metavar="DECAY",
    )

    accumulate: int = declare(
        1,
        "split a batch into N slices to save memory",
        range=POSITIVE_INTEGER,
        option=True,
        metavar="N",
    )
    amp: str = declare("off", "mixed precision", choices=AMP, option=True)
    channels_last: bool = declare(
        False, "maps in channels-last layout", option=True, may_differ=True
    )
    compile: bool = declare(False, "torch.compile the network", option=True, may_differ=True)
    cuda_graph: bool = declare(
        False, "and replay its steps from CUDA graphs", option=True, may_differ=True
    )
    sync_bn: bool = declare(False, "batch statistics of all ranks", option=True)
    mine_across_ranks: bool = declare(True, "mine triplets in the batches of all ranks")

    translate: float = declare(0.5, "probability of a random translation", range=PROBABILITY)
    flip: float = declare(0.5, "probability of a horizontal flip", range=PROBABILITY)
    erase: float = declare(0.5, "probability of random erasing", range=PROBABILITY)
    jitter: float = declare(
        0.0, "probability of random brightness, contrast and saturation", range=PROBABILITY
    )

    eval_every: int = declare(
        40,
        "epochs between evaluations; the last epoch is always evaluated",
        range=POSITIVE_INTEGER,
        may_differ=True,
    )
    checkpoint_every: int = declare(
        20, "epochs between checkpoints", range=POSITIVE_INTEGER, may_differ=True
    )
    eval_batch: int = declare(
        64, "images of a batch in evaluation", range=POSITIVE_INTEGER, may_differ=True
    )
    tensorboard: bool = declare(
        False, "scalars, a batch and embeddings for TensorBoard", option=True, may_differ=True
    )
    profile: bool = declare(
        False, "record a few steps, name the slowest operators", option=True, may_differ=True
    )
    seed: int = declare(0, "of every random choice", range=NOT_NEGATIVE, option=True, metavar="S")
    device: str = declare(
        "auto",
        "auto: cuda if there is one, else cpu",
        option=True,
        metavar="NAME",
        may_differ=True,
    )

    def __post_init__(self) -> None:
        for name, field in fields_of(Config).items():
            field.check(getattr(self, name))
        if self.pretrained is not None and self.init is not None:
            raise ValueError("config: pretrained and init exclude each other: init has a backbone")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        return self.height, self.width

    @property
    def reading(self) -> dict[str, Any]:
        """How the data set is read: the options of `open_source`."""
        names = ("boxes", "train_on_val", "pattern", "skip_damaged")
        return {name: getattr(self, name) for name in names}

    @property
    def readers(self) -> int:
        """Processes that decode ahead: none if the images are in memory."""
        return 0 if self.cache == "memory" else self.workers

    def replace(self, **fields: Any) -> Config:
        """A copy with other values. Former fields are translated, see `FORMER`.

        Raises:
            ValueError: for a field that does not exist (with the nearest name) or a value of
                another type than the field's.
        """
        fields = {k: find_field(k).convert(v) for k, v in fields.items()}
        fields = {RENAMED.get(k, k): v for k, v in fields.items()}
        former = {k: fields.pop(k) for k in FORMER if k in fields}
        if former:
            name = fields.get("attention", self.attention)
            fields["attention"] = rga.changed_name(name, former)
        return dataclasses.replace(self, **fields)

    def conflicts(self, other: Config) -> list[str]:
        """The fields that differ from `other` and decide what is trained: a run of one cannot be
        continued with the other. With schedule=step the rate does not depend on `epochs`."""
        free = {"epochs"} if self.schedule == other.schedule == "step" else set()
        return [
            name
            for name, field in fields_of(Config).items()
            if not (field.may_differ or name in free)
            and not _same(getattr(self, name), getattr(other, name))
        ]

    def to_yaml(self) -> str:
        """Every field, one to a line where it fits."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
        return yaml.safe_dump(fields, sort_keys=False, default_flow_style=None)

    def save(self, path: Path) -> None:
        """Writes every field to a YAML file."""
        write_file(path, self.to_yaml())

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


def _same(a: Any, b: Any) -> bool:
    """Whether values are equal, or paths of the same file."""
    if isinstance(a, str) and isinstance(b, str):
        return os.path.abspath(a) == os.path.abspath(b)
    return bool(a == b)


# Configurations and checkpoints of earlier versions have these fields. RENAMED: former name, name.
# FORMER: options of RGA that are now part of the name in `attention`, with their types.
RENAMED = {"val_trains": "train_on_val"}
FORMER: dict[str, Any] = {
    "variant": str | None,
    "relations": bool,
    "appearance": bool,
    "embedding": str,
}


def find_field(name: str) -> Field:
    """The field `name`, or a former one; ValueError with the nearest name if there is none."""
    fields = fields_of(Config)
    if name in FORMER:
        return Field(name, kinds_of(FORMER[name]), None, "", None, None, False, None, False)
    if RENAMED.get(name, name) in fields:
        return fields[RENAMED.get(name, name)]
    nearest = meant(name, fields=tuple(fields))
    hint = f"; there are {', '.join(fields)}"
    if nearest is not None:
        hint = f"; did you mean {nearest.replace('=', '')!r}?"
    raise ValueError(f"config: unknown field {name!r}{hint}")


RECIPES = {
    # As published, the start of the attention, too.
    "paper": Config(),
    # A shorter schedule for a GPU, with what later work found to help. It has not been measured on
    # a real data set yet; attention begins constant, as in "small".
    "fast": Config(
        zero_init_gate=True,
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
    # The default without --data: learns on two CPU cores within minutes, from random weights. So
    # attention begins constant: with the published start it trains far slower (docs/results.md).
    "small": Config(
        height=96,
        width=48,
        cache="memory",
        workers=0,
        arch="resnet18",
        base_width=24,
        zero_init_gate=True,
        channels_last=True,
        epochs=80,
        learning_rate=2e-3,
        schedule="cosine",
        warmup_epochs=2,
        warmup_start=2e-4,
        erase=0.25,
        eval_every=40,
        checkpoint_every=10,
        eval_batch=128,
    ),
}


def load_recipe(name: str) -> Config:
    """One of `RECIPES`, or a YAML file with some of the fields; the others have their defaults.

    Raises:
        OSError: if the file cannot be read.
        ValueError: for an unknown name, or a file with other content.
    """
    if name in RECIPES:
        return RECIPES[name]
    if name.endswith((".yaml", ".yml")):
        return Config.load(Path(name))
    nearest = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(RECIPES)}"
    raise ValueError(f"unknown recipe {name!r}; {hint} (the name of a recipe file ends in .yaml)")


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["epochs=5", "stages=1,2"]` -> `{"epochs": 5, "stages": [1, 2]}`, values read as YAML."""
    fields = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(
                f"expected field=value, got {assignment!r}; a data set is named by --data PATH, a "
                "recipe by --recipe NAME"
            )
        fields[name] = find_field(name).parse(text)
    return fields
