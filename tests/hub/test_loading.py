import os
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import close_session, constants, scan_cache_dir
from safetensors.torch import load_file

import vjepa_hub
from tests.conftest import REFERENCE
from tests.forked import call_in_processes
from tests.hub.test_download import FileServer
from tests.reference_family import GIVEN, TOLD, reference_file
from tests.reference_family import forward_case as family_case
from vjepa_hub import VJEPAForPreTraining, VJEPAForVideoClassification, VJEPAModel, VJEPAVideoProcessor
from vjepa_hub.evaluation.encoders.opening import build_untrained
from vjepa_hub.hub import download, loading
from vjepa_hub.hub.class_names import UNCERTAIN
from vjepa_hub.hub.download import DownloadError
from vjepa_hub.hub.loading import find_cached, load_classifier, load_untrained, open_model, resolve_config
from vjepa_hub.hub.registry import MODELS, RELEASE_ADDRESS, RELEASE_ADDRESS_2, ModelEntry, download_address

TINY, TINY_FILE = "vjepa-reference", "/tiny/tiny.pth.tar"
TINY_FIELDS = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "crop_size": 64,
    "frames_per_clip": 8,
    "pred_hidden_size": 40,
    "pred_num_hidden_layers": 2,
    "pred_num_attention_heads": 4,
}
TINY_ENTRY = ModelEntry(
    name=TINY,
    description="the tiny model of the reference cases",
    fields=TINY_FIELDS,
    checkpoint=f"{RELEASE_ADDRESS}tiny/tiny.pth.tar",
    probes={"k400": f"{RELEASE_ADDRESS}tiny/k400-probe.pth.tar"},
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


@pytest.fixture
def server(cache, monkeypatch):
    """A mirror with the reference model as a released file, which the registry knows."""
    monkeypatch.setitem(MODELS, TINY, TINY_ENTRY)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(download, "_NUM_HEAD_RETRIES", 1)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    with FileServer() as server:
        server.files[TINY_FILE] = (REFERENCE / "official_tiny.pth.tar").read_bytes()
        server.files["/tiny/k400-probe.pth.tar"] = (REFERENCE / "official_tiny_probe.pth.tar").read_bytes()
        monkeypatch.setenv("VJEPA_HUB_BASE_URL", server.address)
        yield server
    close_session()


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def _gets(server: FileServer) -> list[str]:
    return [path for method, path, _ in server.requests if method == "GET"]


def _assert_reference_features(model: VJEPAModel, forward_case) -> None:
    features = model.get_vision_features(forward_case["pixel_values_videos"])
    torch.testing.assert_close(features, forward_case["target_encoder.features"], rtol=0, atol=1e-5)


def test_opening_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    vjepa_hub.load("vjepa-vit-tiny")
    build_untrained("vjepa-vit-tiny", seed=4)
    assert torch.equal(torch.rand(2), expected)


def test_released_file_opens_as_its_target_encoder(reference_config, forward_case, tmp_path):
    reference_config.save_pretrained(tmp_path)
    for config in (reference_config, tmp_path / "config.json", tmp_path):
        opened = open_model(REFERENCE / "official_tiny.pth.tar", config=config)
        features = opened.model.get_vision_features(forward_case["pixel_values_videos"])
        torch.testing.assert_close(features, forward_case["target_encoder.features"], rtol=0, atol=1e-5)
        assert opened.processor.crop_size["height"] == 64
        assert opened.is_trained
        assert "official_tiny.pth.tar" in opened.weights


def test_released_file_of_no_registered_architecture_asks_for_its_configuration():
    with pytest.raises(ValueError, match="none of the released architectures"):
        open_model(REFERENCE / "official_tiny.pth.tar")


def test_folder_opens_with_its_own_processor(small_config, tmp_path, caplog):
    VJEPAModel(small_config).save_pretrained(tmp_path)
    processor = open_model(tmp_path).processor
    assert (processor.size["shortest_edge"], processor.num_frames) == (36, small_config.frames_per_clip)
    assert "has no video_preprocessor_config.json" in caplog.text
    VJEPAVideoProcessor(crop_size=32, size={"shortest_edge": 40}).save_pretrained(tmp_path)
    opened = open_model(str(tmp_path), dtype="bfloat16")
    assert opened.processor.size["shortest_edge"] == 40
    assert opened.model.dtype == torch.bfloat16
    assert not opened.model.training


def test_processor_of_a_name_or_a_folder_is_that_of_its_model(server, small_config, tmp_path):
    VJEPAModel(small_config).save_pretrained(tmp_path)
    VJEPAVideoProcessor(crop_size=32, num_frames=4, frame_step=3).save_pretrained(tmp_path)
    for name in ("vjepa-vit-tiny", tmp_path):
        assert vjepa_hub.load_processor(name).to_dict() == open_model(name).processor.to_dict()
    before = vjepa_hub.load_processor(TINY).to_dict()
    assert not server.requests
    after = open_model(TINY).processor.to_dict()
    assert vjepa_hub.load_processor(TINY).to_dict() == after == {**before, "auto_map": after["auto_map"]}
    with pytest.raises(KeyError, match=r"'vjepa-tiny' is neither.*vjepa-vit-tiny"):
        vjepa_hub.load_processor("vjepa-tiny")


def test_pretraining_folder_opens_as_its_target_encoder(small_config, tmp_path):
    model = VJEPAForPreTraining(small_config)
    model.target_encoder.layernorm.weight.data.fill_(2)
    model.save_pretrained(tmp_path)
    assert torch.equal(open_model(tmp_path).model.encoder.layernorm.weight, torch.full((48,), 2.0))


def test_bad_names_raise_with_what_there_is(small_config, tmp_path):
    with pytest.raises(KeyError, match=r"'vjepa-tiny' is neither.*vjepa-vit-tiny"):
        open_model("vjepa-tiny")
    with pytest.raises(ValueError, match="only a released file"):
        open_model("vjepa-vit-tiny", config=small_config)
    VJEPAModel(small_config).save_pretrained(tmp_path)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        open_model(tmp_path)


def test_released_name_is_downloaded_converted_and_described(server, cache, forward_case, caplog):
    opened = open_model(TINY)
    _assert_reference_features(opened.model, forward_case)
    assert opened.is_trained
    assert opened.processor.crop_size["height"] == 64
    assert not opened.model.training
    assert opened.weights == (
        "target encoder of the released file tiny.pth.tar, converter version 1 "
        "from https://dl.fbaipublicfiles.com/jepa/tiny/tiny.pth.tar"
    )
    assert f"the weights of {TINY} are under CC BY-NC 4.0" in caplog.text
    assert find_cached(TINY) == cache / f"models--vjepa_hub--{TINY}" / "snapshots" / "converter-1"
    assert {"model.safetensors", "config.json", "video_preprocessor_config.json"} <= _files(find_cached(TINY))


@pytest.mark.parametrize("load_model", [partial(vjepa_hub.load, TINY), partial(load_classifier, TINY, "k400")])
def test_weights_are_spread_by_a_device_map_in_the_number_format_asked_for(server, cache, load_model):
    model = load_model(device_map={"": "meta"}, dtype="bfloat16")
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match=r"device is 'cpu' and device_map 'auto'; give one"):
        load_model(device="cpu", device_map="auto")


