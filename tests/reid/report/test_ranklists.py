"""Which queries a report shows, and which images of their lists."""

import numpy as np
import pytest
import torch

from rga_fast.reid.report.histograms import distance_histograms
from rga_fast.reid.report.ranklists import _entries, differences, extremes
from rga_fast.reid.retrieval.breakdown import bootstrap, bootstrap_difference
from rga_fast.reid.retrieval.distances import FeatureDistances
from rga_fast.reid.retrieval.metrics import QueryScores
from rga_fast.reid.retrieval.order import HIT, IGNORED, MISS, SAME_CAMERA, Order
from rga_fast.reid.retrieval.ranking import make_labels, rank_hits
from rga_fast.reid.retrieval.verification import count_pairs


def scores(ap, hits=None):
    ap = torch.tensor(ap, dtype=torch.float64)
    hits = torch.ones_like(ap) if hits is None else torch.tensor(hits, dtype=torch.float64)
    return QueryScores(hits, torch.where(ap > 0.5, 1.0, 3.0).double(), ap, ap)


def test_extremes():
    aps = [0.5, 0.1, 0.9, 0.0, 0.3, 0.7, 0.2, 0.8]
    groups = extremes(scores(aps, hits=[1, 1, 1, 0, 1, 1, 1, 1]))  # query 3 is skipped
    assert [group.queries for group in groups] == [[1, 6], [4, 0], [2, 7]]
    assert [len(group.queries) for group in extremes(scores([0.1] * 60))] == [6, 6, 6]
    assert [group.queries for group in extremes(scores([0.4]))] == [[0]]


def test_differences():
    groups = differences(scores([0.5, 0.2, 0.9, 0.4]), scores([0.4, 0.8, 0.9, 0.5]))
    assert [group.queries for group in groups] == [[1, 3], [0]]
    assert differences(scores([0.5]), scores([0.5])) == []


def test_entries():
    kinds = [SAME_CAMERA] * 7 + [MISS, MISS, IGNORED, MISS, MISS, HIT, SAME_CAMERA, HIT]
    kinds = np.array(kinds, dtype=object)
    ranked = np.isin(kinds, (HIT, MISS))
    images = np.arange(len(kinds))[::-1]
    order = Order(images, images / 100, np.where(ranked, ranked.cumsum(), 0), kinds)
    entries = _entries(order, length=3)
    assert [entry.rank for entry in entries] == [0] * 5 + [1, 2, 3, 5]
    assert [entry.kind for entry in entries] == [SAME_CAMERA] * 5 + [MISS] * 3 + [HIT]
    assert [entry.gap for entry in entries] == [False] * 5 + [True, False, True, True]
    assert [entry.image for entry in entries] == [14, 13, 12, 11, 10, 7, 6, 4, 2]


def test_the_difference_of_two_runs_has_its_own_interval():
    """One run is better by 0.1 for everybody: sure, although people differ much more."""
    torch.manual_seed(0)
    ours = torch.rand(90).double().mul(0.4).tolist()
    ids = torch.arange(30).repeat(3)
    low, high = bootstrap_difference(scores(ours), scores([ap + 0.1 for ap in ours]), ids)["mAP"]
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1)
    alone = bootstrap(scores(ours), ids)["mAP"]
    assert alone.high - alone.low > 0.03
    with pytest.raises(ValueError, match="the same queries"):
        bootstrap_difference(scores([0.5, 0.5]), scores([0.5, 0.5], hits=[1, 0]), ids[:2])


def test_histograms_count_every_pair():
    torch.manual_seed(0)
    query, gallery = torch.randn(40, 8), torch.randn(150, 8)
    query[0] = gallery[0]
    values = [torch.randint(-1, 6, (n,)) for n in (40, 150)]
    values += [torch.randint(0, 3, (n,)) for n in (40, 150)]
    distances = FeatureDistances(query, gallery)
    labels = make_labels(*values, distances)
    found = distance_histograms(count_pairs(distances, labels, rank_hits(distances, labels)))
    own = values[0][:, None] == values[1]
    known = (values[0][:, None] >= 0) & (values[1] >= 0)
    rows = distances.rows(0, 40)
    for counts, mask in (
        (found.same, own & known & (values[2][:, None] != values[3])),
        (found.different, ~own & known),
    ):
        expected = torch.histogram(rows[mask].clamp(0, 2), found.edges).hist.long()
        assert counts.sum() == mask.sum()
        assert (counts - expected).abs().sum() <= 2  # of those on an edge
