"""One atomic write: the old file or the new one, and nothing else, whatever happens."""

import errno
import os
from pathlib import Path

import pytest

from rga_fast.reid.files import (
    duration_text,
    named_errors,
    size_text,
    user_cache,
    write_file,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "content", ["grün\n", "grün\n".encode(), lambda path: path.write_bytes("grün\n".encode())]
)
def test_text_bytes_and_functions(content, tmp_path):
    target = tmp_path / "file.txt"
    for _ in range(2):
        write_file(target, content)
        assert target.read_bytes() == b"gr\xc3\xbcn\n"
        assert names(tmp_path) == ["file.txt"]


def test_the_previous_file_is_kept(tmp_path):
    target, previous = tmp_path / "last", tmp_path / "previous"
    for text in ("1", "2", "3"):
        write_file(target, text, previous=previous)
    assert (target.read_text(), previous.read_text()) == ("3", "2")
    assert names(tmp_path) == ["last", "previous"]


@pytest.mark.parametrize("moment", ["content", "os.fsync", "pathlib.Path.replace"])
def test_a_failure_changes_nothing(moment, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    def half(path: Path) -> None:
        path.write_text("ne")
        interrupted()

    write_file(tmp_path / "file", "old")
    if moment != "content":
        monkeypatch.setattr(moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "file", half if moment == "content" else "new")
    monkeypatch.undo()
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_content_is_on_disk_before_it_has_the_name(tmp_path, monkeypatch):
    calls = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("sync"), sync(file)))
    monkeypatch.setattr(
        Path, "replace", lambda self, other: (calls.append("rename"), replace(self, other))
    )
    write_file(tmp_path / "file", "text")
    assert calls == ["sync", "rename"]


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="needs /dev/null")
def test_devices_are_written_directly():
    write_file("/dev/null", "text")
    assert not Path("/dev/null").is_file()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        write_file(tmp_path / "missing" / "file", "text")
    assert "missing" in error.value.filename


def test_a_full_disk_is_told_with_file_and_size(tmp_path):
    with (
        pytest.raises(OSError, match=r"2.0 MB needed, .* free: '.*rows'"),
        named_errors(tmp_path / "rows", 2_000_000),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError) as error, named_errors(tmp_path / "rows"):
        raise PermissionError(errno.EACCES, "Permission denied", "other")
    assert (error.value.strerror, error.value.filename) == ("Permission denied", "other")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (7261, "2:01:01"), (3.1 * 86400, "3.1 days")]
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0.0 MB"), (3_440_000, "3.4 MB"), (12e6, "12 MB"), (1.5e9, "1.50 GB")]
)
def test_sizes(nbytes, text):
    assert size_text(int(nbytes)) == text


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "rga_fast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache() == Path.home() / ".cache" / "rga_fast"
