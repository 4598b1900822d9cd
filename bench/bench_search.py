"""Search: an exact search against reading the features once, indexing against the bare network.

    python bench/bench_search.py                          # 10^6 x 512, both networks
    python bench/bench_search.py --jobs search --images 100000
    python bench/bench_search.py --json rows.json

Features are random, images are smooth random JPEG files. Before it is timed, a search must find
what products in float64 find. `bench/README.md` says more.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np
import torch
from PIL import Image

from rga_fast.reid.checkpoint import Trained, make_network
from rga_fast.reid.config import load_recipe
from rga_fast.reid.data.augment import normalise
from rga_fast.reid.data.images import decode_files
from rga_fast.reid.retrieval.index import store
from rga_fast.reid.retrieval.index.build import build_index
from rga_fast.reid.retrieval.index.gallery import Entry
from rga_fast.reid.retrieval.index.pack import SHARD_ROWS
from rga_fast.reid.retrieval.index.search import Index
from rga_fast.reid.retrieval.model import ReidModel

JOBS = ("search", "index")
NEAREST = 50
CPU = torch.device("cpu")


class Network(NamedTuple):
    recipe: str
    images: int
    batch: int


NETWORKS = {"small": Network("small", 2048, 64), "resnet50": Network("paper", 64, 16)}


def make_index(folder: Path, images: int, width: int) -> Index:
    """Random features, in shards as `rga-fast index` packs them."""
    (folder / store.SHARDS).mkdir(parents=True)
    manifest = store.Manifest({"hash": "", "name": ""}, "after_neck", False, width, "images")
    generator = torch.Generator().manual_seed(0)
    shards = []
    for first in range(0, images, SHARD_ROWS):
        rows = range(first, min(first + SHARD_ROWS, images))
        entries = [Entry(f"{row}.jpg", "", "", "", 0, 0) for row in rows]
        features = torch.randn(len(rows), width, generator=generator)
        shards.append(store.write_shard(folder, manifest, features, entries))
    store.write_manifest(folder, manifest._replace(shards=tuple(shards)))
    return Index(folder)


def check_search(index: Index, query: torch.Tensor) -> None:
    """Exits where a search does not find what products in float64 find."""
    unit = torch.nn.functional.normalize(query.double())[0]
    exact = torch.cat(
        [1 - (part.double() @ unit) / part.double().norm(dim=1) for part in index.shards()]
    )
    (found,) = index.search(query, NEAREST)
    distances = torch.tensor([match.distance for match in found], dtype=torch.float64)
    rows = torch.tensor([int(match.path.removesuffix(".jpg")) for match in found])
    best = exact.topk(NEAREST, largest=False).values
    if not torch.allclose(distances, best, atol=1e-5) or not torch.allclose(
        exact[rows], best, atol=1e-5
    ):
        raise SystemExit("the search does not find the nearest features")


def measure_search(args: argparse.Namespace, folder: Path) -> list[common.Row]:
    common.progress(f"search: writing {args.images:,} x {args.width} features")
    index = make_index(folder / "search", args.images, args.width)
    query = torch.randn(1, args.width, generator=torch.Generator().manual_seed(1))
    common.progress("search: checking")
    check_search(index, query)
    calls: dict[str, common.Call] = {
        "read": lambda: [part.sum() for part in index.shards()],
        "exact": lambda: index.search(query, NEAREST),
    }
    common.progress("search: timing in turn")
    samples = common.time_in_turn(calls, args.rounds, CPU)
    shape = [1, args.images, args.width]
    return [
        row(f"search top-{NEAREST}", impl, times, samples["read"], shape, peak_bytes=peak)
        for impl, times in samples.items()
        for peak in [common.peak_bytes(calls[impl], CPU)]
    ]


def make_files(folder: Path, count: int) -> Path:
    """JPEG files of the size of Market-1501's, as smooth as photographs."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (16, 8, 3), dtype=np.uint8))
        image = coarse.resize((64, 128), Image.Resampling.BICUBIC)
        image.save(folder / f"{number:06}.jpg", quality=90)
    return folder


def measure_index(name: str, args: argparse.Namespace, folder: Path) -> list[common.Row]:
    network = NETWORKS[name]
    config = load_recipe(network.recipe).replace(impl="auto", device="cpu")
    torch.manual_seed(0)
    made = make_network(config, 100).eval()
    model = ReidModel(Trained(made, config, 0), folder / "last.pt", "after_neck", False)
    images = make_files(folder / name, network.images)
    pixels = torch.from_numpy(decode_files(sorted(images.iterdir()), config.size))
    tensors = [normalise(part) for part in pixels.split(network.batch)]

    @torch.inference_mode()
    def bare() -> None:
        for batch in tensors:
            made(batch)

    def index() -> None:
        out = folder / f"{name}.index"
        shutil.rmtree(out, ignore_errors=True)
        build_index(model, images, out, batch_size=network.batch)

    common.progress(f"index: {name}, timing in turn")
    samples = common.time_in_turn({"bare network": bare, "index": index}, args.rounds, CPU)
    shape = [network.images, 3, *config.size]
    return [
        row(f"index {name}", impl, times, samples["bare network"], shape)
        | {"images_per_s": 1e3 * network.images / common.spread(times).median}
        for impl, times in samples.items()
    ]


def row(
    op: str,
    impl: str,
    times: list[float],
    limit: list[float],
    shape: list[int],
    peak_bytes: int | None = None,
) -> common.Row:
    median, low, high = common.spread(times)
    fields: dict[str, Any] = {
        **{"op": op, "impl": impl, "pass": "eval", "stage": None, "shape": shape},
        **{"dtype": "float32", "layout": "rows", "batch": shape[0]},
        **{"ms": median, "ms_p20": low, "ms_p80": high},
        **{"peak_bytes": peak_bytes, "saved_bytes": None, "ratio_reference": None},
        "ratio_limit": common.spread(common.ratios(times, limit)).median,
    }
    return common.finish_row(fields, CPU)


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--jobs", type=common.listed(*JOBS), default=list(JOBS))
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--networks", type=common.listed(*NETWORKS), default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if "search" in args.jobs:
            rows += measure_search(args, Path(folder))
        for name in args.networks if "index" in args.jobs else ():
            rows += measure_index(name, args, Path(folder))
    lines = [
        [
            *(row["op"], row["impl"], common.milliseconds(row["ms"])),
            *(f"{row['ratio_limit']:.2f}", f"{row.get('images_per_s', 0):.0f}"),
        ]
        for row in rows
    ]
    columns = ["op", "impl", "ms", "time / read or network", "images/s"]
    common.print_table("Search", columns, lines, f"{rows[0]['device']}")
    if args.json is not None:
        common.write_json(args.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
