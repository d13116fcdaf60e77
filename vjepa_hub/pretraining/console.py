"""Console of a pretraining: its logs, with the measures of health and the accuracies of probes."""

from collections.abc import Mapping

from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from ..core.training_console import ConsoleCallback, format_entries
from .health import PREFIX as HEALTH
from .probe import PREFIX as PROBE

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


class PretrainingConsoleCallback(ConsoleCallback):
    """Shows a run; a log that has measures of health or probes gets a second line.

    Args:
        console: As for `ConsoleCallback`.
    """

    def __init__(self, console: Console):
        super().__init__(console, STEP_ENTRIES)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs,
    ) -> None:
        """Show a line for the loss, and one for measures of health and probes."""
        super().on_log(args, state, control, logs=logs, **kwargs)
        if measures := format_health(logs or {}):
            self.show(state, ["health", *measures])


def format_health(logs: Mapping[str, float]) -> list[str]:
    """The measures of health that a log has, and the accuracies of probes in per cent."""
    measures = {name.removeprefix(HEALTH): value for name, value in logs.items() if name.startswith(HEALTH)}
    shown = format_entries(measures, HEALTH_ENTRIES)
    for name, value in logs.items():
        if name.startswith(PROBE):
            shown.append(f"{name.removeprefix(PROBE).removesuffix('_accuracy')} {100 * value:.0f} %")
    return shown
