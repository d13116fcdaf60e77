import copy
import json
import sys

import pytest
import torch
from transformers import VJEPA2Config, VJEPA2Model

from vjepa_hub import VJEPAConfig, VJEPAForPreTraining, VJEPAForVideoClassification, VJEPAModel
from vjepa_hub.hub.quantization import quantize_int8
from vjepa_hub.publishing import export
from vjepa_hub.publishing.export import export_onnx, export_program

MODELS = [VJEPAModel, VJEPAForPreTraining, VJEPAForVideoClassification]
# Another runtime adds in another order; measured in float32: 1.3e-6 on features of size 1
ONNX_CLOSE = {"rtol": 0, "atol": 1e-5}
# torch 2.14 is bit-equal, torch 2.6 lays out the classifier's products in another way
PROGRAM_CLOSE = {"rtol": 0, "atol": 2e-6}


def _build(model_class, config: VJEPAConfig):
    """A model whose parts all differ from their initial values, the target encoder from the context encoder."""
    torch.manual_seed(0)
    config = copy.deepcopy(config)
    config.num_pooler_layers = 2
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _clips(batch_size: int) -> torch.Tensor:
    return torch.randn(batch_size, 4, 3, 32, 32, generator=torch.Generator().manual_seed(batch_size))


@torch.no_grad()
def _outputs(model, clips: torch.Tensor) -> torch.Tensor:
    if isinstance(model, VJEPAForVideoClassification):
        return model(clips).logits
    encoder = model.target_encoder if isinstance(model, VJEPAForPreTraining) else model
    return encoder(clips).last_hidden_state


def _require_onnx():
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'vjepa-hub[onnx]'")
    return pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'vjepa-hub[onnx]'")


