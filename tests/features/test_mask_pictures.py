import numpy as np
import pytest
import torch
from PIL import Image

from vjepa_hub.cli.show_masks import MaskKind
from vjepa_hub.data.masking import MaskPair, TokenGrid
from vjepa_hub.data.samples import sample_clip_path
from vjepa_hub.features.mask_pictures import (
    CAPTION_SIZE,
    HIDDEN,
    MASK_KINDS,
    TRAINING_KINDS,
    UNUSED,
    MaskCounts,
    MaskDraw,
    MaskedClip,
    draw_mask_animation,
    draw_mask_picture,
    open_masked_clip,
    read_clip_frames,
    save_mask_pictures,
    token_grid,
)
from vjepa_hub.features.pictures import GAP, LABEL_SIZE, MARGIN

GRIDS = [
    TokenGrid(num_frames=8, height=64, width=64),
    TokenGrid(num_frames=6, height=48, width=112),
    TokenGrid(num_frames=16, height=80, width=32, patch_size=8),
]


def white_clip(draw: MaskDraw, kinds=MASK_KINDS) -> MaskedClip:
    """A clip on which every covered token is told from an open one."""
    grid = draw.grid
    frames = np.full((grid.depth, grid.height, grid.width, 3), 255, dtype=np.uint8)
    masks = {kind: draw.mask(kind) for kind in kinds}
    return MaskedClip(frames, [0.1 * depth for depth in range(grid.depth)], grid, masks, "white", "model")


def middles(image: np.ndarray, grid: TokenGrid, *, x: int, y: int, side: int) -> np.ndarray:
    """The brightness in the middle of each patch (rows, columns) of a frame that is drawn at x, y."""
    rows, columns = y + side * np.arange(grid.rows) + side // 2, x + side * np.arange(grid.columns) + side // 2
    return image[np.ix_(rows, columns)].mean(-1)


def is_in(tokens: torch.Tensor, grid: TokenGrid) -> np.ndarray:
    """Raster order written out: token (depth * rows + row) * columns + column, of the first clip."""
    cells = np.zeros((grid.depth, grid.rows, grid.columns), dtype=bool)
    for token in tokens[0].tolist():
        cells[token // (grid.rows * grid.columns), token // grid.columns % grid.rows, token % grid.columns] = True
    return cells


def drawn_cells(clip: MaskedClip, row: int, cell: int) -> np.ndarray:
    """Brightness of the tokens (depth, rows, columns) in one row of the still picture, 0 being the clip itself."""
    grid, side = clip.grid, round(cell / max(clip.grid.rows, clip.grid.columns))
    image = np.asarray(draw_mask_picture(clip, columns=grid.depth, cell=cell))
    row_height = CAPTION_SIZE + 2 * GAP + grid.rows * side + GAP
    top = len(image) - MARGIN - LABEL_SIZE - (1 + len(clip.masks) - row) * row_height + CAPTION_SIZE + 2 * GAP
    lefts = [MARGIN + depth * (grid.columns * side + GAP) for depth in range(grid.depth)]
    return np.stack([middles(image, grid, x=left, y=top, side=side) for left in lefts])


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.depth}x{g.rows}x{g.columns}")
def test_dark_cells_of_the_picture_are_exactly_the_target_tokens(grid):
    clip = white_clip(MaskDraw(grid=grid, step=3, seed=5))
    assert (drawn_cells(clip, 0, 120) == 255).all()
    for row, (kind, mask) in enumerate(clip.masks.items(), 1):
        brightness = drawn_cells(clip, row, 120)
        np.testing.assert_array_equal(brightness < 100, is_in(mask.target_mask, grid), err_msg=kind)
        np.testing.assert_array_equal(brightness == 255, is_in(mask.context_mask, grid), err_msg=kind)


def test_tokens_that_the_batch_cut_off_are_neither_dark_nor_open():
    draw = MaskDraw(grid=GRIDS[0], batch_size=6, seed=2)
    clip = white_clip(draw, ["short-range"])
    mask, brightness = clip.masks["short-range"], drawn_cells(clip, 1, 120)
    is_unused = ~(is_in(mask.target_mask, clip.grid) | is_in(mask.context_mask, clip.grid))
    assert is_unused.any()
    assert is_unused.sum() == MaskCounts.of(mask, clip.grid).num_unused
    np.testing.assert_array_equal((brightness > 200) & (brightness < 255), is_unused)
    assert "pale" in clip.subtitle
    assert "pale" not in white_clip(MaskDraw(grid=GRIDS[0])).subtitle


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.depth}x{g.rows}x{g.columns}")
def test_animation_shows_the_targets_of_its_own_moment(grid):
    clip = white_clip(MaskDraw(grid=grid), ["causal"])
    side = round(120 / max(grid.rows, grid.columns))
    is_target = is_in(clip.masks["causal"].target_mask, grid)
    images = draw_mask_animation(clip, cell=120)
    assert len(images) == grid.depth
    for image, expected in zip(map(np.asarray, images), is_target, strict=True):
        y = len(image) - MARGIN - LABEL_SIZE - GAP - grid.rows * side
        drawn = middles(image, grid, x=MARGIN + grid.columns * side + GAP, y=y, side=side)
        np.testing.assert_array_equal(drawn < 100, expected)


