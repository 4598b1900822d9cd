"""Rank lists of chosen queries: the worst, the median and the best, or those that differ most
between two runs."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from rga_fast.reid.report.curves import FEATURE
from rga_fast.reid.report.evaluated import Evaluated
from rga_fast.reid.retrieval.metrics import QueryScores
from rga_fast.reid.retrieval.order import HIT, MISS, Order, gallery_order

IN_GROUP = 6  # queries
LENGTH = 10  # ranked images of a list
GREY = 5  # images of a list that are not ranked


class Entry(NamedTuple):
    """A gallery image of a list. `rank` is 0 if it is not ranked; `kind` as in `Order`. `gap` is
    whether images before it are left out of the list."""

    image: int
    rank: int
    kind: str
    distance: float
    gap: bool


class RankList(NamedTuple):
    """What a query finds. `first` is the rank of its first hit; `ranks` are those of all hits."""

    query: int
    ap: float
    first: int
    ranks: list[int]
    entries: list[Entry]


class Group(NamedTuple):
    title: str
    queries: list[int]


def extremes(scores: QueryScores, size: int = IN_GROUP) -> list[Group]:
    """The queries of the lowest, the median and the highest average precision, up to `size` each,
    none of them twice. Equal ones in the order of the data set."""
    valid = scores.valid.nonzero().flatten()
    order = valid[scores.ap[valid].argsort(stable=True)].tolist()
    size = max(1, min(size, len(order) // 3))
    begin = (len(order) - size) // 2
    parts = {
        "The worst queries": order[:size],
        "The median queries": order[begin : begin + size],
        "The best queries": order[::-1][:size],
    }
    seen: set[int] = set()
    groups = []
    for title, queries in parts.items():
        groups.append(Group(title, [query for query in queries if query not in seen]))
        seen.update(queries)
    return [group for group in groups if group.queries]


def differences(ours: QueryScores, theirs: QueryScores, size: int = IN_GROUP) -> list[Group]:
    """The queries whose average precision is most higher, and most lower, in the second run."""
    change = (theirs.ap - ours.ap).masked_fill(~ours.valid, 0.0)
    order = change.argsort(stable=True).tolist()
    gains = [query for query in order[::-1] if change[query] > 0][:size]
    losses = [query for query in order if change[query] < 0][:size]
    groups = [
        Group("Most gained by the second run", gains),
        Group("Most lost by the second run", losses),
    ]
    return [group for group in groups if group.queries]


def rank_lists(run: Evaluated, queries: list[int], length: int = LENGTH) -> dict[int, RankList]:
    """The list of each query: its first `length` ranked images, up to `GREY` images before them
    that are not ranked, and its first hit wherever that is.

    Raises:
        RuntimeError: if a list contradicted the ranks that the metrics are made of.
    """
    found = {}
    scores = run.scores[FEATURE]
    orders = gallery_order(run.ranked.distances, run.ranked.labels, queries)
    for query, order in zip(queries, orders, strict=True):
        ranks = _own_ranks(run.ranked.ranking.begin, run.ranked.ranking.ranks, query)
        if order.ranks[order.kinds == HIT].tolist() != ranks:
            raise RuntimeError(f"report: the list of query {query} contradicts its ranks {ranks}")
        found[query] = RankList(
            query, float(scores.ap[query]), ranks[0], ranks, _entries(order, length)
        )
    return found


def _own_ranks(begin: Tensor, ranks: Tensor, query: int) -> list[int]:
    return ranks[int(begin[query]) : int(begin[query + 1])].tolist()


def _entries(order: Order, length: int) -> list[Entry]:
    ranked = (order.kinds == HIT) | (order.kinds == MISS)
    grey = ~ranked & ((~ranked).cumsum() <= GREY)
    shown = (ranked.cumsum() <= length) & (ranked | grey)
    shown[(order.kinds == HIT).argmax()] = True  # the first hit
    entries, last = [], -1
    for place in shown.nonzero()[0]:
        entries.append(
            Entry(
                int(order.images[place]),
                int(order.ranks[place]),
                str(order.kinds[place]),
                float(order.distances[place]),
                gap=place != last + 1,
            )
        )
        last = place
    return entries