def test_device_map_for_a_released_file_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"device_map .*official_tiny\.pth\.tar.*vjepa-hub convert"):
        vjepa_hub.load(REFERENCE / "official_tiny.pth.tar", device_map="auto")


@torch.no_grad()
def test_released_probe_of_v_jepa_2_has_its_own_clip_heads_and_blocks(server, monkeypatch, caplog):
    fields = {**GIVEN["v2"], **TOLD["v2"]}
    own = {"num_pooler_layers": 4, "num_pooler_heads": 4, "frames_per_clip": 4}
    files = {"tiny-2.pt": "official_tiny.pt", "evals/ssv2-tiny.pt": "official_tiny_probe_4_heads.pt"}
    for address, file in files.items():
        server.files[f"/{address}"] = reference_file("v2", file).read_bytes()
    entry = ModelEntry(
        name="vjepa2-tiny",
        description="",
        fields=fields,
        checkpoint=f"{RELEASE_ADDRESS_2}tiny-2.pt",
        probes={"ssv2": f"{RELEASE_ADDRESS_2}evals/ssv2-tiny.pt"},
        probe_fields={"ssv2": own},
        license="mit",
    )
    monkeypatch.setitem(MODELS, entry.name, entry)
    classifier = load_classifier(entry.name, "ssv2")
    assert {name: getattr(classifier.config, name) for name in own} == own
    clip, recorded = family_case("v2")["pixel_values_videos"], load_file(reference_file("v2", "probe.safetensors"))
    torch.testing.assert_close(classifier(clip).logits, recorded["four_heads.logits"], rtol=0, atol=2e-5)
    assert "the weights of vjepa2-tiny are under the MIT licence" in caplog.text
    clips = [VJEPAVideoProcessor.from_pretrained(find_cached(entry.name, dataset)) for dataset in (None, "ssv2")]
    assert [(found.num_frames, found.fps, found.frame_step) for found in clips] == [(8, 4, None), (4, None, 4)]


