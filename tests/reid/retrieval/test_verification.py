"""Verification and open-set search against scikit-learn and a slow, obvious loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from rga_fast.reid.retrieval import verification
from rga_fast.reid.retrieval.distances import FeatureDistances
from rga_fast.reid.retrieval.ranking import Rule, make_labels, rank_hits
from rga_fast.reid.retrieval.verification import (
    ACROSS,
    CHECKED,
    CHOSEN,
    GRAIN,
    at_false_accept,
    choose_threshold,
    count_pairs,
    equal_error,
    identification,
    roc,
)

RULES = [Rule(), Rule(keep_same_camera=True), Rule(separate_camera_set=True)]


@pytest.fixture
def way(way, monkeypatch):
    if way == "plain":
        monkeypatch.setattr(verification, "fused", lambda device: False)
    return way


def make_case(seed=0, queries=150, images=600, identities=20, width=16, noise=1.5):
    """Identities -1 (junk), 0 (distractors), 1, ...; the last has no image in the gallery."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high, n):
        return torch.randint(low, high, (n,), generator=generator)

    ids = draw(1, identities + 1, queries), draw(-1, identities, images)
    centres = torch.randn(identities + 2, width, generator=generator)
    features = [
        centres[i + 1] + noise * torch.randn(len(i), width, generator=generator) for i in ids
    ]
    distances = FeatureDistances(*features)
    return distances, make_labels(*ids, draw(0, 4, queries), draw(0, 4, images), distances)


def loop(distances, labels, rule):
    """(score, same person) of every pair; of every query the nearest of both, by distance."""
    query_ids, gallery_ids, query_cams, gallery_cams = (values.tolist() for values in labels)
    # The distances of the ranking: these are compared elsewhere with those of float64.
    whole = torch.cat([t for _, _, t in verification._tiles(distances, 10**6)], dim=1).tolist()
    pairs, nearest = [], []
    for q, row in enumerate(whole):
        own, others = [], []
        for g, distance in enumerate(row):
            same_id, same_cam = gallery_ids[g] == query_ids[q], gallery_cams[g] == query_cams[q]
            if -1 in (gallery_ids[g], query_ids[q]) or (same_cam and rule.separate_camera_set):
                continue
            if same_id and same_cam and not rule.keep_same_camera:
                continue
            (own if same_id else others).append((distance, g))
            pairs.append((distance, same_id))
        nearest.append((min(own, default=None), min(others, default=None)))
    return np.array(pairs, dtype=float).reshape(-1, 2), nearest


@pytest.mark.parametrize("rule", RULES)
def test_the_curve_is_that_of_scikit_learn(way, rule):
    distances, labels = make_case()
    pairs = count_pairs(distances, labels, rank_hits(distances, labels, rule), rule)
    curve = roc(pairs)
    score, same = loop(distances, labels, rule)[0].T
    on_grid = np.ceil(np.clip(score, 0, 2) / GRAIN) * GRAIN
    false, true, threshold = roc_curve(same, -on_grid, drop_intermediate=False)
    np.testing.assert_array_equal(curve.threshold[1:], -threshold[1:])
    np.testing.assert_allclose(curve.false_accept, false, rtol=1e-12)
    np.testing.assert_allclose(curve.true_accept, true, rtol=1e-12)
    # And to a few pairs in a million without the grid.
    false, true, _ = roc_curve(same, -score)
    for rate in (0, 1e-3, 0.01, 0.1, 1):
        expected = true[false <= rate].max()
        point = at_false_accept(curve, rate)
        assert point.true_accept == pytest.approx(expected, abs=1e-3)
        assert point.false_accept == ((score <= point.threshold) & (same == 0)).sum() / sum(
            same == 0
        )
    error = equal_error(curve)
    i = np.abs(false - (1 - true)).argmin()
    assert error.false_accept == pytest.approx(false[i], abs=1e-3)
    assert 1 - error.true_accept == pytest.approx(error.false_accept, abs=0.01)


def test_halves_are_of_identities(way):
    """Each half is what a data set of these identities alone would give."""
    distances, labels = make_case()
    pairs = count_pairs(distances, labels, rank_hits(distances, labels))
    halves = verification._halves(labels, 0)
    for part in (CHOSEN, CHECKED):
        query, gallery = halves[0] == part, halves[1] == part
        assert (
            set(labels.query_ids[query].tolist()) & set(labels.query_ids[~query].tolist()) == set()
        )
        score, same = loop(
            FeatureDistances(distances.query[query], distances.gallery[gallery]),
            labels._replace(
                query_ids=labels.query_ids[query],
                query_cams=labels.query_cams[query],
                gallery_ids=labels.gallery_ids[gallery],
                gallery_cams=labels.gallery_cams[gallery],
            ),
            Rule(),
        )[0].T
        curve = roc(pairs, part)
        for t in (0.2, 0.5, 1.0):
            i = max(int(torch.searchsorted(curve.threshold, t, right=True)) - 1, 0)
            assert curve.false_accept[i] == pytest.approx((score[same == 0] <= t).mean(), abs=2e-3)
            assert curve.true_accept[i] == pytest.approx((score[same == 1] <= t).mean(), abs=5e-3)
    assert not pairs.same[ACROSS].any()
    chosen = pairs.different[CHOSEN]
    coarse = torch.cat([chosen[:1], chosen[1:].view(-1, 1 << verification.COARSE).sum(dim=1)])
    assert torch.equal(pairs.by_identity.sum(dim=0), coarse)


