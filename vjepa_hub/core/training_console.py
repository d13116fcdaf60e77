"""Console of a training: one line a log, and a bar where there is a terminal."""

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .progress import ProgressBar

Entry = tuple[str, str, str]
"""Name of a log entry, its name in a line, and its format."""


class ConsoleCallback(TrainerCallback):
    """Shows a run in place of transformers' own bar, which prints raw dictionaries.

    Args:
        console: Where to. On a terminal there is a bar with the time that is left; elsewhere, such as in the log of a
            batch job, only lines.
        entries: Entries of a log that are shown. A log that has none of them makes no line.
    """

    def __init__(self, console: Console, entries: Sequence[Entry]):
        self.console, self.entries = console, entries
        self._bar: ProgressBar | None = None
        self._start = self._previous = (0, 0.0)
        self._num_evaluated = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Start the bar and the clock."""
        if not state.is_world_process_zero:
            return
        self._start = self._previous = (state.global_step, time.perf_counter())
        if self.console.is_terminal:
            self._bar = ProgressBar(self.console)
            self._bar("steps", state.global_step, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar("steps", state.global_step, state.max_steps)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs,
    ) -> None:
        """Move the bar over a validation."""
        self._num_evaluated += 1
        if self._bar is not None:
            self._bar("batches of the validation", self._num_evaluated, len(eval_dataloader))

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """End a validation."""
        self._num_evaluated = 0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs,
    ) -> None:
        """Show a line for the entries of a log; for that of a training step also how fast the run is."""
        if shown := format_entries(logs or {}, self.entries):
            self.show(state, [*shown, *(self._speed(args, state) if "loss" in (logs or {}) else ())])

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Take the bar away."""
        self.close()

    def close(self) -> None:
        """Take the bar away, also after an error."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def show(self, state: TrainerState, entries: Sequence[str]) -> None:
        """Print a line with the step, in the first process."""
        if state.is_world_process_zero:
            place = f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}"
            self.console.print(Text("  ".join([place, *entries])), soft_wrap=True)

    def _speed(self, args: TrainingArguments, state: TrainerState) -> list[str]:
        """Clips per second since the line before, and the time that is left at the pace of the whole session."""
        step, now = state.global_step, time.perf_counter()
        (previous_step, previous_time), (first_step, first_time) = self._previous, self._start
        self._previous = (step, now)
        if step <= previous_step or now <= previous_time:
            return []
        clips_per_step = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        clips = (step - previous_step) * clips_per_step / (now - previous_time)
        left = (state.max_steps - step) * (now - first_time) / (step - first_step)
        return [f"{clips:.1f} clips/s", f"{timedelta(seconds=round(left))} left"]


def format_entries(logs: Mapping[str, float], entries: Sequence[Entry]) -> list[str]:
    """The entries that a log has, each with its name."""
    return [f"{label} {logs[name]:{form}}" for name, label, form in entries if name in logs]
