import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from vjepa_hub.cli import app
from vjepa_hub.data.manifests import read_manifest_entries
from vjepa_hub.data.synthetic import moving_pictures
from vjepa_hub.data.synthetic.moving_pictures import FASHION_MNIST_CLASSES
from vjepa_hub.data.video import open_video

SMALL = ("--num-videos", 3, "--size", 32, "--num-frames", 4)


def write_idx(folder: Path, *, split: str, light: int) -> None:
    """Ten pictures, one of each class: a square of one brightness."""
    pictures, labels = np.zeros((10, 28, 28), np.uint8), np.arange(10, dtype=np.uint8)
    pictures[:, 4:24, 4:24] = light
    for name, array in ((f"{split}-images-idx3-ubyte", pictures), (f"{split}-labels-idx1-ubyte", labels)):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (folder / name).write_bytes(header + array.tobytes())


def run_make(*arguments: object):
    return CliRunner().invoke(app, ["make-videos", *map(str, arguments)], env={"COLUMNS": "200", "NO_COLOR": "1"})


def middle_frames(folder: Path) -> np.ndarray:
    frames = []
    for path in sorted(folder.glob("*.mp4")):
        with open_video(path) as reader:
            frames.append(reader.read_frames([1])[0])
    return np.stack(frames)


def test_shapes_are_made_with_the_numbers_that_were_given_and_a_second_call_keeps_them(tmp_path):
    for _ in range(2):
        result = run_make(tmp_path / "made", *SMALL)
        assert result.exit_code == 0, result.output
        assert f"wrote {tmp_path}/made/videos.csv" in result.output
    entries = read_manifest_entries(tmp_path / "made" / "motion.csv")
    assert len(entries) == 3 == len(list((tmp_path / "made").glob("*.mp4")))
    assert middle_frames(tmp_path / "made").shape == (3, 32, 32, 3)
    assert run_make(tmp_path / "made", *SMALL, "--seed", 1).exit_code != 0


def test_each_split_shows_its_own_pictures(tmp_path):
    write_idx(tmp_path, split="train", light=255)
    write_idx(tmp_path, split="t10k", light=100)
    brightest = {}
    for split in ("train", "test"):
        arguments = (*SMALL, "--kind", "fashion-mnist", "--pictures", tmp_path, "--split", split)
        result = run_make(tmp_path / split, *arguments)
        assert result.exit_code == 0, result.output
        labels = (tmp_path / split / "videos.csv").read_text().splitlines()[1:]
        assert {line.split(",")[1] for line in labels} <= set(FASHION_MNIST_CLASSES)
        brightest[split] = middle_frames(tmp_path / split).max()
    assert brightest["train"] > brightest["test"]


def test_missing_pictures_are_an_error_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(moving_pictures, "_DEBIAN_FOLDER", tmp_path / "nowhere")
    result = run_make(tmp_path / "made", *SMALL, "--kind", "fashion-mnist")
    assert result.exit_code != 0
    assert "apt-get install dataset-fashion-mnist" in " ".join(re.split(r"[\s│]+", result.output))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--kind", "fashion-mnist", "--scene", "foggy"), "scene is 'foggy', but must be 'textured' or 'grainy'"),
        (("--size", "33"), "must be a multiple of 2"),
        (("--split", "val"), "split is 'val'"),
    ],
)
def test_what_does_not_go_together_is_an_error(arguments, message, tmp_path):
    result = run_make(tmp_path / "made", *arguments)
    assert result.exit_code != 0
    assert message in result.output
