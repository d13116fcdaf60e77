import json
import math
from dataclasses import FrozenInstanceError
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vjepa_hub.data.masking import (
    CAUSAL,
    LONG_RANGE,
    RANDOM_TUBE,
    SHORT_RANGE,
    MaskPair,
    MultiBlockMasking,
    RandomTubeMasking,
    TokenGrid,
    cut_at_random,
    cut_to_batch_minimum,
    mask_box,
    mask_future,
    mask_tube,
    require_possible,
    sample_block_size,
    sample_masks_at,
    sample_multi_block_masks,
    sample_random_tube_masks,
)

STATISTICS = json.loads((Path(__file__).parents[1] / "reference_cases" / "mask_statistics.json").read_text())
KINDS = [name for name, case in STATISTICS.items() if "config" in case]
GRID = TokenGrid(num_frames=16, height=224, width=224)
SMALL_GRID = TokenGrid(num_frames=8, height=48, width=80)  # 4 x 3 x 5 tokens
CAUSAL_HALF = MultiBlockMasking(
    num_blocks=4, spatial_scale=(0.15, 0.15), temporal_scale=(0.5, 1.0), max_temporal_keep=0.5, mask_index=1
)
# Two of nine clips are drawn again: their blocks take both ends of the rows.
OFTEN_EMPTY = MultiBlockMasking(num_blocks=2, spatial_scale=(0.6, 0.6), aspect_ratio=(1.0, 1.0))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def settings_of(config):
    return MultiBlockMasking(
        num_blocks=config["npred"],
        spatial_scale=config["spatial_pred_mask_scale"],
        temporal_scale=config["temporal_pred_mask_scale"],
        aspect_ratio=config["aspect_ratio"],
        max_temporal_keep=config.get("max_context_frames_ratio", 1.0),
    )


def grid_of(config):
    return TokenGrid(
        num_frames=config["num_frames"],
        height=config["crop_size"],
        width=config["crop_size"],
        patch_size=config["spatial_patch_size"],
        tubelet_size=config["temporal_patch_size"],
    )


def draw_batches(name, batch_size, num_batches):
    config = STATISTICS[name]["config"]
    settings, grid = settings_of(config), grid_of(config)
    for step in range(num_batches):
        positions = range(step * batch_size, (step + 1) * batch_size)
        yield sample_masks_at(settings, grid, positions, seed=0, step=step)


@cache
def count_singles(name):
    """2000 clips, each a batch of its own, which is not cut.

    The numbers of tokens, and how often each patch of the first frame is context.
    """
    num_patches = grid_of(STATISTICS[name]["config"]).rows * grid_of(STATISTICS[name]["config"]).columns
    counts, num_context = {"context": [], "target": []}, torch.zeros(num_patches, dtype=torch.float64)
    for pair in draw_batches(name, 1, 2000):
        counts["context"].append(pair.context_mask.shape[1])
        counts["target"].append(pair.target_mask.shape[1])
        num_context[pair.context_mask[pair.context_mask < num_patches]] += 1
    return counts, num_context


def assert_same_mean(counts, mean, std, num_samples):
    counts = torch.tensor(counts, dtype=torch.float64)
    standard_error = math.sqrt(std**2 / num_samples + counts.var().item() / len(counts))
    assert abs(counts.mean().item() - mean) < 3 * standard_error


def volume(mask, grid, clip=0):
    """The tokens of a mask as a boolean array (depth, rows, columns)."""
    is_kept = np.zeros(grid.num_tokens, dtype=bool)
    is_kept[mask[clip].numpy()] = True
    return is_kept.reshape(grid.depth, grid.rows, grid.columns)


def assert_splits_the_clip(pair, grid, is_target):
    """Checks a mask made by hand against the expected targets, a boolean array (depth, rows, columns)."""
    for clip in range(len(pair.target_mask)):
        assert (volume(pair.target_mask, grid, clip) == is_target).all()
        assert (volume(pair.context_mask, grid, clip) == ~is_target).all()
    assert (pair.target_mask.diff() > 0).all()
    assert (pair.context_mask.diff() > 0).all()


