import json
import os
import stat
import subprocess
import sys
import warnings

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from vjepa_hub import (
    VJEPAConfig,
    VJEPAForPreTraining,
    VJEPAForVideoClassification,
    VJEPAModel,
    VJEPAVideoProcessor,
)


def _assert_equal(first: torch.nn.Module, second: torch.nn.Module) -> None:
    left, right = first.state_dict(), second.state_dict()
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def _scramble(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter at random: none equals its initialisation, nor the same parameter of another part."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


# Every test runs in each generation of the family
pytestmark = pytest.mark.usefixtures("small_config")


with_table = pytest.mark.parametrize("family_config", ["1"], indirect=True)


@pytest.fixture
def small_config(family_config):
    return family_config


@pytest.fixture
def pretraining_folder(small_config, tmp_path):
    model = _scramble(VJEPAForPreTraining(small_config))
    model.save_pretrained(tmp_path / "pretraining")
    return model, tmp_path / "pretraining"


@pytest.fixture
def features_folder(small_config, tmp_path):
    model = _scramble(VJEPAModel(small_config))
    model.save_pretrained(tmp_path / "features")
    return model, tmp_path / "features"


@pytest.fixture
def classifier_folder(small_config, tmp_path):
    model = _scramble(VJEPAForVideoClassification(small_config))
    model.save_pretrained(tmp_path / "classifier")
    return model, tmp_path / "classifier"


def _assert_complete(info: dict) -> None:
    assert not any(info.values()), info


@pytest.mark.parametrize("folder", ["pretraining_folder", "features_folder", "classifier_folder"])
@pytest.mark.parametrize("max_shard_size", ["50GB", "60KB"])
def test_save_and_load_is_bit_equal_and_silent(request, folder, max_shard_size, capfd, caplog):
    model, path = request.getfixturevalue(folder)
    model.save_pretrained(path / "again", max_shard_size=max_shard_size)
    shards = list((path / "again").glob("*.safetensors"))
    assert (len(shards) > 1) == (max_shard_size == "60KB")
    capfd.readouterr()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded, info = type(model).from_pretrained(path / "again", output_loading_info=True)
    finally:
        transformers_logging.enable_progress_bar()
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    _assert_complete(info)
    _assert_equal(loaded, model)


@pytest.mark.parametrize(
    ("auto_class", "model_class"),
    [
        (AutoModel, VJEPAModel),
        (AutoModelForPreTraining, VJEPAForPreTraining),
        (AutoModelForVideoClassification, VJEPAForVideoClassification),
    ],
)
def test_auto_classes_build_the_family(small_config, auto_class, model_class):
    assert type(auto_class.from_config(small_config)) is model_class
    assert isinstance(AutoConfig.for_model("vjepa"), VJEPAConfig)


# transformers 5.12 asks for trust in remote code there
with_image_processors = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.24"), reason="AutoImageProcessor is known to work from 5.24 on"
)


@pytest.mark.parametrize(
    "auto_class", [AutoVideoProcessor, pytest.param(AutoImageProcessor, marks=with_image_processors)]
)
def test_auto_classes_load_configuration_and_processor(features_folder, auto_class):
    _, path = features_folder
    VJEPAVideoProcessor(crop_size=32).save_pretrained(path)
    assert isinstance(AutoConfig.from_pretrained(path), VJEPAConfig)
    processor = auto_class.from_pretrained(path)
    assert isinstance(processor, VJEPAVideoProcessor)
    assert processor.crop_size["height"] == 32


def test_features_from_a_pretraining_folder_are_the_target_encoder(pretraining_folder):
    pretraining, path = pretraining_folder
    model, info = AutoModel.from_pretrained(path, output_loading_info=True)
    _assert_complete(info)
    _assert_equal(model.encoder, pretraining.target_encoder)
    _assert_equal(model.predictor, pretraining.predictor)


