"""What tells one training set from another, kept in checkpoints."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from rga_fast.reid.data.datasets import Split

SAMPLED = 16  # images whose content counts
READ = 1 << 16  # bytes of each


class TrainingSet(NamedTuple):
    """The people and images that a network was trained on, wherever the files are.

    `identities` are the data set's numbers in the order of the classes. `digest` depends on the
    file names without folders, identities, cameras, and the content of a few images: numbered
    names are alike in many data sets.
    """

    images: int
    identities: tuple[int, ...]
    digest: str


def fingerprint(train: Split) -> TrainingSet:
    """The `TrainingSet` of a split. OSError: an image cannot be read."""
    digest = hashlib.sha256()
    for path in train.paths:
        digest.update(path.rpartition("/")[2].encode("utf-8", "surrogateescape") + b"\n")
    for numbers in (train.identities, train.cameras):
        digest.update(np.ascontiguousarray(numbers, dtype="<i8").tobytes())
    for index in np.unique(np.linspace(0, len(train) - 1, SAMPLED).astype(int)):
        with train.file(index).open("rb") as file:
            digest.update(file.read(READ))
    identities = tuple(np.unique(train.identities).tolist())
    return TrainingSet(len(train), identities, digest.hexdigest())


def difference(saved: TrainingSet, present: TrainingSet) -> str | None:
    """How the training set of a checkpoint and the present one differ; None if they do not."""
    if saved.digest == present.digest:
        return None
    for what, there, here in (
        ("people", len(saved.identities), len(present.identities)),
        ("images", saved.images, present.images),
    ):
        if there != here:
            return f"{there:,} {what} there, {here:,} here"
    if saved.identities != present.identities:
        pairs = zip(saved.identities, present.identities, strict=True)
        there, here = next(pair for pair in pairs if pair[0] != pair[1])
        return f"as many people, but other ones: identity {there} there, {here} here"
    return "as many people and images with the same numbers, but other images"
