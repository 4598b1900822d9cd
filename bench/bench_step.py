"""The price of attention: whole training steps and evaluation passes of the re-id network.

    python bench/bench_step.py                                 # ResNet-50, 256x128
    python bench/bench_step.py --arch resnet18 --passes eval --impl torch
    python bench/bench_step.py --amp --channels-last --compile --json rows.json

The network runs without attention, with the reference and with every implementation, in turn within
each round. The price of attention is the time with it over the time without it, formed within each
round. Features are checked against the reference in float64 first. `bench/README.md` says more.
"""

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import common
import torch
from torch import Tensor, nn

from rga_fast import testing
from rga_fast.modules import VARIANTS
from rga_fast.reid.network.reidnet import ReidNet, ReidOutput
from rga_fast.reid.network.resnet import ARCHITECTURES
from rga_fast.reid.training.losses import reid_losses

NONE = "no attention"
NUM_CLASSES = 751  # of Market-1501
IMAGES_PER_IDENTITY = 4


class Setup(NamedTuple):
    """A network ready to run: shared by the check, the timing and the memory."""

    model: ReidNet
    forward: Callable[[Tensor], ReidOutput]
    images: Tensor
    labels: Tensor
    optimiser: torch.optim.Optimizer
    autocast: torch.autocast

    def loss(self) -> Tensor:
        with self.autocast:
            out = self.forward(self.images)
        return reid_losses(out.before_neck, out.logits, self.labels).total

    def train_step(self) -> Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        self.optimiser.step()
        return loss.detach()

    def evaluate(self) -> Tensor:
        with torch.no_grad(), self.autocast:
            return self.forward(self.images).after_neck


def make_model(args: argparse.Namespace, impl: str) -> ReidNet:
    torch.manual_seed(0)
    options = {"attention": "none"}
    if impl != NONE:
        options = {"attention": f"rga-{args.variant}", "impl": impl}
    model = ReidNet(args.arch, NUM_CLASSES, args.size, **options)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    return model.to(device=args.device, memory_format=layout)