def test_context_is_drawn_as_the_model_sees_it():
    grid = TokenGrid(num_frames=4, height=32, width=32)
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    mask = MaskPair(torch.arange(4)[None], torch.arange(4, 8)[None], 0)
    clip = MaskedClip(frames, [0.0, 0.1], grid, {"future": mask}, "noise", "model")
    image = np.asarray(draw_mask_picture(clip, cell=32))
    top = len(image) - MARGIN - LABEL_SIZE - GAP - 32
    np.testing.assert_array_equal(image[top : top + 32, MARGIN : MARGIN + 32], frames[0])


def test_hidden_and_cut_off_tokens_differ_clearly():
    assert max(HIDDEN) < 40 < 200 < min(UNUSED)


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_counts_are_those_of_the_masks(kind):
    grid = TokenGrid(num_frames=16, height=224, width=224)
    mask = MaskDraw(grid=grid, step=1).mask(kind)
    counts = MaskCounts.of(mask, grid)
    assert counts.num_context == len(set(mask.context_mask[0].tolist()))
    assert counts.num_targets == len(set(mask.target_mask[0].tolist())) == 1568 - counts.num_context
    assert f"context {counts.num_context}, targets {counts.num_targets} of 1568 tokens" in counts.sentence()
    assert f"{100 * counts.num_targets / 1568:.1f} % hidden; mask token {mask.mask_index}" in counts.sentence()


def test_same_step_and_seed_give_the_same_masks_and_other_seeds_others():
    def targets(kind: str, **changes) -> list[int]:
        return MaskDraw(grid=GRIDS[1], **changes).mask(kind).target_mask.tolist()

    for kind in TRAINING_KINDS:
        assert targets(kind, seed=1) == targets(kind, seed=1)
        assert any(targets(kind, seed=1) != targets(kind, seed=seed) for seed in range(2, 12))
    assert any(targets("short-range", step=0) != targets("short-range", step=step) for step in range(1, 10))


def test_causal_masks_keep_context_in_the_first_twelve_of_sixteen_frames():
    grid = TokenGrid(num_frames=16, height=224, width=224)
    is_context = is_in(MaskDraw(grid=grid).mask("causal").context_mask, grid)
    assert is_context[:6].any(axis=(1, 2)).all()
    assert not is_context[6:].any()


def test_command_line_knows_every_kind():
    assert [kind.value for kind in MaskKind] == list(MASK_KINDS)
    with pytest.raises(KeyError, match=r"'shortrange'; available: short-range"):
        MaskDraw(grid=GRIDS[0]).mask("shortrange")


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 112), (112, 48)])
def test_frames_fill_the_grid_without_borders(height, width):
    grid = TokenGrid(num_frames=4, height=height, width=width)
    frames, seconds = read_clip_frames(sample_clip_path(), grid)
    assert frames.shape == (2, height, width, 3)
    assert seconds == sorted(seconds)
    assert frames[:, [0, -1]].any(axis=(2, 3)).all()
    assert frames[:, :, [0, -1]].any(axis=(1, 3)).all()


@pytest.mark.parametrize(("size", "expected"), [(None, (4, 4)), ("96", (6, 6)), ("48x112", (3, 7))])
def test_grid_is_that_of_the_model_at_the_size_asked_for(size, expected):
    grid = token_grid("vjepa-vit-tiny", size)
    assert (grid.depth, grid.rows, grid.columns) == (4, *expected)


@pytest.mark.parametrize("size", ["48x", "x48", "big", "-8", "48x112x3", "60"])
def test_size_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match=size.replace("-8", "'-8'")):
        token_grid("vjepa-vit-tiny", size)


def test_grid_of_a_folder_is_that_of_its_configuration(small_config, tmp_path):
    small_config.save_pretrained(tmp_path)
    assert token_grid(str(tmp_path)).num_tokens == 32


def test_saved_pictures_carry_counts_and_draw(tmp_path):
    draw = MaskDraw(grid=token_grid("vjepa-vit-tiny", "48x64"), step=7, seed=8)
    clip = open_masked_clip(sample_clip_path(), draw, ["short-range", "box"], model="vjepa-vit-tiny")
    picture, animation = save_mask_pictures(clip, draw, tmp_path / "new" / "masks.png", columns=3, animation=True)
    with Image.open(picture) as image:
        assert (image.text["step"], image.text["seed"]) == ("7", "8")
        assert image.text["box"] == MaskCounts.of(clip.masks["box"], draw.grid).sentence()
    with Image.open(animation) as image:
        assert image.n_frames == 4