def test_released_file_that_two_models_fit_is_that_of_its_name_or_refused(monkeypatch, tmp_path):
    for size in (64, 96):
        name, file = f"vjepa2-tiny-{size}", f"{RELEASE_ADDRESS_2}tiny-{size}.pt"
        fields = {**GIVEN["v2"], **TOLD["v2"], "crop_size": size}
        entry = ModelEntry(name=name, description="", fields=fields, checkpoint=file, probes={}, license="mit")
        monkeypatch.setitem(MODELS, name, entry)
    for file in ("tiny-96.pt", "renamed.pt"):
        (tmp_path / file).symlink_to(reference_file("v2"))
    assert resolve_config(tmp_path / "tiny-96.pt", None).crop_size == 96
    with pytest.raises(ValueError, match=r"renamed\.pt fits vjepa2-tiny-64 and vjepa2-tiny-96.*--model NAME"):
        resolve_config(tmp_path / "renamed.pt", None)


def test_probe_without_its_protocol_is_refused_with_the_reason_before_a_download():
    with pytest.raises(ValueError, match=r"'vjepa2-vitl16' for 'ek100'.*anticipation.*Load another: ssv2, diving48"):
        load_classifier("vjepa2-vitl16", "ek100")


def test_second_load_asks_nothing_and_works_offline_with_the_licence_again(server, cache, monkeypatch, caplog):
    first = vjepa_hub.load(TINY)
    server.requests.clear()
    caplog.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    second = vjepa_hub.load(TINY)
    assert server.requests == []
    assert "CC BY-NC 4.0" in caplog.text
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_download_is_deleted_unless_it_is_to_be_kept(server, cache):
    open_model(TINY)
    assert not {name for name in _files(cache) if ".pth.tar" in name}
    shutil.rmtree(cache)
    open_model(TINY, keep_download=True)
    kept = cache / f"models--vjepa_hub--{TINY}" / "kept" / "tiny.pth.tar"
    assert kept.read_bytes() == server.files[TINY_FILE]
    assert {name for name in _files(cache) if ".pth.tar" in name} == {"tiny.pth.tar"}


@pytest.mark.parametrize("is_kept", [True, False])
def test_new_converter_version_converts_again_and_downloads_only_what_was_not_kept(
    server, cache, monkeypatch, is_kept
):
    open_model(TINY, keep_download=is_kept)
    monkeypatch.setattr(loading, "CONVERTER_VERSION", 2)
    assert find_cached(TINY) is None
    assert "converter version 2" in open_model(TINY).weights
    assert find_cached(TINY).name == "converter-2"
    assert _gets(server) == [TINY_FILE] * (1 if is_kept else 2)
    monkeypatch.setattr(loading, "CONVERTER_VERSION", 3)
    open_model(TINY)
    assert _gets(server) == [TINY_FILE] * (1 if is_kept else 3)  # what was kept stays, though not asked for again


def test_offline_without_a_cache_names_address_and_remedy(server, cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match=rf"{server.address}tiny/tiny.pth.tar: the mode is offline .*Unset"):
        open_model(TINY)
    monkeypatch.delenv("VJEPA_HUB_BASE_URL")
    with pytest.raises(OSError, match=r"https://dl\.fbaipublicfiles\.com/jepa/vitl16/vitl16\.pth\.tar"):
        vjepa_hub.load("vjepa-vitl16")
    assert server.requests == []


def test_broken_download_goes_on_at_the_next_call(server, cache, monkeypatch, forward_case):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    server.break_after, server.always_breaks = [1_000_000, 0], True
    with pytest.raises(DownloadError, match="1000000 bytes are kept"):
        open_model(TINY)
    assert find_cached(TINY) is None
    server.break_after, server.requests = [], []
    _assert_reference_features(open_model(TINY).model, forward_case)
    assert server.ranges() == ["bytes=1000000-"]


def _cut(content: bytes) -> bytes:
    return content[:-5000]


def _change_one_byte(content: bytes) -> bytes:
    return content[:900_000] + bytes([content[900_000] ^ 1]) + content[900_001:]


def _web_page(content: bytes) -> bytes:
    return b"<!DOCTYPE html><html><body>Sign in to the network</body></html>"


