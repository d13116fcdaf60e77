"""Dense maps finer than the patches of a model, by shifted windows.

A clip is encoded n x n times, each time moved by a part of a patch, and the token maps are interleaved: a grid of
4 x 4 tokens becomes one of 16 x 16 with n = 4. Each window has the model's own size, so its positions are those of the
training. A cell stands where the centre of its token's patch lay; each still sums up a whole patch, so neighbouring
cells share most of their pixels.

Shapes: T frames of H x W pixels with C channels; n shifts in each direction; d x h x w tokens (depth, height, width)
with D features.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import nn

from .extraction import StillImage, clip_pixels, encode_pixels

if TYPE_CHECKING:
    from ..data.video import VideoReader
    from ..hub.loading import OpenedModel

Detail = int | Literal["auto"]
# Cells on the shorter side from which a map is worth looking at. The released models have 14 tokens there, or 24.
ENOUGH_CELLS = 12
# The model runs once for each pair of shifts: 64 times.
MAX_DETAIL = 8
# The maps of this many clips are kept, so that those of a short video are computed once.
NUM_KEPT_CLIPS = 16


def choose_detail(detail: Detail, opened: OpenedModel) -> int:
    """Shifts in each direction.

    The step, `patch_size / detail`, has to be whole pixels, and so does the first shift, `(patch_size - step) / 2`.

    Args:
        detail: How many are wanted. "auto" is the smallest number that makes a map of at least 12 cells on its shorter
            side, or the largest possible one: 1, for no shifts, where the tokens themselves are enough.
        opened: The model and its processor.

    Raises:
        ValueError: a number that the model's patches do not allow.
    """
    patch_size, crop = opened.model.config.patch_size, opened.processor.to_dict()["crop_size"]
    divisors = [number for number in range(1, MAX_DETAIL + 1) if patch_size % number == 0]
    possible = [number for number in divisors if (patch_size - patch_size // number) % 2 == 0]
    if detail == "auto":
        num_tokens = min(crop["height"], crop["width"]) // patch_size
        return next((number for number in possible if number * num_tokens >= ENOUGH_CELLS), possible[-1])
    if detail not in possible:
        raise ValueError(
            f"detail is {detail}; patches of {patch_size} pixels move by whole pixels with "
            f"{', '.join(map(str, possible))}: take one of these, or auto"
        )
    return detail


def encode_shifted(clip: np.ndarray, opened: OpenedModel, detail: int) -> torch.Tensor:
    """The map of a clip in cells of a part of a patch. Beyond its border the frame's last pixels are repeated.

    Args:
        clip: uint8 (num_frames, height, width, 3).
        opened: The model and its processor.
        detail: Shifts in each direction, as from `choose_detail`. 1 gives what `encode_clips` gives.

    Returns:
        (depth, detail * height, detail * width, hidden_size) on the CPU, in the model's dtype.

    Raises:
        FeatureExtractionError, ValueError: as `encode_clips`.
    """
    pixels = clip_pixels([clip], opened)[0]  # (T, C, H, W)
    height, width = pixels.shape[2:]
    patch_size = opened.model.config.patch_size
    step = patch_size // detail
    # The first window begins half a patch before the frame, less half a cell: its first token's centre is then that
    # of the first cell. The last one ends as far behind it.
    padded = nn.functional.pad(pixels, [(patch_size - step) // 2] * 4, mode="replicate")
    windows = padded.unfold(2, height, step).unfold(3, width, step).permute(2, 3, 0, 1, 4, 5)  # (n, n, T, C, H, W)
    tokens = torch.stack([encode_pixels(row, opened) for row in windows])  # (n, n, d, h, w, D)
    return tokens.permute(2, 3, 0, 4, 1, 5).flatten(3, 4).flatten(1, 2)  # (d, h n, w n, D)


class ShiftedMaps:
    """The maps of a video's clips in parts of a patch, indexed as dense features are and computed when asked for.

    `maps[clip]` is (depth, height, width, hidden_size); `maps[::3]` has an axis of clips before these.

    Args:
        video: The open video.
        frame_indices: (num_clips, num_frames), the frames of each clip.
        opened: The model and its processor.
        detail: Shifts in each direction.
    """

    def __init__(
        self, video: VideoReader | StillImage, frame_indices: torch.Tensor, opened: OpenedModel, detail: int
    ) -> None:
        @lru_cache(NUM_KEPT_CLIPS)
        def encode(clip: int) -> torch.Tensor:
            return encode_shifted(video.read_frames(frame_indices[clip].numpy()), opened, detail)

        self._encode, self._num_clips = encode, len(frame_indices)

    def __getitem__(self, clips: int | slice) -> torch.Tensor:
        if isinstance(clips, slice):
            return torch.stack([self._encode(clip) for clip in range(self._num_clips)[clips]])
        return self._encode(clips)
