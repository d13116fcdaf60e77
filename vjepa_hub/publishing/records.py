"""The records beside published weights: `reproduction.json`, several trainings of a recipe, which a later training is
compared with; and `evaluation.json`, the frozen encoder against baselines. Steps count from 1, as in a run's log.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from ..core.files import write_whole
from ..core.run_files import EVALUATION_FILE, REPRODUCTION_FILE, Record, processor_name


class TrainingMachine(Record):
    """Part of a machine that the last bit of a sum depends on.

    Attributes:
        processor: Its name.
        torch: Version of torch.
        num_threads: That torch computes with.
    """

    processor: str
    torch: str
    num_threads: int


class SeedRecord(Record):
    """One training.

    Attributes:
        seed: Of the run.
        losses: Training loss by step, as logged.
        digests: SHA-256 of the weights, by step.
        accuracies: Top-1 accuracy of the frozen encoder from 0 to 1, by step and task.
        minutes: That the training took.
    """

    seed: int
    losses: dict[int, float]
    digests: dict[int, str]
    accuracies: dict[int, dict[str, float]]
    minutes: float


class ReproductionRecord(Record):
    """Several trainings of one recipe.

    Attributes:
        format: Of the file.
        recipe: The recipe as plain values; its seed is replaced by that of each training.
        short_steps: Steps of the short check.
        num_steps: Steps of the whole.
        tasks: Settings of the evaluation, as plain values.
        machine: Where it was trained.
        seeds: The trainings; the first is the one whose weights are published.

    Raises:
        ValueError: There are fewer than two trainings, which have no spread, or one lacks a step.
    """

    format: Literal[1] = 1
    recipe: dict[str, Any]
    short_steps: int
    num_steps: int
    tasks: dict[str, Any]
    machine: TrainingMachine
    seeds: tuple[SeedRecord, ...]

    @model_validator(mode="after")
    def _check(self) -> "ReproductionRecord":
        if len(self.seeds) < 2:
            raise ValueError(
                f"a record needs trainings of at least two seeds, whose spread tells what is alike, but has "
                f"{len(self.seeds)}; train with more"
            )
        for record in self.seeds:
            for step in (self.short_steps, self.num_steps):
                if step not in record.digests or step not in record.accuracies:
                    raise ValueError(f"the training with seed {record.seed} has no measurement after step {step}")
        return self

    def accuracies(self, step: int, task: str) -> list[float]:
        """Accuracy of each training in a task after a step."""
        return [record.accuracies[step][task] for record in self.seeds]


class TaskAccuracy(Record):
    """Accuracies of one encoder in one task, from 0 to 1, over seeds."""

    accuracies: tuple[float, ...]
    mean: float
    std: float


class BaselineRow(Record):
    """An encoder that was evaluated.

    Attributes:
        name: Short name; "trained" is the published one.
        words: For a table.
        tasks: Accuracies by task.
    """

    name: str
    words: str
    tasks: dict[str, TaskAccuracy]


class EvaluationRecord(Record):
    """A published encoder against baselines.

    Attributes:
        format: Of the file.
        command: That made it.
        machine: Where it was trained.
        recipe: Name of the recipe.
        num_steps: Of a training.
        seeds: Of the trainings.
        num_train: Labelled videos that heads learned from.
        num_test: Videos that they were judged on.
        rows: The encoders.
    """

    format: Literal[1] = 1
    command: str
    machine: TrainingMachine
    recipe: str
    num_steps: int
    seeds: tuple[int, ...]
    num_train: int
    num_test: int
    rows: tuple[BaselineRow, ...] = Field(min_length=1)

    @property
    def trained(self) -> Mapping[str, TaskAccuracy]:
        """Accuracies of the published encoder, by task."""
        return next(row.tasks for row in self.rows if row.name == "trained")


def this_machine(num_threads: int | None = None) -> TrainingMachine:
    """The machine that this runs on.

    Args:
        num_threads: By default those that torch has now.
    """
    return TrainingMachine(
        processor=processor_name(), torch=torch.__version__, num_threads=num_threads or torch.get_num_threads()
    )


def write_record(folder: str | Path, record: ReproductionRecord) -> Path:
    """Write `reproduction.json` beside weights, whole or not at all."""
    return write_whole(Path(folder) / REPRODUCTION_FILE, record.model_dump_json(indent=1) + "\n")


def read_record(folder: str | Path) -> ReproductionRecord:
    """Read `reproduction.json`.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is no record, or one of another format.
    """
    file = Path(folder) / REPRODUCTION_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} has no {REPRODUCTION_FILE}, so there is nothing to compare a new training with; "
            "vjepa-hub reproduce trains a recipe with several seeds and writes one"
        )
    return ReproductionRecord.read(file, remedy="write it anew by vjepa-hub reproduce")


def read_evaluation(folder: str | Path) -> EvaluationRecord:
    """Read `evaluation.json`.

    Raises:
        ValueError: It is no evaluation.
    """
    return EvaluationRecord.read(Path(folder) / EVALUATION_FILE, remedy="write it anew by benchmarks/baselines.py")
