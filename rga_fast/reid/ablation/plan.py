"""What an ablation trains: systems, seeds, and the configuration of each run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rga_fast import validation
from rga_fast.reid.config import Config
from rga_fast.reid.network.attention import NAMES

EXPECTED = "expected NAME or NAME@STAGES such as rga-sc@34"


class Planned(NamedTuple):
    """A run: its system as it was asked for, its configuration and its folder."""

    system: str
    config: Config
    folder: Path


def plan(base: Config, systems: Sequence[str], seeds: Sequence[int], out: Path) -> list[Planned]:
    """The runs of every system with every seed, all seeds of a system after another seed's.

    Args:
        base: the budget: everything but attention, stages and seed.
        systems: names of attention (`rga_fast.reid.network.attention.NAMES`), after the stages of
            `base`; `rga-sc@34` after stages 3 and 4.
        seeds: of the runs of each system.
        out: the folder that will hold a folder for each run.

    Raises:
        ValueError: for an unknown name or stage, a system or seed that is given twice, or none.
    """
    for word, listed in (("system", systems), ("seed", seeds)):
        twice = [str(x) for i, x in enumerate(listed) if x in listed[:i]]
        if twice:
            raise ValueError(f"ablate: {word} {twice[0]} is given twice")
        if not listed:
            raise ValueError(f"ablate: expected at least one {word}, got none")
    runs = []
    for seed in seeds:  # a whole table of the first seed comes before the second seed
        for system in systems:
            name, stages = parse_system(system, base.stages)
            config = base.replace(attention=name, stages=stages, seed=seed)
            folder = out / f"{system.replace('//', '_')}-{seed}"
            runs.append(Planned(system, config, folder))
    return runs


def parse_system(text: str, stages: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """`"rga-sc@34"` -> `("rga-sc", (3, 4))`; without "@" with the `stages` given."""
    match = re.fullmatch(r"([^@]+)(?:@([1-4]+))?", text)
    if match is None:
        raise ValueError(f"ablate: {EXPECTED}, got {text!r}")
    name, digits = match.groups()
    validation.check_choice("ablate", "system", name, NAMES)
    return name, stages if digits is None else tuple(int(digit) for digit in digits)
