import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.forked import call_in_process
from tests.pretraining.conftest import SMALL_KINDS
from vjepa_hub import VJEPAForPreTraining
from vjepa_hub.data.masking import LONG_RANGE, SHORT_RANGE, TokenGrid, sample_masks_at
from vjepa_hub.pretraining.arguments import CHECKPOINTING
from vjepa_hub.pretraining.estimate import (
    ASSUMED_SHARE,
    count_parameters,
    draw_token_counts,
    encoder_flops,
    estimate,
    estimate_recipe,
    measure_matrix_flops,
    step_flops,
)
from vjepa_hub.pretraining.pixel_prediction import VJEPAForPixelPrediction
from vjepa_hub.pretraining.recipe import load_recipe

NUM_CLIPS = 3


@pytest.fixture
def masks(small_config):
    side = small_config.crop_size
    grid = TokenGrid(num_frames=small_config.frames_per_clip, height=side, width=side, patch_size=8)
    return [sample_masks_at(kind, grid, range(NUM_CLIPS), seed=0, step=0) for kind in SMALL_KINDS]


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_flops_are_those_that_torch_counts(small_config, masks, is_checkpointed):
    """Written-out attention: torch counts a fused kernel's second computation of the scores too."""
    small_config._attn_implementation = "eager"
    model = VJEPAForPreTraining(small_config).train()
    if is_checkpointed:
        getattr(model, f"{CHECKPOINTING}_enable")({"use_reentrant": False})
    clips = torch.randn(NUM_CLIPS, 4, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        model(clips, [pair.context_mask for pair in masks], [pair.target_mask for pair in masks]).loss.backward()
    counts = [(pair.context_mask.shape[1], pair.target_mask.shape[1]) for pair in masks]
    flops = step_flops(small_config, counts, is_checkpointed=is_checkpointed)
    assert NUM_CLIPS * flops.total == pytest.approx(counter.get_total_flops(), rel=1e-2)


def test_flops_of_pixel_targets_are_those_that_torch_counts(small_config, masks):
    small_config._attn_implementation = "eager"
    model = VJEPAForPixelPrediction(small_config).train()
    with FlopCounterMode(display=False) as counter:
        arguments = [pair.context_mask for pair in masks], [pair.target_mask for pair in masks]
        model(torch.randn(NUM_CLIPS, 4, 3, 32, 32), *arguments).loss.backward()
    counts = [(pair.context_mask.shape[1], pair.target_mask.shape[1]) for pair in masks]
    flops = step_flops(small_config, counts, predicts_pixels=True)
    assert NUM_CLIPS * flops.total == pytest.approx(counter.get_total_flops(), rel=1e-2)


def test_flops_of_the_target_encoder_are_those_of_its_forward_pass(small_config):
    small_config._attn_implementation = "eager"
    model = VJEPAForPreTraining(small_config)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.target_encoder(torch.randn(1, 4, 3, 32, 32))
    assert encoder_flops(small_config) == pytest.approx(counter.get_total_flops(), rel=1e-2)


def test_parameters_are_those_of_the_model(small_config):
    model = VJEPAForPreTraining(small_config)
    assert count_parameters(small_config) == {
        part: model.get_submodule(part).num_parameters() for part in ("encoder", "predictor", "target_encoder")
    }


def test_tokens_are_those_that_the_release_leaves():
    """DESIGN.md, section 3: 366 / 753 and 106 / 1101 of 1568 at batch 24."""
    draws = torch.tensor(draw_token_counts(load_recipe("vitl16").config(), (SHORT_RANGE, LONG_RANGE), 24)).double()
    expected = torch.tensor([[366, 753], [106, 1101]]).double()
    torch.testing.assert_close(draws.mean(0), expected, rtol=0.06, atol=0)


def resident(name: str) -> int:
    """Bytes of this process in memory."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))


def write_peak_of_step(file: Path, batch_size: int) -> None:
    recipe = load_recipe("tiny")
    pairs = [sample_masks_at(kind, recipe.grid(), range(batch_size), seed=0, step=0) for kind in recipe.masks]
    masks = [pair.context_mask for pair in pairs], [pair.target_mask for pair in pairs]
    torch.nn.functional.linear(torch.ones(64, 64, requires_grad=True), torch.ones(64, 64)).sum().backward()
    before = resident("VmRSS")
    model = VJEPAForPreTraining(recipe.config()).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model(torch.randn(batch_size, 8, 3, 64, 64), *masks).loss.backward()
    optimizer.step()
    file.write_text(str(resident("VmHWM") - before))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_memory_is_that_of_a_step_within_a_third(tmp_path):
    batch_size = 24
    assert call_in_process(write_peak_of_step, tmp_path / "peak", batch_size) == 0
    recipe = load_recipe("tiny").with_overrides({"global_batch_size": batch_size})
    recipe = recipe.with_overrides({"per_device_train_batch_size": batch_size})
    memory = estimate_recipe(recipe, device="cpu").memory.total
    assert 0.75 < memory / int((tmp_path / "peak").read_text()) < 1.33


def test_half_precision_and_checkpointing_need_less_memory(small_config):
    plain, half, checkpointed = (
        estimate(small_config, SMALL_KINDS, batch_size=64, clips_per_step=64, matrix_flops=1.0, **options).memory
        for options in ({}, {"autocast_dtype": torch.bfloat16}, {"is_checkpointed": True})
    )
    assert half.activations < 0.75 * plain.activations
    assert checkpointed.activations < plain.activations


def test_time_is_work_over_the_share_of_the_measured_speed(small_config):
    found = estimate(
        small_config,
        SMALL_KINDS,
        batch_size=4,
        clips_per_step=16,
        total_steps=10,
        num_processes=2,
        matrix_flops=1e9,
    )
    assert found.total_clips == 160
    assert found.seconds == pytest.approx(160 * found.flops_per_clip.total / (2 * 1e9 * ASSUMED_SHARE))


def test_a_run_of_epochs_has_no_time_before_its_data_is_known(small_config):
    found = estimate(small_config, SMALL_KINDS, batch_size=4, clips_per_step=4, matrix_flops=1e9)
    assert found.seconds is None
    assert ("run", "of as many steps as the data has; set max_steps for its time") in found.rows()


def test_a_matrix_product_takes_time():
    assert 1e7 < measure_matrix_flops("cpu", min_seconds=0.01) < 1e15


def test_the_estimate_of_a_big_recipe_is_complete_and_uses_no_memory_for_it():
    found = estimate_recipe(load_recipe("vitl16"), num_processes=128, device="cpu")
    assert found.clips_per_step == 3072
    assert found.total_clips == 3072 * 90000
    assert found.num_parameters["encoder"] == 303_885_312
    names = [name for name, _ in found.rows()]
    assert names[:4] == ["parameters", "tokens of a clip", "mask kind 0", "mask kind 1"]
    assert "time of the run" in names
    assert f"{ASSUMED_SHARE:.0%}" in found.describe_assumptions()
