"""The report of `rga-fast data` on a data set."""

from __future__ import annotations

import warnings

from rga_fast.reid.console import Advance, console
from rga_fast.reid.data.damaged import damaged_images, files_of
from rga_fast.reid.data.datasets import ReidData, dataset_report, read_dataset
from rga_fast.reid.data.tables import report_table

SHOWN = 10  # damaged images that are named


def check_dataset(
    path: str,
    *,
    boxes: str | None,
    train_on_val: bool,
    pattern: str | None,
    decode: bool,
    progress: Advance,
) -> tuple[ReidData, bool]:
    """Prints layout and counts of the data set at `path` with the published counts, and what is
    wrong, in sentences. Returns the data set, and whether it can be used and compared (no errors).

    `decode` opens every image, too. Errors as `open_dataset`.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        data = read_dataset(path, boxes=boxes, train_on_val=train_on_val, pattern=pattern)
    report = dataset_report(data)
    console.print(report_table(report))
    errors = list(report.errors)
    if decode:
        damaged = list(damaged_images(files_of(data), progress).values())
        errors += damaged[:SHOWN]
        if damaged:
            errors.append(
                f"damaged images in all: {len(damaged):,}; `train --skip-damaged` leaves them out"
            )
    remarks = [*report.remarks, *(str(warning.message) for warning in caught)]
    for kind, sentences in (("wrong", errors), ("note", remarks)):
        for sentence in sentences:
            console.print(f"{kind}: {sentence}")
    if not errors:
        opened = "every image can be read" if decode else "no image was opened (--decode does)"
        verdict = "nothing is wrong, with the notes above" if remarks else "nothing is wrong"
        console.print(f"{path}: {verdict}; {opened}")
    return data, not errors
