"""From a labelled video or image to pixels: as a validation sees it, and drawn anew for each training step.

Validation: `num_segments` clips at equal distances, each resized and cropped by the model's own video processor, in
one or three views. Training: the segments are placed at random, and each gets colours and shapes from timm's policy, a
box that is resized to the crop, perhaps mirrored, and perhaps an erased box: the same draw for all its frames, others
for each segment, as in the released evaluations. Everything drawn is a function of (seed, position in the run), so it
depends neither on workers nor on processes nor on a resume.

What cannot be read is not left out in silence: it comes as zeros with `is_readable` False, for the caller to count.

Shapes: V views, S segments, T frames, C channels, H x W pixels of the crop.
"""

import logging
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TypedDict, cast

import numpy as np
import torch
from PIL import Image
from pydantic import PositiveFloat, PositiveInt
from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch.nn import functional as F
from torch.utils.data import Dataset, get_worker_info
from torchvision.transforms import functional as image_transforms

from ..core.settings import Settings
from ..data.augmentation import IMAGENET_MEAN, IMAGENET_STD, draw_crop
from ..data.clip_order import ClipRequest
from ..data.items import read_item
from ..data.quarantine import KilledWorkerError
from ..data.random_streams import Stream, draw_uniform, generator_at
from ..data.video import VideoDecodingError
from ..heads.clips import evaluation_pixels, read_segments
from ..model.video_processing_vjepa import RESIZE_OVER_CROP, VJEPAVideoProcessor
from .labelled import ImageSource, LabelledSet, VideoSource
from .protocols import Augmentation, Protocol

logger = logging.getLogger(__name__)

# Loading workers of a set that are told apart
MAX_WORKERS = 256
# Of the crop's side: how far RandAugment moves a picture at most (the released data loader)
MAX_TRANSLATION = 0.45


class LabelledClip(TypedDict):
    """Item of both data sets: a video or image.

    Attributes:
        pixel_values_videos: Normalised float32; `(num_views, num_segments, num_frames, 3, crop, crop)` in validation,
            `(num_segments, num_frames, 3, crop, crop)` in training. An image is one frame.
        label: Number of its class.
        index: Its place in the set.
        is_readable: False where it could not be decoded; the pixels are then zeros.
    """

    pixel_values_videos: torch.Tensor
    label: int
    index: int
    is_readable: bool


class ClipFormat(Settings):
    """Input of an encoder.

    Args:
        crop_size: Side of the square crop in pixels.
        frames_per_clip: Frames of a clip.
        mean: Of each channel, for pixels from 0 to 1.
        std: Of each channel, for pixels from 0 to 1.
    """

    crop_size: PositiveInt
    frames_per_clip: PositiveInt = 16
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = IMAGENET_STD


