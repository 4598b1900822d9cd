"""Speed of what is exported: images/s of the network in each form, with and without attention.

    python bench/bench_export.py --folder exported            # ResNet-50, 256x128, batches 1 and 32
    python bench/bench_export.py --folder exported --prepare  # only writes the files, for later
    python bench/bench_export.py --arch resnet18 --forms torch,folded,onnx --json rows.json

Pixels to features in every form: `torch` is the network as it is trained, with RGA in plain
PyTorch, `cpp` the same with the fused operators, `folded` what is exported, run by PyTorch, `onnx`
its file in ONNX Runtime, `aoti` in AOTInductor. The price of attention is the time with it over the
time without it in the same form, within each round. Features are checked against float64 first, as
by `rga-fast export`. Weights are random.
"""

import argparse
import copy
import sys
import tempfile
from pathlib import Path

import common
import torch
from torch import Tensor

from rga_fast.reid.data.augment import normalise
from rga_fast.reid.data.datasets import ReidData
from rga_fast.reid.export.fold import Deployable
from rga_fast.reid.export.formats import FORMATS, Run
from rga_fast.reid.export.parity import Expected
from rga_fast.reid.network.reidnet import ReidNet
from rga_fast.reid.network.resnet import ARCHITECTURES
from rga_fast.reid.retrieval.features import Features

EAGER, FILES = ("torch", "cpp", "folded"), ("onnx", "aoti")
SYSTEMS = ("none", "rga-sc")


def make_network(args: argparse.Namespace, system: str, impl: str = "torch") -> ReidNet:
    torch.manual_seed(0)
    options = {} if system == "none" else {"impl": impl}
    return ReidNet(args.arch, 751, args.size, attention=system, **options).eval()


def pixels_of(args: argparse.Namespace, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, *args.size, 3), generator=generator, dtype=torch.uint8)


def eager(network: ReidNet) -> Run:
    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        output = network(normalise(pixels))
        return output.before_neck, output.after_neck

    return run


def form(args: argparse.Namespace, system: str, name: str) -> Run:
    """The network in a form; a file is written unless it is there."""
    if name in FILES:
        path = args.folder / f"{args.arch}-{args.size[0]}-{system}{FORMATS[name].suffix}"
        if not path.exists():
            common.progress(f"writing {path.name}")
            FORMATS[name].write(Deployable(make_network(args, system)), args.size, path, {})
        return FORMATS[name].open(path)
    if name == "folded":
        return Deployable(make_network(args, system))
    return eager(make_network(args, system, name))


@torch.inference_mode()
def expected_of(args: argparse.Namespace, system: str) -> Expected:
    network, pixels = make_network(args, system), pixels_of(args, 5)
    exact = copy.deepcopy(network).double()(normalise(pixels).double())
    oracle = Features(exact.before_neck, exact.after_neck)
    data: ReidData | None = None  # features alone are compared
    return Expected(data, pixels, Features(*eager(network)(pixels)), oracle, {})  # type: ignore


def measure(args: argparse.Namespace, batch: int, runs: dict[str, Run]) -> list[common.Row]:
    pixels = pixels_of(args, batch)
    calls = {name: lambda run=run: run(pixels) for name, run in runs.items()}
    for name, call in calls.items():
        common.progress(f"batch {batch}: first call, {name}")
        call()
    common.progress(f"batch {batch}: {args.rounds} rounds")
    samples = common.time_in_turn(calls, args.rounds, torch.device("cpu"))
    rows, lines = [], []
    for name in runs:
        system, impl = name.split(" ")
        time = common.spread(samples[name])
        plain = samples.get(f"none {'torch' if impl == 'cpp' else impl}")
        price = common.spread(common.ratios(samples[name], plain)) if plain else None
        row = {
            **dict.fromkeys(common.FIELDS),
            "op": f"{args.arch}-{system}-exported",
            "impl": impl,
            "pass": "eval",
            "shape": [batch, *args.size, 3],
            "dtype": "float32",
            "layout": "contiguous",
            "batch": batch,
            **{"ms": time.median, "ms_p20": time.p20, "ms_p80": time.p80},
            "price": price and price.median,
            "images_per_s": batch / time.median * 1e3,
        }
        rows.append(common.finish_row(row, torch.device("cpu")))
        shown = "" if price is None else f"{price.median:.2f} ({price.p20:.2f}-{price.p80:.2f})"
        milliseconds = (common.milliseconds(value) for value in time)
        lines.append([name, *milliseconds, f"{row['images_per_s']:.1f}", shown])
    common.print_table(
        f"{args.arch}, {args.size[0]}x{args.size[1]}, batch {batch}",
        ["", "ms", "p20", "p80", "images/s", "price of attention"],
        lines,
        rows[0]["device"],
    )
    return rows


def parse(arguments: list[str] | None) -> argparse.Namespace:
    def size(text: str) -> tuple[int, int]:
        height, _, width = text.partition("x")
        return int(height), int(width)

    parser = common.parser(__doc__)
    add = parser.add_argument
    add("--arch", choices=list(ARCHITECTURES), default="resnet50")
    add("--size", type=size, default=(256, 128), metavar="HxW", help="of the images (256x128)")
    add("--forms", type=common.listed(*EAGER, *FILES), default=[*EAGER, *FILES])
    add("--batches", type=common.listed(), default=["1", "32"])
    add("--rounds", type=int, default=5)
    add("--folder", type=Path, help="of the files; those that are there are used again")
    add("--prepare", action="store_true", help="write the files, and end")
    add("--json", type=Path, metavar="FILE")
    return parser.parse_args(arguments)


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        args.folder = args.folder or Path(temporary)
        args.folder.mkdir(parents=True, exist_ok=True)
        runs, wrong = {}, False
        for system in SYSTEMS:
            expected = expected_of(args, system)
            for name in args.forms:
                if system == "none" and name == "cpp":
                    continue  # is torch, without attention
                run = form(args, system, name)
                error = expected.error(Features(*run(expected.pixels)))
                if error <= expected.limit:
                    runs[f"{system} {name}"] = run
                    continue
                wrong = True
                common.say(f"{system} {name} is wrong: {error:.1e}, at most {expected.limit:.1e}")
        rows: list[common.Row] = []
        for batch in [] if args.prepare else args.batches:
            rows += measure(args, int(batch), runs)
            if args.json:
                common.write_json(args.json, rows)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
