"""How setup.py finds the CUDA toolkit and what it does where something cannot be built. Nothing is
compiled here but by stand-ins."""

import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("setuptools", minversion="77")


@pytest.fixture
def build(monkeypatch, tmp_path):
    """setup.py as a module, on a machine whose only toolkits and torch are below `tmp_path`."""
    spec = importlib.util.spec_from_file_location("rga_fast_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("CUDA_HOME", "RGA_FAST_CUDA", "RGA_FAST_REQUIRE_EXTENSION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    complete = module.is_toolkit
    inside = lambda folder: tmp_path in Path(folder).parents and complete(folder)  # noqa: E731
    monkeypatch.setattr(module, "is_toolkit", inside)
    monkeypatch.setattr(module, "site_folders", lambda: [tmp_path / "site"])
    return module


def make_toolkit(folder: Path) -> Path:
    for name in ("bin/nvcc", "include/cuda_runtime.h"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def make_torch(tmp_path: Path, cuda: str | None) -> None:
    (tmp_path / "site/torch").mkdir(parents=True)
    text = f"__version__ = '2.13.0'\ncuda = {cuda!r}\n"
    (tmp_path / "site/torch/version.py").write_text(text)


def test_toolkit_of_the_wrapper_on_the_path(build, tmp_path):
    toolkit = make_toolkit(tmp_path / "cuda")
    wrapper = tmp_path / "bin/nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f"#!/bin/sh\necho '#$ TOP={toolkit}/bin/..' >&2\n")
    wrapper.chmod(0o755)
    assert build.cuda_toolkit() == toolkit


def test_toolkit_of_pip_packages(build, tmp_path):
    assert build.cuda_toolkit() is None
    toolkit = make_toolkit(tmp_path / "site/nvidia/cu13")
    assert build.cuda_toolkit() == toolkit


def test_cuda_home_decides(build, tmp_path, monkeypatch):
    make_toolkit(tmp_path / "site/nvidia/cu13")
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(tmp_path / "mine")))
    assert build.cuda_toolkit() == tmp_path / "mine"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match=r"CUDA_HOME=.*gone has no bin/nvcc"):
        build.cuda_toolkit()


@pytest.mark.parametrize("cuda", [None, "13.0"])
def test_cuda_torch_without_a_toolkit_is_a_problem(build, tmp_path, monkeypatch, cuda):
    make_torch(tmp_path, cuda)
    if cuda is None:
        assert build.wanted_toolkit() is None
        return
    with pytest.raises(FileNotFoundError, match=r"torch 2\.13\.0 is a CUDA build, but there is no"):
        build.wanted_toolkit()
    monkeypatch.setenv("RGA_FAST_CUDA", "0")
    assert build.wanted_toolkit() is None


def test_kernels_are_built_whatever_torch_is(build, tmp_path, monkeypatch):
    make_torch(tmp_path, None)
    toolkit = make_toolkit(tmp_path / "site/nvidia/cu13")
    assert build.wanted_toolkit() == toolkit
    monkeypatch.setenv("RGA_FAST_CUDA", "0")
    assert build.wanted_toolkit() is None


class Build:
    """`OptionalBuild` with compilers that note what they are asked for and fail where told to."""

    def __init__(self, build, tmp_path, monkeypatch, failing=""):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(build, "torch_folder", lambda: tmp_path / "site/torch")
        from setuptools import Distribution, Extension

        extension = Extension("rga_fast._C", [])
        command = build.OptionalBuild(Distribution({"ext_modules": [extension]}))
        command.extensions, command.problems = [extension], []
        command.build_temp = str(tmp_path / "temp")
        self.linked: list[bool] = []  # whether with CUDA kernels
        self.command = command

        def compiler(what, cuda):
            if failing == what:
                raise RuntimeError(f"no {what} today")
            return f"{what}.o"

        def link(objects, toolkit=None):
            if failing == "link" and toolkit is not None:
                raise RuntimeError("no link today")
            self.linked.append(toolkit is not None)
            return True

        monkeypatch.setattr(build, "compile_kernels", lambda *_: compiler("kernels", True))
        monkeypatch.setattr(command, "compile", lambda *_: compiler("operators", False))
        monkeypatch.setattr(command, "link", link)


@pytest.mark.parametrize("failing", ["kernels", "link"])
def test_a_cuda_failure_does_not_cost_the_extension(build, tmp_path, monkeypatch, failing, capsys):
    make_torch(tmp_path, None)
    make_toolkit(tmp_path / "site/nvidia/cu13")
    run = Build(build, tmp_path, monkeypatch, failing)
    run.command.build_extensions()
    assert run.linked == [False]
    assert len(run.command.extensions) == 1
    assert run.command.problems == [
        f"rga_fast was built without its CUDA kernels: no {failing} today"
    ]
    assert "!!!!" in capsys.readouterr().err


def test_kernels_join_the_extension(build, tmp_path, monkeypatch):
    make_torch(tmp_path, "13.0")
    make_toolkit(tmp_path / "site/nvidia/cu13")
    run = Build(build, tmp_path, monkeypatch)
    run.command.build_extensions()
    assert run.linked == [True]
    assert run.command.problems == []


def test_without_a_compiler_there_is_no_extension(build, tmp_path, monkeypatch):
    make_torch(tmp_path, None)
    run = Build(build, tmp_path, monkeypatch, "operators")
    run.command.build_extensions()
    assert run.command.extensions == []
    assert "without its compiled extension: no operators today" in run.command.problems[0]


@pytest.mark.parametrize("failing", ["kernels", "link", "operators", "toolkit"])
def test_required_extension_fails_the_build(build, tmp_path, monkeypatch, failing):
    monkeypatch.setenv("RGA_FAST_REQUIRE_EXTENSION", "1")
    make_torch(tmp_path, "13.0")
    if failing != "toolkit":
        make_toolkit(tmp_path / "site/nvidia/cu13")
    run = Build(build, tmp_path, monkeypatch, failing)
    with pytest.raises((RuntimeError, FileNotFoundError), match=r"today|no CUDA toolkit"):
        run.command.build_extensions()


def test_torch_before_the_stable_abi_is_refused(build, tmp_path, monkeypatch):
    folder = tmp_path / "torch"
    folder.mkdir()
    (folder / "version.py").write_text("__version__ = '2.10.1'\n")
    found = SimpleNamespace(origin=os.fspath(folder / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(RuntimeError, match=r"torch 2\.11 or later is needed, .* has 2\.10\.1"):
        build.torch_folder()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="the build environment has no torch"):
        build.torch_folder()


@pytest.mark.skipif(sys.platform != "linux", reason="asks the linker of Linux")
def test_weak_symbols_come_from_libtorch(build):
    assert build.LINK[:2] == ["-Wl,--no-as-needed", "-ltorch"]
