"""Files: written atomically, sizes and times in words, and the user's cache folder."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)  # what writing to such a place gives

Content = str | bytes | memoryview | Callable[[Path], object]


def write_file(
    path: str | os.PathLike[str], content: Content, *, previous: Path | None = None
) -> None:
    """Writes a file atomically: a reader, or a crash at any moment, meets the old file or the new
    one, never a part of it.

    The content goes to `<path>.partial` in the same folder, is synced to disk, and takes the name
    `path`. Anything but a regular file, such as /dev/stdout, is written directly.

    Args:
        path: the file; its folder exists.
        content: text (written as UTF-8), bytes, or a function that writes them to the path that it
            is given.
        previous: the file that was at `path` is kept under this name.

    Raises:
        OSError: if it cannot be written; whatever `content` raises. `path` is unchanged then, and
            nothing else is left.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        _write(path, content)
        return
    partial = path.with_name(f"{path.name}.partial")
    size = len(content.encode("utf-8")) if isinstance(content, str) else None
    if isinstance(content, bytes | memoryview):
        size = len(content)
    try:
        with named_errors(path, size):
            partial.touch()
            mode = (
                partial.stat().st_mode
            )  # by the umask; safetensors would keep others from reading
            _write(partial, content)
            partial.chmod(mode)
            with partial.open("r+b") as file:
                os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def check_outputs(paths: Sequence[Path]) -> None:
    """Refuses files that could not be written, before the work for them begins.

    Raises:
        OSError: if a folder is missing or read-only, or a path is a folder.
        ValueError: if two of them are the same file.
    """
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(f"{path}: expected the name of a file, this is a folder")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
        if path.exists() and not path.is_file():
            continue  # a device
        if sum(path.resolve() == other.resolve() for other in paths) > 1:
            raise ValueError(f"{path}: given twice")
        partial = path.with_name(f"{path.name}.partial")
        try:
            partial.touch()
        except OSError as error:
            raise type(error)(error.errno, error.strerror, str(path)) from None
        partial.unlink()


def json_text(value: Any) -> str:
    """Indented JSON; ValueError for NaN and infinity, which JSON does not have."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def _write(path: Path, content: Content) -> None:
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def user_path(path: str | os.PathLike[str]) -> Path:
    """`path` with `~` at its start replaced: shells do not do that within YAML, `field=~/x` and
    `--option=~/x`."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no home folder
        return Path(path)


def user_cache() -> Path:
    """The folder for files that can be recomputed: `rga_fast` in `$XDG_CACHE_HOME` or `~/.cache`,
    on Windows in `%LOCALAPPDATA%`. Without a home folder it is the user's own in that for temporary
    files."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
    else:
        base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "rga_fast"
    try:
        return Path.home() / ".cache" / "rga_fast"
    except RuntimeError:  # containers run under numbers that no user has
        return Path(tempfile.gettempdir()) / f"rga_fast-{getattr(os, 'getuid', int)()}"


def size_text(nbytes: int) -> str:
    """`nbytes` in GB or MB, such as "1.50 GB", "12 MB" and "3.4 MB"."""
    if nbytes >= 1e9:
        return f"{nbytes / 1e9:.2f} GB"
    return f"{nbytes / 1e6:.{0 if nbytes >= 1e7 else 1}f} MB"


def duration_text(seconds: float) -> str:
    """ "0:42", "1:02:03", "3.1 days"."""
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.1f} days"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


@contextmanager
def named_errors(path: str | os.PathLike[str], nbytes: int | None = None) -> Iterator[None]:
    """An OSError of the body that names no file is raised with `path`; that of a full disk with the
    size, if it is known, and what is free."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        text = error.strerror
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = _free(Path(path).parent)
            needed = "" if nbytes is None else f", {size_text(nbytes)} needed"
            text = f"{text}{needed}{free}"
        raise type(error)(error.errno, text, error.filename or os.fspath(path)) from error


def _free(folder: Path) -> str:
    try:
        return f", {size_text(shutil.disk_usage(folder).free)} free"
    except OSError:
        return ""
