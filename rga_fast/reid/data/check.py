"""The report of `rga-fast data` on a data set."""

from __future__ import annotations

import warnings

from rga_fast.reid.console import Advance, console
from rga_fast.reid.data.datasets import ReidData, dataset_report, read_dataset
from rga_fast.reid.data.images import damaged_images
from rga_fast.reid.data.tables import report_table

SHOWN = 10  # damaged images that are named


def check_dataset(
    path: str, *, boxes: str | None, train_on_val: bool, decode: bool, progress: Advance
) -> tuple[ReidData, bool]:
    """Prints layout and counts of the data set at `path` with the published counts, and what is
    wrong, in sentences. Returns the data set, and whether it can be used and compared (no errors).

    `decode` opens every image, too. Errors as `open_dataset`.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        data = read_dataset(path, boxes=boxes, train_on_val=train_on_val)
    report = dataset_report(data)
    console.print(report_table(report))
    errors = list(report.errors)
    if decode:
        splits = (data.train, data.query, data.gallery)
        files = sorted({split.file(index) for split in splits for index in range(len(split))})
        damaged = damaged_images(files, progress)
        errors += damaged[:SHOWN]
        if len(damaged) > SHOWN:
            errors.append(f"{len(damaged):,} images in all are damaged")
    for sentence in errors:
        console.print(f"wrong: {sentence}", markup=False)
    for sentence in [*report.remarks, *(str(warning.message) for warning in caught)]:
        console.print(f"note: {sentence}", markup=False)
    if not errors:
        opened = "every image can be read" if decode else "no image was opened (--decode does)"
        console.print(f"{path}: nothing is wrong; {opened}", markup=False)
    return data, not errors
