"""How a frozen encoder is judged on localising actions in AVA v2.2, and where each number of that comes from.

The paper (Bardes et al. 2024, arXiv 2404.08471, appendix D.2 and its table of frozen detection) gives the layers and
the optimisation, and for the rest follows Feichtenhofer et al. 2021 (arXiv 2104.14558), who follow SlowFast
(Feichtenhofer et al. 2019, arXiv 1812.03982). No code of this evaluation was released with the weights. What none of
the three states is this package's choice, and `sources` calls it "ours".
"""

from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from ...core.settings import Probability
from ...heads.optimisation import HeadOptimisation

_PAPER = "Bardes et al. 2024, appendix D.2"
_SLOWFAST = "Feichtenhofer et al. 2019 (SlowFast), whose protocol the paper follows"
_OURS = "ours"

PUBLISHED_RESULTS = {"vjepa-vitl16": 0.256, "vjepa-vith16": 0.258, "vjepa-vith16-384": 0.250}
"""Mean average precision on the validation set of AVA, table 6 of the paper, by the registry's names."""

_SOURCES = {
    "frames_per_clip": _PAPER,
    "frame_step": _PAPER,
    "clip_fps": f"{_PAPER}: the clips are of 30 frames per second; found by the times of the frames, ours",
    "num_classes": "AVA v2.2",
    "layers": f"{_PAPER}: 18, 20, 22, 24 of ViT-L and 26, 28, 30, 32 of ViT-H",
    "num_layers": f"{_PAPER}: the last layer and three before it",
    "layer_distance": f"{_PAPER}: every second layer",
    "proposal_score_threshold": _SLOWFAST,
    "proposal_min_overlap": "the released training lists of SlowFast (proposals of an overlap of 0.9)",
    "roi_size": f"{_SLOWFAST}, for the pooling; the size is ours",
    "flip_probability": f"{_OURS}; the paper states no augmentation",
    "batch_size": _PAPER,
    "num_epochs": _PAPER,
    "num_warmup_epochs": f"{_PAPER}, whose table also has 'warmup steps 1', which nothing explains",
    "learning_rate": _PAPER,
    "warmup_learning_rate": _PAPER,
    "final_learning_rate": f"{_PAPER}; that the curve is a cosine is ours",
    "weight_decay": f"{_PAPER}; that biases have none is ours",
    "decays_biases": _OURS,
    "final_weight_decay": f"{_PAPER}: constant",
    "max_grad_norm": f"{_OURS}; the paper states no clipping",
    "betas": f"{_PAPER} gives 0.9; the second is torch's default",
    "epsilon": _PAPER,
    "metric": "the official evaluation of AVA",
    "resizing": f"{_OURS}: the whole frame to the square of the encoder's crop, so that no box is cut off",
    "layer_norm": "each layer goes through the encoder's last norm, as the release does with its layers; a feature "
    "level through its own",
    "pooling": f"{_SLOWFAST}: mean over time, RoIAlign, maximum over the box",
    "loss": f"{_SLOWFAST}: binary cross-entropy of each class",
}


class LocalisationProtocol(HeadOptimisation):
    """Protocol "ava": a linear classifier of boxes on features of a frozen encoder.

    `HeadOptimisation` has the settings of the optimiser; its items are key frames.

    Args:
        name: Its name.
        description: One line.
        frames_per_clip: Frames of the clip around a key frame.
        frame_step: From one frame of the clip to the next, at `clip_fps`. The key frame is the clip's middle one.
        clip_fps: Frames per second that the step counts. Videos of another rate are read at the same times.
        num_classes: Actions, numbered from 1.
        layers: Blocks of the encoder, numbered from 1, whose outputs are concatenated; None takes the last, and those
            before it at `layer_distance`.
        num_layers: How many these are; an encoder that is too shallow gives fewer.
        layer_distance: Blocks from one to the next.
        proposal_score_threshold: Boxes that the detector of persons was less sure of are not used.
        proposal_min_overlap: Training proposals get the actions of an annotated box that they overlap as much.
        roi_size: Side of the grid that RoIAlign samples in a box.
        flip_probability: Probability of mirroring a key frame in training.
        metric: The reported number.

    Raises:
        SettingsError: A value out of its range, or a warm-up longer than the run.
    """

    name: str = "ava"
    description: str = "AVA v2.2, actions of persons in boxes: 16 frames round the key frame, linear head"
    frames_per_clip: PositiveInt = 16
    frame_step: PositiveInt = 4
    clip_fps: PositiveFloat = 30.0
    num_classes: PositiveInt = 80
    layers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    num_layers: PositiveInt = 4
    layer_distance: PositiveInt = 2
    proposal_score_threshold: Probability = 0.8
    proposal_min_overlap: Probability = 0.9
    roi_size: PositiveInt = 7
    flip_probability: Probability = 0.5
    batch_size: PositiveInt = 64
    num_epochs: PositiveInt = 30
    num_warmup_epochs: NonNegativeFloat = 2
    learning_rate: PositiveFloat = 1e-4
    warmup_learning_rate: NonNegativeFloat = 1e-6
    final_learning_rate: NonNegativeFloat = 1e-6
    weight_decay: NonNegativeFloat = 0.05
    final_weight_decay: NonNegativeFloat | None = None
    max_grad_norm: PositiveFloat | None = None
    metric: str = "mean average precision at an overlap of 0.5"

    @property
    def changes(self) -> dict[str, Any]:
        """Values that differ from those of the paper's protocol."""
        return self.changes_from(LocalisationProtocol())

    @property
    def sources(self) -> dict[str, str]:
        """Origin of the value of each field, and of choices that are no field."""
        return {**_SOURCES, **dict.fromkeys(self.changes, "set by the caller")}

    def choose_layers(self, num_hidden_layers: int) -> tuple[int, ...]:
        """The blocks of an encoder whose outputs are used, ascending, numbered from 1.

        Args:
            num_hidden_layers: Blocks of the encoder.

        Raises:
            ValueError: `layers` names one that the encoder has not.
        """
        if self.layers is None:
            distances = range(0, self.num_layers * self.layer_distance, self.layer_distance)
            return tuple(num_hidden_layers - distance for distance in distances if distance < num_hidden_layers)[::-1]
        if max(self.layers) > num_hidden_layers:
            raise ValueError(
                f"layers is {self.layers}, but must name blocks of the encoder, from 1 to {num_hidden_layers}"
            )
        return tuple(sorted(set(self.layers)))
