"""What the launches of the Triton kernels need on a GPU at least, on paper.

    python bench/roofline.py                              # an H200, bfloat16, batch 64, 256x128
    python bench/roofline.py --launches --stages 1        # every launch of a stage
    python bench/roofline.py --plot against-n.png         # against the number of nodes (matplotlib)

The launchers run on the meta device, so no GPU is needed. A launch takes the longer of its products
/ `--rate` and its bytes / `--bandwidth`, everything that it needs being read from memory once, and
launching costs nothing. No kernels of these launches can be faster. The limit beside it, whatever
the launches, is that of docs/design.md.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import bench_rga
import common
import compile_report
import plots
from compile_report import Shape
from torch import Tensor

from rga_fast import testing
from rga_fast.kernels.launch import Config, Kernel
from rga_fast.kernels.statistics import MEANS, MERGE, SUM, TABLE

Sizes = dict[str, Any]


class Launch(NamedTuple):
    name: str
    operations: float
    nbytes: float

    def microseconds(self, rate: float, bandwidth: float) -> float:
        return max(self.operations / rate, self.nbytes / bandwidth) * 1e6


def _again(sizes: Sizes) -> int:
    """Products for a value of Z where it is made again."""
    return 0 if sizes["STORED"] else sizes["q"]


def _tiles(sizes: Sizes) -> int:
    """`relate_bwd` makes dZ again for every tile of theta and phi."""
    return -(-sizes["c"] // sizes["BLOCK_Q"])


# Multiply-adds for each node of each image.
PRODUCTS = {
    "embed": lambda s: s["d"] * s["r"],
    "attend": lambda s: s["m"] * (s["q"] + s["k"]),
    "embed_fwd": lambda s: s["d"] * s["r"],
    "columns": lambda s: s["m"] * s["c"] * s["HALVES"],
    "relate_fwd": lambda s: s["m"] * s["q"],
    "hidden_fwd": lambda s: s["m"] * (s["k"] + _again(s)),
    "logit_bwd": lambda s: s["m"] * (s["k"] + s["q"]),
    "hidden_bwd": lambda s: s["m"] * (2 * s["k"] + _again(s)),
    "columns_bwd": lambda s: s["m"] * (s["k"] + s["q"] + _again(s)),
    "relate_bwd": lambda s: s["m"] * (2 * s["q"] + _tiles(s) * (s["k"] + _again(s))),
    "relate_bwd_weight": lambda s: s["m"] * s["c"] * s["HALVES"],
    "embed_bwd_nodes": lambda s: s["d"] * s["r"],
    "embed_bwd_weight": lambda s: s["d"] * s["r"],
}
# Scratch has room for a sum of every node tile, were these the smallest a kernel may have; that of
# these kernels is for shares of the nodes, and all of it is used.
BY_SHARES = ("embed_bwd_weight", "hidden_bwd")
# These read theta and phi, but not psi, which lies behind them.
PART_OF_E = ("columns", "hidden_fwd", "logit_bwd", "hidden_bwd", "columns_bwd", "relate_bwd_weight")
IN_PLACE = "embed_bwd_norm"  # reads and writes the gradient of E


def launches(shape: Shape, view: str, dtype: str, layout: str) -> dict[str, list[Launch]]:
    """Of the passes of a module: evaluation, forward, backward."""
    found: list[Launch] = []

    def record(kernel: Kernel, programs: Any, **arguments: Any) -> Config:
        config = kernel.fitted_to(arguments)[0]
        sizes = arguments | config
        name = kernel.function.__name__.removesuffix("_kernel")
        found.append(Launch(name, _operations(name, sizes), _nbytes(kernel, name, sizes)))
        return config

    passes = {}
    with mock.patch.object(Kernel, "__call__", record):
        for name, _ in compile_report.module_results(shape, view, dtype, layout):
            passes[name] = found.copy()
            found.clear()
    return passes


def _operations(name: str, sizes: Sizes) -> float:
    if name not in PRODUCTS:
        return 0
    return 2.0 * compile_report.BATCH * sizes["n"] * PRODUCTS[name](sizes)


def _nbytes(kernel: Kernel, name: str, sizes: Sizes) -> float:
    tensors: dict[Any, float] = {}
    for label, value in sizes.items():
        for tensor in value if isinstance(value, tuple) else (value,):
            if isinstance(tensor, Tensor):
                nbytes = tensor.nbytes * _share(kernel, name, label, sizes)
                key = label if name == IN_PLACE else tensor.untyped_storage()._cdata
                tensors[key] = max(tensors.get(key, 0), nbytes)
    return sum(tensors.values())


def _share(kernel: Kernel, name: str, label: str, sizes: Sizes) -> float:
    """How much of an argument a launch reads or writes."""
    if label in ("gate", "norm_g") and not sizes["GATED"]:
        return 0
    if label in ("nodes", "PQ", "norm_e") and name.startswith("hidden") and sizes["STORED"]:
        return 0
    if label == "V" and (sizes.get("VALUES") or (name == "embed_bwd_nodes" and not sizes["GATED"])):
        return 0
    if label == "nodes" and name in PART_OF_E and sizes["NORMALISED"]:
        q = sizes["q"] if "q" in sizes else sizes["c"] * sizes["HALVES"]
        return q / sizes["rows"]
    if label == "parts" and kernel in (MERGE, TABLE, SUM, MEANS):
        return sizes["count"] / len(sizes["parts"])
    if label in ("parts", "dgate") and "BLOCK_N" in kernel.configs[0] and name not in BY_SHARES:
        return kernel.smallest("BLOCK_N") / sizes["BLOCK_N"]
    return 1


def limits(shape: Shape, args: argparse.Namespace) -> dict[str, float]:
    """Microseconds of evaluation and training step, both branches (docs/design.md)."""
    C, H, W = shape
    operations = 0.0
    for d, n in ((C, H * W), (H * W, C)):
        c, m = max(1, d // 8), max(1, n // 8)
        operations += 2 * compile_report.BATCH * (3 * c * d * n + 4 * n * c * m)
    nbytes = compile_report.BATCH * C * H * W * common.DTYPES[args.dtype].itemsize
    work, traffic = operations / args.rate * 1e6, nbytes / args.bandwidth * 1e6
    return {"evaluation": work + 2 * traffic, "training step": 3 * work + 5 * traffic}


def totals(shape: Shape, args: argparse.Namespace) -> dict[str, tuple[float, int]]:
    """Microseconds and number of launches of evaluation and training step, both branches."""
    passes = launches(shape, "both", args.dtype, args.layout)
    step = passes["forward"] + passes["backward"]
    found = {"evaluation": passes["evaluation"], "training step": step}
    speeds = args.rate, args.bandwidth
    return {
        name: (sum(launch.microseconds(*speeds) for launch in every), len(every))
        for name, every in found.items()
    }


def summary(args: argparse.Namespace) -> list[list[str]]:
    lines = []
    for stage in args.stages:
        shape = testing.STAGES[int(stage)]
        limit = limits(shape, args)
        for name, (time, count) in totals(shape, args).items():
            values = f"{limit[name]:.0f}", f"{time:.0f}", f"{time / limit[name]:.2f}"
            lines.append([stage, name, *values, str(count)])
    return lines


def details(args: argparse.Namespace) -> list[list[str]]:
    lines = []
    for stage in args.stages:
        shape = testing.STAGES[int(stage)]
        for name, every in launches(shape, "both", args.dtype, args.layout).items():
            for launch in every:
                products, memory = launch.operations / args.rate, launch.nbytes / args.bandwidth
                values = max(products, memory), products, memory
                lines.append([stage, name, launch.name, *(f"{1e6 * v:.1f}" for v in values)])
    return lines


def plot(path: Path, args: argparse.Namespace) -> None:
    """Time against the number of nodes, C = 256, as `bench_rga.py --plot` measures it."""
    plt = plots.pyplot()
    shapes = [(256, H, W) for H, W in bench_rga.SIDES]
    n = [H * W for _, H, W in shapes]
    found = [(limits(shape, args), totals(shape, args)) for shape in shapes]
    figure, axes = plt.subplots(figsize=(6.2, 4.2), layout="constrained")
    for name, colour in (("evaluation", "#1f77b4"), ("training step", "#2ca02c")):
        axes.plot(n, [t[name][0] / 1e3 for _, t in found], ".-", color=colour, label=name)
        limit = [values[name] / 1e3 for values, _ in found]
        axes.plot(n, limit, ":", color=colour, label="its limit in any launches")
    axes.set(xscale="log", yscale="log", xlabel="nodes n = H W", ylabel="time on paper (ms)")
    axes.set_xticks(n, map(str, n))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.set_title(f"RGA-SC in Triton on paper, not measured\n{_title(args)}, C = 256", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _title(args: argparse.Namespace) -> str:
    speeds = f"{args.rate / 1e12:.0f} TFLOP/s, {args.bandwidth / 1e12:.1f} TB/s"
    return f"{speeds}, {args.dtype}, batch {compile_report.BATCH}"


def main(arguments: list[str] | None = None) -> int:
    parser = common.parser(__doc__)
    add = parser.add_argument
    add("--stages", type=common.listed(*map(str, testing.STAGES)), default=["1", "2", "3", "4"])
    add("--dtype", choices=common.DTYPES, default="bfloat16")
    add("--layout", choices=("contiguous", "channels_last"), default="contiguous")
    add("--rate", type=common.positive, default=790e12, help="of products, operations a second")
    add("--bandwidth", type=common.positive, default=4.3e12, help="of a copy, bytes a second")
    add("--launches", action="store_true", help="every launch, not only their sums")
    add("--plot", type=Path, metavar="FILE", help="a picture, nothing else")
    args = parser.parse_args(arguments)
    if args.plot:
        plot(args.plot, args)
        return 0
    columns = ["stage", "pass"]
    if args.launches:
        columns, lines = [*columns, "launch", "us", "products", "memory"], details(args)
    else:
        columns, lines = [*columns, "limit, us", "launches, us", "ratio", "launches"], summary(args)
    common.print_table("RGA-SC at 256x128, on paper", columns, lines, _title(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
