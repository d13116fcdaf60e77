"""Pictures of masks: what the encoder sees of a clip and what the predictor has to fill in, for each kind of mask.

Shapes: B clips of D x R x C tokens (depth, rows, columns), in raster order; S columns of a picture, one depth each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

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
from .extraction import DEFAULT_FRAME_STEP, open_frames
from .pictures import (
    GAP,
    GREY,
    INK,
    LABEL_SIZE,
    MARGIN,
    TEXT_SIZE,
    TITLE_SIZE,
    cell_size,
    draw_time,
    evenly_spaced,
    paper_with_header,
    picture_font,
    save_gif,
    save_png,
)

TRAINING_KINDS = ("short-range", "long-range", "random-tube", "causal")
HAND_MADE_KINDS = ("future", "box")
MASK_KINDS = TRAINING_KINDS + HAND_MADE_KINDS

HIDDEN, UNUSED, GRID_LINE = (24, 24, 28), (232, 232, 236), (62, 62, 70)
# How much of a cell's colour is left of the frame: enough to guess what is hidden, which the encoder cannot
HIDDEN_OPACITY, UNUSED_OPACITY = 0.86, 0.80
CAPTION_SIZE = 15
MIN_LINE_SPACING = 6
MAX_PANEL_COLUMNS = 3

Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class MaskDraw:
    """Which masks are drawn, and for what.

    Args:
        grid: The tokens of a clip.
        step: Iteration of training, from 0: the size of the blocks follows from it.
        seed: Seed of the places of blocks and patches.
        batch_size: Clips that are drawn together and cut to the smallest count; the first of them is shown.
        frame: First hidden frame of the kind "future"; None is the middle one.
        box: (top, left, bottom, right) in pixels for the kind "box"; None is the middle half of the frame.
    """

    grid: TokenGrid
    step: int = 0
    seed: int = 0
    batch_size: int = 1
    frame: int | None = None
    box: Box | None = None

    def mask(self, kind: str) -> MaskPair:
        """The masks of one kind: that of `MASK_KINDS`.

        Raises:
            KeyError: There is no such kind.
            ValueError: The kind cannot be drawn on this grid, as `data.masking` says.
        """
        generator = torch.Generator().manual_seed(self.seed)
        if kind in (blocks := {"short-range": SHORT_RANGE, "long-range": LONG_RANGE, "causal": CAUSAL}):
            return sample_multi_block_masks(
                blocks[kind], self.grid, self.batch_size, step=self.step, generator=generator
            )
        if kind == "random-tube":
            return sample_random_tube_masks(RANDOM_TUBE, self.grid, self.batch_size, generator=generator)
        if kind == "future":
            return mask_future(self.grid, self.grid.num_frames // 2 if self.frame is None else self.frame)
        if kind == "box":
            top, left, bottom, right = self.box or self._middle_half()
            return mask_box(self.grid, top=top, left=left, bottom=bottom, right=right)
        raise KeyError(f"unknown kind of mask '{kind}'; available: {', '.join(MASK_KINDS)}")

    def _middle_half(self) -> Box:
        height, width = self.grid.height, self.grid.width
        return height // 4, width // 4, height - height // 4, width - width // 4


@dataclass(frozen=True)
class MaskCounts:
    """The tokens of the first clip of a batch.

    Attributes:
        num_context: Tokens that the encoder sees.
        num_targets: Tokens that the predictor predicts.
        num_tokens: Tokens of the clip; more than both together where the batch was cut to its smallest counts.
        mask_index: The predictor's mask token that stands for the targets.
    """

    num_context: int
    num_targets: int
    num_tokens: int
    mask_index: int

    @classmethod
    def of(cls, mask: MaskPair, grid: TokenGrid) -> MaskCounts:
        """Count the tokens of a mask on its grid."""
        return cls(mask.context_mask.shape[1], mask.target_mask.shape[1], grid.num_tokens, mask.mask_index)

    @property
    def num_unused(self) -> int:
        """Tokens that are in neither mask."""
        return self.num_tokens - self.num_context - self.num_targets

    @property
    def share_hidden(self) -> float:
        """Share of the tokens that the encoder does not see."""
        return 1 - self.num_context / self.num_tokens

    def sentence(self) -> str:
        """The counts in words."""
        text = (
            f"context {self.num_context}, targets {self.num_targets} of {self.num_tokens} tokens; "
            f"{100 * self.share_hidden:.1f} % hidden; mask token {self.mask_index}"
        )
        return text + f"; {self.num_unused} in neither" if self.num_unused else text


@dataclass(frozen=True)
class MaskedClip:
    """What pictures of masks are drawn from.

    Attributes:
        frames: uint8 (depth, height, width, 3), the first frame of each tubelet as the model sees it.
        seconds: Time of each of these frames.
        grid: The tokens of the clip.
        masks: The masks by kind, drawn for `grid`.
        title: The first line.
        model: What the grid belongs to.
    """

    frames: np.ndarray
    seconds: list[float]
    grid: TokenGrid
    masks: dict[str, MaskPair]
    title: str
    model: str

    @property
    def subtitle(self) -> str:
        """What the tokens are, and what their colours mean."""
        grid = self.grid
        sentence = (
            f"{self.model}: {grid.depth} x {grid.rows} x {grid.columns} = {grid.num_tokens} tokens of "
            f"{grid.tubelet_size} frames x {grid.patch_size} x {grid.patch_size} pixels; dark ones are hidden, to be "
            "predicted"
        )
        is_cut = any(MaskCounts.of(mask, grid).num_unused for mask in self.masks.values())
        return sentence + "; pale ones are cut off to fit the batch" if is_cut else sentence


def read_clip_frames(
    video_path: str | Path, grid: TokenGrid, *, backend: str | None = None
) -> tuple[np.ndarray, list[float]]:
    """The first frame of each tubelet of a video's first clip, resized and cropped as the model sees it, and its time.

    Args:
        video_path: A video or an image.
        grid: The tokens of the clip, which give its frames, its height and its width.
        backend: Video decoder, as for `open_video`.

    Returns:
        uint8 (depth, height, width, 3), and seconds.

    Raises:
        VideoDecodingError: the video cannot be read.
    """
    with open_frames(video_path, backend) as video:
        clip = sample_clip_indices(
            video.num_frames, fps=None, frames_per_clip=grid.num_frames, frame_step=DEFAULT_FRAME_STEP
        )[0]
        indices = clip[:: grid.tubelet_size]
        frames, seconds = video.read_frames(indices), [float(video.timestamps[index]) for index in indices]
    pixels = _processor(grid, frames.shape[1:3])([frames], return_tensors="pt")["pixel_values_videos"][0]
    return pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy(), seconds


def _processor(grid: TokenGrid, frame_size: tuple[int, ...]) -> VJEPAVideoProcessor:
    """Resizes and crops, and leaves values from 0 to 255. A crop that is not square keeps all that fits into it."""
    crop = {"height": grid.height, "width": grid.width}
    if grid.height == grid.width:
        return VJEPAVideoProcessor(crop_size=crop, do_rescale=False, do_normalize=False)
    enlarged = max(grid.height / frame_size[0], grid.width / frame_size[1])
    size = {"shortest_edge": math.ceil(enlarged * min(frame_size))}
    return VJEPAVideoProcessor(crop_size=crop, size=size, do_rescale=False, do_normalize=False)


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
        height = width = config.crop_size
    elif matched := re.fullmatch(r"(\d+)(?:x(\d+))?", size):
        height, width = int(matched[1]), int(matched[2] or matched[1])
    else:
        raise ValueError(f"size is '{size}', but has to be pixels: one number, as 224, or height x width, as 192x320")
    return TokenGrid.from_config(config, height=height, width=width)


def open_masked_clip(
    video_path: str | Path, draw: MaskDraw, kinds: Sequence[str], *, model: str, backend: str | None = None
) -> MaskedClip:
    """Read a video's first clip and draw its masks.

    Args:
        video_path: A video or an image.
        draw: Which masks, on which grid.
        kinds: Their kinds, of `MASK_KINDS`.
        model: What the grid belongs to, for the picture's header.
        backend: Video decoder, as for `open_video`.

    Raises:
        KeyError: there is no such kind.
        ValueError: a kind cannot be drawn on this grid.
        VideoDecodingError: the video cannot be read.
    """
    masks = {kind: draw.mask(kind) for kind in kinds}
    frames, seconds = read_clip_frames(video_path, draw.grid, backend=backend)
    return MaskedClip(frames, seconds, draw.grid, masks, Path(video_path).name, model)


def save_mask_pictures(
    clip: MaskedClip, draw: MaskDraw, output: str | Path, *, columns: int = 8, animation: bool = False
) -> list[Path]:
    """Write the still picture and, where it is wanted, the animation beside it (NAME.gif).

    Args:
        clip: What to draw.
        draw: How its masks were drawn; kept with the counts in the files' metadata.
        output: The PNG; its folder is made.
        columns: Depths in the still picture at most.
        animation: Whether to write the animation.

    Returns:
        The files that were written.
    """
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"model": clip.model, "step": str(draw.step), "seed": str(draw.seed)}
    metadata |= {kind: _counts(clip, kind) for kind in clip.masks}
    written = [save_png(draw_mask_picture(clip, columns=columns), path, metadata)]
    if animation:
        written.append(save_gif(draw_mask_animation(clip), clip.seconds, path.with_suffix(".gif"), metadata))
    return written


def draw_mask_picture(clip: MaskedClip, *, columns: int = 8, cell: int = 168) -> Image.Image:
    """The still picture: the clip, and below it a row for each mask; a column for each of some depths.

    A target token is dark, a context token as the encoder sees it, and one in neither mask (cut off to fit the batch)
    pale.

    Args:
        clip: What to draw.
        columns: Depths to show at most, evenly spread.
        cell: Length in pixels of a frame's longer side, rounded to whole pixels per patch.
    """
    depths = evenly_spaced(clip.grid.depth, columns)
    width, height = cell_size((clip.grid.rows, clip.grid.columns), cell)
    row_height = CAPTION_SIZE + 2 * GAP + height + GAP
    rows = [("clip", "", None), *((kind, _counts(clip, kind), mask) for kind, mask in clip.masks.items())]
    canvas, top = _paper(clip, len(depths) * (width + GAP) - GAP, len(rows) * row_height + LABEL_SIZE)
    for row, (name, sentence, mask) in enumerate(rows):
        y = top + row * row_height
        _draw_caption(canvas, name, sentence, x=MARGIN, y=y)
        for column, depth in enumerate(depths):
            frame = _draw_cell(clip, mask, depth, (width, height))
            canvas.paste(frame, (MARGIN + column * (width + GAP), y + CAPTION_SIZE + 2 * GAP))
    for column, depth in enumerate(depths):
        centre_x = MARGIN + column * (width + GAP) + width // 2
        draw_time(canvas, clip.seconds[depth], centre_x=centre_x, y=top + len(rows) * row_height)
    return canvas


def draw_mask_animation(clip: MaskedClip, *, cell: int = 280) -> list[Image.Image]:
    """The pictures of the animation, one for each depth: the clip and its masks side by side.

    Args:
        clip: What to draw.
        cell: Length in pixels of a frame's longer side, rounded to whole pixels per patch.
    """
    width, height = cell_size((clip.grid.rows, clip.grid.columns), cell)
    panels: list[tuple[str, MaskPair | None]] = [("clip", None), *clip.masks.items()]
    num_columns = min(len(panels), MAX_PANEL_COLUMNS)
    num_rows, panel_height = math.ceil(len(panels) / num_columns), CAPTION_SIZE + 2 * GAP + height + GAP
    body_width = num_columns * (width + GAP) - GAP
    paper, top = _paper(clip, body_width, num_rows * panel_height + LABEL_SIZE)
    images = []
    for depth, seconds in enumerate(clip.seconds):
        image = paper.copy()
        for number, (name, mask) in enumerate(panels):
            row, column = divmod(number, num_columns)
            x, y = MARGIN + column * (width + GAP), top + row * panel_height
            hidden = "" if mask is None else f"{100 * MaskCounts.of(mask, clip.grid).share_hidden:.1f} % hidden"
            _draw_caption(image, name, hidden, x=x, y=y)
            image.paste(_draw_cell(clip, mask, depth, (width, height)), (x, y + CAPTION_SIZE + 2 * GAP))
        draw_time(image, seconds, centre_x=MARGIN + body_width // 2, y=top + num_rows * panel_height)
        images.append(image)
    return images


def _paper(clip: MaskedClip, width: int, height: int) -> tuple[Image.Image, int]:
    return paper_with_header([(clip.title, TITLE_SIZE, INK), (clip.subtitle, TEXT_SIZE, GREY)], width, height)


def _counts(clip: MaskedClip, kind: str) -> str:
    return MaskCounts.of(clip.masks[kind], clip.grid).sentence()


def _draw_caption(canvas: Image.Image, name: str, sentence: str, *, x: int, y: int) -> None:
    draw, font = ImageDraw.Draw(canvas), picture_font(CAPTION_SIZE)
    draw.text((x, y + GAP), name, font=font, fill=INK)
    draw.text((x + font.getlength(name + "   "), y + GAP), sentence, font=font, fill=GREY)


def _draw_cell(clip: MaskedClip, mask: MaskPair | None, depth: int, size: tuple[int, int]) -> Image.Image:
    """One frame with the tokens of its depth that the encoder does not see covered, a square of pixels each."""
    frame = Image.fromarray(clip.frames[depth]).resize(size, Image.Resampling.BICUBIC)
    if mask is None:
        return frame
    is_target, is_context = (_cells_at(tokens, clip.grid, depth) for tokens in (mask.target_mask, mask.context_mask))
    frame = _covered(frame, ~(is_target | is_context), UNUSED, UNUSED_OPACITY)
    frame = _covered(frame, is_target, HIDDEN, HIDDEN_OPACITY)
    _draw_borders(frame, is_target)
    return frame


def _cells_at(tokens: torch.Tensor, grid: TokenGrid, depth: int) -> np.ndarray:
    """Where the tokens of the first clip of a batch (B, num_kept) lie at one depth: boolean (rows, columns)."""
    is_kept = torch.zeros(grid.num_tokens, dtype=torch.bool)
    is_kept[tokens[0]] = True
    return is_kept.view(grid.depth, grid.rows, grid.columns)[depth].numpy()


def _covered(frame: Image.Image, cells: np.ndarray, colour: tuple[int, int, int], opacity: float) -> Image.Image:
    cover = Image.blend(frame, Image.new("RGB", frame.size, colour), opacity)
    stencil = Image.fromarray(cells.astype(np.uint8) * 255).resize(frame.size, Image.Resampling.NEAREST)
    return Image.composite(cover, frame, stencil)


def _draw_borders(frame: Image.Image, cells: np.ndarray) -> None:
    """Thin lines between covered cells, so that tokens can be counted; none where cells are too small for them."""
    side = frame.width // cells.shape[1]
    if side < MIN_LINE_SPACING:
        return
    draw = ImageDraw.Draw(frame)
    for row, column in np.argwhere(cells):
        left, top = int(column) * side, int(row) * side
        if column + 1 < cells.shape[1] and cells[row, column + 1]:
            draw.line((left + side - 1, top, left + side - 1, top + side - 1), fill=GRID_LINE)
        if row + 1 < cells.shape[0] and cells[row + 1, column]:
            draw.line((left, top + side - 1, left + side - 1, top + side - 1), fill=GRID_LINE)
