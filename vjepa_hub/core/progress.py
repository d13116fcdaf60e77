"""Progress of long work: a bar with rate and time left on a terminal, a line a minute in the log of a batch job."""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from .import_hooks import run_after_import

Progress = Callable[[str, int, int], None]
"""Called with (what is at work, how much of it is done, of how much)."""

SECONDS_BETWEEN_LINES = 60


def is_first_process() -> bool:
    """Return whether this process reports, by the environment that `torchrun` and `accelerate launch` set."""
    return os.environ.get("RANK", "0") == "0"


def no_progress(what: str, done: int, total: int) -> None:
    """Show nothing."""


class ProgressBar:
    """Shows the progress of the work within a `with` block, in the first process; it is a `Progress`.

    A piece of work with another total, or with less done than before, is a new one, with a rate and time of its own.

    Args:
        console: Where to; by default stderr. Where it is no terminal, there is a line a minute.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.is_shown = is_first_process() and not self.console.quiet
        title = TextColumn("{task.description}", markup=False)
        columns = (title, BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        self._bars = RichProgress(*columns, console=self.console, transient=True, get_time=time.monotonic)
        self._bars.add_task("", total=None)
        self._task = self._bars.tasks[0]
        self._last_line = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how much is done."""
        if not self.is_shown:
            return
        if total != self._task.total or done < self._task.completed:
            self._bars.reset(self._task.id, total=total, completed=done)
        self._bars.update(self._task.id, completed=done, description=what)
        if self.console.is_terminal:
            self._bars.start()  # not before: models are loaded until then, with bars of other libraries
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.console.print(Text(self._line()), soft_wrap=True)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bars.live.is_started:
            self._bars.stop()

    def _line(self) -> str:
        task, left = self._task, self._task.time_remaining
        parts = [f"{task.description}: {task.completed:,.0f} of {task.total:,.0f}", _describe_rate(task.speed)]
        parts += [] if left is None else [f"{timedelta(seconds=round(left))} left"]
        return ", ".join(part for part in parts if part)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Pieces a second, or seconds for a piece."""
        return Text(_describe_rate(task.speed), style="progress.data.speed")


def _describe_rate(speed: float | None) -> str:
    if not speed:
        return ""
    return f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each"


def hide_library_bars() -> None:
    """Keep the bars of transformers and datasets (loading weights, reading tables) out of what a command shows.

    Those of huggingface_hub over its downloads stay. Neither library is imported for this.
    """
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    run_after_import("transformers.utils.logging", _hide_bars_of_transformers)


def _hide_bars_of_transformers() -> None:
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    has_downloads = not are_progress_bars_disabled()
    logging.disable_progress_bar()  # those of huggingface_hub with them
    if has_downloads:
        enable_progress_bars()
