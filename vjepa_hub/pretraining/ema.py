"""The target encoder follows the encoder: an exponential moving average, once after each optimiser step."""

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..model.modeling_vjepa import VJEPAForPreTraining
from .schedules import Schedules


class TargetEncoderCallback(TrainerCallback):
    """Calls the model's `update_target_encoder` after each optimiser step, that is once for all accumulated batches.

    `global_step` grows only afterwards, so that it is the number of the step just made, from 0: the momentum's index
    in the released training.

    Args:
        model: The model itself, not what wraps it for several processes.
        schedules: The curves of the run.
    """

    def __init__(self, model: VJEPAForPreTraining, schedules: Schedules):
        self.model, self.schedules = model, schedules

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        """Move the target encoder."""
        self.model.update_target_encoder(self.schedules.momentum_at(state.global_step))
