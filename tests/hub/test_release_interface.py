"""The pair of modules that the release's torch.hub gives, compared with its recorded numbers."""

import pytest
import torch

from tests.reference_family import DISTILLED, distilled_checkpoint, forward_case, reference_file, tiny_config
from vjepa_hub import VJEPAModel
from vjepa_hub.hub.conversion import convert_original_checkpoint
from vjepa_hub.hub.registry import find_model
from vjepa_hub.hub.release_interface import ReleaseEncoder, ReleasePredictor, ReleasePreprocessor


def _mask(case: dict, kind: int) -> tuple[torch.Tensor, torch.Tensor]:
    return case[f"mask{kind}.context_indices"], case[f"mask{kind}.target_indices"]


@pytest.mark.parametrize("generation", ["v2", "v2.1"])
@torch.no_grad()
def test_encoder_gives_the_recorded_features_of_channels_first_clips(generation):
    model = convert_original_checkpoint(reference_file(generation), tiny_config(generation))
    case = forward_case(generation)
    clip = case["pixel_values_videos"].transpose(1, 2)  # (B, C, T, H, W)
    features = ReleaseEncoder(model.target_encoder)(clip)
    torch.testing.assert_close(features, case["target_encoder.features"], rtol=0, atol=1e-5)
    masks = [_mask(case, kind)[0] for kind in range(2)]
    contexts = ReleaseEncoder(model.encoder)(clip, masks[:1], training=True)
    torch.testing.assert_close(contexts, case["mask0.context_features"], rtol=0, atol=1e-5)
    equally_long = [masks[0], masks[0]]
    assert len(ReleaseEncoder(model.encoder)(clip, equally_long)) == 2 * len(clip)


@torch.no_grad()
def test_predictor_of_v_jepa_2_gives_the_recorded_predictions():
    model = convert_original_checkpoint(reference_file("v2"), tiny_config("v2"))
    case = forward_case("v2")
    context, target = _mask(case, 0)
    predictor = ReleasePredictor(model.predictor)
    predicted = predictor(case["mask0.context_features"], context, [target], mask_index=0)
    torch.testing.assert_close(predicted, case["mask0.predictions"], rtol=0, atol=1e-5)
    by_default = predictor(case["mask0.context_features"], context, target)  # the release's: token 1
    assert not torch.equal(by_default, predicted)
    with pytest.raises(ValueError, match=r"masks_y is a list of 2 masks.*once for each"):
        predictor(case["mask0.context_features"], context, [target, target])


@torch.no_grad()
def test_predictor_of_the_distilled_form_gives_the_recorded_pair(tmp_path):
    torch.save(distilled_checkpoint(), tmp_path / "distilled.pt")
    model = convert_original_checkpoint(tmp_path / "distilled.pt", tiny_config("v2.1", **DISTILLED))
    case = forward_case("v2.1")
    clip, (context, target) = case["pixel_values_videos"].transpose(1, 2), _mask(case, 1)
    tokens = ReleaseEncoder(model.encoder)(clip, context)
    targets, contexts = ReleasePredictor(model.predictor)(tokens, context, target, mask_index=1)
    torch.testing.assert_close(targets, case["distilled.mask1.predictions"], rtol=0, atol=1e-5)
    torch.testing.assert_close(contexts, case["distilled.mask1.context_predictions"], rtol=0, atol=1e-5)


@torch.no_grad()
def test_predictor_of_four_levels_is_not_scaled_as_the_release_builds_it():
    def predict(predictor):
        found = ReleasePredictor(predictor)(tokens, context, target, mask_index=0)
        return found[0]

    config = tiny_config("v2.1")
    scaled, unscaled = (VJEPAModel(tiny_config("v2.1", pred_rotary_reference_grid=grid)) for grid in (16, None))
    unscaled.load_state_dict(scaled.state_dict())
    context, target = torch.arange(20)[None], torch.arange(20, 64)[None]
    tokens = torch.randn(1, 20, 4 * config.hidden_size)
    own = scaled.predictor(tokens, context, target, config.token_grid).last_hidden_state
    expected = unscaled.predictor(tokens, context, target, config.token_grid).last_hidden_state
    assert (own - expected).abs().max() > 1e-6
    torch.testing.assert_close(predict(scaled.predictor), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["array", "list"])
def test_preprocessor_keeps_every_frame_and_gives_a_list_of_one_channels_first_clip(kind):
    frames = torch.randint(0, 256, (5, 90, 160, 3), dtype=torch.uint8).numpy()
    (clip,) = ReleasePreprocessor(64)(frames if kind == "array" else list(frames))
    assert clip.shape == (3, 5, 64, 64)
    assert clip.dtype == torch.float32
    assert find_model("vjepa2-vitl16").config().crop_size == ReleasePreprocessor().processor.crop_size["height"]
