import copy
import json
import re
import warnings

import numpy as np
import pytest
import torch
from packaging.version import Version
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AttentionInterface

from tests.reference_family import reference_file, tiny_config
from vjepa_hub import VJEPAConfig, VJEPAForPreTraining, VJEPAForVideoClassification, VJEPAModel
from vjepa_hub.data.masking import TokenGrid, mask_box, mask_future
from vjepa_hub.hub.conversion import to_original_state
from vjepa_hub.model.modeling_vjepa import (
    eager_attention_forward,
    nearest_target_distances,
    select_tokens,
    sincos_positions,
)

GRID = TokenGrid(num_frames=4, height=32, width=32, patch_size=8, tubelet_size=2)


@pytest.fixture
def small_config(family_config) -> VJEPAConfig:
    """Each test of a small model runs in each generation of the family."""
    return family_config


with_table = pytest.mark.parametrize("family_config", ["1"], indirect=True)
with_rotation = pytest.mark.parametrize("family_config", ["2", "2.1"], indirect=True)
with_levels = pytest.mark.parametrize("family_config", ["2.1"], indirect=True)
# Video alone is shown to these models
OF_IMAGES = ("image_patch_embeddings", "modality_embeddings.image")


@pytest.fixture
def small_model(small_config) -> VJEPAModel:
    torch.manual_seed(0)
    return VJEPAModel(small_config).eval()


@pytest.fixture
def small_pretraining(small_config) -> VJEPAForPreTraining:
    """As in training: mask tokens that have left zero, a target encoder that has left the encoder."""
    torch.manual_seed(0)
    model = VJEPAForPreTraining(small_config).eval()
    with torch.no_grad():
        model.predictor.mask_tokens.normal_()
        for parameter in model.target_encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _reference_masks(case):
    contexts = [case[f"mask{i}.context_indices"] for i in range(2)]
    targets = [case[f"mask{i}.target_indices"] for i in range(2)]
    return contexts, targets


# --- Parity with the release ---


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_whole_forward_pass_equals_the_release(reference_model, forward_case, attention):
    reference_model.set_attn_implementation(attention)
    pixels = forward_case["pixel_values_videos"]
    contexts, targets = _reference_masks(forward_case)
    close = {"rtol": 0, "atol": 1e-5}
    with torch.no_grad():
        for name in ("encoder", "target_encoder"):
            features = getattr(reference_model, name)(pixels).last_hidden_state
            torch.testing.assert_close(features, forward_case[f"{name}.features"], **close)
        output = reference_model(pixels, contexts, targets)
        torch.testing.assert_close(output.loss, forward_case["loss"], **close)
        for i, context in enumerate(contexts):
            encoded = reference_model.encoder(pixels, context).last_hidden_state
            torch.testing.assert_close(encoded, forward_case[f"mask{i}.context_features"], **close)
            torch.testing.assert_close(output.targets[i], forward_case[f"mask{i}.targets"], **close)
            torch.testing.assert_close(output.predictions[i], forward_case[f"mask{i}.predictions"], **close)
            predicted = reference_model.predict(pixels, context, targets[i], mask_index=i)
            torch.testing.assert_close(predicted, forward_case[f"mask{i}.predictions"], **close)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["resized", "wide"])
def test_other_sizes_equal_the_release(reference_model, forward_case, name, attention):
    reference_model.set_attn_implementation(attention)
    pixels = forward_case[f"{name}.pixel_values"].float().transpose(1, 2)
    with torch.no_grad():
        features = reference_model.target_encoder(pixels).last_hidden_state
    torch.testing.assert_close(features, forward_case[f"{name}.features"], rtol=0, atol=1e-4)


def test_bfloat16_stays_near_float32(reference_model, forward_case):
    pixels = forward_case["pixel_values_videos"]
    contexts, targets = _reference_masks(forward_case)
    reference_model.to(torch.bfloat16)
    with torch.no_grad():
        output = reference_model(pixels, contexts, targets)
        features = reference_model.target_encoder(pixels).last_hidden_state
    assert features.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    pairs = [(features, forward_case["target_encoder.features"])]
    pairs += [(output.predictions[i], forward_case[f"mask{i}.predictions"]) for i in range(2)]
    for ours, theirs in pairs:
        assert torch.cosine_similarity(ours.float(), theirs, dim=-1).min() > 0.999


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_feature_stays_near_the_release_in_bfloat16(reference_model, forward_case, attention):
    reference_model.set_attn_implementation(attention)
    reference_model.to(torch.bfloat16)
    pixels, (contexts, _) = forward_case["pixel_values_videos"], _reference_masks(forward_case)
    cases = [(reference_model.encoder, pixels, None, "encoder.features")]
    cases += [(reference_model.encoder, pixels, contexts[i], f"mask{i}.context_features") for i in range(2)]
    for name in ("resized", "wide"):
        clip = forward_case[f"{name}.pixel_values"].transpose(1, 2)
        cases.append((reference_model.target_encoder, clip, None, f"{name}.features"))
    for encoder, clip, mask, name in cases:
        with torch.no_grad():
            features = encoder(clip, mask).last_hidden_state
        assert torch.cosine_similarity(features.float(), forward_case[name], dim=-1).min() > 0.999, name


def test_positions_without_uniform_power_give_depth_half_the_channels():
    table = sincos_positions((3, 2, 4), 16, uniform_power=False).view(3, 2, 4, 16)
    step = 0.01  # the second of two frequencies: 10000 ** -0.5
    expected = torch.tensor([2, 2 * 0.1, 2 * step, 2 * 0.001]).sin()  # four frequencies over depth 2
    torch.testing.assert_close(table[2, 1, 3, :4], expected)
    torch.testing.assert_close(table[2, 1, 3, 8:10], torch.tensor([1, step]).sin())
    torch.testing.assert_close(table[2, 1, 3, 14:], torch.tensor([3, 3 * step]).cos())


