"""The command line: thin, one module per verb (`HELP`, `add_options(verb)`, `run(options)`).

A verb whose list `fields` takes field=value may be given them between its options, too. One with
another list names it (`set_defaults(more=...)`) and has `field_names()`.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence

import rga_fast

VERBS = (
    "train",
    "evaluate",
    "report",
    "visualize",
    "index",
    "search",
    "serve",
    "ablate",
    "export",
    "data",
    "synth",
    "info",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb. Returns 0; 1 after an error that is reported in a line, 130 after an interrupt.
    `data` also returns 1 if something is wrong with the data."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names need not be UTF-8, nor terminals
            stream.reconfigure(errors="backslashreplace")
    try:
        options = _options(sys.argv[1:] if arguments is None else arguments)
        return options.module.run(options) or 0
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
    unknown = [text for text in rest if text.startswith("-")]
    if unknown:
        parser.error(_unknown_options(unknown, options))
    more = getattr(options, "more", "fields")
    if rest and not hasattr(options, more):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        # argparse takes a list of arguments in one place only, people write it between the options
        setattr(options, more, getattr(options, more) + rest)
    return options


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rga-fast",
        allow_abbrev=False,
        description="Person re-identification with relation-aware global attention.",
    )
    parser.add_argument("--version", action="version", version=f"rga_fast {rga_fast.__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    # Options that come from the configuration import the image libraries: not for other verbs.
    chosen = next((text for text in arguments if not text.startswith("-")), None)
    for name in VERBS:
        module = importlib.import_module(f"rga_fast.cli.{name}")
        text = module.HELP
        description = text[0].upper() + text[1:] + "."
        verb = verbs.add_parser(name, help=text, description=description, allow_abbrev=False)
        if name == chosen:
            module.add_options(verb)
        verb.set_defaults(module=module, known=tuple(verb._option_string_actions))
    return parser


def _unknown_options(texts: Sequence[str], options: argparse.Namespace) -> str:
    from rga_fast.reid.words import unknown_option

    fields: tuple[str, ...] = ()
    if hasattr(options, "fields"):
        from rga_fast.reid.config import Config
        from rga_fast.reid.field import fields_of

        fields = tuple(fields_of(Config))
    elif hasattr(options.module, "field_names"):
        fields = options.module.field_names()
    return "; ".join(unknown_option(text, options.known, fields) for text in texts)


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
