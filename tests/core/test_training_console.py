"""Console of a training: lines of its logs, and a bar on a terminal."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState

from vjepa_hub.core.training_console import ConsoleCallback

ENTRIES = (("loss", "loss", ".2f"), ("eval_top1", "top-1", ".1%"))
ARGS = SimpleNamespace(train_batch_size=4, world_size=2, gradient_accumulation_steps=1)


def show_run(console: Console, *, is_first: bool = True) -> str:
    """Text that is shown of two steps, each with its log, and of a validation."""
    state = TrainerState(max_steps=20, is_world_process_zero=is_first)
    callback, control = ConsoleCallback(console, ENTRIES), TrainerControl()
    callback.on_train_begin(ARGS, state, control)
    for state.global_step in (1, 2):
        callback.on_step_end(ARGS, state, control)
        callback.on_log(ARGS, state, control, logs={"loss": 1.5 / state.global_step, "epoch": 0.5})
    callback.on_prediction_step(ARGS, state, control, eval_dataloader=range(30))
    callback.on_evaluate(ARGS, state, control)
    callback.on_log(ARGS, state, control, logs={"eval_top1": 0.25})
    callback.on_log(ARGS, state, control, logs={"train_runtime": 1.0})
    callback.on_train_end(ARGS, state, control)
    return console.file.getvalue()


def test_each_log_is_a_line_with_its_entries_the_speed_and_the_time_left():
    first, second, validation = show_run(Console(file=io.StringIO(), width=200)).splitlines()
    assert first.startswith("step  1/20  loss 1.50  ")
    assert second.startswith("step  2/20  loss 0.75  ")
    assert all("clips/s" in line and line.endswith("left") for line in (first, second))
    assert validation == "step  2/20  top-1 25.0%"


@pytest.mark.parametrize("words", ["steps", "2/20", "batches of the validation", "1/30"])
def test_terminal_gets_a_bar_over_steps_and_validation(words):
    assert words in show_run(Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None))


def test_other_processes_show_nothing():
    assert show_run(Console(file=io.StringIO()), is_first=False) == ""
