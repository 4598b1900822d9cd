"""`rga-fast train`: a training run, new or continued."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

HELP = "train a network and evaluate it before and after"


def add_options(verb: argparse.ArgumentParser) -> None:
    from rga_fast.reid.config import Config
    from rga_fast.reid.field import fields_of

    verb.add_argument("--out", type=Path, metavar="DIR", help="folder of the run, runs/... if none")
    verb.add_argument(
        "--recipe",
        metavar="NAME",
        help="paper, fast, small or a FILE.yaml with some of the fields; small without --data, "
        "else paper",
    )
    implementation = verb.add_mutually_exclusive_group()
    implementation.add_argument(
        "--fused",
        dest="impl",
        action="store_const",
        const="auto",
        help="the fastest implementation; without it the reference runs",
    )
    fields = {name: field for name, field in fields_of(Config).items() if field.option}
    for name, field in fields.items():
        field.add_option(implementation if name == "impl" else verb)
    verb.add_argument(
        "--dry-run", action="store_true", help="print what would run and what it needs, and end"
    )
    verb.add_argument(
        "--resume",
        metavar="PATH",
        help="a checkpoint, the folder of a run, or auto: the run in --out, if there is one",
    )
    verb.add_argument(
        "fields", nargs="*", metavar="field=value", help="see below; overrides a recipe"
    )
    verb.set_defaults(names=tuple(fields))
    verb.formatter_class = argparse.RawDescriptionHelpFormatter
    lines = [f"  {field.name:<20} {field.describe()}" for field in fields_of(Config).values()]
    verb.epilog = "\n".join(["fields:", *lines, "", "--dry-run prints the value of each."])


def run(options: argparse.Namespace) -> None:
    from rga_fast.reid.config import parse_assignments
    from rga_fast.reid.training.resume import beginning
    from rga_fast.reid.training.run import train
    from rga_fast.reid.training.stopping import Terminated

    given = {name: getattr(options, name) for name in options.names}
    given = {name: value for name, value in given.items() if value is not None}
    fields = parse_assignments(options.fields) | given
    begin = beginning(options.resume, options.out, options.recipe, fields)
    if options.dry_run:
        from rga_fast.reid.training.dry_run import describe_run

        describe_run(begin.config)
        return
    try:
        train(**begin._asdict())
    except Terminated as stopped:
        with contextlib.suppress(OSError):  # the terminal is gone
            print(f"rga-fast: {stopped}", file=sys.stderr)
        raise SystemExit(128 + stopped.number) from None
