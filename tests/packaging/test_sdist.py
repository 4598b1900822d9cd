"""The source distribution holds all that a build needs, and installs where nothing compiles."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("setuptools", minversion="77")

BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])('dist')"


def tracked(*folders: str) -> set[str]:
    command = ["git", "ls-files", "-z", *folders]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a checkout: {error}")
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The archive, built from the tracked files alone, as a clean checkout has them."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    subprocess.run([sys.executable, "-c", BUILD, "build_sdist"], cwd=folder, check=True)
    (archive,) = (folder / "dist").glob("*.tar.gz")
    return archive


def test_sdist_holds_every_source(sdist):
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    sources = tracked("csrc", "kernels", "rga_fast", "tests", "setup.py", "pyproject.toml")
    assert any(name.endswith(".cuh") for name in sources)
    assert sources - held == set()
    assert not [name for name in held if name.endswith((".so", ".pyc"))]


def test_wheel_holds_every_module_and_why_the_extension_is_missing(sdist, tmp_path):
    """Built from the sdist, with a compiler that does not exist."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path)
    (folder,) = tmp_path.iterdir()
    environment = os.environ | {"CXX": "/nowhere/g++", "CC": "/nowhere/gcc", "RGA_FAST_CUDA": "0"}
    environment.pop("RGA_FAST_REQUIRE_EXTENSION", None)
    command = [sys.executable, "-c", BUILD, "build_wheel"]
    subprocess.run(command, cwd=folder, check=True, env=environment)
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        problems = archive.read("rga_fast/build_problems.txt").decode()
    modules = tracked("rga_fast", "kernels")
    installed = {f"rga_fast/{name}" if name.startswith("kernels/") else name for name in modules}
    assert installed - held == set()
    assert "built without its compiled extension" in problems
    assert "/nowhere/g++" in problems