def test_features_loaded_from_pretraining_save_as_a_features_folder(pretraining_folder, tmp_path):
    pretraining, path = pretraining_folder
    AutoModel.from_pretrained(path).save_pretrained(tmp_path / "resaved")
    model, info = AutoModel.from_pretrained(tmp_path / "resaved", output_loading_info=True)
    _assert_complete(info)
    _assert_equal(model.encoder, pretraining.target_encoder)


def test_pretraining_from_a_features_folder_copies_the_encoder(features_folder):
    features, path = features_folder
    model, info = AutoModelForPreTraining.from_pretrained(path, output_loading_info=True)
    _assert_complete(info)
    _assert_equal(model.encoder, features.encoder)
    _assert_equal(model.target_encoder, features.encoder)
    _assert_equal(model.predictor, features.predictor)
    model.encoder.layernorm.weight.data.add_(1)
    _assert_equal(model.target_encoder, features.encoder)  # memory of its own
    assert not any(p.requires_grad for p in model.target_encoder.parameters())


def test_features_from_a_classifier_folder_cannot_predict(classifier_folder, small_clip, small_masks, tmp_path):
    classifier, path = classifier_folder
    model, info = AutoModel.from_pretrained(path, output_loading_info=True)
    _assert_complete(info)
    _assert_equal(model.encoder, classifier.encoder)
    model.save_pretrained(tmp_path / "resaved")
    for loaded in (model, AutoModel.from_pretrained(tmp_path / "resaved")):
        assert loaded.get_vision_features(small_clip).shape == (2, 32, 48)
        with pytest.raises(ValueError, match="no predictor"):
            loaded.predict(small_clip, *small_masks)
        with pytest.raises(ValueError, match="no predictor"):
            loaded(small_clip, *small_masks)
    with pytest.raises(ValueError, match="no predictor"):
        classifier.predict(small_clip, *small_masks)


@pytest.mark.parametrize("folder", ["pretraining_folder", "features_folder"])
def test_classifier_from_another_folder_names_just_its_new_head(request, folder, caplog):
    source, path = request.getfixturevalue(folder)
    model, info = AutoModelForVideoClassification.from_pretrained(path, output_loading_info=True)
    heads = {name for name in model.state_dict() if not name.startswith("encoder.")}
    assert info["missing_keys"] == heads
    assert not info["unexpected_keys"]
    assert "newly initialized" in caplog.text
    _assert_equal(model.encoder, getattr(source, "target_encoder", source.encoder))


def test_pretraining_from_a_classifier_folder_says_that_the_predictor_is_new(classifier_folder, caplog):
    classifier, path = classifier_folder
    model, info = AutoModelForPreTraining.from_pretrained(path, output_loading_info=True)
    assert info["missing_keys"] == {name for name in model.state_dict() if name.startswith("predictor.")}
    assert "newly initialized" in caplog.text
    _assert_equal(model.target_encoder, classifier.encoder)


def test_state_dict_given_by_hand_follows_the_same_rules(pretraining_folder, small_config):
    pretraining, _ = pretraining_folder
    model = VJEPAModel.from_pretrained(None, config=small_config, state_dict=pretraining.state_dict())
    _assert_equal(model.encoder, pretraining.target_encoder)


def test_saved_weights_may_be_read_by_whom_the_configuration_may(small_config, tmp_path):
    before = os.umask(0o027)
    try:
        VJEPAModel(small_config).save_pretrained(tmp_path, max_shard_size="20KB")
    finally:
        os.umask(before)
    files = [*tmp_path.glob("*.safetensors"), tmp_path / "config.json"]
    assert len(files) > 2
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o640}


@with_table
def test_weights_of_another_size_raise(features_folder, small_config):
    _, path = features_folder
    config = VJEPAConfig(**{**small_config.to_diff_dict(), "crop_size": 64})
    with pytest.raises(RuntimeError, match="size"):
        VJEPAModel.from_pretrained(path, config=config)


