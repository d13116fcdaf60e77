"""The commands on an accelerator, simulated where there is none: same results, and no tensor left on the CPU.

    pytest -m slow tests/test_simulated_device.py

takes minutes, a C++ compiler and ninja. What needs CUDA's own kernels (bfloat16, graphs, speed) is not seen here.
"""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import is_ninja_available

from vjepa_hub.data.synthetic.shapes import SyntheticVideoSettings, make_synthetic_videos
from vjepa_hub.features.extraction import load_features

ROOT = Path(__file__).parents[1]
BUNDLED = "vjepa-vit-tiny"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a real one"),
    pytest.mark.skipif(not is_ninja_available() or shutil.which("c++") is None, reason="needs a compiler and ninja"),
]


def run_child(*arguments: object) -> str:
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run_on_device(tmp_path_factory):
    """`run_on_device(*arguments)`: what `vjepa-hub` shows where there is an accelerator, which has to be used."""
    folder = tmp_path_factory.mktemp("build")
    run_child("-m", "tests.simulated_device", folder, "build")

    def run(*arguments: object) -> str:
        shown = run_child("-m", "tests.simulated_device", folder, "vjepa-hub", *arguments)
        assert int(re.findall(r"operations (\d+)", shown)[-1]) > 500
        return shown

    return run


def run_on_cpu(*arguments: object) -> str:
    return run_child("-m", "vjepa_hub", *arguments)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """A folder of labelled video, with its manifests."""
    settings = SyntheticVideoSettings(num_videos=24, size=64, num_frames=16)
    return make_synthetic_videos(tmp_path_factory.mktemp("videos"), settings).parent


def read_losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


def pretraining(folder: Path, *settings: str) -> list[str]:
    given = (
        "max_steps=4",
        "logging_steps=1",
        "health_steps=2",
        "save_steps=2",
        "per_device_train_batch_size=4",
        "global_batch_size=8",
        "synthetic.num_videos=24",
        "probe_clips=24",
        "resize=device",
    )
    return ["pretrain", "tiny", "--output-dir", str(folder), *(w for s in (*given, *settings) for w in ("--set", s))]


@pytest.mark.parametrize(
    "setting", ["probe=attentive", "probe=knn", "targets=pixels", "gradient_checkpointing=true", "masks=causal"]
)
def test_a_pretraining_has_the_losses_of_the_cpu(setting, run_on_device, tmp_path):
    assert "on simulated" in run_on_device(*pretraining(tmp_path / "device", setting))
    assert "on cpu" in run_on_cpu(*pretraining(tmp_path / "cpu", setting))
    losses = read_losses(tmp_path / "device")
    assert len(losses) == 4
    assert losses == pytest.approx(read_losses(tmp_path / "cpu"), rel=1e-4)


def test_a_pretraining_goes_on_where_it_was_stopped(run_on_device, tmp_path):
    run_on_device(*pretraining(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoint-4")
    recipe = tmp_path / "part" / "recipe.yaml"
    shown = run_on_device("pretrain", recipe, "--output-dir", tmp_path / "part")
    assert "step 4/4" in shown
    assert "step 2/4  loss" not in shown
    assert read_losses(tmp_path / "part")[-1] == pytest.approx(read_losses(tmp_path / "whole")[-1], rel=1e-5)


def test_features_are_those_of_the_cpu(run_on_device, videos, tmp_path):
    for run, folder in ((run_on_device, tmp_path / "device"), (run_on_cpu, tmp_path / "cpu")):
        run("features", videos, "--model", BUNDLED, "--output-dir", folder, "--dense", "--no-picture")
    paths = sorted((tmp_path / "cpu").rglob("*.safetensors"))
    assert len(paths) == 24
    for path in paths:
        theirs, ours = load_features(path), load_features(tmp_path / "device" / path.relative_to(tmp_path / "cpu"))
        torch.testing.assert_close(ours.dense, theirs.dense, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.pooled, theirs.pooled, rtol=1e-4, atol=1e-4)


def test_heads_and_models_train_on_it(run_on_device, videos, tmp_path):
    labelled = ("--train", videos / "motion.csv", "--val", videos / "motion.csv", "--num-epochs", "1")
    run_on_device(
        "probe", BUNDLED, "pixels:64", *labelled, "--output-dir", tmp_path / "probe", "--cache", tmp_path / "c"
    )
    for mode in ("full", "head"):
        run_on_device("finetune", BUNDLED, *labelled, "--mode", mode, "--output-dir", tmp_path / mode)
