"""Cost of a pretraining run before it starts: tokens, FLOPs, memory and time.

Tokens are counted on masks that are drawn as the run draws them. FLOPs are those of the matrix products, 2 m n k each,
attention included, and are exact; what a kernel computes twice to save memory is not counted. Memory and time are
estimates: `Estimate` says of what.

Letters: D width of the encoder, P of the predictor, N tokens of a clip, K context and M target tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..data.masking import MaskKind, TokenGrid, sample_masks_at
from ..hub.cost import (
    ASSUMED_SHARE,
    best_device,
    bytes_text,
    device_name,
    encoder_flops,
    flops_text,
    layer_bytes,
    layer_flops,
    linear_flops,
    measure_matrix_flops,
    patch_numbers,
    time_text,
)
from ..model.configuration_vjepa import VJEPAConfig
from ..model.modeling_vjepa import VJEPAForPreTraining
from .arguments import CHECKPOINTING
from .recipe import Recipe, accumulation_steps

NUM_MASK_DRAWS = 32
# Bytes of a number. Under autocast the residual stream, the norms' inputs and the loss stay float32.
_FLOAT32, _HALF = 4, 2
PARTS = ("encoder", "predictor", "target_encoder")


@dataclass(frozen=True, kw_only=True)
class MaskTokens:
    """Tokens of a clip under one kind of masks, averaged over draws.

    Attributes:
        context: Tokens that the encoder sees.
        targets: Tokens that the predictor predicts.
    """

    context: float
    targets: float


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """FLOPs of one clip in one training step.

    Attributes:
        target_encoder: Forward pass over all tokens.
        encoder: Forward and backward pass over the context of each kind of masks.
        predictor: Forward and backward pass over context and targets of each kind.
    """

    target_encoder: float
    encoder: float
    predictor: float

    @property
    def total(self) -> float:
        """All three."""
        return self.target_encoder + self.encoder + self.predictor

    def __add__(self, other: "StepFlops") -> "StepFlops":
        return StepFlops(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def __truediv__(self, divisor: float) -> "StepFlops":
        return StepFlops(**{name: value / divisor for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes of one process while it trains, as far as they can be foreseen. The context of the device, what libraries
    take for themselves and batches that are loaded ahead are not among them.

    Attributes:
        weights: Encoder, predictor and target encoder in float32, and the copies that autocast makes.
        gradients: Of encoder and predictor; twice, with several processes (the buckets of DDP).
        optimizer: AdamW's two moments.
        activations: What a batch keeps for the backward pass, with its clips and targets. An estimate.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Cost of a run.

    Attributes:
        num_tokens: Tokens of a clip.
        mask_tokens: For each kind of masks, those that are seen and those that are predicted.
        num_parameters: Of encoder, predictor and target encoder.
        flops_per_clip: Of one training step.
        memory: Of one process.
        batch_size: Clips of a batch of one process.
        clips_per_step: Clips of one optimiser step, over all processes.
        total_steps: Optimiser steps; None where the recipe counts epochs of data that is not known.
        num_processes: Processes that train together, each on a device like this one.
        matrix_flops: Measured FLOPs per second of large matrix products on this device.
        device: That device, in words.
    """

    num_tokens: int
    mask_tokens: tuple[MaskTokens, ...]
    num_parameters: dict[str, int]
    flops_per_clip: StepFlops
    memory: StepMemory
    batch_size: int
    clips_per_step: int
    total_steps: int | None
    num_processes: int
    matrix_flops: float
    device: str

    @property
    def clips_per_second(self) -> float:
        """Over all processes, at `ASSUMED_SHARE` of the measured speed. Decoding video is not looked at."""
        return self.num_processes * self.matrix_flops * ASSUMED_SHARE / self.flops_per_clip.total

    @property
    def total_clips(self) -> int | None:
        """Clips of the whole run."""
        return None if self.total_steps is None else self.total_steps * self.clips_per_step

    @property
    def seconds(self) -> float | None:
        """Time of the whole run."""
        return None if self.total_clips is None else self.total_clips / self.clips_per_second

    def rows(self) -> list[tuple[str, str]]:
        """The estimate as names and texts for a table."""
        flops, memory = self.flops_per_clip, self.memory
        kinds = [
            (f"mask kind {number}", f"{kind.context:,.0f} context, {kind.targets:,.0f} target tokens")
            for number, kind in enumerate(self.mask_tokens)
        ]
        sizes = ", ".join(f"{part} {count / 1e6:,.2f} M" for part, count in self.num_parameters.items())
        parts_of_flops = ", ".join(f"{part} {flops_text(count)}" for part, count in vars(flops).items())
        parts_of_memory = ", ".join(f"{part} {bytes_text(count)}" for part, count in vars(memory).items())
        rows = [
            ("parameters", sizes),
            ("tokens of a clip", f"{self.num_tokens:,}"),
            *kinds,
            ("FLOPs of a clip", f"{flops_text(flops.total)}: {parts_of_flops}"),
            (
                "memory of a process",
                f"{bytes_text(memory.total)}, {self.batch_size} clips a batch: {parts_of_memory}",
            ),
            ("speed", f"{self.clips_per_second:,.2f} clips/s on {self.num_processes} x {self.device}"),
        ]
        return rows + self._rows_of_run()

    def _rows_of_run(self) -> list[tuple[str, str]]:
        if self.total_steps is None or self.total_clips is None or self.seconds is None:
            return [("run", "of as many steps as the data has; set max_steps for its time")]
        return [
            ("run", f"{self.total_steps:,} steps of {self.clips_per_step:,} clips, {self.total_clips:,} clips"),
            ("FLOPs of the run", flops_text(self.total_clips * self.flops_per_clip.total)),
            ("time of the run", time_text(self.seconds)),
        ]

    def describe_assumptions(self) -> str:
        """Sentence on the exact and the assumed numbers."""
        return (
            f"Tokens are the mean of {NUM_MASK_DRAWS} draws; FLOPs count every matrix product. Memory is an estimate "
            "that leaves out what device and libraries take for themselves. Time: large matrix products run at "
            f"{flops_text(self.matrix_flops)}/s here (measured now), of which training is assumed to reach "
            f"{ASSUMED_SHARE:.0%}; decoding of video is not looked at."
        )