@pytest.mark.parametrize("width", [64, 40])
def test_position_table_equals_the_released_one(reference_model, width):
    part = {64: reference_model.encoder.embeddings, 40: reference_model.predictor}[width]
    torch.testing.assert_close(sincos_positions((4, 4, 4), width), part.position_embeddings.table, rtol=0, atol=1e-6)


# --- The context never sees its targets ---


def _tokens_to_pixels(indices: torch.Tensor) -> torch.Tensor:
    """True at the pixels (2, 4, 1, 32, 32) of the tokens (2, num) of the 2 x 4 x 4 grid."""
    tokens = torch.zeros(2, 32, dtype=torch.bool).scatter(1, indices, True).view(2, 2, 4, 4)
    return tokens.repeat_interleave(2, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)[:, :, None]


def test_context_encoder_never_sees_target_tokens(small_model, small_pretraining, small_clip, small_masks):
    context, target = small_masks
    noisy = torch.where(_tokens_to_pixels(target), torch.randn_like(small_clip), small_clip)
    for model in (small_model, small_pretraining):
        before = model.predict(small_clip, context, target)
        assert torch.equal(before, model.predict(noisy, context, target))
    before = small_model(small_clip, context, target)
    after = small_model(noisy, context, target)
    assert torch.equal(before.last_hidden_state, after.last_hidden_state)
    assert torch.equal(before.predictor_output.last_hidden_state, after.predictor_output.last_hidden_state)


def test_prediction_depends_on_context_pixels(small_model, small_pretraining, small_clip, small_masks):
    context, target = small_masks
    touched = small_clip.clone()
    touched[_tokens_to_pixels(context[:, :1]).expand_as(touched)] += 1
    for model in (small_model, small_pretraining):
        changed = model.predict(small_clip, context, target) != model.predict(touched, context, target)
        assert changed.any(-1).all()


def test_loss_has_no_gradient_through_the_targets(small_pretraining, small_clip, small_masks):
    small_pretraining.train()
    small_pretraining(small_clip, *small_masks).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in small_pretraining.target_encoder.parameters())
    for part in (small_pretraining.encoder, small_pretraining.predictor):
        for name, parameter in part.named_parameters():
            assert (parameter.grad is None) == any(image in name for image in OF_IMAGES), name


def test_prediction_of_pretraining_model_uses_the_context_encoder(small_pretraining, small_clip, small_masks):
    before = small_pretraining.predict(small_clip, *small_masks)
    small_pretraining.target_encoder.layernorm.weight.data.mul_(2)
    assert torch.equal(before, small_pretraining.predict(small_clip, *small_masks))
    small_pretraining.encoder.layernorm.weight.data.mul_(2)
    assert not torch.equal(before, small_pretraining.predict(small_clip, *small_masks))


def test_mask_kinds_have_their_own_mask_tokens_in_v_jepa_alone(small_pretraining, small_clip, small_masks):
    context, target = small_masks
    output = small_pretraining(small_clip, [context, context], [target, target])
    is_by_kind = small_pretraining.config.mask_token_selection == "mask_kind"
    for kind in range(2):
        expected = small_pretraining.predict(small_clip, context, target, mask_index=kind if is_by_kind else 0)
        torch.testing.assert_close(output.predictions[kind], expected)
    assert torch.allclose(*output.predictions, atol=1e-3) != is_by_kind


def test_masks_made_by_hand_drive_a_prediction(small_pretraining, small_clip):
    for masks in (mask_future(GRID, 2), mask_box(GRID, top=8, left=8, bottom=24, right=24)):
        predicted = small_pretraining.predict(
            small_clip, masks.context_mask, masks.target_mask, mask_index=masks.mask_index
        )
        assert predicted.shape == (2, masks.target_mask.shape[1], small_pretraining.config.prediction_width)


# --- Rotary positions, levels, context loss ---


@with_rotation
def test_rotation_is_computed_once_a_pass_and_float32(small_model, small_clip):
    seen = []
    for layer in small_model.encoder.layer:
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    small_model.to(torch.bfloat16)(small_clip)
    assert len(seen) == 2
    assert seen[0] is seen[1]
    assert seen[0].dtype == torch.complex64


@with_rotation
def test_rotation_written_with_real_numbers_is_the_same(small_model, small_clip):
    exported = torch.export.export(small_model, (small_clip,), strict=False).module()
    assert not any("complex" in str(node.target) for node in exported.graph.nodes)
    features = small_model(small_clip).last_hidden_state
    torch.testing.assert_close(exported(small_clip)["last_hidden_state"], features, atol=1e-5, rtol=1e-4)


@with_rotation
def test_rotary_features_in_bfloat16_stay_near_float32(small_model, small_clip):
    features = small_model(small_clip).last_hidden_state
    rounded = small_model.to(torch.bfloat16)(small_clip.bfloat16()).last_hidden_state.float()
    assert torch.nn.functional.cosine_similarity(features, rounded, dim=-1).min() > 0.999


