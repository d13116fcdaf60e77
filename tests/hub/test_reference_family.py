"""Every number recorded of V-JEPA 2 and 2.1, against the converted files."""

import pytest
import torch
from safetensors.torch import load_file

from tests.reference_family import (
    DISTILLED,
    distilled_checkpoint,
    forward_case,
    reference_file,
    tiny_config,
)
from vjepa_hub import VJEPAForPreTraining
from vjepa_hub.hub.conversion import convert_original_checkpoint, convert_original_probe
from vjepa_hub.model.modeling_vjepa import feature_level_layers, nearest_target_distances

TOLERANCE, OTHER_SIZES_TOLERANCE, PROBE_TOLERANCE = 1e-5, 5e-5, 2e-5
Numbers = dict[str, torch.Tensor]


@pytest.fixture(params=["eager", "sdpa"])
def attention(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def _masks(case: Numbers, prefix: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    num_kinds = sum(name.startswith(f"{prefix}mask") and name.endswith(".context_indices") for name in case)
    names = [f"{prefix}mask{kind}" for kind in range(num_kinds)]
    return [case[f"{n}.context_indices"] for n in names], [case[f"{n}.target_indices"] for n in names]


def _objective(model: VJEPAForPreTraining, case: Numbers, prefix: str = "") -> Numbers:
    """Features, targets, predictions and losses under the recorded masks."""
    clip, levels = case[f"{prefix}pixel_values_videos"], feature_level_layers(model.config)
    target = model.target_encoder(clip, None, levels)
    numbers = {f"{prefix}target_encoder.features": target.last_hidden_state}
    contexts, targets = _masks(case, prefix)
    output = model(clip, contexts, targets)
    numbers[f"{prefix}loss.targets"] = output.target_loss
    for kind, context_mask in enumerate(contexts):
        name = f"{prefix}mask{kind}"
        features = model.encoder(clip, context_mask, levels).feature_levels
        numbers |= {
            f"{name}.context_features": torch.cat(features, dim=-1),
            f"{name}.targets": output.targets[kind],
            f"{name}.predictions": output.predictions[kind],
        }
        if model.config.pred_predicts_context:
            grid = (1 if clip.shape[1] == 1 else clip.shape[1] // 2, clip.shape[3] // 16, clip.shape[4] // 16)
            distances = nearest_target_distances(context_mask, targets[kind], grid)
            numbers[f"{name}.context_distances"] = distances.sqrt()
            numbers[f"{name}.context_predictions"] = output.context_predictions[kind]
    if model.config.pred_predicts_context:
        plain = model(clip, contexts, targets, context_loss_by_distance=False)
        numbers |= {
            f"{prefix}target_encoder.levels": torch.cat(target.feature_levels, dim=-1),
            f"{prefix}loss.context_by_distance": output.context_loss,
            f"{prefix}loss.context": plain.context_loss,
        }
    return numbers


def _other_sizes(model: VJEPAForPreTraining, case: Numbers) -> Numbers:
    return {
        f"{name}.features": model.target_encoder(case[f"{name}.pixel_values_videos"]).last_hidden_state
        for name in ("resized", "wide")
    }


def _distilled(model: VJEPAForPreTraining, case: Numbers) -> Numbers:
    clip, numbers = case["pixel_values_videos"], {}
    for kind, (context_mask, target_mask) in enumerate(zip(*_masks(case, ""), strict=True)):
        features = model.encoder(clip, context_mask).last_hidden_state
        output = model.predictor(features, context_mask, target_mask, model.config.token_grid, kind)
        numbers[f"distilled.mask{kind}.context_predictions"] = output.context_predictions
        numbers[f"distilled.mask{kind}.predictions"] = model.predict(clip, context_mask, target_mask, kind)
    return numbers


def _assert_recorded(found: Numbers, case: Numbers) -> None:
    inputs = ("_indices", "pixel_values_videos")
    assert found.keys() == {name for name in case if not name.endswith(inputs)}
    for name, tensor in found.items():
        tolerance = OTHER_SIZES_TOLERANCE if name.startswith(("resized", "wide")) else TOLERANCE
        torch.testing.assert_close(tensor, case[name], rtol=0, atol=tolerance, msg=lambda text, name=name: name + text)


def test_every_recorded_number_of_v_jepa_2_is_met(attention):
    case = forward_case("v2")
    model = convert_original_checkpoint(reference_file("v2"), tiny_config("v2"))
    model.set_attn_implementation(attention)
    _assert_recorded(_objective(model, case) | _other_sizes(model, case), case)


def test_every_recorded_number_of_v_jepa_2_1_is_met(attention, tmp_path):
    case = forward_case("v2.1")
    model = convert_original_checkpoint(reference_file("v2.1"), tiny_config("v2.1"))
    torch.save(distilled_checkpoint(), tmp_path / "distilled.pt")
    distilled = convert_original_checkpoint(tmp_path / "distilled.pt", tiny_config("v2.1", **DISTILLED))
    for converted in (model, distilled):
        converted.set_attn_implementation(attention)
    found = _objective(model, case) | _objective(model, case, "image.") | _other_sizes(model, case)
    _assert_recorded(found | _distilled(distilled, case), case)


@pytest.mark.parametrize("generation", ["v2", "v2.1"])
def test_every_recorded_number_of_the_probes_is_met(generation, attention):
    case = load_file(reference_file(generation, "probe.safetensors"))
    clip = forward_case(generation)["pixel_values_videos"]
    blocks = case.pop("joined_blocks").tolist()
    forms = {
        "logits": ("official_tiny_probe.pt", {}),
        "four_heads.logits": ("official_tiny_probe_4_heads.pt", {"num_pooler_heads": 4}),
        "four_heads.joined_blocks.logits": (
            "official_tiny_probe_4_heads.pt",
            {"num_pooler_heads": 4, "pooler_feature_layers": blocks},
        ),
    }
    assert forms.keys() == case.keys()
    for name, (probe, fields) in forms.items():
        probe_file = reference_file(generation, probe)
        model = convert_original_probe(reference_file(generation), probe_file, tiny_config(generation, **fields))
        model.set_attn_implementation(attention)
        assert model.config.num_pooler_layers == 4
        torch.testing.assert_close(model(clip).logits, case[name], rtol=0, atol=PROBE_TOLERANCE)
