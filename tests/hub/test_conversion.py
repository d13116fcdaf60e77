import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.reference_family import DISTILLED, distilled_checkpoint, reference_file, tiny_config
from vjepa_hub import VJEPAConfig, VJEPAForPreTraining, VJEPAForVideoClassification, VJEPAModel, VJEPAVideoProcessor
from vjepa_hub.hub.conversion import (
    ConversionError,
    attach_original_probe,
    convert_file,
    convert_original_checkpoint,
    convert_original_features,
    convert_original_probe,
    export_original_checkpoint,
    export_original_probe,
    find_configs,
    to_original_state,
)
from vjepa_hub.model.modeling_vjepa import sincos_positions

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "tests" / "reference_cases"
CHECKPOINT = REFERENCE / "official_tiny.pth.tar"
PROBE = REFERENCE / "official_tiny_probe.pth.tar"
PARTS = ("encoder", "predictor", "target_encoder")
CLOSE = {"rtol": 0, "atol": 1e-5}
PREFIX = "module.backbone."


@pytest.fixture
def checkpoint() -> dict:
    """The content of the tiny released checkpoint, to be changed."""
    return torch.load(CHECKPOINT, weights_only=True)


@pytest.fixture
def probe() -> dict:
    return torch.load(PROBE, weights_only=True)


@pytest.fixture
def saved(tmp_path):
    """Save an object with torch and give its file."""

    def save(content, name="file.pth.tar", **options) -> Path:
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return save


def _changed(config: VJEPAConfig, **fields) -> VJEPAConfig:
    return VJEPAConfig(**{**config.to_diff_dict(), **fields})


def _state(model) -> dict[str, torch.Tensor]:
    return model.state_dict()