@pytest.mark.parametrize("grid", [(3, 4, 5), (1, 4, 4), (4, 1, 6)])
def test_distance_is_that_to_the_nearest_target(grid):
    num_tokens, generator = grid[0] * grid[1] * grid[2], torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(num_tokens, generator=generator) for _ in range(3)])
    context, target = order[:, 3:], order[:, :2]
    places = torch.stack(torch.meshgrid(*map(torch.arange, grid), indexing="ij"), dim=-1).flatten(0, 2).float()
    expected = torch.cdist(places[context], places[target]).amin(dim=-1)
    torch.testing.assert_close(nearest_target_distances(context, target, grid), expected)
    shared = nearest_target_distances(context, target[:1], grid)
    torch.testing.assert_close(shared[:1], expected[:1])


@with_levels
def test_levels_are_returned_on_request_and_the_last_is_the_features(small_model, small_clip, small_masks):
    output = small_model(small_clip, output_feature_levels=True)
    assert len(output.feature_levels) == 2
    assert output.feature_levels[-1] is output.last_hidden_state
    context, target = small_masks
    assert small_model(small_clip, context, target).feature_levels is None
    masked = small_model(small_clip, [context], [target], output_feature_levels=True)
    assert [level.shape for level in masked.feature_levels[0]] == [(2, 10, 48)] * 2


@with_levels
def test_pooler_takes_the_tokens_of_named_blocks_each_through_its_norm(small_config, small_clip):
    torch.manual_seed(0)
    config = VJEPAConfig(**{**small_config.to_diff_dict(), "pooler_feature_layers": [0, 1]})
    model = VJEPAForVideoClassification(config).eval()
    levels = model.encoder(small_clip, feature_layers=[0, 1]).feature_levels
    logits = model.classifier(model.pooler(torch.cat(levels, dim=1)))
    assert torch.equal(model(small_clip).logits, logits)


@with_levels
def test_context_loss_has_its_weight_and_is_divided_by_the_root_of_the_distance(
    small_pretraining, small_clip, small_masks
):
    plain = small_pretraining(small_clip, *small_masks, context_loss_by_distance=False)
    error = (plain.context_predictions[0] - plain.context_targets[0]).abs().mean(dim=-1)
    torch.testing.assert_close(plain.context_loss, error.mean())
    weighted = small_pretraining(small_clip, *small_masks, context_loss_weight=0.25)
    distances = nearest_target_distances(*small_masks, (2, 4, 4))
    torch.testing.assert_close(weighted.context_loss, (error / distances.sqrt()).mean())
    torch.testing.assert_close(weighted.loss, plain.target_loss + 0.25 * weighted.context_loss)


@with_levels
def test_image_and_one_tubelet_of_video_go_different_ways(small_model, small_clip):
    image, video = small_clip[:, :1], small_clip[:, :1].repeat(1, 2, 1, 1, 1)
    assert small_model(image).last_hidden_state.shape == small_model(video).last_hidden_state.shape
    assert not torch.allclose(small_model(image).last_hidden_state, small_model(video).last_hidden_state, atol=0.1)


@with_levels
def test_distilled_form_predicts_in_its_teachers_width_and_has_no_loss(small_config, small_clip, small_masks):
    fields = {"pred_num_feature_levels": 1, "pred_output_size": 80, "pred_rotary_reference_grid": None}
    model = VJEPAForPreTraining(VJEPAConfig(**{**small_config.to_diff_dict(), **fields}))
    assert model.predict(small_clip, *small_masks).shape == (2, 22, 80)
    with pytest.raises(ValueError, match=r"pred_output_size = 80.*distill.*initial_checkpoint"):
        model(small_clip, *small_masks)


# --- Masks and outputs ---


def test_masked_encoding_is_the_encoding_of_those_tokens_alone(small_model, small_clip):
    every_token = torch.arange(32, dtype=torch.int32).expand(2, -1)
    full = small_model(small_clip).last_hidden_state
    torch.testing.assert_close(small_model(small_clip, every_token).last_hidden_state, full)
    order = torch.randperm(32)
    permuted = small_model(small_clip, order[None]).last_hidden_state  # one row of indices serves the whole batch
    torch.testing.assert_close(permuted, full[:, order], rtol=0, atol=1e-5)


def test_select_tokens_picks_each_clips_own_rows():
    tokens = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[3, 0], [1, 1]])
    expected = torch.stack([tokens[0, [3, 0]], tokens[1, [1, 1]]])
    assert torch.equal(select_tokens(tokens, mask), expected)
    assert torch.equal(select_tokens(tokens[:1], mask), torch.stack([tokens[0, [3, 0]], tokens[0, [1, 1]]]))


def test_without_masks_the_predictor_does_not_run(small_model, small_clip, small_masks):
    assert small_model(small_clip).predictor_output is None
    assert small_model(small_clip, *small_masks, skip_predictor=True).predictor_output is None
    assert small_model(small_clip, small_masks[0]).predictor_output is None


def test_outputs_of_mask_lists_are_lists(small_model, small_clip, small_masks):
    context, target = small_masks
    output = small_model(small_clip, [context, context[:, :4]], [target, target[:, :5]], output_hidden_states=True)
    assert [tuple(t.shape) for t in output.last_hidden_state] == [(2, 10, 48), (2, 4, 48)]
    width = small_model.config.prediction_width
    assert [tuple(t.shape) for t in output.predictor_output.last_hidden_state] == [(2, 22, width), (2, 5, width)]
    assert [[s.shape[1] for s in states] for states in output.hidden_states] == [[10] * 3, [4] * 3]
    assert [[s.shape[1] for s in states] for states in output.predictor_output.hidden_states] == [[32] * 3, [9] * 3]
    assert output.predictor_output.hidden_states[0][0].shape[-1] == 24


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_prediction_and_gradients_do_not_depend_on_what_is_recorded(small_config, small_clip, small_masks, attention):
    """Unless the last block's states are asked for, the predictor's context does not go through it."""
    torch.manual_seed(0)
    model = VJEPAForPreTraining._from_config(small_config, attn_implementation=attention).train()
    results = []
    for is_recording in (False, True):
        model.zero_grad()
        output = model(small_clip, *small_masks, output_hidden_states=is_recording)
        output.loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append([output.loss.detach(), output.predictions[0].detach(), *gradients])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def test_context_does_not_go_through_the_predictors_last_block(small_model, small_clip, small_masks):
    widths = []
    for layer in small_model.predictor.layer:
        layer.mlp.register_forward_hook(lambda module, args, output: widths.append(output.shape[1]))
    small_model(small_clip, *small_masks)
    # in V-JEPA 2.1 the context is predicted too
    assert widths == [32, 32 if small_model.config.pred_predicts_context else 22]