class _LabelledClips(Dataset[LabelledClip]):
    """Reading, and zeros for videos that cannot be read."""

    is_training: bool

    def __init__(self, labelled: LabelledSet, protocol: Protocol, clip_format: ClipFormat):
        found = "image" if isinstance(labelled.source, ImageSource) else "video"
        if found != protocol.media:
            raise ValueError(
                f"the set holds {found}s, but the protocol '{protocol.name}' is for {protocol.media}s; open the set "
                f"with media='{protocol.media}', or take another protocol"
            )
        self.labelled, self.protocol, self.clip_format = labelled, protocol, clip_format
        self.clip_spec = protocol.clip_spec(clip_format.frames_per_clip, is_training=self.is_training)
        # Process and item of each loading worker, for `naming_killed_workers`
        self.at_work = torch.full((MAX_WORKERS, 2), -1).share_memory_()

    def __len__(self) -> int:
        """Number of videos or images."""
        return len(self.labelled)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pixels of an item."""
        raise NotImplementedError

    def _item(self, index: int, read: Callable[[], torch.Tensor]) -> LabelledClip:
        if (worker := get_worker_info()) is not None:
            self.at_work[worker.id % MAX_WORKERS] = torch.tensor([os.getpid(), index])
        try:
            pixels, is_readable = read(), True
        except VideoDecodingError as error:
            logger.warning("counted as unreadable: %s", error)
            pixels, is_readable = torch.zeros(self.shape), False
        label = int(self.labelled.labels[index])
        return LabelledClip(pixel_values_videos=pixels, label=label, index=index, is_readable=is_readable)

    def _segments(self, index: int, generator: torch.Generator | None) -> list[np.ndarray]:
        """(T, H, W, 3) uint8 frames of each clip of a video."""
        source = cast(VideoSource, self.labelled.source)
        record = source.record(int(self.labelled.indices[index]))
        return read_segments(record, self.clip_spec, generator=generator, item_timeout=self.labelled.item_timeout)

    def _image(self, index: int) -> Image.Image:
        source, place = cast(ImageSource, self.labelled.source), int(self.labelled.indices[index])
        return read_item(source.name(place), lambda: source.read(place), timeout=self.labelled.item_timeout)

    def _as_clip(self, image: torch.Tensor) -> torch.Tensor:
        """(1, 1, C, H, W) of an image (C, H, W): one frame, which a video encoder repeats to a clip by itself."""
        return image[None, None]

    @property
    def _num_frames(self) -> int:
        return 1 if self.protocol.media == "image" else self.clip_format.frames_per_clip


@contextmanager
def naming_killed_workers(sets: Sequence["_LabelledClips"]) -> Iterator[None]:
    """Say which video a loading worker was reading where one dies within the block, and what to do.

    Args:
        sets: That workers read from; may grow within the block.

    Raises:
        KilledWorkerError: A worker died.
    """
    try:
        yield
    except RuntimeError as error:
        killed = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
        if killed is None:
            raise
        processes = {int(number) for number in killed[1].split(",")}
        names = [
            clips.labelled.source.name(int(clips.labelled.indices[index]))
            for clips in sets
            for process, index in clips.at_work.tolist()
            if process in processes
        ]
        raise KilledWorkerError(
            f"a process that decodes was killed while it read {' or '.join(dict.fromkeys(names)) or 'a video'} "
            f"({str(error).strip()}): memory ran out, or the file crashes its decoder (`vjepa-hub check-data` tells); "
            "leave that video out, or read without such processes, with --num-workers 0 (num_workers=0)"
        ) from error


class EvaluationClips(_LabelledClips):
    """Videos or images as a validation sees them; nothing is random.

    Args:
        labelled: The videos or images.
        protocol: Which clips and views of them.
        clip_format: Input of the encoder.

    Raises:
        ValueError: The set holds no media of the protocol's kind.
    """

    is_training = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pixels of an item."""
        size = self.clip_format.crop_size
        return (self.protocol.num_views, self.clip_spec.num_segments, self._num_frames, 3, size, size)

    def __getitem__(self, request: ClipRequest | int) -> LabelledClip:
        """Read a video or image.

        Args:
            request: Its place in the set, alone or with a position in the run, which changes nothing.
        """
        index = request[1] if isinstance(request, tuple) else request
        is_image = self.protocol.media == "image"
        return self._item(index, lambda: self._read_image(index) if is_image else self._read_video(index))

    @cached_property
    def _processor(self) -> VJEPAVideoProcessor:
        clip_format = self.clip_format
        return VJEPAVideoProcessor(
            crop_size=clip_format.crop_size,
            num_spatial_views=self.protocol.num_views,
            image_mean=list(clip_format.mean),
            image_std=list(clip_format.std),
        )

    def _read_video(self, index: int) -> torch.Tensor:
        return evaluation_pixels(self._segments(index, None), self._processor)

    def _read_image(self, index: int) -> torch.Tensor:
        size = self.clip_format.crop_size
        image = image_transforms.resize(self._image(index), int(size * RESIZE_OVER_CROP))
        pixels = image_transforms.to_tensor(image_transforms.center_crop(image, size))
        return self._as_clip(image_transforms.normalize(pixels, self.clip_format.mean, self.clip_format.std))[None]


