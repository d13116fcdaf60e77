import json
import os
import pickle
import shutil
import struct
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from vjepa_hub import (
    VJEPAConfig,
    VJEPAForPreTraining,
    VJEPAForVideoClassification,
    VJEPAModel,
    VJEPAVideoProcessor,
)
from vjepa_hub.hub import loading, safety
from vjepa_hub.hub.conversion import ConversionError, export_original_checkpoint
from vjepa_hub.hub.loading import open_model, resolve_config
from vjepa_hub.hub.registry import MODELS
from vjepa_hub.hub.safety import (
    RefusedModelError,
    check_folder,
    check_name,
    check_size,
    count_elements,
    read_config,
    read_stored_tensors,
)


@pytest.fixture
def folder(small_config, tmp_path) -> Path:
    """A good folder of a features model with its processor."""
    folder = tmp_path / "model"
    VJEPAModel(small_config).save_pretrained(folder)
    VJEPAVideoProcessor(crop_size=32).save_pretrained(folder)
    return folder


@pytest.fixture
def sharded_folder(small_config, tmp_path) -> Path:
    VJEPAModel(small_config).save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    return tmp_path / "sharded"


@pytest.fixture
def marker(tmp_path) -> Path:
    """The file that malicious code of the tests writes."""
    return tmp_path / "code has run"


class _Malicious:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def _edit(file: Path, **fields) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def _assert_refused(folder: Path, *words: str, error: type[Exception] = RefusedModelError) -> None:
    with pytest.raises(error) as caught:
        open_model(folder)
    for word in words:
        assert word in str(caught.value)


# --- Good folders ---


@pytest.mark.parametrize("model_class", [VJEPAModel, VJEPAForPreTraining, VJEPAForVideoClassification])
@pytest.mark.parametrize("shard_size", ["50GB", "200KB"])
def test_folders_of_the_family_pass(small_config, tmp_path, model_class, shard_size):
    small_config.num_pooler_layers = 2
    model_class(small_config).save_pretrained(tmp_path, max_shard_size=shard_size)
    assert check_folder(tmp_path).hidden_size == 48
    assert open_model(tmp_path).model.config.hidden_size == 48


def test_half_precision_folder_passes(small_config, tmp_path):
    VJEPAModel(small_config).to(torch.bfloat16).save_pretrained(tmp_path)
    assert open_model(tmp_path).model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {
            "hidden_size": 48,
            "num_attention_heads": 4,
            "qkv_bias": False,
            "mlp_ratio": 2.3,
            "num_pooler_layers": 3,
            "num_labels": 7,
            "pred_hidden_size": 24,
            "pred_num_attention_heads": 4,
            "pred_num_mask_tokens": 5,
            "in_chans": 1,
            "frames_per_clip": 6,
        },
        {"position_embedding": "rotary_tiled", "num_pooler_layers": 4, "num_pooler_heads": 8, "mlp_ratio": 48 / 11},
        {
            "position_embedding": "rotary",
            "image_tokenizer": True,
            "modality_embeddings": True,
            "feature_levels": [5, 11, 17, 23],
            "pred_num_feature_levels": 4,
            "pred_predicts_context": True,
        },
        {"position_embedding": "rotary", "feature_levels": [11, 23], "pred_output_size": 1664},
    ],
)
def test_counted_numbers_are_those_of_the_built_model(fields):
    config = VJEPAConfig(**fields)
    with torch.device("meta"):
        states = VJEPAModel(config).state_dict() | VJEPAForVideoClassification(config).state_dict()
    counts = dict.fromkeys(("encoder", "predictor", "head"), 0)
    for name, tensor in states.items():
        part = name.split(".")[0]
        counts["head" if part in ("pooler", "classifier") else part] += tensor.numel()
    assert count_elements(config) == counts


@pytest.mark.parametrize("name", MODELS)
def test_registered_models_pass_with_weights_of_two_bytes_a_number(name):
    config = MODELS[name].config()
    counts = count_elements(config)
    check_size(config, counts["encoder"] + counts["predictor"], name)


# --- Sizes ---


ABSURD = [
    {"hidden_size": 2**20, "num_attention_heads": 2**10},
    {"pred_hidden_size": 2**20, "pred_num_attention_heads": 2**10},
    {"crop_size": 2**20},
    {"frames_per_clip": 2**30},
    {"num_hidden_layers": 10**6},
    {"pred_num_hidden_layers": 10**6},
    {"num_pooler_layers": 10**6},
    {"mlp_ratio": 1e6},
    {"tubelet_size": 2**20, "frames_per_clip": 2**21},
    {"hidden_size": 10**30},
    {"crop_size": 10**400},
    {"num_labels": 10**12},
    {"num_labels": -1},
]


