"""The gate: an exported file must give what the network gives, on images of a data set."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rga_fast.reid.data.augment import normalise
from rga_fast.reid.data.datasets import ReidData, Split
from rga_fast.reid.data.images import open_images
from rga_fast.reid.export.formats import Run
from rga_fast.reid.network.reidnet import ReidNet
from rga_fast.reid.retrieval.features import FEATURES, Features, score

BATCHES = (1, 5)
COMPARED = 16  # images whose features are compared with those in float64
# Times the error of the network in float32: the same products in another order have an error like
# it, a difference in what is computed has one orders of magnitude larger.
MARGIN = 10.0
MAP_TOLERANCE = 1e-3


class Expected(NamedTuple):
    """What the network gives on a sample of a data set."""

    data: ReidData
    pixels: Tensor  # uint8 (N, H, W, 3): the queries, then the gallery
    features: Features
    oracle: Features  # float64, of the first images
    scores: dict[str, float]  # mAP by feature
    tolerance: float = MAP_TOLERANCE  # of mAP

    def error(self, features: Features) -> float:
        """The largest difference from the features in float64, relative to the largest of them."""
        return max(
            float((part[: len(oracle)].double() - oracle).abs().max() / oracle.abs().max())
            for part, oracle in zip(features, self.oracle, strict=True)
        )

    @property
    def limit(self) -> float:
        """Of `error`, for an export in float32."""
        return MARGIN * (self.error(self.features) + torch.finfo(torch.float32).eps)

    def mean_precision(self, features: Features) -> dict[str, float]:
        """mAP of both features."""
        queries = len(self.data.query)
        query = Features(*(part[:queries] for part in features))
        gallery = Features(*(part[queries:] for part in features))
        return {name: metrics.mAP for name, metrics in score(self.data, query, gallery).items()}


class Parity(NamedTuple):
    """An exported file against its network, with batches of one size."""

    batch: int
    error: float
    limit: float | None  # None: quantised
    scores: dict[str, float]
    expected: dict[str, float]
    tolerance: float = MAP_TOLERANCE

    @property
    def lost(self) -> float:
        """The larger difference of the two mAP; a gain is a difference, too, unless quantised."""
        differences = [self.expected[name] - self.scores[name] for name in FEATURES]
        return max(differences) if self.limit is None else max(map(abs, differences))

    def __str__(self) -> str:
        limit = "" if self.limit is None else f" (limit {self.limit:.1e})"
        mean_precision = ", ".join(
            f"{name.replace('_', ' the ')} {100 * self.expected[name]:.2f} -> "
            f"{100 * self.scores[name]:.2f}"
            for name in FEATURES
        )
        return f"batch {self.batch}: features {self.error:.1e} apart{limit}, mAP {mean_precision}"


def expect(network: ReidNet, data: ReidData, count: int) -> Expected:
    """What `network`, on the CPU, gives on about `count` query and gallery images of `data`.

    Raises:
        ValueError: if no query has a match.
    """
    part = sample(data, count)
    pixels = torch.cat(
        [
            torch.as_tensor(open_images(split, network.size)[np.arange(len(split))])
            for split in (part.query, part.gallery)
        ]
    )
    exact = copy.deepcopy(network).double()
    oracle = Features(*_features(exact, pixels[:COMPARED], torch.float64))
    features = Features(*_features(network, pixels, torch.float32))
    expected = Expected(part, pixels, features, oracle, {})
    expected = expected._replace(scores=expected.mean_precision(features))
    return expected._replace(tolerance=MAP_TOLERANCE + MARGIN * _moved(expected))


def _moved(expected: Expected) -> float:
    """By how much mAP moves if the features do by their own rounding: not at all, unless they are
    all alike, as those of a network that has learnt nothing."""
    generator = torch.Generator().manual_seed(0)
    error = expected.error(expected.features)
    shaken = Features(
        *(
            f + error * f.abs().max() * torch.randn(f.shape, generator=generator)
            for f in expected.features
        )
    )
    scores = expected.mean_precision(shaken)
    return max(abs(scores[name] - expected.scores[name]) for name in FEATURES)


def compare(run: Run, expected: Expected, *, quantised: bool = False) -> list[Parity]:
    """An opened file against the network, for each of `BATCHES`."""
    limit = None if quantised else expected.limit
    rows = []
    for batch in BATCHES:
        outputs = [run(chunk) for chunk in expected.pixels.split(batch)]
        features = Features(*(torch.cat(part) for part in zip(*outputs, strict=True)))
        scores = expected.mean_precision(features)
        error = expected.error(features)
        rows.append(Parity(batch, error, limit, scores, expected.scores, expected.tolerance))
    return rows


def check(rows: list[Parity], most_lost: float | None = None) -> None:
    """The gate. `most_lost`: of mAP, for quantised networks.

    Raises:
        ValueError: if the file does not give what the network gives.
    """
    for row in rows:
        if row.limit is not None and not row.error <= row.limit:
            raise ValueError(f"export: the file does not give the network's features: {row}")
        most = row.tolerance if most_lost is None else most_lost
        if not row.lost <= most:
            raise ValueError(
                f"export: the file loses {100 * row.lost:.2f} mAP, at most {100 * most:g} are "
                f"accepted: {row}"
            )


def sample(data: ReidData, count: int) -> ReidData:
    """The first identities with a valid query, until they have `count` images: all their queries
    and gallery images.

    Raises:
        ValueError: if there is none.
    """
    valid = np.unique(data.query.identities[data.valid_queries()])
    if len(valid) == 0:
        raise ValueError(f"export: {data.name} has no query with a match, to compare results on")
    images = [
        np.isin(data.query.identities, person).sum() + (data.gallery.identities == person).sum()
        for person in valid
    ]
    enough = int(np.searchsorted(np.cumsum(images), count)) + 1
    people = valid[:enough]
    return ReidData(data.name, data.train, _part(data.query, people), _part(data.gallery, people))


def _part(split: Split, people: np.ndarray) -> Split:
    chosen = np.flatnonzero(np.isin(split.identities, people))
    paths = tuple(split.paths[i] for i in chosen)
    return Split(split.root, paths, split.identities[chosen], split.cameras[chosen])


@torch.inference_mode()
def _features(network: ReidNet, pixels: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    outputs = [network(normalise(chunk).to(dtype)) for chunk in pixels.split(16)]
    before = torch.cat([output.before_neck for output in outputs])
    return before, torch.cat([output.after_neck for output in outputs])
