"""The attention operator: time, memory and distance from the limit of every implementation.

    python bench/bench_rga.py                                  # all stages, evaluation and training
    python bench/bench_rga.py --stages 1 --passes eval --impl cpp,torch --rounds 20
    python bench/bench_rga.py --compile --json rows.json       # with torch.compile of both
    python bench/bench_rga.py --plot charts                    # against n, instead of the stages

Every implementation is checked against the reference in float64 before it is timed; one that fails
is not timed, and the run ends with status 1 (a compiled form is timed, and its error said).
`bench/README.md` says what a row means.
"""

import argparse
import copy
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import common
import gate
import plots
import torch
from torch import Tensor

import rga_fast
from rga_fast import testing
from rga_fast.modules import VARIANTS

ORACLE = "float64 reference"
DRAWS = 5
# Inputs of the chart against n: stage 1 of images from 256x128 to 512x256.
SIDES = ((64, 32), (80, 40), (96, 48), (128, 64))


class Case(NamedTuple):
    """What is measured: one pass over maps of one shape."""

    stage: int
    shape: tuple[int, int, int, int]
    training: bool
    dtype: str
    layout: str

    @property
    def title(self) -> str:
        name = "training step" if self.training else "evaluation"
        shape = "x".join(map(str, self.shape))
        precision = self.dtype if self.dtype == "float32" else f"{self.dtype} autocast"
        return f"stage {self.stage}, {name}, {shape}, {precision}, {self.layout}"