@with_table
@pytest.mark.parametrize("model_class", [VJEPAModel, VJEPAForPreTraining, VJEPAForVideoClassification])
@pytest.mark.parametrize("folder", ["pretraining_folder", "features_folder", "classifier_folder"])
@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("num_hidden_layers", 1, "left over (encoder.layer.1.attention.proj.bias, "),
        ("num_hidden_layers", 3, "missing (encoder.layer.2.attention.proj.bias, "),
    ],
)
def test_configuration_with_other_layers_than_the_weights_is_refused(
    request, folder, model_class, field, value, named
):
    _, path = request.getfixturevalue(folder)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(ValueError, match="numbers of layers") as caught:
        model_class.from_pretrained(path)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("folder", "model_class", "field", "key"),
    [
        ("features_folder", VJEPAModel, "pred_num_hidden_layers", "predictor.layer.2.attention.proj.bias"),
        ("pretraining_folder", VJEPAModel, "pred_num_hidden_layers", "predictor.layer.2.attention.proj.bias"),
        ("classifier_folder", VJEPAForVideoClassification, "num_pooler_layers", "pooler.layer.0.attention.proj.bias"),
    ],
)
def test_other_layers_in_predictor_and_pooler_are_refused(request, folder, model_class, field, key):
    model, path = request.getfixturevalue(folder)
    setattr(model.config, field, 1 + getattr(model.config, field))
    model.config.save_pretrained(path)
    with pytest.raises(ValueError, match="missing") as caught:
        model_class.from_pretrained(path)
    assert key in str(caught.value)


def test_tensor_that_no_model_of_the_family_has_is_refused_and_named(features_folder):
    _, path = features_folder
    save_file(load_file(path / "model.safetensors") | {"spare.weight": torch.zeros(2)}, path / "model.safetensors")
    with pytest.raises(ValueError, match=r"left over \(spare\.weight\)"):
        VJEPAModel.from_pretrained(path)


@pytest.mark.parametrize("source", ["pretraining_folder", "features_folder"])
def test_device_map_and_dtype_are_honoured(request, source):
    _, path = request.getfixturevalue(source)
    model = AutoModel.from_pretrained(path, device_map={"": "cpu"}, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {table.dtype for table in model.buffers()} <= {torch.float32}  # rotary models have none
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_folder_that_the_trainer_wrote_loads_without_a_warning(small_config, small_clip, tmp_path):
    data = [{"pixel_values_videos": clip, "labels": 1} for clip in small_clip]
    arguments = TrainingArguments(tmp_path, max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = Trainer(VJEPAForVideoClassification(small_config), arguments, train_dataset=data)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, info = AutoModelForVideoClassification.from_pretrained(tmp_path / "saved", output_loading_info=True)
    _assert_complete(info)


@pytest.mark.parametrize("folder", ["features_folder", "classifier_folder", "pretraining_folder"])
def test_models_run_with_parts_on_disk(request, folder, small_clip, small_masks, tmp_path):
    model, path = request.getfixturevalue(folder)
    device_map = {name: "disk" if name == "encoder" else "cpu" for name, _ in model.named_children()}
    loaded = type(model).from_pretrained(path, device_map=device_map, offload_folder=tmp_path / "offload")
    arguments = () if folder == "classifier_folder" else small_masks
    expected, found = model.eval()(small_clip, *arguments), loaded(small_clip, *arguments)
    torch.testing.assert_close(found[0], expected[0])


@with_table
def test_table_of_another_grid_of_as_many_tokens_raises(features_folder):
    _, path = features_folder
    for changes in ({"uniform_power": False}, {"frames_per_clip": 16, "crop_size": 16}):
        with pytest.raises(ValueError, match="stored position table is off by"):
            AutoModel.from_pretrained(path, **changes)


def test_target_encoder_under_other_names_is_never_dropped(pretraining_folder, small_config):
    pretraining, _ = pretraining_folder
    renamed = {f"vjepa.{name}": tensor for name, tensor in pretraining.state_dict().items()}
    with pytest.raises(ValueError, match=r"left over \(vjepa\.target_encoder\."):
        VJEPAModel.from_pretrained(None, config=small_config, state_dict=renamed)


def test_weights_say_where_they_come_from_after_saving(small_config, tmp_path):
    config = VJEPAConfig(**{**small_config.to_diff_dict(), "weights_origin": "untrained, seed 0"})
    VJEPAModel(config).save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).config.weights_origin == "untrained, seed 0"


def test_disk_offload_of_another_kind_of_folder_raises_with_a_remedy(pretraining_folder, tmp_path):
    _, path = pretraining_folder
    device_map = {"encoder": "cpu", "predictor": "disk"}
    with pytest.raises(ValueError, match="save_pretrained"):
        AutoModel.from_pretrained(path, device_map=device_map, offload_folder=tmp_path / "offload")


@pytest.mark.parametrize("model_class", [VJEPAModel, VJEPAForPreTraining, VJEPAForVideoClassification])
def test_model_initialised_after_the_meta_device_equals_the_constructor(small_config, model_class):
    with torch.device("meta"):
        model = model_class(small_config)
    assert {t.device.type for t in model.state_dict().values()} == {"meta"}
    model = model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.fill_(float("nan"))
    torch.manual_seed(0)
    model.init_weights()
    torch.manual_seed(0)
    expected = model_class(small_config)
    for name, buffer in expected.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer)
    assert all(torch.isfinite(t).all() for t in model.state_dict().values())


