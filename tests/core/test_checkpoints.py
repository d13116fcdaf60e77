"""Checkpoints of the Trainer: incomplete and damaged ones are refused by name, with what to delete."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vjepa_hub.core.checkpoints import (
    CheckpointError,
    newest_checkpoint,
    require_readable,
    require_whole_archive,
)


def write_checkpoint(folder: Path, step: int) -> Path:
    """A checkpoint with the files that the Trainer writes in one process."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    save_file({"weight": torch.ones(64)}, checkpoint / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"step": step, "average": torch.zeros(512)}, checkpoint / name)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return checkpoint


def test_newest_checkpoint_is_that_of_the_most_steps(tmp_path):
    assert newest_checkpoint(tmp_path / "nowhere") is None
    assert newest_checkpoint(tmp_path) is None
    for step in (5, 9, 10):
        write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    require_readable(tmp_path / "checkpoint-10")


def test_checkpoint_that_a_kill_has_cut_off_is_passed_over(tmp_path, caplog):
    whole, cut = write_checkpoint(tmp_path, 9), write_checkpoint(tmp_path, 10)
    (cut / "trainer_state.json").unlink()
    assert newest_checkpoint(tmp_path) == whole
    assert str(cut) in caplog.text


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("require", [newest_checkpoint, lambda folder: require_readable(folder / "checkpoint-10")])
def test_checkpoint_without_a_part_is_refused_with_the_part_and_the_older_complete_one(tmp_path, name, require):
    for step in (5, 10):
        (write_checkpoint(tmp_path, step) / name).unlink()
    write_checkpoint(tmp_path, 3)
    with pytest.raises(CheckpointError, match=rf"checkpoint-10 has no {name}.*delete .*checkpoint-10.*checkpoint-3$"):
        require(tmp_path)


@pytest.mark.parametrize("names", [("optimizer_0", "optimizer.bin"), ("rng_state_0.pth", "rng_state_1.pth")])
def test_parts_of_several_processes_count(tmp_path, names):
    checkpoint = write_checkpoint(tmp_path, 10)
    alone = checkpoint / ("optimizer.pt" if names[0].startswith("opt") else "rng_state.pth")
    for name in names:
        alone.rename(checkpoint / name)
        assert newest_checkpoint(tmp_path) == checkpoint
        (checkpoint / name).rename(alone)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-50])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path) -> None:
    """Change a byte of the stored numbers."""
    data = bytearray(file.read_bytes())
    place = data.index(bytes(512)) + 256
    data[place] ^= 0x40
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, empty])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"])
def test_damaged_part_is_named_with_what_to_delete(tmp_path, name, damage):
    write_checkpoint(tmp_path, 5)
    checkpoint = write_checkpoint(tmp_path, 10)
    damage(checkpoint / name)
    with pytest.raises(CheckpointError, match=rf"{name} is damaged .*delete .*checkpoint-10, .*checkpoint-5"):
        require_readable(checkpoint)


def test_changed_bytes_of_an_optimizer_and_numbers_that_are_not_finite_are_damage(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 10)
    flip(checkpoint / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"optimizer\.pt is damaged .*delete .*checkpoint-10, and start again"):
        require_readable(checkpoint)
    torch.save({}, checkpoint / "optimizer.pt")
    save_file({"weight": torch.tensor([0.0, torch.nan])}, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged .*weight"):
        require_readable(checkpoint)


def test_archive_outside_a_checkpoint_has_its_own_remedy(tmp_path):
    torch.save({"heads": torch.zeros(512)}, tmp_path / "heads.pt")
    require_whole_archive(tmp_path / "heads.pt", remedy="delete it")
    cut(tmp_path / "heads.pt")
    with pytest.raises(CheckpointError, match=r"heads\.pt is damaged .*delete it"):
        require_whole_archive(tmp_path / "heads.pt", remedy="delete it")
