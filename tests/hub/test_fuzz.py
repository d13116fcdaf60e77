import json
import random
import signal
from pathlib import Path

import pytest
import torch

from tests.damage import MAX_EXTRA_BYTES, VALUES, change_bytes, change_fields, fuzz, little_memory, watched
from tests.hub.test_safety import _Malicious
from vjepa_hub import VJEPAConfig, VJEPAForPreTraining, VJEPAModel, VJEPAVideoProcessor
from vjepa_hub.hub.conversion import convert_original_checkpoint, export_original_checkpoint, find_configs
from vjepa_hub.hub.loading import open_model

CONFIG = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 8,
    "crop_size": 16,
    "frames_per_clip": 4,
    "pred_hidden_size": 8,
    "pred_num_hidden_layers": 1,
    "pred_num_attention_heads": 2,
}


@pytest.fixture(autouse=True)
def quiet(caplog) -> None:
    """No record of what hundreds of cases log."""
    caplog.set_level("ERROR", logger="vjepa_hub")


@pytest.fixture
def folder(tmp_path) -> Path:
    VJEPAModel(VJEPAConfig(**CONFIG)).save_pretrained(tmp_path)
    VJEPAVideoProcessor(crop_size=16).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def released(tmp_path) -> Path:
    file = tmp_path / "model.pth.tar"
    export_original_checkpoint(VJEPAForPreTraining(VJEPAConfig(**CONFIG)), file)
    return file


pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="this system has no alarm against a hang"),
]


def test_the_watch_sees_code_and_the_limits_hold(tmp_path):
    (tmp_path / "evil.py").write_text("x = 1\n")
    with watched(tmp_path) as happened:
        exec(compile("x = 1", str(tmp_path / "evil.py"), "exec"))
    assert happened
    if Path("/proc/self/statm").exists():
        with little_memory(), pytest.raises(RuntimeError, match="memory"):
            torch.ones(MAX_EXTRA_BYTES)
    torch.save(_Malicious(tmp_path / "marker"), tmp_path / "evil.tar")
    with pytest.raises(AssertionError, match="seed 0"):
        fuzz(tmp_path, range(1), lambda rng: None, lambda: exec(compile("1", str(tmp_path / "evil.py"), "exec")))


def test_changed_values_of_a_configuration(folder, seeds):
    file = folder / "config.json"
    fields = json.loads(file.read_text())
    cases = seeds(50)
    num_refused = fuzz(
        folder, cases, lambda rng: file.write_text(change_fields(rng, fields)), lambda: open_model(folder)
    )
    assert len(cases) // 4 < num_refused < len(cases)


def test_changed_bytes_of_a_configuration(folder, seeds):
    file = folder / "config.json"
    good = file.read_bytes()
    fuzz(
        folder,
        seeds(60),
        lambda rng: file.write_bytes(change_bytes(rng, good, len(good))),
        lambda: open_model(folder),
    )


def test_changed_processor(folder, seeds):
    file = folder / "video_preprocessor_config.json"
    good = file.read_bytes()
    fields = json.loads(good)

    def change(rng: random.Random) -> None:
        as_bytes = rng.random() < 0.5
        text = change_bytes(rng, good, len(good)) if as_bytes else change_fields(rng, fields).encode()
        file.write_bytes(text)

    fuzz(folder, seeds(25), change, lambda: open_model(folder))


def test_changed_header_of_safetensors_is_used_only_where_the_weights_stay_the_same(folder, seeds):
    file = folder / "model.safetensors"
    good = file.read_bytes()
    end = 8 + int.from_bytes(good[:8], "little")
    expected = open_model(folder).model.state_dict()

    def use() -> None:
        found = open_model(folder).model.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    num_refused = fuzz(folder, seeds(90), lambda rng: file.write_bytes(change_bytes(rng, good, end)), use)
    assert num_refused > 60


def test_changed_index_of_shards(folder, seeds):
    weights = folder / "model.safetensors"
    names = json.loads(weights.read_bytes()[8 : 8 + int.from_bytes(weights.read_bytes()[:8], "little")])
    weights.rename(folder / "model-00001-of-00001.safetensors")
    index = folder / "model.safetensors.index.json"
    good = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}

    def change(rng: random.Random) -> None:
        content = json.loads(json.dumps(good))
        if rng.random() < 0.5:
            content["weight_map"][rng.choice(list(names))] = rng.choice([*VALUES, "/etc/passwd", "config.json"])
            index.write_text(json.dumps(content))
        else:
            text = json.dumps(content).encode()
            index.write_bytes(change_bytes(rng, text, len(text)))

    fuzz(folder, seeds(50), change, lambda: open_model(folder))


@pytest.mark.parametrize("is_archive", [True, False])
def test_changed_bytes_of_a_released_file(released, seeds, is_archive):
    config = VJEPAConfig(**CONFIG)
    torch.save(torch.load(released, weights_only=True), released, _use_new_zipfile_serialization=is_archive)
    good = released.read_bytes()
    expected = convert_original_checkpoint(released, config).state_dict()

    def change(rng: random.Random) -> None:
        released.write_bytes(change_bytes(rng, good, rng.choice((3000, len(good)))))

    def use() -> None:
        found = convert_original_checkpoint(released, config).state_dict()
        assert not any(tensor.is_meta for tensor in found.values())
        if is_archive:  # it has checksums, which the older format has not
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    assert fuzz(released.parent, seeds(60), change, use) > 45


def test_changed_keys_of_a_released_file(released, seeds):
    config = VJEPAConfig(**CONFIG)
    good = torch.load(released, weights_only=True)
    odd = [*VALUES, torch.zeros(1).expand(10**12), torch.zeros(3).to_sparse(), torch.zeros(2, device="meta"), good]

    def change(rng: random.Random) -> None:
        part = rng.choice(("encoder", "predictor", "target_encoder"))
        content = {**good, part: dict(good[part])}
        key = rng.choice(list(good[part]))
        kind = rng.choice(("rename", "remove", "set", "set", "replace part"))
        if kind == "rename":
            content[part][key[:-1]] = content[part].pop(key)
        elif kind == "remove":
            del content[part][key]
        elif kind == "set":
            content[part][key] = rng.choice(odd)
        else:
            content[part] = rng.choice(odd)
        torch.save(content, released)

    def use() -> None:
        assert find_configs(released, [config]) == []
        convert_original_checkpoint(released, config)

    cases = seeds(25)
    assert fuzz(released.parent, cases, change, use) == len(cases)
