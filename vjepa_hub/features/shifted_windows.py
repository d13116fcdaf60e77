"""Dense maps finer than the patches of a model, by shifted windows.

A clip is encoded n x n times, each time moved by a part of a patch, and the token maps are interleaved: a grid of
4 x 4 tokens becomes one of 16 x 16 with n = 4. Each window has the model's own size, so its positions are those of the
training. A cell stands where the centre of its token's patch lay; each still sums up a whole patch, so neighbouring
cells share most of their pixels.

Shapes: T frames of H x W pixels with C channels; n shifts in each direction; d x h x w tokens (depth, height, width)
with D features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from .extraction import encode_pixels

if TYPE_CHECKING:
    from ..hub.loading import OpenedModel

# Cells on the shorter side from which a map is worth looking at. The released models have 14 tokens there, or more.
ENOUGH_CELLS = 12
# The model runs once for each pair of shifts: 64 times.
MAX_SHIFTS = 8


def choose_num_shifts(grid: tuple[int, int], patch_size: int) -> int:
    """Shifts in each direction that make a map of at least 12 cells on its shorter side, or the most possible: 1 where
    the tokens themselves are enough.

    Args:
        grid: Rows and columns of tokens.
        patch_size: Side of a patch in pixels. The step, `patch_size / n`, has to be whole pixels, and so does the
            first shift, `(patch_size - step) / 2`.
    """
    divisors = [number for number in range(1, MAX_SHIFTS + 1) if patch_size % number == 0]
    possible = [number for number in divisors if (patch_size - patch_size // number) % 2 == 0]
    return next((number for number in possible if number * min(grid) >= ENOUGH_CELLS), possible[-1])


def encode_shifted(pixels: torch.Tensor, opened: OpenedModel, num_shifts: int) -> torch.Tensor:
    """The map of a clip in cells of a part of a patch. Beyond its border the frame's last pixels are repeated.

    Args:
        pixels: (num_frames, 3, crop_height, crop_width), a clip of `clip_pixels`.
        opened: The model.
        num_shifts: In each direction, as from `choose_num_shifts`. 1 gives what `encode_pixels` gives.

    Returns:
        (depth, num_shifts * height, num_shifts * width, hidden_size) on the CPU, in the model's dtype.

    Raises:
        FeatureExtractionError: as `encode_pixels`.
    """
    height, width = pixels.shape[2:]
    patch_size = opened.model.config.patch_size
    step = patch_size // num_shifts
    # The first window begins half a patch before the frame, less half a cell: its first token's centre is then that
    # of the first cell. The last one ends as far behind it.
    padded = nn.functional.pad(pixels, [(patch_size - step) // 2] * 4, mode="replicate")
    windows = padded.unfold(2, height, step).unfold(3, width, step).permute(2, 3, 0, 1, 4, 5)  # (n, n, T, C, H, W)
    tokens = encode_pixels(windows.flatten(0, 1), opened).unflatten(0, (num_shifts, num_shifts))  # (n, n, d, h, w, D)
    return tokens.permute(2, 3, 0, 4, 1, 5).flatten(3, 4).flatten(1, 2)  # (d, h n, w n, D)
