"""The command line: thin, one module per verb (`HELP`, `add_options(verb)`, `run(options)`)."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import rga_fast

VERBS = ("train", "evaluate", "data", "synth", "info")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb. Returns 0; 1 after an error that is reported in a line, 130 after an interrupt.
    `data` also returns 1 if something is wrong with the data."""
    try:
        options = _options(sys.argv[1:] if arguments is None else arguments)
        return options.run(options) or 0
    except KeyboardInterrupt:
        print("rga-fast: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ArithmeticError, ImportError) as error:
        rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
        print(f"rga-fast: {rank}error: {_message(error)}", file=sys.stderr)
        return 1


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _parser(arguments)
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "fields") or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes field=value in one place only, people write it between the options
        options.fields += rest
    return options


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rga-fast",
        description="Person re-identification with relation-aware global attention.",
    )
    parser.add_argument("--version", action="version", version=f"rga_fast {rga_fast.__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    # Options that come from the configuration import the image libraries: not for other verbs.
    chosen = next((text for text in arguments if not text.startswith("-")), None)
    for name in VERBS:
        module = importlib.import_module(f"rga_fast.cli.{name}")
        text = module.HELP
        verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        verb.set_defaults(run=module.run)
        if name == chosen:
            module.add_options(verb)
    return parser


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