def tokens_of_pixels(is_hidden, grid):
    """Brute force: a token is hidden if one of the pixels (frames, height, width) of its tubelet is."""
    is_target = np.zeros((grid.depth, grid.rows, grid.columns), dtype=bool)
    for frame, y, x in np.argwhere(is_hidden):
        is_target[frame // grid.tubelet_size, y // grid.patch_size, x // grid.patch_size] = True
    return is_target


# Grid and pairs


def test_grid_counts_tokens_along_each_axis():
    assert (SMALL_GRID.depth, SMALL_GRID.rows, SMALL_GRID.columns, SMALL_GRID.num_tokens) == (4, 3, 5, 60)
    assert GRID.num_tokens == 1568


def test_grid_of_a_model_is_that_of_its_clips_unless_others_are_given():
    config = SimpleNamespace(frames_per_clip=8, crop_size=64, patch_size=16, tubelet_size=2)
    sizes = {"num_frames": 8, "height": 64, "width": 64}
    assert TokenGrid.from_config(config) == TokenGrid(**sizes)
    for change in ({"num_frames": 4}, {"height": 32}, {"width": 96}):
        assert TokenGrid.from_config(config, **change) == TokenGrid(**sizes | change)
    other = SimpleNamespace(frames_per_clip=9, crop_size=60, patch_size=20, tubelet_size=3)
    assert TokenGrid.from_config(other) == TokenGrid(num_frames=9, height=60, width=60, patch_size=20, tubelet_size=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 15}, "num_frames is 15.*tubelet_size=2.*16"),
        ({"height": 50}, "height is 50.*patch_size=16.*48"),
        ({"width": 8}, "width is 8.*patch_size=16.*16"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"num_frames": 8.5}, "num_frames is 8.5"),
    ],
)
def test_impossible_grids_are_named_in_the_error(changes, message):
    with pytest.raises(ValueError, match=message):
        SMALL_GRID.with_values(**changes)


@pytest.mark.parametrize(
    ("context", "targets", "mask_index", "message"),
    [
        ([[]], [[1]], 0, "context_mask is empty"),
        ([[1]], [[]], 0, "target_mask is empty"),
        ([[0, 1], [2, 3]], [[4, 5], [0, 3]], 0, "token 3 of clip 1"),
        ([[0]], [[1], [2]], 0, "1 clips and target_mask 2"),
        ([[-1]], [[1]], 0, "context_mask holds -1"),
        ([0], [[1]], 0, "context_mask has shape \\(1,\\)"),
        ([[0]], [[1]], -1, "mask_index is -1"),
    ],
)
def test_impossible_pairs_are_named_in_the_error(context, targets, mask_index, message):
    with pytest.raises(ValueError, match=message):
        MaskPair(torch.tensor(context, dtype=torch.int64), torch.tensor(targets, dtype=torch.int64), mask_index)


def test_a_boolean_mask_is_not_taken_for_indices():
    with pytest.raises(ValueError, match=r"torch\.bool.*cut_to_batch_minimum"):
        MaskPair(torch.ones(1, 4, dtype=torch.bool), torch.tensor([[1]]), 0)


def test_a_pair_cannot_be_changed_after_its_checks():
    pair = mask_future(SMALL_GRID, 4)
    with pytest.raises(FrozenInstanceError):
        pair.context_mask = pair.target_mask


# Masks of training


@pytest.mark.parametrize("name", [name for name in KINDS if "block_size_for_step_0_to_31" in STATISTICS[name]])
def test_block_sizes_are_those_of_the_released_code(name):
    config = STATISTICS[name]["config"]
    sizes = [sample_block_size(settings_of(config), grid_of(config), step=step) for step in range(32)]
    assert [list(size) for size in sizes] == STATISTICS[name]["block_size_for_step_0_to_31"]


def test_the_training_kinds_are_those_of_the_reference():
    assert settings_of(STATISTICS["short_range_224"]["config"]).with_values(mask_index=0) == SHORT_RANGE.with_values(
        spatial_scale=[0.15, 0.15], temporal_scale=[1.0, 1.0], aspect_ratio=[0.75, 1.5]
    )
    assert settings_of(STATISTICS["long_range_224"]["config"]).with_values(mask_index=1) == LONG_RANGE.with_values(
        spatial_scale=[0.7, 0.7], temporal_scale=[1.0, 1.0], aspect_ratio=[0.75, 1.5]
    )


@pytest.mark.parametrize("name", KINDS)
def test_counts_of_single_clips_agree_with_the_released_samplers(name):
    case = STATISTICS[name]["single"]
    for kind, counts in count_singles(name)[0].items():
        assert_same_mean(counts, case[f"{kind}_tokens_mean"], case[f"{kind}_tokens_std"], case["batches"])


