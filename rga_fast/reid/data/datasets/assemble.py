"""From rows of names to a data set: junk, distractors, numbers, and a split where none is given."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rga_fast.reid.data.datasets.common import (
    SPLITS,
    Record,
    ReidData,
    Split,
    require_identities,
    split_of,
)
from rga_fast.reid.data.datasets.names import DISTRACTOR, JUNK

HELD_OUT = 4  # every fourth identity is a test identity
UNDIVIDED = ""  # the key of rows that belong to no split yet


class Row(NamedTuple):
    """An image as named in the data: path relative to the data set's folder, identity, camera
    (empty: none is named)."""

    path: str
    identity: str
    camera: str


Rows = dict[str, list[Row]]  # by split; UNDIVIDED alone: to be divided here


def assemble(
    root: Path,
    source: Path,
    rows: Rows,
    *,
    layout: str,
    name: str = "own images",
    notes: Iterable[str] = (),
    published: bool = False,
) -> ReidData:
    """A data set of `rows`, whose paths are relative to `root`; `source` is named in messages.

    - Identity -1 is junk and is dropped. Identity 0000 is a distractor if the gallery has it and
      the query has not, as in Market-1501; where no query is given, if there is junk, too.
    - Undivided rows: every fourth identity in sorted order is held out, all its images form the
      gallery. Gallery without query: the first image of each identity and camera is a query, which
      the evaluation compares with other cameras only.
      A `published` protocol is left as it is: no query is made, and equal numbers in training and
      test images mean different people.
    - No row has a camera: all images have camera 1. Cameras and identities that are whole numbers
      keep them, others are numbered from 1 in sorted order.

    What was decided is in the `notes` of the data set. ValueError: cameras in some rows only, fewer
    than 4 identities to divide, no image, or a single training identity. UserWarning: an identity
    is in training and test images.
    """
    made = list(notes)
    kept: Rows = {split: [r for r in found if not is_junk(r)] for split, found in rows.items()}
    junk = {split: len(found) - len(kept[split]) for split, found in rows.items()}
    marked = any(junk.values())
    _check_cameras(root, kept)
    if UNDIVIDED in kept:
        kept, note = _divided(source, kept[UNDIVIDED], marked)
        junk = {"gallery": junk[UNDIVIDED]}
        made.append(note)
    elif kept.get("gallery") and not kept.get("query") and not published:
        kept["query"] = _first_seen(kept["gallery"], marked)
        made.append(_query_note(kept["query"]))
    dropped = {split: junk.get(split, 0) for split in SPLITS}
    splits = {split: kept.get(split, []) for split in SPLITS}
    strangers = _distractors(splits)
    trained = [row for row in splits["train"] if row.identity not in strangers]
    dropped["train"] += len(splits["train"]) - len(trained)
    splits["train"] = trained
    if not published:
        _warn_of_known_people(source, splits)
    numbered, stranger = _numbered(root, source, splits, strangers, dropped)
    require_identities(source, numbered["train"])
    return ReidData(
        name, **numbered, distractor_identity=stranger, layout=layout, notes=tuple(made)
    )


def is_junk(row: Row) -> bool:
    return JUNK.fullmatch(row.identity) is not None


def _check_cameras(root: Path, rows: Rows) -> None:
    everything = {row for found in rows.values() for row in found}
    without = sorted(row.path for row in everything if not row.camera)
    if without and len(without) < len(everything):
        raise ValueError(
            f"{root / without[0]}: expected a camera for every image or for none "
            f"(c2_ or cam2_ in its name), got none in {len(without):,} of {len(everything):,}"
        )


def _divided(source: Path, rows: list[Row], marked: bool) -> tuple[Rows, str]:
    """The split of undivided rows, and a note on it. `marked`: 0000 is a distractor."""
    strangers = {row.identity for row in rows if marked and DISTRACTOR.fullmatch(row.identity)}
    identities = sorted({row.identity for row in rows} - strangers)
    if len(identities) < HELD_OUT:
        raise ValueError(
            f"{source}: expected images of at least {HELD_OUT} identities (every {HELD_OUT}th is "
            f"held out for the evaluation), got {', '.join(identities) or 'none'}; if these are no "
            "identities, --pattern reads the names"
        )
    held_out = {*identities[HELD_OUT - 1 :: HELD_OUT], *strangers}
    gallery = [row for row in rows if row.identity in held_out]
    split = {
        "train": [row for row in rows if row.identity not in held_out],
        "query": _first_seen(gallery, marked),
        "gallery": gallery,
    }
    trained = len(identities) - len(identities) // HELD_OUT
    note = (
        f"no split is given: {trained:,} identities train, every {HELD_OUT}th is held out "
        f"({len(identities) - trained:,}); {_query_note(split['query'])}"
    )
    return split, note


def _first_seen(gallery: list[Row], marked: bool) -> list[Row]:
    """The first image of each identity and camera, without distractors if they are `marked`."""
    first = {(row.identity, row.camera): row for row in sorted(gallery, reverse=True)}
    return [row for row in first.values() if not (marked and DISTRACTOR.fullmatch(row.identity))]


def _query_note(query: list[Row]) -> str:
    return f"the {len(query):,} queries are the first image of each test identity and camera"


def _distractors(splits: Rows) -> set[str]:
    zeros = {
        split: {row.identity for row in rows if DISTRACTOR.fullmatch(row.identity)}
        for split, rows in splits.items()
    }
    return zeros["gallery"] if splits["query"] and not zeros["query"] else set()


def _numbered(
    root: Path, source: Path, splits: Rows, strangers: set[str], dropped: dict[str, int]
) -> tuple[dict[str, Split], int | None]:
    """The splits with numbers for names, and that of distractors."""
    everything = [row for split in SPLITS for row in splits[split]]
    if not everything:
        raise ValueError(f"{source}: no images but junk (-1) and distractors (0000)")
    stranger = min(strangers, default="")  # 0000 and 0 are one
    people = {row.identity for row in everything} - strangers
    number = numbers(people | {stranger} if strangers else people)
    if strangers:
        number |= dict.fromkeys(strangers, number[stranger])
    camera = numbers(_camera(row) for row in everything)

    def split(name: str) -> Split:
        records = [Record(r.path, number[r.identity], camera[_camera(r)]) for r in splits[name]]
        return split_of(root, records, dropped[name])

    return {name: split(name) for name in SPLITS}, number.get(stranger) if strangers else None


def _camera(row: Row) -> str:
    """The row's camera; 1, 01 and 1.0 are one camera."""
    text = row.camera or "1"
    return str(int(text)) if text.isdecimal() and len(text) < 10 else text


def numbers(names: Iterable[str]) -> dict[str, int]:
    """Whole numbers are kept, unless too long or ambiguous (1, 01); other names count from 1."""
    unique = sorted(set(names))
    if all(name.isdecimal() and len(name) < 10 for name in unique):
        kept = {name: int(name) for name in unique}
        if len(set(kept.values())) == len(unique):
            return kept
    return {name: number for number, name in enumerate(unique, start=1)}


def _warn_of_known_people(source: Path, splits: Rows) -> None:
    trained = {row.identity for row in splits["train"]}
    tested = {row.identity for split in ("query", "gallery") for row in splits[split]}
    both = sorted(trained & tested)
    if both:
        warnings.warn(
            f"{source}: {len(both)} identities are in training and test images, the first is "
            f"{both[0]}; the scores will be too high",
            stacklevel=5,
        )
