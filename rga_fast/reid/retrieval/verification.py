"""Verification, "are these two images of one person?", and search for people who may not be there.

All pairs of a query and a gallery image are judged by their cosine distance. A pair of one person
is a hit of the ranking; by its rule, pairs under the same camera are left out, because they are too
easy. A pair of two people is every other image that is ranked for the query, distractors included,
whatever the camera. Junk (identity -1) is in no pair.

Nothing of size queries x gallery is stored. The distances are counted on a grid: cosine distances
in float32 are multiples of 2^-24, thresholds are multiples of 2^-18, and the rates at a threshold
are exact. The division into blocks changes no number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rga_fast.reid.retrieval.breakdown import Interval
from rga_fast.reid.retrieval.distances import COLUMNS, GRID, FeatureDistances, full_precision
from rga_fast.reid.retrieval.operators import fused
from rga_fast.reid.retrieval.ranking import JUNK, Labels, Ranking, Rule
from rga_fast.reid.retrieval.threshold import Threshold

GRAIN = 2.0**-18  # thresholds are multiples of it
BINS = 1 << 19  # of distances 0 to 2; bin b holds those above b - 1 and up to b grains
COARSE = 7  # 2^COARSE bins together where they are counted for each identity
BLOCK = 512  # queries at a time
CHOSEN, CHECKED, ACROSS = range(3)  # pairs within either half of the identities, and between them


class Pairs(NamedTuple):
    """How many pairs have a distance in each bin.

    same, different: (3, BINS + 1) int64, of one person and of two, for `CHOSEN`, `CHECKED` and
    `ACROSS`. by_identity: (identities, BINS / 2^COARSE + 1) int32, `different[CHOSEN]` by the
    query's identity. nearest_other: (Nq,) float32, the smallest distance of each query from another
    person; inf where there is none.
    """

    same: Tensor
    different: Tensor
    by_identity: Tensor
    nearest_other: Tensor


class Curve(NamedTuple):
    """The receiver operating characteristic: (n,) each, float64, ascending.

    A pair is accepted where its distance is at most `threshold`. The rates are shares of the pairs
    of different people and of the pairs of one person that are accepted. The detection error
    trade-off (DET) is `false_reject` against `false_accept`.
    """

    threshold: Tensor
    false_accept: Tensor
    true_accept: Tensor

    @property
    def false_reject(self) -> Tensor:
        return 1 - self.true_accept


class Point(NamedTuple):
    """A threshold and the rates there. In search, `true_accept` is the detection and identification
    rate and `false_accept` the share of the absent who are taken for somebody."""

    threshold: float
    false_accept: float
    true_accept: float


@torch.no_grad()
def count_pairs(
    distances: FeatureDistances,
    labels: Labels,
    ranking: Ranking,
    rule: Rule = Rule(),  # noqa: B008 (immutable)
    *,
    seed: int = 0,
    block: int = BLOCK,
) -> Pairs:
    """Counts all pairs; one more product of all features than the ranking took.

    Args:
        distances: cosine distances. labels, ranking, rule: of `rank_hits`.
        seed: of the division of the identities into two halves.
        block: queries at a time, rounded up to a multiple of `GRID`; no number depends on it.

    Memory beyond the features: about 30 * block * `COLUMNS` bytes, and `Pairs` (25 MB, and 16 kB
    for an identity).

    Raises:
        ValueError: for another distance than the cosine, which alone is comparable among queries.
    """
    if distances.metric != "cosine":
        raise ValueError(f"verification: needs the cosine distance, got {distances.metric!r}")
    query_half, gallery_half, group = _halves(labels, seed)
    identities = int(group.max()) + 1  # of queries in the first half
    queries = torch.arange(len(labels.query_ids), device=distances.device)
    hits = queries.repeat_interleave(ranking.begin.diff())
    parts = _part(query_half[hits], gallery_half[ranking.images])
    same = torch.bincount(parts * (BINS + 1) + _bins(ranking.distances), minlength=3 * (BINS + 1))
    different = torch.zeros(3 * (BINS + 2), dtype=torch.int64, device=distances.device)
    width = (BINS >> COARSE) + 1
    by_identity = different.new_zeros(identities * (width + 1), dtype=torch.int32)
    nearest = torch.full_like(distances.query[:, 0], torch.inf, dtype=torch.float32)
    for rows, columns, tile in _tiles(distances, block):
        tile.masked_fill_(_left_out(labels, rule, rows, columns), torch.inf)
        nearest[rows] = torch.minimum(nearest[rows], tile.amin(dim=1))
        bins = _bins(tile)  # those left out are in the last one, BINS + 1
        part = _part(query_half[rows, None], gallery_half[columns])
        _add(different, (part * (BINS + 2)).add_(bins))
        chosen, images = (half == CHOSEN for half in (query_half[rows], gallery_half[columns]))
        coarse = bins[chosen][:, images].add_((1 << COARSE) - 1) >> COARSE
        _add(by_identity, coarse.add_(group[rows][chosen, None] * (width + 1)))
    return Pairs(
        same.view(3, -1),
        different.view(3, -1)[:, :-1].clone(),
        by_identity.view(identities, -1)[:, :-1].clone(),
        nearest,
    )


def roc(pairs: Pairs, part: int | None = None) -> Curve:
    """The curve of all pairs or of a part of them, at the thresholds where a rate changes; the
    first accepts nothing.

    Raises:
        ValueError: where there are no pairs of one person or none of different people.
    """
    counts = [c.sum(dim=0) if part is None else c[part] for c in (pairs.different, pairs.same)]
    for name, count in zip(("different people", "one person"), counts, strict=True):
        if not count.any():
            where = "" if part is None else " in one half of the identities"
            raise ValueError(f"verification: there are no pairs of {name}{where}")
    kept = (counts[0] + counts[1]).nonzero().flatten()
    sums = [count[kept].cumsum(0).double() for count in counts]
    rates = [torch.cat([total.new_zeros(1), total / total[-1]]) for total in sums]
    first = kept.new_full((1,), int(kept[0]) - 1)
    return Curve(torch.cat([first, kept]).double() * GRAIN, *rates)


def at_false_accept(curve: Curve, rate: float) -> Point:
    """The rates at the largest threshold whose false accept rate is at most `rate`."""
    i = int(torch.searchsorted(curve.false_accept, rate, right=True)) - 1
    point = Point(*(float(values[i]) for values in curve))
    if i + 1 == len(curve.threshold):
        return point
    return point._replace(threshold=float(curve.threshold[i + 1]) - GRAIN)


def equal_error(curve: Curve) -> Point:
    """Where the false accept and the false reject rate come closest; the equal error rate is their
    mean, `(false_accept + 1 - true_accept) / 2`."""
    i = int((curve.false_accept - curve.false_reject).abs().argmin())
    return Point(*(float(values[i]) for values in curve))


def identification(pairs: Pairs, ranking: Ranking, rate: float) -> Point:
    """Open-set search: rank-1 at a false accept rate (the detection and identification rate;
    Phillips, Grother and Micheals, "Evaluation Methods in Face Recognition", 2011).

    Each query with a hit is searched twice: as it is, and with the images of its own person taken
    out of the gallery. A query without a hit is searched as somebody absent only. An absent person
    whose nearest image is at most as far as the threshold is a false accept; a person who is there
    is identified where the nearest image is a hit and as near as that.

    Raises:
        ValueError: where no query has a hit, or none has an image of another person.
    """
    found = ranking.begin.diff() > 0
    if not found.any() or not pairs.nearest_other.isfinite().any():
        raise ValueError("verification: no query has a hit, or none has anybody else to find")
    first = ranking.begin[:-1][found]
    correct = ranking.distances[first][ranking.ranks[first] == 1]
    absent = pairs.nearest_other[pairs.nearest_other.isfinite()].sort().values
    allowed = int(rate * len(absent))
    limit = absent[allowed] if allowed < len(absent) else absent.new_tensor(torch.inf)
    false_accept = float((absent < limit).double().mean())
    threshold = float(torch.nextafter(limit, -torch.ones_like(limit)).clamp(max=2))
    return Point(threshold, false_accept, float((correct < limit).sum() / len(first)))


def choose_threshold(
    pairs: Pairs,
    rate: float,
    *,
    data: str,
    feature: str,
    flip: bool = False,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Threshold:
    """The largest threshold whose false accept rate is at most `rate` on one half of the
    identities, with its rates on the other half.

    The interval is a percentile bootstrap: the queries' identities of the first half are drawn with
    replacement, each with all its pairs.

    Raises:
        ValueError: as `roc`, and for a rate outside (0, 1).
    """
    if not 0 < rate < 1:
        raise ValueError(f"verification: a rate must be above 0 and below 1, got {rate}")
    value = at_false_accept(roc(pairs, CHOSEN), rate).threshold
    other = roc(pairs, CHECKED)
    i = int(torch.searchsorted(other.threshold, value, right=True)) - 1
    false, true = (float(values[max(i, 0)]) for values in (other.false_accept, other.true_accept))
    counts = pairs.by_identity.cpu().double()
    counts = counts[counts.sum(dim=1) > 0]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(counts), (samples, len(counts)), generator=generator)
    weights = torch.zeros(samples, len(counts), dtype=torch.float64)
    weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    values = _quantiles(weights @ counts, rate)
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = values.quantile(tails).tolist()
    interval = Interval(min(low, value), max(high, value))
    return Threshold(value, false, true, interval, data, feature, flip)


def _quantiles(counts: Tensor, rate: float) -> Tensor:
    """(S, bins) counts on the coarse grid -> (S,) the distances below which that share is; within a
    bin along a straight line."""
    sums = counts.cumsum(dim=1)
    wanted = rate * sums[:, -1:]
    place = torch.searchsorted(sums, wanted).clamp(max=counts.shape[1] - 1)
    inside = counts.gather(1, place)
    before = sums.gather(1, place) - inside
    share = (wanted - before) / inside
    return ((place - 1 + share) * (GRAIN * 2**COARSE)).clamp(min=0).flatten()


def _halves(labels: Labels, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(Nq,) and (Ng,) the half of each image's identity; (Nq,) the number of the query's identity
    among those of the first half.

    The identities of queries are divided evenly, and so are all others, distractors among them."""
    both = torch.cat([labels.query_ids, labels.gallery_ids])
    identities, group = both.unique(return_inverse=True)
    queries = len(labels.query_ids)
    luck = torch.randperm(len(identities), generator=torch.Generator().manual_seed(seed))
    luck = luck.to(both.device)
    queried = torch.isin(identities, labels.query_ids)
    half = torch.empty_like(identities)
    for members in (queried, ~queried):
        half[members] = luck[members].argsort().argsort() % 2
    number = ((queried & (half == CHOSEN)).cumsum(0) - 1).clamp(min=0).int()
    return half[group[:queries]], half[group[queries:]], number[group[:queries]]


