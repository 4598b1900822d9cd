"""Images of any naming, read with a regular expression."""

from __future__ import annotations

import os
import re

from rga_fast.reid.data.datasets.assemble import UNDIVIDED, Row, Rows, assemble
from rga_fast.reid.data.datasets.common import ReidData, existing_folder, one_line
from rga_fast.reid.data.datasets.listing import Listing
from rga_fast.reid.data.datasets.own import split_folders


def load_pattern(path: str | os.PathLike[str], pattern: str) -> ReidData:
    """Reads all images in `path` and the folders in it whose names match `pattern`.

    The pattern has a group `identity` and may have a group `camera`, as in
    `(?P<identity>\\d{4})(?P<camera>\\d{3})`. It is searched in an image's name; one that contains a
    slash, in the path below `path`. If there are folders of splits (`own.SPLIT_FOLDERS`), they
    divide the images; otherwise the images are divided here, see `assemble`. Images that do not
    match are counted in the notes.

    ValueError: a pattern that `compile_pattern` refuses, no image matches, and the errors of
    `assemble`.
    """
    expression = compile_pattern(pattern)
    root = existing_folder(path)
    listing = Listing(root)
    found = split_folders(root)
    parts = found or {UNDIVIDED: ""}
    images = {split: listing.tree(folder) for split, folder in parts.items()}
    rows: Rows = {
        split: _matching(listing, expression, paths, "/" in pattern)
        for split, paths in images.items()
    }
    if not any(rows.values()):
        first = next((path for paths in images.values() for path in paths), None)
        seen = "it holds no images" if first is None else f"the first image is {first}"
        raise ValueError(f"{root}: no image matches the pattern {one_line(pattern)}; {seen}")
    layout = f"pattern {pattern}" + (f" in {', '.join(found.values())}" if found else "")
    return assemble(root, root, rows, layout=layout, notes=listing.notes())


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """ValueError unless it is a regular expression with the group `identity` and, besides it, none
    but `camera`."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"pattern: not a regular expression: {error}, got {one_line(pattern)}"
        ) from None
    groups = set(expression.groupindex)
    if "identity" not in groups or groups - {"identity", "camera"}:
        raise ValueError(
            "pattern: expected the groups (?P<identity>...) and, if names show it, "
            f"(?P<camera>...), got {one_line(pattern)}"
        )
    return expression


def _matching(
    listing: Listing, expression: re.Pattern[str], paths: list[str], whole: bool
) -> list[Row]:
    rows = []
    for path in paths:
        match = expression.search(path if whole else path.rpartition("/")[2])
        groups = {} if match is None else match.groupdict(default="")
        if not groups.get("identity"):
            listing.pass_over(path)
            continue
        rows.append(Row(path, groups["identity"], groups.get("camera", "")))
    return rows
