"""A run that is told to stop finishes its step and saves a checkpoint: Ctrl-C, or SIGTERM of a scheduler."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedRunError(RuntimeError):
    """The run was told to stop, and can be resumed.

    Attributes:
        signal_number: What told it.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class StopOnSignal(TrainerCallback):
    """Within its `with` block a first signal ends the training after the step at work, with a checkpoint.

    A second Ctrl-C stops at once. One signal may come in twice (from the terminal and from a launcher that passes it
    on), and reach the processes of a run during different steps: after each step they agree, over the CPU.

    Attributes:
        signal_number: The signal that came in, or None.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}
        self._group: Any = None

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():  # only there handlers can be set
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal_number is None:
            logger.warning("%s: the run stops after this step, and saves it", signal.Signals(number).name)
        self.signal_number = number

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Open the line on which the processes agree."""
        if args.world_size > 1 and distributed.is_initialized():
            self._group = distributed.new_group(backend="gloo")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Save and stop, if any process was told to."""
        self.signal_number = self._agree()
        if self.signal_number is not None:
            control.should_save = control.should_training_stop = True

    def _agree(self) -> int | None:
        if self._group is None:
            return self.signal_number
        number = torch.tensor(self.signal_number or 0)
        distributed.all_reduce(number, distributed.ReduceOp.MAX, group=self._group)
        return int(number) or None
