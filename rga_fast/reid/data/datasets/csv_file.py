"""A CSV file that lists images, as people, Excel and pandas write it."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from rga_fast.reid.data.datasets.assemble import UNDIVIDED, Row, Rows, assemble
from rga_fast.reid.data.datasets.common import SPLITS, ReidData, one_line, require_files

CSV_SUFFIXES = (".csv", ".tsv")
CSV_COLUMNS = ("path", "identity", "camera", "split")
REQUIRED = CSV_COLUMNS[:2]
DELIMITERS = ",;\t"
SPLIT_NAMES = {**{split: split for split in SPLITS}, "test": "gallery"}
WHOLE = re.compile(r"(-?\d+)\.0+")  # pandas writes 12.0 where a column has gaps


def load_csv(path: str | Path) -> ReidData:
    """Reads a CSV file with the columns `path,identity,camera,split`, in UTF-8.

    Columns are separated by commas, semicolons or tabs, in any order, their names in any case;
    further columns, empty rows and spaces around values are ignored, and 12.0 is 12. Paths are
    relative to the file's folder; identities and cameras are any names. The split is `train`,
    `query` or `gallery` (`test` is the same). Without the column `split` the images are divided,
    without `camera` all have camera 1; see `assemble`.

    FileNotFoundError: no such file, or one of its images is missing. ValueError names the wrong
    line; and the errors of `assemble`.
    """
    source = Path(path)
    rows: Rows = {}
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            for split, row in _rows(source, file):
                rows.setdefault(split, []).append(row)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{source}: expected UTF-8, got byte {error.object[error.start]:#x}; "
            "save the file as 'CSV UTF-8'"
        ) from None
    except csv.Error as error:
        raise ValueError(f"{source}: not a CSV file: {error}") from None
    if not rows:
        raise ValueError(f"{source}: expected a row per image after the header, got none")
    require_files(source.parent, (row.path for found in rows.values() for row in found), source)
    layout = f"{source.name}: {','.join(CSV_COLUMNS)}"
    return assemble(source.parent, source, rows, layout=layout)


def csv_in(folder: Path, alone: bool) -> Path | None:
    """The CSV file in `folder` to read: the only one with the right columns, or the only one if
    `alone`: nothing else in the folder can be read."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in CSV_SUFFIXES)
    right = [path for path in found if _has_columns(path)]
    if not right and alone:
        right = found
    return right[0] if len(right) == 1 else None


def _has_columns(source: Path) -> bool:
    if not source.is_file():
        return False
    with source.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            return set(REQUIRED) <= set(_header(file)[0])
        except csv.Error:
            return False


def _header(file: Iterable[str]) -> tuple[list[str], str]:
    """The names of the columns, and the delimiter."""
    line = next(iter(file), "")
    delimiter = max(DELIMITERS, key=line.count)  # the comma if there is none
    names = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    return [name.strip().casefold() for name in names], delimiter


def _rows(source: Path, file: Iterable[str]) -> Iterator[tuple[str, Row]]:
    lines = iter(file)
    header, delimiter = _header(lines)
    if not set(REQUIRED) <= set(header):
        raise ValueError(
            f"{source}: expected the columns {','.join(CSV_COLUMNS)} in the first line (camera and "
            f"split may be missing), got {one_line(','.join(header)) or 'an empty file'}"
        )
    twice = [name for name in CSV_COLUMNS if header.count(name) > 1]
    if twice:
        raise ValueError(f"{source}: the column {twice[0]} is there twice")
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    for values in reader:
        stripped = [value.strip() for value in values]
        if any(stripped):
            where = f"{source}, line {reader.line_num + 1}"
            yield _row(where, dict(zip(header, stripped, strict=False)), header)


def _row(where: str, fields: dict[str, str], header: list[str]) -> tuple[str, Row]:
    for name in CSV_COLUMNS:
        value = fields.get(name, "")
        if len(value.splitlines()) > 1 or "\0" in value:
            raise ValueError(
                f"{where}: {name} must be on one line, got {value[:40]!r}; is a quote not closed?"
            )
    for name in (*REQUIRED, *("split",) * ("split" in header)):
        if not fields.get(name):
            raise ValueError(f"{where}: expected {','.join(CSV_COLUMNS)}, got no {name}")
    split = UNDIVIDED
    if "split" in header:
        given = fields["split"]
        split = SPLIT_NAMES.get(given.casefold(), "")
        if not split:
            raise ValueError(
                f"{where}: split must be one of {', '.join(SPLIT_NAMES)}, got {given!r}"
            )
    path = fields["path"].replace("\\", "/")
    return split, Row(path, _whole(fields["identity"]), _whole(fields.get("camera", "")))


def _whole(text: str) -> str:
    match = WHOLE.fullmatch(text)
    return text if match is None else match[1]