class Setup(NamedTuple):
    """An implementation ready to run: shared by the check, the timing and the memory."""

    module: rga_fast.RGA
    forward: Callable[[Tensor], Tensor]
    inputs: list[tuple[Tensor, Tensor]]  # maps and the gradients of their outputs
    training: bool
    autocast: torch.autocast

    def output(self, index: int = 0) -> Tensor:
        with torch.set_grad_enabled(self.training), self.autocast:
            return self.forward(self.inputs[index][0])

    def step(self, index: int = 0) -> tuple[Tensor, ...]:
        """The output; in training also the gradients of the map and of the parameters."""
        out = self.output(index)
        if not self.training:
            return (out,)
        x, dout = self.inputs[index]
        return (out.detach(), *torch.autograd.grad(out, [x, *self.module.parameters()], dout))

    def results(self) -> dict[str, Tensor]:
        """What a step gives, by name, and the statistics that it updates."""
        names = ["out", "dx", *(f"d{name}" for name, _ in self.module.named_parameters())]
        named = dict(zip(names, self.step(), strict=False))
        if self.training:
            named |= {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        return named


def set_up(problem: gate.Problem, training: bool, impl: str) -> Setup:
    module, (x, dout) = copy.deepcopy(problem.module), problem[1:]
    mixed = x.dtype != torch.float32
    forward: Callable[[Tensor], Tensor] = module
    if impl == ORACLE:
        module, x, dout, mixed = module.double(), x.double(), dout.double(), False
    module.impl = "reference" if impl == ORACLE else impl.removeprefix(common.COMPILED)
    if impl.startswith(common.COMPILED):
        forward = torch.compile(module, dynamic=False, fullgraph=True)
    copies = 1 if impl == ORACLE else common.copies_beyond_cache(x.nbytes, x.device)
    inputs = [
        (x.detach().clone().requires_grad_(training), dout if i == 0 else dout.clone())
        for i in range(copies)
    ]
    autocast = torch.autocast(x.device.type, x.dtype if mixed else None, enabled=mixed)
    return Setup(module, forward, inputs, training, autocast)


def checked(
    case: Case, impls: list[str], args: argparse.Namespace
) -> tuple[dict[str, Setup], dict[str, common.Call], list[str]]:
    """The implementations that agree with the reference in float64, what is timed of them, and what
    the others got wrong.

    One that does not support the case is left out and said so; one that fails costs no other its
    rows.
    """
    torch.compiler.reset()  # compiled code of earlier cases counts against a limit
    common.progress(f"{case.title}: the reference in float64")
    draw = functools.cache(functools.partial(_draw, case, args))
    setups, calls, wrong = {}, {}, []
    for impl in impls:
        common.progress(f"{case.title}: checking {impl}")
        try:
            first = draw(0)
            if impl == "reference":
                setup = first.reference
            else:
                setup = set_up(first.problem, case.training, impl)
                _check(case, impl, setup, draw)
            calls[impl] = _call(setup, args.cuda_graph)
            setups[impl] = setup
        except NotImplementedError as error:
            common.say(f"{case.title}: {impl} left out: {error}")
        except AssertionError as error:
            wrong.append(f"{case.title}: {impl} is wrong: {error}")
            common.say(wrong[-1])
        except Exception as error:  # such as a kernel that does not compile
            wrong.append(f"{case.title}: {impl} failed: {type(error).__name__}: {error}")
            common.say(wrong[-1])
    return setups, calls, wrong


class Draw(NamedTuple):
    """A problem, and what the reference makes of it in its precision and in float64."""

    problem: gate.Problem
    reference: Setup
    baseline: dict[str, Tensor]
    oracle: dict[str, Tensor]


def _draw(case: Case, args: argparse.Namespace, index: int) -> Draw:
    problem = gate.make_problem(
        case.shape,
        args.variant,
        case.training,
        common.DTYPES[case.dtype],
        case.layout,
        args.device,
        index,
    )
    oracle = set_up(problem, case.training, ORACLE).results()
    reference = set_up(problem, case.training, "reference")
    return Draw(problem, reference, reference.results(), oracle)


def _check(case: Case, impl: str, setup: Setup, draw: Callable[[int], Draw]) -> None:
    """Against the budget of the tests: by one draw, and where that misses, which correct rounding
    may, too, by the median of as many as the tests take."""
    results = [(setup.results(), draw(0).baseline, draw(0).oracle)]
    try:
        testing.check_results(results)
    except AssertionError as error:
        if impl.startswith(common.COMPILED):
            # The compiler's rounding; without it the peer would be missing.
            common.say(f"{case.title}: {impl}, timed all the same: {error}")
            return
        common.progress(f"{case.title}: checking {impl} by {DRAWS} draws")
        for index in range(1, DRAWS):
            other = draw(index)
            again = set_up(other.problem, case.training, impl).results()
            results.append((again, other.baseline, other.oracle))
        testing.check_results(results)


def measure(
    case: Case,
    setups: dict[str, Setup],
    calls: dict[str, common.Call],
    probe: common.Probes,
    args: argparse.Namespace,
) -> list[common.Row]:
    """Rows of all implementations and of the limit; prints their table."""
    slow = {impl: call for impl, call in calls.items() if impl.endswith("reference")}
    # The probes beside the fast ones, whose distance from the limit matters.
    calls = {**slow, **probe.calls, **{i: c for i, c in calls.items() if i not in slow}}
    common.progress(f"{case.title}: timing {', '.join(setups)}, {args.rounds} rounds")
    samples = common.time_in_turn(calls, args.rounds, args.device)
    operations = common.branch_operations(case.shape, args.variant)
    nbytes = common.DTYPES[case.dtype].itemsize
    for side in case.shape:
        nbytes *= side
    samples["limit"] = common.limit(samples, probe, operations, nbytes, case.training)
    rows, lines = [], []
    for impl in [*setups, "limit"]:
        common.progress(f"{case.title}: memory of {impl}")
        row, line = _row(case, impl, samples, setups.get(impl), args)
        rows.append(row)
        lines.append(line)
    columns = [
        "",
        "ms",
        "p20",
        "p80",
        "time / limit",
        "p20-p80",
        "x reference",
        "peak MB",
        "saved MB",
    ]
    common.print_table(case.title, columns, lines, common.speeds(samples, probe))
    return rows


def _call(setup: Setup, cuda_graph: bool) -> common.Call:
    calls = [functools.partial(setup.step, index) for index in range(len(setup.inputs))]
    return common.rotated([common.graphed(call) for call in calls] if cuda_graph else calls)


def _row(case, impl, samples, setup, args) -> tuple[common.Row, list[str]]:
    time = common.spread(samples[impl])
    to_limit = common.spread(common.ratios(samples[impl], samples["limit"]))
    to_reference = None
    if "reference" in samples:
        ratios = common.ratios(samples["reference"], samples[impl])
        to_reference = common.spread(ratios).median
    peak, saved = None, None
    if setup is not None:
        peak = common.peak_bytes(setup.step, args.device)
        known = [setup.inputs[0][0], *common.state(setup.module)]
        saved = common.saved_bytes(setup.output, known)
    row = {
        "op": f"rga-{args.variant}",
        "impl": impl,
        "pass": "train" if case.training else "eval",
        "stage": case.stage,
        "shape": list(case.shape),
        "dtype": case.dtype,
        "layout": case.layout,
        "batch": case.shape[0],
        "ms": time.median,
        "ms_p20": time.p20,
        "ms_p80": time.p80,
        "peak_bytes": peak,
        "saved_bytes": saved,
        "ratio_reference": to_reference,
        "ratio_limit": to_limit.median,
    }
    line = [
        impl,
        *map(common.milliseconds, time),
        f"{to_limit.median:.2f}",
        "" if impl == "limit" else f"{to_limit.p20:.2f}-{to_limit.p80:.2f}",
        "" if to_reference is None else f"{to_reference:.2f}",
        common.megabytes(peak),
        common.megabytes(saved),
    ]
    return common.finish_row(row, args.device, args.cuda_graph), line


def cases(args: argparse.Namespace) -> list[Case]:
    if args.plot:
        batch = args.batch or (8 if args.device.type == "cuda" else 2)
        shapes = [(1, (batch, 256, H, W)) for H, W in SIDES]
    else:
        batch = args.batch or (64 if args.device.type == "cuda" else 8)
        shapes = [(stage, (batch, *testing.STAGES[stage])) for stage in args.stages]
    return [
        Case(stage, shape, name == "train", dtype, layout)
        for stage, shape in shapes
        for name in args.passes
        for dtype in args.dtype
        for layout in args.layout
    ]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    def stages(text: str) -> list[int]:
        return [int(stage) for stage in common.listed(*map(str, testing.STAGES))(text)]

    parser = common.parser(__doc__)
    cuda = torch.cuda.is_available()
    add = parser.add_argument
    add("--stages", type=stages, default=[1, 2, 3, 4], help="of ResNet-50 at 256x128 (1,2,3,4)")
    add("--passes", type=common.listed("eval", "train"), default=["eval", "train"])
    add("--batch", type=int, help="images (8; on a GPU 64; with --plot 2 and 8)")
    add("--dtype", type=common.listed(*common.DTYPES), default=["float32"])
    add("--layout", type=common.listed("contiguous", "channels_last"), default=["contiguous"])
    add("--variant", choices=list(VARIANTS), default="sc")
    add(
        "--impl",
        type=common.listed(),
        help="names, compiled-NAME for torch.compile (all that run here)",
    )
    add("--compile", action="store_true", help="with torch.compile of reference and torch")
    add("--rounds", type=int, default=5)
    add("--device", type=torch.device, default=torch.device("cuda" if cuda else "cpu"))
    add("--cuda-graph", action="store_true", help="replay every call from a CUDA graph")
    add("--json", type=Path, metavar="FILE")
    add("--csv", type=Path, metavar="FILE")
    add("--plot", type=Path, metavar="DIR", help="measure against n and draw, no stages")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if args.plot:
        plots.pyplot()  # before minutes of measuring
    impls = common.implementations(args.impl)
    if args.compile:
        impls += [common.COMPILED + name for name in ("reference", "torch")]
    probe = common.probes(args.device)
    rows, wrong = [], []
    for case in cases(args):
        setups, calls, found = checked(case, impls, args)
        wrong += found
        rows += measure(case, setups, calls, probe, args)
        if args.json:
            common.write_json(args.json, rows)
        if args.csv:
            common.write_csv(args.csv, rows)
    if args.plot:
        plots.draw(rows, args.plot)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