def make_batch(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    layout = "channels_last" if args.channels_last else "contiguous"
    images = testing.make_map((args.batch, 3, *args.size), layout=layout)
    labels = torch.arange(args.batch) // IMAGES_PER_IDENTITY % NUM_CLASSES
    return images.to(args.device), labels.to(args.device)


def set_up(args: argparse.Namespace, impl: str, training: bool) -> Setup:
    model = make_model(args, impl).train(training)
    forward = torch.compile(model, dynamic=False) if args.compile else model
    optimiser = torch.optim.Adam(
        model.parameters(), lr=3.5e-4, weight_decay=5e-4, capturable=args.cuda_graph
    )
    autocast = torch.autocast(args.device.type, torch.bfloat16, enabled=args.amp)
    return Setup(model, forward, *make_batch(args), optimiser, autocast)


def checked(args: argparse.Namespace, impls: list[str]) -> tuple[list[str], bool]:
    """Those of `impls` whose features, in one training-mode forward pass, agree with the reference
    in float64 within the budget of the tests, and whether any was wrong."""
    images, _ = make_batch(args)
    reference = make_model(args, "reference")

    def features(model: nn.Module, images: Tensor, amp: bool = args.amp) -> Tensor:
        with torch.no_grad(), torch.autocast(args.device.type, torch.bfloat16, enabled=amp):
            return model(images).before_neck

    oracle = features(copy.deepcopy(reference).double(), images.double(), amp=False)
    baseline = features(reference, images)
    right, wrong = [], False
    for impl in impls:
        common.progress(f"checking {impl}")
        try:
            actual = features(make_model(args, impl), images)
            testing.check_budget(actual, baseline, oracle, "features")
            right.append(impl)
        except NotImplementedError as error:
            common.say(f"{impl} left out: {error}")
        except AssertionError as error:
            common.say(f"{impl} is wrong: {error}")
            wrong = True
        except Exception as error:  # such as a kernel that does not compile
            common.say(f"{impl} failed: {type(error).__name__}: {error}")
            wrong = True
    return right, wrong


def measure(
    args: argparse.Namespace, impls: list[str], training: bool
) -> tuple[list[common.Row], bool]:
    """Rows of one pass, and whether an implementation failed; prints their table."""
    torch.compiler.reset()  # code compiled for the other pass counts against a limit
    name = "training step" if training else "evaluation"
    setups, calls = {}, {}
    for impl in [NONE, *impls]:
        common.progress(f"{name}: first step, {impl}")
        try:
            setup = set_up(args, impl, training)
            call = setup.train_step if training else setup.evaluate
            call()
            calls[impl] = common.graphed(call) if args.cuda_graph else call
            setups[impl] = setup
        except Exception as error:  # the others are measured all the same
            if impl == NONE:
                raise
            common.say(f"{name}: {impl} failed: {type(error).__name__}: {error}")
    common.progress(f"{name}: timing {', '.join(calls)}, {args.rounds} rounds")
    samples = common.time_in_turn(calls, args.rounds, args.device)
    rows, lines = [], []
    for impl, setup in setups.items():
        common.progress(f"{name}: memory, {impl}")
        row = _row(args, impl, samples, setup, training)
        rows.append(row)
        lines.append(_line(args, row, samples))
    columns = ["", "ms", "p20", "p80", "price", "p20-p80", "x reference", "images/s"]
    title = f"{args.arch}, {name}, {args.batch}x3x{args.size[0]}x{args.size[1]}"
    details = ["bfloat16 autocast" if args.amp else "float32"]
    details += ["channels last"] * args.channels_last + ["compiled"] * args.compile
    common.print_table(
        ", ".join([title, *details]), [*columns, "peak MB", "saved MB"], lines, rows[0]["device"]
    )
    return rows, len(setups) <= len(impls)


def _row(args, impl, samples, setup, training) -> common.Row:
    time = common.spread(samples[impl])
    versus = samples.get("reference")
    call = setup.train_step if training else setup.evaluate
    known = [setup.images, *common.state(setup.model)]
    setup.optimiser.zero_grad(set_to_none=True)  # gradients are part of the step's memory
    row = {
        "op": f"{args.arch}-rga-{args.variant}{'-compiled' if args.compile else ''}",
        "impl": impl,
        "pass": "train" if training else "eval",
        "stage": None,
        "shape": [args.batch, 3, *args.size],
        "dtype": "bfloat16" if args.amp else "float32",
        "layout": "channels_last" if args.channels_last else "contiguous",
        "batch": args.batch,
        "ms": time.median,
        "ms_p20": time.p20,
        "ms_p80": time.p80,
        "peak_bytes": common.peak_bytes(call, args.device),
        "saved_bytes": common.saved_bytes(setup.loss if training else call, known),
        "ratio_reference": versus and common.spread(common.ratios(versus, samples[impl])).median,
        "ratio_limit": None,
        "price": common.spread(common.ratios(samples[impl], samples[NONE])).median,
    }
    return common.finish_row(row, args.device, args.cuda_graph)


def _line(args: argparse.Namespace, row: common.Row, samples: dict[str, list[float]]) -> list[str]:
    price = common.spread(common.ratios(samples[row["impl"]], samples[NONE]))
    ratio = row["ratio_reference"]
    return [
        row["impl"],
        *(common.milliseconds(row[name]) for name in ("ms", "ms_p20", "ms_p80")),
        f"{price.median:.2f}",
        "" if row["impl"] == NONE else f"{price.p20:.2f}-{price.p80:.2f}",
        "" if ratio is None else f"{ratio:.2f}",
        f"{args.batch / row['ms'] * 1e3:.1f}",
        common.megabytes(row["peak_bytes"]),
        common.megabytes(row["saved_bytes"]),
    ]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    def size(text: str) -> tuple[int, int]:
        height, _, width = text.partition("x")
        return int(height), int(width)

    parser = common.parser(__doc__)
    cuda = torch.cuda.is_available()
    add = parser.add_argument
    add("--arch", choices=list(ARCHITECTURES), default="resnet50")
    add("--passes", type=common.listed("eval", "train"), default=["eval", "train"])
    add("--batch", type=int, default=64 if cuda else 8, help="images (8; on a GPU 64)")
    add("--size", type=size, default=(256, 128), metavar="HxW", help="of the images (256x128)")
    add("--variant", choices=list(VARIANTS), default="sc")
    add("--impl", type=common.listed(), help="names (all that run here)")
    add("--amp", action="store_true", help="bfloat16 autocast")
    add("--channels-last", action="store_true")
    add("--compile", action="store_true", help="torch.compile every network, with and without")
    add("--cuda-graph", action="store_true", help="replay every step from a CUDA graph")
    add("--rounds", type=int, default=5)
    add("--device", type=torch.device, default=torch.device("cuda" if cuda else "cpu"))
    add("--json", type=Path, metavar="FILE")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    impls = common.implementations(args.impl)
    right, wrong = checked(args, impls)
    rows: list[common.Row] = []
    for name in args.passes:
        found, failed = measure(args, right, name == "train")
        rows, wrong = rows + found, wrong or failed
        if args.json:
            common.write_json(args.json, rows)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
