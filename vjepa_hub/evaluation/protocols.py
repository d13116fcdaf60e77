"""The evaluation protocols of the paper by name, and a plain one for the user's own set.

A protocol says which clips of a video are seen, how they are augmented while a probe trains, and how the probe is
trained. It says nothing about the encoder: crop size, frames of a clip and the pixels' mean and deviation are the
encoder's. Where the released code and the paper's text differ, the code counts, since its results are the published
ones; `sources` says for each field where its value comes from.

Two things differ from the released code, on purpose: validation clips are not drawn at random (the released loader
draws them, so that two evaluations of one model differ), and the probe is in float32 also where the encoder is not.
"""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from .ava.protocol import LocalisationProtocol

Media = Literal["video", "image"]
RAND_AUGMENT = "rand-m7-n4-mstd0.5-inc1"


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is drawn for each clip that a probe trains on; for all frames of a clip the same.

    Args:
        scale: Smallest and largest area of the crop, as a part of the frame's.
        ratio: Smallest and largest width of the crop, divided by its height.
        flip_probability: How often a clip is mirrored.
        auto_augment: timm's name of a policy on colours and shapes, such as `rand-m7-n4-mstd0.5-inc1`; None: none.
        erase_probability: How often a box of a clip is replaced by noise.

    Raises:
        ValueError: A value that cannot be; the message names it.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.0
    auto_augment: str | None = RAND_AUGMENT
    erase_probability: float = 0.25

    def __post_init__(self) -> None:
        for name in ("flip_probability", "erase_probability"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= 1:
                raise ValueError(f"{name} is {value!r}, but must lie between 0 and 1")
        for name in ("scale", "ratio"):
            value = getattr(self, name)
            is_pair = isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value))
            if not is_pair or not 0 < value[0] <= value[1]:
                raise ValueError(f"{name} is {value!r}, but must be a smallest and a largest number, such as 0.5,1")
        if self.scale[1] > 1:
            raise ValueError(f"scale is {self.scale}, but a crop has at most the whole area of the frame, which is 1")
        if self.auto_augment is not None and not isinstance(self.auto_augment, str):
            raise ValueError(
                f"auto_augment is {self.auto_augment!r}, but must be timm's name of a policy, such as "
                f"'{RAND_AUGMENT}', or None"
            )


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a frozen encoder is judged on a data set.

    Args:
        name: What it is called.
        description: One line.
        media: "video" or "image"; a video encoder sees an image repeated to a clip.
        num_classes: Classes of the data set; None: as many as the data has.
        released_probe: Name of the released probe on it, see `ModelEntry.probes`; None: there is none.
        frames_per_clip: Frames of a clip of the paper's encoders. Others see their own number.
        frame_step: Frames of the video from one of the clip to the next, about; see `sample_clip_indices`.
        clip_duration: Length of a clip in seconds, instead.
        num_segments: Clips of a video (1 for images).
        num_views: Crops of each clip along the longer side of the frame, 1 (centre) or 3.
        attends_across_segments: Whether one probe sees the tokens of all segments together; if not, each segment is
            classified by itself, in training a single one is seen, and class probabilities are averaged.
        augmentation: Of training clips; None: as in validation, one view.
        learning_rate: Of AdamW at the first step.
        final_learning_rate: At the last step, along a cosine.
        weight_decay: At the first step; none on biases and 1-D parameters.
        final_weight_decay: At the last step, along a cosine.
        num_epochs: Passes over the training set.
        batch_size: Videos of an optimiser step, over all processes.
        max_grad_norm: Gradients of a probe are clipped to this norm.
        metric: What the published number is.
        sources: Where the value of a field comes from; "*" stands for the rest.

    Raises:
        ValueError: A value that cannot be; the message names it.
    """

    name: str
    description: str
    media: Media = "video"
    num_classes: int | None = None
    released_probe: str | None = None
    frames_per_clip: int = 16
    frame_step: int | None = 4
    clip_duration: float | None = None
    num_segments: int = 1
    num_views: int = 1
    attends_across_segments: bool = True
    augmentation: Augmentation | None = field(default_factory=Augmentation)
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.0
    weight_decay: float = 0.01
    final_weight_decay: float = 1e-6
    num_epochs: int = 20
    batch_size: int = 256
    max_grad_norm: float = 1.0
    metric: str = "top-1 accuracy"
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.media not in get_args(Media):
            raise ValueError(f"media is {self.media!r}, but must be one of {', '.join(get_args(Media))}")
        self._check_clips()
        self._check_optimisation()
        if self.augmentation is not None and not isinstance(self.augmentation, Augmentation):
            raise ValueError(f"augmentation is {self.augmentation!r}, but must be an Augmentation, or None for none")
        if not isinstance(self.attends_across_segments, bool):
            raise ValueError(f"attends_across_segments is {self.attends_across_segments!r}, but must be true or false")

    def _check_clips(self) -> None:
        for name in ("frames_per_clip", "num_segments"):
            _require_count(name, getattr(self, name))
        for name in ("num_classes", "frame_step"):
            if getattr(self, name) is not None:
                _require_count(name, getattr(self, name))
        if isinstance(self.num_views, bool) or self.num_views not in (1, 3):
            raise ValueError(f"num_views is {self.num_views!r}, but must be 1 (centre crop) or 3")
        if self.media == "image" and (self.num_segments, self.num_views) != (1, 1):
            raise ValueError(
                f"num_segments is {self.num_segments} and num_views {self.num_views}, but an image has one of each"
            )
        duration = self.clip_duration
        if duration is not None and not (_is_number(duration) and duration > 0):
            raise ValueError(f"clip_duration is {duration!r}, but must be a positive number of seconds, or None")
        if self.media == "video" and duration is None and self.frame_step is None:
            raise ValueError("frame_step and clip_duration are both None, but one of them sets the length of a clip")

    def _check_optimisation(self) -> None:
        for name in ("num_epochs", "batch_size"):
            _require_count(name, getattr(self, name))
        for name in ("learning_rate", "final_learning_rate", "weight_decay", "final_weight_decay"):
            value = getattr(self, name)
            if not _is_number(value) or value < 0 or (name == "learning_rate" and not value):
                least = "above 0" if name == "learning_rate" else "of at least 0"
                raise ValueError(f"{name} is {value!r}, but must be a number {least}")
        norm = self.max_grad_norm
        if norm != math.inf and not (_is_number(norm) and norm > 0):
            raise ValueError(f"max_grad_norm is {norm!r}, but must be a number above 0; inf for no clipping")

    @property
    def num_training_segments(self) -> int:
        """Clips of a video that a training step sees."""
        return self.num_segments if self.attends_across_segments else 1

    def with_values(self, **values: Any) -> "Protocol":
        """A protocol with other values, which are marked as the caller's own in `sources`.

        Args:
            values: Fields of a `Protocol`, but for `sources`, which follows from them.

        Raises:
            ValueError: A name that is no field, or a value that cannot be.
        """
        known = [entry.name for entry in fields(self) if entry.name != "sources"]
        for name in values:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise ValueError(f"a protocol has no field '{name}'; the nearest is '{nearest}'")
        sources = {**self.sources, **dict.fromkeys(values, "set by the caller")}
        return replace(self, **values, sources=sources)

    def with_overrides(self, assignments: Sequence[str]) -> "Protocol":
        """A protocol with values as they are written on a command line.

        Args:
            assignments: `KEY=VALUE` each, such as `num_epochs=5`, `augmentation=none` or
                `augmentation.scale=0.5,1`.

        Raises:
            ValueError: No assignment, a name that is no field, or a value that cannot be.
        """
        values: dict[str, Any] = {}
        for name, text in split_assignments(assignments, example="num_epochs=5"):
            first, _, rest = name.partition(".")
            value = parse_value(text)
            if rest:
                value = _with_part(values.get(first, getattr(self, first, None)), first, rest, value)
            values[first] = value
        return self.with_values(**values)  # at once: two of them may be possible only together

    def to_dict(self) -> dict[str, Any]:
        """Its fields as plain values, for a file of results."""
        return asdict(self)


def _with_part(whole: Any, name: str, part: str, value: Any) -> Augmentation:
    """The value of a field that has fields itself, with one of them changed."""
    known = [entry.name for entry in fields(Augmentation)]
    if name != "augmentation" or part not in known:
        raise ValueError(
            f"a protocol has no field '{name}.{part}' that could be set; there are "
            f"{', '.join(f'augmentation.{entry}' for entry in known)}"
        )
    if not isinstance(whole, Augmentation):
        raise ValueError(f"'{name}.{part}' is set, but the augmentation is {whole!r}; leave augmentation=... out")
    return replace(whole, **{part: value})


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)


def _require_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}, but must be an integer of at least 1")


def split_assignments(assignments: Iterable[str], *, example: str) -> Iterator[tuple[str, str]]:
    """Names and values, as they are written on a command line; see `parse_value`.

    Args:
        assignments: `KEY=VALUE` each.
        example: For the error.

    Raises:
        ValueError: No assignment.
    """
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator or not name.strip():
            raise ValueError(f"'{assignment}' sets nothing; write KEY=VALUE, such as {example}")
        yield name.strip(), text


def parse_value(text: str) -> Any:
    """What a value on a command line stands for.

    Args:
        text: A number, true or false, none, several of these with commas between them, or any other text.
    """
    if "," in text:
        return tuple(parse_value(part) for part in text.split(","))
    plain = text.strip()
    words = {"none": None, "null": None, "true": True, "false": False}
    if plain.lower() in words:
        return words[plain.lower()]
    for kind in (int, float):
        try:
            return kind(plain)
        except ValueError:
            continue
    return plain


_LOADER = "the released evals/video_classification_frozen/eval.py"
_IMAGE_LOADER = "the released evals/image_classification_frozen/eval.py"
_VIDEO_SOURCES = {
    "augmentation": f"{_LOADER} (data loader); paper, appendix on evaluation",
    "final_weight_decay": _LOADER,
    "max_grad_norm": _LOADER,
    "frame_step": f"{_LOADER}; the configuration's own value of 4 is never read",
}


def _released_video(name: str, description: str, config: str, **values: Any) -> Protocol:
    sources = {"*": f"configs/evals/vitl16_{config}.yaml of the release, batch size over 64 devices", **_VIDEO_SOURCES}
    return Protocol(name=name, description=description, num_views=3, released_probe=name, sources=sources, **values)


def _released_image(name: str, description: str, config: str, num_classes: int) -> Protocol:
    return Protocol(
        name=name,
        description=description,
        media="image",
        num_classes=num_classes,
        released_probe=config,
        augmentation=Augmentation(flip_probability=0.5, auto_augment="original"),
        weight_decay=0.001,
        batch_size=1024,
        sources={
            "*": f"configs/evals/vitl16_{config}.yaml of the release, batch size over 64 devices",
            "augmentation": f"{_IMAGE_LOADER}: timm's transform with auto_augment='original'",
            "final_weight_decay": _IMAGE_LOADER,
            "max_grad_norm": _IMAGE_LOADER,
        },
    )


_PROTOCOLS: Sequence[Protocol | LocalisationProtocol] = (
    _released_video(
        "k400", "Kinetics-400, appearance: 8 segments x 3 views", "k400_16x8x3", num_classes=400, num_segments=8
    ),
    _released_video(
        "ssv2", "Something-Something v2, motion: 2 segments x 3 views", "ssv2_16x2x3", num_classes=174, num_segments=2
    ),
    _released_image("in1k", "ImageNet-1k", "in1k", 1000),
    _released_image("places205", "Places205, scenes", "places", 205),
    _released_image("inat21", "iNaturalist 2021, species", "inat", 10_000),
    LocalisationProtocol(),
    Protocol(
        name="plain",
        description="your own videos: 2 segments x 1 view",
        num_segments=2,
        batch_size=32,
        sources={"*": "as ssv2", "num_views": "ours", "num_segments": "ours", "batch_size": "ours"},
    ),
    Protocol(
        name="plain-image",
        description="your own images",
        media="image",
        augmentation=Augmentation(flip_probability=0.5, auto_augment="original"),
        weight_decay=0.001,
        batch_size=32,
        sources={"*": "as in1k", "batch_size": "ours"},
    ),
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
