import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file, save_file

from tests.hub_server import OWNER_TOKEN, READER_TOKEN, StoredFile
from vjepa_hub import VJEPAForVideoClassification, VJEPAModel, VJEPAVideoProcessor
from vjepa_hub.data.samples import sample_clip_path
from vjepa_hub.publishing.hub_errors import HubAccessError
from vjepa_hub.publishing.publishing import CardOptions, publish
from vjepa_hub.publishing.verification import (
    FAILED,
    PASSED,
    REMARK,
    SKIPPED,
    compare_accuracy,
    find_stated_accuracy,
    run_card_code,
    verify_folder,
    verify_repo,
)

from .test_publishing import record_of_a_probe

ALL_CHECKS = ["hashes", "weights", "processor", "pickles", "remote code", "card"]


@pytest.fixture
def api(hub_server, monkeypatch) -> HfApi:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server has no Xet
    return HfApi(endpoint=hub_server.endpoint, token=OWNER_TOKEN)


@pytest.fixture
def published(api, small_config, tmp_path) -> str:
    """A features model on the server."""
    torch.manual_seed(0)
    small_config.weights_origin = "made for a test"
    processor = VJEPAVideoProcessor(crop_size=small_config.crop_size)
    options = CardOptions(license="apache-2.0")
    return publish(
        VJEPAModel(small_config), "tester/model", processor=processor, api=api, card_options=options
    ).repo_id


@pytest.fixture
def verify(api, tmp_path):
    """`verify(repo_id)`: with a cache of its own."""
    return lambda repo_id, **options: verify_repo(repo_id, api=api, cache_dir=tmp_path / "cache", **options)


@pytest.fixture
def folder(verify, published, tmp_path) -> Path:
    """A copy of the published files, to be damaged."""
    return Path(shutil.copytree(verify(published).folder, tmp_path / "copy"))


def commit(hub_server, **files: bytes) -> None:
    found = hub_server.repositories["tester/model"]
    found.add_commit("main", found.files() | {n: StoredFile.regular(data) for n, data in files.items()}, "by hand")


def states(report) -> dict[str, str]:
    return {check.name: check.state for check in report.checks}


def detail(report, name: str) -> str:
    return next(check.detail for check in report.checks if check.name == name)


def test_what_was_published_passes_every_check(verify, published, hub_server):
    report = verify(published)
    assert states(report) == dict.fromkeys(ALL_CHECKS, PASSED)
    assert report.passed
    assert report.commit == hub_server.repositories[published].resolve("main").oid
    assert "keys and shapes of VJEPAModel" in detail(report, "weights")


def test_a_file_that_was_changed_on_the_way_is_found_by_its_hash(verify, published):
    weights = verify(published).folder / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.resolve().write_bytes(changed)
    report = verify(published)
    assert states(report)["hashes"] == FAILED
    assert "model.safetensors is not what the server has" in detail(report, "hashes")
    assert states(report)["weights"] == PASSED  # its header and shapes are as they were


def test_pickles_are_neither_fetched_nor_needed(verify, published, hub_server):
    commit(hub_server, **{"pytorch_model.bin": b"cos\nsystem\n(S'exit 1'\ntR."})
    report = verify(published)
    assert report.passed
    assert states(report)["pickles"] == REMARK
    assert not (report.folder / "pytorch_model.bin").exists()


def test_file_names_that_lead_out_of_the_folder_are_not_fetched(verify, published, hub_server):
    commit(hub_server, **{"../../outside.txt": b"out"})
    report = verify(published)
    assert not report.passed
    assert "leads out of its folder" in detail(report, "file names")
    assert hub_server.num_requests("resolve") == 0


def test_names_with_signs_of_patterns_arrive_too(verify, published, hub_server):
    commit(hub_server, **{"a[1]*.txt": b"a"})
    assert verify(published).passed


def test_a_private_repository_is_verified_with_its_token_alone(hub_server, published, verify, tmp_path):
    hub_server.repositories[published].is_private = True
    assert verify(published).passed
    stranger = HfApi(endpoint=hub_server.endpoint, token=READER_TOKEN)
    with pytest.raises(HubAccessError, match="the token may not see it"):
        verify_repo(published, api=stranger, cache_dir=tmp_path / "other")


def test_a_revision_that_is_not_there_is_told(verify, published):
    with pytest.raises(HubAccessError, match=r"read tester/model at half: there is no such revision"):
        verify(published, revision="half")


def truncate(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-8])


def drop_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layernorm.weight" if "encoder.layernorm.weight" in tensors else next(iter(tensors))]
    save_file(tensors, folder / "model.safetensors")


def add_tensor(folder):
    save_file(load_file(folder / "model.safetensors") | {"spare": torch.zeros(2)}, folder / "model.safetensors")


