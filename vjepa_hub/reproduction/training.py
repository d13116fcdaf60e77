"""One training of a recipe, measured at the steps of a record."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..core.fingerprints import hash_weights
from ..model.modeling_vjepa import VJEPAForPreTraining
from ..pretraining.checkpoints import save_both_encoders, trained_origin
from ..pretraining.metrics_log import read_metrics
from ..pretraining.recipe import Recipe
from ..pretraining.run import METRICS, build_processor, pretrain

_WEIGHTS = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training that has come to its last measured step.

    Attributes:
        losses: By step, up to that one.
        snapshots: Folder of the model after each measured step, with both encoders and the predictor.
        minutes: That it took by its log, without parts that were killed.
    """

    losses: Mapping[int, float]
    snapshots: Mapping[int, Path]
    minutes: float

    def digest(self, step: int) -> str:
        """SHA-256 of the weights after a step: names, shapes, types and values."""
        return digest_weights(self.snapshots[step])


def train_seed(recipe: Recipe, seed: int, folder: str | Path, *, steps: Sequence[int], console: Console) -> Training:
    """Train a recipe with a seed up to the last of some steps, and keep the model after each.

    An interrupted training is resumed. The curves of learning rate and momentum are those of the whole run, wherever
    it ends.

    Args:
        recipe: What is trained.
        seed: In place of its own.
        folder: Of the run.
        steps: After which the model is kept; the last ends the training.
        console: Where progress is shown.
    """
    folder = Path(folder)
    snapshots = {step: folder / f"step-{step}" for step in steps}
    if not all((place / _WEIGHTS).is_file() for place in snapshots.values()):
        pretrain(
            recipe.with_overrides({"training.seed": seed}),
            output_dir=folder,
            console=console,
            callbacks=[_Snapshots(recipe, snapshots)],
        )
    rows = read_metrics(folder / METRICS)
    losses = {int(row["step"]): float(row["loss"]) for row in rows if "loss" in row}
    losses = {step: loss for step, loss in losses.items() if step <= max(steps)}
    seconds = sum(float(row.get("train_runtime", 0)) for row in rows)
    return Training(losses=losses, snapshots=snapshots, minutes=seconds / 60)


class _Snapshots(TrainerCallback):
    """Writes the model after some steps, with both encoders, and ends the training after the last."""

    def __init__(self, recipe: Recipe, snapshots: Mapping[int, Path]):
        self.processor, self.snapshots = build_processor(recipe), snapshots

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Write the model, or end the training, where it is time."""
        model: VJEPAForPreTraining = kwargs["model"]
        folder = self.snapshots.get(state.global_step)
        if folder is not None:
            # The weights come last: a folder with weights is complete
            self.processor.save_pretrained(folder)
            model.config.weights_origin = trained_origin(state.global_step)
            save_both_encoders(folder, model.config, model.state_dict())
        if state.global_step >= max(self.snapshots):
            control.should_training_stop = control.should_save = True  # so that it can go on from here


def digest_weights(folder: str | Path) -> str:
    """SHA-256 of a folder's weights: names, shapes, types and values, whatever the order in the file.

    Args:
        folder: With `model.safetensors`.
    """
    return hash_weights(load_file(Path(folder) / _WEIGHTS))


@contextmanager
def computing_with(num_threads: int) -> Iterator[None]:
    """Let torch compute with a number of threads: sums of another number end in other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
