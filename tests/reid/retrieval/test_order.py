"""The whole gallery in the order of the metrics."""

import numpy as np
import pytest
import torch

from rga_fast.reid.retrieval import ranking as ranking_module
from rga_fast.reid.retrieval.distances import FeatureDistances
from rga_fast.reid.retrieval.order import HIT, IGNORED, MISS, SAME_CAMERA, gallery_order
from rga_fast.reid.retrieval.ranking import Rule, make_labels, rank_hits
from rga_fast.reid.retrieval.rerank import RerankedDistances

RULES = [Rule(), Rule(keep_same_camera=True), Rule(separate_camera_set=True)]


def case(queries=150, images=90, identities=9, cameras=3):
    """Junk, one-camera identities, and pairs of equal gallery features."""
    torch.manual_seed(0)
    values = [torch.randint(-1, identities, (n,)) for n in (queries, images)]
    values += [torch.randint(0, cameras, (n,)) for n in (queries, images)]
    query, gallery = torch.randn(queries, 8), torch.randn(images, 8)
    gallery[::5] = gallery[1::5]
    distances = FeatureDistances(query, gallery)
    return distances, make_labels(*values, distances)


@pytest.mark.parametrize("rule", RULES, ids=["market", "same camera kept", "separate sets"])
@pytest.mark.parametrize("fused", [True, False], ids=["operator", "torch"])
@pytest.mark.parametrize("reranked", [False, True], ids=["features", "reranked"])
def test_ranks_are_those_of_the_metrics(rule, fused, reranked, monkeypatch):
    if not fused:
        monkeypatch.setattr(ranking_module, "fused", lambda device: False)
    distances, labels = case()
    if reranked:
        distances = RerankedDistances(distances, 10, 4, 0.3)
    ranking = rank_hits(distances, labels, rule)
    chosen = [149, *range(0, 140, 7)]
    for query, order in zip(chosen, gallery_order(distances, labels, chosen, rule), strict=True):
        here = slice(int(ranking.begin[query]), int(ranking.begin[query + 1]))
        hits = order.kinds == HIT
        if labels.query_ids[query] == -1:  # junk among the queries finds nothing
            assert not hits.any()
        assert order.ranks[hits].tolist() == ranking.ranks[here].tolist()
        assert order.images[hits].tolist() == ranking.images[here].tolist()
        assert order.distances[hits].tolist() == ranking.distances[here].tolist()
        assert sorted(order.images.tolist()) == list(range(90))


def test_kinds():
    distances, labels = case()
    query = labels.query_ids.tolist().index(4)
    (order,) = gallery_order(distances, labels, [query])
    ids, cameras = labels.gallery_ids.numpy()[order.images], labels.gallery_cams[order.images]
    own, there = ids == 4, cameras.numpy() == int(labels.query_cams[query])
    assert (own & there).any()
    assert (ids == -1).any()
    assert np.array_equal(order.kinds == IGNORED, ids == -1)
    assert np.array_equal(order.kinds == SAME_CAMERA, own & there)
    assert np.array_equal(order.kinds == HIT, own & ~there)
    assert np.array_equal(order.kinds == MISS, ~own & (ids != -1))
    assert (order.ranks[np.isin(order.kinds, (SAME_CAMERA, IGNORED))] == 0).all()
    assert (np.diff(order.distances) >= 0).all()
