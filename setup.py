"""Builds rga_fast and its extension. `kernels/` is installed as the package `rga_fast.kernels`.

The extension is optional: without a working compiler the package installs with a warning, and
`rga_fast` runs on plain PyTorch. It is built on torch's stable ABI: compiled against one release,
it loads in the later ones.
"""

import os
import re
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

STABLE_ABI = "0x020b000000000000"  # torch 2.11
COMPILE = [
    "-std=c++20",
    "-O3",
    "-g0",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    f"-DTORCH_TARGET_VERSION={STABLE_ABI}",
]
# Ampere and what runs its code, Hopper, and by way of PTX whatever comes later.
NVCC = [
    "-std=c++20",
    "-O3",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-gencode=arch=compute_80,code=[sm_80,compute_80]",
    "-gencode=arch=compute_90a,code=sm_90a",
]
LINK = ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"] if sys.platform == "linux" else []


def cuda_toolkit():
    """The folder of the CUDA toolkit; None without one. `nvcc` on the PATH may be a wrapper."""
    top = os.environ.get("CUDA_HOME")
    if top is None and shutil.which("nvcc"):
        asked = ["nvcc", "--dryrun", "-x", "cu", os.devnull]
        said = subprocess.run(asked, capture_output=True, text=True).stderr
        top = (re.findall(r"TOP=(\S+)", said) or [None])[0]
    return Path(top).resolve() if top and (Path(top) / "include/cuda_runtime.h").exists() else None


def add_cuda(extension, toolkit, folder):
    """Compiles csrc/cuda by nvcc alone and adds it to the extension, which finds torch's CUDA when
    it is loaded: no header or library of a CUDA torch is needed."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    sources = sorted(glob("csrc/cuda/*.cu"))
    objects = [str(Path(folder, Path(source).name + ".o")) for source in sources]
    commands = [
        [str(toolkit / "bin/nvcc"), *NVCC, "-c", source, "-o", target]
        for source, target in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        list(pool.map(lambda command: subprocess.run(command, check=True), commands))
    extension.sources += sorted(glob("csrc/cuda/*.cpp"))
    extension.extra_objects += objects
    extension.define_macros.append(("RGA_CUDA", '"sm_80, sm_90a"'))
    extension.library_dirs += [str(path) for path in toolkit.glob("targets/*/lib")]
    extension.library_dirs.append(str(toolkit / "lib64"))
    extension.extra_link_args += ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]


def extension_options():
    """The arguments of `setup` that build rga_fast._C; none where torch cannot be imported."""
    try:
        import pybind11
        import torch
        from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths
    except ImportError as error:
        warnings.warn(f"rga_fast is installed without its extension: {error}", stacklevel=2)
        return {}
    from setuptools import Extension

    class OptionalBuild(BuildExtension):
        def build_extensions(self):
            toolkit = cuda_toolkit() if torch.version.cuda is not None else None
            if toolkit is not None:
                arguments = self.extensions[0], toolkit, f"{self.build_temp}/cuda"
                self.attempt(lambda: add_cuda(*arguments), "its CUDA kernels")
            if not self.attempt(super().build_extensions, "its compiled extension"):
                self.extensions = []

        def attempt(self, build, what):
            try:
                build()
                return True
            except Exception as error:
                if os.environ.get("RGA_FAST_REQUIRE_EXTENSION"):
                    raise
                message = f"rga_fast is installed WITHOUT {what}: {error}"
                print(f"\n{'!' * 80}\n{message}\n{'!' * 80}\n", file=sys.stderr)
                return False

    sanitizers = os.environ.get("RGA_FAST_SANITIZE", "")  # docs/sanitizers.md
    checked = [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-g1"] if sanitizers else []
    extension = Extension(
        "rga_fast._C",
        sorted(glob("csrc/*.cpp") + glob("csrc/cpu/*.cpp")),
        include_dirs=[*include_paths(), pybind11.get_include()],
        library_dirs=library_paths(),
        extra_compile_args=COMPILE + checked,
        extra_link_args=LINK + checked,
        language="c++",
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": OptionalBuild.with_options(no_python_abi_suffix=False)},
    }


setup(
    packages=[*find_packages(include=["rga_fast", "rga_fast.*"]), "rga_fast.kernels"],
    package_dir={"rga_fast": "rga_fast", "rga_fast.kernels": "kernels"},
    **extension_options(),
)
