"""The evaluation protocols of the paper by name, and a plain one for the user's own set.

A protocol says which clips of a video are seen, how they are augmented while a probe trains, and how the probe is
trained. It says nothing about the encoder: crop size, frames of a clip and the pixels' mean and deviation are the
encoder's. Where the released code and the paper's text differ, the code counts, since its results are the published
ones; `sources` names the origin of each value.

Two things differ from the released code, on purpose: validation clips are not drawn at random (the released loader
draws them, so that two evaluations of one model differ), and the probe is in float32 also where the encoder is not.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from ..core.settings import PositiveRange, Probability, ShareRange
from ..data.clip_sampling import ClipSpec, FrameSampling
from ..data.crop_spec import CropSpec
from ..heads.optimisation import HeadOptimisation
from .ava.protocol import LocalisationProtocol

Media = Literal["video", "image"]
RAND_AUGMENT = "rand-m7-n4-mstd0.5-inc1"
SET_BY_CALLER = "set by the caller"


class Augmentation(CropSpec):
    """Augmentation of the clips that a probe trains on, the same for all frames of a clip.

    Args:
        scale: Smallest and largest area of the crop, as a share of the frame's.
        ratio: Smallest and largest width of the crop, divided by its height.
        flip_probability: Probability of a horizontal flip.
        auto_augment: timm's name of a policy on colours and shapes, such as `rand-m7-n4-mstd0.5-inc1`; None: none.
        erase_probability: Probability of replacing a box of a clip by noise.
    """

    scale: ShareRange = (0.08, 1.0)
    ratio: PositiveRange = (3 / 4, 4 / 3)
    flip_probability: Probability = 0.0
    auto_augment: str | None = RAND_AUGMENT
    erase_probability: Probability = 0.25


class Protocol(FrameSampling, HeadOptimisation):
    """Evaluation of a frozen encoder on a data set; `HeadOptimisation` has the settings of the optimiser.

    Args:
        name: Its name.
        description: One line.
        media: "video" or "image"; a video encoder sees an image repeated to a clip.
        num_classes: Classes of the data set; None: as many as the data has.
        frame_step: Frames of the video from one of the clip to the next, about; see `sample_clip_indices`.
        clip_duration: Length of a clip in seconds, in place of `frame_step`.
        fps: Frames of a clip per second, in place of `frame_step`.
        num_segments: Clips of a video (1 for images).
        num_views: Crops of each clip along the longer side of the frame, 1 (centre) or 3.
        attends_across_segments: Whether one probe sees the tokens of all segments together; if not, each segment is
            classified by itself, in training a single one is seen, and class probabilities are averaged.
        augmentation: Of training clips; None: as in validation, one view.
        metric: The published number.

    Raises:
        SettingsError: A value out of its range, or several clips of an image.
    """

    name: str
    description: str
    media: Media = "video"
    num_classes: PositiveInt | None = None
    num_segments: PositiveInt = 1
    num_views: Literal[1, 3] = 1
    attends_across_segments: bool = True
    augmentation: Augmentation | None = Field(default_factory=Augmentation)
    metric: str = "top-1 accuracy"

    @model_validator(mode="after")
    def _require_one_clip_of_an_image(self) -> "Protocol":
        if self.media == "image" and (self.num_segments, self.num_views) != (1, 1):
            raise ValueError(
                f"num_segments is {self.num_segments} and num_views {self.num_views}, but an image has one of each"
            )
        return self

    @property
    def num_training_segments(self) -> int:
        """Clips of a video that a training step sees."""
        return self.num_segments if self.attends_across_segments else 1

    def clip_spec(self, frames_per_clip: int, *, is_training: bool = False) -> ClipSpec:
        """Clips of a video for an encoder.

        Args:
            frames_per_clip: Of the encoder.
            is_training: Of a training step, rather than of a validation.
        """
        return ClipSpec(
            frames_per_clip=frames_per_clip,
            frame_step=self.frame_step,
            clip_duration=self.clip_duration,
            fps=self.fps,
            num_segments=self.num_training_segments if is_training else self.num_segments,
        )

    @property
    def changes(self) -> dict[str, Any]:
        """Values that differ from those of the protocol of its name, by their keys with dots."""
        named = PROTOCOLS.get(self.name)
        return self.changes_from(named) if isinstance(named, Protocol) else {}

    @property
    def sources(self) -> dict[str, str]:
        """Origin of the value of each field; "*" stands for the rest."""
        known = _SOURCES.get(self.name, {"*": SET_BY_CALLER})
        return {**known, **dict.fromkeys(self.changes, SET_BY_CALLER)}


_LOADER = "the released evals/video_classification_frozen/eval.py"
_IMAGE_LOADER = "the released evals/image_classification_frozen/eval.py"
_VIDEO_SOURCES = {
    "augmentation": f"{_LOADER} (data loader); paper, appendix on evaluation",
    "final_weight_decay": _LOADER,
    "max_grad_norm": _LOADER,
    "frame_step": f"{_LOADER}; the configuration's own value of 4 is never read",
}
_IMAGE_SOURCES = {
    "augmentation": f"{_IMAGE_LOADER}: timm's transform with auto_augment='original'",
    "final_weight_decay": _IMAGE_LOADER,
    "max_grad_norm": _IMAGE_LOADER,
}
_CONFIGURATION = "configs/evals/vitl16_{}.yaml of the release, batch size over 64 devices"
_SOURCES: Mapping[str, Mapping[str, str]] = {
    "k400": {"*": _CONFIGURATION.format("k400_16x8x3"), **_VIDEO_SOURCES},
    "ssv2": {"*": _CONFIGURATION.format("ssv2_16x2x3"), **_VIDEO_SOURCES},
    "in1k": {"*": _CONFIGURATION.format("in1k"), **_IMAGE_SOURCES},
    "places205": {"*": _CONFIGURATION.format("places"), **_IMAGE_SOURCES},
    "inat21": {"*": _CONFIGURATION.format("inat"), **_IMAGE_SOURCES},
    "plain": {"*": "as ssv2", "num_views": "ours", "num_segments": "ours", "batch_size": "ours"},
    "plain-image": {"*": "as in1k", "batch_size": "ours"},
}


def _image_protocol(name: str, description: str, *, num_classes: int | None, batch_size: int) -> Protocol:
    return Protocol(
        name=name,
        description=description,
        media="image",
        num_classes=num_classes,
        augmentation=Augmentation(flip_probability=0.5, auto_augment="original"),
        weight_decay=0.001,
        batch_size=batch_size,
    )


_PROTOCOLS: Sequence[Protocol | LocalisationProtocol] = (
    Protocol(
        name="k400",
        description="Kinetics-400, appearance: 8 segments x 3 views",
        num_classes=400,
        num_segments=8,
        num_views=3,
    ),
    Protocol(
        name="ssv2",
        description="Something-Something v2, motion: 2 segments x 3 views",
        num_classes=174,
        num_segments=2,
        num_views=3,
    ),
    _image_protocol("in1k", "ImageNet-1k", num_classes=1000, batch_size=1024),
    _image_protocol("places205", "Places205, scenes", num_classes=205, batch_size=1024),
    _image_protocol("inat21", "iNaturalist 2021, species", num_classes=10_000, batch_size=1024),
    LocalisationProtocol(),
    Protocol(name="plain", description="your own videos: 2 segments x 1 view", num_segments=2, batch_size=32),
    _image_protocol("plain-image", "your own images", num_classes=None, batch_size=32),
)

PROTOCOLS: Mapping[str, Protocol | LocalisationProtocol] = {protocol.name: protocol for protocol in _PROTOCOLS}


def find_protocol(name: str) -> Protocol:
    """The classification protocol of a name.

    Raises:
        KeyError: There is none; the message lists those that there are.
        ValueError: It is the one for action localisation, which is not run as a classification.
    """
    if name not in PROTOCOLS:
        raise KeyError(f"unknown protocol '{name}'; available: {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    if not isinstance(protocol, Protocol):
        raise ValueError(
            f"the protocol '{name}' is for action localisation, with boxes in its annotations; run `vjepa-hub "
            "localise`"
        )
    return protocol