def test_counts_of_masks_from_a_generator_agree_with_the_released_samplers():
    config, case, draws = STATISTICS["causal_half_224"]["config"], STATISTICS["causal_half_224"]["single"], generator()
    settings, grid = settings_of(config), grid_of(config)
    pairs = [sample_multi_block_masks(settings, grid, 1, step=step, generator=draws) for step in range(1000)]
    counts = [pair.context_mask.shape[1] for pair in pairs]
    assert_same_mean(counts, case["context_tokens_mean"], case["context_tokens_std"], case["batches"])


@pytest.mark.parametrize("name", KINDS)
def test_counts_after_the_cut_agree_with_the_released_samplers(name):
    case = STATISTICS[name]["batch24"]
    pairs = list(draw_batches(name, case["batch_size"], case["batches"]))
    for kind, counts in (
        ("context", [pair.context_mask.shape[1] for pair in pairs]),
        ("target", [pair.target_mask.shape[1] for pair in pairs]),
    ):
        assert_same_mean(counts, case[f"{kind}_tokens_mean"], case[f"{kind}_tokens_std"], case["batches"])


@pytest.mark.parametrize("name", KINDS)
def test_each_patch_is_context_as_often_as_in_the_released_samplers(name):
    case = STATISTICS[name]["single"]
    expected = torch.tensor(case["context_probability_first_frame"], dtype=torch.float64).flatten()
    num_batches, num_context = 2000, count_singles(name)[1]
    pooled = (expected * case["batches"] + num_context) / (case["batches"] + num_batches)
    variance = (pooled * (1 - pooled)).clamp(min=1e-4) * (1 / case["batches"] + 1 / num_batches)
    scores = (num_context / num_batches - expected) / variance.sqrt()
    # Of hundreds of patches some lie beyond 3 standard errors by chance, and neighbours go together.
    assert scores.abs().max() < 4.5
    assert scores.square().mean().sqrt() < 1.7


def test_a_random_tube_keeps_as_many_tokens_as_the_released_sampler():
    case = STATISTICS["random_tube_0.9_224"]
    for pair in (
        sample_random_tube_masks(RANDOM_TUBE, GRID, 3, generator=generator()),
        sample_masks_at(RANDOM_TUBE, GRID, range(3), seed=0, step=0),
    ):
        assert pair.context_mask.shape == (3, case["context_tokens"])
        assert pair.target_mask.shape == (3, case["target_tokens"])


@pytest.mark.parametrize("settings", [SHORT_RANGE, LONG_RANGE, CAUSAL_HALF])
@pytest.mark.parametrize("grid", [GRID, SMALL_GRID])
def test_context_and_targets_are_disjoint_ascending_tokens_of_the_grid(settings, grid):
    for step in range(20):
        pair = sample_multi_block_masks(settings, grid, 6, step=step, generator=generator(step))
        assert pair.mask_index == settings.mask_index
        for clip in range(6):
            context, targets = set(pair.context_mask[clip].tolist()), set(pair.target_mask[clip].tolist())
            assert not context & targets
            assert context | targets <= set(range(grid.num_tokens))
        assert (pair.context_mask.diff() > 0).all()
        assert (pair.target_mask.diff() > 0).all()


@pytest.mark.parametrize("settings", [SHORT_RANGE, LONG_RANGE, CAUSAL_HALF])
def test_a_single_clip_is_never_cut(settings):
    for step in range(20):
        pair = sample_multi_block_masks(settings, GRID, 1, step=step, generator=generator(step))
        assert pair.context_mask.shape[1] + pair.target_mask.shape[1] == GRID.num_tokens


def test_targets_are_a_union_of_blocks_of_the_drawn_size():
    settings = SHORT_RANGE.with_values(num_blocks=2, temporal_scale=(0.5, 0.5))
    for step in range(20):
        pair = sample_multi_block_masks(settings, GRID, 1, step=step, generator=generator(step))
        is_target = volume(pair.target_mask, GRID)
        depth, rows, columns = sample_block_size(settings, GRID, step=step)
        blocks = np.lib.stride_tricks.sliding_window_view(is_target, (depth, rows, columns)).all(axis=(3, 4, 5))
        is_union = np.zeros_like(is_target)
        for d, r, c in np.argwhere(blocks):
            is_union[d : d + depth, r : r + rows, c : c + columns] = True
        assert (is_union == is_target).all()
        assert is_target.sum() <= 2 * depth * rows * columns


