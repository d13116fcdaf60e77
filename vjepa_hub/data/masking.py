"""Masks: which tokens of a clip the encoder sees (the context), and which the predictor has to predict (the targets).

The tokens of a clip are its tubelets in raster order: depth (time) first, then rows, then columns, so that the tubelet
at depth `d`, row `r` and column `c` is token `(d * rows + r) * columns + c`. A mask is an int64 tensor of token
indices, one row for each clip of a batch.

The masks of training are drawn, as settings say: those of multi-block masks (`SHORT_RANGE` and `LONG_RANGE` of the
released training, `CAUSAL`) or of random tubes (`RANDOM_TUBE`). A training run draws them with `sample_masks_at`, for
positions of its global order, so that they depend neither on workers nor on processes nor on a resume; elsewhere
`sample_multi_block_masks` and `sample_random_tube_masks` draw from a generator. Both end with a cut to one number of
tokens for all clips of the batch, which can be replaced: `cut_to_batch_minimum`, `cut_at_random`.

Masks made by hand hide the future, a box or a tube: `mask_future`, `mask_box`, `mask_tube`.

Shapes: B clips in the batch, K blocks, D x R x C the grid (depth, rows, columns), N = D * R * C tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, TypeAlias

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from ..core.settings import PositiveRange, Settings, Share, ShareRange, require_at_least
from .random_streams import Stream, draw_uniform

if TYPE_CHECKING:
    from typing_extensions import Self

# A clip whose blocks leave no context is drawn again: about 2 % of the clips of `LONG_RANGE` at 224 pixels, none of
# `SHORT_RANGE`. Settings that leave none in more than three quarters of the draws are refused before a run
# (`require_possible`): with the others, a hundred draws in a row do not fail in practice (0.75^100 is 3e-13).
MAX_DRAWS = 100
MAX_EMPTY_SHARE = 0.75
_DRAWS_OF_CHECK = 1000
_ASPECT_RATIOS_OF_CHECK = 129
# The cut draws its numbers far behind those of the blocks, so that it changes none of them.
_FIRST_DRAW_OF_CUT = 2**32

# Draws so many uniform numbers for each clip of a batch: float64 (batch_size, num_draws), in [0, 1).
Draw: TypeAlias = Callable[[int], torch.Tensor]
# The same for some clips of a batch, from the draw of a given number on: (clips, first_draw, num_draws).
_DrawFor: TypeAlias = Callable[[np.ndarray, int, int], torch.Tensor]


class TokenizerConfig(Protocol):
    """Sizes of a clip and its tokens, as a `VJEPAConfig` has them, which this room does not know."""

    frames_per_clip: int
    crop_size: int
    patch_size: int
    tubelet_size: int


class TokenGrid(Settings):
    """The tokens that the encoder makes of one clip: one for each tubelet of `tubelet_size` frames and `patch_size`
    pixels squared.

    Args:
        num_frames: Frames of the clip, a multiple of `tubelet_size`.
        height: Pixels, a multiple of `patch_size`.
        width: Pixels, a multiple of `patch_size`.
        patch_size: Side of a patch in pixels.
        tubelet_size: Frames of a tubelet.
    """

    num_frames: PositiveInt
    height: PositiveInt
    width: PositiveInt
    patch_size: PositiveInt = 16
    tubelet_size: PositiveInt = 2

    @model_validator(mode="after")
    def _require_multiples(self) -> "Self":
        for name, divisor_name in (("num_frames", "tubelet_size"), ("height", "patch_size"), ("width", "patch_size")):
            value, divisor = getattr(self, name), getattr(self, divisor_name)
            if value % divisor:
                raise ValueError(
                    f"{name} is {value}, but must be a multiple of {divisor_name}={divisor}; crop or resize to "
                    f"{max(divisor, round(value / divisor) * divisor)}, for example"
                )
        return self

    @classmethod
    def from_config(
        cls,
        config: TokenizerConfig,
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> "TokenGrid":
        """The tokens that a model makes of a clip.

        Args:
            config: The model's.
            num_frames: Frames of the clip; None: as many as the model is made for, and so for the other two.
            height: Pixels.
            width: Pixels.

        Raises:
            ValueError: As the class itself.
        """
        return cls(
            num_frames=config.frames_per_clip if num_frames is None else num_frames,
            height=config.crop_size if height is None else height,
            width=config.crop_size if width is None else width,
            patch_size=config.patch_size,
            tubelet_size=config.tubelet_size,
        )

    @property
    def depth(self) -> int:
        """Tokens along time."""
        return self.num_frames // self.tubelet_size

    @property
    def rows(self) -> int:
        """Tokens along the height."""
        return self.height // self.patch_size

    @property
    def columns(self) -> int:
        """Tokens along the width."""
        return self.width // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Tokens of one clip."""
        return self.depth * self.rows * self.columns


