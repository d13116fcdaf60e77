"""Masks on a clip: the tokens that the encoder sees, and those that the predictor has to predict.

Shapes: D x R x C tokens of a clip (depth, rows, columns), in raster order; S columns of a figure, one depth each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image

from ..data.clip_sampling import sample_clip_indices
from ..data.masking import (
    CAUSAL,
    LONG_RANGE,
    RANDOM_TUBE,
    SHORT_RANGE,
    MaskPair,
    TokenGrid,
    mask_box,
    mask_future,
    sample_multi_block_masks,
    sample_random_tube_masks,
)
from ..hub.registry import find_model
from ..model.configuration_vjepa import VJEPAConfig
from ..model.video_processing_vjepa import VJEPAVideoProcessor
from .image_grid import ImageRow, draw_image_grid, evenly_spaced, resize_images
from .style import GREY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCKS = {"short-range": SHORT_RANGE, "long-range": LONG_RANGE, "causal": CAUSAL}
TRAINING_KINDS = ("short-range", "long-range", "random-tube", "causal")
MASK_KINDS = (*TRAINING_KINDS, "future", "box")

HIDDEN, UNUSED, GRID_LINE = (24, 24, 28), (232, 232, 236), (62, 62, 70)
# Share of a cover's colour: little of the frame is left, enough to guess what is hidden, which the encoder cannot
HIDDEN_OPACITY, UNUSED_OPACITY = 0.86, 0.80
# Pixels of a frame's longer side, before it is rounded to a whole number for each patch
FRAME_SIDE = 168
MIN_LINE_SPACING = 6
NUM_MOMENTS = 8


class TimedFrames(Protocol):
    """An open video, or an image as a video of one frame."""

    num_frames: int

    @property
    def timestamps(self) -> np.ndarray: ...  # noqa: D102

    def read_frames(self, indices: np.ndarray, /) -> np.ndarray: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class MaskSampler:
    """Masks of any kind for one grid; the same settings give the same masks.

    Attributes:
        grid: The tokens of a clip.
        step: Iteration of training, from 0: the size of the blocks follows from it.
        seed: Seed of the places of blocks and patches.
        batch_size: Clips that are masked together and cut to the smallest count; the first of them is shown.
        frame: First hidden frame of the kind "future"; None is the middle one.
        box: (top, left, bottom, right) in pixels for the kind "box"; None is the middle half of the frame.
    """

    grid: TokenGrid
    step: int = 0
    seed: int = 0
    batch_size: int = 1
    frame: int | None = None
    box: tuple[int, int, int, int] | None = None

    def sample(self, kind: str) -> MaskPair:
        """The masks of one of `MASK_KINDS`.

        Raises:
            KeyError: There is no such kind.
            ValueError: The kind is impossible on this grid, as `data.masking` says.
        """
        grid, generator = self.grid, torch.Generator().manual_seed(self.seed)
        if kind in BLOCKS:
            return sample_multi_block_masks(BLOCKS[kind], grid, self.batch_size, step=self.step, generator=generator)
        if kind == "random-tube":
            return sample_random_tube_masks(RANDOM_TUBE, grid, self.batch_size, generator=generator)
        if kind == "future":
            return mask_future(grid, grid.num_frames // 2 if self.frame is None else self.frame)
        if kind == "box":
            height, width = grid.height, grid.width
            middle = (height // 4, width // 4, height - height // 4, width - width // 4)
            top, left, bottom, right = self.box or middle
            return mask_box(grid, top=top, left=left, bottom=bottom, right=right)
        raise KeyError(f"unknown kind of mask '{kind}'; available: {', '.join(MASK_KINDS)}")


def count_tokens(mask: MaskPair, grid: TokenGrid) -> dict[str, str]:
    """Numbers of tokens in the context, in the targets and in neither (where a batch was cut to its smallest counts),
    the share that is hidden from the encoder, and the mask token that stands for the targets.
    """
    num_context, num_targets = mask.context_mask.shape[1], mask.target_mask.shape[1]
    return {
        "context": str(num_context),
        "targets": str(num_targets),
        "in neither": str(grid.num_tokens - num_context - num_targets),
        "hidden": f"{1 - num_context / grid.num_tokens:.1%}",
        "mask token": str(mask.mask_index),
    }


def token_grid(model: str, size: str | None = None) -> TokenGrid:
    """The tokens of a model's clips.

    Args:
        model: A name of the registry, or a folder with a configuration. Weights are not read.
        size: Pixels of the clip, "224" or "192x320" (height x width); None is the model's crop.

    Raises:
        KeyError: there is no such model.
        ValueError: `size` is something else, or no multiple of the patch size.
    """
    config = VJEPAConfig.from_pretrained(model) if Path(model).is_dir() else find_model(model).config()
    if size is None:
        return TokenGrid.from_config(config)
    if not (matched := re.fullmatch(r"(\d+)(?:x(\d+))?", size)):
        raise ValueError(f"size is '{size}', but has to be pixels: one number, as 224, or height x width, as 192x320")
    return TokenGrid.from_config(config, height=int(matched[1]), width=int(matched[2] or matched[1]))


def read_tubelet_frames(video: TimedFrames, grid: TokenGrid, *, frame_step: int = 4) -> tuple[np.ndarray, list[float]]:
    """The first frame of each tubelet of a video's first clip, resized and cropped as the model sees it, and its time.

    Args:
        video: The open video.
        grid: The tokens of the clip, which give its frames, its height and its width.
        frame_step: Video frames from one frame of the clip to the next.

    Returns:
        uint8 (depth, height, width, 3), and seconds.

    Raises:
        VideoDecodingError: the video cannot be read.
    """
    clip = sample_clip_indices(video.num_frames, fps=None, frames_per_clip=grid.num_frames, frame_step=frame_step)[0]
    indices = clip[:: grid.tubelet_size]
    frames = video.read_frames(indices)
    crop, is_square = {"height": grid.height, "width": grid.width}, grid.height == grid.width
    # A crop that is not square keeps all that fits into it
    enlarged = max(grid.height / frames.shape[1], grid.width / frames.shape[2]) * min(frames.shape[1:3])
    size = None if is_square else {"shortest_edge": math.ceil(enlarged)}
    processor = VJEPAVideoProcessor(crop_size=crop, size=size, do_rescale=False, do_normalize=False)
    pixels = processor([frames], return_tensors="pt")["pixel_values_videos"][0]
    seen = pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return seen, [float(video.timestamps[index]) for index in indices]


def describe_tokens(masks: Mapping[str, MaskPair], grid: TokenGrid) -> str:
    """Numbers of tokens, and the meaning of their colours."""
    sentence = (
        f"{grid.depth} x {grid.rows} x {grid.columns} = {grid.num_tokens} tokens of {grid.tubelet_size} frames x "
        f"{grid.patch_size} x {grid.patch_size} pixels; dark ones are hidden, to be predicted"
    )
    is_cut = any(count_tokens(mask, grid)["in neither"] != "0" for mask in masks.values())
    return sentence + "; pale ones are cut off to fit the batch" if is_cut else sentence


def draw_masks(
    frames: np.ndarray,
    seconds: Sequence[float],
    grid: TokenGrid,
    masks: Mapping[str, MaskPair],
    *,
    title: str,
    model: str,
) -> Figure:
    """Draw a clip and below it a row for each mask; a column for each of up to 8 depths.

    A target token is dark, a context token as the encoder sees it, and one in neither mask (cut off to fit the batch)
    pale.

    Args:
        frames: uint8 (depth, height, width, 3), as from `read_tubelet_frames`.
        seconds: Their times.
        grid: The tokens of the clip.
        masks: By kind; of a batch the first clip is shown.
        title: Name of the video.
        model: Name of the model.
    """
    depths = evenly_spaced(grid.depth, NUM_MOMENTS)
    side = max(1, round(FRAME_SIDE / max(grid.rows, grid.columns)))
    size = grid.columns * side, grid.rows * side
    shown = resize_images(frames[depths], size, Image.Resampling.BICUBIC)
    rows = [ImageRow("clip", "", shown)]
    for kind, mask in masks.items():
        is_target, is_context = (
            _where(tokens, grid)[depths].repeat(side, axis=1).repeat(side, axis=2)
            for tokens in (mask.target_mask, mask.context_mask)
        )
        images = _covered(shown, ~(is_target | is_context), UNUSED, UNUSED_OPACITY)
        images = _covered(images, is_target, HIDDEN, HIDDEN_OPACITY)
        if side >= MIN_LINE_SPACING:  # lines between hidden tokens, so that these can be counted
            is_line = np.zeros_like(is_target)
            is_line[:, side - 1 : -1 : side] = is_line[:, :, side - 1 : -1 : side] = True
            images[is_line & is_target] = GRID_LINE
        rows.append(
            ImageRow(kind, ", ".join(f"{name} {count}" for name, count in count_tokens(mask, grid).items()), images)
        )
    return draw_image_grid(
        rows,
        [f"{seconds[depth]:.2f} s" for depth in depths],
        title=title,
        lines=[(f"{model}: {describe_tokens(masks, grid)}", GREY)],
    )


def _where(tokens: torch.Tensor, grid: TokenGrid) -> np.ndarray:
    """Places of the tokens of the first clip of a batch (B, num_kept): boolean (D, R, C)."""
    is_kept = np.zeros(grid.num_tokens, dtype=bool)
    is_kept[tokens[0].numpy()] = True
    return is_kept.reshape(grid.depth, grid.rows, grid.columns)


def _covered(images: np.ndarray, where: np.ndarray, colour: tuple[int, int, int], opacity: float) -> np.ndarray:
    mixed = images * (1 - opacity) + np.array(colour) * opacity
    return np.where(where[..., None], mixed.round().astype(np.uint8), images)