def test_all_blocks_of_the_training_kinds_span_all_frames():
    for settings in (SHORT_RANGE, LONG_RANGE):
        pair = sample_multi_block_masks(settings, GRID, 1, step=3, generator=generator())
        is_target = volume(pair.target_mask, GRID)
        assert (is_target == is_target[:1]).all()


def test_causal_context_never_comes_from_a_later_frame():
    for step in range(20):
        pair = sample_multi_block_masks(CAUSAL_HALF, GRID, 4, step=step, generator=generator(step))
        assert pair.context_mask.max() < GRID.num_tokens // 2
    single = sample_multi_block_masks(CAUSAL_HALF, GRID, 1, step=0, generator=generator())
    assert volume(single.target_mask, GRID)[GRID.depth // 2 :].all()


def test_clips_of_a_batch_get_different_blocks():
    pair = sample_multi_block_masks(SHORT_RANGE, GRID, 8, step=0, generator=generator())
    assert len({tuple(clip.tolist()) for clip in pair.target_mask}) == 8


def test_masks_follow_from_step_and_seed_alone():
    def draw(step, seed):
        pair = sample_multi_block_masks(SHORT_RANGE, GRID, 4, step=step, generator=generator(seed))
        return pair.context_mask.tolist(), pair.target_mask.tolist()

    torch.manual_seed(1)
    first = draw(5, 7)
    torch.manual_seed(2)
    assert draw(5, 7) == first
    assert draw(5, 8) != first
    assert draw(6, 7) != first


def test_masks_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    sample_multi_block_masks(SHORT_RANGE, GRID, 4, step=5, generator=generator())
    sample_random_tube_masks(RandomTubeMasking(), GRID, 4, generator=generator())
    assert torch.equal(torch.get_rng_state(), state)


def test_clips_without_context_are_drawn_again_and_never_returned():
    # Two blocks of 3 x 3 in 3 x 5 tokens leave context unless they take both ends: a ninth of the pairs in two orders.
    assert sample_block_size(OFTEN_EMPTY, SMALL_GRID, step=0) == (4, 3, 3)
    pair = sample_multi_block_masks(OFTEN_EMPTY, SMALL_GRID, 500, step=0, generator=generator())
    assert pair.context_mask.shape == (500, 4 * 3 * 1)


def test_blocks_that_always_hide_everything_raise_instead_of_drawing_for_ever():
    settings = MultiBlockMasking(num_blocks=1, spatial_scale=(1.0, 1.0), aspect_ratio=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"without context in each of 100 draws.*smaller spatial_scale"):
        sample_multi_block_masks(settings, GRID, 2, step=0, generator=generator())
    with pytest.raises(ValueError, match=r"without context in each of 100 draws"):
        sample_masks_at(settings, GRID, [0], seed=0, step=0)


def test_a_block_on_a_grid_of_few_tokens_is_never_empty():
    grid = TokenGrid(num_frames=4, height=32, width=32)
    for step in range(50):
        assert min(sample_block_size(SHORT_RANGE, grid, step=step)) >= 1


def test_the_cut_keeps_the_first_tokens_in_raster_order():
    is_kept = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 0, 0, 1, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    assert cut_to_batch_minimum(is_kept).tolist() == [[0, 2], [1, 4], [0, 1]]


def test_random_tubes_hide_the_same_patches_in_all_frames_and_others_in_each_clip():
    pair = sample_random_tube_masks(RandomTubeMasking(ratio=0.5), SMALL_GRID, 6, generator=generator())
    first_frames = set()
    for clip in range(6):
        is_target = volume(pair.target_mask, SMALL_GRID, clip)
        assert (is_target == is_target[:1]).all()
        assert (volume(pair.context_mask, SMALL_GRID, clip) == ~is_target).all()
        first_frames.add(is_target[0].tobytes())
    assert len(first_frames) > 1


def test_random_tubes_hide_every_patch_equally_often():
    pair = sample_random_tube_masks(RandomTubeMasking(ratio=0.8), SMALL_GRID, 5000, generator=generator())
    is_first_frame = pair.context_mask < 15
    counts = torch.bincount(pair.context_mask[is_first_frame], minlength=15)
    assert counts.sum() == 5000 * 3
    assert ((counts - 1000).abs() < 4 * math.sqrt(5000 * 0.2 * 0.8)).all()


def test_floating_point_never_takes_a_patch_from_a_random_tube():
    grid = TokenGrid(num_frames=2, height=32, width=80)  # 10 patches: 10 * (1 - 0.9) is 0.9999...
    assert sample_random_tube_masks(RandomTubeMasking(), grid, 1, generator=generator()).context_mask.shape == (1, 1)


def test_a_random_tube_that_keeps_nothing_raises():
    grid = TokenGrid(num_frames=4, height=32, width=32)
    with pytest.raises(ValueError, match=r"keeps none of the 4 patches.*at most 3"):
        sample_random_tube_masks(RandomTubeMasking(), grid, 1, generator=generator())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_blocks": 0}, "num_blocks is 0"),
        ({"spatial_scale": (0.0, 0.5)}, "spatial_scale.0 is 0.0"),
        ({"spatial_scale": (0.5, 1.5)}, "spatial_scale.1 is 1.5"),
        ({"spatial_scale": (0.15,)}, "spatial_scale is .*more values"),
        ({"temporal_scale": (1.0, 0.5)}, "temporal_scale is .*smaller number first.*twice"),
        ({"aspect_ratio": (-1.0, 1.5)}, "aspect_ratio.0 is -1.0"),
        ({"aspect_ratio": (0.75, float("nan"))}, "aspect_ratio.1 is nan"),
        ({"max_temporal_keep": 0.0}, "max_temporal_keep is 0.0"),
        ({"aspect_ratio": (0.75, float("inf"))}, "aspect_ratio.1 is inf.* finite"),
        ({"max_context_tokens": 0}, "max_context_tokens is 0"),
        ({"mask_index": -1}, "mask_index is -1"),
    ],
)
def test_impossible_settings_raise_when_built(changes, message):
    with pytest.raises(ValueError, match=message):
        SHORT_RANGE.with_values(**changes)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 90, float("nan")])