@dataclass(frozen=True, eq=False)
class MaskPair:
    """The context and the target tokens of each clip of a batch.

    Args:
        context_mask: Tokens that the encoder sees, int64 `(batch_size, num_context)`.
        target_mask: Tokens that the predictor predicts, int64 `(batch_size, num_targets)`.
        mask_index: Which of the predictor's mask tokens stands for the targets. In training 0 belongs to the
            short-range and 1 to the long-range masks.

    Raises:
        ValueError: If a mask is no int64 matrix, is empty or has negative values, if the two have different batch
            sizes, or if a clip has a token in both.
    """

    context_mask: torch.Tensor
    target_mask: torch.Tensor
    mask_index: int

    def __post_init__(self) -> None:
        for name in ("context_mask", "target_mask"):
            _require_token_indices(name, getattr(self, name))
        _require_disjoint(self.context_mask, self.target_mask)
        require_at_least(0, mask_index=self.mask_index)


class MultiBlockMasking(Settings):
    """Settings of one kind of multi-block masks (paper, section 3.2): the targets are a union of blocks.

    All blocks of a batch have the same size, drawn from these ranges; each has its own place.

    Args:
        num_blocks: Blocks in each clip; they may overlap.
        spatial_scale: Smallest and largest share of the frame that a block hides.
        temporal_scale: Smallest and largest share of the clip's depth that a block hides.
        aspect_ratio: Smallest and largest ratio of a block's height to its width.
        max_temporal_keep: Causal multi-block masks: the context comes from this first share of the clip's depth, and
            all later tokens are targets. 0.5 keeps the first half of the clip's frames, 1.0 puts no limit.
        max_context_tokens: The context of all clips is cut to this number, unless one of the batch has fewer; None
            cuts to the batch's smallest alone, as the released configurations do.
        mask_index: Which of the predictor's mask tokens stands for the targets; in a file, the place in the list.
    """

    kind: Literal["multi-block"] = "multi-block"
    num_blocks: PositiveInt
    spatial_scale: ShareRange
    temporal_scale: ShareRange = (1.0, 1.0)
    aspect_ratio: PositiveRange = (0.75, 1.5)
    max_temporal_keep: Share = 1.0
    max_context_tokens: PositiveInt | None = None
    mask_index: NonNegativeInt = Field(default=0, exclude=True)


class RandomTubeMasking(Settings):
    """Settings of random tube masks (paper, ablation of masks): the same random patches are hidden in all frames.

    Args:
        ratio: Share of the patches that are hidden, between 0 and 1.
        mask_index: Which of the predictor's mask tokens stands for the targets; in a file, the place in the list.
    """

    kind: Literal["random-tube"] = "random-tube"
    ratio: float = Field(default=0.9, gt=0, lt=1)
    mask_index: NonNegativeInt = Field(default=0, exclude=True)


# The two kinds that training uses together (paper, section 3.2, and the released configurations of all three models).
SHORT_RANGE = MultiBlockMasking(num_blocks=8, spatial_scale=(0.15, 0.15), mask_index=0)
LONG_RANGE = MultiBlockMasking(num_blocks=2, spatial_scale=(0.7, 0.7), mask_index=1)
# The others of the paper's ablation of masks: context from the first 12 of 16 frames, and tubes that hide 90 %.
CAUSAL = SHORT_RANGE.with_values(max_temporal_keep=0.75)
RANDOM_TUBE = RandomTubeMasking()

MaskKind: TypeAlias = Annotated[MultiBlockMasking | RandomTubeMasking, Field(discriminator="kind")]