def test_attentions_are_probabilities_over_the_kept_tokens(small_config, small_clip, small_masks):
    model = VJEPAModel._from_config(copy.deepcopy(small_config), attn_implementation="eager").eval()
    output = model(small_clip, *small_masks, output_attentions=True)
    assert [tuple(a.shape) for a in output.attentions] == [(2, 4, 10, 10)] * 2
    assert [tuple(a.shape) for a in output.predictor_output.attentions] == [(2, 4, 32, 32)] * 2
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(2, 4, 10))


def test_tuple_output_holds_the_same_tensors(small_model, small_clip, small_masks):
    output = small_model(small_clip, *small_masks)
    last_hidden_state, predictor_output = small_model(small_clip, *small_masks, return_dict=False)
    assert torch.equal(last_hidden_state, output.last_hidden_state)
    assert torch.equal(predictor_output[0], output.predictor_output.last_hidden_state)


@pytest.mark.parametrize(
    ("context", "target", "error", "message"),
    [
        (torch.tensor([[32]]), torch.tensor([[0]]), ValueError, "32 tokens, 0 to 31"),
        (torch.tensor([[-1]]), torch.tensor([[0]]), ValueError, "from -1"),
        (torch.tensor([[0]]), torch.tensor([[40]]), ValueError, "target_mask holds indices from 40"),
        (torch.ones(2, 32, dtype=torch.bool), torch.tensor([[0]]), TypeError, "nonzero"),
        (torch.zeros(3, 4, dtype=torch.long), torch.tensor([[0]]), ValueError, "batch_size = 2 or 1"),
        (torch.zeros(2, 0, dtype=torch.long), torch.tensor([[0]]), ValueError, "at least one token"),
        (torch.tensor([[3, 7]]), torch.tensor([[1, 7]]), ValueError, "token 7 of clip 0 is in context_mask and in"),
        (None, torch.tensor([[0]]), ValueError, "without context_mask"),
        ([torch.tensor([[0]])] * 2, torch.tensor([[1]]), ValueError, "2 mask kinds and target_mask 1"),
        ([0, 1, 2], [3, 4], TypeError, r"context_mask is a list of int.*torch\.tensor"),
        (torch.tensor([[0]]), np.array([[1]]), TypeError, "target_mask is a ndarray"),
        ([], None, ValueError, "context_mask is an empty list"),
        ([torch.tensor([[0]])], [], ValueError, "target_mask is an empty list"),
    ],
)
def test_masks_that_cannot_be_meant_raise(small_model, small_clip, context, target, error, message):
    with pytest.raises(error, match=message):
        small_model(small_clip, context, target)


@with_table
def test_more_mask_kinds_than_mask_tokens_raise(small_model, small_clip):
    with pytest.raises(ValueError, match=r"3 mask kinds.*= 2"):
        small_model(small_clip, [torch.tensor([[0]])] * 3, [torch.tensor([[1]])] * 3)


def test_misspelled_keyword_raises_with_the_nearest(small_config, small_model, small_pretraining, small_clip):
    mask = torch.tensor([[0]])
    with pytest.raises(TypeError, match=r"VJEPAModel.forward takes no 'context_masks'.*'context_mask'"):
        small_model(small_clip, context_masks=mask)
    with pytest.raises(TypeError, match=r"no 'ouput_attentions'.*'output_attentions'"):
        small_pretraining(small_clip, mask, mask + 1, ouput_attentions=True)
    with pytest.raises(TypeError, match=r"no 'label'.*'labels'"):
        VJEPAForVideoClassification(small_config)(small_clip, label=mask[0])


def test_none_passes_for_inputs_of_other_models(small_config, small_model, small_pretraining, small_clip, small_masks):
    others = dict.fromkeys(("input_ids", "attention_mask", "inputs_embeds", "output_attentions", "return_dict"))
    classifier = VJEPAForVideoClassification(small_config)
    calls = (
        (small_model, {}),
        (classifier, {}),
        (small_pretraining, dict(zip(("context_mask", "target_mask"), small_masks, strict=True))),
    )
    for model, masks in calls:
        outputs = [model(pixel_values_videos=small_clip, **masks, **more) for more in ({}, others)]
        assert torch.equal(outputs[0][0], outputs[1][0])


def test_base_model_is_the_encoder(small_config):
    for model in (VJEPAModel, VJEPAForPreTraining, VJEPAForVideoClassification):
        built = model(copy.deepcopy(small_config))
        assert built.base_model is built.vjepa is built.encoder
    built.base_model.requires_grad_(False)
    trained = {name.split(".")[0] for name, parameter in built.named_parameters() if parameter.requires_grad}
    assert trained == {"pooler", "classifier"}


