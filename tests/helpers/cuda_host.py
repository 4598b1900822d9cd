"""csrc/cuda/ compiled for the host (tests/emulate/): `torch.ops.rga_fast_cuda_host` on the CPU."""

import ctypes
import fcntl
import functools
import hashlib
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

from rga_fast.fused import ops

ROOT = Path(__file__).parents[2]
SOURCES = [*sorted((ROOT / "csrc/cuda").glob("*.cu")), ROOT / "csrc/cuda/operators.cpp"]
HEADERS = [
    p for folder in ("csrc", "csrc/cuda", "tests/emulate") for p in (ROOT / folder).glob("*h")
]
FLAGS = ["-std=c++20", "-fPIC", "-fno-strict-aliasing", "-fvisibility=hidden", "-DRGA_EMULATE"]
FLAGS += ["-I", "tests/emulate", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
QUICK = ("-O1", "-g0")
LINK = ["-ltorch", "-ltorch_cpu", "-lc10"]


@functools.cache
def compiler() -> str:
    return os.environ.get("CXX") or "g++"


@functools.cache
def build(*flags: str) -> Path:
    """The shared library, built where the sources or flags have changed since the last time."""
    read = [*SOURCES, *sorted(HEADERS)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in read))
    digest.update(repr((FLAGS, LINK, flags, torch.__version__, compiler())).encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rga_fast_tests"
    library = cache / f"cuda_host-{digest.hexdigest()[:16]}.so"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:  # tests that run side by side build once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _build(library, flags)
    return library


def _build(library: Path, flags: tuple[str, ...]) -> None:
    includes = [f"-I{path}" for path in include_paths()]
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:

        def compiled(source: Path) -> str:
            target = f"{folder}/{source.name}.o"
            command = [compiler(), *FLAGS, *flags, *includes, "-x", "c++", "-c", source]
            subprocess.run([*command, "-o", target], check=True, cwd=ROOT)
            return target

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, SOURCES))
        paths = [f"-L{path}" for path in library_paths()]
        command = [compiler(), "-shared", *flags, *objects, *paths, *LINK, "-o", f"{folder}/x.so"]
        subprocess.run(command, check=True)
        os.replace(f"{folder}/x.so", library)


_loaded: list[torch.library.Library] = []  # the operators live as long as this


def load(library: Path | None = None) -> None:
    """Registers the operators, once in a process: those of `library`, or built quickly."""
    if not _loaded:
        torch.ops.load_library(library or build(*QUICK))
        _loaded.append(ops.define("cuda_host", ops.SCHEMAS | ops.PAIR))


def launches() -> int:
    """How many kernels ran so far."""
    return ctypes.CDLL(str(build(*QUICK))).emulated_launches()
