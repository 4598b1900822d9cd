"""The loader: images/s alone, and the share of a training step that waits for it.

    python bench/bench_data.py                                # images like those of Market-1501
    python bench/bench_data.py --data Market-1501-v15.09.15 --network resnet50
    python bench/bench_data.py --workers 8 --json rows.json

Images come from their files (in this process, or in workers), from memory, and from the file that
processes share; augmented and normalised, in batches of 16 x 4. Before anything is timed, all ways
must give the same batches. `bench/README.md` says more.
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import common
import numpy as np
import torch

from rga_fast.reid.checkpoint import make_network
from rga_fast.reid.config import RECIPES, Config
from rga_fast.reid.data.augment import Augmentation
from rga_fast.reid.data.datasets import Split, open_dataset
from rga_fast.reid.data.images import available_cores, open_images
from rga_fast.reid.data.loader import TrainBatches
from rga_fast.reid.data.sampler import IdentitySampler
from rga_fast.reid.synth import write_dataset
from rga_fast.reid.training.losses import reid_losses

NETWORKS = {"small": RECIPES["small"], "resnet50": RECIPES["paper"]}
CPU_IDENTITIES = 2  # in a training step of ResNet-50 on a CPU, of the 16 of a whole batch
MODES = ("files", "files, workers", "memory", "disk", "disk, workers")
CORES = 16  # of the machine that the loader is projected to


def open_loaders(
    args: argparse.Namespace, split: Split, config: Config, folder: Path
) -> dict[str, TrainBatches]:
    """A loader for each of `MODES`; what is on disk lies in `folder`."""
    loaders = {}
    for mode in MODES:
        kind = mode.split(",")[0]
        cache = "off" if kind == "files" else kind
        loaders[mode] = TrainBatches(
            open_images(split, config.size, cache=cache, folder=folder),
            split.labels,
            IdentitySampler(split.labels, config.identities_per_batch, config.images_per_identity),
            Augmentation(),
            device=args.device,
            workers=args.workers if "workers" in mode else 0,
        )
    return loaders


def endless(batches: TrainBatches) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for epoch in itertools.count():
        waited = batches.waited
        batches.set_epoch(epoch)
        batches.waited = waited
        yield from batches


def all_alike(loaders: dict[str, TrainBatches]) -> bool:
    """Whether the first batch is the same in every mode."""
    first = [next(iter(batches))[0].cpu() for batches in loaders.values()]
    wrong = [m for m, batch in zip(loaders, first, strict=True) if not batch.equal(first[0])]
    for mode in wrong:
        common.say(f"{mode} is wrong: its first batch is not that of the files")
    return not wrong


def loader_rows(args: argparse.Namespace, config: Config, loaders: dict) -> list[common.Row]:
    """Images/s of each loader alone, in turn, and what an image costs the process itself."""
    streams = {mode: endless(batches) for mode, batches in loaders.items()}
    for stream in streams.values():
        for _ in range(4):  # workers have started, and read ahead as they will
            next(stream)
    calls = {mode: (lambda s=stream: next(s)) for mode, stream in streams.items()}
    samples: dict[str, list[float]] = {mode: [] for mode in calls}
    cost: dict[str, list[float]] = {mode: [] for mode in calls}
    for _ in range(args.rounds):
        for mode, call in calls.items():
            call()
            begin, used = time.perf_counter(), time.process_time()
            for _ in range(args.steps):
                call()
            samples[mode].append((time.perf_counter() - begin) * 1e3 / args.steps)
            cost[mode].append((time.process_time() - used) * 1e3 / args.steps)
    rows = []
    for mode, times in samples.items():
        row = _row(args, config, "loader", mode, times)
        if "workers" not in mode:  # theirs is spent in other processes
            row["cpu_ms_per_image"] = common.spread(cost[mode]).median / row["batch"]
            row[f"images_per_s_{CORES}_cores"] = CORES * 1e3 / row["cpu_ms_per_image"]
        rows.append(row)
    return rows


def step_rows(args: argparse.Namespace, name: str, config: Config, loaders: dict) -> list:
    """Whole training steps fed by each loader, in turn."""
    torch.manual_seed(0)
    model = make_network(config.replace(impl="auto"), args.identities).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    streams = {mode: endless(batches) for mode, batches in loaders.items()}

    def step(mode: str) -> None:
        images, labels = next(streams[mode])
        out = model(images)
        optimizer.zero_grad(set_to_none=True)
        reid_losses(out.before_neck, out.logits, labels).total.backward()
        optimizer.step()
        if args.device.type == "cuda":
            torch.cuda.synchronize()

    for mode in streams:
        step(mode)
    samples: dict[str, list[float]] = {mode: [] for mode in streams}
    waits: dict[str, list[float]] = {mode: [] for mode in streams}
    for _ in range(args.rounds):
        for mode, batches in loaders.items():
            waited, begin = batches.waited, time.perf_counter()
            step(mode)
            elapsed = time.perf_counter() - begin
            samples[mode].append(elapsed * 1e3)
            waits[mode].append((batches.waited - waited) / elapsed)
    rows = []
    for mode, times in samples.items():
        row = _row(args, config, f"step {name}", mode, times)
        row["waiting"] = common.spread(waits[mode]).median
        rows.append(row)
    return rows


def _row(
    args: argparse.Namespace, config: Config, op: str, mode: str, times: list[float]
) -> common.Row:
    batch = config.identities_per_batch * config.images_per_identity
    spread = common.spread(times)
    row = {
        **dict.fromkeys(common.FIELDS),
        "op": op,
        "impl": mode,
        "pass": "train",
        "shape": [batch, 3, *config.size],
        "dtype": "float32",
        "layout": "contiguous",
        "batch": batch,
        "ms": spread.median,
        "ms_p20": spread.p20,
        "ms_p80": spread.p80,
        "images_per_s": batch / spread.median * 1e3,
        "workers": args.workers if "workers" in mode else 0,
    }
    return common.finish_row(row, args.device)


def show(title: str, rows: list[common.Row]) -> None:
    columns = ["", "ms", "p20", "p80", "images/s", "waiting", "CPU ms/image", f"on {CORES} cores"]
    lines = [
        [
            row["impl"],
            *(common.milliseconds(row[name]) for name in ("ms", "ms_p20", "ms_p80")),
            f"{row['images_per_s']:,.0f}",
            f"{row['waiting']:.1%}" if "waiting" in row else "",
            f"{row['cpu_ms_per_image']:.3f}" if "cpu_ms_per_image" in row else "",
            f"{row[f'images_per_s_{CORES}_cores']:,.0f}" if "cpu_ms_per_image" in row else "",
        ]
        for row in rows
    ]
    common.print_table(title, columns, lines, rows[0]["device"])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = common.parser(__doc__)
    cuda = torch.cuda.is_available()
    add = parser.add_argument
    add("--data", type=Path, help="a data set (synthetic images of 128x64, as in Market-1501)")
    add("--identities", type=int, default=60, help="of the synthetic data set")
    add("--network", type=common.listed(*NETWORKS), default=list(NETWORKS))
    add("--workers", type=int, default=available_cores())
    add("--steps", type=int, default=8, help="batches in a sample of the loader alone")
    add("--rounds", type=int, default=4)
    add("--device", type=torch.device, default=torch.device("cuda" if cuda else "cpu"))
    add("--json", type=Path, metavar="FILE")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    rows: list[common.Row] = []
    with tempfile.TemporaryDirectory() as folder:
        if args.data is None:
            common.progress("drawing images")
            args.data = Path(folder) / "images"
            write_dataset(args.data, args.identities)
        split = open_dataset(args.data).train
        args.identities = len(np.unique(split.labels))
        for name in args.network:
            config = NETWORKS[name]
            loaders = open_loaders(args, split, config, Path(folder))
            if not all_alike(loaders):
                return 1
            size = f"{config.height}x{config.width}"
            common.progress(f"{name}: the loader alone")
            alone = loader_rows(args, config, loaders)
            show(f"the loader alone, batches of 64 at {size}", alone)
            common.progress(f"{name}: training steps")
            if name == "resnet50" and args.device.type == "cpu":
                config = config.replace(identities_per_batch=CPU_IDENTITIES)
                loaders = open_loaders(args, split, config, Path(folder))
            steps = step_rows(args, name, config, loaders)
            show(f"training steps, {name} at {size}, batch {steps[0]['batch']}", steps)
            rows += alone + steps
            if args.json:
                common.write_json(args.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