class TrainingClips(_LabelledClips):
    """Videos or images as a training step sees them, drawn from (seed, position).

    Args:
        labelled: The videos or images.
        protocol: Which clips, and how they are augmented.
        clip_format: Input of the encoder.
        seed: Seed of the run.

    Raises:
        ValueError: The protocol has no augmentation (then `EvaluationClips` gives the training clips too), or one
            that timm does not know; or the set holds no media of its kind.
    """

    is_training = True

    def __init__(self, labelled: LabelledSet, protocol: Protocol, clip_format: ClipFormat, *, seed: int = 0):
        super().__init__(labelled, protocol, clip_format)
        if protocol.augmentation is None:
            raise ValueError(
                f"the protocol '{protocol.name}' has no augmentation; take EvaluationClips for its training clips"
            )
        self.augmentation: Augmentation = protocol.augmentation
        self.seed = seed
        _ = self._image_transform if protocol.media == "image" else self._policy  # so that errors come up here

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pixels of an item."""
        size = self.clip_format.crop_size
        return (self.clip_spec.num_segments, self._num_frames, 3, size, size)

    def __getitem__(self, request: ClipRequest | int) -> LabelledClip:
        """Read a video or image.

        Args:
            request: Position in the run and place in the set; or the place alone, which then is the position too.
        """
        position, index = request if isinstance(request, tuple) else (request, request)
        is_image = self.protocol.media == "image"
        read = self._read_image if is_image else self._read_video
        return self._item(index, lambda: read(index, position))

    def _read_video(self, index: int, position: int) -> torch.Tensor:
        segments = self._segments(index, generator_at(self.seed, position, stream=Stream.CLIP))
        clips = [self._augment(clip, position * len(segments) + place) for place, clip in enumerate(segments)]
        return torch.stack(clips)  # (S, T, C, H, W)

    def _augment(self, frames: np.ndarray, position: int) -> torch.Tensor:
        """(T, C, H, W) normalised pixels of the frames (T, h, w, 3) of one segment."""
        colour_seed, erase_seed = self._seeds(position)
        frames = _augment_frames(frames, self._policy, colour_seed)
        height, width = frames.shape[1:3]
        crop = draw_crop(self.augmentation, height=height, width=width, seed=self.seed, position=position)
        box = torch.from_numpy(np.ascontiguousarray(frames[:, crop.rows, crop.columns])).movedim(-1, 1).float()
        size = self.clip_format.crop_size
        pixels = F.interpolate(box, size=(size, size), mode="bilinear", align_corners=False, antialias=False)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.clip_format.mean, self.clip_format.std))
        pixels = (pixels / 255 - mean) / std
        return self._erase(pixels.flip(-1) if crop.is_flipped else pixels, erase_seed)

    def _erase(self, pixels: torch.Tensor, seed: int) -> torch.Tensor:
        """One box for all frames; the noise in it differs between them."""
        if not self.augmentation.erase_probability:
            return pixels
        erase = RandomErasing(self.augmentation.erase_probability, mode="pixel", max_count=1, device="cpu")
        with drawing_from(seed):
            return erase(pixels.flatten(0, 1).contiguous()).unflatten(0, (-1, 3))

    def _seeds(self, position: int) -> list[int]:
        draws = draw_uniform(self.seed, [position], stream=Stream.AUGMENT, num_draws=2)[0]
        return (draws * 2**31).long().tolist()

    @cached_property
    def _policy(self) -> Callable[[Image.Image], Image.Image] | None:
        return _rand_augment(self.augmentation.auto_augment, self.clip_format.crop_size)

    def _read_image(self, index: int, position: int) -> torch.Tensor:
        image = self._image(index)
        with drawing_from(self._seeds(position)[0]):
            return self._as_clip(self._image_transform(image))

    @cached_property
    def _image_transform(self) -> Callable[[Image.Image], torch.Tensor]:
        augmentation = self.augmentation
        with _timm_errors(augmentation.auto_augment):
            return create_transform(
                input_size=self.clip_format.crop_size,
                is_training=True,
                scale=augmentation.scale,
                ratio=augmentation.ratio,
                hflip=augmentation.flip_probability,
                color_jitter=0.0,  # the default is some, where there is no policy
                auto_augment=augmentation.auto_augment,
                interpolation="bicubic",
                re_prob=augmentation.erase_probability,
                re_mode="pixel",
                re_count=1,
                mean=self.clip_format.mean,
                std=self.clip_format.std,
            )


def _rand_augment(name: str | None, crop_size: int) -> Callable[[Image.Image], Image.Image] | None:
    """Timm's policy of this name; its first letters tell which kind it is."""
    if name is None:
        return None
    if name.split("-")[0] != "rand":
        raise ValueError(
            f"auto_augment is '{name}', but for videos must be one of timm's RandAugment policies, such as "
            "'rand-m7-n4-mstd0.5-inc1', or None"
        )
    translation = int(crop_size * MAX_TRANSLATION)
    with _timm_errors(name):
        return rand_augment_transform(
            name, {"translate_const": translation, "interpolation": Image.Resampling.BICUBIC}
        )


@contextmanager
def _timm_errors(name: str | None) -> Iterator[None]:
    """Say which policy it was that timm could not make out; it asserts what it expects."""
    try:
        yield
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(
            f"auto_augment is '{name}', which timm does not know ({error}); name one of its policies, such as "
            "'rand-m7-n4-mstd0.5-inc1' or, for images, 'original', or None"
        ) from error


def _augment_frames(frames: np.ndarray, policy: Callable[[Image.Image], Image.Image] | None, seed: int) -> np.ndarray:
    """Apply one draw of the policy to all frames."""
    if policy is None:
        return frames
    changed = []
    for frame in frames:
        with drawing_from(seed):  # anew for each frame: so each gets the same
            changed.append(np.asarray(policy(Image.fromarray(frame))))
    return np.stack(changed)


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Have timm, which draws from the global generators, draw from a seed; then leave them as they were.

    Args:
        seed: In `[0, 2**32)`.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