def test_unknown_mask_token_raises(small_model, small_clip, small_masks):
    with pytest.raises(ValueError, match="mask_index is 2"):
        small_model.predict(small_clip, *small_masks, mask_index=2)


# --- Clips of other sizes ---


@pytest.mark.parametrize("shape", [(2, 8, 3, 32, 32), (1, 4, 3, 64, 40), (1, 2, 3, 8, 48), (1, 16, 3, 48, 32)])
def test_other_lengths_sizes_and_aspect_ratios_work(small_model, shape):
    num_tokens = (shape[1] // 2) * (shape[3] // 8) * (shape[4] // 8)
    assert small_model.get_vision_features(torch.randn(shape)).shape == (shape[0], num_tokens, 48)


def test_prediction_at_another_size_tells_positions_apart(small_pretraining):
    grid = TokenGrid(num_frames=8, height=48, width=32, patch_size=8, tubelet_size=2)
    masks = mask_future(grid, 4)
    clip = torch.randn(1, 8, 3, 48, 32)
    predicted = small_pretraining.predict(clip, masks.context_mask, masks.target_mask)
    assert predicted.shape == (1, 48, small_pretraining.config.prediction_width)
    # rotation acts through the attention alone, which first weights leave nearly uniform
    atol = 1e-6 if small_pretraining.config.has_rotary_positions else 1e-4
    assert not torch.allclose(predicted[:, :24], predicted[:, 24:], atol=atol)


@with_table
def test_interpolated_positions_keep_raster_order_on_grids_that_are_not_square(small_model):
    positions = small_model.encoder.embeddings.position_embeddings
    table = positions((2, 8, 4)).view(2, 8, 4, 48)
    height_channels = slice(16, 32)
    assert torch.allclose(table[0, :, :1, height_channels], table[0, :, 3:, height_channels], atol=1e-6)
    assert not torch.allclose(table[0, :1, :, height_channels], table[0, 7:, :, height_channels], atol=1e-2)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 4, 3, 30, 32), "height = 30.*patch_size = 8"),
        ((1, 4, 3, 32, 33), "width = 33.*patch_size = 8"),
        ((1, 3, 3, 32, 32), "num_frames = 3.*tubelet_size = 2"),
        ((1, 3, 4, 32, 32), "4 channels.*in_chans = 3"),
        ((4, 3, 32, 32), r"unsqueeze\(0\)"),
        ((0, 4, 3, 32, 32), "empty batch"),
    ],
)
def test_clip_that_does_not_fit_raises(small_model, shape, message):
    with pytest.raises(ValueError, match=message):
        small_model(torch.randn(shape))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda clip: clip.numpy(), "ndarray"),
        (list, "list"),
        (lambda clip: clip.to(torch.uint8), "uint8"),
        (lambda clip: clip.long(), "int64"),
        (lambda clip: clip > 0, "bool"),
    ],
)
def test_clip_that_is_no_float_tensor_raises(small_config, small_clip, small_masks, change, found):
    models = (VJEPAModel, VJEPAForPreTraining, VJEPAForVideoClassification)
    for model, masks in zip(models, ((), small_masks, ()), strict=True):
        with pytest.raises(TypeError, match=f"pixel_values_videos is .*{found}.*processor"):
            model(small_config)(change(small_clip), *masks)
    with pytest.raises(TypeError, match=f"{found}.*processor"):
        VJEPAModel(small_config).get_vision_features(change(small_clip))


