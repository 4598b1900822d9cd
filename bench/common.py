"""What the benchmarks share: timing in turn, the limit, memory, rows and tables."""

import argparse
import csv
import functools
import itertools
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # measure the checkout that this file belongs to
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces every start and stop

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import rga_fast  # noqa: E402

FIELDS = (
    "op",
    "impl",
    "pass",
    "stage",
    "shape",
    "dtype",
    "layout",
    "batch",
    "ms",
    "ms_p20",
    "ms_p80",
    "peak_bytes",
    "saved_bytes",
    "ratio_reference",
    "ratio_limit",
    "device",
    "torch",
    "commit",
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SAMPLE_MS = 30.0  # a sample repeats a call until it lasts about this long
COMPILED = "compiled-"  # NAME through torch.compile
PRODUCT, COPY = "(product)", "(copy)"

Call = Callable[[], object]
Row = dict[str, Any]


# What a run says about itself.

_errors = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
_output = Console(width=None if sys.stdout.isatty() else 120)


def progress(text: str) -> None:
    """What is being done: one line on standard error, overwritten on a terminal."""
    if _errors.is_terminal:
        _errors.print(f"\x1b[2K{text}", end="\r", no_wrap=True, overflow="ellipsis")
    else:
        _errors.print(text)


def say(text: str) -> None:
    """A line on standard error that stays."""
    if _errors.is_terminal:
        text = f"\x1b[2K{text}"
    _errors.print(text)


def device_name(device: torch.device, cuda_graph: bool = False) -> str:
    """The public name of the processor and how it is used; never the name of the machine."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return f"{name}, CUDA graph" if cuda_graph else name
    instructions = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    plural = "" if threads == 1 else "s"
    return f"{_cpu_name()} ({instructions}), {threads} thread{plural}"


def results_folder(device: torch.device) -> Path:
    """Where the results of this machine are kept: `bench/results/` and its public name."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return ROOT / "bench" / "results" / slug


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.machine()


def commit() -> str:
    """The revision of the checkout, marked where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def implementations(asked: Sequence[str] | None) -> list[str]:
    """The implementations that can run here, or those `asked` for; exits with the reason where one
    that was asked for cannot run."""
    entries = {entry.name: entry for entry in rga_fast.implementations()}
    for name in asked or []:
        base = name.removeprefix(COMPILED)
        if base not in entries:
            raise SystemExit(f"--impl: expected some of {', '.join(entries)}, got {name!r}")
        if not entries[base].available:
            raise SystemExit(f"--impl: {base} is not available: {entries[base].note}")
    if asked:
        return list(asked)
    for entry in entries.values():
        if not entry.available:
            say(f"{entry.name} left out: {entry.note}")
    return [entry.name for entry in entries.values() if entry.available]


# Time.


def time_in_turn(
    calls: dict[str, Call], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Milliseconds per call, one sample a round: every call once in every round, in order.

    Machines drift within seconds, so only samples of the same round may be compared. The calls
    have run before: compiled, and warm.
    """
    repeats = {}
    for name, call in calls.items():
        repeats[name] = max(1, math.ceil(SAMPLE_MS / max(_sample(call, 1, device), 1e-3)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if repeats[name] > 1:
                call()  # the caches still hold what the call before it left there
            samples[name].append(_sample(call, repeats[name], device))
    return samples


def _sample(call: Call, repeats: int, device: torch.device) -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / repeats
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) * 1e3 / repeats


class Spread(NamedTuple):
    """Median, 20th and 80th percentile."""

    median: float
    p20: float
    p80: float


def spread(samples: Iterable[float]) -> Spread:
    ordered = torch.tensor(list(samples), dtype=torch.float64)
    low, middle, high = ordered.quantile(ordered.new_tensor([0.2, 0.5, 0.8])).tolist()
    return Spread(middle, low, high)


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


def rotated(calls: Sequence[Call]) -> Call:
    """A call that is each of `calls` in turn."""
    turn = itertools.cycle(calls)
    return lambda: next(turn)()


def copies_beyond_cache(nbytes: int, device: torch.device) -> int:
    """How many inputs of `nbytes` a GPU must rotate through so that none is still in its cache."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, math.ceil(2 * cache / max(nbytes, 1)))


def graphed(call: Call) -> Call:
    """The replay of a CUDA graph of `call`."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


# The limit (docs/design.md).


class Probes(NamedTuple):
    """The two calls that the limit is made of, and what each does."""

    calls: dict[str, Call]
    operations: float
    nbytes: float


def probes(device: torch.device) -> Probes:
    """The library's large square product and a large copy."""
    if device.type == "cuda":
        side, dtype, size = 8192, torch.bfloat16, 1 << 30
    else:
        side, dtype, size = 2048, torch.float32, 1 << 28
    a, b, c = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = source.clone()
    calls: dict[str, Call] = {
        PRODUCT: lambda: torch.mm(a, b, out=c),
        COPY: lambda: target.copy_(source),
    }
    for call in calls.values():
        call()
    return Probes(calls, 2.0 * side**3, 2.0 * size)


def branch_operations(shape: Sequence[int], variant: str) -> float:
    """F of the branches of a variant: 2 B (3 c d n + 4 n c m) each, at the paper's ratios of 8."""
    B, C, H, W = shape
    views = {"s": (C, H * W), "c": (H * W, C)}
    total = 0.0
    for name in variant.replace("//", ""):
        d, n = views[name]
        c, m = max(1, d // 8), max(1, n // 8)
        total += 2.0 * B * (3 * c * d * n + 4 * n * c * m)
    return total


def limit(
    samples: dict[str, list[float]], probe: Probes, operations: float, nbytes: int, training: bool
) -> list[float]:
    """The roofline in milliseconds, round by round, for F = `operations` and |X| = `nbytes`."""
    work, traffic = (3, 5) if training else (1, 2)
    return [
        work * operations / probe.operations * product + traffic * nbytes / probe.nbytes * copy
        for product, copy in zip(samples[PRODUCT], samples[COPY], strict=True)
    ]


def speeds(samples: dict[str, list[float]], probe: Probes) -> str:
    """The medians of both probes, to be read."""
    rate = probe.operations / spread(samples[PRODUCT]).median / 1e9
    bandwidth = probe.nbytes / spread(samples[COPY]).median / 1e6
    return f"product {rate:.3g} TFLOP/s, copy {bandwidth:.3g} GB/s (read + written)"


# Memory.


def peak_bytes(call: Call, device: torch.device) -> int:
    """The most memory that torch's allocators held at once during `call`, beyond what was held
    before it. Its results count. Scratch that other allocators hand out is not seen."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = call()
        torch.cuda.synchronize()
        del result
        return torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(
        activities=activities, profile_memory=True, acc_events=False
    ) as profile:
        result = call()
    del result
    events = profile.profiler.kineto_results.events()
    memory = sorted(
        (event.start_ns(), index, event.nbytes())
        for index, event in enumerate(events)
        if event.name() == "[memory]"
    )
    return max(itertools.accumulate((nbytes for *_, nbytes in memory), initial=0))


def saved_bytes(call: Call, known: Iterable[Tensor]) -> int:
    """Bytes that `call` saves for its backward pass: distinct storages, those of `known` (the
    input, parameters and buffers) left out."""
    held: dict[int, Tensor] = {}  # keeps them alive, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    for tensor in known:
        held.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def parser(text: str | None) -> argparse.ArgumentParser:
    """Of a script whose docstring is `text`: a line about it, then examples."""
    description, _, examples = (text or "").partition("\n\n")
    return argparse.ArgumentParser(
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def positive(text: str) -> float:
    """An argument that is a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def listed(*valid: str) -> Callable[[str], list[str]]:
    """An argument that is a comma-separated list, of any or of `valid` values."""

    def parse(text: str) -> list[str]:
        values = text.split(",")
        for value in values:
            if valid and value not in valid:
                raise argparse.ArgumentTypeError(
                    f"expected some of {', '.join(valid)}, got {value!r}"
                )
        return values

    return parse


def state(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


# Rows.


@functools.cache
def _conditions(device: torch.device, cuda_graph: bool) -> Row:
    return {
        "device": device_name(device, cuda_graph),
        "torch": torch.__version__,
        "commit": commit(),
    }


def finish_row(row: Row, device: torch.device, cuda_graph: bool = False) -> Row:
    """`row` with its conditions, its fields in the order of `FIELDS`, extra ones last."""
    row = {**row, **_conditions(device, cuda_graph)}
    return {**{name: row[name] for name in FIELDS}, **row}


def write_json(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f"[\n{lines}\n]\n")


def write_csv(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else FIELDS)
        writer.writeheader()
        for row in rows:
            writer.writerow({**row, "shape": "x".join(map(str, row["shape"]))})


def print_table(title: str, columns: Sequence[str], lines: list[list[str]], caption: str) -> None:
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    if _errors.is_terminal:
        progress("")
    _output.print(table)


def milliseconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def megabytes(nbytes: int | None) -> str:
    return "" if nbytes is None else f"{nbytes / 1e6:.1f}"


if __name__ == "__main__":
    print(results_folder(torch.device("cuda" if torch.cuda.is_available() else "cpu")))
