"""Checkpoints of transformers' Trainer to go on from: the newest one, with all its parts, each of them readable."""

import json
import logging
import zipfile
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME

logger = logging.getLogger(__name__)

# What a run goes on from, under the names that one process, FSDP, DeepSpeed and peft give it. Without one of them the
# Trainer goes on all the same, to other weights
_PARTS = {
    "model.safetensors": ("model*.safetensors", "adapter_model.safetensors", "pytorch_model*", "global_step*"),
    "optimizer.pt": ("optimizer*", "global_step*"),
    "scheduler.pt": ("scheduler.pt", "global_step*"),
    "rng_state.pth": ("rng_state*.pth",),
}


class CheckpointError(ValueError):
    """A checkpoint that lacks a part or has a damaged one. The message names it, and what to delete."""


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint of a run; None where there is none.

    One without the Trainer's state, which is written last, is of a kill, and passed over.

    Args:
        folder: Of the run.

    Raises:
        CheckpointError: The newest one lacks a part.
    """
    found = _checkpoints(Path(folder))
    if found:
        _require_parts(found[-1])
    return found[-1] if found else None


def require_readable(checkpoint: str | Path) -> None:
    """Make sure that a checkpoint has all its parts, and that each of them is whole. Reads all of it.

    Args:
        checkpoint: Its folder.

    Raises:
        CheckpointError: A part is missing or damaged.
    """
    checkpoint = Path(checkpoint)
    _require_parts(checkpoint)
    for file in sorted(path for path in checkpoint.iterdir() if path.is_file()):
        cause = _damage(file)
        if cause:
            raise CheckpointError(f"{file} is damaged ({cause}): delete {checkpoint}{_and_go_on(checkpoint)}")


def require_whole_archive(file: Path, *, remedy: str) -> None:
    """Make sure that a file of `torch.save` is whole.

    Args:
        file: The file.
        remedy: End of the message.

    Raises:
        CheckpointError: It is damaged.
    """
    cause = _damage(file)
    if cause:
        raise CheckpointError(f"{file} is damaged ({cause}): {remedy}")


def _checkpoints(folder: Path) -> list[Path]:
    """Those with the Trainer's state, by their steps."""
    numbered = {path: path.name.rpartition("-")[2] for path in folder.glob("checkpoint-*")}
    found = sorted((path for path, number in numbered.items() if number.isdecimal()), key=lambda p: int(numbered[p]))
    unfinished = [path for path in found if not (path / TRAINER_STATE_NAME).is_file()]
    for path in unfinished:
        logger.warning("%s has no %s, since a run was stopped while it wrote: passed over", path, TRAINER_STATE_NAME)
    return [path for path in found if path not in unfinished]


def _missing_parts(checkpoint: Path) -> list[str]:
    return [name for name, patterns in _PARTS.items() if not any(next(checkpoint.glob(one), None) for one in patterns)]


def _require_parts(checkpoint: Path) -> None:
    missing = _missing_parts(checkpoint)
    if missing:
        raise CheckpointError(
            f"{checkpoint} has no {', '.join(missing)}, without which a run would go on to other weights: restore "
            f"what is missing, or delete {checkpoint}{_and_go_on(checkpoint)}"
        )


def _and_go_on(checkpoint: Path) -> str:
    """Words on the beginning of a run without a checkpoint."""
    others = [path for path in _checkpoints(checkpoint.parent) if path != checkpoint and not _missing_parts(path)]
    return f", and the same command goes on from {others[-1].name}" if others else ", and start again"


def _damage(file: Path) -> str | None:
    """Damage of a stored file, of a kind that tells it."""
    try:
        if file.suffix == ".json":
            json.loads(file.read_bytes())
        elif file.suffix in (".pt", ".pth"):
            with zipfile.ZipFile(file) as archive:
                broken = archive.testzip()
            return None if broken is None else f"the sum of {broken} does not fit"
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - safe_open is no dict
                    if not torch.isfinite(tensors.get_tensor(name)).all():
                        return f"{name} is not finite"
    except (ValueError, RecursionError, zipfile.BadZipFile, zlib.error, EOFError, SafetensorError) as error:
        return str(error) or type(error).__name__
    return None
