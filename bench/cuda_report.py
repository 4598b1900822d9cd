"""Compiles csrc/cuda by nvcc, which takes no GPU: registers, shared memory and spills of kernels.

    python bench/cuda_report.py                      # sm_80 and sm_90a
    python bench/cuda_report.py --targets sm_90a --sources embed,relate

The status is 1 if a kernel spills registers to memory. Dynamic shared memory is the launchers'.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("sm_80", "sm_90a")
USAGE = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<target>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:.*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


class Usage(NamedTuple):
    """What a kernel needs."""

    source: str
    target: str
    name: str
    registers: int
    shared: int
    spilled: int


def compiled(source: Path, target: str, flags: list[str]) -> list[Usage]:
    """Raises CalledProcessError where the source does not compile."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        command = ["nvcc", "-std=c++20", "-O3", f"-arch={target}", "--resource-usage", "-cubin"]
        result = subprocess.run(
            [*command, *flags, str(source), "-o", file.name], capture_output=True, text=True
        )
    if result.returncode:
        sys.stderr.write(result.stderr)
        result.check_returncode()
    blocks = re.split(r"(?=ptxas info\s+: Compiling)", result.stderr)
    matches = [match for match in map(USAGE.search, blocks) if match]
    names = subprocess.run(
        ["c++filt", *(match["name"] for match in matches)], capture_output=True, text=True
    ).stdout.splitlines()
    return [
        Usage(
            source.name, target, _short(name), int(match["registers"]), int(match["shared"] or 0),
            int(match["stores"]) + int(match["loads"]),
        )
        for match, name in zip(matches, names, strict=True)
    ]  # fmt: skip


def _short(name: str) -> str:
    """embed_fwd_kernel<__nv_bfloat16, true> of what the compiler calls it."""
    name = re.sub(r"rga::cuda::|\(anonymous namespace\)::|^void ", "", name)
    return re.sub(r"\((\w|::)+\)", "", name.split(">(")[0]) + ">"


def main(arguments: list[str] | None = None) -> int:
    description, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sources = {path.stem: path for path in sorted((ROOT / "csrc/cuda").glob("*.cu"))}
    parser.add_argument("--targets", type=lambda text: text.split(","), default=list(TARGETS))
    parser.add_argument("--sources", type=lambda text: text.split(","), default=list(sources))
    parser.add_argument(
        "--without-half", action="store_true",
        help="leave out float16, which is bfloat16 with another instruction",
    )  # fmt: skip
    args = parser.parse_args(arguments)
    flags = ["-DRGA_WITHOUT_HALF"] if args.without_half else []
    pairs = [(sources[name], target) for name in args.sources for target in args.targets]
    with ThreadPoolExecutor(2) as pool:
        found = [u for us in pool.map(lambda pair: compiled(*pair, flags), pairs) for u in us]
    print(f"{'source':<15} {'target':<7} {'registers':>9} {'shared':>7} {'spilled':>7}  kernel")
    for u in found:
        print(
            f"{u.source:<15} {u.target:<7} {u.registers:>9} {u.shared:>7} {u.spilled:>7}  {u.name}"
        )
    spilled = [u for u in found if u.spilled]
    print(f"{len(found)} kernels, {len(spilled)} spill")
    return 1 if spilled or not found else 0


if __name__ == "__main__":
    sys.exit(main())