def estimate(
    config: VJEPAConfig,
    masks: Sequence[MaskKind],
    *,
    batch_size: int,
    clips_per_step: int,
    total_steps: int | None = None,
    num_processes: int = 1,
    autocast_dtype: torch.dtype | None = None,
    is_checkpointed: bool = False,
    predicts_pixels: bool = False,
    device: str | torch.device = "cpu",
    matrix_flops: float | None = None,
) -> Estimate:
    """Estimate a run.

    Args:
        config: The model.
        masks: Kinds of masks.
        batch_size: Clips of a batch of one process.
        clips_per_step: Clips of one optimiser step, over all processes.
        total_steps: Optimiser steps of the run, where they are known.
        num_processes: Processes that train together.
        autocast_dtype: bfloat16 or float16 under autocast; None: float32.
        is_checkpointed: Whether layers are computed again in the backward pass (gradient checkpointing).
        predicts_pixels: Whether the targets are pixels.
        device: Where the speed of matrix products is measured.
        matrix_flops: That speed in FLOPs per second, if it is known.
    """
    draws = draw_token_counts(config, masks, batch_size)
    options = {"is_checkpointed": is_checkpointed, "predicts_pixels": predicts_pixels}
    flops = [step_flops(config, counts, **options) for counts in draws]
    mean = tuple(
        MaskTokens(
            context=sum(counts[kind][0] for counts in draws) / len(draws),
            targets=sum(counts[kind][1] for counts in draws) / len(draws),
        )
        for kind in range(len(masks))
    )
    parameters = count_parameters(config)
    return Estimate(
        num_tokens=TokenGrid.from_config(config).num_tokens,
        mask_tokens=mean,
        num_parameters=parameters,
        flops_per_clip=sum(flops[1:], flops[0]) / len(flops),
        memory=step_memory(
            config,
            mean,
            batch_size=batch_size,
            num_parameters=parameters,
            num_processes=num_processes,
            is_half=autocast_dtype is not None,
            is_checkpointed=is_checkpointed,
        ),
        batch_size=batch_size,
        clips_per_step=clips_per_step,
        total_steps=total_steps,
        num_processes=num_processes,
        matrix_flops=matrix_flops or measure_matrix_flops(device, autocast_dtype or torch.float32),
        device=device_name(torch.device(device)),
    )


