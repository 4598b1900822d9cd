"""bench/gpu_suite.sh does not pass where nothing could run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
# Python, but for what the suite would install.
STAND_IN = """#!/bin/sh
if [ "$1 $2 $3" = "-m pip install" ]; then
    echo "installs with RGA_FAST_REQUIRE_EXTENSION=$RGA_FAST_REQUIRE_EXTENSION"
    exit {status}
fi
exec {python} "$@"
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which it would run")
@pytest.mark.parametrize("status", [0, 1])
def test_gpu_suite_fails_without_a_gpu(tmp_path, status):
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN.format(python=sys.executable, status=status))
    stand_in.chmod(0o755)
    environment = os.environ | {"PYTHON": str(stand_in), "OUT": str(tmp_path / "out")}
    environment.pop("SMALL", None)
    suite = subprocess.run(
        ["bash", str(ROOT / "bench/gpu_suite.sh")], capture_output=True, text=True, env=environment
    )
    assert suite.returncode == 1, suite.stdout + suite.stderr
    assert "installs with RGA_FAST_REQUIRE_EXTENSION=1" in suite.stdout
    assert "failed: install" in suite.stdout
    assert ("not available: " in suite.stdout + suite.stderr) == (status == 0)
