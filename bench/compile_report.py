"""Compiles every Triton kernel ahead of time, for GPUs that need not be here.

    python bench/compile_report.py                                 # all targets and stages
    python bench/compile_report.py --targets sm_90 --stages 1      # a part of them
    python bench/compile_report.py --targets sm_90 --loops         # also what a step of a loop is

Prints registers, shared memory, spilled bytes and tensor-core instructions of every configuration
at the shapes of ResNet-50; the status is 1 if a kernel spills or a product misses the tensor cores.
"""

import argparse
import functools
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import common
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rga_fast import kernels, testing
from rga_fast.fused import ops
from rga_fast.kernels.launch import Config, Kernel

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# In PTX and in AMD's assembly; disassembling the machine code takes as long as compiling it.
TENSOR_CORES = {"ptx": r"\bmma\.sync\b|\bwgmma\.mma_async\b", "amdgcn": r"\bv_mfma_"}
# Shared memory a block may have. Triton leaves out a configuration that needs more.
SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "gfx942": 64 << 10}
Shape = tuple[int, int, int]  # of a map: C, H, W
BATCH = 64
VIEWS = ("spatial", "channel", "both")  # the branches of a module
SIZES = ("d", "n", "r", "m", "q", "c", "k", "STORED", "GATED")  # what tells launches apart
TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


class Launch(NamedTuple):
    """A kernel as a launcher would launch it."""

    kernel: Kernel
    config: Config
    default: bool  # the first configuration, which is pinned where nothing may be tuned
    values: tuple[Any, ...]  # of all parameters in order; of tensors, their dtypes

    @property
    def name(self) -> str:
        return self.kernel.function.__name__.removesuffix("_kernel")


class Usage(NamedTuple):
    """What the compiled kernel needs, and how many of its instructions use tensor cores."""

    registers: int
    shared: int
    spilled: int
    tensor_cores: int


# What is launched.


def launches(args: argparse.Namespace) -> list[Launch]:
    """The distinct launches of modules at the given stages, in training and evaluation."""
    found: dict[Any, Launch] = {}

    def record(kernel: Kernel, programs: Any, **arguments: Any) -> Config:
        for index, config in enumerate(kernel.fitted_to(arguments)):
            named = {name: _dtype(value) for name, value in arguments.items()}
            named |= {k: v for k, v in config.items() if k in kernel.function.arg_names}
            values = tuple(named[name] for name in kernel.function.arg_names)
            options = config.get("num_warps"), config.get("num_stages")
            pairs = zip(kernel.function.params, values, strict=True)
            key = (kernel, options, str([_kind(*pair) for pair in pairs]))
            found.setdefault(key, Launch(kernel, config, index == 0, values))
        return kernel.configs[0]

    with mock.patch.object(Kernel, "__call__", record):
        shapes = [testing.STAGES[int(stage)] for stage in args.stages]
        for shape, view, *kind in itertools.product(shapes, args.views, args.dtype, args.layout):
            list(module_results(shape, view, *kind))
            if args.stages_too and view != "both":
                for name, arguments in _stage_arguments(shape, view, *kind):
                    kernels.LAUNCHERS[name](*arguments)
    return list(found.values())


def module_results(shape: Shape, view: str, dtype: str, layout: str) -> Iterator[tuple[str, Any]]:
    """What the operators of a module return, on the meta device: nothing is computed."""
    V, layers = _map_and_layers(shape, view, dtype, layout)
    kind, pair = (2, True, True), "_pair" if view == "both" else ""
    weights = [weight for own in layers for weight in own]
    tables = [weight.new_empty(len(weight)) for weight in weights for _ in range(4)]
    eps, batch = [1e-5] * len(weights), [True] * len(weights)

    def result(name: str, *arguments: Any) -> Any:
        return kernels.LAUNCHERS[name](*arguments)

    yield "evaluation", result(f"attention{pair}", V, weights, tables, eps, *kind)
    out, *saved = result(f"training{pair}_fwd", V, weights, tables, eps, batch, *kind)
    yield "forward", (out, *saved)
    if pair:
        kept = [t for own in ops.halves(saved[0]) for t in own[:-1]]
        arguments = (kept, weights, batch, *kind, True, [True, True])
    else:
        arguments = (*saved[:-1], weights, batch, *kind, True, True)
    dout = torch.empty_like(V)
    yield "backward", result(f"training{pair}_bwd", dout, V, *arguments)


