"""Retrieval metrics against a slow, obvious loop and against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rga_fast.reid.retrieval.metrics import RankMetrics, rank_metrics
from rga_fast.reid.retrieval.ranking import hit_ranks


def loop_ranks(distances: Tensor, hits: Tensor, excluded: Tensor) -> list[list[int]]:
    result = []
    for row, hit, out in zip(distances.tolist(), hits.tolist(), excluded.tolist(), strict=True):
        kept = [j for j in range(len(row)) if not out[j]]
        kept.sort(key=lambda j: row[j])  # stable: ties keep the order of the gallery
        result.append([rank for rank, j in enumerate(kept, start=1) if hit[j]])
    return result


def loop_metrics(distances, query_ids, gallery_ids, query_cams, gallery_cams) -> RankMetrics:
    rows, skipped = [], 0
    for q in range(len(query_ids)):
        hits, excluded = [], []
        for g in range(len(gallery_ids)):
            same = gallery_ids[g] == query_ids[q]
            same_cam = gallery_cams[g] == query_cams[q]
            excluded.append(bool(gallery_ids[g] == -1 or (same and same_cam)))
            hits.append(bool(same and not excluded[-1]))
        (ranks,) = loop_ranks(distances[q : q + 1], torch.tensor([hits]), torch.tensor([excluded]))
        if not ranks:
            skipped += 1
            continue
        precision = [n / rank for n, rank in enumerate(ranks, start=1)]
        rows.append(
            [float(ranks[0] <= k) for k in (1, 5, 10)]
            + [sum(precision) / len(ranks), len(ranks) / ranks[-1]]
        )
    return RankMetrics(*np.mean(rows, axis=0), len(rows), skipped)


def random_case(seed: int, queries=23, gallery=150, width=12):
    """Features whose cosine and Euclidean distances are exact in float32, with many ties."""
    rng = np.random.default_rng(seed)

    def features(n):
        x = np.zeros((n, width), dtype=np.float32)
        for row in x:  # four entries of +-1: the norm is exactly 2
            row[rng.choice(width, 4, replace=False)] = rng.choice([-1, 1], 4)
        x[n // 2 :: 3] = x[0]  # duplicates
        x[::2] *= 2  # and of two lengths
        return torch.from_numpy(x)

    query_ids, query_cams = rng.integers(1, 9, queries), rng.integers(0, 3, queries)
    gallery_ids, gallery_cams = rng.integers(-1, 9, gallery), rng.integers(0, 3, gallery)
    query_ids[:3] = 99  # one identity, one camera: no valid query
    query_cams[:3] = 1
    gallery_ids[10:14] = 99
    gallery_cams[10:14] = 1
    query_ids[3] = 100  # not in the gallery at all
    query_ids[4] = -1  # junk finds nothing
    return features(queries), features(gallery), query_ids, gallery_ids, query_cams, gallery_cams


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_obvious_loop(seed, distance):
    case = random_case(seed)
    query, gallery = case[:2]
    exact = torch.cdist(query.double(), gallery.double()) ** 2
    if distance == "cosine":
        exact = 1 - torch.cosine_similarity(query[:, None].double(), gallery.double(), dim=2)
    exact = exact.round(decimals=3)
    assert len(exact.unique()) < 30  # ties everywhere
    expected = loop_metrics(exact, *case[2:])
    assert expected.skipped_queries >= 5
    for block in (1, 7, 1000):
        got = rank_metrics(*case, distance=distance, block=block)
        assert got[5:] == expected[5:]
        assert got[:5] == pytest.approx(expected[:5], abs=1e-12)


@pytest.mark.parametrize("levels", [1, 3, 50, None])
def test_hit_ranks_are_those_of_the_loop(levels):
    torch.manual_seed(0)
    for trial in range(20):
        b, N = 1 + trial % 5, 1 + 7 * trial
        distances = torch.randn(b, N) * 10 ** (trial % 7 - 3)
        if levels is not None:
            distances = (torch.randint(levels, (b, N)) - levels // 2) / 4
            distances[torch.rand(b, N) < 0.1] = -0.0
        excluded = torch.rand(b, N) < 0.2
        hits = (torch.rand(b, N) < 0.2) & ~excluded
        got = hit_ranks(distances, hits, excluded)
        expected = loop_ranks(distances, hits, excluded)
        assert got.shape == (b, max(len(r) for r in expected))
        assert [[r for r in row if r > 0] for row in got.tolist()] == expected


def test_hit_ranks_of_infinite_distances():
    distances = torch.tensor([[math.inf, 1.0, math.inf, -math.inf]])
    hits = torch.tensor([[True, False, True, True]])
    assert hit_ranks(distances, hits, torch.zeros_like(hits)).tolist() == [[1, 3, 4]]


@pytest.mark.usefixtures("way")
def test_average_precision_is_scikit_learns():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    query, gallery = torch.randn(40, 16), torch.randn(300, 16)
    query_ids, gallery_ids = rng.integers(0, 12, 40), rng.integers(-1, 12, 300)
    query_cams, gallery_cams = rng.integers(0, 4, 40), rng.integers(0, 4, 300)
    got = rank_metrics(query, gallery, query_ids, gallery_ids, query_cams, gallery_cams, block=16)

    similarity = torch.cosine_similarity(query[:, None].double(), gallery.double(), dim=2).numpy()
    precisions = []
    for q in range(40):
        same = gallery_ids == query_ids[q]
        kept = (gallery_ids != -1) & ~(same & (gallery_cams == query_cams[q]))
        precisions.append(sklearn_metrics.average_precision_score(same[kept], similarity[q][kept]))
    assert got.valid_queries == 40
    assert got.mAP == pytest.approx(np.mean(precisions), abs=1e-6)


@pytest.mark.usefixtures("way")
def test_known_values():
    gallery = torch.eye(6)
    query = torch.tensor([[6.0, 5, 4, 3, 2, 1]])  # ranks the gallery 1..6
    ids = [7, 0, 3, 7, -1, 7]  # same camera, distractor, other, hit, junk, hit
    cams = [1, 2, 2, 2, 2, 3]
    got = rank_metrics(query, gallery, [7], ids, [1], cams)
    # Ranked are [distractor, other, hit, hit]: hits at 3 and 4.
    assert got == pytest.approx((0, 1, 1, (1 / 3 + 2 / 4) / 2, 2 / 4, 1, 0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_rank_as_float32(dtype):
    case = random_case(0)
    expected = rank_metrics(*case)
    assert rank_metrics(case[0].to(dtype), case[1].to(dtype), *case[2:]) == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert rank_metrics(*case) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu():
    case = random_case(0)
    assert rank_metrics(case[0].cuda(), case[1].cuda(), *case[2:]) == rank_metrics(*case)


def test_all_queries_invalid_is_an_error():
    query, gallery = torch.randn(2, 4), torch.randn(3, 4)
    with pytest.raises(ValueError, match="none of the 2 queries is valid"):
        rank_metrics(query, gallery, [1, 2], [1, 1, 2], [5, 6], [5, 5, 6])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_features": torch.randn(2, 5)}, "one width"),
        ({"query_features": torch.randn(2)}, r"query_features must be .* got .*\(2,\)"),
        ({"gallery_features": torch.zeros(0, 4)}, "gallery_features must be"),
        ({"query_features": torch.zeros(2, 4, dtype=torch.int64)}, "floating point"),
        ({"query_ids": [1, 2, 3]}, r"query_ids must be 2 integers, .* \(3,\)"),
        ({"gallery_cams": [0.5, 1, 2]}, "gallery_cams must be 3 integers"),
        ({"gallery_features": torch.tensor([[1.0, 2, 3, 4]] * 2 + [[0, 0, 0, math.nan]])}, "row 2"),
        ({"query_features": torch.full((2, 4), 1e30)}, "fit float32"),
        ({"distance": "cityblock"}, "must be one of .*'cityblock'"),
        ({"block": 0}, "block"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {
        "query_features": torch.randn(2, 4),
        "gallery_features": torch.randn(3, 4),
        "query_ids": [1, 2],
        "gallery_ids": [1, 2, 3],
        "query_cams": [0, 0],
        "gallery_cams": [1, 1, 1],
    }
    rank_metrics(**arguments)
    with pytest.raises(ValueError, match=message):
        rank_metrics(**(arguments | change))


def test_memory_holds_no_query_by_gallery_matrix(way):
    """No tensor has more bytes than the features of a block, or int64 keys of a few rows."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        nbytes = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, Tensor):
                    self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
            return out

    query, gallery, *labels = random_case(0, queries=1500, gallery=2000)
    labels[1] += 1000 * (labels[1] > 7)  # few hits
    with Largest() as largest:
        rank_metrics(query, gallery, *labels, block=20)
    limit = {"fused": 1500 * 2000 * 2, "plain": 8 * 128 * (2000 + 300)}[way]
    assert largest.nbytes <= limit < 1500 * 2000 * 4
