"""Signals that end a run: it is saved first, and says how it is continued."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rga_fast.reid.console import console

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Terminated(Exception):
    """The run was stopped by signal `number`, and is saved."""

    def __init__(self, number: int, out: Path) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name}; to continue: {continuation(out)}"
        )
        self.number = number


def continuation(out: Path) -> str:
    """The command that continues the run in `out`."""
    return f"rga-fast train --resume auto --out {shlex.quote(str(out))}"


class Interrupted(Exception):
    """Raised by `Stop` in the middle of whatever runs."""


class Stop:
    """The request to end, by a signal. The first lets the current step be finished and saved; a
    second, or one within `at_once`, raises `Interrupted`."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._at_once = False

    def is_set(self) -> bool:
        """Whether a signal has come."""
        return self.number is not None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it a signal raises `Interrupted`: for work before which the run was saved."""
        self._at_once = True
        try:
            if self.is_set():
                raise Interrupted
            yield
        finally:
            self._at_once = False

    def receive(self, number: int, *_: object) -> None:
        """The handler of the signals."""
        again, self.number = self.is_set(), number
        if number != signal.SIGINT and number != signal.SIGTERM:
            console.quiet = True  # the terminal is gone: printing would fail, and nothing be saved
        if again or self._at_once:
            raise Interrupted


@contextmanager
def stop_signals(out: Path) -> Iterator[Stop]:
    """A `Stop` that Ctrl-C, SIGTERM and SIGHUP set. Signals that are ignored (nohup) stay so.

    Raises:
        Terminated: in place of an `Interrupted` of the body.
    """
    stop, former, quiet = Stop(), {}, console.quiet
    if threading.current_thread() is threading.main_thread():  # no other can handle signals
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                former[number] = signal.signal(number, stop.receive)
    try:
        yield stop
    except Interrupted:
        assert stop.number is not None
        raise Terminated(stop.number, out) from None
    finally:
        console.quiet = quiet
        for number, handler in former.items():
            signal.signal(number, handler)