def _map_and_layers(
    shape: Shape, view: str, dtype: str, layout: str
) -> tuple[Tensor, list[list[Tensor]]]:
    """The map as the first branch of a module sees it, and the weights of each of its branches."""
    C, H, W = shape
    B, d, n = BATCH, *((H * W, C) if view == "channel" else (C, H * W))
    by_rows = (view != "channel") == (layout == "contiguous")
    meta = functools.partial(torch.empty, device="meta")
    low = {"dtype": common.DTYPES[dtype]}
    V = meta(B, d, n, **low) if by_rows else meta(B, n, d, **low).transpose(1, 2)
    layers = []
    for rows, nodes in ((d, n), (n, d))[: 1 + (view == "both")]:
        c, m = max(1, rows // 8), max(1, nodes // 8)
        k = max(1, (1 + m) // 8)
        shapes = [(c, rows)] * 3 + [(m, 2 * nodes), (k, 1 + m), (1, k)]
        layers.append([meta(*shape) for shape in shapes])
    return V, layers


def _stage_arguments(
    shape: Shape, view: str, dtype: str, layout: str
) -> Iterator[tuple[str, tuple]]:
    """Of the operators that a process group takes."""
    V, [weights] = _map_and_layers(shape, view, dtype, layout)
    (B, _, n), meta = V.shape, V.new_empty
    c, (m, k) = len(weights[0]), map(len, weights[3:5])
    E, Z, PQ = meta(B, 3 * c, n), meta(B, m, n), meta(B, m, 2 * c).float()
    weight_e = torch.cat(weights[:3])
    weight_z, weight_h, weight_l = weights[3:]
    norms = [weight_l.new_empty(4, rows) for rows in (3 * c, m, k, 1)]
    norm_e, norm_z, norm_h, norm_l = norms
    means_e, means_z, means_h, means_l = (norm[:2] for norm in norms)
    psi, hidden, logit = (weight_l.new_empty(*shape) for shape in ((B, 1, n), (B, k, n), (B, n)))
    kind = (2, c)
    yield "embed_fwd", (V, weight_e)
    yield "relate_fwd", (V, E, norm_e, weight_z, *kind)
    yield "hidden_fwd", (psi, Z, norm_z, weight_h)
    yield "logit_fwd", (hidden, norm_h, weight_l)
    yield "gate_fwd", (V, logit, norm_l)
    yield "gate_bwd", (V, V, logit, norm_l)
    yield "logit_bwd", (
        V, E, norm_e, PQ, psi, norm_z, weight_h, norm_h, weight_l, logit, norm_l, logit, means_l,
        *kind,
    )  # fmt: skip
    yield "hidden_bwd", (psi, Z, norm_z, weight_h, hidden, norm_h, means_h, weight_l, logit)
    yield "relate_bwd", (
        V, E, norm_e, weight_z, PQ, Z, norm_z, means_z, weight_h, hidden, *kind,
    )  # fmt: skip
    yield "embed_bwd", (
        V, V, logit, norm_l, E, norm_e, means_e, weight_e, E, meta(B, 0, n), True, True,
    )  # fmt: skip


def _dtype(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_dtype, value))
    return value.dtype if isinstance(value, Tensor) else value


def _kind(parameter: Any, value: Any) -> Any:
    """What Triton compiles anew for: the types, and of sizes what they are divisible by."""
    if parameter.is_constexpr or isinstance(value, torch.dtype):
        return value
    if isinstance(value, tuple):
        return tuple(_kind(parameter, part) for part in value)
    if isinstance(value, float) or parameter.do_not_specialize:
        return type(value).__name__
    return 1 if value == 1 else f"{16 if value % 16 == 0 else 1} n"


# How it is compiled: as by Triton's own launch, which specialises on divisibility by 16.


def compiled(launch: Launch, target: GPUTarget) -> Any:
    function, signature, constants, attributes = launch.kernel.function, {}, {}, {}
    for index, (name, value) in enumerate(zip(function.arg_names, launch.values, strict=True)):
        path = (index,)
        if function.params[index].is_constexpr:
            signature[name], constants[path] = "constexpr", value
        elif function.params[index].do_not_specialize:
            signature[name] = "i32"
        else:
            signature[name] = _described(value, path, constants, attributes)
    options = {
        key: launch.config[key] for key in ("num_warps", "num_stages") if key in launch.config
    }
    source = ASTSource(function, signature, constants, attributes)
    return triton.compile(source, target=target, options=options)


def _described(value: Any, path: tuple[int, ...], constants: dict, attributes: dict) -> Any:
    if isinstance(value, tuple):
        parts = enumerate(value)
        return tuple(_described(v, (*path, i), constants, attributes) for i, v in parts)
    if isinstance(value, int) and value == 1:
        constants[path] = 1
        return "constexpr"
    if not isinstance(value, float) and (not isinstance(value, int) or value % 16 == 0):
        attributes[path] = [["tt.divisibility", 16]]
    if isinstance(value, torch.dtype):
        return f"*{TYPES[value]}"
    return "fp32" if isinstance(value, float) else "i32"


def cuobjdump(option: str, kernel: Any) -> str:
    """What Triton's own tool for NVIDIA's machine code says."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        command = [path, option, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def loops(kernel: Any) -> list[int]:
    """Instructions of each loop in NVIDIA's machine code, inner ones first."""
    text = cuobjdump("-sass", kernel)
    code = {int(at, 16): what for at, what in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+([^;]*);", text)}
    found = []
    for at, what in code.items():
        target = re.search(r"\bBRA\b.*\b0x([0-9a-f]+)", what)
        if target and int(target[1], 16) < at:
            found.append(sum(int(target[1], 16) <= address <= at for address in code))
    return found


def usage(kernel: Any, name: str) -> Usage:
    shared = kernel.metadata.shared
    language = "amdgcn" if name.startswith("gfx") else "ptx"
    code = kernel.asm[language]
    if language == "amdgcn":
        registers = int(re.search(r"\.vgpr_count:\s*(\d+)", code)[1])
        # Scalar registers may be kept in lanes of vector registers; that is no memory.
        spilled = int(re.search(r"\.private_segment_fixed_size:\s*(\d+)", code)[1])
    else:
        text = cuobjdump("-res-usage", kernel)
        registers = int(re.search(r"REG:(\d+)", text)[1])
        spilled = int(re.search(r"LOCAL:(\d+)", text)[1])
        spilled += int(re.search(r"STACK:(\d+)", text)[1])
    return Usage(registers, shared, spilled, len(re.findall(TENSOR_CORES[language], code)))


def has_products(launch: Launch) -> bool:
    return "PRECISION" in launch.kernel.function.arg_names


def failures(launch: Launch, found: Usage, target: str) -> list[str]:
    wrong = []
    if found.spilled:
        wrong.append(f"spills {found.spilled}")
    if found.shared > SHARED[target] and launch.default:
        wrong.append(f"the default needs more shared memory than the {SHARED[target]} there are")
    low = {torch.bfloat16, torch.float16} & set(launch.values[:2])
    if low and has_products(launch) and not found.tensor_cores:
        wrong.append("its products use no tensor cores")
    return wrong


def add_selection(parser: argparse.ArgumentParser) -> None:
    """The options that say which launches."""
    add = parser.add_argument
    add("--stages", type=common.listed(*map(str, testing.STAGES)), default=["1", "2", "3", "4"])
    add("--views", type=common.listed(*VIEWS), default=list(VIEWS))
    add("--dtype", type=common.listed(*common.DTYPES), default=["bfloat16"])
    add("--layout", type=common.listed("contiguous", "channels_last"), default=["contiguous"])
    add("--defaults", action="store_true", help="only the first configuration of each kernel")


def selected(args: argparse.Namespace) -> list[Launch]:
    return [launch for launch in launches(args) if launch.default or not args.defaults]


def main(arguments: list[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--targets", type=common.listed(*TARGETS), default=list(TARGETS))
    parser.add_argument("--loops", action="store_true", help="instructions of loops (not of AMD's)")
    add_selection(parser)
    parser.set_defaults(stages_too=True)
    args = parser.parse_args(arguments)
    found = selected(args)
    wrong = 0
    header = ("target", "kernel", "registers", "shared", "spills", "tensor")
    print("{:<8}{:<20}{:>10}{:>8}{:>7}{:>7}  as".format(*header))
    for name in args.targets:
        for launch in found:
            kernel = compiled(launch, TARGETS[name])
            needs = usage(kernel, name)
            bad = failures(launch, needs, name)
            wrong += bool(bad)
            shape = " ".join(f"{key} {value}" for key, value in launch.config.items())
            remarks = [f"FAILED: {text}" for text in bad]
            if args.loops and "cubin" in kernel.asm:
                sizes = dict(zip(launch.kernel.function.arg_names, launch.values, strict=True))
                given = " ".join(f"{key} {sizes[key]}" for key in SIZES if key in sizes)
                remarks.append(f"loops {loops(kernel)} for {given}")
            if needs.shared > SHARED[name]:
                remarks.append("left out: too much shared memory")
            line = f"{name:<8}{launch.name:<20}{{:>10}}{{:>8}}{{:>7}}{{:>7}}  {shape}"
            print(line.format(*needs), *remarks)
    print(f"{len(found)} launches, Triton {triton.__version__}, {wrong} failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
