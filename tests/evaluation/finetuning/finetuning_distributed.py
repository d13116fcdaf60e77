"""Runs of the distributed test."""

from pathlib import Path

from tests.evaluation.finetuning_sets import drifting_stripes, plain_settings
from vjepa_hub.evaluation.finetuning.run import finetune

MODES = {"full": {}, "last-k": {"num_blocks": 1}, "head": {}, "lora": {}}
CLIPS_PER_STEP = 4


def tune(folder: Path, features: str, mode: str, num_processes: int) -> Path:
    """Two steps, each of the same videos for any number of processes."""
    settings = plain_settings(
        mode=mode, batch_size=CLIPS_PER_STEP // num_processes, label_smoothing=0.1, learning_rate=1e-3, **MODES[mode]
    )
    arguments = {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no"}
    sets = drifting_stripes(8, seed=0), drifting_stripes(5, seed=1)
    return finetune(features, *sets, folder, settings, training_arguments=arguments)


def tune_all(folder: Path, modes: list[str]) -> None:
    """Work of one of two processes."""
    for mode in modes:
        tune(folder / mode, str(folder / "features"), mode, 2)
