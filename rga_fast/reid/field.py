"""A field of a configuration, declared once: type, default, meaning, range, command line option.

`declare` stands where a dataclass has a default; `fields_of` reads the declarations back.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import yaml

from rga_fast import validation

MOST_LISTED = 8  # choices in the description of a field


class Range(NamedTuple):
    """A condition on a value, and its name in "must be {words}"."""

    words: str
    holds: Callable[[Any], bool]


POSITIVE_INTEGER = Range("a positive integer", lambda value: type(value) is int and value > 0)
POSITIVE = Range("positive", lambda value: value > 0)
NOT_NEGATIVE = Range("at least 0", lambda value: value >= 0)
PROBABILITY = Range("a probability between 0 and 1", lambda value: 0 <= value <= 1)
DECAY = Range("a decay between 0 and 1", lambda value: 0 < value < 1)


class Field(NamedTuple):
    """What is known of a field."""

    name: str
    kinds: tuple[type, ...]
    """The types of its values, `tuple` for sequences."""
    default: Any
    help: str
    choices: tuple[str, ...] | None
    range: Range | None
    option: bool
    metavar: str | None
    may_differ: bool

    def convert(self, value: Any) -> Any:
        """A value as YAML reads it -> the field's type; ValueError for other types."""
        kinds = self.kinds
        if isinstance(value, str) and tuple in kinds and str not in kinds:
            value = self.parse(value)
        if isinstance(value, list):
            value = tuple(value)
        if isinstance(value, tuple) and len(value) == 1 and str in kinds:
            value = value[0]  # a sequence of one text
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
            raise ValueError(f"config: {self.name} must be {expected}, got {value!r}")
        return value

    def check(self, value: Any) -> None:
        """ValueError for a value that is none of the choices or out of range."""
        if value is None and types.NoneType in self.kinds:
            return
        if self.choices is not None:
            validation.check_choice("config", self.name, value, self.choices)
        if self.range is not None and not self.range.holds(value):
            raise ValueError(f"config: {self.name} must be {self.range.words}, got {value!r}")

    def parse(self, text: str) -> Any:
        """The value in `field=text`, read as YAML; the brackets of a sequence may be omitted.

        A field of free text, such as a path, takes the text as it is, commas and all; `[a, b]` are
        several and `null` is none."""
        if str in self.kinds and self.choices is None:
            return self._parse_text(text)
        listed = tuple in self.kinds and not text.startswith("[")
        try:
            return yaml.safe_load(f"[{text}]" if listed else text)
        except yaml.YAMLError:
            raise ValueError(
                f"config: {self.name}: expected a value in YAML, got {text!r}"
            ) from None

    def _parse_text(self, text: str) -> Any:
        if text in ("", "null", "none", "None") and types.NoneType in self.kinds:
            return None
        if tuple in self.kinds and text.startswith("[") and text.endswith("]"):
            with contextlib.suppress(yaml.YAMLError):
                return yaml.safe_load(text)
        return text

    def describe(self) -> str:
        """Its meaning, with the choices if they are few."""
        few = self.choices is not None and len(self.choices) <= MOST_LISTED
        return f"{self.help} ({', '.join(self.choices or ())})" if few else self.help

    def add_option(self, parser: argparse._ActionsContainer) -> None:
        """Adds `--field-name` to a parser. Without the option the attribute is None."""
        settings: dict[str, Any] = {"help": self.help, "default": None}
        if bool in self.kinds:
            settings["action"] = "store_true"
        elif self.choices is not None and self.metavar is None:
            settings["choices"] = self.choices
        else:
            settings["metavar"] = self.metavar
            if tuple in self.kinds and str in self.kinds:
                settings["action"] = "append"
            else:
                numbers = [kind for kind in (int, float) if kind in self.kinds]
                settings["type"] = numbers[0] if numbers else str
        parser.add_argument(f"--{self.name.replace('_', '-')}", **settings)


def declare(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    range: Range | None = None,
    option: bool = False,
    metavar: str | None = None,
    may_differ: bool = False,
) -> Any:
    """A dataclass field.

    Args:
        help: its meaning, in `--help` too.
        choices, range: the values that are allowed, besides None where the type has it.
        option: the command line has an option `--field-name`. Other fields are set as
            `field=value`.
        metavar: the value in the help of the option; with many choices, instead of all of them.
        may_differ: a run may be continued with another value.
    """
    facts = {
        **{"help": help, "choices": choices, "range": range},
        **{"option": option, "metavar": metavar, "may_differ": may_differ},
    }
    return dataclasses.field(default=default, metadata=facts)


@cache
def fields_of(configuration: type) -> dict[str, Field]:
    """The fields of a dataclass whose fields are all declared with `declare`, by name."""
    hints = typing.get_type_hints(configuration)
    return {
        field.name: Field(field.name, kinds_of(hints[field.name]), field.default, **field.metadata)
        for field in dataclasses.fields(configuration)
    }


def kinds_of(hint: Any) -> tuple[type, ...]:
    """`str | tuple[str, ...] | None` -> `(str, tuple, NoneType)`."""
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(typing.get_origin(part) or part for part in parts)
