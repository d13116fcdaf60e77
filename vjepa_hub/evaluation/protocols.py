"""The evaluation protocols of the papers by name, and a plain one for the user's own set.

A protocol says which clips of a video are seen, how they are augmented while a probe trains, and how the probe is
trained. Crop size, the pixels' mean and deviation, and unless the protocol names them the frames of a clip are the
encoder's. Where the released code and the paper's text differ, the code counts, since its results are the published
ones; `sources` names the origin of each value.

Two things differ from the released code, on purpose: validation clips are not drawn at random (the released loader
draws them, so that two evaluations of one model differ), and the probe is in float32 also where the encoder is not. A
third for V-JEPA 2.1: its encoder is evaluated whole, where the released evaluation loads its weights into V-JEPA 2's
encoder, without the levels' norms, the modality embeddings and the scaling of positions.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from ..core.settings import PositiveRange, Probability, ShareRange
from ..data.clip_sampling import ClipSpec, FrameSampling
from ..data.crop_spec import CropSpec
from ..heads.optimisation import HeadOptimisation
from .ava.protocol import LocalisationProtocol

Media = Literal["video", "image"]
RAND_AUGMENT = "rand-m7-n4-mstd0.5-inc1"
SET_BY_CALLER = "set by the caller"

RELEASED_FEATURE_LAYERS: Mapping[int, tuple[int, ...]] = {24: (17, 19, 21, 23), 40: (24, 29, 34, 39)}
"""By the depth of an encoder without feature levels: ViT-L and ViT-g of V-JEPA 2."""


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
        dataset: Name of its data set among the released probes; None: that of the protocol.
        num_classes: Classes of the data set; None: as many as the data has.
        frames_per_clip: Frames of a clip; None: the encoder's own number.
        frame_step: Frames of the video from one of the clip to the next, about; see `sample_clip_indices`.
        clip_duration: Length of a clip in seconds, in place of `frame_step`.
        fps: Frames of a clip per second, in place of `frame_step`.
        num_segments: Clips of a video (1 for images).
        num_views: Crops of each clip along the longer side of the frame, 1 (centre) or 3.
        attends_across_segments: Whether one probe sees the tokens of all segments together; if not, each segment is
            classified by itself, in training a single one is seen, and class probabilities are averaged.
        augmentation: Of training clips; None: as in validation, one view.
        metric: The published number.
        heads: Learning rate and weight decay of each probe that is trained; empty: the one of `learning_rate` and
            `weight_decay`. Where there are some, these two are the first's.
        num_pooler_layers: Of the attentive probe, as `VJEPAConfig` counts them.
        num_pooler_heads: Heads of its attention; None: those of the encoder.
        pooler_feature_layers: Blocks, from 0, whose tokens the probe takes, joined along the token axis; "released":
            four, those of the released evaluations; None: the last alone.

    Raises:
        SettingsError: A value out of its range, several clips of an image, or a learning rate beside `heads`.
    """

    name: str
    description: str
    media: Media = "video"
    dataset: str | None = None
    num_classes: PositiveInt | None = None
    frames_per_clip: PositiveInt | None = None
    num_segments: PositiveInt = 1
    num_views: Literal[1, 3] = 1
    attends_across_segments: bool = True
    augmentation: Augmentation | None = Field(default_factory=Augmentation)
    metric: str = "top-1 accuracy"
    heads: tuple[tuple[PositiveFloat, NonNegativeFloat], ...] = ()
    num_pooler_layers: PositiveInt = 1
    num_pooler_heads: PositiveInt | None = None
    pooler_feature_layers: tuple[NonNegativeInt, ...] | Literal["released"] | None = None

    @model_validator(mode="after")
    def _require_first_head(self) -> "Protocol":
        if self.heads and self.heads[0] != (self.learning_rate, self.weight_decay):
            raise ValueError(
                f"learning_rate is {self.learning_rate:g} and weight_decay {self.weight_decay:g}, but the protocol "
                f"trains {len(self.heads)} heads side by side, the first with {self.heads[0]}; give --learning-rate "
                "and --weight-decay, or set heads=[] too"
            )
        return self

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

    @property
    def distinct_heads(self) -> tuple[tuple[float, float], ...]:
        """Learning rate and weight decay of each probe, each pair once: all start from the same weights."""
        return tuple(dict.fromkeys(self.heads)) or ((self.learning_rate, self.weight_decay),)

    def choose_feature_layers(
        self, num_hidden_layers: int, feature_levels: Sequence[int] | None
    ) -> tuple[int, ...] | None:
        """Blocks of an encoder, from 0, whose tokens the probe takes; None: the last alone.

        Args:
            num_hidden_layers: Blocks of the encoder.
            feature_levels: Its levels, if it has any.

        Raises:
            ValueError: The release joins no blocks of an encoder of this depth.
        """
        if self.pooler_feature_layers != "released":
            return self.pooler_feature_layers
        if feature_levels is not None:
            return tuple(feature_levels)
        if num_hidden_layers not in RELEASED_FEATURE_LAYERS:
            raise ValueError(
                f"the protocol '{self.name}' joins the tokens of four blocks, which the release names for encoders of "
                f"{' and '.join(map(str, RELEASED_FEATURE_LAYERS))} blocks, and this one has {num_hidden_layers}; "
                "choose blocks from 0, such as --set pooler_feature_layers=2,5,8,11"
            )
        return RELEASED_FEATURE_LAYERS[num_hidden_layers]

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
_CONFIGURATION_2 = "configs/eval/{} of the release of V-JEPA 2, batch size over all devices"
_OPTIMISATION_2 = {"max_grad_norm": "{}: no clipping", "decays_biases": "{}: one group of parameters"}
_VIDEO_SOURCES_2 = {name: text.format(_LOADER) for name, text in _OPTIMISATION_2.items()}
_IMAGE_SOURCES_2 = {name: text.format(_IMAGE_LOADER) for name, text in _OPTIMISATION_2.items()}
_SOURCES: Mapping[str, Mapping[str, str]] = {
    "k400": {"*": _CONFIGURATION.format("k400_16x8x3"), **_VIDEO_SOURCES},
    "ssv2": {"*": _CONFIGURATION.format("ssv2_16x2x3"), **_VIDEO_SOURCES},
    "in1k": {"*": _CONFIGURATION.format("in1k"), **_IMAGE_SOURCES},
    "places205": {"*": _CONFIGURATION.format("places"), **_IMAGE_SOURCES},
    "inat21": {"*": _CONFIGURATION.format("inat"), **_IMAGE_SOURCES},
    **{
        name: {"*": _CONFIGURATION_2.format(file), **_VIDEO_SOURCES_2}
        for name, file in (
            ("vjepa2-k400", "vitl/k400"),
            ("vjepa2-ssv2", "vitl/ssv2"),
            ("vjepa2-ssv2-64f", "vitg-384/ssv2"),
            ("vjepa2.1-ssv2-64f", "vitg-384/ssv2 and vitG-384/ssv2 of 2.1"),
            ("coin", "vitl/coin"),
            ("diving48", "vitl/diving48"),
            ("jester", "vitl/jester"),
        )
    },
    "vjepa2-in1k": {"*": _CONFIGURATION_2.format("vitl/in1k"), **_IMAGE_SOURCES_2},
    "vjepa2-in1k-18f": {"*": _CONFIGURATION_2.format("vitg-384/in1k"), **_IMAGE_SOURCES_2},
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


_SSV2_OF_2 = Protocol(
    name="vjepa2-ssv2",
    description="Something-Something v2 as V-JEPA 2 and 2.1: 16 frames, 2 segments x 3 views, 20 probes of depth 4",
    dataset="ssv2",
    num_classes=174,
    frames_per_clip=16,
    num_segments=2,
    num_views=3,
    heads=tuple((rate, decay) for decay in (0.01, 0.1, 0.4, 0.8) for rate in (5e-3, 3e-3, 1e-3, 3e-4, 1e-4)),
    learning_rate=5e-3,
    weight_decay=0.01,
    final_weight_decay=None,
    decays_biases=True,
    max_grad_norm=None,
    num_pooler_layers=4,
    num_pooler_heads=16,
)
_DIVING48 = _SSV2_OF_2.with_values(
    name="diving48",
    description="Diving48: 32 frames, 4 segments x 3 views, 3 probes of depth 4 on the tokens of four blocks",
    dataset=None,
    num_classes=48,
    frames_per_clip=32,
    frame_step=2,
    num_segments=4,
    num_epochs=100,
    batch_size=128,
    heads=((1e-3, 0.8), (3e-4, 0.8), (1e-4, 0.8)),
    learning_rate=1e-3,
    weight_decay=0.8,
    pooler_feature_layers="released",
)
_SSV2_64 = _SSV2_OF_2.with_values(
    name="vjepa2-ssv2-64f",
    description="the same for ViT-g of V-JEPA 2: 64 frames",
    frames_per_clip=64,
    frame_step=2,
)
_IN1K_OF_2 = _image_protocol("vjepa2-in1k", "ImageNet-1k as V-JEPA 2 and 2.1", num_classes=1000, batch_size=1024)
_IN1K_OF_2 = _IN1K_OF_2.with_values(
    dataset="in1k",
    frames_per_clip=16,
    # The first pair is there twice, as released
    heads=(
        (1e-3, 1e-3),
        *((rate, decay) for rate in (5e-4, 1e-3, 1.5e-3, 2e-3) for decay in (8e-3, 4e-3, 2e-3, 1e-3, 5e-4)),
    ),
    final_weight_decay=0.0,
    decays_biases=True,
    max_grad_norm=None,
    num_pooler_layers=4,
    num_pooler_heads=16,
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
    _SSV2_OF_2,
    _SSV2_64,
    _SSV2_64.with_values(
        name="vjepa2.1-ssv2-64f",
        description="the same for ViT-g and ViT-G of V-JEPA 2.1: batches of 128",
        batch_size=128,
    ),
    _SSV2_OF_2.with_values(
        name="vjepa2-k400",
        description="Kinetics-400 as V-JEPA 2 and 2.1: 16 frames, 8 segments x 3 views",
        dataset="k400",
        num_classes=400,
        num_segments=8,
    ),
    _SSV2_OF_2.with_values(
        name="coin",
        description="COIN, tasks of instruction videos: 16 frames, 8 segments x 3 views",
        dataset=None,
        num_classes=180,
        num_segments=8,
        batch_size=128,
    ),
    _DIVING48,
    _DIVING48.with_values(name="jester", description="Jester, gestures: as diving48", num_classes=27),
    _IN1K_OF_2,
    _IN1K_OF_2.with_values(
        name="vjepa2-in1k-18f", description="the same for ViT-g and ViT-G: 18 frames", frames_per_clip=18
    ),
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
