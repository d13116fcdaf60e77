"""Arguments of a pretraining run: transformers' `TrainingArguments` with the recipe's own fields.

The defaults are those of the released ViT-L/16 and ViT-H/16 runs, except for the batch size, which depends on the
machine; `recipes/*.yaml` hold whole runs.
"""

import dataclasses
import os
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_type_hints

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, create_model
from transformers import TrainingArguments

from ..core.settings import Probability, Settings
from .schedules import Schedules, rise

# transformers 5.24 renamed it
CHECKPOINTING = (
    "activation_checkpointing"
    if "activation_checkpointing" in {entry.name for entry in dataclasses.fields(TrainingArguments)}
    else "gradient_checkpointing"
)


# Arguments of transformers that a pretraining would take and not use, with the value that stands for not given
_SCHEDULED = "the rate follows start_, final_ and learning_rate (all equal: constant), or optimizers=(own, own)"
_WITHOUT_USE: dict[str, tuple[Any, str]] = {
    "lr_scheduler_type": ("cosine", _SCHEDULED),
    "lr_scheduler_kwargs": (None, _SCHEDULED),
    "label_smoothing_factor": (0.0, "there are no labels"),
    "neftune_noise_alpha": (None, "there are no word embeddings to put noise on"),
    "use_liger_kernel": (False, "it has kernels for language models alone"),
}


