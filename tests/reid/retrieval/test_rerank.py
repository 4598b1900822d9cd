"""Re-ranking against the published algorithm on whole matrices."""

import numpy as np
import pytest
import torch

from rga_fast.reid.retrieval.distances import FeatureDistances
from rga_fast.reid.retrieval.metrics import query_scores, summary
from rga_fast.reid.retrieval.ranking import make_labels, rank_hits
from rga_fast.reid.retrieval.rerank import RerankedDistances
from rga_fast.reid.retrieval.topk import nearest


def dense_rerank(squared: np.ndarray, queries: int, k1: int, k2: int, weight: float) -> np.ndarray:
    """(queries, gallery) of squared distances (N, N) between all images, queries first."""
    distance = squared / squared.max(axis=1, keepdims=True)
    order = distance.argsort(axis=1, kind="stable")
    position = order.argsort(axis=1)

    def mutual(k: int) -> np.ndarray:
        """Whether each image is among the k + 1 nearest of the other, itself included."""
        near = position <= k
        return near & near.T

    own, others = mutual(k1), mutual(round(k1 / 2))
    common = own.astype(int) @ others.T
    taken = own & (common > 2 / 3 * others.sum(axis=1))
    expanded = own | (taken.astype(int) @ others > 0)
    V = np.where(expanded, np.exp(-distance), 0)
    V /= V.sum(axis=1, keepdims=True)
    if k2 > 1:
        V = V[order[:, :k2]].mean(axis=1)
    shared = np.minimum(V[:queries, None], V[None, queries:]).sum(axis=2)
    jaccard = 1 - shared / (2 - shared)
    return (1 - weight) * jaccard + weight * distance[:queries, queries:]


def case(queries=17, images=140, identities=9, width=24, seed=0):
    torch.manual_seed(seed)
    ids = torch.arange(queries + images) % identities
    features = torch.randn(identities, width)[ids] + torch.randn(queries + images, width)
    return features[:queries], features[queries:], ids[:queries], ids[queries:]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(
    ("k1", "k2", "weight"), [(20, 6, 0.3), (50, 15, 0.3), (300, 9, 0.3), (5, 1, 0.0), (1, 2, 1)]
)
def test_equals_the_dense_algorithm(metric, k1, k2, weight):
    for seed in range(3):
        query, gallery, *_ = case(seed=seed)
        joined = torch.cat([query, gallery]).double()
        if metric == "cosine":
            unit = torch.nn.functional.normalize(joined)
            squared = (1 - unit @ unit.T).clamp(min=0) ** 2
        else:
            squared = torch.cdist(joined, joined) ** 2
        expected = dense_rerank(squared.numpy(), len(query), k1, k2, weight)
        distances = RerankedDistances(FeatureDistances(query, gallery, metric), k1, k2, weight)
        got = distances.rows(0, len(query))
        assert distances.shape == got.shape == expected.shape
        np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-5)


def test_every_division_gives_the_same(monkeypatch):
    from rga_fast.reid.retrieval import rerank, topk

    query, gallery, *_ = case(queries=300)
    expected = RerankedDistances(FeatureDistances(query, gallery)).rows(0, 300)
    for name, value in (("_ELEMENTS", 700), ("_PAIRS", 50), ("_GATHERED", 100)):
        monkeypatch.setattr(rerank, name, value)
    monkeypatch.setattr(topk, "_ELEMENTS", 1)
    distances = RerankedDistances(FeatureDistances(query, gallery))
    got = torch.cat([distances.rows(0, 128), distances.rows(128, 256), distances.rows(256, 300)])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_it_ranks_better_here():
    """Composed with ranking and scores: overlapping clusters come apart."""
    query, gallery, query_ids, gallery_ids = case(queries=60, images=400)
    features = FeatureDistances(query, gallery)
    cameras = torch.zeros(60, dtype=torch.long), torch.ones(400, dtype=torch.long)
    labels = make_labels(query_ids, gallery_ids, *cameras, features)
    before, after = (
        summary(query_scores(rank_hits(distances, labels))).mAP
        for distances in (features, RerankedDistances(features))
    )
    assert after > before + 0.02


@pytest.mark.parametrize("k", [1, 5, 40, 1000])
def test_nearest_are_those_of_a_stable_sort(k):
    torch.manual_seed(0)
    query, gallery = torch.randint(-2, 3, (2, 300, 3)).float().unbind()
    distances = FeatureDistances(query, gallery, "euclidean")
    values, images = distances.rows(0, 300).sort(dim=1, stable=True)
    found = nearest(distances, k)
    assert torch.equal(found.images, images[:, :k])
    assert torch.equal(found.distances, values[:, :k])
    assert torch.equal(found.farthest, values[:, -1])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"k1": 0}, "k1 must be"), ({"k2": 30}, "k2 from 1"), ({"weight": 2}, "from 0 to 1, got 2")],
)
def test_bad_options_are_named(options, message):
    query, gallery, *_ = case()
    with pytest.raises(ValueError, match=message):
        RerankedDistances(FeatureDistances(query, gallery), **options)
    with pytest.raises(ValueError, match="at least 1"):
        nearest(FeatureDistances(query, gallery), 0)