@pytest.mark.parametrize("rule", RULES)
def test_open_set_is_that_of_a_loop(way, rule):
    distances, labels = make_case(noise=0.8)
    ranking = rank_hits(distances, labels, rule)
    pairs = count_pairs(distances, labels, ranking, rule)
    _, nearest = loop(distances, labels, rule)
    absent = np.array([other[0] for _, other in nearest])
    np.testing.assert_array_equal(pairs.nearest_other, absent.astype(np.float32))
    present = [(own, other) for own, other in nearest if own is not None]
    for rate in (0, 0.01, 0.1, 0.5, 1):
        point = identification(pairs, ranking, rate)
        assert point.false_accept == (absent <= point.threshold).mean() <= rate
        found = [own < other and own[0] <= point.threshold for own, other in present]
        assert point.true_accept == pytest.approx(np.mean(found))
        if rate < 1:  # one more false accept would be too many
            assert (absent <= sorted(absent)[int(rate * len(absent))]).mean() > rate


def test_every_block_size_gives_the_same(way, monkeypatch):
    distances, labels = make_case(queries=300, images=900)
    ranking = rank_hits(distances, labels)
    expected = count_pairs(distances, labels, ranking)
    for block in (1, 130, 10**6):
        assert all(map(torch.equal, count_pairs(distances, labels, ranking, block=block), expected))
    if way == "fused":
        monkeypatch.setattr(verification, "COLUMNS", 123)
        assert all(map(torch.equal, count_pairs(distances, labels, ranking), expected))


def test_a_threshold_holds_on_other_people():
    distances, labels = make_case(queries=600, images=2000, identities=80, noise=0.6)
    pairs = count_pairs(distances, labels, rank_hits(distances, labels))
    found = choose_threshold(pairs, 0.01, data="people", feature="after_neck")
    curve = roc(pairs, CHOSEN)
    i = int(torch.searchsorted(curve.threshold, found.value, right=True)) - 1
    assert float(curve.false_accept[i]) <= 0.01 < float(curve.false_accept[i + 1])
    assert found.false_accept_rate == pytest.approx(0.01, rel=0.5)
    assert 0.5 < found.true_accept_rate < 1
    low, high = found.interval
    assert low < found.value < high < found.value + 0.2
    few = choose_threshold(pairs, 0.01, data="people", feature="after_neck", level=0.5).interval
    assert low < few.low < few.high < high
    assert found == choose_threshold(pairs, 0.01, data="people", feature="after_neck")


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 30), st.sampled_from(RULES))
def test_small_cases_are_counted_or_refused(seed, queries, images, rule):
    """Ties, junk, one camera, empty galleries: right numbers, or an error that names what lacks."""
    distances, labels = make_case(seed, queries, images, identities=3, width=1)  # cosines 1 and -1
    ranking = rank_hits(distances, labels, rule)
    pairs = count_pairs(distances, labels, ranking, rule)
    score, same = loop(distances, labels, rule)[0].T
    for value, counts in ((0, pairs.different), (1, pairs.same)):
        assert counts.sum() == (same == value).sum()
        assert counts[:, 0].sum() == ((same == value) & (score <= 0)).sum()
    if len(set(same)) == 2:
        assert roc(pairs).false_accept[-1] == 1
        identification(pairs, ranking, 0.1)
    else:
        with pytest.raises(ValueError, match="no pairs of"):
            roc(pairs)


def test_bad_input_is_named():
    distances, labels = make_case()
    ranking = rank_hits(distances, labels)
    euclidean = FeatureDistances(distances.query, distances.gallery, "euclidean")
    with pytest.raises(ValueError, match="cosine distance, got 'euclidean'"):
        count_pairs(euclidean, labels, ranking)
    pairs = count_pairs(distances, labels, ranking)
    with pytest.raises(ValueError, match="above 0 and below 1, got 0"):
        choose_threshold(pairs, 0, data="people", feature="after_neck")
    alone = pairs._replace(different=pairs.different * 0)
    with pytest.raises(ValueError, match="no pairs of different people in one half"):
        choose_threshold(alone, 0.1, data="people", feature="after_neck")
    with pytest.raises(ValueError, match="no query has a hit"):
        identification(pairs._replace(nearest_other=pairs.nearest_other + torch.inf), ranking, 0.1)