def test_impossible_tube_ratios_raise_when_built(ratio):
    with pytest.raises(ValueError, match=f"ratio is {ratio}"):
        RandomTubeMasking(ratio=ratio)


def test_an_empty_batch_and_a_negative_step_raise():
    with pytest.raises(ValueError, match="batch_size is 0"):
        sample_multi_block_masks(SHORT_RANGE, GRID, 0, step=0, generator=generator())
    with pytest.raises(ValueError, match="step is -1"):
        sample_multi_block_masks(SHORT_RANGE, GRID, 1, step=-1, generator=generator())


# Masks of training at positions of the global order


def draw_at(settings, grid, positions, *, seed=0, step=3, **options):
    pair = sample_masks_at(settings, grid, positions, seed=seed, step=step, **options)
    return list(zip(pair.context_mask.tolist(), pair.target_mask.tolist(), strict=True))


POSITIONAL = [
    (SHORT_RANGE, GRID),
    (LONG_RANGE, GRID),
    (CAUSAL_HALF, GRID),
    (RANDOM_TUBE, GRID),
    (OFTEN_EMPTY, SMALL_GRID),
]


@pytest.mark.parametrize(("settings", "grid"), POSITIONAL)
@pytest.mark.parametrize("cut", [cut_to_batch_minimum, cut_at_random])
def test_before_the_cut_masks_do_not_depend_on_the_other_clips_of_the_batch(settings, grid, cut):
    positions = [*range(40, 70), 5]
    together = draw_at(settings, grid, positions, cut=cut)
    for (context, targets), position in zip(together, positions, strict=True):
        [(whole_context, whole_targets)] = draw_at(settings, grid, [position], cut=cut)
        assert sorted(whole_context + whole_targets) == list(range(grid.num_tokens))
        assert set(context) <= set(whole_context)
        assert set(targets) <= set(whole_targets)
        if cut is cut_to_batch_minimum:
            assert context == whole_context[: len(context)]
            assert targets == whole_targets[: len(targets)]


@pytest.mark.parametrize(("settings", "grid"), POSITIONAL)
def test_masks_at_positions_follow_from_seed_position_and_kind_alone(settings, grid):
    expected = draw_at(settings, grid, range(8))
    torch.manual_seed(3)
    assert draw_at(settings, grid, torch.arange(8)) == expected
    assert draw_at(settings, grid, np.arange(8)[::-1]) == expected[::-1]
    for other in (
        draw_at(settings, grid, range(8), seed=1),
        draw_at(settings, grid, range(8, 16)),
        draw_at(settings.with_values(mask_index=settings.mask_index + 1), grid, range(8)),
    ):
        assert other != expected


