"""Builds rga_fast and its extension. `kernels/` is installed as the package `rga_fast.kernels`.

The extension is optional: without a working compiler the package installs with a warning, and
`rga_fast` runs on plain PyTorch. It is built on torch's stable ABI: compiled against one release,
it loads in the later ones.
"""

import os
import sys
import warnings
from glob import glob

from setuptools import setup

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
LINK = ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"] if sys.platform == "linux" else []


def extension_options():
    """The arguments of `setup` that build rga_fast._C; none where torch cannot be imported."""
    try:
        import pybind11
        from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths
    except ImportError as error:
        warnings.warn(f"rga_fast is installed without its extension: {error}", stacklevel=2)
        return {}
    from setuptools import Extension

    class OptionalBuild(BuildExtension):
        def build_extensions(self):
            try:
                super().build_extensions()
            except Exception as error:
                if os.environ.get("RGA_FAST_REQUIRE_EXTENSION"):
                    raise
                self.extensions = []
                message = f"rga_fast is installed WITHOUT its compiled extension: {error}"
                print(f"\n{'!' * 80}\n{message}\n{'!' * 80}\n", file=sys.stderr)

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
    packages=[
        "rga_fast",
        "rga_fast.reid",
        "rga_fast.reid.datasets",
        "rga_fast.reid.synth",
        "rga_fast.kernels",
    ],
    package_dir={"rga_fast": "rga_fast", "rga_fast.kernels": "kernels"},
    **extension_options(),
)