@pytest.mark.parametrize("largest", [255, 1])
def test_pixels_that_are_not_normalised_are_warned_about_once(small_model, largest):
    frames = largest * torch.linspace(0, 1, 4 * 3 * 32 * 32).view(1, 4, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small_model((frames / largest - 0.5) / 0.2)
        small_model(torch.zeros_like(frames))
    with pytest.warns(UserWarning, match=f"from 0 to {largest},.*processor"):
        small_model(frames)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small_model(frames)


@pytest.mark.parametrize("shape", [(4, 3, 72, 72), (4, 3, 16, 8), (18, 3, 32, 32)])
def test_clip_far_from_the_models_own_size_is_warned_about(small_model, shape):
    with pytest.warns(
        UserWarning, match=f"{shape[0]} frames of {shape[2]} x {shape[3]} .* 4 frames of 32 x 32,.*load_proc"
    ):
        small_model(torch.zeros(1, *shape))


@pytest.mark.parametrize("shape", [(4, 3, 64, 64), (16, 3, 32, 32), (1, 3, 32, 48)])
def test_clip_near_the_models_own_size_is_not_warned_about(small_model, shape, recwarn):
    small_model(torch.zeros(1, *shape))
    assert not recwarn


def test_single_frame_is_a_still_clip_unless_images_have_a_tokenizer(small_model, small_clip):
    frame = small_clip[:, :1]
    features = small_model.get_vision_features(frame)
    if small_model.config.image_tokenizer:
        assert features.shape == (2, 16, 48)
    else:
        assert torch.equal(features, small_model.get_vision_features(frame.repeat(1, 4, 1, 1, 1)))


def test_any_number_of_channels(small_config):
    config = VJEPAConfig(**{**small_config.to_diff_dict(), "in_chans": 5})
    assert VJEPAModel(config).get_vision_features(torch.randn(1, 4, 5, 32, 32)).shape == (1, 32, 48)


# --- Pretraining model ---


def test_target_encoder_starts_as_a_copy_and_owns_its_weights(small_config):
    model = VJEPAForPreTraining(small_config)
    pairs = list(zip(model.target_encoder.parameters(), model.encoder.parameters(), strict=True))
    assert all(torch.equal(t, s) and t.data_ptr() != s.data_ptr() for t, s in pairs)


def test_training_mode_leaves_target_encoder_frozen(small_pretraining):
    small_pretraining.train()
    assert small_pretraining.encoder.training
    assert not any(module.training for module in small_pretraining.target_encoder.modules())


def test_update_moves_target_by_one_minus_momentum(small_pretraining):
    pairs = [
        (t.clone(), s.clone(), t)
        for t, s in zip(
            small_pretraining.target_encoder.parameters(), small_pretraining.encoder.parameters(), strict=True
        )
    ]
    small_pretraining.update_target_encoder(0.9)
    for target, source, updated in pairs:
        torch.testing.assert_close(updated, 0.9 * target + 0.1 * source)
    with pytest.raises(ValueError, match=r"momentum is 1.1"):
        small_pretraining.update_target_encoder(1.1)
    with pytest.raises(ValueError, match=r"bfloat16.*rounded away"):
        small_pretraining.to(torch.bfloat16).update_target_encoder(0.9)


def test_target_encoder_is_frozen_from_the_start_and_stays_so(small_config, small_clip, small_masks):
    config = VJEPAConfig(**{**small_config.to_diff_dict(), "drop_path_rate": 0.9})
    model = VJEPAForPreTraining(config)
    first, second = (model(small_clip, *small_masks).targets[0] for _ in range(2))
    assert torch.equal(first, second)
    model.requires_grad_(True)
    assert not any(p.requires_grad for p in model.target_encoder.parameters())
    assert all(p.requires_grad for p in model.encoder.parameters())


@pytest.mark.parametrize("is_fused", [False, True])
def test_target_encoder_left_behind_is_warned_about_once(small_config, small_clip, small_masks, is_fused):
    def train(model: VJEPAForPreTraining, num_steps: int, momentum: float | None) -> None:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=is_fused)
        for _ in range(num_steps):
            for _ in range(2):  # accumulated batches: nothing has moved at the second
                model(small_clip, *small_masks).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if momentum is not None:
                model.update_target_encoder(momentum)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(VJEPAForPreTraining(small_config).train(), num_steps=3, momentum=1.0)
        left_behind = VJEPAForPreTraining(small_config).train()
        train(left_behind, num_steps=1, momentum=None)
    with pytest.warns(UserWarning, match="VJEPATrainer.*update_target_encoder") as caught:
        train(left_behind, num_steps=3, momentum=None)
    assert len(caught) == 1


def test_targets_and_loss_are_float32_in_a_half_precision_model(small_pretraining, small_clip, small_masks):
    small_pretraining.to(torch.bfloat16)
    output = small_pretraining(small_clip, *small_masks)
    levels = small_pretraining.target_encoder(
        small_clip, feature_layers=small_pretraining.config.feature_levels or [1]
    ).feature_levels
    features = torch.cat([torch.nn.functional.layer_norm(level.float(), (48,)) for level in levels], dim=-1)
    expected = features[torch.arange(2)[:, None], small_masks[1]]
    assert output.predictions[0].dtype == torch.bfloat16
    assert torch.equal(output.targets[0], expected)
    assert torch.equal(output.target_loss, (output.predictions[0].float() - expected).abs().mean())
    assert output.loss.dtype == torch.float32


def test_loss_is_the_mean_over_mask_kinds(small_pretraining, small_clip, small_masks):
    context, target = small_masks
    kinds = [(context, target), (context[:, :4], target[:, :7])]
    separate = [small_pretraining(small_clip, [c], [t]) for c, t in kinds]
    both = small_pretraining(small_clip, *map(list, zip(*kinds, strict=True)))
    # the second kind alone would be given mask token 0, so only the first is comparable
    torch.testing.assert_close(both.predictions[0], separate[0].predictions[0])
    own = [(p - t).abs().mean() for p, t in zip(both.predictions, both.targets, strict=True)]
    torch.testing.assert_close(both.target_loss, (own[0] + own[1]) / 2)
    if both.context_loss is not None:
        torch.testing.assert_close(both.loss, both.target_loss + 0.5 * both.context_loss)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_equal_gradients(small_pretraining, small_clip, small_masks, use_reentrant):
    small_pretraining.train()
    small_pretraining(small_clip, *small_masks).loss.backward()
    expected = {name: p.grad.clone() for name, p in small_pretraining.named_parameters() if p.grad is not None}
    small_pretraining.zero_grad()
    small_pretraining.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    small_pretraining(small_clip, *small_masks).loss.backward()
    found = {name: p.grad for name, p in small_pretraining.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_trains_blocks_above_frozen_ones(
    small_pretraining, small_clip, small_masks, use_reentrant
):
    small_pretraining.train()
    small_pretraining.encoder.requires_grad_(False)
    trained = small_pretraining.encoder.layer[1].requires_grad_(True)
    gradients = []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            small_pretraining.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        small_pretraining.zero_grad()
        small_pretraining(small_clip, *small_masks).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in trained.named_parameters()})
    torch.testing.assert_close(*gradients)
    assert not any(parameter.grad is not None for parameter in small_pretraining.encoder.layer[0].parameters())


def test_drop_path_drops_whole_branches_while_training_only(small_config):
    config = VJEPAConfig(**{**small_config.to_diff_dict(), "drop_path_rate": 0.5})
    layer = VJEPAModel(config).encoder.layer[1]
    branch = torch.ones(400, 2, 3)
    dropped = layer.drop_path.train()(branch)
    kept = dropped[:, 0, 0] > 0
    assert torch.equal(dropped, torch.where(kept, 2.0, 0.0)[:, None, None].expand_as(dropped))
    assert 140 < kept.sum() < 260
    assert torch.equal(layer.drop_path.eval()(branch), branch)


