import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vjepa_hub import VJEPAConfig, VJEPAForPreTraining
from vjepa_hub.data.masking import MaskPair, TokenGrid, mask_box, mask_future, mask_tube
from vjepa_hub.evaluation import surprise
from vjepa_hub.evaluation.surprise import (
    Surprise,
    join_at_mask,
    make_appearances,
    make_continuations,
    measure_surprise,
    object_permanence,
)

NUM_FRAMES, SIZE = 8, 16
GRID = TokenGrid(num_frames=NUM_FRAMES, height=SIZE, width=SIZE, patch_size=8)
FUTURE = mask_future(GRID, 4)
BOX = mask_box(GRID, top=0, left=8, bottom=8, right=16, first_frame=2, last_frame=5)


@pytest.fixture(scope="module")
def model():
    """A model with random weights whose target encoder is not its encoder."""
    config = VJEPAConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=8,
        crop_size=SIZE,
        frames_per_clip=NUM_FRAMES,
        pred_hidden_size=16,
        pred_num_hidden_layers=2,
        pred_num_attention_heads=2,
        drop_path_rate=0.5,
    )
    torch.manual_seed(0)
    made = VJEPAForPreTraining(config).eval()
    for parameter in made.target_encoder.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


def draw_clips(num_clips=5, seed=0):
    return torch.randn(num_clips, NUM_FRAMES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def target_features(model, clips, masks):
    with torch.no_grad():
        features = model.target_encoder(clips).last_hidden_state
    return F.layer_norm(features, features.shape[-1:], eps=1e-5)[:, masks.target_mask[0]]


# --- wrong continuations ---


def test_future_of_each_kind_is_what_its_name_says():
    clips, backgrounds = draw_clips(), draw_clips(seed=1)
    made = make_continuations(clips, FUTURE, GRID, backgrounds=backgrounds)
    assert list(made) == ["other clip", "reversed", "frozen", "object removed"]
    for wrong in made.values():
        assert torch.equal(wrong[:, :4], clips[:, :4])
    assert torch.equal(made["other clip"][:, 4:], clips[[1, 2, 3, 4, 0], 4:])
    assert torch.equal(made["reversed"][:, 4:], clips[:, [7, 6, 5, 4]])
    assert torch.equal(made["frozen"][:, 4:], clips[:, [3, 3, 3, 3]])
    assert torch.equal(made["object removed"][:, 4:], backgrounds[:, 4:])
    assert "object removed" not in make_continuations(clips, FUTURE, GRID)


def test_object_appears_where_the_background_was_seen():
    clips, backgrounds = draw_clips(), draw_clips(seed=1)
    made = make_appearances(backgrounds, clips, FUTURE, GRID)
    assert list(made) == ["object appeared"]
    assert torch.equal(made["object appeared"][:, :4], backgrounds[:, :4])
    assert torch.equal(made["object appeared"][:, 4:], clips[:, 4:])


def test_predictor_that_always_expects_the_background_has_object_permanence_by_chance(model, monkeypatch):
    """It is surprised by each object that appears, and by none that is removed."""
    clips, backgrounds = draw_clips(), draw_clips(seed=1)
    removed = make_continuations(clips, FUTURE, GRID, backgrounds=backgrounds)["object removed"]
    appeared = make_appearances(backgrounds, clips, FUTURE, GRID)["object appeared"]
    found = []
    for true, wrong, expected in ((clips, removed, removed), (backgrounds, appeared, backgrounds)):
        features = target_features(model, expected, FUTURE)
        monkeypatch.setattr(model, "predict", lambda *_, features=features, **__: features)
        found.append(measure_surprise(model, true, {"wrong": wrong}, FUTURE)["wrong"])
    assert [one.accuracy for one in found] == [0, 1]
    assert object_permanence(*found).accuracy == 0.5


def test_object_permanence_of_unequally_many_clips_is_an_error():
    few, many = (Surprise(true_errors=np.zeros(count), wrong_errors=np.ones(count)) for count in (2, 3))
    assert object_permanence(many, many).accuracy == 1
    with pytest.raises(ValueError, match="removed from 2 clips and appear in 3"):
        object_permanence(few, many)


def test_only_the_pixels_of_a_box_are_wrong():
    clips = draw_clips()
    is_hidden = torch.zeros_like(clips, dtype=torch.bool)
    is_hidden[:, 2:6, :, :8, 8:] = True
    made = make_continuations(clips, BOX, GRID)
    for wrong in made.values():
        assert torch.equal(wrong != clips, is_hidden)
    assert torch.equal(made["reversed"][:, 2:6, :, :8, 8:], clips[:, [5, 4, 3, 2], :, :8, 8:])
    assert torch.equal(made["frozen"][:, 5, :, :8, 8:], clips[:, 1, :, :8, 8:])


def test_tube_that_is_hidden_from_the_start_is_frozen_at_its_first_frame():
    clips = draw_clips()
    frozen = make_continuations(clips, mask_tube(GRID, [(1, 0)]), GRID)["frozen"]
    assert torch.equal(frozen[:, 7, :, 8:, :8], clips[:, 0, :, 8:, :8])


@pytest.mark.parametrize(
    ("clips", "backgrounds", "message"),
    [
        (draw_clips(1), None, "there is 1 clip"),
        (draw_clips()[:, :4], None, r"shape \(5, 4, 3, 16, 16\), but the grid"),
        (draw_clips(), draw_clips(4), r"other clips have the shape \(4, 8, 3, 16, 16\)"),
    ],
)
def test_clips_that_cannot_be_continued_are_refused(clips, backgrounds, message):
    with pytest.raises(ValueError, match=message):
        make_continuations(clips, FUTURE, GRID, backgrounds=backgrounds)


def test_masks_that_differ_between_clips_are_refused():
    masks = MaskPair(torch.tensor([[0], [1]]), torch.tensor([[1], [0]]), 0)
    with pytest.raises(ValueError, match="masks of their own"):
        join_at_mask(draw_clips(2), draw_clips(2), masks, GRID)


# --- errors ---


@pytest.mark.parametrize("masks", [FUTURE, BOX])
def test_true_error_is_the_loss_of_the_training_objective(model, masks):
    clips = draw_clips(1)
    measured = measure_surprise(model, clips, {"none": clips}, masks)["none"]
    with torch.no_grad():
        target = masks.target_mask
        predicted = model.predict(clips, masks.context_mask, target, mask_index=masks.mask_index)
    loss = F.l1_loss(predicted, target_features(model, clips, masks)).item()
    assert measured.true_errors.tolist() == pytest.approx([loss], rel=1e-5)


def test_true_error_of_each_generation_is_its_loss_over_all_feature_levels(family_config, small_clip):
    torch.manual_seed(0)
    model = VJEPAForPreTraining(family_config).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    masks = mask_future(TokenGrid.from_config(family_config), 2)
    clip = small_clip[:1]
    measured = measure_surprise(model, clip, {"none": clip}, masks)["none"]
    masks_of_kinds = [[mask] * (masks.mask_index + 1) for mask in (masks.context_mask, masks.target_mask)]
    with torch.no_grad():
        output = model(clip, *masks_of_kinds)
        loss = F.l1_loss(output.predictions[-1], output.targets[-1]).item()
    assert measured.true_errors.tolist() == pytest.approx([loss], rel=1e-5)


def test_distilled_model_is_refused_since_its_predictions_are_its_teachers(small_config):
    small_config.pred_output_size = 64
    masks = mask_future(TokenGrid.from_config(small_config), 2)
    with pytest.raises(ValueError, match=r"pred_output_size = 64.*measure the teacher"):
        measure_surprise(VJEPAForPreTraining(small_config), torch.randn(1, 4, 3, 32, 32), {}, masks)


def test_true_continuation_taken_for_a_wrong_one_is_no_surprise(model):
    clips = draw_clips()
    measured = measure_surprise(model, clips, {"same": clips}, FUTURE)["same"]
    assert np.array_equal(measured.true_errors, measured.wrong_errors)
    assert measured.accuracy == 0


@pytest.mark.parametrize("masks", [FUTURE, BOX])
def test_predictor_that_knows_the_truth_is_surprised_by_every_wrong_continuation(model, masks, monkeypatch):
    clips = draw_clips()
    monkeypatch.setattr(model, "predict", lambda pixels, *_, **__: target_features(model, pixels, masks))
    continuations = make_continuations(clips, masks, GRID, backgrounds=draw_clips(seed=1))
    measured = measure_surprise(model, clips, continuations, masks, clips_per_pass=2)
    for found in measured.values():
        assert found.accuracy == 1
        assert found.interval() == (1, 1)
        assert np.allclose(found.true_errors, 0, atol=1e-6)
        assert (found.wrong_errors > 0.01).all()


def test_predictor_that_expects_the_wrong_continuation_is_never_surprised_by_it(model, monkeypatch):
    clips = draw_clips()
    frozen = make_continuations(clips, FUTURE, GRID)["frozen"]
    monkeypatch.setattr(model, "predict", lambda *_, **__: target_features(model, frozen, FUTURE))
    measured = measure_surprise(model, clips, {"frozen": frozen}, FUTURE)["frozen"]
    assert measured.accuracy == 0
    assert np.allclose(measured.wrong_errors, 0, atol=1e-6)


@pytest.mark.parametrize("masks", [FUTURE, BOX])
def test_prediction_does_not_see_the_hidden_pixels(model, masks):
    clips = draw_clips()
    changed = join_at_mask(clips, draw_clips(seed=2), masks, GRID)
    visible = clips.clone()
    visible[:, 0] += 1
    with torch.no_grad():
        expected = surprise._predict(model, clips, masks)
        assert torch.equal(surprise._predict(model, changed, masks), expected)
        assert not torch.equal(surprise._predict(model, visible, masks), expected)


def test_errors_do_not_depend_on_how_many_clips_go_through_at_once(model):
    clips = draw_clips()
    continuations = make_continuations(clips, FUTURE, GRID)
    some, all_at_once = (
        measure_surprise(model, clips, continuations, FUTURE, clips_per_pass=count) for count in (2, 16)
    )
    for kind in continuations:
        assert np.allclose(some[kind].wrong_errors, all_at_once[kind].wrong_errors, atol=1e-5)
        assert np.allclose(some[kind].true_errors, all_at_once[kind].true_errors, atol=1e-5)


def test_model_in_training_mode_is_measured_without_drop_path_and_stays_in_it(model):
    clips = draw_clips()
    expected = measure_surprise(model, clips, {"same": clips}, FUTURE)["same"].true_errors
    model.train()
    try:
        assert np.array_equal(measure_surprise(model, clips, {"same": clips}, FUTURE)["same"].true_errors, expected)
        assert model.training
        assert not model.target_encoder.training
        with pytest.raises(ValueError):  # noqa: PT011  (the model's own message)
            measure_surprise(model, clips[:, :, :1], {}, FUTURE)
        assert model.training
    finally:
        model.eval()


def test_no_gradient_is_computed(model, monkeypatch):
    clips, needs_gradient = draw_clips().requires_grad_(), []
    predict = model.predict

    def watched(*arguments, **values):
        needs_gradient.append((predicted := predict(*arguments, **values)).requires_grad)
        return predicted

    monkeypatch.setattr(model, "predict", watched)
    measure_surprise(model, clips, {"same": clips}, FUTURE)
    assert needs_gradient == [False]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("clips", "wrong", "message"),
    [
        (draw_clips(), draw_clips(4), r"'wrong' has the shape \(4, 8, 3, 16, 16\)"),
        (draw_clips()[:0], draw_clips()[:0], "there are 0 clips"),
    ],
)
def test_clips_that_cannot_be_measured_are_refused(model, clips, wrong, message):
    with pytest.raises(ValueError, match=message):
        measure_surprise(model, clips, {"wrong": wrong}, FUTURE)


def test_accuracy_is_the_share_of_clips_with_the_larger_wrong_error_and_ties_do_not_count():
    measured = Surprise(true_errors=np.array([1.0, 1.0, 1.0, 1.0]), wrong_errors=np.array([2.0, 1.0, 0.5, 1.5]))
    assert measured.is_surprised.tolist() == [True, False, False, True]
    assert measured.accuracy == 0.5


def test_interval_is_that_of_a_share_and_narrows_with_more_clips():
    for num_clips in (100, 10_000):
        wrong = np.arange(num_clips) % 2 * 1.0
        low, high = Surprise(true_errors=np.full(num_clips, 0.5), wrong_errors=wrong).interval()
        assert (high - low) / 2 == pytest.approx(1.96 * 0.5 / num_clips**0.5, rel=0.15)
        assert (high + low) / 2 == pytest.approx(0.5, abs=0.02)
