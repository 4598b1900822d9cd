"""Without the extension the first call on a CPU says so, once, with the reason and what to do."""

import subprocess
import sys
import warnings

import pytest
import torch

import rga_fast
from rga_fast import dispatch
from rga_fast.fused import cpp, cuda

PROBLEM = "rga_fast was built without its compiled extension: no compiler today"


@pytest.fixture
def without_extension(monkeypatch, tmp_path):
    """As installed where it could not be compiled."""
    noted = tmp_path / "build_problems.txt"
    noted.write_text(PROBLEM + "\n", encoding="utf-8")
    monkeypatch.setattr(cpp, "PROBLEMS", noted)
    monkeypatch.setattr(cpp, "ERROR", ImportError("cannot import name '_C'"))
    monkeypatch.setattr(cpp, "_warned", False)


@pytest.mark.usefixtures("without_extension")
def test_first_call_on_a_cpu_warns_once(recwarn):
    module = rga_fast.RGA(8, (4, 4))
    x = torch.randn(2, 8, 4, 4)
    dispatch.choose("torch", x)
    dispatch.choose("auto", x.to("meta"))
    assert not recwarn
    warnings.simplefilter("always")  # Python's own filter would hide a second one
    for training in (True, True, False):
        module.train(training)(x)
    (warning,) = recwarn
    assert f"compiled extension is missing: {PROBLEM}" in str(warning.message)
    assert "Install a C++20 compiler" in str(warning.message)
    assert "RGA_FAST_REQUIRE_EXTENSION=1" in str(warning.message)


def test_with_the_extension_nothing_is_said(monkeypatch, recwarn):
    monkeypatch.setattr(cpp, "_warned", False)
    if cpp.ERROR is None:
        dispatch.choose("auto", torch.randn(2, 8, 4, 4, dtype=torch.complex64))
        assert not recwarn


@pytest.mark.usefixtures("without_extension")
def test_the_reason_is_what_the_build_noted(monkeypatch, tmp_path):
    assert cpp.BACKEND.note() == f"not built: {PROBLEM}"
    assert PROBLEM in (cpp.missing() or "")
    monkeypatch.setattr(cpp, "PROBLEMS", tmp_path / "none")
    assert cpp.BACKEND.note() == "not built: cannot import name '_C'"


def test_kernels_that_were_not_built_say_why(monkeypatch, tmp_path):
    monkeypatch.setattr(cpp, "ERROR", None)
    monkeypatch.setattr(cuda, "COMPILED", None)
    monkeypatch.setattr(cpp, "PROBLEMS", tmp_path / "build_problems.txt")
    assert "no CUDA toolkit was found" in (cuda.missing() or "")
    cpp.PROBLEMS.write_text("rga_fast was built without its CUDA kernels: no nvcc today\n")
    assert "no nvcc today. Install the toolkit" in (cuda.missing() or "")


COMPILED = """
import sys, warnings
sys.modules["rga_fast._C"] = None
import torch, rga_fast
module, x = rga_fast.RGA(8, (4, 4)).eval(), torch.randn(2, 8, 4, 4)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    torch.compile(module, fullgraph=True, dynamic=False, backend="eager")(x)
    print([str(w.message) for w in caught if "rga_fast" in str(w.message)])
"""


@pytest.mark.slow
def test_warning_under_the_compiler():
    command = [sys.executable, "-c", COMPILED]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.count("compiled extension is missing") == 1