def test_plain_save_writes_source_and_every_auto_class(features_folder, classifier_folder, pretraining_folder):
    for _, path in (features_folder, classifier_folder, pretraining_folder):
        assert (path / "modeling_vjepa.py").is_file()
        assert (path / "configuration_vjepa.py").is_file()
        assert json.loads((path / "config.json").read_text())["auto_map"] == {
            "AutoConfig": "configuration_vjepa.VJEPAConfig",
            "AutoModel": "modeling_vjepa.VJEPAModel",
            "AutoModelForPreTraining": "modeling_vjepa.VJEPAForPreTraining",
            "AutoModelForVideoClassification": "modeling_vjepa.VJEPAForVideoClassification",
        }


REMOTE_CODE = """
import sys

class Blocked:
    def find_spec(self, name, *args):
        if name.split(".")[0] == "vjepa_hub":
            raise ImportError("vjepa_hub is not installed here")

sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForVideoClassification, AutoVideoProcessor

features, classifier, clip = sys.argv[1:]
clip = torch.load(clip)
pixels = AutoVideoProcessor.from_pretrained(features, trust_remote_code=True)(clip, return_tensors="pt")
again = AutoImageProcessor.from_pretrained(features, trust_remote_code=True)(clip, return_tensors="pt")
outputs = [
    AutoModel.from_pretrained(features, trust_remote_code=True)(**pixels).last_hidden_state,
    AutoModel.from_pretrained(classifier, trust_remote_code=True)(**pixels).last_hidden_state,
    AutoModelForVideoClassification.from_pretrained(classifier, trust_remote_code=True)(**pixels).logits,
    again.pixel_values_videos,
]
torch.save([output.detach() for output in outputs], "outputs.pt")
"""


@pytest.mark.parametrize("family_config", ["2.1"], indirect=True)
def test_saved_folder_loads_without_vjepa_hub_installed(features_folder, classifier_folder, tmp_path):
    (features, features_path), (classifier, classifier_path) = features_folder, classifier_folder
    processor = VJEPAVideoProcessor(crop_size=32)
    processor.save_pretrained(features_path)
    clip = torch.randint(0, 256, (4, 40, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.save(clip, tmp_path / "clip.pt")
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    arguments = [str(features_path), str(classifier_path), str(tmp_path / "clip.pt")]
    command = [sys.executable, "-c", REMOTE_CODE, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pixels = processor(clip, return_tensors="pt")
    expected = [
        features.eval()(**pixels).last_hidden_state,
        classifier.eval().encoder(**pixels).last_hidden_state,
        classifier(**pixels).logits,
        pixels.pixel_values_videos,
    ]
    for found, wanted in zip(torch.load(tmp_path / "outputs.pt"), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)  # another process may add in another order
