"""How a frozen encoder is judged on localising actions in AVA v2.2, and where each number of that comes from.

The paper (Bardes et al. 2024, arXiv 2404.08471, appendix D.2 and its table of frozen detection) gives the layers and
the optimisation, and for the rest follows Feichtenhofer et al. 2021 (arXiv 2104.14558), who follow SlowFast
(Feichtenhofer et al. 2019, arXiv 1812.03982). No code of this evaluation was released with the weights. What none of
the three states is this package's choice, and `sources` calls it "ours".
"""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

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
    "betas": f"{_PAPER} gives 0.9; the second is torch's default",
    "epsilon": _PAPER,
    "metric": "the official evaluation of AVA",
    "resizing": f"{_OURS}: the whole frame to the square of the encoder's crop, so that no box is cut off",
    "layer_norm": "the encoder's last norm is applied to each of the layers, as the release does with its layers",
    "pooling": f"{_SLOWFAST}: mean over time, RoIAlign, maximum over the box",
    "loss": f"{_SLOWFAST}: binary cross-entropy of each class",
}


@dataclass(frozen=True, kw_only=True)
class LocalisationProtocol:
    """The protocol "ava": a linear classifier of boxes on features of a frozen encoder.

    Args:
        name: What it is called.
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
        flip_probability: How often a key frame is seen mirrored in training.
        batch_size: Key frames in an optimiser step.
        num_epochs: Passes over the training set.
        num_warmup_epochs: Of these with a linearly growing learning rate.
        learning_rate: At the end of the warm-up.
        warmup_learning_rate: At the first step.
        final_learning_rate: At the last step.
        weight_decay: Of AdamW, on weights.
        betas: Of AdamW.
        epsilon: Of AdamW.
        metric: What is reported.
        sources: Where the value of each field comes from, and choices that are no field.

    Raises:
        ValueError: A value that cannot be; the message names it.
    """

    name: str = "ava"
    description: str = "AVA v2.2, actions of persons in boxes: 16 frames round the key frame, linear head"
    frames_per_clip: int = 16
    frame_step: int = 4
    clip_fps: float = 30.0
    num_classes: int = 80
    layers: tuple[int, ...] | None = None
    num_layers: int = 4
    layer_distance: int = 2
    proposal_score_threshold: float = 0.8
    proposal_min_overlap: float = 0.9
    roi_size: int = 7
    flip_probability: float = 0.5
    batch_size: int = 64
    num_epochs: int = 30
    num_warmup_epochs: float = 2
    learning_rate: float = 1e-4
    warmup_learning_rate: float = 1e-6
    final_learning_rate: float = 1e-6
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    metric: str = "mean average precision at an overlap of 0.5"
    sources: Mapping[str, str] = field(default_factory=lambda: dict(_SOURCES))

    def __post_init__(self) -> None:
        counts = ("frames_per_clip", "frame_step", "num_classes", "num_layers", "layer_distance", "roi_size")
        for name in (*counts, "batch_size", "num_epochs"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}, but must be an integer of at least 1")
        for name in ("flip_probability", "proposal_score_threshold", "proposal_min_overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must lie between 0 and 1")
        if not self.clip_fps > 0:
            raise ValueError(f"clip_fps is {self.clip_fps}, but must be above 0")
        if not 0 <= self.num_warmup_epochs <= self.num_epochs:
            raise ValueError(
                f"num_warmup_epochs is {self.num_warmup_epochs}, but must lie between 0 and num_epochs = "
                f"{self.num_epochs}; shorten the warm-up or train for longer"
            )

    def with_values(self, **values: Any) -> "LocalisationProtocol":
        """A protocol with other values, which are marked as the caller's own in `sources`.

        Args:
            values: Fields by their names.

        Raises:
            ValueError: A name that is no field, or a value that cannot be.
        """
        known = [entry.name for entry in fields(self)]
        for name in values:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise ValueError(f"a protocol has no field '{name}'; the nearest is '{nearest}'")
        return replace(self, **values, sources={**self.sources, **dict.fromkeys(values, "set by the caller")})

    def to_dict(self) -> dict[str, Any]:
        """Its fields as plain values, for a file of results."""
        return asdict(self)

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
        if not self.layers or not all(1 <= layer <= num_hidden_layers for layer in self.layers):
            raise ValueError(
                f"layers is {self.layers}, but must name blocks of the encoder, from 1 to {num_hidden_layers}"
            )
        return tuple(sorted(set(self.layers)))
