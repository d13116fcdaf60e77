import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.forked import call_in_pair
from vjepa_hub.cli import app
from vjepa_hub.core.run_files import RUN_FILE
from vjepa_hub.data.samples import sample_clip_path
from vjepa_hub.features.extraction import load_features
from vjepa_hub.model import VJEPAConfig, VJEPAModel, VJEPAVideoProcessor


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = VJEPAConfig(
        crop_size=32,
        frames_per_clip=4,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        pred_hidden_size=12,
        pred_num_hidden_layers=1,
        pred_num_attention_heads=2,
    )
    VJEPAModel(config).save_pretrained(folder)
    VJEPAVideoProcessor(crop_size=32).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "inputs" / "picture.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    return path


def run_features(*arguments: object):
    return CliRunner().invoke(app, ["features", *map(str, arguments)], env={"COLUMNS": "200", "NO_COLOR": "1"})


def written(folder: Path) -> list[str]:
    """Names of the outputs beside the record of the run, which is always there."""
    assert (folder / RUN_FILE).is_file()
    return sorted(path.name for path in folder.iterdir() if path.name != RUN_FILE)


def test_clips_of_another_size_are_encoded_and_their_cost_is_said_before(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("vjepa_hub.hub.cost.LONGEST_SECONDS", 0)
    sizes = ["--crop-size", 64, "--frames-per-clip", 8]
    result = run_features("--sample", "--model", model_folder, *sizes, "--no-picture", "--output-dir", tmp_path / "o")
    assert result.exit_code == 0, result.output
    features = load_features(next((tmp_path / "o").glob("*.safetensors")))
    assert features.dense.shape[1:] == (4, 4, 4, 24)
    assert f"{features.num_clips} clips of 64 tokens" in result.output
    assert "smaller crop" in result.output.partition("warning: ")[2]
    refused = run_features("--sample", "--model", model_folder, "--crop-size", 40, "--output-dir", tmp_path / "p")
    assert refused.exit_code == 2
    assert "crop_size is 40" in refused.output


def test_features_of_the_sample_clip_need_no_options_but_a_model(model_folder, tmp_path):
    result = run_features("--sample", "--model", model_folder, "--output-dir", tmp_path / "out")
    assert result.exit_code == 0, result.output
    stems = {name.rsplit(".", 1)[0] for name in written(tmp_path / "out")}
    assert len(stems) == 1
    assert {Path(name).suffix for name in written(tmp_path / "out")} == {".safetensors", ".png"}


def test_options_reach_the_extraction(model_folder, tmp_path):
    options = [
        "--window",
        8,
        "--stride",
        20,
        "--clips-per-pass",
        3,
        "--dtype",
        "bfloat16",
        "--no-pooled",
        "--no-picture",
    ]
    result = run_features("--sample", "--model", model_folder, "--output-dir", tmp_path, *options, "--backend", "pyav")
    assert result.exit_code == 0, result.output
    features = load_features(next(tmp_path.glob("*.safetensors")))
    assert features.pooled is None
    assert features.dense.dtype == torch.bfloat16
    assert features.frame_indices[:, 0].tolist()[:3] == [0, 20, 40]
    assert features.frame_indices[0, -1] == 7
    assert not list(tmp_path.glob("*.png"))


def test_without_dense_features_no_picture_is_drawn(model_folder, picture, tmp_path):
    result = run_features(picture, "--model", model_folder, "--output-dir", tmp_path / "out", "--no-dense")
    assert result.exit_code == 0, result.output
    assert written(tmp_path / "out") == ["picture.safetensors"]


def test_default_model_is_a_trained_one(picture, tmp_path):
    result = run_features(picture, "--output-dir", tmp_path / "out", "--no-dense")
    assert result.exit_code == 0, result.output
    metadata = load_features(tmp_path / "out" / "picture.safetensors").metadata
    assert metadata["is_trained"] == "true"
    assert "pretrained by vjepa_hub" in metadata["weights"]
    assert metadata["weights"] in " ".join(result.output.split())


def test_untrained_model_is_called_so_in_the_summary_and_the_file(small_config, picture, tmp_path):
    small_config.weights_origin = "untrained, seed 0"
    VJEPAModel(small_config).save_pretrained(tmp_path / "model")
    result = run_features(picture, "--model", tmp_path / "model", "--output-dir", tmp_path / "out", "--no-dense")
    assert result.exit_code == 0, result.output
    assert "UNTRAINED" in result.output
    assert load_features(tmp_path / "out" / "picture.safetensors").metadata["is_trained"] == "false"


def test_trained_model_is_not_called_untrained(model_folder, picture, tmp_path):
    result = run_features(picture, "--model", model_folder, "--output-dir", tmp_path / "out")
    assert "untrained" not in result.output.lower()


def test_one_bad_file_gives_exit_code_1_and_its_cause_and_the_others_are_written(model_folder, picture, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    result = run_features(bad, picture, "--model", model_folder, "--output-dir", tmp_path / "out", "--no-dense")
    assert result.exit_code == 1
    assert "failed: cannot decode" in result.output
    assert "2 videos: 1 done, 0 done before, 1 failed" in result.output
    assert written(tmp_path / "out") == ["failed.jsonl", "picture.safetensors"]
    bad.unlink()
    again = run_features(picture, "--model", model_folder, "--output-dir", tmp_path / "out", "--no-dense")
    assert (again.exit_code, "1 video: 0 done, 1 done before, 0 failed" in again.output) == (0, True)


def test_folder_and_manifest_are_taken_with_the_tree_of_the_outputs_like_theirs(model_folder, tmp_path):
    for name in ("set/a/one.mp4", "other/two 2.mp4"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(Path(sample_clip_path()).read_bytes())
    (tmp_path / "list.csv").write_text("other/two 2.mp4 7\nset/a/one.mp4 1\n")
    options = ["--manifest", tmp_path / "list.csv", "--model", model_folder, "--output-dir", tmp_path / "out"]
    result = run_features(tmp_path / "set", *options, "--no-dense", "--stride", 60)
    assert result.exit_code == 0, result.output
    files = [path for path in (tmp_path / "out").rglob("*.*") if path.name != RUN_FILE]
    outputs = sorted(path.relative_to(tmp_path / "out").as_posix() for path in files)
    assert outputs == ["a/one.safetensors", "other/two 2.safetensors"]


def test_features_made_with_other_settings_are_replaced_only_with_overwrite(model_folder, picture, tmp_path):
    options = [picture, "--model", model_folder, "--output-dir", tmp_path / "out"]
    assert run_features(*options, "--no-dense").exit_code == 0
    result = run_features(*options)
    message = " ".join(result.output.replace("│", " ").split())
    assert (result.exit_code, "dense is false there and model now" in message, "--overwrite" in message) == (
        2,
        True,
        True,
    )
    assert written(tmp_path / "out") == ["picture.safetensors"]
    assert run_features(*options, "--overwrite").exit_code == 0
    assert written(tmp_path / "out") == ["picture.png", "picture.safetensors"]


def features_in_group(folder: Path, options: list[str]) -> None:
    """The command in one of two processes."""
    with open(folder / f"stdout-{os.environ['RANK']}", "w") as out, contextlib.redirect_stdout(out):
        app(options)


def test_processes_share_the_videos_out_and_a_bad_file_of_one_process_never_stops_the_other(model_folder, tmp_path):
    (tmp_path / "set").mkdir()
    for number in range(3):
        image = np.random.default_rng(number).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "set" / f"{number}.png")
    (tmp_path / "set" / "bad.mp4").write_bytes(b"")  # the smallest, so it goes to the process that has least
    files = sorted(map(str, (tmp_path / "set").iterdir()))
    options = ["features", *files, "--model", model_folder, "--no-picture"]
    two = [*options, "--output-dir", str(tmp_path / "two")]
    assert call_in_pair(features_in_group, tmp_path, two) == [1, 1]
    assert "4 videos: 3 done, 0 done before, 1 failed" in (tmp_path / "stdout-0").read_text()
    assert not (tmp_path / "stdout-1").read_text()
    assert run_features(*options[1:], "--output-dir", tmp_path / "one").exit_code == 1
    assert written(tmp_path / "two") == written(tmp_path / "one")
    for name in written(tmp_path / "one"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_files_of_equal_name_never_overwrite_each_other(model_folder, picture, tmp_path):
    other = tmp_path / "others" / picture.name
    other.parent.mkdir()
    Image.new("RGB", (40, 40)).save(other)
    result = run_features(picture, other, "--model", model_folder, "--output-dir", tmp_path / "out", "--no-dense")
    assert result.exit_code == 0, result.output
    assert written(tmp_path / "out") == ["inputs-picture.safetensors", "others-picture.safetensors"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--window", "3"], "window is 3 frames, but a clip of this model has 4"),
        (["--stride", "0"], "stride is 0"),
        (["--backend", "decorb"], "'decorb' cannot be used"),
        (["--device", "abacus"], "device is 'abacus'; this machine has: cpu"),
        (["--dtype", "int8"], "float32"),
    ],
)
def test_bad_option_is_a_usage_error_that_names_the_rule(model_folder, picture, tmp_path, options, message):
    result = run_features(picture, "--model", model_folder, "--output-dir", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "out").exists()