class Cut(Protocol):
    """Chooses which tokens of each clip are kept, so that all clips of a batch keep equally many."""

    def __call__(self, is_kept: torch.Tensor, *, max_kept: int | None, draw: Draw) -> torch.Tensor:
        """Cuts the context, or the targets, of a batch.

        Args:
            is_kept: The tokens to choose from, boolean `(batch_size, num_tokens)`.
            max_kept: A clip keeps at most so many; None puts no limit.
            draw: `draw(num_draws)` are uniform numbers of each clip, float64 `(batch_size, num_draws)`. In training
                they follow from the seed and the positions of the clips.

        Returns:
            Ascending token indices, int64 `(batch_size, num_kept)`.
        """


# ------------------------------------------------------------------------------------------------ masks of training


def cut_to_batch_minimum(
    is_kept: torch.Tensor, *, max_kept: int | None = None, draw: Draw | None = None
) -> torch.Tensor:
    """Turns boolean masks into indices, and cuts all clips to the batch's smallest count.

    A clip that has more loses its last tokens in raster order, which are those of its last frames, as in the released
    training.

    Args:
        is_kept: Boolean `(batch_size, num_tokens)`.
        max_kept: A clip keeps at most so many tokens; None puts no limit.
        draw: Not needed, as nothing is random here; other cuts draw from it.

    Returns:
        Ascending token indices, int64 `(batch_size, num_kept)`.
    """
    batch_size, num_tokens = is_kept.shape
    tokens = np.flatnonzero(is_kept.numpy())  # those of all clips, one clip after the other
    first_tokens = np.arange(batch_size) * num_tokens  # (B)
    starts = tokens.searchsorted(first_tokens)
    num_kept = _num_kept(np.diff(starts, append=len(tokens)), max_kept)
    kept = tokens.take(starts[:, None] + np.arange(num_kept))  # (B, num_kept)
    return torch.from_numpy(kept - first_tokens[:, None])


def cut_at_random(is_kept: torch.Tensor, *, max_kept: int | None = None, draw: Draw) -> torch.Tensor:
    """Turns boolean masks into indices, and cuts all clips to the batch's smallest count, at random.

    Unlike the released training, a clip that has more loses tokens of all its frames alike.

    Args:
        is_kept: Boolean `(batch_size, num_tokens)`.
        max_kept: A clip keeps at most so many tokens; None puts no limit.
        draw: Draws the order in which the tokens of a clip are lost.

    Returns:
        Ascending token indices, int64 `(batch_size, num_kept)`.
    """
    order = draw(is_kept.shape[1]).masked_fill(~is_kept, math.inf)  # (B, N)
    num_kept = _num_kept(is_kept.numpy().sum(axis=1), max_kept)
    return order.topk(num_kept, dim=1, largest=False, sorted=False).indices.sort(dim=1).values


def sample_multi_block_masks(
    settings: MultiBlockMasking, grid: TokenGrid, batch_size: int, *, step: int, generator: torch.Generator
) -> MaskPair:
    """Draws multi-block masks: targets are the union of a clip's blocks, the context is the rest.

    The size of the blocks follows from `step` alone, so that all ranks and workers agree on it; their places are drawn
    for each clip. A clip without context is drawn again. Then all clips are cut to the smallest count of the batch.

    Args:
        settings: The kind of masks, such as `SHORT_RANGE` or `LONG_RANGE`.
        grid: The tokens of a clip.
        batch_size: Clips to draw masks for.
        step: Iteration of the training run, from 0.
        generator: Draws the places of the blocks.

    Returns:
        Masks with `(batch_size, num_context)` and `(batch_size, num_targets)` tokens in ascending order. The two need
        not make up the whole clip, because of the cut.

    Raises:
        ValueError: If the blocks leave a clip without context 100 times in a row.
    """
    require_at_least(1, batch_size=batch_size)
    clips, draw = np.arange(batch_size), _draw_from(generator)
    is_context = _draw_block_context(settings, grid, clips, step=step, draw=draw)
    return _cut_to_pair(is_context, settings, cut=cut_to_batch_minimum, draw=draw)


