"""Evaluation: metrics against the bare product of distances and against an argsort, re-ranking.

    python bench/bench_eval.py                              # sizes of Market-1501 and MSMT17
    python bench/bench_eval.py --cases market --rounds 9 --json rows.json
    python bench/bench_eval.py --scale 0.1                  # a tenth of the images, to try it

Features are random, around one centre for each identity. Before anything is timed, the metrics must
equal those of the argsort on some of the queries. `bench/README.md` says more.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import common
import numpy as np
import torch
from torch import Tensor

from rga_fast.reid.retrieval.distances import FeatureDistances
from rga_fast.reid.retrieval.metrics import query_scores, rank_metrics, summary
from rga_fast.reid.retrieval.ranking import Labels, rank_hits
from rga_fast.reid.retrieval.rerank import RerankedDistances
from rga_fast.reid.retrieval.verification import count_pairs, equal_error, roc

ARGSORT_QUERIES = 100  # of the argsorts, whose time is multiplied up to all queries


class Case(NamedTuple):
    queries: int
    images: int
    width: int
    identities: int
    cameras: int


CASES = {
    "market": Case(3368, 15913, 2048, 751, 6),
    "msmt17": Case(11659, 82161, 512, 3060, 15),
}
JOBS = ("metrics", "verification", "rerank")
ARGSORTS = {"argsort", "argsort-batched"}


class Data(NamedTuple):
    query: Tensor
    gallery: Tensor
    labels: Labels
    unit_gallery: Tensor  # of length 1; the argsorts get it for nothing


def make_data(case: Case) -> Data:
    """Features and labels, the same for every run."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(case.identities, case.width, generator=generator)
    ids, cameras, features = [], [], []
    for count in (case.queries, case.images):
        ids.append(torch.randint(case.identities, (count,), generator=generator))
        cameras.append(torch.randint(case.cameras, (count,), generator=generator))
        noise = torch.randn(count, case.width, generator=generator)
        features.append(noise.mul_(4).add_(centres[ids[-1]]))
    unit = torch.nn.functional.normalize(features[1])
    return Data(features[0], features[1], Labels(*ids, *cameras), unit)


def argsort_metrics(data: Data, queries: int) -> tuple[float, float]:
    """mAP and rank-1 of the first queries as evaluation is commonly written: a product, an argsort
    of every row, and a loop in Python."""
    query = torch.nn.functional.normalize(data.query[:queries])
    distances = (1 - query @ data.unit_gallery.T).numpy()
    order = np.argsort(distances, axis=1, kind="stable")
    query_ids, gallery_ids, query_cams, gallery_cams = (field.numpy() for field in data.labels)
    precisions, first = [], []
    for q in range(queries):
        ranked = order[q]
        removed = (gallery_ids[ranked] == query_ids[q]) & (gallery_cams[ranked] == query_cams[q])
        matches = (gallery_ids[ranked] == query_ids[q])[~removed].astype(np.int32)
        if not matches.any():
            continue
        found = matches.cumsum()
        precision = [value / (position + 1.0) for position, value in enumerate(found)]
        precisions.append((np.asarray(precision) * matches).sum() / matches.sum())
        first.append(matches[0])
    return float(np.mean(precisions)), float(np.mean(first))


def batched_argsort_metrics(data: Data, queries: int) -> tuple[float, float]:
    """The same without a loop: a product, numpy's fastest argsort, which is compiled, and a few
    operations on whole matrices. Equal distances rank in any order."""
    query = torch.nn.functional.normalize(data.query[:queries])
    order = np.argsort((1 - query @ data.unit_gallery.T).numpy(), axis=1)
    query_ids, gallery_ids, query_cams, gallery_cams = (field.numpy() for field in data.labels)
    same = gallery_ids[order] == query_ids[:queries, None]
    kept = ~(same & (gallery_cams[order] == query_cams[:queries, None]))
    hits = same & kept
    rows, columns = hits.nonzero()
    ranks = kept.cumsum(axis=1, dtype=np.int32)[rows, columns]
    counts = hits.sum(axis=1)
    begin = counts.cumsum() - counts
    nth = np.arange(1, len(rows) + 1) - begin[rows]
    valid = counts > 0
    precision = np.bincount(rows, nth / ranks, minlength=queries)[valid] / counts[valid]
    return float(precision.mean()), float((ranks[begin[valid]] == 1).mean())


