"""The terminal: one console for everything that is printed, and progress bars."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

# Texts hold paths, in which [exp1] is no markup and :car: no emoji.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)

Advance = Callable[[int, int], None]  # done, total

QUIET = 30.0


class _TimeLeft(TimeRemainingColumn):
    def render(self, task: Task) -> Text:
        return Text("") if task.fields["note"] else super().render(task) + Text(" left")


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A progress bar; yields `update(done, total=None, note="")`.

    It shows the time left unless there is a note. Outside a terminal a line is printed every
    `QUIET` seconds; the caller prints that all is done.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        _TimeLeft(),
    )
    printed = time.monotonic()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(description, total=total, note="")

        def update(done: int, total: int | None = None, note: str = "") -> None:
            nonlocal printed
            bar.update(task, completed=done, total=total, note=note)
            of = bar.tasks[0].total
            if not console.is_terminal and done != of and time.monotonic() - printed >= QUIET:
                printed = time.monotonic()
                reached = f"{done:,}" if of is None else f"{done:,}/{of:,.0f}"
                console.print(f"{description}  {reached}  {note}".rstrip())

        yield update
