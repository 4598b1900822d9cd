"""Ctrl-C where nothing is to be saved: one line."""

import os
import signal
import subprocess
import sys
import time

import pytest
from small_runs import run

from rga_fast.reid.synth import dataset as synth_dataset


def interrupted_while(module, *arguments):
    """The command in a process that is interrupted when it imports `module`."""
    code = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"sys.argv[1:] = {list(arguments)!r}\n"
        "import rga_fast_command\n"
        "sys.exit(rga_fast_command.main())\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_ctrl_c_in_the_first_second():
    ended = interrupted_while("torch", "info")
    assert (ended.returncode, ended.stderr) == (130, "rga-fast: interrupted\n")


@pytest.mark.slow
def test_ctrl_c_while_a_verb_is_imported():
    ended = interrupted_while("rga_fast.reid.config", "train")
    assert (ended.returncode, ended.stderr) == (130, "rga-fast: interrupted\n")


def test_ctrl_c_in_synth(tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(synth_dataset, "_draw", interrupt)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert run("synth", tmp_path / "s", "--identities", "3") == 130
    assert capsys.readouterr().err == "rga-fast: interrupted\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ctrl_c_of_a_terminal_in_synth(tmp_path):
    """A terminal interrupts the whole group of processes, those that draw, too."""
    command = [sys.executable, "-m", "rga_fast", "synth", tmp_path / "s", "--identities", "500"]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.jpg")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGINT)
    assert started.communicate(timeout=60)[1] == "rga-fast: interrupted\n"
    assert started.returncode == 130
    assert not list(tmp_path.iterdir())