@pytest.mark.parametrize("fields", ABSURD, ids=lambda fields: "-".join(fields))
def test_absurd_sizes_are_refused_before_a_layer_is_built(folder, monkeypatch, fields):
    _edit(folder / "config.json", **fields)
    for place in (safety, loading):
        monkeypatch.setattr(place, "VJEPAModel", None)
    _assert_refused(folder, str(folder))


def test_refused_size_is_given_with_what_the_weights_hold(folder):
    _edit(folder / "config.json", hidden_size=2**20, num_attention_heads=2**10)
    _assert_refused(folder, "2.64e+13 numbers (1.06e+05 GB in float32)", "hold 9.43e+04")


def test_configuration_of_another_size_than_the_weights_is_refused_by_tensor(folder):
    _edit(folder / "config.json", hidden_size=96)
    _assert_refused(folder, "do not fit its configuration", "norm1.weight' is (48,) of F32, but must be (96,)")
    _edit(folder / "config.json", hidden_size=48, num_hidden_layers=3)
    _assert_refused(folder, "12 tensors", "'encoder.layer.2.norm1.weight' is missing")
    _edit(folder / "config.json", num_hidden_layers=1)
    _assert_refused(folder, "12 tensors", "'encoder.layer.1.attention.proj.bias' is left over")


def test_quantised_weights_of_other_layers_are_refused(folder):
    _edit(folder / "config.json", quantization_config={"quant_method": "torchao"}, num_hidden_layers=1)
    with pytest.raises(RefusedModelError, match=r"'encoder\.layer\.1' is left over"):
        check_folder(folder)
    _edit(folder / "config.json", num_hidden_layers=2)
    assert check_folder(folder).num_hidden_layers == 2


def test_released_file_is_compared_with_the_size_of_its_configuration(tmp_path, small_config):
    file = tmp_path / "small.pth.tar"
    export_original_checkpoint(VJEPAForPreTraining(small_config), file)
    config = VJEPAConfig(**{**small_config.to_diff_dict(), "hidden_size": 2**20, "num_attention_heads": 2**10})
    (tmp_path / "config.json").write_text(config.to_json_string())
    for given in (config, tmp_path, tmp_path / "config.json"):
        with pytest.raises(RefusedModelError, match=r"small\.pth\.tar describes a model of 2\.64e\+13 numbers"):
            resolve_config(file, given)
    assert resolve_config(file, small_config) is small_config


# --- Configurations ---


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[]", "holds a list"),
        (b"[" * 100_000, "no JSON"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "levels deep"),
        (b'{"hidden_size": ' + b"9" * 10_000 + b"}", "no JSON"),
        (b'{"hidden_size": NaN}', "no configuration of V-JEPA"),
        (b'{"hidden_size": "wide"}', "no configuration of V-JEPA"),
        (b'{"hidden_size": -64}', "hidden_size is -64"),
        (b'{"model_type": "bert"}', "'bert'"),
        (b'{"id2label": [1, 2]}', "id2label"),
        (b'{"dtype": 32}', "dtype = 32"),
        (b'{"to_dict": 1}', "part of the class"),
        (b'{"sub_configs": {"a": 1}}', "part of the class"),
        (b'{"base_model_tp_plan": ["a"]}', "no model of the family needs"),
    ],
)
def test_configuration_that_is_none_is_refused_and_named(tmp_path, content, words):
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(RefusedModelError) as caught:
        read_config(file)
    assert words in str(caught.value)
    assert str(file) in str(caught.value)


def test_json_of_any_size_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(safety, "MAX_JSON_BYTES", 500)
    _assert_refused(folder, "video_preprocessor_config.json", "at most 500")


def test_processor_with_an_unknown_option_is_refused_and_named(folder):
    _edit(folder / "video_preprocessor_config.json", crop_sice=3)
    _assert_refused(folder, "video_preprocessor_config.json", "crop_sice")


def test_folder_without_a_configuration_is_refused(folder):
    (folder / "config.json").unlink()
    _assert_refused(folder, "no file named config.json", error=FileNotFoundError)


# --- Weights ---


