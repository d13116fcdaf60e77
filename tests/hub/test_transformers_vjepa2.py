import json
import shutil

import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForVideoClassification,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
    VJEPA2Model,
)

from tests.reference_family import reference_file, tiny_config
from vjepa_hub import VJEPAForPreTraining, VJEPAForVideoClassification, load, load_classifier, load_processor
from vjepa_hub.hub.conversion import convert_original_checkpoint, convert_original_features, convert_original_probe
from vjepa_hub.hub.loading import load_folder
from vjepa_hub.hub.safety import RefusedModelError
from vjepa_hub.hub.transformers_vjepa2 import export_transformers

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def their_config() -> VJEPA2Config:
    return VJEPA2Config(
        patch_size=8,
        crop_size=32,
        frames_per_clip=4,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        mlp_ratio=3.5,
        num_pooler_layers=2,
        pred_hidden_size=28,
        pred_num_hidden_layers=2,
        pred_num_attention_heads=2,
        pred_num_mask_tokens=10,
        id2label={0: "a", 1: "b", 2: "c"},
        problem_type="single_label_classification",
    )


def _random(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def theirs(their_config, tmp_path_factory):
    """A random model of transformers' class, and its folder."""
    folder = tmp_path_factory.mktemp("vjepa2")
    model = _random(VJEPA2Model(their_config))
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def their_classifier(their_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vjepa2_classifier")
    model = _random(VJEPA2ForVideoClassification(their_config))
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture
def clip() -> torch.Tensor:
    return torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _assert_equal_files(found, expected) -> None:
    found, expected = (load_file(folder / "model.safetensors") for folder in (found, expected))
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_features_and_predictions_are_those_of_transformers(theirs, clip, attention):
    model, folder = theirs
    model.set_attn_implementation(attention)
    ours = load(folder)
    ours.set_attn_implementation(attention)
    features = model(clip, skip_predictor=True).last_hidden_state
    torch.testing.assert_close(ours.get_vision_features(clip), features, **CLOSE)
    context, target = torch.arange(12).expand(2, -1), torch.arange(12, 32).expand(2, -1)
    expected = model.predictor(features, [context], [target]).last_hidden_state  # with mask token 1
    found = ours.predictor(features[:, :12], context, target, ours.config.token_grid, mask_index=1)
    torch.testing.assert_close(found.last_hidden_state, expected, **CLOSE)


@torch.no_grad()
def test_logits_are_those_of_transformers(their_classifier, clip):
    model, folder = their_classifier
    ours = load_classifier(folder)
    torch.testing.assert_close(ours(clip).logits, model(clip).logits, **CLOSE)
    assert ours.config.num_pooler_layers == 3  # self-attention alone is counted there
    assert ours.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert ours.config.problem_type == "single_label_classification"


def test_predictor_of_a_classifier_is_not_read(their_classifier, clip):
    _, folder = their_classifier
    ours = load(folder)
    mask = torch.tensor([[0, 1]])
    with pytest.raises(ValueError, match="no predictor"):
        ours.predict(clip, mask, mask + 2)


def test_pretraining_begins_with_their_encoder_twice(theirs):
    ours = load_folder(VJEPAForPreTraining, theirs[1])
    for encoder in (ours.encoder, ours.target_encoder):
        assert torch.equal(encoder.layernorm.weight, theirs[0].encoder.layernorm.weight)


def test_half_precision_stays_as_stored(theirs, tmp_path):
    VJEPA2Model.from_pretrained(theirs[1], dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert load(tmp_path).dtype == torch.bfloat16


def test_shards_are_read(theirs, tmp_path, clip):
    theirs[0].save_pretrained(tmp_path, max_shard_size="100kB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    torch.testing.assert_close(load(tmp_path).get_vision_features(clip), load(theirs[1]).get_vision_features(clip))


def test_processor_is_the_release_s_of_their_crop(theirs):
    assert load_processor(theirs[1]).crop_size["height"] == 32


def test_hub_repository_of_transformers_loads_by_name(their_classifier, tmp_path, monkeypatch, clip):
    repository = tmp_path / "models--facebook--vjepa2-vitl-fpc16-256-ssv2"
    shutil.copytree(their_classifier[1], repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = load_classifier("facebook/vjepa2-vitl-fpc16-256-ssv2")
    torch.testing.assert_close(model(clip).logits, their_classifier[0](clip).logits, **CLOSE)
    encoder = load("facebook/vjepa2-vitl-fpc16-256-ssv2").encoder
    assert torch.equal(encoder.layernorm.weight, their_classifier[0].vjepa2.encoder.layernorm.weight)


def test_folder_of_theirs_survives_a_round_trip_bit_equal(theirs, their_classifier, tmp_path, their_config):
    export_transformers(load(theirs[1]), tmp_path / "features")
    _assert_equal_files(tmp_path / "features", theirs[1])
    found = VJEPA2Config.from_pretrained(tmp_path / "features")
    assert found.to_diff_dict() == VJEPA2Config.from_pretrained(theirs[1]).to_diff_dict()
    export_transformers(load_classifier(their_classifier[1]), tmp_path / "classifier")
    written = load_file(tmp_path / "classifier" / "model.safetensors")
    for name, tensor in load_file(their_classifier[1] / "model.safetensors").items():
        is_unused = name.startswith("vjepa2.predictor.")
        assert torch.equal(written[name], torch.zeros_like(tensor) if is_unused else tensor), name


@torch.no_grad()
def test_released_model_is_read_by_transformers_alone(tmp_path):
    clip = torch.randn(1, 8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ours = convert_original_features(reference_file("v2"), tiny_config("v2"))
    export_transformers(ours, tmp_path / "features")
    model = AutoModel.from_pretrained(tmp_path / "features")
    assert type(model) is VJEPA2Model
    torch.testing.assert_close(model.get_vision_features(clip), ours.get_vision_features(clip), **CLOSE)
    pretraining = convert_original_checkpoint(reference_file("v2"), tiny_config("v2"))
    export_transformers(pretraining, tmp_path / "pretraining")  # its target encoder
    _assert_equal_files(tmp_path / "pretraining", tmp_path / "features")
    config = tiny_config("v2", pooler_layer_norm_eps=1e-6)
    probe = convert_original_probe(reference_file("v2"), reference_file("v2", "official_tiny_probe.pt"), config)
    export_transformers(probe, tmp_path / "classifier")
    classifier = AutoModelForVideoClassification.from_pretrained(tmp_path / "classifier")
    torch.testing.assert_close(classifier(clip).logits, probe(clip).logits, **CLOSE)


@pytest.mark.parametrize(
    ("generation", "fields", "message"),
    [
        ("v2.1", {}, r"position_embedding is 'rotary'.*feature_levels"),
        ("v2", {"position_embedding": "sincos"}, r"position_embedding is 'sincos', and must be 'rotary_tiled'"),
        ("v2", {"pooler_feature_layers": [0, 2]}, r"pooler_feature_layers is \[0, 2\]"),
        ("v2", {"num_pooler_heads": 4}, "num_pooler_heads is 4, and must be 3"),
        ("v2", {}, "pooler_layer_norm_eps is 1e-05, and must be 1e-06"),
    ],
)
def test_model_that_transformers_has_no_class_for_is_refused(generation, fields, message, tmp_path):
    model = VJEPAForVideoClassification(tiny_config(generation, **fields))
    with pytest.raises(ValueError, match=message):
        export_transformers(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_features_of_a_classifier_are_refused_as_a_model_with_a_predictor(their_classifier, tmp_path):
    with pytest.raises(ValueError, match="no predictor"):
        export_transformers(load(their_classifier[1]), tmp_path)


@pytest.mark.parametrize("change", ["missing", "left over", "shape"])
def test_weights_that_do_not_fit_are_named(theirs, tmp_path, change):
    tensors = load_file(theirs[1] / "model.safetensors")
    name = "encoder.layer.1.attention.key.weight"
    tensor = tensors.pop(name)
    if change == "left over":
        tensors |= {name: tensor, "encoder.register": torch.zeros(3)}
        name = "encoder.register"
    elif change == "shape":
        tensors[name] = torch.zeros(48, 47)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((theirs[1] / "config.json").read_text())
    with pytest.raises(RefusedModelError, match=f"1 tensors: '{name}' is"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("patch_size", [8, 4]), ("hidden_size", "wide"), ("hidden_size", 10**12), ("transformers_weights", "other")],
)
def test_values_that_no_model_has_are_refused(theirs, tmp_path, field, value):
    (tmp_path / "model.safetensors").write_bytes((theirs[1] / "model.safetensors").read_bytes())
    fields = json.loads((theirs[1] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {field: value}))
    with pytest.raises(RefusedModelError, match=field):
        load(tmp_path)


def test_file_names_the_format_of_transformers(theirs, tmp_path):
    export_transformers(load(theirs[1]), tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["VJEPA2Model"]
    assert (tmp_path / "video_preprocessor_config.json").is_file()
