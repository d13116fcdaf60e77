"""What the commands share: usage errors, progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn what the library says of wrong options into a usage message without a traceback, exit code 2."""
    try:
        yield
    except KeyError as error:
        raise typer.BadParameter(str(error.args[0])) from error
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error


class Rate(ProgressColumn):
    """Steps or videos per second."""

    def render(self, task: Task) -> Text:
        """The rate as text."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


def is_first() -> bool:
    """Return whether this process is the one that reports."""
    from ..evaluation.processes import join_processes

    return join_processes().is_main_process


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr with the time that is left, in the first process."""
    with Progress(*columns(), console=Console(stderr=True), disable=not is_first()) as bars:
        bar = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


def columns() -> tuple[ProgressColumn, ...]:
    """Columns of a progress bar: title, bar, count, rate, time left."""
    description = TextColumn("{task.description}", markup=False)
    return description, BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn()
