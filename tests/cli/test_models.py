import json
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from vjepa_hub.cli import app
from vjepa_hub.hub.cache import list_cached
from vjepa_hub.hub.conversion import CONVERTER_VERSION
from vjepa_hub.hub.loading import find_cached
from vjepa_hub.hub.registry import MODELS


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.delenv("VJEPA_HUB_BASE_URL", raising=False)
    return folder


def write(file: Path, content: str | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def write_snapshot(folder: Path, model_type: str = "vjepa") -> Path:
    config = json.dumps({"model_type": model_type})
    write(folder / "config.json", config)
    write(folder / "model.safetensors", b"\0" * (3_000_000 - len(config)))
    return folder


def run_list(*arguments: str):
    return CliRunner().invoke(app, ["list", *arguments], env={"COLUMNS": "250", "NO_COLOR": "1"})


def test_every_model_is_listed_with_licence_address_and_whether_its_weights_are_there():
    result = run_list()
    assert result.exit_code == 0, result.output
    for entry in MODELS.values():
        row = next(line for line in result.output.splitlines() if line.split()[:1] == [entry.name])
        assert entry.description in row
        assert row.split()[-2:] == [entry.license, "download" if entry.checkpoint else "bundled"]
        assert entry.checkpoint is None or entry.checkpoint in result.output
    assert "no model of the family" in result.output


def test_json_holds_the_registry_and_what_is_cached(cache):
    current = cache / "models--vjepa_hub--vjepa-vitl16" / "snapshots" / f"converter-{CONVERTER_VERSION}"
    write_snapshot(current)
    result = run_list("--json")
    assert result.exit_code == 0, result.output
    listed = json.loads(result.stdout)
    assert [row["name"] for row in listed["models"]] == list(MODELS)
    assert listed["models"][0]["checkpoint"] == MODELS["vjepa-vitl16"].checkpoint
    assert [row["cached"] for row in listed["models"][:2]] == [str(current), None]
    assert listed["cache"] == str(cache)
    assert listed["cached"] == [
        {"name": "vjepa-vitl16", "state": "converted", "path": str(current), "num_bytes": 3_000_000}
    ]


def test_folder_that_loading_would_use_is_the_one_called_converted(cache):
    folder = cache / "models--vjepa_hub--vjepa-vith16-k400" / "snapshots"
    for version in ("converter-0", f"converter-{CONVERTER_VERSION}"):
        write_snapshot(folder / version)
    states = {item.path: item.state for item in list_cached()}
    assert states.pop(find_cached("vjepa-vith16", "k400")) == "converted"
    assert states == {folder / "converter-0": "converted by another version"}
    result = run_list()
    assert "vjepa-vith16-k400" in result.output
    assert "3.0 MB" in result.output


def test_downloads_are_listed_as_unfinished_or_kept(cache):
    folder = cache / "models--vjepa_hub--vjepa-vitl16"
    write(folder / "blobs" / "vitl16.pth.tar.incomplete", b"12345")
    write(folder / "kept" / "vitl16.pth.tar", b"123")
    found = {item.state: (item.name, item.path.name, item.num_bytes) for item in list_cached()}
    assert found == {
        "download unfinished": ("vjepa-vitl16", "vitl16.pth.tar.incomplete", 5),
        "download kept": ("vjepa-vitl16", "vitl16.pth.tar", 3),
    }


def test_hub_repositories_of_the_family_are_listed_and_others_never(cache):
    ours = cache / "models--someone--a-vjepa"
    blob = write(ours / "blobs" / "abc", json.dumps({"model_type": "vjepa"}))
    snapshot = ours / "snapshots" / "1234"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to(blob)
    write_snapshot(cache / "models--someone--a-bert" / "snapshots" / "5678", model_type="bert")
    write(cache / "models--someone--broken" / "snapshots" / "9" / "config.json", "{")
    found = [(item.name, item.state, item.path, item.num_bytes) for item in list_cached()]
    assert found == [("someone/a-vjepa", "from the Hub", snapshot, blob.stat().st_size)]


def test_mirror_is_the_address_that_is_shown(monkeypatch):
    monkeypatch.setenv("VJEPA_HUB_BASE_URL", "https://mirror.example.org/jepa")
    assert "https://mirror.example.org/jepa/vitl16/vitl16.pth.tar" in run_list().output
    monkeypatch.setenv("VJEPA_HUB_BASE_URL", "mirror")
    result = run_list()
    assert result.exit_code == 2
    assert "VJEPA_HUB_BASE_URL" in result.output


def test_cache_that_does_not_exist_yet_is_empty(cache):
    cache.rmdir()
    assert list_cached() == []
    assert run_list().exit_code == 0
