# Copyright 2026 The vjepa_hub authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Video processor of V-JEPA: decoded frames to the pixels that the released evaluations feed the encoder."""

import difflib
import math

import torch
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor

# The released evaluations resize to 256 where they crop 224
RESIZE_OVER_CROP = 256 / 224
# What transformers writes into the saved file beside the options
SAVED_WITH_OPTIONS = frozenset(("auto_map", "image_processor_type", "processor_class", "video_processor_type"))


class VJEPAVideoProcessorKwargs(VideosKwargs, total=False):
    """Options of [`VJEPAVideoProcessor`] beyond those of transformers' video processors.

    Attributes:
        num_spatial_views: 1 for the centre crop, 3 for three crops along the longer side.
    """

    num_spatial_views: int


def _side(crop_size) -> int:
    """The side of a square crop, given as transformers allows: an int, a pair, a dictionary or a SizeDict."""
    if isinstance(crop_size, int):
        return crop_size
    if isinstance(crop_size, (tuple, list)):
        height, width = crop_size if len(crop_size) == 2 else (crop_size[0], crop_size[0])
    else:
        height, width = crop_size["height"], crop_size["width"]
    if height != width:
        raise ValueError(f"crop_size is {crop_size}, but crops are square; pass one number, or equal height and width")
    return height


class VJEPAVideoProcessor(BaseVideoProcessor):
    """Resizes, crops and normalises decoded clips as the released evaluations do.

    The short side becomes `int(crop_size * 256 / 224)`, bilinear without antialiasing, then the centre is cropped; an
    explicit `size` wins. With `num_spatial_views=3` the short side becomes `crop_size` and three crops are taken along
    the longer side (left, centre, right; or top, centre, bottom): the views of a clip are consecutive rows of the
    batch. An image or a single frame becomes a clip of one frame, which the models repeat.

    Takes one clip or a list: numpy or torch `(num_frames, height, width, 3)` or channels first, uint8, or lists of
    PIL images. Returns `pixel_values_videos`, `(batch_size * num_spatial_views, num_frames, 3, crop, crop)`, float32.

    Args:
        crop_size: Side of the square crop, in pixels.
        size: Size after resizing, such as `{"shortest_edge": 256}`. By default derived from `crop_size`.
        num_spatial_views: 1 or 3.
        kwargs: The options of transformers' video processors.

    Example:
    ```python
    >>> import numpy as np
    >>> from vjepa_hub import VJEPAVideoProcessor

    >>> processor = VJEPAVideoProcessor(crop_size=224)
    >>> clip = np.zeros((16, 360, 640, 3), dtype=np.uint8)
    >>> processor(clip, return_tensors="pt")["pixel_values_videos"].shape
    torch.Size([1, 16, 3, 224, 224])
    ```
    """

    valid_kwargs = VJEPAVideoProcessorKwargs  # type: ignore[assignment]  # declared for images in the base class
    model_input_names = ["pixel_values_videos"]  # noqa: RUF012
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 256}  # noqa: RUF012
    crop_size = 224
    default_to_square = False
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = False
    num_spatial_views = 1

    def __init__(self, **kwargs: Unpack[VJEPAVideoProcessorKwargs]):
        self._check_options(kwargs)
        super().__init__(**self._with_size(kwargs))
        self._check_views(self.num_spatial_views)

    @classmethod
    def _check_options(cls, options: dict) -> None:
        known = cls.valid_kwargs.__annotations__
        for name in options:
            if name not in known and name not in SAVED_WITH_OPTIONS:
                nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise TypeError(f"VJEPAVideoProcessor has no option '{name}'; the nearest is '{nearest}'")

    @staticmethod
    def _with_size(options: dict) -> dict:
        """Derive the size from the crop where the crop alone is given."""
        if options.get("crop_size") is None or options.get("size") is not None:
            return options
        return options | {"size": {"shortest_edge": int(_side(options["crop_size"]) * RESIZE_OVER_CROP)}}

    @staticmethod
    def _check_views(num_spatial_views: int) -> None:
        if num_spatial_views not in (1, 3):
            raise ValueError(f"num_spatial_views is {num_spatial_views}, but must be 1 (centre crop) or 3")

    @classmethod
    def from_dict(cls, video_processor_dict: dict, **kwargs):  # type: ignore[override]
        """Build from saved options; a new `crop_size` brings its size with it, unless a size is given too."""
        return super().from_dict(video_processor_dict, **cls._with_size(kwargs))

    def preprocess(self, videos, **kwargs: Unpack[VJEPAVideoProcessorKwargs]):
        """Process clips; options given here win over those of the constructor.

        Raises:
            TypeError: An option does not exist (transformers alone would at most log it).
        """
        self._check_options(kwargs)
        self._check_views(kwargs.get("num_spatial_views", self.num_spatial_views))
        return super().preprocess(videos, **self._with_size(kwargs))

    def resize(self, image: torch.Tensor, size, resample=None, antialias: bool = False, **kwargs) -> torch.Tensor:
        """Resize frames `(..., height, width)` as float32; without antialiasing, as the release does, unless asked."""
        return super().resize(image.float(), size, resample=resample, antialias=antialias, **kwargs)

    def _preprocess(self, videos, *args, num_spatial_views: int = 1, **kwargs):  # type: ignore[override]
        if num_spatial_views == 1:
            return super()._preprocess(videos, *args, **kwargs)
        side = _side(kwargs["crop_size"])
        kwargs["size"] = type(kwargs["size"])(shortest_edge=side)
        resized = [self.resize(video, kwargs["size"], kwargs["resample"]) for video in videos]
        views = [view for video in resized for view in _three_views(video, side)]
        return super()._preprocess(views, *args, **kwargs | {"do_resize": False, "do_center_crop": False})


def _three_views(video: torch.Tensor, side: int) -> list[torch.Tensor]:
    """Three square crops along the longer side of `(num_frames, channels, height, width)`."""
    axis = 2 if video.shape[2] > video.shape[3] else 3
    slack = video.shape[axis] - side
    return [video.narrow(axis, start, side) for start in (0, math.ceil(slack / 2), slack)]


__all__ = ["VJEPAVideoProcessor"]