def sample_random_tube_masks(
    settings: RandomTubeMasking, grid: TokenGrid, batch_size: int, *, generator: torch.Generator
) -> MaskPair:
    """Draws random tube masks: in each clip, random patches that are hidden in all frames.

    Args:
        settings: The share of hidden patches.
        grid: The tokens of a clip.
        batch_size: Clips to draw masks for.
        generator: Draws the patches of each clip.

    Returns:
        Masks with `depth * int(rows * columns * (1 - ratio))` context tokens in each clip; all others are targets.

    Raises:
        ValueError: If the grid has too few patches to keep one of them at this ratio.
    """
    require_at_least(1, batch_size=batch_size)
    clips, draw = np.arange(batch_size), _draw_from(generator)
    is_context = _draw_tube_context(settings, grid, clips, draw=draw)
    return _cut_to_pair(is_context, settings, cut=cut_to_batch_minimum, draw=draw)


def sample_masks_at(
    settings: MaskKind,
    grid: TokenGrid,
    positions: Sequence[int] | np.ndarray | torch.Tensor,
    *,
    seed: int,
    step: int,
    cut: Cut = cut_to_batch_minimum,
) -> MaskPair:
    """Draws the masks of clips at given positions of a training run's global order.

    Before the cut, the masks of a clip depend on its position, the seed, the step and the settings alone, not on the
    other clips of its batch. The cut looks at all of them.

    Args:
        settings: The kind of masks: `SHORT_RANGE`, `LONG_RANGE`, `CAUSAL`, `RANDOM_TUBE` or others.
        grid: The tokens of a clip.
        positions: Places of the clips in the global order, from 0. All belong to the same step.
        seed: Seed of the run.
        step: Optimiser step of the run, from 0: the size of the blocks follows from it alone.
        cut: Chooses which tokens remain where a clip has more than another: the release's cut, or another.

    Returns:
        Masks with `(batch_size, num_context)` and `(batch_size, num_targets)` tokens in ascending order.

    Raises:
        ValueError: If there are no positions, or settings and grid do not go together (`require_possible`).
    """
    require_at_least(1, num_positions=len(positions))
    all_positions = np.asarray(positions)

    def draw(clips: np.ndarray, first_draw: int, num_draws: int) -> torch.Tensor:
        stream = Stream.MASKS + settings.mask_index
        return draw_uniform(seed, all_positions[clips], stream=stream, num_draws=num_draws, first_draw=first_draw)

    clips = np.arange(len(all_positions))
    if isinstance(settings, RandomTubeMasking):
        is_context = _draw_tube_context(settings, grid, clips, draw=draw)
    else:
        is_context = _draw_block_context(settings, grid, clips, step=step, draw=draw)
    return _cut_to_pair(is_context, settings, cut=cut, draw=draw)


def sample_block_size(settings: MultiBlockMasking, grid: TokenGrid, *, step: int) -> tuple[int, int, int]:
    """Draws the size that all blocks of one iteration have: (depth, rows, columns), in tokens.

    Args:
        settings: The kind of masks.
        grid: The tokens of a clip.
        step: Iteration of the training run, from 0: the seed of the draw.
    """
    require_at_least(0, step=step)
    generator = torch.Generator().manual_seed(int(step))
    return _block_size(
        grid,
        temporal_scale=_draw_between(settings.temporal_scale, generator),
        spatial_scale=_draw_between(settings.spatial_scale, generator),
        aspect_ratio=_draw_between(settings.aspect_ratio, generator),
    )


def require_possible(settings: MaskKind, grid: TokenGrid) -> None:
    """Checks before a run that masks can be drawn at each of its steps.

    Blocks of the largest sizes that the settings allow must leave some context in at least a quarter of a thousand
    draws. Clips without context are drawn again, but not for ever: a run with other settings would stop at some step.

    Args:
        settings: The kind of masks.
        grid: The tokens of a clip.

    Raises:
        ValueError: If the blocks leave no context too often, or the tubes of a random tube hide every patch.
    """
    if isinstance(settings, RandomTubeMasking):
        _num_kept_patches(settings, grid)
        return
    draw = _draw_from(torch.Generator().manual_seed(0))
    for block_size in _largest_block_sizes(settings, grid):
        uniforms = draw(np.arange(_DRAWS_OF_CHECK), 0, 3 * settings.num_blocks)
        is_empty = ~_context_of_blocks(settings, grid, block_size, uniforms).any(axis=1)
        if (share := is_empty.mean()) > MAX_EMPTY_SHARE:
            raise ValueError(
                f"{_describe_blocks(settings, grid, block_size)} without context in {share:.0%} of "
                f"{_DRAWS_OF_CHECK} draws, but at most {MAX_EMPTY_SHARE:.0%} may have none; {_LEAVE_MORE_CONTEXT}"
            )