@dataclass
class VJEPATrainingArguments(TrainingArguments):
    """Arguments of `VJEPATrainer`.

    Args:
        start_learning_rate: Learning rate at the beginning of the warm-up.
        learning_rate: Learning rate at the end of the warm-up.
        final_learning_rate: Where the decay after the warm-up leads.
        lr_decay: Form of that decay: cosine, or the line of V-JEPA 2's and 2.1's cooldown.
        warmup_steps: Steps of the warm-up; below 1, a share of all steps.
        weight_decay: Weight decay at the first step; biases and 1-D parameters have none.
        final_weight_decay: Where its cosine leads.
        momentum: EMA momentum at the first step.
        final_momentum: Where its line leads.
        schedule_stretch: The curves are laid out for so many times the run's steps.
        max_grad_norm: Largest gradient norm of the encoder, and of the predictor; 0 never clips.
        clip_after_steps: The first step, from 0, that is clipped. None: one epoch after the end of the warm-up, as in
            the release (41 x 300).
        steps_per_epoch: Optimiser steps that are called an epoch. None: one pass over the data. The release has 300.
        initial_checkpoint: Weights, and optimiser state where it has one, that a new run begins with: a checkpoint
            folder of a run, or a model as `load` takes it. The schedules begin anew; clip length and crop may differ.
        context_loss_weight: Weight of the loss at the context tokens, for models that predict them (V-JEPA 2.1; the
            release has 0.5).
        image_context_loss_weight: The same in batches of images. None: `context_loss_weight`.
        context_loss_warmup_start: The step, from 0, from which that weight rises linearly from 0.
        context_loss_warmup_end: The step at which it is whole.
        context_loss_by_distance: Divide the error of each context token by the square root of its distance to the
            nearest target, as in the release's first phase; its cooldown does not.
        objective: l1 (the paper), l2 or smooth_l1, between predictions and targets.
        targets: features of the target encoder (the paper), or normalised pixels of the patches, its baseline.
        resize: Where cut-out frames are resized: in the data loading worker (rounded to uint8), on the device, or
            auto: in the worker if the device is the CPU.
        max_bad_share: The run stops when a larger share of the tried videos cannot be read.
        batch_timeout: Seconds to wait for a batch of the workers before the run stops, beside those in which silent
            videos are given up; 0 waits for ever.
        health_steps: Steps between two measurements of health; 0: none.
        health_batch_size: Clips of the fixed batch that health is measured on, at least 2; a small data set gives
            several of a video.
        probe: Online probe on labelled clips: none, knn, attentive, or average (pooling in place of attention).
        probe_clips: Clips that the online probe is fitted on, and as many to test it.
        report: Write a page of plots at the end of the run.
    """

    start_learning_rate: NonNegativeFloat = 2e-4
    learning_rate: NonNegativeFloat = 6.25e-4
    final_learning_rate: NonNegativeFloat = 1e-6
    lr_decay: Literal["cosine", "linear"] = "cosine"
    warmup_steps: NonNegativeInt | NonNegativeFloat = 0.1
    weight_decay: NonNegativeFloat = 0.04
    final_weight_decay: NonNegativeFloat = 0.4
    momentum: Probability = 0.998
    final_momentum: Probability = 1.0
    schedule_stretch: Annotated[float, Field(ge=1)] = 1.25
    max_grad_norm: NonNegativeFloat = 10.0
    clip_after_steps: NonNegativeInt | None = None
    steps_per_epoch: PositiveInt | None = None
    initial_checkpoint: str | None = None
    context_loss_weight: NonNegativeFloat = 0.0
    image_context_loss_weight: NonNegativeFloat | None = None
    context_loss_warmup_start: NonNegativeInt = 0
    context_loss_warmup_end: NonNegativeInt = 0
    context_loss_by_distance: bool = True
    objective: Literal["l1", "l2", "smooth_l1"] = "l1"
    targets: Literal["features", "pixels"] = "features"
    resize: Literal["auto", "worker", "device"] = "auto"
    max_bad_share: Probability = 0.05
    batch_timeout: NonNegativeFloat = 600.0
    health_steps: NonNegativeInt = 100
    health_batch_size: Annotated[int, Field(ge=2)] = 16
    probe: Literal["none", "knn", "attentive", "average"] = "none"
    probe_clips: PositiveInt = 256
    report: bool = True

    # Defaults of transformers that fight the recipe
    lr_scheduler_type: str = "cosine"
    remove_unused_columns: bool = False  # would drop what the data sets hand to the model by way of the collator
    logging_nan_inf_filter: bool = False  # would replace a NaN in the log, and wait for the device in every step
    ddp_broadcast_buffers: bool | None = False  # position tables never change
    ddp_find_unused_parameters: bool | None = False  # there are none
    prediction_loss_only: bool = True
    save_total_limit: int | None = 2
    logging_steps: float = 10

    def __post_init__(self) -> None:
        self._refuse_deepspeed()  # before transformers asks for its package
        if not torch.accelerator.is_available() and "ACCELERATE_TORCH_DEVICE" not in os.environ:
            # Otherwise transformers refuses bfloat16, and takes several processes for one each
            self.use_cpu = True
        super().__post_init__()
        _AddedArguments(**{name: getattr(self, name) for name in _AddedArguments.model_fields})
        self._refuse_what_fights_the_recipe()
        if getattr(self, CHECKPOINTING) and not getattr(self, f"{CHECKPOINTING}_kwargs"):
            # Reentrant checkpoints mark a parameter ready twice under DDP: the encoder runs once for each mask kind
            setattr(self, f"{CHECKPOINTING}_kwargs", {"use_reentrant": False})

    @property
    def data_draw_seed(self) -> int:
        """Seed of all draws of order, clips, crops and masks."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def clips_per_step(self) -> int:
        """Clips of one optimiser step: batch size times devices times processes times accumulated batches."""
        return self.train_batch_size * self.world_size * self.gradient_accumulation_steps

    def schedules(self, total_steps: int) -> Schedules:
        """The curves of a run of `total_steps` optimiser steps."""
        return Schedules(
            total_steps=total_steps,
            warmup_steps=self.get_warmup_steps(total_steps),
            start_learning_rate=self.start_learning_rate,
            learning_rate=self.learning_rate,
            final_learning_rate=self.final_learning_rate,
            weight_decay=self.weight_decay,
            final_weight_decay=self.final_weight_decay,
            momentum=self.momentum,
            final_momentum=self.final_momentum,
            stretch=self.schedule_stretch,
            lr_decay=self.lr_decay,
        )

    def context_loss_weight_at(self, step: int, *, is_image: bool = False) -> float:
        """Weight of the loss at the context tokens in the optimiser step `step`, from 0."""
        weight = self.context_loss_weight
        if is_image and self.image_context_loss_weight is not None:
            weight = self.image_context_loss_weight
        return weight * rise(step, start=self.context_loss_warmup_start, end=self.context_loss_warmup_end)

    def first_clipped_step(self, total_steps: int, steps_per_epoch: int) -> int:
        """The first step, from 0, whose gradients are clipped."""
        if self.clip_after_steps is not None:
            return self.clip_after_steps
        return self.get_warmup_steps(total_steps) + steps_per_epoch

    def _refuse_deepspeed(self) -> None:
        if self.deepspeed is not None or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
            raise ValueError(
                "DeepSpeed was asked for, but it clips all gradients by one norm and keeps its own copy of the "
                "weights, which the target encoder cannot follow; use DDP, or FSDP2 for models that do not fit"
            )

    def _refuse_what_fights_the_recipe(self) -> None:
        for name, (not_given, reason) in _WITHOUT_USE.items():
            if (value := getattr(self, name) or None) != (not_given or None):
                shown = getattr(value, "value", value)  # of an enumeration
                raise ValueError(f"{name} is '{shown}', but a pretraining does not use it: {reason}; leave it out")
        if self.train_sampling_strategy not in ("random", "sequential"):
            raise ValueError(
                f"train_sampling_strategy is '{self.train_sampling_strategy}', but clips have one length; give random "
                "or sequential"
            )
        if self.load_best_model_at_end or str(self.save_strategy) == "best":
            raise ValueError(
                "load_best_model_at_end and save_strategy='best' choose by the loss, which falls in a collapse: save "
                "by steps, and choose by the health measures or a probe"
            )
        if self.context_loss_warmup_start > self.context_loss_warmup_end:
            raise ValueError(
                f"context_loss_warmup_start is {self.context_loss_warmup_start} and context_loss_warmup_end is "
                f"{self.context_loss_warmup_end}, but a rise cannot end before it starts; raise the end"
            )
        if self.auto_find_batch_size:
            raise ValueError(
                "auto_find_batch_size changes the batch while the run goes on, and with it masks and schedules; use "
                "`vjepa-hub pretrain --estimate` to find one that fits"
            )
        wants_fsdp = bool(self.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        if wants_fsdp and self.device.type == "cpu":
            raise ValueError(
                "FSDP was asked for on the CPU, where accelerate would train with DDP without a word; leave it out, "
                "or shard the model yourself with vjepa_hub.pretraining.sharding.shard_model"
            )


_HINTS = get_type_hints(VJEPATrainingArguments, include_extras=True)
_ADDED: dict[str, Any] = {
    name: (_HINTS[name], getattr(VJEPATrainingArguments, name)) for name in VJEPATrainingArguments.__annotations__
}
_AddedArguments = create_model("PretrainingArguments", __base__=Settings, **_ADDED)
