"""The folder of a run: one run at a time, with and without locks, and names that are free."""

import contextlib
import errno
import json
import os
import platform

import processes
import pytest

from rga_fast.reid.training import folder
from rga_fast.reid.training.folder import run_folder


def tries_to_enter(out) -> int:
    """In another process: 3 if the folder is occupied."""
    try:
        with run_folder(out):
            return 0
    except FileExistsError:
        return 3


def test_a_second_run_is_refused_by_name(tmp_path):
    out = tmp_path / "run"
    with run_folder(out):
        (out / "config.yaml").touch()
        with pytest.raises(FileExistsError, match=f"another run is in .*process {os.getpid()} on"):
            run_folder(out).__enter__()
        with pytest.raises(FileExistsError):  # by another path
            run_folder(tmp_path / "." / "nothing" / ".." / "run").__enter__()
        other = processes.start(tries_to_enter, out)
        other.join()
        assert other.exitcode == 3
        assert sorted(path.name for path in out.iterdir()) == [
            *("checkpoints", "config.yaml", "run.lock")
        ]
    assert [path.name for path in out.iterdir()] == ["config.yaml"]
    assert tries_to_enter(out) == 0


@pytest.fixture
def without_locks(monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder.fcntl, "lockf", no_locks)


def test_a_file_system_without_locks(tmp_path, without_locks):
    out = tmp_path / "run"
    with run_folder(out):
        assert [path.name for path in out.iterdir() if path.is_file()] == ["run.owner"]
        folder._held.clear()  # as another process sees it
        with pytest.raises(FileExistsError, match=r"if that process is gone, remove .*run.owner"):
            run_folder(out).__enter__()
    assert not out.exists()
    for owner, entered in (
        ({"process": 2**22 + 1, "host": platform.node()}, True),  # more than there can be
        ({"process": os.getpid(), "host": platform.node()}, False),
        ({"process": 2**22 + 1, "host": "elsewhere"}, False),
    ):
        out.mkdir()
        (out / "run.owner").write_text(json.dumps(owner))
        assert (tries_to_enter(out) == 0) is entered
        if out.exists():
            (out / "run.owner").unlink(missing_ok=True)
            out.rmdir()


def test_new_folders_never_coincide(tmp_path):
    name = tmp_path / "runs" / "20260101-000000-small"
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(run_folder(name, fresh=True)).name for _ in range(3)]
        assert found == [name.name, f"{name.name}-2", f"{name.name}-3"]
    assert not (tmp_path / "runs").exists()  # nothing was written


def test_what_was_there_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    with run_folder(tmp_path / "mine"):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
    with run_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "config.yaml").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["config.yaml"]