def _with_header(file: Path, change) -> None:
    """Write a safetensors file again with a changed header; its tensors' bytes stay."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def _first(header: dict) -> dict:
    return next(entry for name, entry in header.items() if name != "__metadata__")


def _overlap(header: dict) -> None:
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    size = entries[0]["data_offsets"][1] - entries[0]["data_offsets"][0]
    other = next(e for e in entries[1:] if e["data_offsets"][1] - e["data_offsets"][0] == size)
    other["data_offsets"] = list(entries[0]["data_offsets"])


def _outside(header: dict) -> None:
    last = max((e for name, e in header.items() if name != "__metadata__"), key=lambda e: e["data_offsets"][1])
    last["data_offsets"][1] += 4000
    last["shape"] = [(last["data_offsets"][1] - last["data_offsets"][0]) // 4]


def _other_shape(header: dict) -> None:
    _first(header)["shape"] = [10**9, 10**9]


def _overflowing_shape(header: dict) -> None:
    _first(header)["shape"] = [2**40, 2**40]


@pytest.mark.parametrize("change", [_overlap, _outside, _other_shape, _overflowing_shape])
def test_header_that_lies_is_refused_with_its_file(folder, change):
    file = folder / "model.safetensors"
    _with_header(file, change)
    _assert_refused(folder, str(file), "damaged, incomplete or no safetensors file")


@pytest.mark.parametrize("kept", [0, 4, 8, 1000, -1])
def test_truncated_weights_are_refused_with_their_file(folder, kept):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    _assert_refused(folder, str(file), "fetch it again")


@pytest.mark.parametrize("length", [2**63, 2**40, 10**9, 10_000_000])
def test_header_longer_than_the_file_is_refused(folder, length):
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    _assert_refused(folder, str(file))


def test_truncated_shard_is_refused_and_named(sharded_folder):
    shard = sorted(sharded_folder.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-100])
    _assert_refused(sharded_folder, str(shard))


def test_missing_shard_is_named(sharded_folder):
    shard = sorted(sharded_folder.glob("*.safetensors"))[-1]
    shard.unlink()
    _assert_refused(sharded_folder, shard.name, error=FileNotFoundError)


def test_missing_tensor_is_never_made_up(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.layer.1.mlp.fc1.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    _assert_refused(folder, "'encoder.layer.1.mlp.fc1.weight' is missing")


def test_integers_are_no_weights(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.layernorm.weight"] = torch.ones(48, dtype=torch.int64)
    save_file(tensors, file, metadata={"format": "pt"})
    _assert_refused(folder, "'encoder.layernorm.weight' is (48,) of I64")


def test_stored_tensors_are_those_of_the_file(folder):
    file = folder / "model.safetensors"
    stored = read_stored_tensors(file)
    assert {name: tensor.shape for name, tensor in stored.items()} == {
        name: tuple(tensor.shape) for name, tensor in load_file(file).items()
    }
    assert {tensor.dtype for tensor in stored.values()} == {"F32"}


# --- Names that leave the folder ---


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "a/../../b", "/etc/passwd", "C:\\b", "\\\\host\\b", "..\\b", "", "a\0b"]
)
def test_names_that_leave_the_folder_are_refused(name):
    with pytest.raises(RefusedModelError, match="leads out of its folder"):
        check_name(name, "somewhere")


@pytest.mark.parametrize("name", ["model.safetensors", "a/b.safetensors", "..hidden", "a..b"])
def test_names_within_the_folder_pass(name):
    check_name(name, "somewhere")


def test_index_that_names_files_outside_is_refused(sharded_folder, tmp_path):
    index = sharded_folder / "model.safetensors.index.json"
    shards = json.loads(index.read_text())["weight_map"]
    victim = sorted(set(shards.values()))[0]
    shutil.copy(sharded_folder / victim, tmp_path / victim)  # a good file: only its place is wrong
    for name in (f"../{victim}", str(tmp_path / victim)):
        _edit(index, weight_map={key: name if shard == victim else shard for key, shard in shards.items()})
        _assert_refused(sharded_folder, "leads out of its folder", str(index))
    _edit(index, weight_map=dict.fromkeys(shards, "pytorch_model.bin"))
    _assert_refused(sharded_folder, "from .safetensors alone")


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 1}, {"a": ["b"]}])
def test_index_without_a_map_is_refused(sharded_folder, weight_map):
    _edit(sharded_folder / "model.safetensors.index.json", weight_map=weight_map)
    _assert_refused(sharded_folder, "weight_map")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "video_preprocessor_config.json"])
def test_link_out_of_the_folder_is_refused_and_one_within_is_not(folder, tmp_path, name):
    shutil.move(folder / name, folder / "real")
    (folder / name).symlink_to("real")
    open_model(folder)
    (folder / name).unlink()
    shutil.move(folder / "real", tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    _assert_refused(folder, name, "is a link to", str(tmp_path / "outside"))


def test_folder_behind_a_link_passes(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert open_model(tmp_path / "link").model.config.hidden_size == 48


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipe_in_the_place_of_a_file_does_not_hang(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    _assert_refused(folder, "no file named model.safetensors", error=FileNotFoundError)


# --- Repositories of the Hub, as the cache has them ---


@pytest.fixture
def repository(folder, tmp_path, monkeypatch) -> Path:
    """A snapshot of `someone/small` in the cache, whose files are links to blobs; the mode is offline."""
    cache = tmp_path / "hub"
    snapshot = cache / "models--someone--small" / "snapshots" / ("a" * 40)
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        shutil.copy(file, blobs / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob-{file.name}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_repository_opens_from_the_caches_blobs_under_its_name(repository):
    opened = open_model("someone/small")
    assert opened.name == opened.model.name_or_path == opened.model.config.name_or_path == "someone/small"
    assert opened.weights == "from the Hub repository someone/small"
    assert opened.processor.crop_size["height"] == 32


def test_repository_is_checked_as_a_folder_is(repository, tmp_path):
    blob = repository.parents[1] / "blobs" / "blob-model.safetensors"
    good = blob.read_bytes()
    blob.write_bytes(good[:-1])
    _assert_refused("someone/small", "model.safetensors", "incomplete")
    shutil.move(blob, tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(good)
    _assert_refused("someone/small", "is a link to")


def test_index_of_a_repository_asks_for_no_file_outside(repository, monkeypatch):
    (repository / "model.safetensors").unlink()
    (repository / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../../secret.safetensors"}}')
    asked = []
    fetch = safety._fetch
    monkeypatch.setattr(
        safety, "_fetch", lambda name, file, revision: asked.append(file) or fetch(name, file, revision)
    )
    _assert_refused("someone/small", "leads out of its folder")
    assert asked == ["config.json"]


def test_repository_that_is_not_in_the_cache_is_an_oserror(repository):
    with pytest.raises(OSError, match="someone/other"):
        open_model("someone/other")


# --- Code ---


def test_code_of_a_folder_is_never_imported(folder, marker):
    for name in ("modeling_vjepa.py", "configuration_vjepa.py", "video_processing_vjepa.py", "evil.py"):
        (folder / name).write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    classes = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoVideoProcessor": "evil.Processor"}
    for name in ("config.json", "video_preprocessor_config.json"):
        _edit(folder / name, auto_map=classes)
    model = open_model(folder).model
    assert type(model) is VJEPAModel
    assert not marker.exists()
    assert not [name for name in sys.modules if name.endswith("evil")]


@pytest.mark.parametrize("place", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("value", ["someone/kernel", "paged|someone/kernel", {"": "someone/kernel"}])
def test_attention_kernels_of_a_repository_are_refused(folder, place, value):
    _edit(folder / "config.json", **{place: value})
    _assert_refused(folder, place, "set_attn_implementation")


def test_other_names_of_weights_are_refused(folder):
    _edit(folder / "config.json", transformers_weights="../model.safetensors")
    _assert_refused(folder, "transformers_weights = '../model.safetensors'")


def test_adapter_does_not_lead_to_another_model(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    _assert_refused(folder, "adapter_config.json", "merge_and_unload")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickle_in_the_place_of_safetensors_is_never_read(folder, marker, name):
    (folder / "model.safetensors").unlink()
    torch.save({"encoder.layernorm.weight": _Malicious(marker)}, folder / name)
    _assert_refused(folder, "are pickles", "as safetensors", error=FileNotFoundError)
    assert not marker.exists()


def test_pickles_beside_safetensors_are_never_read(folder, marker):
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(_Malicious(marker)))
    open_model(folder)
    assert not marker.exists()


def test_pickle_under_the_name_of_safetensors_is_never_read(folder, marker):
    (folder / "model.safetensors").write_bytes(pickle.dumps(_Malicious(marker)))
    _assert_refused(folder, "no safetensors file")
    assert not marker.exists()


@pytest.mark.parametrize("is_archive", [True, False])
def test_released_file_with_code_is_refused_by_the_loader(tmp_path, small_config, marker, is_archive):
    file = tmp_path / "evil.pth.tar"
    torch.save({"target_encoder": _Malicious(marker)}, file, _use_new_zipfile_serialization=is_archive)
    for config in (None, small_config):
        with pytest.raises(ConversionError, match="could run code"):
            open_model(file, config=config)
    assert not marker.exists()
