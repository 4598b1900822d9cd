"""Verification and open-set search of a data set's features, in a few numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from rga_fast.reid.data.datasets import ReidData
from rga_fast.reid.retrieval.features import FEATURES, Features, rank_feature
from rga_fast.reid.retrieval.ranking import Rule
from rga_fast.reid.retrieval.threshold import Threshold
from rga_fast.reid.retrieval.verification import (
    Curve,
    Point,
    at_false_accept,
    choose_threshold,
    count_pairs,
    equal_error,
    identification,
    roc,
)

PAIR_RATES = (1e-2, 1e-3, 1e-4)
SEARCH_RATES = (0.1, 0.01)
_POINTS = 400  # of a curve in a file


class Verified(NamedTuple):
    """Of one feature. accept: at `PAIR_RATES`. search: at `SEARCH_RATES`. mistaken: the share of
    people who are not in the gallery and whom the threshold takes for somebody."""

    pairs: tuple[int, int]
    equal_error: Point
    accept: dict[float, Point]
    search: dict[float, Point]
    curve: Curve
    threshold: Threshold
    mistaken: float

    @property
    def equal_error_rate(self) -> float:
        return (self.equal_error.false_accept + 1 - self.equal_error.true_accept) / 2

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file; the curve is both ROC and DET."""
        one, two = self.pairs
        curve = thinned(self.curve)
        return {
            "pairs_of_one_person": one,
            "pairs_of_two_people": two,
            "equal_error_rate": self.equal_error_rate,
            "equal_error_threshold": self.equal_error.threshold,
            "at_false_accept_rate": [
                {"at": rate, **point._asdict()} for rate, point in self.accept.items()
            ],
            "open_set_rank1_at_false_accept_rate": [
                {"at": rate, **point._asdict()} for rate, point in self.search.items()
            ],
            "threshold": self.threshold._asdict() | {"interval": list(self.threshold.interval)},
            "mistaken_of_the_absent": self.mistaken,
            "curve": {
                **{name: values.tolist() for name, values in curve._asdict().items()},
                "false_reject": curve.false_reject.tolist(),
            },
        }


def verify(
    data: ReidData,
    query: Features,
    gallery: Features,
    rule: Rule = Rule(),  # noqa: B008 (immutable)
    false_accept: float = 1e-4,
    flip: bool = False,
) -> dict[str, Verified]:
    """Verification by each feature; the threshold is chosen for the rate `false_accept`.

    Raises:
        ValueError: where the data set has too few people: no pair of one person or of two in one
            half of the identities.
    """
    found = {}
    for name, own, others in zip(FEATURES, query, gallery, strict=True):
        distances, labels, ranking = rank_feature(data, own, others, rule=rule)
        pairs = count_pairs(distances, labels, ranking, rule)
        curve = roc(pairs)
        threshold = choose_threshold(pairs, false_accept, data=data.name, feature=name, flip=flip)
        absent = pairs.nearest_other[pairs.nearest_other.isfinite()]
        found[name] = Verified(
            (int(pairs.same.sum()), int(pairs.different.sum())),
            equal_error(curve),
            {rate: at_false_accept(curve, rate) for rate in PAIR_RATES},
            {rate: identification(pairs, ranking, rate) for rate in SEARCH_RATES},
            curve,
            threshold,
            float((absent <= threshold.value).double().mean()),
        )
    return found


def thinned(curve: Curve) -> Curve:
    """At most about `_POINTS` of its points: evenly on the logarithm of the false accept rate, and
    evenly on the true accept rate."""
    lowest = curve.false_accept[curve.false_accept > 0][0].log10()
    rates = torch.logspace(float(lowest), 0, _POINTS // 2, dtype=torch.float64)
    rates = rates.to(curve.threshold.device)
    evenly = torch.linspace(0, 1, _POINTS // 2, dtype=torch.float64, device=rates.device)
    last = len(curve.threshold) - 1
    kept = torch.cat(
        [
            torch.searchsorted(curve.false_accept, rates),
            torch.searchsorted(curve.true_accept, evenly),
            rates.new_tensor([0, last]).long(),
        ]
    )
    kept = kept.clamp(max=last).unique()
    return Curve(*(values[kept] for values in curve))
