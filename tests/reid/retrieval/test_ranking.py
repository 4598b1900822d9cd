"""Ranks of the hits against a slow, obvious loop: every rule, both ways, every division."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rga_fast.reid.retrieval import ranking as ranking_module
from rga_fast.reid.retrieval.distances import FeatureDistances
from rga_fast.reid.retrieval.operators import fused
from rga_fast.reid.retrieval.ranking import Hits, Rule, find_hits, make_labels, rank_hits

RULES = [Rule(), Rule(keep_same_camera=True), Rule(separate_camera_set=True)]


def loop_ranking(distances, labels, rule):
    """[(image, rank) of the hits] of every query, in Python."""
    query_ids, gallery_ids, query_cams, gallery_cams = (values.tolist() for values in labels)
    result = []
    for q, row in enumerate(distances.tolist()):
        ranked = []
        for g, distance in enumerate(row):
            same_id = gallery_ids[g] == query_ids[q]
            same_cam = gallery_cams[g] == query_cams[q]
            out = gallery_ids[g] == -1
            out |= same_id and same_cam and not rule.keep_same_camera
            out |= same_cam and rule.separate_camera_set
            if not out:
                ranked.append((distance, g, same_id))
        ranked.sort(key=lambda entry: entry[:2])
        result.append([(g, r) for r, (_, g, hit) in enumerate(ranked, start=1) if hit])
    return result


def found(ranking):
    pairs = list(zip(ranking.images.tolist(), ranking.ranks.tolist(), strict=True))
    return [pairs[a:b] for a, b in itertools.pairwise(ranking.begin.tolist())]


@st.composite
def cases(draw):
    """Small integers as features, so that distances are exact and tie; identities -1 (junk), 0
    (distractors) and few others, of which some have one camera, or are in one set only."""
    queries, images = draw(st.integers(1, 8)), draw(st.integers(1, 40))
    seed = draw(st.integers(0, 2**31))
    identities, cameras = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(seed)

    def integers(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator)

    levels = draw(st.sampled_from([1, 2, 5]))
    features = [integers(-levels, levels + 1, n, 3).float() for n in (queries, images)]
    labels = [
        integers(0, identities + 1, queries),
        integers(-1, draw(st.sampled_from([1, identities, identities + 1])), images),
        integers(0, cameras, queries),
        integers(0, draw(st.integers(1, cameras)), images),
    ]
    if draw(st.booleans()):
        labels[1].fill_(-1)  # nothing but junk: an empty gallery
    return features, labels


def check_case(case, rule, block):
    (query, gallery), values = case
    distances = FeatureDistances(query, gallery, "euclidean")
    labels = make_labels(*values, distances)
    exact = torch.cdist(query.double(), gallery.double()) ** 2
    expected = loop_ranking(exact.round(), labels, rule)
    assert found(rank_hits(distances, labels, rule, block=block)) == expected


@pytest.mark.skipif(not fused(torch.device("cpu")), reason="needs the compiled operators")
@settings(max_examples=1000, deadline=None)
@given(cases(), st.sampled_from(RULES), st.sampled_from([1, 3, 4096]))
def test_operators_rank_as_the_loop(case, rule, block):
    check_case(case, rule, block)


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from(RULES))
def test_plain_torch_ranks_as_the_loop(case, rule):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking_module, "fused", lambda device: False)
        check_case(case, rule, 1)


def real_case(queries=150, images=3000, width=70, identities=12):
    """Features whose distances round, with equal images among them."""
    torch.manual_seed(1)
    gallery = torch.randn(images, width)
    gallery[images // 2 :] = gallery[: images - images // 2]
    distances = FeatureDistances(gallery[:queries] + torch.randn(queries, width), gallery)
    high = identities
    values = [torch.randint(-1, high, (n,)) for n in (queries, images)]
    cameras = [torch.randint(0, 3, (n,)) for n in (queries, images)]
    return distances, make_labels(*values, *cameras, distances)


@pytest.mark.parametrize("identities", [12, 400])  # hits above and below kManyHits
def test_ranks_are_those_of_the_distances(way, identities):
    """Of the very distances that were computed, as a stable argsort ranks them."""
    distances, labels = real_case(identities=identities)
    if way == "fused":
        product = torch.ops.rga_fast_ranking.product(
            distances.query_rows(slice(None)), distances.gallery_rows(slice(None))
        )
        whole = distances.of_products(product, slice(None))
    else:
        whole = torch.cat([distances.rows(i, min(i + 128, 150)) for i in range(0, 150, 128)])
    ranking = rank_hits(distances, labels)
    assert found(ranking) == loop_ranking(whole, labels, Rule())
    queries = Hits(ranking.begin, ranking.images).queries
    assert torch.equal(ranking.distances, whole[queries, ranking.images])


def test_every_block_size_gives_the_same(way, monkeypatch):
    distances, labels = real_case()
    expected = rank_hits(distances, labels)
    for block in (1, 7, 150):
        monkeypatch.setattr(ranking_module, "_ELEMENTS", 70 * (400 + 13 * block))
        got = rank_hits(distances, labels, block=block)
        assert all(map(torch.equal, got, expected))


@pytest.mark.skipif(not fused(torch.device("cpu")), reason="needs the compiled operators")
@pytest.mark.parametrize("depth", [1, 8, 255, 256, 257, 2048])
def test_a_product_depends_on_its_rows_alone(depth):
    product = torch.ops.rga_fast_ranking.product
    torch.manual_seed(0)
    a, b = torch.randn(200, depth), torch.randn(301, depth)
    whole = product(a, b)
    torch.testing.assert_close(whole.double(), a.double() @ b.double().T, rtol=0, atol=2e-4)
    for rows, columns in ((1, 1), (13, 33), (193, 257)):
        part = product(a[-rows:].contiguous(), b[-columns:].contiguous())
        assert torch.equal(part, whole[-rows:, -columns:])
    rows, columns = torch.randint(200, (999,)).sort().values, torch.randint(301, (999,))
    pairs = torch.ops.rga_fast_ranking.pairs(a, b, rows, columns)
    assert torch.equal(pairs, whole[rows, columns])


def test_operators_pass_opcheck():
    if not fused(torch.device("cpu")):
        pytest.skip("needs the compiled operators")
    a, b = torch.randn(3, 5), torch.randn(4, 5)
    torch.library.opcheck(torch.ops.rga_fast_ranking.product, (a, b))
    pair = torch.tensor([0, 2]), torch.tensor([3, 0])
    torch.library.opcheck(torch.ops.rga_fast_ranking.pairs, (a, b, *pair))
    with pytest.raises(RuntimeError, match="out of range"):
        torch.ops.rga_fast_ranking.pairs(a, b, pair[0], pair[0] + 2)
    ids = [torch.zeros(n, dtype=torch.int32) for n in (3, 3, 4, 4)]
    hits = torch.tensor([0, 1, 2, 2]), torch.zeros(2), torch.tensor([0, 1])
    arguments = (a, ids[0], ids[1] - 1, b, ids[2] + 1, ids[3], torch.ones(4), -1.0, 0, *hits)
    counts = torch.zeros(2, dtype=torch.int64)
    torch.library.opcheck(torch.ops.rga_fast_ranking.count_before, (*arguments, counts))
    with pytest.raises(RuntimeError, match="query_ids must be"):
        torch.ops.rga_fast_ranking.count_before(*arguments[:1], ids[2], *arguments[2:], counts)


def test_hits_of_a_subset_of_the_gallery(way):
    """`counted` and `hits` are those of a gallery that holds nothing else."""
    distances, labels = real_case()
    counted = torch.rand(3000) < 0.3
    hits = find_hits(labels)
    got = rank_hits(distances, labels, hits=hits.select(counted[hits.images]), counted=counted)
    kept = counted.nonzero().flatten()
    smaller = FeatureDistances(distances.query, distances.gallery[kept])
    expected = rank_hits(
        smaller,
        labels._replace(
            gallery_ids=labels.gallery_ids[kept], gallery_cams=labels.gallery_cams[kept]
        ),
    )
    assert torch.equal(got.ranks, expected.ranks)
    assert torch.equal(got.images, kept[expected.images])


def test_a_rule_that_contradicts_itself():
    distances, labels = real_case()
    with pytest.raises(ValueError, match="exclude each other"):
        rank_hits(distances, labels, Rule(keep_same_camera=True, separate_camera_set=True))
