"""Builds rga_fast and its extension. `kernels/` is installed as the package `rga_fast.kernels`.

The extension is optional: without a working compiler the package installs, and runs on plain
PyTorch. It uses the stable ABIs of torch and of Python: compiled once, it loads in torch 2.11 and
later and in Python 3.10 and later. torch is not imported here: headers and libraries are enough.

Environment variables:
    RGA_FAST_REQUIRE_EXTENSION=1  what cannot be built is an error
    RGA_FAST_CUDA=0               leaves the CUDA kernels out, which any toolkit found builds
    RGA_FAST_SANITIZE=...         docs/sanitizers.md
    CUDA_HOME, CXX, MAX_JOBS      the CUDA toolkit, the C++ compiler, how many compilers at a time
"""

import copy
import importlib.util
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

CHECKED = os.environ.get("RGA_FAST_SANITIZE")
SANITIZE = [f"-fsanitize={CHECKED}", "-fno-omit-frame-pointer", "-g1"] if CHECKED else []
STABLE_ABI = "0x020b000000000000"  # torch 2.11
PYTHON_ABI = "0x030A0000"  # Python 3.10; a free-threaded Python has none before 3.15
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")
COMPILE = [
    "-std=c++20",
    "-O3",
    "-g0",
    "-fopenmp-simd",  # the pragmas alone: no OpenMP runtime
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    f"-DTORCH_TARGET_VERSION={STABLE_ABI}",
    *([f"-DPy_LIMITED_API={PYTHON_ABI}"] if LIMITED else []),
]
# Ampere and what runs its code, Hopper, and by way of PTX whatever comes later.
NVCC = [
    "-std=c++20",
    "-O3",
    "-lineinfo",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-gencode=arch=compute_80,code=[sm_80,compute_80]",
    "-gencode=arch=compute_90a,code=sm_90a",
]
# libtorch is named for what it brings along: the symbols of libtorch_cuda are weak.
LINK = ["-Wl,--no-as-needed"] if sys.platform == "linux" else []
LINK += ["-ltorch", "-ltorch_cpu", "-lc10"]
LINK_CUDA = ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]
PROBLEMS = "build_problems.txt"  # installed beside the extension, quoted by rga_fast
KERNELS = "its CUDA kernels"


def torch_folder():
    """The folder of the torch to build against."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the build environment has no torch")
    folder = Path(spec.origin).parent
    version = torch_version(folder)["__version__"]
    if tuple(map(int, version.split(".")[:2])) < (2, 11):
        raise RuntimeError(f"torch 2.11 or later is needed, the build environment has {version}")
    return folder


def torch_version(folder):
    """The names of torch/version.py: `__version__`, `cuda` and others."""
    return runpy.run_path(str(Path(folder, "version.py")))


def site_folders():
    """Where packages are: in this environment and, from within pip's build environment, in the one
    that the package is built for."""
    own = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    return [Path(path) for path in dict.fromkeys([*sys.path, *own]) if path]


def cuda_torch():
    """The version of a CUDA build of torch in those; None without one."""
    for folder in site_folders():
        if (folder / "torch/version.py").exists():
            version = torch_version(folder / "torch")
            if version.get("cuda") is not None:
                return version["__version__"]
    return None


def cuda_toolkit():
    """The folder of the CUDA toolkit; None without one.

    CUDA_HOME decides where it is set. `nvcc` on the PATH may be a wrapper, so it is asked where the
    toolkit is. The toolkit of pip's packages is the last."""
    home = os.environ.get("CUDA_HOME")
    if home:
        if not is_toolkit(home):
            raise FileNotFoundError(f"CUDA_HOME={home} has no bin/nvcc or include/cuda_runtime.h")
        return Path(home).resolve()
    places = []
    if shutil.which("nvcc"):
        asked = ["nvcc", "--dryrun", "-x", "cu", os.devnull]
        said = subprocess.run(asked, capture_output=True, text=True).stderr
        places += re.findall(r"TOP=(\S+)", said)
    places += ["/usr/local/cuda", *(folder / "nvidia/cu13" for folder in site_folders())]
    return next((Path(place).resolve() for place in places if is_toolkit(place)), None)


def wanted_toolkit():
    """The toolkit that the kernels are to be built by; None where nobody needs them."""
    if os.environ.get("RGA_FAST_CUDA") == "0":
        return None
    toolkit, torch = cuda_toolkit(), cuda_torch()
    if toolkit is None and torch is not None:
        raise FileNotFoundError(
            f"torch {torch} is a CUDA build, but there is no CUDA toolkit with nvcc: in CUDA_HOME, "
            "on the PATH, in /usr/local/cuda or among pip's packages (RGA_FAST_CUDA=0 is content "
            "without)"
        )
    return toolkit


def is_toolkit(folder):
    return Path(folder, "bin/nvcc").exists() and Path(folder, "include/cuda_runtime.h").exists()


