"""A run that was killed while it saved, and was resumed, equals one that was not, to the bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerState

from tests.forked import call_in_process
from tests.pretraining.resumed_run import train

TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second")


def _history(checkpoint: Path) -> list[dict]:
    rows = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).log_history
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.fixture(autouse=True)
def one_thread():
    """The order of sums depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def videos(tmp_path, write_video) -> Path:
    """A folder of seven videos, which is no multiple of the clips of a step."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(7):
        path = write_video(f"resume-{number}.mp4", num_frames=12 + number)
        (folder / path.name).symlink_to(path)
    return folder


def test_run_killed_in_a_checkpoint_and_resumed_equals_an_uninterrupted_run(tmp_path, videos):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(videos, whole)
    assert call_in_process(train, videos, broken, 9) == -9
    assert sorted(path.name for path in broken.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    assert call_in_process(train, videos, broken, None, True) == 0
    expected, ours = (load_file(folder / "checkpoint-12" / "model.safetensors") for folder in (whole, broken))
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    states = [
        torch.load(folder / "checkpoint-12" / "optimizer.pt", weights_only=True)["state"] for folder in (whole, broken)
    ]
    for number, state in states[0].items():
        assert all(torch.equal(states[1][number][name], value) for name, value in state.items())
    assert _history(broken / "checkpoint-12") == _history(whole / "checkpoint-12")
