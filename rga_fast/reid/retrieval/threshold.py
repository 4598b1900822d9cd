"""The distance up to which two images show the same person, stored beside a checkpoint."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from pathlib import Path
from typing import NamedTuple

from rga_fast.reid.files import json_text, write_file
from rga_fast.reid.retrieval.breakdown import Interval

FORMAT = "rga_fast threshold 1"


class Threshold(NamedTuple):
    """A distance for "the same person": pairs at most this far apart are accepted.

    value: a distance as the ranking uses it (the cosine distance, 0 to 2).
    false_accept_rate: the share of pairs of different people that it accepts, and
    true_accept_rate: that of pairs of one person, both on identities that had no part in choosing
    it. interval: of the value, 95 %, from a bootstrap over identities. data: the data set's name.
    feature: "before_neck" or "after_neck". flip: whether features of image and mirror image were
    averaged.
    """

    value: float
    false_accept_rate: float
    true_accept_rate: float
    interval: Interval
    data: str
    feature: str = "after_neck"
    flip: bool = False


def threshold_path(checkpoint_path: str | os.PathLike[str]) -> Path:
    """`last.pt` -> `last.pt.threshold.json`, in the same folder."""
    path = Path(checkpoint_path)
    return path.with_name(f"{path.name}.threshold.json")


def save_threshold(checkpoint_path: str | os.PathLike[str], threshold: Threshold) -> None:
    """Writes the threshold beside a checkpoint, atomically, with the checkpoint's hash.

    Raises:
        OSError: if the checkpoint cannot be read or the file not be written.
        ValueError: for numbers that are not finite.
    """
    fields = threshold._asdict() | {"interval": list(threshold.interval)}
    content = {"format": FORMAT, "checkpoint": _digest(Path(checkpoint_path)), **fields}
    write_file(threshold_path(checkpoint_path), json_text(content))


def load_threshold(checkpoint_path: str | os.PathLike[str]) -> Threshold | None:
    """The threshold stored beside a checkpoint. None where there is none, or, with a warning, where
    the checkpoint is no longer the file that it was chosen for.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if the threshold's file is damaged.
    """
    path = threshold_path(checkpoint_path)
    if not path.exists():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields.pop("format") != FORMAT:
            raise ValueError("another format")
        digest = fields.pop("checkpoint")
        low, high = fields.pop("interval")
        threshold = Threshold(interval=Interval(low, high), **fields)
        numbers = (*threshold[:3], low, high)
        if not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers):
            raise ValueError("numbers are missing")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path}: damaged, or not a threshold written by rga-fast evaluate: {error}"
        ) from error
    if digest != _digest(Path(checkpoint_path)):
        warnings.warn(
            f"{path} belongs to an earlier state of {checkpoint_path}; "
            "rga-fast evaluate --verification writes a new one",
            stacklevel=2,
        )
        return None
    return threshold


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
