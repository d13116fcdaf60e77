"""Settings of the training of heads; nothing heavy is imported for them."""

from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from ..core.settings import Settings

Momentum = Annotated[float, Field(ge=0, lt=1)]


class HeadOptimisation(Settings):
    """Optimisation of heads by AdamW. The defaults are those of the released evaluations on videos.

    Args:
        batch_size: Items of an optimiser step, over all processes.
        num_epochs: Passes over the training set.
        learning_rate: At the end of the warm-up.
        final_learning_rate: At the last step, along a cosine.
        num_warmup_epochs: Epochs, or a part of one, in which the learning rate rises linearly.
        warmup_learning_rate: Where it begins to rise.
        weight_decay: At the first step; none on biases and 1-D parameters, unless `decays_biases`.
        final_weight_decay: At the last step, along a cosine; None: constant.
        decays_biases: Whether biases and 1-D parameters are decayed too, as in the evaluations of V-JEPA 2 and 2.1.
        max_grad_norm: Gradients of a head are clipped to this norm; None: never.
        betas: Of AdamW.
        epsilon: Of AdamW.

    Raises:
        SettingsError: A value out of its range, or a warm-up longer than the run.
    """

    batch_size: PositiveInt = 256
    num_epochs: PositiveInt = 20
    learning_rate: PositiveFloat = 1e-3
    final_learning_rate: NonNegativeFloat = 0.0
    num_warmup_epochs: NonNegativeFloat = 0.0
    warmup_learning_rate: NonNegativeFloat = 0.0
    weight_decay: NonNegativeFloat = 0.01
    final_weight_decay: NonNegativeFloat | None = 1e-6
    decays_biases: bool = False
    max_grad_norm: PositiveFloat | None = 1.0
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    epsilon: PositiveFloat = 1e-8

    @model_validator(mode="after")
    def _require_warmup_within_run(self) -> "HeadOptimisation":
        if self.num_warmup_epochs > self.num_epochs:
            raise ValueError(
                f"num_warmup_epochs is {self.num_warmup_epochs}, but must be at most num_epochs = {self.num_epochs}; "
                "shorten the warm-up or train for longer"
            )
        return self

    @property
    def optimisation(self) -> dict[str, Any]:
        """The values above, without those that a protocol adds."""
        return {name: getattr(self, name) for name in HeadOptimisation.model_fields}
