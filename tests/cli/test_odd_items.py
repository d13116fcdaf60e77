"""Every odd entry in one list with good files: all good ones are done, each odd one is listed, and the run ends."""

import json
import os
import shutil
import socket
import time
import zlib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tests.small_recipe import SMALL_RECIPE
from vjepa_hub.cli import app
from vjepa_hub.data import checking, records
from vjepa_hub.data.quarantine import Quarantine
from vjepa_hub.data.samples import sample_clip_path

GOOD = ["12:30:00.mp4", "line\nbreak\u2028.mp4", "s" * 251 + ".mp4", "http:127.0.0.1:9?x.mp4", "plain.mp4"]
TIMEOUT = ["--item-timeout", 2]


def png_of(side: int) -> bytes:
    """A PNG that states so many pixels along each side, and holds none of them."""
    chunks = [b"IHDR" + side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0]), b"IDAT" + zlib.compress(b"")]
    framed = [(len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.fixture
def odd_folder(tmp_path, monkeypatch):
    """A folder of good and odd files, and the cause of each odd one by its name."""
    folder, video = tmp_path / "videos", sample_clip_path()
    folder.mkdir()
    for name in [*GOOD, "hangs.mp4", "below.mp4"]:
        shutil.copy(video, folder / name)
    os.mkfifo(folder / "pipe.mp4")
    monkeypatch.chdir(folder)  # addresses of sockets are short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "dangling.mp4").symlink_to("nowhere.mp4")
    (folder / "device.mp4").symlink_to("/dev/zero")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_bytes(b"no video" * 100)
    (folder / "cut.mp4").write_bytes(Path(video).read_bytes()[:-2000])
    (folder / "below.mp4").unlink()
    hang(monkeypatch)
    return folder, {
        "hangs.mp4": "no new frame for 2 s",
        "pipe.mp4": "no regular file",
        "socket.mp4": "no regular file",
        "loop.mp4": "symbolic links",
        "dangling.mp4": "no such file",
        "device.mp4": "no regular file",
        "empty.mp4": "the file is empty",
        "text.mp4": "cannot open it",
        "cut.mp4": "truncated",
    }


def hang(monkeypatch) -> None:
    """Have the decoder hang on `hangs.mp4`, in the child processes of the check too."""
    open_video = records.open_video

    def open_or_hang(path, **options):
        if str(path).endswith("hangs.mp4"):
            time.sleep(600)
        return open_video(path, **options)

    monkeypatch.setattr(records, "open_video", open_or_hang)
    in_child = (
        "import time, vjepa_hub.data.records as records\nopen_video = records.open_video\n"
        "records.open_video = lambda path, **options: (\n"
        "    time.sleep(600) if str(path).endswith('hangs.mp4') else open_video(path, **options)\n)\nserve()"
    )
    monkeypatch.setattr(checking, "_START_CHILD", checking._START_CHILD.replace("serve()", in_child))


@pytest.fixture
def odd_manifest(odd_folder, tmp_path):
    """A list of these files, with classes in turn and names that no file can have, and the causes."""
    folder, causes = odd_folder
    (folder / "big.png").write_bytes(png_of(14_000))
    causes = causes | {
        "big.png": "",
        "plain.mp4/x.mp4": "not a directory",
        "n" * 300 + ".mp4": "name too long",
        "nul\0.mp4": "null",
        "absent.mp4": "no such file",
    }
    lines = [json.dumps({"path": f"videos/{name}", "label": n % 2}) for n, name in enumerate([*GOOD, *causes])]
    manifest = tmp_path / "list.jsonl"
    manifest.write_text("".join(f"{line}\n" for line in lines))
    return manifest, causes


def run(*arguments: object):
    begin = time.monotonic()
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert time.monotonic() - begin < 240, "silent items were not given up"
    assert result.exit_code == 1, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit), result.exception
    return result


def require_causes(found: dict[str, str], folder: Path, causes: dict[str, str]) -> None:
    """Require that exactly the odd items are listed, each with its cause."""
    assert set(found) == {str(folder / name) for name in causes}
    for name, cause in causes.items():
        assert cause in found[str(folder / name)].lower()


@pytest.mark.parametrize("kind", ["folder", "manifest"])
def test_features_of_all_good_files_are_computed(odd_folder, odd_manifest, labelled_folder, tmp_path, kind):
    source, causes = odd_manifest if kind == "manifest" else odd_folder
    out = tmp_path / "out"
    options = ["--model", labelled_folder / "model", "--output-dir", out, "--no-dense", *TIMEOUT]
    run("features", source, *options)
    lines = (out / "failed.jsonl").read_text().split("\n")[:-1]
    found = {line["video"]: line["error"] for line in map(json.loads, lines)}
    require_causes(found, tmp_path / "videos", causes)
    assert len(list(out.rglob("*.safetensors"))) == len(GOOD)


@pytest.mark.parametrize("kind", ["folder", "manifest"])
def test_check_lists_all_good_files(odd_folder, odd_manifest, tmp_path, kind):
    source, causes = odd_manifest if kind == "manifest" else odd_folder
    run("check-data", source, "--output-dir", tmp_path / "out", "--processes", 1, *TIMEOUT)
    lines = (tmp_path / "out" / "bad.jsonl").read_text().split("\n")[:-1]
    found = {line["path"]: line["cause"] for line in map(json.loads, lines)}
    require_causes(found, tmp_path / "videos", causes)
    good = tmp_path / "out" / ("good-list.jsonl" if kind == "manifest" else "good.txt")
    assert len(good.read_text().split("\n")) - 1 == len(GOOD)


def test_pretraining_shows_all_good_files(odd_manifest, tmp_path):
    manifest, causes = odd_manifest
    recipe = {name: value for name, value in SMALL_RECIPE.items() if name != "synthetic"}
    num_steps = -(-(len(GOOD) + len(causes)) // 4)  # each video once, and what stands in for it
    training = recipe["training"] | {"max_steps": num_steps, "max_bad_share": 1.0, "health_steps": 0}
    recipe = recipe | {"clips": {"frame_step": 2, "max_tries": 100}, "training": training}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    out = tmp_path / "out"
    result = run("pretrain", tmp_path / "recipe.yaml", "--data", manifest, "--output-dir", out, *TIMEOUT)
    found = {entry.video: entry.cause for entry in Quarantine(out / "quarantine.jsonl").read()}
    require_causes(found, tmp_path / "videos", causes)
    assert f"{len(causes)} videos could not be read" in result.output
    assert (out / "model.safetensors").is_file()


def test_probe_is_trained_on_all_good_files(odd_manifest, labelled_folder, tmp_path, caplog):
    manifest, causes = odd_manifest
    options = ["--num-epochs", 1, "--num-workers", 0, "--set", "frame_step=2", "--no-augmentation", *TIMEOUT]
    sets = ["--train", manifest, "--val", manifest, "--output-dir", tmp_path / "out"]
    result = run("probe", labelled_folder / "model", *sets, *options)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["num_unreadable"] == len(causes)
    assert results["selected"]["metrics"]["num_videos"] == len(GOOD) + len(causes)
    assert "could not be read" in result.output
    folder = tmp_path / "videos"
    messages = [record.getMessage() for record in caplog.records if "counted as unreadable" in record.getMessage()]
    found = {
        str(folder / name): next((text for text in messages if f"'{folder / name}'" in text), "missing")
        for name in causes
    }
    require_causes(found, folder, causes)
