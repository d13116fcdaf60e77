"""Callbacks of the pretraining Trainer: health and the online probe, measured as it trains."""

import logging
from collections.abc import Callable
from typing import cast

from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..model.modeling_vjepa import VJEPAForPreTraining
from .health import SHORTEST_WARMUP, Batch, HealthWarning, diagnose, measure_health, measures_of
from .probe import OnlineProbe
from .sharding import gathered, is_sharded

logger = logging.getLogger(__name__)


class HealthCallback(TrainerCallback):
    """Measures health before the first step, every so many steps and at the end, and warns.

    On several processes the first one measures, or all of them where parameters are sharded; the first one logs. What
    was measured is read back from `state.log_history`, so that a resumed run goes on as if it had not stopped.

    Args:
        batch: Fixed clips and masks, as `measure_health` takes them, or a function that returns them and is called
            once, when they are first needed.
        every: Steps between measurements.
        log: Takes what was measured under "health/..." and "probe/...": `trainer.log`, or what else appends to
            `state.log_history`. It is called on the first process alone, so it must not wait for others.
        probe: Evaluated on the target encoder at the same steps.

    Attributes:
        warnings: What is wrong so far, see `diagnose`; each was logged when it came.

    Raises:
        ValueError: `every` is below 1.
    """

    def __init__(
        self,
        batch: Batch | Callable[[], Batch],
        *,
        every: int,
        log: Callable[[dict[str, float]], None],
        probe: OnlineProbe | None = None,
    ):
        if every < 1:
            raise ValueError(f"every is {every}, but must be at least 1 step; to measure nothing leave it out")
        self._batch, self.every, self.log, self.probe = batch, every, log, probe
        self.warnings: list[HealthWarning] = []
        self._measured_step: int | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Measure the model before its first step; in a resumed run, read what was found before."""
        self.warnings, self._measured_step = [], None
        if state.global_step == 0:
            self._measure(args, state, kwargs["model"])
        elif state.is_world_process_zero:
            self._warn(args, state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Measure every so many steps."""
        if state.global_step % self.every == 0:
            self._measure(args, state, kwargs["model"])

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Measure what came out."""
        self._measure(args, state, kwargs["model"])

    def _measure(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        if self._is_measured(state):
            return
        self._measured_step = state.global_step
        model = cast(VJEPAForPreTraining, extract_model_from_parallel(model, keep_torch_compile=False))
        if not state.is_world_process_zero and not is_sharded(model):
            return
        measures = measure_health(model, self._fixed_batch()).to_logs()
        if self.probe is not None:
            with gathered(model):
                measures |= self.probe.evaluate(model.target_encoder)
        if state.is_world_process_zero:
            self.log(measures)
            self._warn(args, state)

    def _is_measured(self, state: TrainerState) -> bool:
        """Return whether this step was measured, in this process or before a resume. All processes agree on it."""
        if self._measured_step is not None:
            return self._measured_step == state.global_step
        return any(row.get("step") == state.global_step and measures_of(row) for row in state.log_history)

    def _fixed_batch(self) -> Batch:
        if callable(self._batch):
            self._batch = self._batch()
        return self._batch

    def _warn(self, args: TrainingArguments, state: TrainerState) -> None:
        """Log what is newly wrong. Targets start at random features: the first steps count as warm-up in any case."""
        known = {warning.name for warning in self.warnings}
        warmup_steps = max(args.get_warmup_steps(state.max_steps), state.max_steps // 5, SHORTEST_WARMUP)
        self.warnings = diagnose(state.log_history, warmup_steps=warmup_steps)
        for warning in self.warnings:
            if warning.name not in known:
                logger.warning("%s (The rule: %s.)", warning.message, warning.rule)
