"""The folder of a run: creation, and the lock that keeps a second run out of it."""

from __future__ import annotations

import errno
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CONFIG, METRICS, SUMMARY, CHECKPOINTS = (
    *("config.yaml", "metrics.jsonl", "summary.json"),
    "checkpoints",
)
LOCK = "run.lock"
OWNER = "run.owner"  # in place of the lock on file systems that have none

# What a file system says that has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

# Folders of the runs in this process: the lock excludes other processes only.
_held: set[str] = set()


def holds_run(folder: Path) -> bool:
    """Whether a run has left anything in `folder` that a new one would overwrite: rows of metrics
    or a checkpoint. Its configuration alone is no loss."""
    metrics = folder / METRICS
    recorded = metrics.exists() and metrics.stat().st_size > 0
    return recorded or any((folder / CHECKPOINTS).glob("*.pt"))


@contextmanager
def run_folder(out: Path, *, fresh: bool = False) -> Iterator[Path]:
    """Creates the folder of a run and holds its lock during the body. Yields its path.

    If the body fails before it has written anything, no empty folder remains.

    Args:
        fresh: if `out` exists, the first free one of `out-2`, `out-3`, ... is taken.

    Raises:
        FileExistsError: if another run is in the folder at present.
        OSError: if it cannot be created or written.
    """
    out, created = _create(out, fresh)
    try:
        with _locked(out):
            if not (out / CHECKPOINTS).exists():
                (out / CHECKPOINTS).mkdir()
                created.insert(0, out / CHECKPOINTS)
            yield out
    finally:
        for folder in created:  # by this run: another may be waiting to fill its own
            with suppress(OSError):  # not empty
                folder.rmdir()


def _create(out: Path, fresh: bool) -> tuple[Path, list[Path]]:
    created = [folder for folder in (out, *out.parents) if not folder.exists()]
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(out))
    if not fresh:
        out.mkdir(parents=True, exist_ok=True)
        return out, created
    out.parent.mkdir(parents=True, exist_ok=True)
    name, number = out.name, 1
    while True:
        try:
            out.mkdir()  # of several that begin at once, one creates it
        except FileExistsError:
            number += 1
            out = out.with_name(f"{name}-{number}")
        else:
            return out, [out, *(folder for folder in created if folder != out)]


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    key = os.path.realpath(out)
    if key in _held:
        raise _occupied(out, {"process": os.getpid(), "host": platform.node()})
    path = out / LOCK
    file = _open_locked(path)
    if file is None:
        path.unlink(missing_ok=True)
        path = out / OWNER
        _mark(path)
    _held.add(key)
    try:
        yield
    finally:
        _held.discard(key)
        path.unlink(missing_ok=True)  # while the lock is held
        if file is not None:
            file.close()


def _open_locked(path: Path) -> IO[str] | None:
    """The lock file, locked and with the owner in it; None if the file system has no locks.

    The system releases the lock with the process, however that ends, and workers do not inherit it.
    """
    if fcntl is None:
        return None
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(file, path):  # its owner has just removed it
                file.close()
                continue
        except OSError as error:
            file.seek(0)
            text = file.read()
            file.close()
            if error.errno in _NO_LOCKS:
                return None
            raise _occupied(path.parent, _parsed(text)) from None
        file.truncate(0)
        file.write(_owner())
        file.flush()
        return file


def _mark(path: Path) -> None:
    """Creates a file that names the owner. One whose process is gone is replaced."""
    while True:
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(_owner())
            return
        except FileExistsError:
            owner = _parsed(path.read_text(encoding="utf-8"))
            if not _gone(owner):
                raise _occupied(path.parent, owner, path) from None
            path.unlink(missing_ok=True)


def _owner() -> str:
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    return json.dumps({"process": os.getpid(), "host": platform.node(), "since": now})


def _parsed(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except ValueError:  # it is being written
        return {}


def _gone(owner: dict[str, Any]) -> bool:
    """Whether the owner ran on this machine and does no more."""
    if owner.get("host") != platform.node() or os.name != "posix":
        return False
    try:
        os.kill(int(owner["process"]), 0)  # asks only
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _occupied(folder: Path, owner: dict[str, Any], mark: Path | None = None) -> FileExistsError:
    who = f"process {owner.get('process', '?')} on {owner.get('host', '?')}"
    if "since" in owner:
        who += f" since {owner['since']}"
    way_out = "wait for its end, or choose another --out"
    if mark is not None:
        way_out += f"; if that process is gone, remove {mark}"
    return FileExistsError(f"{folder}: another run is in this folder ({who}); {way_out}")