def _assert_equal_states(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []


def _assert_refused(file: Path, config: VJEPAConfig, *words: str) -> str:
    with pytest.raises(ConversionError) as caught:
        convert_original_checkpoint(file, config)
    for word in (str(file), *words):
        assert word in str(caught.value)
    return str(caught.value)


def _with_prefix(tensors: dict, prefix: str) -> dict:
    return {prefix + key.removeprefix(PREFIX).removeprefix("module."): tensor for key, tensor in tensors.items()}


# --- Exactness ---


def test_converted_encoders_equal_the_release(reference_config, forward_case):
    model = convert_original_checkpoint(CHECKPOINT, reference_config)
    contexts = [forward_case[f"mask{i}.context_indices"] for i in range(2)]
    targets = [forward_case[f"mask{i}.target_indices"] for i in range(2)]
    with torch.no_grad():
        output = model(forward_case["pixel_values_videos"], contexts, targets)
        for name in ("encoder", "target_encoder"):
            features = getattr(model, name)(forward_case["pixel_values_videos"]).last_hidden_state
            torch.testing.assert_close(features, forward_case[f"{name}.features"], **CLOSE)
    torch.testing.assert_close(output.loss, forward_case["loss"], **CLOSE)
    for i in range(2):
        torch.testing.assert_close(output.predictions[i], forward_case[f"mask{i}.predictions"], **CLOSE)


def test_converted_probe_equals_the_release(reference_config, forward_case):
    model = convert_original_probe(CHECKPOINT, PROBE, reference_config)
    logits = load_file(REFERENCE / "probe.safetensors")["logits"]
    with torch.no_grad():
        from_features = model.classifier(model.pooler(forward_case["target_encoder.features"]))
        from_frames = model(forward_case["pixel_values_videos"]).logits
    torch.testing.assert_close(from_features, logits, **CLOSE)
    torch.testing.assert_close(from_frames, logits, **CLOSE)


def test_features_model_holds_the_target_encoder(reference_config, forward_case):
    model = convert_original_features(CHECKPOINT, reference_config)
    with torch.no_grad():
        features = model.get_vision_features(forward_case["pixel_values_videos"])
    torch.testing.assert_close(features, forward_case["target_encoder.features"], **CLOSE)
    assert not torch.allclose(features, forward_case["encoder.features"], **CLOSE)


def test_patch_kernel_is_flattened_bit_equal(checkpoint, reference_config):
    model = convert_original_checkpoint(CHECKPOINT, reference_config)
    kernel = checkpoint["encoder"][PREFIX + "patch_embed.proj.weight"]
    found = model.encoder.embeddings.patch_embeddings.projection.weight
    assert torch.equal(found, kernel.flatten(1))


# --- What comes out ---


def test_converted_model_is_whole_frozen_where_it_must_be_and_in_eval_mode(reference_config):
    model = convert_original_checkpoint(CHECKPOINT, reference_config)
    tensors = [*model.parameters(), *model.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)
    assert all(tensor.dtype == torch.float32 for tensor in tensors)
    assert not any(module.training for module in model.modules())
    assert all(p.requires_grad for part in ("encoder", "predictor") for p in getattr(model, part).parameters())
    assert not any(p.requires_grad for p in model.target_encoder.parameters())


def test_converted_tensors_share_no_memory(checkpoint, saved, reference_config):
    checkpoint["target_encoder"] = checkpoint["encoder"]  # torch.save keeps this, as a file saved before step 0 has it
    model = convert_original_checkpoint(saved(checkpoint), reference_config)
    addresses = [tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()]
    assert len(set(addresses)) == len(addresses)


def test_converted_model_outlives_its_file(tmp_path, reference_config):
    file = tmp_path / "copy.pth.tar"
    file.write_bytes(CHECKPOINT.read_bytes())
    model = convert_original_checkpoint(file, reference_config)
    with file.open("r+b") as stream:  # the mapped pages themselves
        stream.write(bytes(CHECKPOINT.stat().st_size))
    _assert_equal_states(_state(model), _state(convert_original_checkpoint(CHECKPOINT, reference_config)))


def test_conversion_leaves_the_callers_configuration_alone(reference_config):
    before = reference_config.to_dict()
    convert_original_probe(CHECKPOINT, PROBE, reference_config, {i: f"class {i}" for i in range(7)})
    assert reference_config.to_dict() == before


def test_number_of_labels_is_the_probes(reference_config):
    model = convert_original_probe(CHECKPOINT, PROBE, reference_config)
    assert model.config.num_labels == model.num_labels == len(model.config.id2label) == 7
    assert not any(name.startswith("predictor") for name, _ in model.named_parameters())


def test_label_names_are_kept_and_checked(reference_config):
    names = {i: f"class {i}" for i in range(7)}
    model = convert_original_probe(CHECKPOINT, PROBE, reference_config, {str(i): name for i, name in names.items()})
    assert model.config.id2label == names
    assert model.config.label2id["class 3"] == 3
    with pytest.raises(ValueError, match=r"2 entries.*0 to 6"):
        convert_original_probe(CHECKPOINT, PROBE, reference_config, {0: "a", 1: "b"})
    with pytest.raises(ValueError, match=r"7 entries.*0 to 6"):
        convert_original_probe(CHECKPOINT, PROBE, reference_config, {i + 1: name for i, name in names.items()})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_file_becomes_a_float32_model(checkpoint, saved, reference_config, dtype):
    halves = {part: {key: t.to(dtype) for key, t in checkpoint[part].items()} for part in PARTS}
    model = convert_original_checkpoint(saved(checkpoint | halves), reference_config)
    expected = _state(convert_original_checkpoint(CHECKPOINT, reference_config))
    _assert_equal_states(_state(model), {key: tensor.to(dtype).float() for key, tensor in expected.items()})


# --- Round trips ---


def test_export_equals_the_released_file(tmp_path, checkpoint, reference_config):
    model = convert_original_checkpoint(CHECKPOINT, reference_config)
    export_original_checkpoint(model, tmp_path / "export.pth.tar", epoch=300)
    exported = torch.load(tmp_path / "export.pth.tar", weights_only=True)
    assert exported.keys() == checkpoint.keys()
    assert exported["epoch"] == 300
    for part in PARTS:
        _assert_equal_states(exported[part], checkpoint[part])  # the position tables are among them
    assert os.listdir(tmp_path) == ["export.pth.tar"]


def test_trained_model_survives_export_bit_equal(tmp_path, reference_config):
    torch.manual_seed(0)
    model = VJEPAForPreTraining(reference_config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    export_original_checkpoint(model, tmp_path / "export.pth.tar")
    again = convert_original_checkpoint(tmp_path / "export.pth.tar", reference_config)
    _assert_equal_states(_state(again), _state(model))


def test_drifted_position_table_survives_conversion_and_export(tmp_path, checkpoint, saved, reference_config):
    checkpoint["target_encoder"][PREFIX + "pos_embed"] += 1e-4  # the released EMA rounds it over a run
    model = convert_original_checkpoint(saved(checkpoint), reference_config)
    table = model.target_encoder.embeddings.position_embeddings.table
    assert not torch.equal(table, model.encoder.embeddings.position_embeddings.table)
    exported = to_original_state(model)["target_encoder"]
    assert torch.equal(exported[PREFIX + "pos_embed"], checkpoint["target_encoder"][PREFIX + "pos_embed"])


def test_probe_export_equals_the_released_file_but_for_the_unapplied_projection(tmp_path, probe, reference_config):
    model = convert_original_probe(CHECKPOINT, PROBE, reference_config)
    export_original_probe(model, tmp_path / "probe.pth.tar", epoch=20)
    exported = torch.load(tmp_path / "probe.pth.tar", weights_only=True)
    assert exported.keys() == probe.keys()
    assert exported["classifier"].keys() == probe["classifier"].keys()
    differing = [key for key, t in probe["classifier"].items() if not torch.equal(t, exported["classifier"][key])]
    assert all(".xattn.proj." in key for key in differing)
    assert len(differing) == 2
    assert torch.equal(exported["classifier"][sorted(differing)[1]], torch.eye(64))  # without effect if applied
    again = convert_original_probe(CHECKPOINT, tmp_path / "probe.pth.tar", reference_config)
    _assert_equal_states(_state(again), _state(model))


def test_deep_pooler_survives_export(tmp_path, reference_config):
    torch.manual_seed(0)
    config = _changed(reference_config, num_pooler_layers=3, num_labels=5)
    model = VJEPAForVideoClassification(config)
    export_original_probe(model, tmp_path / "probe.pth.tar")
    exported = torch.load(tmp_path / "probe.pth.tar", weights_only=True)["classifier"]
    assert "module.pooler.blocks.1.attn.qkv.weight" in exported  # the released name
    again = convert_original_probe(CHECKPOINT, tmp_path / "probe.pth.tar", config)
    assert torch.equal(again.pooler.layer[1].attention.qkv.weight, model.pooler.layer[1].attention.qkv.weight)


def test_export_never_leaves_a_broken_file(tmp_path, monkeypatch, reference_config):
    model = convert_original_checkpoint(CHECKPOINT, reference_config)
    file = tmp_path / "export.pth.tar"
    file.write_bytes(b"the previous one")

    def run_out_of_space(checkpoint, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", run_out_of_space)
    with pytest.raises(OSError, match="No space left"):
        export_original_checkpoint(model, file)
    assert file.read_bytes() == b"the previous one"
    assert os.listdir(tmp_path) == ["export.pth.tar"]


# --- The folder that the command writes ---


def test_features_folder_is_read_by_from_pretrained(tmp_path, reference_config):
    convert_file(CHECKPOINT, tmp_path / "new" / "folder", reference_config)
    model = VJEPAModel.from_pretrained(tmp_path / "new" / "folder")
    _assert_equal_states(_state(model), _state(convert_original_features(CHECKPOINT, reference_config)))
    processor = VJEPAVideoProcessor.from_pretrained(tmp_path / "new" / "folder")
    assert processor.crop_size["height"] == reference_config.crop_size
    assert processor.num_frames == reference_config.frames_per_clip


def test_classifier_folder_is_read_by_from_pretrained(tmp_path, reference_config):
    names = {i: f"class {i}" for i in range(7)}
    written = convert_file(CHECKPOINT, tmp_path, reference_config, probe_file=PROBE, id2label=names)
    model = VJEPAForVideoClassification.from_pretrained(tmp_path)
    assert model.config.id2label == names
    _assert_equal_states(_state(model), _state(written))


def test_failed_conversion_writes_nothing(tmp_path, reference_config):
    with pytest.raises(ConversionError):
        convert_file(CHECKPOINT, tmp_path / "out", _changed(reference_config, num_hidden_layers=3))
    with pytest.raises(ValueError, match="without probe_file"):
        convert_file(CHECKPOINT, tmp_path / "out", reference_config, id2label={0: "a"})
    assert not (tmp_path / "out").exists()


def test_output_folder_that_is_a_file_is_refused(tmp_path, reference_config):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OSError, match="out could not be written"):
        convert_file(CHECKPOINT, tmp_path / "out", reference_config)
    assert (tmp_path / "out").read_text() == "mine"


# --- Which files are accepted ---


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone.", "module.module.backbone."])
def test_wrappers_prefix_does_not_matter(checkpoint, saved, probe, reference_config, prefix):
    parts = {part: _with_prefix(checkpoint[part], prefix) for part in PARTS}
    model = convert_original_checkpoint(saved(checkpoint | parts), reference_config)
    _assert_equal_states(_state(model), _state(convert_original_checkpoint(CHECKPOINT, reference_config)))
    probe["classifier"] = _with_prefix(probe["classifier"], prefix)
    classifier = convert_original_probe(CHECKPOINT, saved(probe), reference_config)
    _assert_equal_states(_state(classifier), _state(convert_original_probe(CHECKPOINT, PROBE, reference_config)))


def test_parts_may_differ_in_prefix_but_the_keys_of_a_part_may_not(checkpoint, saved, reference_config):
    checkpoint["predictor"] = _with_prefix(checkpoint["predictor"], "")
    convert_original_checkpoint(saved(checkpoint), reference_config)
    checkpoint["predictor"][PREFIX + "predictor_norm.bias"] = checkpoint["predictor"].pop("predictor_norm.bias")
    missing, left_over = "'predictor_norm.bias' is missing", f"'{PREFIX}predictor_norm.bias' is left over"
    _assert_refused(saved(checkpoint), reference_config, missing, left_over)


def test_state_of_the_training_run_has_no_effect(checkpoint, saved, reference_config):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([{"params": [parameter]}, {"params": [], "weight_decay": 0.0}])
    parameter.grad = torch.ones(3)
    optimizer.step()
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0}
    expected = _state(convert_original_checkpoint(CHECKPOINT, reference_config))
    run = {"opt": optimizer.state_dict(), "scaler": scaler}
    _assert_equal_states(_state(convert_original_checkpoint(saved(checkpoint | run), reference_config)), expected)
    without_run = {part: checkpoint[part] for part in PARTS}
    _assert_equal_states(_state(convert_original_checkpoint(saved(without_run), reference_config)), expected)


def test_file_of_old_torch_converts_too(checkpoint, saved, reference_config):
    file = saved(checkpoint, _use_new_zipfile_serialization=False)
    expected = convert_original_checkpoint(CHECKPOINT, reference_config).state_dict()
    found = convert_original_checkpoint(file, reference_config).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_probe_without_the_unapplied_projection_converts_to_the_same(probe, saved, reference_config):
    probe["classifier"] = {key: t for key, t in probe["classifier"].items() if ".xattn.proj." not in key}
    model = convert_original_probe(CHECKPOINT, saved(probe), reference_config)
    _assert_equal_states(_state(model), _state(convert_original_probe(CHECKPOINT, PROBE, reference_config)))


def test_probe_needs_only_the_target_encoder(checkpoint, saved, reference_config):
    file = saved({"target_encoder": checkpoint["target_encoder"]})
    model = convert_original_probe(file, PROBE, reference_config)
    _assert_equal_states(_state(model), _state(convert_original_probe(CHECKPOINT, PROBE, reference_config)))


def test_configuration_is_found_among_candidates(reference_config):
    wrong = [_changed(reference_config, num_hidden_layers=3), _changed(reference_config, uniform_power=False)]
    assert find_configs(CHECKPOINT, [*wrong, reference_config]) == [reference_config]
    assert find_configs(CHECKPOINT, wrong) == []


# --- V-JEPA 2 and 2.1 (their numbers: test_reference_family.py) ---


def _without_unread_tables(tensors: dict) -> dict:
    return {key: tensor for key, tensor in tensors.items() if not key.endswith("pos_embed")}


@pytest.mark.parametrize("generation", ["v2", "v2.1"])
def test_export_of_the_family_equals_the_released_file(tmp_path, generation):
    config, file = tiny_config(generation), tmp_path / "export.pt"
    model = convert_original_checkpoint(reference_file(generation), config)
    export_original_checkpoint(model, file, epoch=40)
    exported = torch.load(file, weights_only=True)
    released = torch.load(reference_file(generation), weights_only=True)
    assert exported.keys() == released.keys()
    for part in PARTS:
        _assert_equal_states(exported[part], _without_unread_tables(released[part]))
    _assert_equal_states(_state(convert_original_checkpoint(file, config)), _state(model))


def test_export_of_the_distilled_form_equals_the_released_file(tmp_path, saved):
    config, released = tiny_config("v2.1", **DISTILLED), distilled_checkpoint()
    model = convert_original_checkpoint(saved(released), config)
    export_original_checkpoint(model, tmp_path / "export.pt")
    exported = torch.load(tmp_path / "export.pt", weights_only=True)
    assert exported.keys() == released.keys()
    for part in ("encoder", "predictor", "ema_encoder"):
        _assert_equal_states(exported[part], released[part])


@pytest.mark.parametrize("generation", ["v2", "v2.1"])
def test_probe_of_the_family_survives_export_bit_equal(tmp_path, generation):
    config, file, probe_file = tiny_config(generation), tmp_path / "export.pt", "official_tiny_probe.pt"
    model = convert_original_probe(reference_file(generation), reference_file(generation, probe_file), config)
    export_original_probe(model, file, epoch=20)
    exported = torch.load(file, weights_only=True)
    released = torch.load(reference_file(generation, probe_file), weights_only=True)
    assert exported.keys() == released.keys()
    (head,), (released_head,) = exported["classifiers"], released["classifiers"]
    _assert_equal_states(head, released_head)
    _assert_equal_states(_state(convert_original_probe(reference_file(generation), file, config)), _state(model))


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_wrappers_prefix_of_a_distilled_file_does_not_matter(saved, prefix):
    config, checkpoint = tiny_config("v2.1", **DISTILLED), distilled_checkpoint()
    expected = _state(convert_original_checkpoint(saved(checkpoint), config))
    parts = {part: _with_prefix(checkpoint[part], prefix) for part in ("encoder", "predictor", "ema_encoder")}
    _assert_equal_states(_state(convert_original_checkpoint(saved(checkpoint | parts), config)), expected)


def test_file_without_encoder_fills_both_from_its_ema_encoder_and_warns(saved):
    config, checkpoint = tiny_config("v2.1", **DISTILLED), distilled_checkpoint()
    expected = _state(convert_original_checkpoint(saved(checkpoint), config).target_encoder)
    del checkpoint["encoder"]
    file = saved(checkpoint)
    with pytest.warns(UserWarning, match=r"no 'encoder'.*'ema_encoder' fills both"):
        model = convert_original_checkpoint(file, config)
    for encoder in (model.encoder, model.target_encoder):
        _assert_equal_states(_state(encoder), expected)
    assert model.encoder.layernorm.weight.data_ptr() != model.target_encoder.layernorm.weight.data_ptr()
    _assert_equal_states(_state(convert_original_features(file, config).encoder), expected)


def test_file_with_two_names_of_the_target_encoder_is_refused(saved):
    checkpoint = distilled_checkpoint()
    checkpoint["target_encoder"] = checkpoint["ema_encoder"]
    _assert_refused(saved(checkpoint), tiny_config("v2.1", **DISTILLED), "'ema_encoder'", "top level")


def test_sincos_tables_of_v_jepa_2_have_no_effect(saved):
    checkpoint, config = torch.load(reference_file("v2"), weights_only=True), tiny_config("v2")
    for part in PARTS:
        for key in [key for key in checkpoint[part] if key.endswith("pos_embed")]:
            checkpoint[part][key] = sincos_positions((4, 4, 4), checkpoint[part][key].shape[-1])
    expected = _state(convert_original_checkpoint(reference_file("v2"), config))
    _assert_equal_states(_state(convert_original_checkpoint(saved(checkpoint), config)), expected)


def test_unread_tables_are_known_in_v_jepa_2_alone(saved):
    checkpoint = torch.load(reference_file("v2"), weights_only=True)
    checkpoint["encoder"][PREFIX + "norms_block.0.weight"] = torch.ones(48)
    _assert_refused(saved(checkpoint), tiny_config("v2"), "norms_block.0.weight' is left over", "1 problem:")


def test_one_of_several_heads_is_chosen(saved):
    probe = torch.load(reference_file("v2", "official_tiny_probe.pt"), weights_only=True)
    (other,) = torch.load(reference_file("v2", "official_tiny_probe_4_heads.pt"), weights_only=True)["classifiers"]
    probe["classifiers"].append(other)
    file, config = saved(probe), tiny_config("v2")
    model = convert_original_probe(reference_file("v2"), file, config, index=1)
    assert torch.equal(model.classifier.weight, other["module.linear.weight"])
    features = convert_original_features(reference_file("v2"), config)
    attached = attach_original_probe(features, file, index=1, num_pooler_heads=4, pooler_feature_layers=[0, 2])
    assert (attached.config.num_pooler_heads, attached.config.pooler_feature_layers) == (4, [0, 2])
    assert torch.equal(attached.classifier.weight, model.classifier.weight)
    with pytest.raises(ConversionError, match=r"2 heads.*index=0"):
        convert_original_probe(reference_file("v2"), file, config)
    with pytest.raises(ConversionError, match=r"index is 2.*0 to 1"):
        convert_original_probe(reference_file("v2"), file, config, index=2)


@pytest.mark.parametrize("heads", [[], {}, [3]])
def test_list_without_heads_is_refused(saved, heads):
    with pytest.raises(ConversionError, match="classifier"):
        convert_original_probe(reference_file("v2"), saved({"classifiers": heads}), tiny_config("v2"))


# --- Which are refused: keys and values ---


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("convert", [convert_original_checkpoint, convert_original_features])
def test_every_misfit_is_named_in_one_error(checkpoint, saved, reference_config, part, convert):
    name = {"predictor": "predictor_norm"}.get(part, "norm")
    del checkpoint[part][f"{PREFIX}{name}.bias"]
    checkpoint[part][f"{PREFIX}{name}.weight"] = torch.ones(3)
    checkpoint[part][f"{PREFIX}register_tokens"] = torch.ones(1)
    with pytest.raises(ConversionError, match="3 problems") as caught:
        convert(saved(checkpoint), reference_config)
    assert f"{part}: key '{PREFIX}{name}.bias' is missing" in str(caught.value)
    assert f"{part}: key '{PREFIX}register_tokens' is left over" in str(caught.value)
    assert f"'{PREFIX}{name}.weight' has shape (3,), but the configuration needs" in str(caught.value)


def test_misfits_of_the_probe_are_named(probe, saved, reference_config):
    probe["classifier"]["module.linear.bias"] = torch.zeros(6)
    probe["classifier"]["module.extra"] = torch.zeros(6)
    del probe["classifier"]["module.pooler.query_tokens"]
    with pytest.raises(ConversionError, match="3 problems") as caught:
        convert_original_probe(CHECKPOINT, saved(probe), reference_config)
    for word in ("'module.linear.bias' has shape (6,)", "'module.extra'", "'module.pooler.query_tokens' is missing"):
        assert word in str(caught.value)


def test_misfit_of_the_probes_encoder_is_named(checkpoint, saved, reference_config):
    del checkpoint["target_encoder"][PREFIX + "norm.bias"]
    with pytest.raises(ConversionError, match=r"target_encoder: key 'module.backbone.norm.bias' is missing"):
        convert_original_probe(saved(checkpoint), PROBE, reference_config)


def test_unapplied_projection_is_ignored_in_probes_alone(checkpoint, saved, reference_config):
    key = f"{PREFIX}pooler.cross_attention_block.xattn.proj.weight"
    checkpoint["encoder"][key] = torch.zeros(64, 64)
    _assert_refused(saved(checkpoint), reference_config, f"'{key}' is left over")


def test_long_list_of_misfits_is_cut_and_counted(reference_config):
    text = _assert_refused(CHECKPOINT, _changed(reference_config, num_hidden_layers=4), "48 problems", "and 38 more")
    assert text.count("is missing") == 10


def test_integers_are_no_weights(checkpoint, saved, reference_config):
    key = PREFIX + "norm.weight"
    checkpoint["encoder"][key] = checkpoint["encoder"][key].long()
    _assert_refused(saved(checkpoint), reference_config, f"'{key}' has dtype torch.int64")


@pytest.mark.parametrize(
    "fields",
    [
        {"pred_num_mask_tokens": 1},
        {"pred_num_mask_tokens": 3},
        {"tubelet_size": 4, "frames_per_clip": 16},
        {"qkv_bias": False},
    ],
)
def test_configuration_of_another_architecture_is_refused(reference_config, fields):
    _assert_refused(CHECKPOINT, _changed(reference_config, **fields), "does not fit the configuration")


# --- Which are refused: position tables ---


def test_wrong_uniform_power_is_refused_and_named(reference_config):
    config = _changed(reference_config, uniform_power=False)
    text = _assert_refused(CHECKPOINT, config, "is the table of uniform_power=True", "3 problems")
    assert text.count("pos_embed'") == 3


@pytest.mark.parametrize(
    "fields", [{"crop_size": 32, "frames_per_clip": 32}, {"crop_size": 128, "frames_per_clip": 2}]
)
def test_wrong_grid_of_equal_size_is_refused(reference_config, fields):
    config = _changed(reference_config, **fields)
    assert torch.tensor(config.token_grid).prod() == 64
    _assert_refused(CHECKPOINT, config, f"from the table of the token grid {config.token_grid}", "crop_size")


def test_grid_of_another_size_is_refused(reference_config):
    config = _changed(reference_config, crop_size=32)
    _assert_refused(CHECKPOINT, config, "pos_embed' has shape (1, 64, 64), but the configuration needs (1, 16, 64)")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("change", [2e-3, float("nan")])
def test_wrong_value_in_a_position_table_is_refused(checkpoint, saved, reference_config, part, change):
    key = PREFIX + ("predictor_pos_embed" if part == "predictor" else "pos_embed")
    checkpoint[part][key][0, 5, 7] += change
    text = _assert_refused(saved(checkpoint), reference_config, f"{part}: '{key}' differs by", "1 problem:")
    assert f"differs by {change:.2g}" in text
    assert "more than 0.001" in text


def test_tables_without_uniform_power_are_accepted_by_their_configuration(checkpoint, saved, reference_config):
    for part in PARTS:
        for key in [key for key in checkpoint[part] if key.endswith("pos_embed")]:
            width = checkpoint[part][key].shape[-1]
            checkpoint[part][key] = sincos_positions(reference_config.token_grid, width, uniform_power=False)
    file = saved(checkpoint)
    convert_original_checkpoint(file, _changed(reference_config, uniform_power=False))
    _assert_refused(file, reference_config, "is the table of uniform_power=False")


# --- Which are refused: whole files ---


def test_unknown_top_level_key_is_refused(checkpoint, saved, reference_config):
    _assert_refused(saved(checkpoint | {"ema_scheduler": 1}), reference_config, "'ema_scheduler'", "top level")


def test_missing_part_is_refused_with_those_that_are_there(checkpoint, saved, reference_config):
    del checkpoint["target_encoder"]
    _assert_refused(saved(checkpoint), reference_config, "has no 'target_encoder'", "'encoder', 'predictor', 'opt'")


def test_swapped_files_are_refused_with_the_remedy(reference_config):
    _assert_refused(PROBE, reference_config, "pass it as probe_file")
    with pytest.raises(ConversionError, match=r"has no 'classifier'.*pass a probe's file"):
        convert_original_probe(CHECKPOINT, CHECKPOINT, reference_config)


@pytest.mark.parametrize("content", [[1, 2], {"encoder": {}}, torch.zeros(3)])
def test_other_content_is_refused(saved, reference_config, content):
    _assert_refused(saved(content), reference_config, "'target_encoder'")


@pytest.mark.parametrize("part", [3, {"norm.weight": 3}, {1: torch.zeros(1)}])
def test_part_that_is_no_state_dict_is_refused(checkpoint, saved, reference_config, part):
    _assert_refused(saved(checkpoint | {"encoder": part}), reference_config, "'encoder' of", "dictionary of tensors")


class Hostile:
    """Makes an ordinary pickle reader write a file."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("is_archive", [True, False])
def test_code_in_a_file_is_never_run(tmp_path, checkpoint, saved, reference_config, is_archive):
    witness = tmp_path / "witness"
    file = saved(checkpoint | {"opt": Hostile(witness)}, _use_new_zipfile_serialization=is_archive)
    text = _assert_refused(file, reference_config, f"{os.mkdir.__module__}.mkdir", "could run code")
    assert "weights_only" not in text
    assert not witness.exists()
    torch.load(file, weights_only=False)  # as the test needs: the file does run code where it may
    assert witness.exists()


def test_plain_pickle_is_refused(tmp_path, reference_config):
    file = tmp_path / "file.pth.tar"
    file.write_bytes(pickle.dumps({"encoder": 1}, protocol=2))
    _assert_refused(file, reference_config, "download it again")


@pytest.mark.parametrize("is_archive", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file_is_refused(checkpoint, saved, reference_config, is_archive, kept):
    file = saved(checkpoint, _use_new_zipfile_serialization=is_archive)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    _assert_refused(file, reference_config, "download it again")


def test_single_wrong_byte_in_the_weights_is_refused(checkpoint, saved, reference_config):
    file = saved(checkpoint)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    _assert_refused(file, reference_config, "checksum", "download it again")


@pytest.mark.parametrize("offset", [-1, 2**40])
def test_damaged_directory_of_the_archive_is_refused(saved, checkpoint, reference_config, offset):
    file = saved(checkpoint)
    content = bytearray(file.read_bytes())
    start = content.rindex(b"PK\x06\x06") + 48  # zip64: where the directory of the records begins
    content[start : start + 8] = offset.to_bytes(8, "little", signed=True)
    file.write_bytes(content)
    _assert_refused(file, reference_config, "is damaged", "download it again")


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>404</html>", b'\n{"error": "AccessDenied"}'])
def test_web_page_in_place_of_a_file_is_recognised(tmp_path, reference_config, content):
    file = tmp_path / "vitl16.pth.tar"
    file.write_bytes(content)
    _assert_refused(file, reference_config, "web page", content[1:9].decode(), "download it again")


@pytest.mark.parametrize("content", [b"not found", bytes(1000)])
def test_file_of_another_kind_is_refused(tmp_path, reference_config, content):
    file = tmp_path / "vitl16.pth.tar"
    file.write_bytes(content)
    _assert_refused(file, reference_config, "no checkpoint of torch", "download it again")


def test_absent_file_is_named(tmp_path, reference_config):
    with pytest.raises(FileNotFoundError, match=r"absent\.pth\.tar"):
        convert_original_checkpoint(tmp_path / "absent.pth.tar", reference_config)


# --- The real size ---


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from Linux's /proc")
def test_file_of_the_real_size_converts_within_four_gigabytes(tmp_path):
    script = ROOT / "benchmarks" / "conversion_memory.py"
    run = subprocess.run([sys.executable, script, "--directory", tmp_path], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    size = float(run.stdout.split(" GB")[0].split()[-1])
    assert 5.0 < size < 5.5
