"""What a run shows of itself: its facts before it begins, then one line a log, and a bar where there is a terminal."""

import time
from collections.abc import Mapping
from datetime import timedelta

from rich.console import Console
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..core.progress import ProgressBar
from .health import PREFIX as HEALTH
from .probe import PREFIX as PROBE

# Name of a log entry, what it is called in a line, and its format
STEP_ENTRIES = (
    ("loss", "loss", ".4f"),
    ("learning_rate", "lr", ".1e"),
    ("momentum", "momentum", ".5f"),
    ("encoder_grad_norm", "grad encoder", ".2g"),
    ("predictor_grad_norm", "predictor", ".2g"),
    ("bad_videos", "bad videos", "g"),
)
HEALTH_ENTRIES = (
    ("target_effective_rank", "rank", ".1f"),
    ("target_std", "spread", ".2f"),
    ("target_content_std", "between clips", ".2f"),
    ("fixed_loss_over_mean_target", "loss / mean's", ".2f"),
    ("fixed_loss_over_nearest_token", "loss / nearest's", ".2f"),
)


class ConsoleCallback(TrainerCallback):
    """Shows a run in place of transformers' own bar, which prints raw dictionaries.

    Args:
        console: Where to. On a terminal there is a bar with the time that is left; elsewhere, such as in the log of a
            batch job, only lines.
    """

    def __init__(self, console: Console):
        self.console = console
        self._bar: ProgressBar | None = None
        self._start = self._previous = (0, 0.0)

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

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs,
    ) -> None:
        """Show a line for the loss, and one for measures of health and probes."""
        if not state.is_world_process_zero or not logs:
            return
        place = f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}"
        if "loss" in logs:
            self._show(place, [*format_entries(logs, STEP_ENTRIES), *self._speed(args, state)])
        if measures := format_health(logs):
            self._show(place, ["health", *measures])

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Take the bar away."""
        self.close()

    def close(self) -> None:
        """Take the bar away, also after an error."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self, place: str, entries: list[str]) -> None:
        self.console.print(Text("  ".join([place, *entries])), soft_wrap=True)

    def _speed(self, args: TrainingArguments, state: TrainerState) -> list[str]:
        """Clips per second since the line before, and the time that is left at the pace of the whole session."""
        step, now = state.global_step, time.perf_counter()
        (previous_step, previous_time), (first_step, first_time) = self._previous, self._start
        self._previous = (step, now)
        if step <= previous_step or now <= previous_time:
            return []
        clips = (step - previous_step) * clips_per_step(args) / (now - previous_time)
        left = (state.max_steps - step) * (now - first_time) / (step - first_step)
        return [f"{clips:.1f} clips/s", f"{timedelta(seconds=round(left))} left"]


def clips_per_step(args: TrainingArguments) -> int:
    """Clips of one optimiser step, over all processes."""
    return args.train_batch_size * args.world_size * args.gradient_accumulation_steps


def format_entries(logs: Mapping[str, float], entries: tuple[tuple[str, str, str], ...]) -> list[str]:
    """The entries that a log has, each with its name."""
    return [f"{label} {logs[name]:{form}}" for name, label, form in entries if name in logs]


def format_health(logs: Mapping[str, float]) -> list[str]:
    """The measures of health that a log has, and the accuracies of probes in per cent."""
    measures = {name.removeprefix(HEALTH): value for name, value in logs.items() if name.startswith(HEALTH)}
    shown = format_entries(measures, HEALTH_ENTRIES)
    for name, value in logs.items():
        if name.startswith(PROBE):
            shown.append(f"{name.removeprefix(PROBE).removesuffix('_accuracy')} {100 * value:.0f} %")
    return shown