def test_drop_path_grows_linearly_with_depth(small_config):
    levels = small_config.feature_levels and [1, 4]
    fields = {"drop_path_rate": 0.4, "num_hidden_layers": 5, "feature_levels": levels}
    config = VJEPAConfig(**{**small_config.to_diff_dict(), **fields})
    model = VJEPAModel(config)
    assert [layer.drop_path.probability for layer in model.encoder.layer] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert {layer.drop_path.probability for layer in model.predictor.layer} == {0.0}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_dropout_acts_while_training_only(small_config, small_clip, attention):
    config = VJEPAConfig(**{**small_config.to_diff_dict(), "attention_probs_dropout_prob": 0.5})
    model = VJEPAModel._from_config(config, attn_implementation=attention)
    assert torch.equal(*(model.eval()(small_clip).last_hidden_state for _ in range(2)))
    assert not torch.allclose(*(model.train()(small_clip).last_hidden_state for _ in range(2)))


def test_bias_and_activation_follow_the_configuration(small_config):
    config = VJEPAConfig(**{**small_config.to_diff_dict(), "qkv_bias": False, "hidden_act": "relu"})
    layers = [*VJEPAModel(config).encoder.layer, *VJEPAModel(config).predictor.layer]
    assert all(layer.attention.qkv.bias is None for layer in layers)
    assert all(layer.mlp.activation(torch.tensor(-1.0)) == 0 for layer in layers)


def test_return_dict_of_the_configuration_gives_tuples(small_config, small_clip, small_masks):
    config = VJEPAConfig(**{**small_config.to_diff_dict(), "return_dict": False})
    model = VJEPAModel(config).eval()
    assert isinstance(model(small_clip), tuple)
    assert model.predict(small_clip, *small_masks).shape == (2, 22, config.prediction_width)
    assert VJEPAForPreTraining(config)(small_clip, *small_masks)[0].ndim == 0
    assert VJEPAForVideoClassification(config)(small_clip)[0].shape == (2, 3)


def test_accumulated_gradients_are_averaged_by_the_trainer():
    """Without this the Trainer takes a forward with **kwargs to normalise its loss by the accumulated batch itself."""
    assert not VJEPAForPreTraining.accepts_loss_kwargs
    assert not VJEPAForVideoClassification.accepts_loss_kwargs


def test_dtype_follows_the_norms_where_linear_layers_hold_integers(small_model, small_clip, small_masks):
    for part in (small_model.encoder.embeddings.patch_embeddings, small_model.predictor):
        for name, layer in list(part.named_children()):
            if isinstance(layer, torch.nn.Linear):
                setattr(part, name, torch.nn.Sequential(layer))  # a layer whose weight has no float dtype to read
    assert small_model.predict(small_clip, *small_masks).dtype == torch.float32


# --- Classifier ---


def test_segments_are_encoded_alone_and_attended_together(small_config, small_clip):
    model = VJEPAForVideoClassification(small_config).eval()
    segments = torch.stack([small_clip, small_clip.flip(0)], dim=1)  # (B, S, T, C, H, W)
    tokens = torch.cat([model.encoder(segments[:, s]).last_hidden_state for s in range(2)], dim=1)
    expected = model.classifier(model.pooler(tokens))
    torch.testing.assert_close(model(segments).logits, expected)
    assert model(small_clip).logits.shape == (2, 3)


def test_every_parameter_of_the_classifier_gets_a_gradient(small_config, small_clip):
    for levels in (None, small_config.feature_levels):
        fields = {"pooler_feature_layers": levels, "num_pooler_layers": 3}
        model = VJEPAForVideoClassification(VJEPAConfig(**{**small_config.to_diff_dict(), **fields}))
        model(small_clip, labels=torch.tensor([0, 2])).loss.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert not any("predictor" in name for name, _ in model.named_parameters())


def test_several_labels_a_clip_use_binary_cross_entropy(small_config, small_clip):
    model = VJEPAForVideoClassification(copy.deepcopy(small_config)).eval()
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    output = model(small_clip, labels=labels)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, labels)
    torch.testing.assert_close(output.loss, expected)


# --- Initialisation ---


def test_initialisation_follows_the_release(small_config):
    torch.manual_seed(0)
    config = VJEPAConfig(**{**small_config.to_diff_dict(), "hidden_size": 192})
    model = VJEPAForPreTraining(config)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            block = re.search(r"layer\.(\d+)\.(attention\.proj|mlp\.fc2)", name)
            is_rescaled = block is not None and config.rescale_initial_weights  # not in V-JEPA
            std = 0.02 / (2 * (int(block[1]) + 1)) ** 0.5 if is_rescaled else 0.02
            assert module.weight.std().item() == pytest.approx(std, rel=0.08), name
            assert not module.bias.any(), name
    assert not model.predictor.mask_tokens.any()
    if config.modality_embeddings:
        assert model.encoder.embeddings.modality_embeddings.video.std().item() == pytest.approx(1e-6, rel=0.3)


@pytest.mark.parametrize("generation", ["v2", "v2.1"])
def test_initial_scales_are_those_recorded_of_the_release(generation):
    recorded = json.loads(reference_file(generation, "initial_std.json").read_text())
    torch.manual_seed(0)
    ours = to_original_state(VJEPAForPreTraining(tiny_config(generation)))
    for part, scales in recorded.items():
        for name, scale in scales.items():
            block = re.search(r"blocks\.(\d+)\.(attn\.proj|mlp\.fc2)", name)
            std = 0.02 / (2 * (int(block[1]) + 1)) ** 0.5 if block else 0.02
            if "mask_tokens" in name or "mod_embed" in name:
                std = 0.0  # 1e-6 of the modality embeddings is rounded away in the record
            found = ours[part][f"module.{name}"].std().item()
            assert scale == pytest.approx(std, rel=0.15), name
            assert found == pytest.approx(std, rel=0.15, abs=2e-6), name