def test_the_step_changes_the_size_of_the_blocks_of_all_clips_alike():
    masks = {step: sample_masks_at(SHORT_RANGE, GRID, range(8), seed=0, step=step) for step in (0, 1)}
    for step, pair in masks.items():
        is_target = volume(pair.target_mask, GRID)[0]
        _, rows, columns = sample_block_size(SHORT_RANGE, GRID, step=step)
        windows = np.lib.stride_tricks.sliding_window_view(is_target, (rows, columns))
        assert windows.all(axis=(2, 3)).any()
    assert sample_block_size(SHORT_RANGE, GRID, step=0) != sample_block_size(SHORT_RANGE, GRID, step=1)


def test_no_positions_raise():
    with pytest.raises(ValueError, match="num_positions is 0"):
        sample_masks_at(SHORT_RANGE, GRID, [], seed=0, step=0)


# Cuts


def uniform(num_clips, seed=0):
    return lambda num_draws: torch.rand(num_clips, num_draws, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("cut", [cut_to_batch_minimum, cut_at_random])
def test_cuts_keep_ascending_tokens_of_the_mask_as_many_as_the_smallest_clip_has(cut):
    for seed in range(20):
        is_kept = torch.rand(6, 50, generator=generator(seed)) < 0.4
        tokens = cut(is_kept, max_kept=None, draw=uniform(6))
        assert tokens.dtype == torch.int64
        assert tokens.shape == (6, int(is_kept.sum(dim=1).min()))
        assert is_kept.gather(1, tokens).all()
        assert (tokens.diff() > 0).all()
        assert cut(is_kept, max_kept=5, draw=uniform(6)).shape == (6, 5)
        assert cut(is_kept, max_kept=50, draw=uniform(6)).tolist() == tokens.tolist()


@pytest.mark.parametrize("cut", [cut_to_batch_minimum, cut_at_random])
def test_cuts_take_masks_that_are_full_or_empty(cut):
    is_kept = torch.ones(2, 4, dtype=torch.bool)
    assert cut(is_kept, max_kept=None, draw=uniform(2)).tolist() == [[0, 1, 2, 3]] * 2
    is_kept[1] = False
    assert cut(is_kept, max_kept=None, draw=uniform(2)).shape == (2, 0)


def test_a_random_cut_keeps_every_token_equally_often():
    is_kept = torch.ones(4000, 20, dtype=torch.bool)
    is_kept[0, 5:] = False
    counts = torch.bincount(cut_at_random(is_kept, draw=uniform(4000))[1:].flatten(), minlength=20)
    assert ((counts - 1000).abs() < 4.5 * math.sqrt(4000 * 0.25 * 0.75)).all()


def test_a_random_cut_leaves_targets_in_all_frames_alike_and_the_released_one_does_not():
    def share_in_last_frame(cut):
        pair = sample_masks_at(LONG_RANGE, GRID, range(24), seed=0, step=0, cut=cut)
        return (pair.context_mask >= GRID.num_tokens * 7 // 8).double().mean().item()

    assert share_in_last_frame(cut_to_batch_minimum) < 0.02
    assert abs(share_in_last_frame(cut_at_random) - 1 / 8) < 0.02


def test_a_cut_of_ones_own_takes_the_place_of_the_released_one():
    def cut_to_a_multiple_of_eight(is_kept, *, max_kept, draw):
        tokens = cut_to_batch_minimum(is_kept, max_kept=max_kept)
        return tokens[:, : tokens.shape[1] // 8 * 8]

    for step in range(5):
        pair = sample_masks_at(CAUSAL_HALF, GRID, range(4), seed=0, step=step, cut=cut_to_a_multiple_of_eight)
        assert (pair.context_mask.shape[1] % 8, pair.target_mask.shape[1] % 8) == (0, 0)


@pytest.mark.parametrize("cut", [cut_to_batch_minimum, cut_at_random])
def test_the_context_can_be_cut_to_a_fixed_number(cut):
    settings = SHORT_RANGE.with_values(max_context_tokens=100)
    for step in range(5):
        pair = sample_masks_at(settings, GRID, range(8), seed=0, step=step, cut=cut)
        assert pair.context_mask.shape == (8, 100)
        free = sample_masks_at(SHORT_RANGE, GRID, range(8), seed=0, step=step, cut=cut)
        assert torch.equal(pair.target_mask, free.target_mask)


# Settings that do not go with a grid


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # At every step one block hides the whole clip.
        ({"num_blocks": 1, "spatial_scale": (1.0, 1.0), "aspect_ratio": (1.0, 1.0)}, "100% of 1000 draws"),
        # At some steps only: blocks of nearly the whole frame round to it.
        ({"num_blocks": 1, "spatial_scale": (0.2, 1.0)}, r"blocks of \(8, 14, 14\) tokens leave.*100% of 1000 draws"),
        # Nearly always: so many blocks leave little.
        ({"num_blocks": 300}, "without context in .* draws.*fewer blocks"),
        ({"num_blocks": 40, "max_temporal_keep": 0.1}, None),
    ],
)
def test_settings_that_never_leave_context_at_some_step_are_found_before_a_run(changes, message):
    settings = SHORT_RANGE.with_values(**changes)
    if message is None:
        require_possible(settings, GRID)
        return
    with pytest.raises(ValueError, match=message):
        require_possible(settings, GRID)


def test_a_tube_that_hides_every_patch_or_none_is_found_before_a_run():
    with pytest.raises(ValueError, match="keeps none of the 4 patches"):
        require_possible(RANDOM_TUBE, TokenGrid(num_frames=4, height=32, width=32))
    with pytest.raises(ValueError, match="keeps 4 of the 4 patches"):
        require_possible(RandomTubeMasking(ratio=1e-12), TokenGrid(num_frames=4, height=32, width=32))


@pytest.mark.parametrize("name", KINDS)
def test_the_reference_settings_are_possible(name):
    config = STATISTICS[name]["config"]
    require_possible(settings_of(config), grid_of(config))


@pytest.mark.parametrize("kind", [SHORT_RANGE, LONG_RANGE, CAUSAL])
@pytest.mark.parametrize("side", [2, 3, 4, 6])
def test_settings_found_possible_never_stop_a_run(kind, side):
    grid = TokenGrid(num_frames=8, height=16 * side, width=16 * side)
    require_possible(kind, grid)
    for step in range(50):
        sample_masks_at(kind, grid, range(step * 100, step * 100 + 100), seed=0, step=step)


# Masks made by hand


@pytest.mark.parametrize("tubelet_size", [1, 2, 4])
def test_the_context_of_a_future_mask_never_holds_a_hidden_frame(tubelet_size):
    grid = SMALL_GRID.with_values(tubelet_size=tubelet_size)
    for frame in range(tubelet_size, grid.num_frames):
        is_hidden = np.zeros((grid.num_frames, grid.height, grid.width), dtype=bool)
        is_hidden[frame:, ::16, ::16] = True
        pair = mask_future(grid, frame, batch_size=2)
        assert_splits_the_clip(pair, grid, tokens_of_pixels(is_hidden, grid))
        assert pair.mask_index == 1


@pytest.mark.parametrize("frame", [-1, 0, 1, 8, 9])
def test_a_future_mask_without_past_or_future_raises(frame):
    with pytest.raises(ValueError, match=f"frame is {frame}"):
        mask_future(SMALL_GRID, frame)


@pytest.mark.parametrize(
    "box",
    [
        {"top": 0, "left": 0, "bottom": 1, "right": 1},
        {"top": 15, "left": 15, "bottom": 17, "right": 17},
        {"top": 16, "left": 16, "bottom": 32, "right": 32},
        {"top": 3, "left": 20, "bottom": 40, "right": 79},
        {"top": 0, "left": 0, "bottom": 48, "right": 64},
        {"top": 0, "left": 0, "bottom": 48, "right": 80, "first_frame": 3},
        {"top": 10, "left": 0, "bottom": 20, "right": 80, "first_frame": 3, "last_frame": 3},
        {"top": 47, "left": 79, "bottom": 48, "right": 80, "first_frame": 1, "last_frame": 4},
    ],
)
def test_a_token_is_hidden_exactly_where_the_box_overlaps_it(box):
    frames = slice(box.get("first_frame", 0), box.get("last_frame", SMALL_GRID.num_frames - 1) + 1)
    is_hidden = np.zeros((SMALL_GRID.num_frames, SMALL_GRID.height, SMALL_GRID.width), dtype=bool)
    is_hidden[frames, box["top"] : box["bottom"], box["left"] : box["right"]] = True
    pair = mask_box(SMALL_GRID, batch_size=3, **box)
    assert pair.target_mask.shape[0] == 3
    assert_splits_the_clip(pair, SMALL_GRID, tokens_of_pixels(is_hidden, SMALL_GRID))


def test_random_boxes_agree_with_brute_force_over_pixels():
    draws = np.random.default_rng(0)
    for _ in range(40):
        top, bottom = sorted(draws.choice(SMALL_GRID.height + 1, 2, replace=False).tolist())
        left, right = sorted(draws.choice(65, 2, replace=False).tolist())
        first_frame, end_frame = sorted(draws.choice(SMALL_GRID.num_frames + 1, 2, replace=False).tolist())
        is_hidden = np.zeros((SMALL_GRID.num_frames, SMALL_GRID.height, SMALL_GRID.width), dtype=bool)
        is_hidden[first_frame:end_frame, top:bottom, left:right] = True
        pair = mask_box(
            SMALL_GRID,
            top=top,
            left=left,
            bottom=bottom,
            right=right,
            first_frame=first_frame,
            last_frame=end_frame - 1,
        )
        assert_splits_the_clip(pair, SMALL_GRID, tokens_of_pixels(is_hidden, SMALL_GRID))


@pytest.mark.parametrize(("right", "mask_index"), [(10, 0), (42, 0), (43, 1), (80, 1)])
def test_the_mask_index_of_a_box_is_the_kind_of_the_nearer_share(right, mask_index):
    grid = TokenGrid(num_frames=4, height=100, width=100, patch_size=10)
    assert mask_box(grid, top=0, left=0, bottom=100, right=right).mask_index == mask_index


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bottom": 49}, "top to bottom is 0 to 49.*48"),
        ({"right": 81}, "left to right is 0 to 81.*80"),
        ({"left": -1}, "left to right is -1"),
        ({"top": 16}, "top to bottom is 16 to 16"),
        ({"last_frame": 8}, "is 0 to 9.*8"),
        ({"first_frame": 5, "last_frame": 4}, "is 5 to 5"),
        ({"bottom": 33, "right": 65}, "context_mask is empty.*hide less"),
    ],
)
def test_impossible_boxes_are_named_in_the_error(changes, message):
    with pytest.raises(ValueError, match=message):
        mask_box(SMALL_GRID, **({"top": 0, "left": 0, "bottom": 16, "right": 16} | changes))


