import pytest
import torch

from vjepa_hub import VJEPAModel
from vjepa_hub.pretraining.pixel_prediction import VJEPAForPixelPrediction, tubelet_pixels


@pytest.fixture
def model(small_config) -> VJEPAForPixelPrediction:
    torch.manual_seed(0)
    return VJEPAForPixelPrediction(small_config)


def test_every_part_that_is_trained_gets_a_gradient(model, small_clip, small_masks):
    context, target = small_masks
    model(small_clip, [context, context], [target, target]).loss.backward()
    trained = [*model.encoder.parameters(), *model.predictor.parameters(), *model.pixel_head.parameters()]
    assert all(parameter.grad is not None for parameter in trained)
    assert all(parameter.grad is None for parameter in model.target_encoder.parameters())


def test_targets_are_the_pixels_of_the_hidden_tubelets(model, small_clip, small_masks):
    context, target = small_masks
    output = model(small_clip, context, target)
    token = int(target[0, 3])
    depth, row, column = token // 16, token // 4 % 4, token % 4
    clip = small_clip[0, 2 * depth : 2 * depth + 2, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
    pixels = clip.transpose(0, 1).flatten()  # channel, frame, row, column
    expected = (pixels - pixels.mean()) / pixels.var(unbiased=False).sqrt()
    torch.testing.assert_close(output.targets[0][0, 3], expected, atol=1e-5, rtol=1e-5)


def test_hidden_pixels_reach_the_prediction_by_no_way(model, small_clip, small_masks):
    context, target = small_masks
    model.eval()
    changed = small_clip.clone()
    flat = changed.unflatten(1, (2, 2)).unflatten(4, (4, 8)).unflatten(6, (4, 8))
    for clip in range(2):
        for token in target[clip].tolist():
            depth, row, column = token // 16, token // 4 % 4, token % 4
            flat[clip, depth, :, :, row, :, column] = 7.0
    assert not torch.equal(changed, small_clip)
    before, after = (model(pixels, context, target).predictions[0] for pixels in (small_clip, changed))
    assert torch.equal(before, after)


def test_still_tubelet_has_a_finite_target(model):
    pixels = tubelet_pixels(torch.ones(1, 4, 3, 32, 32), model.config)
    assert torch.equal(pixels, torch.zeros_like(pixels))


def test_model_comes_back_from_its_folder(model, small_clip, small_masks, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = VJEPAForPixelPrediction.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_features_model_takes_its_target_encoder_and_leaves_the_head(model, tmp_path):
    with torch.no_grad():
        model.target_encoder.layernorm.bias.fill_(0.5)
    model.save_pretrained(tmp_path)
    features = VJEPAModel.from_pretrained(tmp_path)
    assert torch.equal(features.encoder.layernorm.bias, model.target_encoder.layernorm.bias)


def test_missing_masks_are_an_error(model, small_clip, small_masks):
    with pytest.raises(ValueError, match="context_mask"):
        model(small_clip, [], [])


def test_training_through_the_trainer_moves_the_head(make_trainer, blobs, small_config, logged):
    torch.manual_seed(0)
    model = VJEPAForPixelPrediction(small_config)
    before = model.pixel_head.weight.clone()
    trainer = make_trainer(blobs(), model=model)
    trainer.train()
    assert len(logged(trainer, "loss")) == 4
    assert not torch.equal(model.pixel_head.weight, before)