# ------------------------------------------------------------------------------------------------ masks made by hand


def mask_future(grid: TokenGrid, frame: int, *, batch_size: int = 1) -> MaskPair:
    """Hides a clip from `frame` on: the context is the tubelets that lie wholly before it, the targets are all others.

    Args:
        grid: The tokens of a clip.
        frame: First hidden frame, from `tubelet_size` to `num_frames - 1`. A tubelet that `frame` cuts is hidden as a
            whole.
        batch_size: Clips that get this mask.

    Returns:
        Masks with the mask index of the long-range masks, 1.

    Raises:
        ValueError: If `frame` leaves nothing to see or nothing to predict.
    """
    if not grid.tubelet_size <= frame < grid.num_frames:
        raise ValueError(
            f"frame is {frame}, but the context needs a whole tubelet ({grid.tubelet_size} frames) before it and the "
            f"clip has {grid.num_frames} frames; give a frame from {grid.tubelet_size} to {grid.num_frames - 1}"
        )
    is_target = torch.ones(grid.depth, grid.rows, grid.columns, dtype=torch.bool)
    is_target[: frame // grid.tubelet_size] = False
    return _pair_from_targets(is_target, LONG_RANGE.mask_index, batch_size)


def mask_box(
    grid: TokenGrid,
    *,
    top: int,
    left: int,
    bottom: int,
    right: int,
    first_frame: int = 0,
    last_frame: int | None = None,
    batch_size: int = 1,
) -> MaskPair:
    """Hides a box of pixels, in all frames or in some. A token that overlaps the box is a target, all others are
    context.

    The mask index is the kind of training masks whose blocks hide the more similar share of the frame: 0 (short range,
    15 %) where the box has at most 42.5 % of the frame's pixels, else 1 (long range, 70 %).

    Args:
        grid: The tokens of a clip.
        top: First pixel row of the box.
        left: First pixel column of the box.
        bottom: Pixel row that follows the box, at most the grid's `height`.
        right: Pixel column that follows the box, at most the grid's `width`.
        first_frame: First hidden frame.
        last_frame: Last hidden frame, itself hidden; None is the clip's last.
        batch_size: Clips that get this mask.

    Raises:
        ValueError: If the box is empty, reaches beyond the clip, or overlaps all tokens.
    """
    end_frame = grid.num_frames if last_frame is None else last_frame + 1
    for name, first, end, size in (
        ("top to bottom", top, bottom, grid.height),
        ("left to right", left, right, grid.width),
        ("first_frame to last_frame + 1", first_frame, end_frame, grid.num_frames),
    ):
        if not 0 <= first < end <= size:
            raise ValueError(
                f"{name} is {first} to {end}, but a box has to hold something and lie within the clip; "
                f"give numbers with 0 <= first < end <= {size}"
            )
    is_target = torch.zeros(grid.depth, grid.rows, grid.columns, dtype=torch.bool)
    is_target[
        _overlapped(first_frame, end_frame, grid.tubelet_size),
        _overlapped(top, bottom, grid.patch_size),
        _overlapped(left, right, grid.patch_size),
    ] = True
    share = (bottom - top) * (right - left) / (grid.height * grid.width)
    return _pair_from_targets(is_target, _nearest_mask_index(share), batch_size)


def mask_tube(
    grid: TokenGrid,
    patches: Sequence[tuple[int, int]] | np.ndarray | torch.Tensor,
    *,
    batch_size: int = 1,
) -> MaskPair:
    """Hides the same patches in all frames.

    The mask index follows from the share of hidden patches, by the rule of `mask_box`.

    Args:
        grid: The tokens of a clip.
        patches: The hidden patches: either `(row, column)` pairs, counted in patches from the top left, or a boolean
            array `(rows, columns)` that is True where a patch is hidden.
        batch_size: Clips that get this mask.

    Raises:
        ValueError: If a patch lies outside the grid, an array has another shape, or no patch or every patch is hidden.
    """
    is_hidden = _hidden_patches(grid, patches)  # (R, C)
    share = is_hidden.double().mean().item()
    is_target = is_hidden.expand(grid.depth, -1, -1)
    return _pair_from_targets(is_target, _nearest_mask_index(share), batch_size)


# ------------------------------------------------------------------------------------------------ plumbing


_LEAVE_MORE_CONTEXT = "use fewer blocks, a smaller spatial_scale or temporal_scale, or a larger max_temporal_keep"


def _draw_from(generator: torch.Generator) -> _DrawFor:
    """Draws from a generator, which goes on by itself: the number of the first draw is not needed."""

    def draw(clips: np.ndarray, first_draw: int, num_draws: int) -> torch.Tensor:
        return torch.rand(len(clips), num_draws, generator=generator, dtype=torch.float64)

    return draw


def _draw_between(bounds: tuple[float, float], generator: torch.Generator) -> float:
    # A draw is made for a range without width too: the following draws, and so the block sizes, depend on it.
    lowest, highest = bounds
    return lowest + torch.rand(1, generator=generator).item() * (highest - lowest)


def _block_size(
    grid: TokenGrid, *, temporal_scale: float, spatial_scale: float, aspect_ratio: float
) -> tuple[int, int, int]:
    depth = int(grid.depth * temporal_scale)
    num_patches = int(grid.rows * grid.columns * spatial_scale)
    rows = round(math.sqrt(num_patches * aspect_ratio))
    columns = round(math.sqrt(num_patches / aspect_ratio))
    # On a grid of few tokens a block would have none.
    return max(depth, 1), min(max(rows, 1), grid.rows), min(max(columns, 1), grid.columns)


def _largest_block_sizes(settings: MultiBlockMasking, grid: TokenGrid) -> list[tuple[int, int, int]]:
    """The sizes that blocks of the largest scale can have, one for each aspect ratio that makes a difference."""
    temporal_scale, spatial_scale = (
        # The upper end of a range is never drawn, unless the range has no width.
        highest if lowest == highest else math.nextafter(highest, lowest)
        for lowest, highest in (settings.temporal_scale, settings.spatial_scale)
    )
    sizes = {
        _block_size(grid, temporal_scale=temporal_scale, spatial_scale=spatial_scale, aspect_ratio=aspect_ratio)
        for aspect_ratio in np.linspace(*settings.aspect_ratio, _ASPECT_RATIOS_OF_CHECK).tolist()
    }
    return sorted(sizes)


def _draw_block_context(
    settings: MultiBlockMasking, grid: TokenGrid, clips: np.ndarray, *, step: int, draw: _DrawFor
) -> np.ndarray:
    """Draws the blocks of each clip until they leave some context: boolean (B, N), True for context."""
    block_size = sample_block_size(settings, grid, step=step)
    num_draws = 3 * settings.num_blocks
    is_context = np.empty((len(clips), grid.num_tokens), dtype=np.bool_)
    for attempt in range(MAX_DRAWS):
        drawn = _context_of_blocks(settings, grid, block_size, draw(clips, attempt * num_draws, num_draws))
        is_context[clips] = drawn
        clips = clips[~drawn.any(axis=1)]
        if len(clips) == 0:
            return is_context
    raise ValueError(
        f"{_describe_blocks(settings, grid, block_size)} without context in each of {MAX_DRAWS} draws, but the "
        f"encoder has to see something; {_LEAVE_MORE_CONTEXT}"
    )


def _context_of_blocks(
    settings: MultiBlockMasking, grid: TokenGrid, block_size: tuple[int, int, int], uniforms: torch.Tensor
) -> np.ndarray:
    """Turns uniform numbers (B, 3 K) into the places of blocks; says which tokens they leave: boolean (B, N)."""
    along_depth, along_rows, along_columns = uniforms.numpy().reshape(-1, 3, settings.num_blocks).swapaxes(0, 1)
    in_columns = _intervals(along_columns, grid.columns, block_size[2])  # (B, K, C)
    in_rows = _intervals(along_rows, grid.rows, block_size[1])  # (B, K, R)
    depth = 1 if block_size[0] == grid.depth else grid.depth  # blocks that span the clip are alike in all frames
    in_depth = _intervals(along_depth, grid.depth, block_size[0])[..., :depth]  # (B, K, depth)
    in_depth_and_rows = (in_depth[..., None] * in_rows[:, :, None]).reshape(*in_rows.shape[:2], -1)
    num_blocks_over = in_depth_and_rows.swapaxes(1, 2) @ in_columns  # (B, depth * R, C)
    is_context = (num_blocks_over == 0).reshape(-1, depth, grid.rows, grid.columns)
    is_context = np.repeat(is_context, grid.depth // depth, axis=1)  # (B, D, R, C)
    is_context[:, _num_context_tubelets(settings, grid) :] = False
    return is_context.reshape(-1, grid.num_tokens)


def _intervals(uniforms: np.ndarray, num_places: int, length: int) -> np.ndarray:
    """Places an interval of `length` for each number: 1 inside and 0 outside, float32 (B, K, num_places)."""
    starts = (uniforms * (num_places - length + 1)).astype(np.int64)[..., None]
    places = np.arange(num_places)
    return ((places >= starts) & (places < starts + length)).astype(np.float32)


def _num_context_tubelets(settings: MultiBlockMasking, grid: TokenGrid) -> int:
    return max(1, int(grid.depth * settings.max_temporal_keep))


def _describe_blocks(settings: MultiBlockMasking, grid: TokenGrid, block_size: tuple[int, int, int]) -> str:
    return (
        f"{settings.num_blocks} blocks of {block_size} tokens leave a clip of "
        f"{(grid.depth, grid.rows, grid.columns)} tokens"
    )


def _draw_tube_context(
    settings: RandomTubeMasking, grid: TokenGrid, clips: np.ndarray, *, draw: _DrawFor
) -> np.ndarray:
    """Keeps the patches with the smallest of each clip's numbers, in all frames: boolean (B, N), True for context."""
    num_patches, num_kept = grid.rows * grid.columns, _num_kept_patches(settings, grid)
    kept = draw(clips, 0, num_patches).topk(num_kept, dim=1, largest=False, sorted=False).indices
    is_kept = torch.zeros(len(clips), num_patches, dtype=torch.bool).scatter_(1, kept, True)
    return is_kept.repeat(1, grid.depth).numpy()


def _num_kept_patches(settings: RandomTubeMasking, grid: TokenGrid) -> int:
    num_patches = grid.rows * grid.columns
    # 10 * (1 - 0.9) is 0.9999... in floating point, and means 1.
    num_kept = int(num_patches * (1 - settings.ratio) + 1e-9)
    if not 0 < num_kept < num_patches:
        raise ValueError(
            f"ratio {settings.ratio} keeps {num_kept or 'none'} of the {num_patches} patches of a {grid.rows} x "
            f"{grid.columns} grid, but one has to stay as context and one to be a target; give a ratio that hides at "
            f"least 1 and at most {num_patches - 1} of them"
        )
    return num_kept


def _num_kept(counts: np.ndarray, max_kept: int | None) -> int:
    smallest = int(counts.min())
    return smallest if max_kept is None else min(smallest, max_kept)


def _cut_to_pair(is_context: np.ndarray, settings: MaskKind, *, cut: Cut, draw: _DrawFor) -> MaskPair:
    draw_for_cut = partial(draw, np.arange(len(is_context)), _FIRST_DRAW_OF_CUT)
    max_context = settings.max_context_tokens if isinstance(settings, MultiBlockMasking) else None
    return MaskPair(
        context_mask=cut(torch.from_numpy(is_context), max_kept=max_context, draw=draw_for_cut),
        target_mask=cut(torch.from_numpy(~is_context), max_kept=None, draw=draw_for_cut),
        mask_index=settings.mask_index,
    )


def _pair_from_targets(is_target: torch.Tensor, mask_index: int, batch_size: int) -> MaskPair:
    """Gives all clips of a batch the same targets (D, R, C), and the rest as context."""
    require_at_least(1, batch_size=batch_size)
    target_mask = is_target.flatten().nonzero().flatten()
    context_mask = (~is_target).flatten().nonzero().flatten()
    return MaskPair(context_mask.repeat(batch_size, 1), target_mask.repeat(batch_size, 1), mask_index)


def _nearest_mask_index(share: float) -> int:
    """The kind of training masks whose blocks hide a share of the frame that is nearer to `share`."""
    midpoint = (SHORT_RANGE.spatial_scale[0] + LONG_RANGE.spatial_scale[0]) / 2
    return LONG_RANGE.mask_index if share > midpoint else SHORT_RANGE.mask_index


def _overlapped(first: int, end: int, size: int) -> slice:
    """The units of `size` pixels (or frames) that the interval from `first` up to, without, `end` overlaps."""
    return slice(first // size, -(-end // size))


def _hidden_patches(grid: TokenGrid, patches: Sequence[tuple[int, int]] | np.ndarray | torch.Tensor) -> torch.Tensor:
    """Reads either form of `mask_tube`'s patches as boolean (R, C)."""
    given = patches if isinstance(patches, torch.Tensor) else torch.from_numpy(np.array(patches))
    if given.dtype == torch.bool:
        if given.shape != (grid.rows, grid.columns):
            raise ValueError(
                f"patches is a boolean array of shape {tuple(given.shape)}, but must have one value for each patch; "
                f"give one of shape (rows, columns) = {(grid.rows, grid.columns)}"
            )
        return given
    return _hidden_patches_from_pairs(grid, given)


def _hidden_patches_from_pairs(grid: TokenGrid, pairs: torch.Tensor) -> torch.Tensor:
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.is_floating_point():
        raise ValueError(
            f"patches has shape {tuple(pairs.shape)} and type {pairs.dtype}, but must hold (row, column) pairs of "
            "integers, at least one of them; give such pairs, or a boolean array (rows, columns)"
        )
    size = torch.tensor([grid.rows, grid.columns])
    is_outside = ((pairs < 0) | (pairs >= size)).any(dim=1)
    if is_outside.any():
        raise ValueError(
            f"patch {tuple(pairs[is_outside][0].tolist())} lies outside the grid of {grid.rows} rows and "
            f"{grid.columns} columns; rows and columns count patches, not pixels, and begin at 0"
        )
    is_hidden = torch.zeros(grid.rows, grid.columns, dtype=torch.bool)
    is_hidden[pairs[:, 0].long(), pairs[:, 1].long()] = True
    return is_hidden


def _require_token_indices(name: str, mask: torch.Tensor) -> None:
    if mask.dtype != torch.int64 or mask.ndim != 2:
        raise ValueError(
            f"{name} has shape {tuple(mask.shape)} and type {mask.dtype}, but must be an int64 matrix of token "
            "indices (batch_size, num_kept); cut_to_batch_minimum makes one of a boolean mask"
        )
    if mask.numel() == 0:
        raise ValueError(
            f"{name} is empty (shape {tuple(mask.shape)}), but each clip needs a token to see and one to predict; "
            "hide less of the clip if it is the context_mask, more of it if it is the target_mask"
        )
    if mask.min() < 0:
        raise ValueError(f"{name} holds {int(mask.min())}, but token indices begin at 0; count tokens in raster order")


def _require_disjoint(context_mask: torch.Tensor, target_mask: torch.Tensor) -> None:
    if len(context_mask) != len(target_mask):
        raise ValueError(
            f"context_mask has {len(context_mask)} clips and target_mask {len(target_mask)}, but both need one row "
            "for each clip of the batch; repeat the shorter one"
        )
    context, targets = context_mask.cpu().numpy(), target_mask.cpu().numpy()
    num_tokens = max(context.max(), targets.max()) + 1
    first_tokens = np.arange(len(context))[:, None] * num_tokens  # of each clip, where all clips stand in a row
    is_context = np.zeros(len(context) * num_tokens, dtype=np.bool_)
    is_context[(context + first_tokens).ravel()] = True
    is_shared = is_context.take(targets + first_tokens)
    if is_shared.any():
        clip, position = np.argwhere(is_shared)[0]
        raise ValueError(
            f"token {int(target_mask[clip, position])} of clip {clip} is in the context and in the targets, but a "
            "token that the encoder sees cannot be predicted from its context; leave it out of one of them"
        )