def test_poolers_initialisation_is_rescaled_by_depth(small_config):
    torch.manual_seed(0)
    fields = {"hidden_size": 192, "num_pooler_layers": 3}
    pooler = VJEPAForVideoClassification(VJEPAConfig(**{**small_config.to_diff_dict(), **fields})).pooler
    for depth, layer in enumerate(pooler.layer, start=1):
        for output in (layer.attention.proj, layer.mlp.fc2):
            assert output.weight.std().item() == pytest.approx(0.02 / (2 * depth) ** 0.5, rel=0.05)
    cross_attention = pooler.cross_attention
    assert cross_attention.mlp.fc2.weight.std().item() == pytest.approx(0.02 / 4**0.5, rel=0.05)
    assert cross_attention.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_mask_tokens_start_at_random_when_asked(small_config):
    config = VJEPAConfig(**{**small_config.to_diff_dict(), "pred_zero_init_mask_tokens": False})
    assert VJEPAModel(config).predictor.mask_tokens.std() > 0.01


# --- Number formats, attention, compilation ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positions_stay_float32_under_every_cast(small_model, small_clip, dtype):
    exact = {name: table.clone() for name, table in small_model.named_buffers()}
    small_model.to(dtype).float().to(dtype)
    for name, table in small_model.named_buffers():
        assert table.dtype == torch.float32
        assert torch.equal(table, exact[name])
    assert small_model.get_vision_features(small_clip).dtype == dtype


def test_autocast_keeps_the_residual_stream_float32(small_model, small_clip):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = small_model(small_clip, output_hidden_states=True).hidden_states
    assert {state.dtype for state in states} == {torch.float32}


def test_attention_goes_through_the_shared_interface(small_config, small_clip, small_masks):
    calls = []

    def counting_attention(module, *args, **kwargs):
        calls.append(type(module).__name__)
        return eager_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("counting", counting_attention)
    model = VJEPAForPreTraining._from_config(copy.deepcopy(small_config), attn_implementation="counting")
    model(small_clip, *small_masks)
    assert calls == ["VJEPAAttention"] * 6  # two blocks each: target encoder, encoder, predictor
    calls.clear()
    VJEPAForVideoClassification._from_config(copy.deepcopy(small_config), attn_implementation="counting")(small_clip)
    assert calls == ["VJEPAAttention"] * 2 + ["VJEPACrossAttention"]


# transformers looks its attention up in a way that torch's tracer follows from this version on
needs_traceable_attention = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.7"), reason="torch.compile(fullgraph=True) of transformers needs torch 2.7"
)


def _compilations(function, inputs, dynamic=None) -> int:
    """How often torch.compile compiles over the inputs; a graph break raises."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=counter)
    for arguments in inputs:
        compiled(*arguments)
    return counter.frame_count


def _draw_masks(num_context: int, num_targets: int) -> tuple[torch.Tensor, torch.Tensor]:
    order = torch.stack([torch.randperm(32) for _ in range(2)])
    return order[:, :num_context], order[:, num_context : num_context + num_targets]


def _draw_two_kinds(num_context: int) -> tuple[list, list]:
    kinds = [_draw_masks(num_context, num_context + 2), _draw_masks(num_context - 3, num_context + 5)]
    return tuple(map(list, zip(*kinds, strict=True)))


@with_levels
@needs_traceable_attention
def test_masks_of_one_length_never_recompile(small_pretraining, small_clip):
    small_pretraining.train()
    encoder, predictor = small_pretraining.encoder, small_pretraining.predictor
    draws = [(small_clip, *_draw_two_kinds(10)) for _ in range(20)]
    assert _compilations(small_pretraining, draws) == 1
    assert _compilations(encoder, [(small_clip, _draw_masks(9, 1)[0]) for _ in range(20)]) == 1
    width = 48 * small_pretraining.config.pred_num_feature_levels
    features = torch.randn(2, 9, width)
    assert _compilations(predictor, [(features, *_draw_masks(9, 7), (2, 4, 4)) for _ in range(20)]) == 1


@with_table
@needs_traceable_attention
def test_masks_of_other_lengths_never_recompile_dynamic_shapes(small_pretraining, small_clip):
    encoder, predictor = small_pretraining.encoder, small_pretraining.predictor
    # lengths that no other dimension has: torch takes equal sizes at the first call for one symbol
    lengths = range(10, 14)
    assert _compilations(small_pretraining, [(small_clip, *_draw_two_kinds(n)) for n in lengths], dynamic=True) == 1
    assert _compilations(encoder, [(small_clip, _draw_masks(n, 1)[0]) for n in lengths], dynamic=True) == 1
    width = 48 * small_pretraining.config.pred_num_feature_levels
    inputs = [(torch.randn(2, n, width), *_draw_masks(n, n + 3), (2, 4, 4)) for n in lengths]
    assert _compilations(predictor, inputs, dynamic=True) == 1


@with_rotation
@needs_traceable_attention
def test_compiled_model_computes_the_same(small_pretraining, small_clip):
    masks = _draw_two_kinds(10)
    expected = small_pretraining(small_clip, *masks).loss
    torch._dynamo.reset()
    compiled = torch.compile(small_pretraining, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(small_clip, *masks).loss, expected)