class OptionalBuild(build_ext):
    """Builds the extension with its CUDA kernels, without them where they fail, or not at all."""

    def run(self):
        package = Path("rga_fast") if self.inplace else Path(self.build_lib, "rga_fast")
        for stale in [*package.glob("_C.*"), package / PROBLEMS]:  # of an earlier build
            stale.unlink(missing_ok=True)
        self.problems = []
        super().run()
        if self.problems:
            package.mkdir(parents=True, exist_ok=True)
            (package / PROBLEMS).write_text("\n".join(self.problems) + "\n", encoding="utf-8")

    def build_extensions(self):
        if not self.attempt("its compiled extension", self.build):
            self.extensions = []

    def build(self):
        if sys.platform == "win32":
            raise RuntimeError("it needs GCC or Clang on Linux or macOS")
        folder = torch_folder()
        (self.extension,) = self.extensions
        self.extension.include_dirs = [str(folder / "include")]
        self.extension.library_dirs = [str(folder / "lib")]
        toolkit = self.attempt(KERNELS, wanted_toolkit)
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            # The kernels first, as they take the longest.
            kernels = [pool.submit(*task) for task in self.cuda_tasks(toolkit)] if toolkit else []
            operators = [pool.submit(self.compile, path) for path in sorted(glob("csrc/cpu/*.cpp"))]
            bindings = pool.submit(self.compile, "csrc/bindings.cpp")
        objects = [task.result() for task in operators]
        if not kernels or not self.attempt(
            KERNELS, lambda: self.link(objects + [task.result() for task in kernels], toolkit)
        ):
            self.link([*objects, bindings.result()])
        return True

    def cuda_tasks(self, toolkit):
        """Calls that compile csrc/cuda. nvcc alone compiles the kernels, and the extension finds
        torch's CUDA when it is loaded: no header or library of a CUDA torch is needed."""
        folder = Path(self.build_temp, "cuda")
        folder.mkdir(parents=True, exist_ok=True)
        for source in sorted(glob("csrc/cuda/*.cu"), key=os.path.getsize, reverse=True):
            yield compile_kernels, toolkit, source, str(folder / f"{Path(source).name}.o")
        for source in ["csrc/bindings.cpp", *sorted(glob("csrc/cuda/*.cpp"))]:
            yield self.compile, source, str(folder), [("RGA_CUDA", '"sm_80, sm_90a"')]

    def compile(self, source, folder=None, macros=None):
        """The object file of a C++ file."""
        (target,) = self.compiler.compile(
            [source],
            output_dir=folder or self.build_temp,
            macros=macros,
            include_dirs=self.extension.include_dirs,
            extra_postargs=COMPILE + SANITIZE,
        )
        return target

    def link(self, objects, toolkit=None):
        linked = copy.copy(self.extension)
        linked.sources, linked.extra_objects = [], objects
        linked.extra_link_args = LINK + SANITIZE
        if toolkit is not None:
            places = [*toolkit.glob("targets/*/lib"), toolkit / "lib64", toolkit / "lib"]
            linked.library_dirs = [*linked.library_dirs, *map(str, places)]
            linked.extra_link_args = linked.extra_link_args + LINK_CUDA
        self.force = True
        super().build_extension(linked)
        return True

    def attempt(self, what, build):
        """What `build` returns, or None where it fails. That is said, and noted for those who do
        not see it: pip shows the output of failed builds only."""
        try:
            return build()
        except Exception as error:
            if os.environ.get("RGA_FAST_REQUIRE_EXTENSION", "0") not in ("", "0"):
                raise
            problem = f"rga_fast was built without {what}: {error}"
            print(f"\n{'!' * 80}\n{problem}\n{'!' * 80}\n", file=sys.stderr)
            self.problems.append(problem)
            return None


def compile_kernels(toolkit, source, target):
    command = [str(toolkit / "bin/nvcc"), *NVCC, "-c", source, "-o", target]
    status = subprocess.run(command).returncode
    if status:
        raise RuntimeError(f"{command[0]} could not compile {source} (status {status})")
    return target


if __name__ == "__main__":
    if sys.platform == "darwin":  # torch has the processor's own architecture only
        os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")
    kernels = [f"rga_fast.kernels.{name}" for name in find_packages("kernels")]
    setup(
        py_modules=["rga_fast_command"],
        packages=[*find_packages(include=["rga_fast*"]), "rga_fast.kernels", *kernels],
        package_dir={"rga_fast": "rga_fast", "rga_fast.kernels": "kernels"},
        include_package_data=True,
        ext_modules=[
            Extension(
                "rga_fast._C",
                sorted(glob("csrc/*.cpp") + glob("csrc/cpu/*.cpp")),
                language="c++",
                py_limited_api=LIMITED,
            )
        ],
        cmdclass={"build_ext": OptionalBuild},
        options={"bdist_wheel": {"py_limited_api": "cp310"}} if LIMITED else {},
    )
