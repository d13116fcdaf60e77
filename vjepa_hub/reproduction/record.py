"""The record of a recipe that was trained with several seeds: what a later training is compared with.

It lies beside the weights as `reproduction.json`. Steps count from 1, as in a run's log.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.files import write_whole
from ..publishing.run_facts import REPRODUCTION_FILE

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the last bit of a sum depends on.

    Attributes:
        processor: Its name.
        torch: Version of torch.
        num_threads: That torch computes with.
    """

    processor: str
    torch: str
    num_threads: int


@dataclass(frozen=True, kw_only=True)
class SeedRecord:
    """One training.

    Attributes:
        seed: Of the run.
        losses: Training loss by step, as logged.
        digests: SHA-256 of the weights, by step.
        accuracies: Top-1 accuracy of the frozen encoder from 0 to 1, by step and task.
        minutes: That the training took.
    """

    seed: int
    losses: Mapping[int, float]
    digests: Mapping[int, str]
    accuracies: Mapping[int, Mapping[str, float]]
    minutes: float


@dataclass(frozen=True, kw_only=True)
class ReproductionRecord:
    """What several trainings of one recipe gave.

    Attributes:
        recipe: The recipe as plain values (`Recipe.to_dict`); its seed is replaced by that of each training.
        short_steps: Steps of the short check.
        num_steps: Steps of the whole.
        tasks: Settings of the evaluation, as plain values.
        machine: Where it was trained.
        seeds: The trainings; the first is the one whose weights are published.

    Raises:
        ValueError: There are fewer than two trainings, which have no spread, or one lacks a step.
    """

    recipe: Mapping[str, Any]
    short_steps: int
    num_steps: int
    tasks: Mapping[str, Any]
    machine: Machine
    seeds: Sequence[SeedRecord]

    def __post_init__(self) -> None:
        if len(self.seeds) < 2:
            raise ValueError(
                f"a record needs trainings of at least two seeds, whose spread tells what is alike, but has "
                f"{len(self.seeds)}; train with more"
            )
        for record in self.seeds:
            for step in (self.short_steps, self.num_steps):
                if step not in record.digests or step not in record.accuracies:
                    raise ValueError(f"the training with seed {record.seed} has no measurement after step {step}")

    def accuracies(self, step: int, task: str) -> list[float]:
        """Accuracy of each training in a task after a step."""
        return [record.accuracies[step][task] for record in self.seeds]


def this_machine(num_threads: int | None = None) -> Machine:
    """The machine that this runs on.

    Args:
        num_threads: By default those that torch has now.
    """
    return Machine(
        processor=_processor_name(), torch=torch.__version__, num_threads=num_threads or torch.get_num_threads()
    )


def _processor_name() -> str:
    """As Linux names it; elsewhere the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write_record(folder: str | Path, record: ReproductionRecord) -> Path:
    """Write `reproduction.json`, complete or not at all.

    Args:
        folder: Where the weights are.
        record: What is written.
    """
    text = json.dumps({"format": _FORMAT, **asdict(record)}, indent=1) + "\n"
    return write_whole(Path(folder) / REPRODUCTION_FILE, text)


def read_record(folder: str | Path) -> ReproductionRecord:
    """Read what `write_record` wrote.

    Args:
        folder: Where it is.

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
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.pop("format") != _FORMAT:
            raise ValueError("its format is another")
        seeds = [_seed_record(entry) for entry in content.pop("seeds")]
        return ReproductionRecord(machine=Machine(**content.pop("machine")), seeds=seeds, **content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no record of trainings that this version reads ({error})") from error


def _seed_record(entry: dict[str, Any]) -> SeedRecord:
    """Steps are numbers here, and text as keys in JSON."""
    by_step = ("losses", "digests", "accuracies")
    numbered = {name: {int(step): value for step, value in entry[name].items()} for name in by_step}
    return SeedRecord(**{**entry, **numbered})