def test_a_tube_hides_its_patches_in_all_frames_in_either_form():
    is_hidden = np.zeros((3, 5), dtype=bool)
    is_hidden[0, 4] = is_hidden[2, 1] = is_hidden[1, 1] = True
    expected = np.broadcast_to(is_hidden, (4, 3, 5))
    pairs = [(0, 4), (2, 1), (1, 1), (2, 1)]
    for patches in (pairs, np.array(pairs, dtype=np.uint8), is_hidden, torch.tensor(is_hidden), is_hidden[::-1][::-1]):
        pair = mask_tube(SMALL_GRID, patches, batch_size=2)
        assert_splits_the_clip(pair, SMALL_GRID, expected)
        assert pair.mask_index == 0


def test_a_tube_of_most_patches_belongs_to_the_long_range_masks():
    assert mask_tube(SMALL_GRID, [(row, column) for row in range(3) for column in range(4)]).mask_index == 1


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        ([(0, 0), (3, 0)], "patch \\(3, 0\\) lies outside.*3 rows and 5 columns"),
        ([(0, -1)], "patch \\(0, -1\\) lies outside"),
        ([], "patches has shape"),
        ([(0.5, 1.0)], "patches has shape"),
        ([(0, 1, 2)], "patches has shape \\(1, 3\\)"),
        (np.ones((5, 3), dtype=bool), "boolean array of shape \\(5, 3\\)"),
        (np.ones((3, 5), dtype=bool), "context_mask is empty"),
        (np.zeros((3, 5), dtype=bool), "target_mask is empty"),
    ],
)
def test_impossible_tubes_are_named_in_the_error(patches, message):
    with pytest.raises(ValueError, match=message):
        mask_tube(SMALL_GRID, patches)