@pytest.mark.parametrize("spoil", [_cut, _change_one_byte, _web_page])
def test_bad_file_that_came_whole_is_never_used_and_is_fetched_anew(server, cache, forward_case, spoil):
    good = server.files[TINY_FILE]
    server.files[TINY_FILE] = spoil(good)
    with pytest.raises(DownloadError, match=rf"{server.address}tiny/tiny.pth.tar sent is not .*call again"):
        open_model(TINY)
    assert find_cached(TINY) is None
    assert _files(cache) <= {"conversion.lock"}
    server.files[TINY_FILE] = good
    _assert_reference_features(open_model(TINY).model, forward_case)


def test_longer_announced_length_and_missing_file_leave_no_model(server, cache):
    server.extra_length = 1000
    with pytest.raises(DownloadError, match=r"tiny\.pth\.tar"):
        open_model(TINY)
    server.extra_length, server.status = 0, 404
    with pytest.raises(DownloadError, match="the server answers 404"):
        open_model(TINY)
    assert find_cached(TINY) is None


def test_killed_conversion_is_never_used_and_needs_no_second_download(server, cache, monkeypatch, forward_case):
    def convert_half(file, output_dir, config, **options):
        config.save_pretrained(output_dir)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loading, "convert_file", convert_half)
        with pytest.raises(KeyboardInterrupt):
            open_model(TINY)
    assert find_cached(TINY) is None
    leftover = cache / f"models--vjepa_hub--{TINY}" / "converting" / "converter-1"  # of a kill without clean-up
    leftover.mkdir(parents=True)
    (leftover / "model-00001-of-00002.safetensors").touch()
    _assert_reference_features(open_model(TINY).model, forward_case)
    assert _gets(server) == [TINY_FILE]
    assert "model-00001-of-00002.safetensors" not in _files(cache)


def test_cache_is_one_that_huggingface_hub_lists_and_deletes(server, cache):
    open_model(TINY, keep_download=True)
    info = scan_cache_dir(cache)
    assert not info.warnings
    (repo,) = info.repos
    assert repo.repo_id == f"vjepa_hub/{TINY}"
    (revision,) = repo.revisions
    assert revision.refs == {"main"}  # `hf cache prune` deletes what no reference names
    info.delete_revisions(revision.commit_hash).execute()
    assert find_cached(TINY) is None


def test_probe_is_a_classifier_with_the_released_logits(server, cache, forward_case, caplog):
    classifier = load_classifier(TINY, "k400")
    case = load_file(REFERENCE / "probe.safetensors")
    logits = classifier(forward_case["pixel_values_videos"]).logits
    torch.testing.assert_close(logits, case["logits"], rtol=0, atol=2e-5)
    assert classifier.config.id2label[6] == "LABEL_6"
    assert not classifier.training
    assert "CC BY-NC 4.0" in caplog.text
    assert not {name for name in _files(cache) if ".pth.tar" in name}


@pytest.fixture
def imagenet_server(server, monkeypatch):
    """The mirror with the reference probe under the name of ImageNet's, whose classes are as many as the probe's."""
    monkeypatch.setitem(
        MODELS,
        TINY,
        replace(TINY_ENTRY, probes={"in1k": TINY_ENTRY.probes["k400"], "k400": TINY_ENTRY.probes["k400"]}),
    )
    names = tuple(f"name {number}" for number in range(load_classifier(TINY, "k400").config.num_labels))
    monkeypatch.setattr(loading, "known_class_names", lambda dataset: names if dataset == "in1k" else None)
    return names


def test_probe_on_imagenet_names_its_classes_and_the_others_say_once_why_not(imagenet_server, caplog):
    loading._log_unnamed_classes.cache_clear()
    caplog.clear()
    config = load_classifier(TINY, "in1k").config
    assert tuple(config.id2label[number] for number in range(config.num_labels)) == imagenet_server
    assert config.label2id["name 6"] == 6
    assert "LABEL" not in caplog.text
    for _ in range(2):
        assert load_classifier(TINY, "k400").config.id2label[6] == "LABEL_6"
    assert caplog.text.count("the classes of 'k400' stay LABEL_0") == 1
    assert UNCERTAIN["k400"] in caplog.text


def test_names_of_a_loaded_probe_are_saved_with_it(imagenet_server, tmp_path):
    load_classifier(TINY, "in1k").save_pretrained(tmp_path)
    again = VJEPAForVideoClassification.from_pretrained(tmp_path)
    assert tuple(again.config.id2label.values()) == imagenet_server