def _part(query_half: Tensor, gallery_half: Tensor) -> Tensor:
    return torch.where(query_half == gallery_half, query_half, ACROSS).int()


def _left_out(labels: Labels, rule: Rule, rows: slice, columns: slice) -> Tensor:
    """(b, n) bool: pairs that are not of two different people, or are not ranked."""
    query, gallery = labels.query_ids[rows, None], labels.gallery_ids[columns]
    left_out = (query == gallery) | (gallery == JUNK) | (query == JUNK)
    if rule.separate_camera_set:
        left_out |= labels.query_cams[rows, None] == labels.gallery_cams[columns]
    return left_out


def _tiles(distances: FeatureDistances, block: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and distances, the very ones that `rank_hits` compares."""
    queries, images = distances.shape
    step = -(-block // GRID) * GRID
    compiled = fused(distances.device)
    for first in range(0, images, COLUMNS):
        columns = slice(first, min(first + COLUMNS, images))
        gallery = distances.gallery_rows(columns)
        for start in range(0, queries, step):
            rows = slice(start, min(start + step, queries))
            query = distances.query_rows(rows)
            if compiled:
                products = torch.ops.rga_fast_ranking.product(query, gallery)
            else:
                with full_precision(distances.device):
                    products = torch.cat([part @ gallery.T for part in query.split(GRID)])
            yield rows, columns, distances.of_products(products, columns)


def _bins(distances: Tensor) -> Tensor:
    """int32; those of infinity are BINS + 1. Rounding may lead beyond 0 and 2."""
    bins = distances.clamp(0, 2).mul_(1 / GRAIN).ceil_().int()
    return bins.add_(distances.isinf())


def _add(counts: Tensor, bins: Tensor) -> None:
    ones = counts.new_ones(()).expand(bins.numel())
    counts.index_add_(0, bins.flatten(), ones)
