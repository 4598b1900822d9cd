"""Scores of a ranking beyond the usual five: CMC, other averages, parts of the data, intervals."""

import math
import random
from collections import defaultdict

import pytest
import torch

from rga_fast.reid.retrieval.breakdown import bootstrap, by_camera_pair, by_identity
from rga_fast.reid.retrieval.distances import FeatureDistances
from rga_fast.reid.retrieval.metrics import (
    QueryScores,
    cmc,
    query_scores,
    rank_metrics,
    single_shot_cmc,
    summary,
)
from rga_fast.reid.retrieval.ranking import Ranking, Rule, make_labels, rank_hits


def case(queries=40, images=200, identities=12, cameras=4, seed=0):
    torch.manual_seed(seed)
    values = [torch.randint(-1, identities, (n,)) for n in (queries, images)]
    values += [torch.randint(0, cameras, (n,)) for n in (queries, images)]
    centres = torch.randn(identities + 1, 16)
    query, gallery = (centres[ids] + 1.5 * torch.randn(len(ids), 16) for ids in values[:2])
    distances = FeatureDistances(query, gallery)
    return distances, make_labels(*values, distances)


def ranking_of(*ranks):
    """A ranking whose queries have hits at these ranks."""
    counts = torch.tensor([0, *map(len, ranks)])
    flat = torch.tensor([rank for of_query in ranks for rank in of_query])
    return Ranking(counts.cumsum(0), torch.zeros_like(flat), flat, flat.float())


def test_averages_by_name():
    ranking = ranking_of([2, 4], [1, 2], [])
    step = query_scores(ranking).ap.tolist()
    assert step == pytest.approx([(1 / 2 + 2 / 4) / 2, 1, 0])
    trapezoid = query_scores(ranking, "trapezoid").ap.tolist()
    first = ((0 / 1 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2) / 2
    assert trapezoid == pytest.approx([first, (1 + (1 + 1) / 2) / 2, 0])
    with pytest.raises(ValueError, match=r"one of .*'spline'"):
        query_scores(ranking, "spline")


def test_cmc():
    scores = query_scores(ranking_of([3, 9], [1], [], [7], [3]))
    assert cmc(scores, 4).tolist() == [0.25, 0.25, 0.75, 0.75]
    assert cmc(scores, 8).tolist()[6:] == [1, 1]
    distances, labels = case()
    scores = query_scores(rank_hits(distances, labels))
    curve, means = cmc(scores, 300), summary(scores)
    assert [curve[k - 1].item() for k in (1, 5, 10)] == pytest.approx(means[:3])
    assert curve[-1] == 1


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("rule", [Rule(), Rule(separate_camera_set=True)])
def test_single_shot_is_the_mean_over_random_galleries(rule):
    """Against a loop with its own draws: both are means of 100 draws, 5 standard errors apart."""
    distances, labels = case(queries=15, images=60, identities=6)
    matrix = (
        1
        - torch.nn.functional.normalize(distances.query)
        @ torch.nn.functional.normalize(distances.gallery).T
    )
    query_ids, gallery_ids, query_cams, gallery_cams = (field.tolist() for field in labels)
    draws, rng = [], random.Random(0)
    for _ in range(100):
        first = []
        for q, row in enumerate(matrix.tolist()):
            images = defaultdict(list)
            for g, identity in enumerate(gallery_ids):
                same_cam = gallery_cams[g] == query_cams[q]
                own = identity == query_ids[q]
                if identity != -1 and not (same_cam and (own or rule.separate_camera_set)):
                    images[identity].append(g)
            if query_ids[q] in images:
                drawn = {i: row[rng.choice(found)] for i, found in images.items()}
                first.append(sum(d <= drawn[query_ids[q]] for d in drawn.values()))
        draws.append([sum(rank <= k for rank in first) / len(first) for k in (1, 2, 3)])
    expected = torch.tensor(draws, dtype=torch.float64)
    got = single_shot_cmc(distances, labels, 3, rule, repeats=100, seed=1)
    error = expected.std(dim=0) / math.sqrt(100) * math.sqrt(2)
    assert ((got - expected.mean(dim=0)).abs() <= 5 * error).all()
    assert torch.equal(got, single_shot_cmc(distances, labels, 3, rule, repeats=100, seed=1))


def test_by_identity():
    scores = query_scores(ranking_of([1], [2], [], [4], [1, 2]))
    found = by_identity(scores, torch.tensor([7, 7, 7, 3, 3]))
    assert found.identity.tolist() == [3, 7]
    assert found.queries.tolist() == [2, 2]
    assert found.rank1.tolist() == [0.5, 0.5]
    assert found.mAP.tolist() == pytest.approx([(1 / 4 + 1) / 2, (1 + 1 / 2) / 2])


def test_by_camera_pair_is_the_metrics_of_that_pair():
    distances, labels = case()
    found = by_camera_pair(distances, labels)
    assert found.queries.shape == (4, 4)
    assert found.queries.diagonal().sum() == 0
    assert found.mAP.diagonal().isnan().all()
    for row in range(4):
        for column in range(4):
            if row == column:
                continue
            queries, images = labels.query_cams == row, labels.gallery_cams == column
            alone = rank_metrics(
                *(distances.query[queries], distances.gallery[images]),
                *(labels.query_ids[queries], labels.gallery_ids[images]),
                *(labels.query_cams[queries], labels.gallery_cams[images]),
            )
            assert found.queries[row, column] == alone.valid_queries
            assert found.rank1[row, column].item() == pytest.approx(alone.rank1)
            assert found.mAP[row, column].item() == pytest.approx(alone.mAP)


def test_bootstrap_draws_identities():
    """Two queries a person: where both always agree, intervals are wider by sqrt(2) than where
    queries are independent."""
    torch.manual_seed(0)
    ids = torch.arange(400).repeat_interleave(2)
    hits = (torch.rand(400) < 0.5).double()
    alike = hits.repeat_interleave(2)
    single = (torch.rand(800) < 0.5).double()
    widths = []
    for ap in (alike, single):
        ones = torch.ones(800, dtype=torch.float64)
        interval = bootstrap(QueryScores(ones, ones, ap, ones), ids)["mAP"]
        assert interval.low < ap.mean() < interval.high
        widths.append(interval.high - interval.low)
    assert widths[0] == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1)
    assert widths[1] == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(800), rel=0.1)


def test_bootstrap_of_nothing():
    none = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="none of the 3"):
        bootstrap(QueryScores(none, none, none, none), torch.arange(3))
    with pytest.raises(ValueError, match="level"):
        bootstrap(QueryScores(none, none, none, none), torch.arange(3), level=95)