def check(data: Data) -> None:
    """Exits where the metrics are not those of the argsort."""
    queries = min(ARGSORT_QUERIES, len(data.query))
    labels = [data.labels.query_ids[:queries], data.labels.gallery_ids]
    labels += [data.labels.query_cams[:queries], data.labels.gallery_cams]
    got = rank_metrics(data.query[:queries], data.gallery, *labels)
    for way in (argsort_metrics, batched_argsort_metrics):
        mAP, rank1 = way(data, queries)
        if abs(got.mAP - mAP) > 1e-6 or abs(got.rank1 - rank1) > 1e-9:
            raise SystemExit(f"the metrics are {got}, by {way.__name__} {mAP} and {rank1}")


def measure(name: str, case: Case, args: argparse.Namespace) -> list[common.Row]:
    data = make_data(case)
    common.progress(f"{name}: checking")
    check(data)
    queries = min(ARGSORT_QUERIES, case.queries)
    calls: dict[str, common.Call] = {
        "product": lambda: data.query @ data.gallery.T,
        "metrics": lambda: rank_metrics(data.query, data.gallery, *data.labels),
        "argsort": lambda: argsort_metrics(data, queries),
        "argsort-batched": lambda: batched_argsort_metrics(data, queries),
    }
    if "rerank" in args.jobs:
        calls["rerank"] = lambda: reranked(data)
    if "verification" in args.jobs:
        calls["verification"] = lambda: verified(data)
    if "metrics" not in args.jobs:
        del calls["metrics"], calls["argsort"], calls["argsort-batched"]
    common.progress(f"{name}: timing {', '.join(calls)} in turn")
    device = torch.device("cpu")
    samples = common.time_in_turn(calls, args.rounds, device)
    for impl in ARGSORTS & samples.keys():
        samples[impl] = [ms * case.queries / queries for ms in samples[impl]]
    rows = []
    for impl, times in samples.items():
        common.progress(f"{name}: memory of {impl}")
        median, low, high = common.spread(times)
        row = {
            "op": f"evaluate {name}",
            "impl": impl,
            "pass": "eval",
            "stage": None,
            "shape": [case.queries, case.images, case.width],
            "dtype": "float32",
            "layout": "rows",
            "batch": case.queries,
            "ms": median,
            "ms_p20": low,
            "ms_p80": high,
            "peak_bytes": None if impl in ARGSORTS else common.peak_bytes(calls[impl], device),
            "saved_bytes": None,
            "ratio_reference": common.spread(
                common.ratios(samples.get("argsort", times), times)
            ).median,
            "ratio_limit": common.spread(common.ratios(times, samples["product"])).median,
        }
        rows.append(common.finish_row(row, device))
    return rows


def verified(data: Data) -> float:
    """The counts of all pairs; the ranking of the hits is part of it."""
    distances = FeatureDistances(data.query, data.gallery)
    ranking = rank_hits(distances, data.labels)
    return equal_error(roc(count_pairs(distances, data.labels, ranking))).threshold


def reranked(data: Data) -> float:
    distances = RerankedDistances(FeatureDistances(data.query, data.gallery))
    return summary(query_scores(rank_hits(distances, data.labels))).mAP


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--cases", type=common.listed(*CASES), default=list(CASES))
    parser.add_argument("--jobs", type=common.listed(*JOBS), default=list(JOBS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=common.positive, default=1.0, help="of the image counts")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    rows = []
    for name in args.cases:
        case = CASES[name]
        counts = (case.queries, case.images, case.identities)
        queries, images, identities = (max(8, round(n * args.scale)) for n in counts)
        case = case._replace(queries=queries, images=images, identities=identities)
        rows += measure(name, case, args)
    lines = [
        [
            *(row["op"], row["impl"], common.milliseconds(row["ms"])),
            *(f"{row['ratio_limit']:.2f}", f"{row['ratio_reference']:.3g}"),
            common.megabytes(row["peak_bytes"]),
        ]
        for row in rows
    ]
    columns = ["op", "impl", "ms", "time / product", "argsort / time", "peak MB"]
    common.print_table("Evaluation", columns, lines, f"{rows[0]['device']}")
    if args.json is not None:
        common.write_json(args.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