def replace_text(name, old, new):
    def change(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("damage", "check", "found"),
    [
        (truncate, "weights", "incomplete"),
        (drop_tensor, "weights", "missing"),
        (add_tensor, "weights", "'spare' is left over"),
        (replace_text("config.json", '"hidden_size": 48', '"hidden_size": 96'), "weights", "do not fit"),
        (replace_text("config.json", '"num_hidden_layers": 2', '"num_hidden_layers": 999999'), "weights", "layers"),
        (replace_text("config.json", '"num_hidden_layers": 2', '"num_hidden_layers": 1'), "weights", "left over"),
        (replace_text("config.json", '"VJEPAModel"', '"Other"'), "weights", "names the class"),
        (lambda folder: (folder / "modeling_vjepa.py").unlink(), "remote code", "modeling_vjepa.py missing"),
        (lambda folder: (folder / "video_preprocessor_config.json").unlink(), "processor", "there is no"),
        (replace_text("video_preprocessor_config.json", '"height": 32', '"height": 64'), "processor", "64 pixels"),
        (lambda folder: (folder / "README.md").unlink(), "card", "there is no README.md"),
        (replace_text("README.md", "library_name: transformers\n", ""), "card", "no library_name"),
        (replace_text("README.md", "import open_model", "import open model"), "card", "does not compile"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_damage_is_found(folder, damage, check, found):
    damage(folder)
    report = verify_folder(folder)
    assert states(report)[check] == FAILED, report.checks
    assert found in detail(report, check)
    assert not report.passed


def test_card_that_a_person_changed_is_a_remark(folder):
    replace_text("README.md", "width 48, 2 layers", "width 1024, 24 layers")(folder)
    report = verify_folder(folder)
    assert states(report)["card"] == REMARK
    assert "changed by a person" in detail(report, "card")
    assert report.passed


def test_card_that_does_not_follow_from_the_configuration_beside_it_is_found(folder):
    replace_text("config.json", '"made for a test"', '"another one"')(folder)
    report = verify_folder(folder)
    assert states(report)["card"] == FAILED
    assert "publish again" in detail(report, "card")


def test_card_that_states_other_numbers_than_the_record_beside_it_is_found(api, small_config, verify, tmp_path):
    run = tmp_path / "probe"
    VJEPAForVideoClassification(small_config).save_pretrained(run / "classifier")
    VJEPAVideoProcessor(crop_size=32).save_pretrained(run / "classifier")
    record_of_a_probe(run)
    publish(run, "tester/probe", api=api, card_options=CardOptions(license="apache-2.0"))
    copy = Path(shutil.copytree(verify("tester/probe").folder, tmp_path / "probe-copy"))
    assert verify_folder(copy).passed
    replace_text("README.md", "value: 50.0", "value: 99.0")(copy)
    report = verify_folder(copy)
    assert states(report)["card"] == FAILED
    assert "99.0" in detail(report, "card")
    assert "50.0" in detail(report, "card")


def test_changed_code_is_a_remark(folder):
    (folder / "modeling_vjepa.py").write_text("print('other')\n")
    report = verify_folder(folder)
    assert states(report)["remote code"] == REMARK
    assert states(report)["hashes"] == SKIPPED
    assert report.passed


def test_the_cards_code_runs_on_the_files_that_were_verified(folder):
    """The name in it is that of the repository, which this machine's Hub does not have."""
    assert run_card_code(verify_folder(folder), sample_clip_path()).state == PASSED
    replace_text("README.md", "from vjepa_hub.hub.loading import open_model", "raise ValueError('broken')")(folder)
    check = run_card_code(verify_folder(folder), sample_clip_path())
    assert (check.state, check.detail) == (FAILED, "ValueError: broken")


def test_code_of_a_model_that_cannot_be_read_is_not_run(folder):
    replace_text("README.md", "opened =", "open('ran', 'w'); opened =")(folder)
    report = replace(verify_folder(folder), config=None)
    assert run_card_code(report, sample_clip_path()).state == SKIPPED


@pytest.mark.parametrize(
    ("stated", "num_correct", "num_videos", "state"),
    [
        (80.0, 40, 50, PASSED),
        (69.5, 40, 50, PASSED),
        (30.0, 40, 50, FAILED),
        (99.0, 40, 50, FAILED),
        (5.0, 0, 10, PASSED),
    ],
)
def test_a_slice_supports_a_stated_accuracy_or_does_not(stated, num_correct, num_videos, state):
    assert compare_accuracy(stated, num_correct, num_videos).state == state


def test_the_stated_accuracy_is_that_of_the_data_set(api, small_config, verify, tmp_path):
    run = tmp_path / "probe"
    VJEPAForVideoClassification(small_config).save_pretrained(run / "classifier")
    VJEPAVideoProcessor(crop_size=32).save_pretrained(run / "classifier")
    record_of_a_probe(run)
    publish(run, "tester/probe", api=api, card_options=CardOptions(license="apache-2.0"))
    report = verify("tester/probe")
    assert report.is_classifier
    assert find_stated_accuracy(report, "val.csv") == 50.0
    assert find_stated_accuracy(report, "renamed.csv") == 50.0  # there is only one