@pytest.mark.parametrize("model_class", MODELS)
def test_onnx_file_gives_the_models_outputs_at_any_batch_size(small_config, tmp_path, model_class):
    onnxruntime = _require_onnx()
    small_config.id2label = {0: "juggling", 1: "sailing", 2: "knitting"}
    model = _build(model_class, small_config)
    session = onnxruntime.InferenceSession(export_onnx(model, tmp_path / "model.onnx"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    for batch_size in (1, 3):
        clips = _clips(batch_size)
        (outputs,) = session.run(None, {"pixel_values_videos": clips.numpy()})
        torch.testing.assert_close(torch.from_numpy(outputs), _outputs(model, clips), **ONNX_CLOSE)
    (clip,), (output,) = session.get_inputs(), session.get_outputs()
    assert clip.shape == ["batch_size", 4, 3, 32, 32]
    assert output.name == ("logits" if model_class is VJEPAForVideoClassification else "last_hidden_state")
    config = json.loads(session.get_modelmeta().custom_metadata_map["config.json"])
    assert config["id2label"]["1"] == "sailing"


def _build_of_joined_blocks(config: VJEPAConfig) -> VJEPAForVideoClassification:
    config.pooler_feature_layers, config.num_pooler_heads = [0, 1], 6
    return _build(VJEPAForVideoClassification, config)


def test_programs_of_each_generation_and_of_joined_blocks_give_the_logits(family_config, tmp_path):
    model = _build_of_joined_blocks(family_config)
    program = torch.export.load(export_program(model, tmp_path / "model.pt2")).module()
    for batch_size in (1, 3):
        clips = _clips(batch_size)
        torch.testing.assert_close(program(clips), _outputs(model, clips), **PROGRAM_CLOSE)


@pytest.mark.slow
def test_onnx_files_of_each_generation_and_of_joined_blocks_give_the_logits(family_config, tmp_path):
    onnxruntime = _require_onnx()
    model = _build_of_joined_blocks(family_config)
    session = onnxruntime.InferenceSession(export_onnx(model, tmp_path / "model.onnx"))
    for batch_size in (1, 3):
        clips = _clips(batch_size)
        (outputs,) = session.run(None, {"pixel_values_videos": clips.numpy()})
        torch.testing.assert_close(torch.from_numpy(outputs), _outputs(model, clips), **ONNX_CLOSE)


@pytest.mark.parametrize("model_class", [VJEPAModel, VJEPAForVideoClassification])
def test_older_exporter_of_torch_keeps_the_batch_free(small_config, tmp_path, model_class):
    onnxruntime = _require_onnx()
    model, axes = _build(model_class, small_config), {"clips": {0: "batch"}, "outputs": {0: "batch"}}
    model.config.return_dict = False
    names = {"input_names": ["clips"], "output_names": ["outputs"], "dynamic_axes": axes}
    torch.onnx.export(model, (_clips(2),), tmp_path / "old.onnx", dynamo=False, opset_version=17, **names)
    session = onnxruntime.InferenceSession(tmp_path / "old.onnx")
    for batch_size in (1, 3):
        clips = _clips(batch_size)
        (outputs,) = session.run(None, {"clips": clips.numpy()})
        torch.testing.assert_close(torch.from_numpy(outputs), model(clips)[0].detach(), **ONNX_CLOSE)


def test_large_weights_are_written_beside_the_onnx_file_and_half_precision_becomes_float32(
    small_config, tmp_path, monkeypatch
):
    onnxruntime = _require_onnx()
    monkeypatch.setattr(export, "_MAX_ONNX_BYTES", 1000)
    model = _build(VJEPAModel, small_config).to(torch.bfloat16)
    session = onnxruntime.InferenceSession(export_onnx(model, tmp_path / "model.onnx"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    (features,) = session.run(None, {"pixel_values_videos": _clips(1).numpy()})
    assert model.dtype == torch.bfloat16
    torch.testing.assert_close(torch.from_numpy(features), _outputs(model.float(), _clips(1)), **ONNX_CLOSE)


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_missing_extra_is_named_with_its_installation(small_config, tmp_path, monkeypatch, missing):
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None if name == missing else sys)
    with pytest.raises(ImportError, match=rf"{missing} is not installed; pip install 'vjepa-hub\[onnx\]'"):
        export_onnx(_build(VJEPAModel, small_config), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model_class", MODELS)
def test_program_gives_the_models_outputs_at_any_batch_size(small_config, tmp_path, model_class):
    model = _build(model_class, small_config)
    extra_files = {"config.json": ""}
    program = torch.export.load(export_program(model, tmp_path / "model.pt2"), extra_files=extra_files).module()
    for batch_size in (1, 3):
        outputs = program(_clips(batch_size))
        torch.testing.assert_close(outputs, _outputs(model, _clips(batch_size)), **PROGRAM_CLOSE)
    assert VJEPAConfig.from_dict(json.loads(extra_files["config.json"])).to_dict() == model.config.to_dict()
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


@torch.no_grad()
def test_program_of_a_classifier_takes_the_tokens_of_its_blocks(small_config, tmp_path):
    small_config.pooler_feature_layers = [0, 1]
    model = _build(VJEPAForVideoClassification, small_config)
    program = torch.export.load(export_program(model, tmp_path / "model.pt2")).module()
    torch.testing.assert_close(program(_clips(2)), model(_clips(2)).logits, **PROGRAM_CLOSE)


def test_program_keeps_the_number_format(small_config, tmp_path):
    model = _build(VJEPAModel, small_config).to(torch.bfloat16)
    program = torch.export.load(export_program(model, tmp_path / "model.pt2")).module()
    outputs = program(_clips(3))
    assert outputs.dtype == torch.bfloat16
    torch.testing.assert_close(outputs, _outputs(model, _clips(3)), rtol=0, atol=0.05)


def test_features_model_of_a_classifiers_folder_is_exported_too(small_config, tmp_path):
    VJEPAForVideoClassification(small_config).save_pretrained(tmp_path)
    model = VJEPAModel.from_pretrained(tmp_path)  # it has no predictor
    program = torch.export.load(export_program(model, tmp_path / "model.pt2")).module()
    torch.testing.assert_close(program(_clips(1)), _outputs(model, _clips(1)), **PROGRAM_CLOSE)


def test_exported_model_stays_as_it_was(small_config, tmp_path):
    model = _build(VJEPAForPreTraining, small_config).train()
    model.set_attn_implementation("eager")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pointers = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    needs_gradient = [parameter.requires_grad for parameter in model.parameters()]
    export_program(model, tmp_path / "model.pt2")
    assert model.training
    assert model.config._attn_implementation == model.encoder.config._attn_implementation == "eager"
    assert [parameter.requires_grad for parameter in model.parameters()] == needs_gradient
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == pointers


def test_failed_export_leaves_the_file_that_was_there(small_config, tmp_path, monkeypatch):
    file = tmp_path / "model.pt2"
    file.write_bytes(b"as it was")

    def write_half(program, path, **options):
        path.write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(torch.export, "save", write_half)
    with pytest.raises(OSError, match="the disk is full"):
        export_program(_build(VJEPAModel, small_config), file)
    assert file.read_bytes() == b"as it was"
    assert list(tmp_path.iterdir()) == [file]


def test_wrong_endings_and_quantised_models_are_refused(small_config, tmp_path):
    model = _build(VJEPAModel, small_config)
    with pytest.raises(ValueError, match=r"must end with \.pt2"):
        export_program(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"must end with \.onnx"):
        export_onnx(model, tmp_path / "model.pt")
    if torch.backends.quantized.engine == "none":
        pytest.skip("torch has no int8 kernels for this machine")
    with pytest.raises(ValueError, match="quantised or has adapters"):
        export_program(quantize_int8(model), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


# --- Why there is no export to VJEPA2 ---


def _vjepa2() -> VJEPA2Model:
    """A model of the sizes of `small_config`."""
    config = VJEPA2Config(
        patch_size=8,
        crop_size=32,
        frames_per_clip=4,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        pred_hidden_size=24,
        pred_num_hidden_layers=2,
        pred_num_attention_heads=4,
    )
    return VJEPA2Model(config).eval()


@pytest.mark.parametrize("seed", [0, 1])
def test_no_weights_make_vjepa2_equal_because_it_sees_no_place_in_a_clip_of_equal_patches(small_config, seed):
    torch.manual_seed(seed)
    patch = torch.randn(1, 2, 3, 8, 8)
    clip = patch.repeat(1, 2, 1, 4, 4)
    ours, theirs = _build(VJEPAModel, small_config), _vjepa2()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
        blind = theirs(clip, skip_predictor=True).last_hidden_state
        placed = ours(clip).last_hidden_state
    assert blind.std() > 0.1
    assert blind.shape == placed.shape
    assert (blind - blind[:, :1]).abs().max() < 1e-4
    assert (placed - placed[:, :1]).abs().max() > 1e-1


def test_vjepa2_stores_nothing_of_the_size_of_a_position_table(small_config):
    table = VJEPAModel(small_config).encoder.embeddings.position_embeddings.table
    assert not [name for name, tensor in _vjepa2().state_dict().items() if tensor.shape == table.shape]
