"""`rga-fast ablate`: several attention systems under one budget, in one table."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "train several attention systems with several seeds, and write one table"


def add_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("out", type=Path, metavar="OUT", help="folder of the runs and the table")
    verb.add_argument(
        "--systems",
        default="none,rga-s,rga-c,rga-sc,se,cbam-cs,nl,snl,fc-s//c",
        metavar="A,B,...",
        help="names of `rga-fast info`, none for the baseline; rga-sc@34 after stages 3 and 4",
    )
    verb.add_argument("--seeds", default="0,1", metavar="S,S,...", help="0,1 by default")
    verb.add_argument("--data", metavar="PATH", help="a data set; none: the synthetic one")
    verb.add_argument(
        "--recipe", metavar="NAME", help="of all runs; small without --data, else paper"
    )
    verb.add_argument(
        "--fused",
        dest="impl",
        action="store_const",
        const="auto",
        help="the fastest implementation; without it the reference runs",
    )
    verb.add_argument(
        "fields", nargs="*", metavar="field=value", help="of `train`, such as epochs=20"
    )


def run(options: argparse.Namespace) -> int:
    from rga_fast.reid.ablation.ablate import ablate
    from rga_fast.reid.config import load_recipe, parse_assignments

    base = load_recipe(options.recipe or ("small" if options.data is None else "paper"))
    given = {"data": options.data, "impl": options.impl}
    fields = {name: value for name, value in given.items() if value is not None}
    assigned = parse_assignments(options.fields)
    for name, option in {"attention": "--systems", "seed": "--seeds"}.items():
        if name in assigned:
            raise ValueError(f"{name} differs between the runs: expected {option}, got {name}=...")
    base = base.replace(**assigned | fields)
    try:
        seeds = [int(text) for text in options.seeds.split(",")]
    except ValueError:
        raise ValueError(f"--seeds: expected numbers such as 0,1, got {options.seeds!r}") from None
    return int(not ablate(base, options.systems.split(","), seeds, options.out))
