import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vjepa_hub.hub.loading import load
from vjepa_hub.hub.quantization import quantize_int8
from vjepa_hub.model import VJEPAForVideoClassification

pytestmark = pytest.mark.skipif(
    torch.backends.quantized.engine == "none", reason="torch has no int8 kernels for this machine"
)


def lowest_similarity(first: torch.Tensor, second: torch.Tensor) -> float:
    return F.cosine_similarity(first, second, dim=-1).min().item()


@torch.no_grad()
def test_features_and_predictions_of_the_released_model_keep_their_direction(reference_model, forward_case):
    clip = forward_case["pixel_values_videos"]
    masks = [forward_case[f"mask0.{part}_indices"] for part in ("context", "target")]
    features, predicted = reference_model.target_encoder(clip)[0], reference_model.predict(clip, *masks)
    quantized = quantize_int8(reference_model)
    assert quantized is reference_model
    assert 0.99 < lowest_similarity(quantized.target_encoder(clip)[0], features) < 1 - 1e-6
    assert 0.99 < lowest_similarity(quantized.predict(clip, *masks), predicted) < 1 - 1e-6


@torch.no_grad()
def test_features_of_the_bundled_model_keep_their_direction():
    clip = torch.randn(1, 8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = load("vjepa-vit-tiny")
    features = model.get_vision_features(clip)
    assert lowest_similarity(quantize_int8(model).get_vision_features(clip), features) > 0.99


def test_no_block_keeps_its_float_weights(small_config):
    model = quantize_int8(VJEPAForVideoClassification(small_config))
    assert not model.training
    assert not [name for name, module in model.encoder.layer.named_modules() if type(module) is nn.Linear]
    assert max(tensor.numel() for tensor in model.encoder.layer.parameters()) <= 4 * small_config.hidden_size


def test_blocks_of_each_generation_are_quantised_and_those_of_the_pooler_stay_float(family_config, small_clip):
    family_config.num_pooler_layers = 4
    torch.manual_seed(0)
    model = VJEPAForVideoClassification(family_config).eval()
    with torch.no_grad():
        features = model.encoder(small_clip).last_hidden_state
        quantized = quantize_int8(model)
        found = quantized.encoder(small_clip).last_hidden_state
    assert lowest_similarity(found, features) > 0.99
    assert not torch.allclose(found, features, atol=1e-5)
    assert not [name for name, module in model.encoder.layer.named_modules() if type(module) is nn.Linear]
    assert all(type(layer.mlp.fc1) is nn.Linear for layer in model.pooler.layer)
    assert quantized(small_clip).logits.isfinite().all()


def test_quantised_model_is_not_saved(small_config, tmp_path):
    with pytest.raises(ValueError, match=r"quantised.*float model"):
        quantize_int8(VJEPAForVideoClassification(small_config)).save_pretrained(tmp_path / "int8")
    assert not (tmp_path / "int8").exists()


def test_classifier_takes_segments_after_quantisation(small_config, small_clip):
    model = VJEPAForVideoClassification(small_config).eval()
    segments = small_clip[:, None].expand(-1, 2, -1, -1, -1, -1)
    with torch.no_grad():
        logits = model(segments).logits
        quantized = quantize_int8(model)(segments).logits
    assert lowest_similarity(quantized, logits) > 0.99


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.to(torch.bfloat16), "is in torch.bfloat16.*load it with dtype='float32'"),
        (lambda model: model.to("meta"), "is on meta.*bfloat16 on the accelerator"),
        (quantize_int8, "already quantised.*load it again"),
    ],
)
def test_other_than_a_float_model_on_the_cpu_is_refused(small_config, change, message):
    model = change(VJEPAForVideoClassification(small_config))
    with pytest.raises(ValueError, match=message):
        quantize_int8(model)


@pytest.mark.filterwarnings("error")
def test_torchs_announcements_never_reach_the_user(small_config):
    quantize_int8(VJEPAForVideoClassification(small_config))
