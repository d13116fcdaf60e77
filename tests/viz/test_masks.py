import numpy as np
import pytest
import torch

from tests.viz.test_image_grid import pixels_of
from vjepa_hub.cli.show_masks import MaskKind
from vjepa_hub.data.masking import MaskPair, TokenGrid
from vjepa_hub.data.samples import sample_clip_path
from vjepa_hub.data.video import open_video
from vjepa_hub.viz.image_grid import GAP, LABEL, MARGIN
from vjepa_hub.viz.masks import (
    FRAME_SIDE,
    MASK_KINDS,
    TRAINING_KINDS,
    MaskSampler,
    count_tokens,
    describe_tokens,
    draw_masks,
    read_tubelet_frames,
    token_grid,
)

GRIDS = [
    TokenGrid(num_frames=8, height=64, width=64),
    TokenGrid(num_frames=6, height=48, width=112),
    TokenGrid(num_frames=16, height=80, width=32, patch_size=8),
]


def is_in(tokens: torch.Tensor, grid: TokenGrid) -> np.ndarray:
    """Raster order written out: token (depth * rows + row) * columns + column, of the first clip."""
    cells = np.zeros((grid.depth, grid.rows, grid.columns), dtype=bool)
    for token in tokens[0].tolist():
        cells[token // (grid.rows * grid.columns), token // grid.columns % grid.rows, token % grid.columns] = True
    return cells


def drawn_brightness(masks: dict[str, MaskPair], grid: TokenGrid) -> list[np.ndarray]:
    """Brightness in the middle of each token (depth, rows, columns) of a white clip and of each mask on it."""
    frames = np.full((grid.depth, grid.height, grid.width, 3), 255, dtype=np.uint8)
    seconds = [0.1 * depth for depth in range(grid.depth)]
    drawn = pixels_of(draw_masks(frames, seconds, grid, masks, title="white", model="model"))
    side = round(FRAME_SIDE / max(grid.rows, grid.columns))
    height, found = grid.rows * side, []
    for row in range(len(masks), -1, -1):
        top = len(drawn) - MARGIN - LABEL - GAP - height - row * (height + LABEL + 3 * GAP)
        ys = top + side * np.arange(grid.rows) + side // 2
        lefts = [MARGIN + depth * (grid.columns * side + GAP) for depth in range(grid.depth)]
        xs = [left + side * np.arange(grid.columns) + side // 2 for left in lefts]
        found.append(np.stack([drawn[np.ix_(ys, x)].mean(-1) for x in xs]))
    return found


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.depth}x{g.rows}x{g.columns}")
def test_dark_cells_are_exactly_the_target_tokens(grid):
    sampler = MaskSampler(grid=grid, step=3, seed=5)
    masks = {kind: sampler.sample(kind) for kind in MASK_KINDS}
    clip, *rows = drawn_brightness(masks, grid)
    assert (clip == 255).all()
    for (kind, mask), brightness in zip(masks.items(), rows, strict=True):
        np.testing.assert_array_equal(brightness < 100, is_in(mask.target_mask, grid), err_msg=kind)
        np.testing.assert_array_equal(brightness == 255, is_in(mask.context_mask, grid), err_msg=kind)


def test_tokens_that_the_batch_cut_off_are_neither_dark_nor_open():
    grid = GRIDS[0]
    mask = MaskSampler(grid=grid, batch_size=6, seed=2).sample("short-range")
    brightness = drawn_brightness({"short-range": mask}, grid)[1]
    is_unused = ~(is_in(mask.target_mask, grid) | is_in(mask.context_mask, grid))
    assert 0 < is_unused.sum() == int(count_tokens(mask, grid)["in neither"])
    np.testing.assert_array_equal((brightness > 200) & (brightness < 255), is_unused)
    assert "pale" in describe_tokens({"short-range": mask}, grid)
    assert "pale" not in describe_tokens({"box": MaskSampler(grid=grid).sample("box")}, grid)


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_counts_are_those_of_the_masks(kind):
    grid = TokenGrid(num_frames=16, height=224, width=224)
    mask = MaskSampler(grid=grid, step=1).sample(kind)
    num_context, num_targets = (len(set(tokens[0].tolist())) for tokens in (mask.context_mask, mask.target_mask))
    assert num_context + num_targets == 1568
    assert count_tokens(mask, grid) == {
        "context": str(num_context),
        "targets": str(num_targets),
        "in neither": "0",
        "hidden": f"{num_targets / 15.68:.1f}%",
        "mask token": str(mask.mask_index),
    }


def test_same_step_and_seed_give_the_same_masks_and_other_seeds_others():
    def targets(kind: str, **changes) -> list[int]:
        return MaskSampler(grid=GRIDS[1], **changes).sample(kind).target_mask.tolist()

    for kind in TRAINING_KINDS:
        assert targets(kind, seed=1) == targets(kind, seed=1)
        assert any(targets(kind, seed=1) != targets(kind, seed=seed) for seed in range(2, 12))
    assert any(targets("short-range", step=0) != targets("short-range", step=step) for step in range(1, 10))


def test_causal_masks_keep_context_in_the_first_twelve_of_sixteen_frames():
    grid = TokenGrid(num_frames=16, height=224, width=224)
    is_context = is_in(MaskSampler(grid=grid).sample("causal").context_mask, grid)
    assert is_context[:6].any(axis=(1, 2)).all()
    assert not is_context[6:].any()


def test_command_line_knows_every_kind():
    assert [kind.value for kind in MaskKind] == list(MASK_KINDS)
    with pytest.raises(KeyError, match=r"'shortrange'.*short-range"):
        MaskSampler(grid=GRIDS[0]).sample("shortrange")


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 112), (112, 48)])
def test_frames_fill_the_grid_without_borders(height, width):
    grid = TokenGrid(num_frames=4, height=height, width=width)
    with open_video(sample_clip_path()) as video:
        frames, seconds = read_tubelet_frames(video, grid)
    assert frames.shape == (2, height, width, 3)
    assert seconds == sorted(seconds)
    assert frames[:, [0, -1]].any(axis=(2, 3)).all()
    assert frames[:, :, [0, -1]].any(axis=(1, 3)).all()


@pytest.mark.parametrize(("size", "expected"), [(None, (4, 4)), ("96", (6, 6)), ("48x112", (3, 7))])
def test_grid_is_that_of_the_model_at_the_size_asked_for(size, expected):
    grid = token_grid("vjepa-vit-tiny", size)
    assert (grid.depth, grid.rows, grid.columns) == (4, *expected)


@pytest.mark.parametrize("size", ["48x", "x48", "big", "-8", "48x112x3", "60"])
def test_invalid_size_is_refused(size):
    with pytest.raises(ValueError, match=size):
        token_grid("vjepa-vit-tiny", size)


def test_grid_of_a_folder_is_that_of_its_configuration(small_config, tmp_path):
    small_config.save_pretrained(tmp_path)
    assert token_grid(str(tmp_path)).num_tokens == 32