def estimate_recipe(recipe: Recipe, *, num_processes: int = 1, device: str | torch.device | None = None) -> Estimate:
    """Estimate the run of a recipe on this machine.

    Args:
        recipe: The run.
        num_processes: Processes that will train together.
        device: By default the accelerator, if there is one.

    Raises:
        ValueError: The recipe's global batch cannot be made of the processes' batches.
    """
    batch_size = recipe.training.per_device_train_batch_size
    accumulated = recipe.training.gradient_accumulation_steps
    if recipe.training.global_batch_size is not None:
        accumulated = accumulation_steps(
            recipe.training.global_batch_size, batch_size=batch_size, num_processes=num_processes
        )
    formats = {"bf16": torch.bfloat16, "fp16": torch.float16}
    max_steps = recipe.training.max_steps
    return estimate(
        recipe.config(),
        recipe.masks,
        batch_size=batch_size,
        clips_per_step=batch_size * num_processes * accumulated,
        total_steps=max_steps if max_steps > 0 else None,
        num_processes=num_processes,
        autocast_dtype=next((dtype for name, dtype in formats.items() if getattr(recipe.training, name)), None),
        is_checkpointed=bool(getattr(recipe.training, CHECKPOINTING)),
        predicts_pixels=recipe.training.targets == "pixels",
        device=best_device() if device is None else device,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Tokens
# ---------------------------------------------------------------------------------------------------------------------


def draw_token_counts(
    config: VJEPAConfig, masks: Sequence[MaskKind], batch_size: int, *, num_draws: int = NUM_MASK_DRAWS
) -> list[list[tuple[int, int]]]:
    """Context and target tokens of a clip, for each kind of masks in each of the first steps of a run.

    Args:
        config: The model.
        masks: Kinds of masks.
        batch_size: Clips that are cut to one number of tokens.
        num_draws: Steps.
    """
    grid = TokenGrid.from_config(config)
    counts = []
    for step in range(num_draws):
        positions = range(step * batch_size, (step + 1) * batch_size)
        pairs = [sample_masks_at(kind, grid, positions, seed=0, step=step) for kind in masks]
        counts.append([(pair.context_mask.shape[1], pair.target_mask.shape[1]) for pair in pairs])
    return counts


# ---------------------------------------------------------------------------------------------------------------------
# FLOPs
# ---------------------------------------------------------------------------------------------------------------------


def step_flops(
    config: VJEPAConfig,
    token_counts: Sequence[tuple[float, float]],
    *,
    is_checkpointed: bool = False,
    predicts_pixels: bool = False,
) -> StepFlops:
    """FLOPs of one clip in one training step.

    A linear layer and an attention cost in the backward pass twice what they cost forward; the projection of the
    patches once, since pixels take no gradient.

    Args:
        config: The model.
        token_counts: Context and target tokens for each kind of masks.
        is_checkpointed: Whether layers are computed again in the backward pass.
        predicts_pixels: Whether the targets are pixels, for which no target encoder runs.
    """
    width, narrow = config.hidden_size, config.pred_hidden_size
    encoder = predictor = 0.0
    for context, targets in token_counts:
        encoder += 2 * linear_flops(context, patch_numbers(config), width)
        encoder += config.num_hidden_layers * _trained_layer(context, width, config.mlp_ratio, is_checkpointed)
        predictor += 3 * (linear_flops(context, width, narrow) + linear_flops(targets, narrow, width))
        layer = _trained_layer(context + targets, narrow, config.pred_mlp_ratio, is_checkpointed)
        not_going_on = _not_going_on(context, context + targets, narrow, config.pred_mlp_ratio, is_checkpointed)
        predictor += config.pred_num_hidden_layers * layer - not_going_on
        predictor += 3 * linear_flops(targets, width, patch_numbers(config)) if predicts_pixels else 0
    target_encoder = 0.0 if predicts_pixels else encoder_flops(config)
    return StepFlops(target_encoder=target_encoder, encoder=encoder, predictor=predictor)


def _trained_layer(num_tokens: float, width: int, mlp_ratio: float, is_checkpointed: bool) -> float:
    """Forward and backward pass; checkpointed, all but the block's last product is computed again."""
    layer = layer_flops(num_tokens, width, mlp_ratio)
    again = layer - linear_flops(num_tokens, int(width * mlp_ratio), width) if is_checkpointed else 0
    return 3 * layer + again


def _not_going_on(context: float, num_tokens: float, width: int, mlp_ratio: float, is_checkpointed: bool) -> float:
    """Work spared in the predictor's last block: its context is attended to, but has no output of its own."""
    hidden = int(width * mlp_ratio)
    last = linear_flops(context, hidden, width)
    spared = linear_flops(context, width, width) + 2 * 2 * context * num_tokens * width + 2 * last
    return 3 * spared + (spared - last if is_checkpointed else 0)


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


def count_parameters(config: VJEPAConfig) -> dict[str, int]:
    """Parameters of each part of the model that is pretrained; no memory is used for them."""
    with torch.device("meta"):
        model = VJEPAForPreTraining(config)
    return {part: sum(p.numel() for p in model.get_submodule(part).parameters()) for part in PARTS}


def step_memory(
    config: VJEPAConfig,
    mask_tokens: Sequence[MaskTokens],
    *,
    batch_size: int,
    num_parameters: dict[str, int],
    num_processes: int = 1,
    is_half: bool = False,
    is_checkpointed: bool = False,
) -> StepMemory:
    """Bytes of one process while it trains.

    Args:
        config: The model.
        mask_tokens: Tokens of a clip for each kind of masks.
        batch_size: Clips of a batch.
        num_parameters: As `count_parameters` returns them.
        num_processes: Processes that train together.
        is_half: Whether it trains under autocast to 16 bits.
        is_checkpointed: Whether layers are computed again in the backward pass.
    """
    trained = num_parameters["encoder"] + num_parameters["predictor"]
    kept = sum(_kept_bytes(config, tokens, is_half, is_checkpointed) for tokens in mask_tokens)
    clip = _FLOAT32 * config.frames_per_clip * config.in_chans * config.crop_size**2
    return StepMemory(
        weights=_FLOAT32 * sum(num_parameters.values()) + (_HALF * trained if is_half else 0),
        gradients=_FLOAT32 * trained * (1 if num_processes == 1 else 2),
        optimizer=2 * _FLOAT32 * trained,
        activations=batch_size * (clip + max(kept, _target_encoder_bytes(config, is_half))),
    )


def _kept_bytes(config: VJEPAConfig, tokens: MaskTokens, is_half: bool, is_checkpointed: bool) -> float:
    """Activations of one clip under one kind of masks for the backward pass, and the peak of that pass."""
    width, narrow, size = config.hidden_size, config.pred_hidden_size, _HALF if is_half else _FLOAT32
    both = tokens.context + tokens.targets
    encoder_layer = tokens.context * width * layer_bytes(config.mlp_ratio, size)
    predictor_layer = both * narrow * layer_bytes(config.pred_mlp_ratio, size)
    num_layers, num_narrow_layers = config.num_hidden_layers, config.pred_num_hidden_layers
    if is_checkpointed:
        layers = _FLOAT32 * (num_layers * tokens.context * width + num_narrow_layers * both * narrow)
    else:
        layers = num_layers * encoder_layer + num_narrow_layers * predictor_layer
    inputs = size * tokens.context * (patch_numbers(config) + width) + _FLOAT32 * tokens.context * width
    outputs = tokens.targets * (narrow * (_FLOAT32 + size) + width * (2 * _FLOAT32 + size))
    return layers + inputs + outputs + max(encoder_layer, predictor_layer)


def _target_encoder_bytes(config: VJEPAConfig, is_half: bool) -> float:
    """The widest moment of the target encoder's forward pass over one clip, which keeps nothing."""
    size = _HALF if is_half else _FLOAT32
    per_token = config.hidden_size * (2 * _FLOAT32 + (1 + 2 * config.mlp_ratio) * size)
    return TokenGrid.from_config(config).num_tokens * per_token
