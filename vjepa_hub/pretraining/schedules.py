"""Learning rate, weight decay and EMA momentum as functions of the step; nothing here counts for itself.

The released training stretches its curves: they are laid out for `schedule_stretch` = 1.25 times the steps of the run,
which so ends at four fifths of them. Learning rate and weight decay take the whole number of steps below that, the
momentum takes it unrounded.
"""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Schedules:
    """The three curves of one run (Bardes et al. 2024, appendix on pretraining; the released configurations).

    Args:
        total_steps: Optimiser steps of the run.
        warmup_steps: Steps of linear warm-up of the learning rate.
        start_learning_rate: Learning rate at step 0 of the warm-up.
        learning_rate: Learning rate at the end of the warm-up.
        final_learning_rate: Learning rate at the end of the stretched curve.
        weight_decay: Weight decay at step 0.
        final_weight_decay: Weight decay at the end of the stretched curve.
        momentum: EMA momentum at step 0.
        final_momentum: EMA momentum at the end of the stretched curve.
        stretch: Length of the curves over `total_steps`, at least 1.
        lr_decay: Form of the learning rate after the warm-up: half a cosine wave, or the line of the release's
            cooldown of V-JEPA 2 and 2.1.

    Raises:
        ValueError: A number lies outside its range; the message names it.
    """

    total_steps: int
    warmup_steps: int
    start_learning_rate: float
    learning_rate: float
    final_learning_rate: float
    weight_decay: float
    final_weight_decay: float
    momentum: float
    final_momentum: float
    stretch: float = 1.25
    lr_decay: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self) -> None:
        if self.total_steps < 1:
            raise ValueError(f"total_steps is {self.total_steps}, but a run has at least one step")
        if not 1 <= self.stretch < math.inf:
            raise ValueError(f"schedule_stretch is {self.stretch}, but must be 1 or more; the release has 1.25")
        if not 0 <= self.warmup_steps <= self.stretched_steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}, but must lie between 0 and the {self.stretched_steps} steps of "
                "the stretched curve; shorten the warm-up or train for longer"
            )

    @property
    def stretched_steps(self) -> int:
        """Length of the curves of learning rate and weight decay."""
        return int(self.stretch * self.total_steps)

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of the optimiser step `step`, from 0; as released, the curve is read one step ahead."""
        step, warmup_steps, peak = step + 1, self.warmup_steps, self.learning_rate
        if step < warmup_steps:
            return linear(step, total_steps=warmup_steps, initial=self.start_learning_rate, final=peak)
        decay, decay_steps = linear if self.lr_decay == "linear" else cosine, self.stretched_steps - warmup_steps
        return decay(step - warmup_steps, total_steps=decay_steps, initial=peak, final=self.final_learning_rate)

    def weight_decay_at(self, step: int) -> float:
        """Weight decay of the optimiser step `step`, from 0; as released, the curve is read one step ahead."""
        return cosine(
            step + 1, total_steps=self.stretched_steps, initial=self.weight_decay, final=self.final_weight_decay
        )

    def momentum_at(self, step: int) -> float:
        """EMA momentum of the update that follows the optimiser step `step`, from 0."""
        return linear(
            step, total_steps=self.stretch * self.total_steps, initial=self.momentum, final=self.final_momentum
        )


def linear(step: int, *, total_steps: float, initial: float, final: float) -> float:
    """A straight line from `initial` at step 0 to `final` at `total_steps`, and `final` from there on."""
    return initial + (final - initial) * min(step / max(total_steps, 1), 1.0)


def cosine(step: int, *, total_steps: int, initial: float, final: float) -> float:
    """Half a cosine wave from `initial` at step 0 to `final` at `total_steps`, and `final` from there on."""
    progress = min(step / max(total_steps, 1), 1.0)
    return final + (initial - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def rise(step: int, *, start: int, end: int) -> float:
    """Share in [0, 1] that rises linearly from 0 at step `start` to 1 at `end`, and at once where they are equal."""
    return min(max((step - start) / (end - start), 0.0), 1.0) if end > start else float(step >= start)


def half_life(momentum: float) -> float:
    """Updates after which half of what the target encoder was is gone: `log(1 / 2) / log(momentum)`.

    Args:
        momentum: EMA momentum in [0, 1]; 1 never forgets.
    """
    if not 0 < momentum < 1:
        return math.inf if momentum == 1 else 0.0
    return math.log(0.5) / math.log(momentum)