def test_probe_with_another_number_of_classes_than_the_names_is_refused(imagenet_server, monkeypatch):
    monkeypatch.setattr(loading, "known_class_names", lambda dataset: imagenet_server[1:])
    with pytest.raises(
        ValueError, match=r"the probe for 'in1k' has (\d+) classes, but the data set has \d+: it is not"
    ):
        load_classifier(TINY, "in1k")


def test_probe_takes_the_encoder_from_the_cache_and_the_next_load_asks_nothing(server, cache, monkeypatch):
    encoder = open_model(TINY).model.encoder
    server.requests.clear()
    classifier = load_classifier(TINY, "k400")
    assert _gets(server) == ["/tiny/k400-probe.pth.tar"]
    for key, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, classifier.encoder.state_dict()[key])
    server.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_classifier(TINY, "k400", dtype="bfloat16").dtype == torch.bfloat16
    assert server.requests == []
    assert find_cached(TINY, "k400").parents[1].name == f"models--vjepa_hub--{TINY}-k400"


def test_probe_that_there_is_not_is_told_with_those_there_are(cache):
    with pytest.raises(KeyError, match=r"'vjepa-vitl16' has no probe for 'k600'; there are: k400, ssv2"):
        load_classifier("vjepa-vitl16", "k600")
    with pytest.raises(KeyError, match=r"'vjepa-vit-tiny' has no probe for 'k400'; there are: none"):
        load_classifier("vjepa-vit-tiny", "k400")


@pytest.mark.parametrize("base", ["https://mirror.org/jepa", "https://mirror.org/jepa/"])
def test_base_address_replaces_that_of_the_release(monkeypatch, base):
    monkeypatch.setenv("VJEPA_HUB_BASE_URL", base)
    address = f"{RELEASE_ADDRESS}vitl16/vitl16.pth.tar"
    assert download_address(address) == "https://mirror.org/jepa/vitl16/vitl16.pth.tar"
    assert download_address("https://elsewhere.org/a.pth.tar") == "https://elsewhere.org/a.pth.tar"


@pytest.mark.parametrize("base", ["/data/jepa", "ftp://mirror.org", "mirror.org/jepa", "https://"])
def test_base_address_that_is_no_web_address_is_refused(server, cache, monkeypatch, base):
    monkeypatch.setenv("VJEPA_HUB_BASE_URL", base)
    with pytest.raises(ValueError, match=rf"VJEPA_HUB_BASE_URL is '{base}', but has to be an http"):
        open_model(TINY)


def test_released_file_of_the_registry_has_its_licence_logged(server, reference_config, caplog):
    open_model(REFERENCE / "official_tiny.pth.tar")
    assert "CC BY-NC 4.0" in caplog.text
    caplog.clear()
    open_model(REFERENCE / "official_tiny.pth.tar", config=reference_config)  # may be anyone's
    assert "CC BY-NC" not in caplog.text


def test_untrained_model_follows_the_global_generator_and_downloads_nothing(server, cache):
    torch.manual_seed(1)
    first = load_untrained(TINY, dtype="bfloat16")
    torch.manual_seed(2)
    second = load_untrained(TINY, dtype=torch.bfloat16)
    kernels = [model.encoder.embeddings.patch_embeddings.projection.weight for model in (first, second)]
    assert kernels[0].dtype == torch.bfloat16
    assert not torch.equal(*kernels)
    assert server.requests == []
    assert not cache.exists()


def load_together(folder: Path) -> None:
    """Loads the reference model by its name in one of two processes, once the other is there."""
    MODELS[TINY] = TINY_ENTRY
    constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = str(folder / "hub"), False
    own, other = (folder / name for name in os.environ["NAMES"].split())
    own.touch()
    for _ in range(6000):
        if other.exists():
            break
        time.sleep(0.01)
    torch.save(vjepa_hub.load(TINY).state_dict(), own.with_suffix(".pt"))


def test_two_processes_at_once_download_once_and_a_third_needs_no_network(server, tmp_path):
    environments = [{"NAMES": "first second"}, {"NAMES": "second first"}]
    assert call_in_processes(load_together, tmp_path, environments=environments) == [0, 0]
    assert _gets(server) == [TINY_FILE]
    folder = tmp_path / "hub" / f"models--vjepa_hub--{TINY}"
    assert {path.name for path in folder.iterdir()} == {"blobs", "refs", "snapshots"}
    server.requests.clear()
    third = vjepa_hub.load(TINY).state_dict()
    assert server.requests == []
    for name in ("first", "second"):
        weights = torch.load(tmp_path / f"{name}.pt")
        assert all(torch.equal(tensor, third[key]) for key, tensor in weights.items())
