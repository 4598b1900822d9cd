"""csrc/cuda/ compiled for the host (tests/emulate/): `torch.ops.rga_fast_cuda_host` on the CPU."""

import functools
import hashlib
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

from rga_fast import ops

ROOT = Path(__file__).parent.parent
KERNELS = sorted((ROOT / "csrc/cuda").glob("*.cu"))
COMMON = [
    "-std=c++20",
    "-fPIC",
    "-fno-strict-aliasing",
    "-fvisibility=hidden",
    "-DRGA_EMULATE",
    "-I",
    "tests/emulate",
]
FLAGS = [*COMMON, "-DTORCH_TARGET_VERSION=0x020b000000000000"]
LINK = ["-ltorch", "-ltorch_cpu", "-lc10"]


@functools.cache
def compiler() -> str:
    return os.environ.get("CXX") or "g++"


def build(*flags: str) -> Path:
    """The shared library, built where the sources or flags have changed since the last time."""
    sources = [*KERNELS, ROOT / "csrc/cuda/operators.cpp"]
    read = [*sources, *ROOT.glob("csrc/*.h"), *ROOT.glob("csrc/cuda/*.*h"), *EMULATION, HERE]
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(read)))
    digest.update(repr((flags, torch.__version__, compiler())).encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rga_fast_tests"
    library = cache / f"cuda_host-{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library
    cache.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{path}" for path in include_paths()]
    with tempfile.TemporaryDirectory(dir=cache) as folder:

        def compiled(source: Path) -> str:
            target = f"{folder}/{source.name}.o"
            command = [compiler(), *FLAGS, *flags, *includes, "-x", "c++", "-c", source]
            subprocess.run([*command, "-o", target], check=True, cwd=ROOT)
            return target

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, sources))
        paths = [f"-L{path}" for path in library_paths()]
        command = [compiler(), "-shared", *flags, *objects, *paths, *LINK, "-o", f"{folder}/x.so"]
        subprocess.run(command, check=True)
        os.replace(f"{folder}/x.so", library)
    return library


HERE = Path(__file__)
EMULATION = sorted((ROOT / "tests/emulate").glob("*.h"))


@functools.cache
def load(library: Path) -> torch.library.Library:
    """Registers the operators; they live as long as the process."""
    defined = ops.define("cuda_host")
    torch.ops.load_library(library)
    return defined
