"""`rga-fast train`: a training run, new or continued."""

from __future__ import annotations

import argparse
import signal
import sys
import time
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
        help="a checkpoint, or auto: the newest in --out, if there is one",
    )
    verb.add_argument(
        "fields", nargs="*", metavar="field=value", help="see below; overrides a recipe"
    )
    verb.set_defaults(names=tuple(fields))
    verb.formatter_class = argparse.RawDescriptionHelpFormatter
    lines = [f"  {field.name:<20} {field.describe()}" for field in fields_of(Config).values()]
    verb.epilog = "\n".join(["fields:", *lines, "", "--dry-run prints the value of each."])


def run(options: argparse.Namespace) -> None:
    from rga_fast.reid.checkpoint import load_checkpoint
    from rga_fast.reid.config import load_recipe, parse_assignments
    from rga_fast.reid.training.run import Terminated, train

    resume = _resume_path(options)
    if resume is not None:
        config, out = load_checkpoint(resume).config, options.out or resume.parent.parent
    else:
        recipe = options.recipe or ("small" if options.data is None else "paper")
        config = load_recipe(recipe)
        out = options.out or Path("runs") / time.strftime(f"%Y%m%d-%H%M%S-{Path(recipe).stem}")
    given = {name: getattr(options, name) for name in options.names}
    given = {name: value for name, value in given.items() if value is not None}
    config = config.replace(**parse_assignments(options.fields) | given)
    if options.dry_run:
        from rga_fast.reid.training.dry_run import describe_run

        describe_run(config)
        return
    try:
        train(config, out, resume, restart=options.resume == "auto")
    except Terminated as stopped:
        print(f"rga-fast: {stopped}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM) from None


def _resume_path(options: argparse.Namespace) -> Path | None:
    if options.resume != "auto":
        return None if options.resume is None else Path(options.resume)
    if options.out is None:
        raise ValueError("--resume auto continues the run in --out DIR, and no --out was given")
    from rga_fast.reid.checkpoint import latest_checkpoint

    return latest_checkpoint(options.out / "checkpoints")
