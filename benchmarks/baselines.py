"""What the training of a bundled model is worth: its card's numbers, beside those of four baselines.

The folder is that of `vjepa-hub reproduce RECIPE --output-dir FOLDER`. Its seeds and labelled videos are
taken for all rows, and its heads for all but `labels`: the best of three on the test videos is what counts.

    trained             the frozen encoder, from the record; nothing is measured again
    untrained           the weights that its training starts from
    labels              the same encoder and attentive pooler, trained from random weights with the labels alone; one
                        learning rate without layer decay, crops as in the recipe, and neither mixed clips nor other
                        augmentation. The test videos are read once, after the last epoch
    pixel-prediction    the recipe with `training.targets: pixels`, for as many steps as come to the same floating
                        point operations
    raw-pixels          no encoder, on frames that are made so small that there are as many patches as the encoder
                        has tokens; its seeds are those of the heads

    python benchmarks/baselines.py runs/vit-tiny
    python benchmarks/baselines.py runs/vit-tiny --rows labels --seeds 0 1     # a part, for one of two processes

The same command goes on where it was stopped. When all rows of all seeds are there, it writes `model/evaluation.json`:

    format, command, machine        1, what makes the file, and where: a `Machine` as in the record
    recipe, num_steps, seeds        name of the recipe, its steps, and the seeds in the order of all accuracies
    num_train, num_test             labelled videos of each task
    rows                            for each: `name` as above, `words` for the card, and `tasks`, by name of the task:
                                    `accuracies` (top-1 from 0 to 1, one for each seed), `mean`, and `std` with n - 1
"""

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from claims import VARIANTS, in_words, train, vary
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PrinterCallback
from transformers.utils import logging as transformers_logging

from vjepa_hub.core.files import write_whole
from vjepa_hub.core.progress import ProgressBar
from vjepa_hub.core.run_files import EVALUATION_FILE
from vjepa_hub.evaluation.encoders.opening import UNTRAINED_PREFIX
from vjepa_hub.evaluation.encoders.pixel_encoder import PATCH_SIZE
from vjepa_hub.evaluation.finetuning.run import FineTuneSettings, prepare_finetuning
from vjepa_hub.evaluation.label_efficiency import summarise
from vjepa_hub.evaluation.made_tasks import (
    TASKS,
    TEST,
    TRAIN,
    MadeTaskSettings,
    make_task_videos,
    probe_tasks,
    selected_accuracies,
)
from vjepa_hub.evaluation.protocols import Augmentation
from vjepa_hub.pretraining.checkpoints import save_published
from vjepa_hub.pretraining.console import PretrainingConsoleCallback
from vjepa_hub.pretraining.interruption import InterruptedRunError
from vjepa_hub.pretraining.recipe import Recipe
from vjepa_hub.pretraining.run import build_model, build_processor
from vjepa_hub.pretraining.run_data import VIDEOS
from vjepa_hub.publishing.machine_paths import shorten_machine_paths
from vjepa_hub.publishing.records import EvaluationRecord, ReproductionRecord, read_record, this_machine
from vjepa_hub.reproduction.retraining import MODEL
from vjepa_hub.reproduction.training import computing_with

TRAINED, UNTRAINED, LABELS, PIXEL_PREDICTION, RAW_PIXELS = ROWS = (
    "trained",
    "untrained",
    "labels",
    "pixel-prediction",
    "raw-pixels",
)
_LABEL_BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """All rows of one reproduction."""

    folder: Path  # of the reproduction
    record: ReproductionRecord
    label_epochs: int  # of the training with labels
    label_learning_rate: float
    console: Console = field(default_factory=Console)

    @cached_property
    def recipe(self) -> Recipe:
        """What was trained."""
        return Recipe.from_tree(self.record.recipe)

    @cached_property
    def pixel_recipe(self) -> Recipe:
        """The same compute spent on predicting pixels."""
        return vary(self.recipe, VARIANTS["pixel-targets"])

    @property
    def pixel_size(self) -> int:
        """Side of the frames as raw pixels: of patches of 8 pixels as many as the encoder has tokens."""
        return PATCH_SIZE * self.recipe.config().token_grid[-1]

    @property
    def tasks(self) -> MadeTaskSettings:
        """How encoders are judged."""
        return MadeTaskSettings(**self.record.tasks)

    @property
    def seeds(self) -> list[int]:
        """Those of the record."""
        return [training.seed for training in self.record.seeds]

    # ------------------------------------------------------------------------------------------ pieces

    def measure(self, rows: Sequence[str], seeds: Sequence[int]) -> None:
        """Measure some rows with some seeds, as far as they are not there yet.

        Raises:
            ValueError: A piece that is there was made with other settings.
            InterruptedRunError: A training was told to stop, and saved.
        """
        with ProgressBar(self.console) as progress:
            make_task_videos(self.folder / "tasks", self.tasks, progress)
        pieces = [(row, seed) for row in rows for seed in seeds if self.read(row, seed) is None]
        for number, (row, seed) in enumerate(pieces, 1):
            title = f"{number} of {len(pieces)}: {self.words(row)}, seed {seed}"
            self.console.print(Text(title, style="bold"), soft_wrap=True)
            accuracies = self._measure(row, seed)
            text = json.dumps({"accuracies": accuracies, "made_with": self._made_with(row)})
            self._file(row, seed).parent.mkdir(exist_ok=True)
            write_whole(self._file(row, seed), text)

    def read(self, row: str, seed: int) -> Mapping[str, float] | None:
        """Accuracies from 0 to 1 by task; None where they are not measured yet.

        Raises:
            ValueError: They were measured with other settings.
        """
        if row == TRAINED:
            return self.record.seeds[self.seeds.index(seed)].accuracies[self.record.num_steps]
        file = self._file(row, seed)
        if not file.is_file():
            return None
        found, wanted = json.loads(file.read_text(encoding="utf-8")), self._made_with(row)
        differing = [name for name, value in wanted.items() if found["made_with"].get(name) != value]
        if differing:
            raise ValueError(
                f"{file} was measured with another value of {', '.join(differing)}; give the same, or remove the file "
                "to measure it anew"
            )
        return found["accuracies"]

    def _file(self, row: str, seed: int) -> Path:
        return self.folder / "baselines" / f"{row}-seed-{seed}.json"

    def _made_with(self, row: str) -> dict[str, Any]:
        """What the accuracies of a row depend on, besides the seed."""
        common = {"recipe": self.record.recipe, "tasks": self.record.tasks}
        labels = {"label_epochs": self.label_epochs, "label_learning_rate": self.label_learning_rate}
        return common | {LABELS: labels, RAW_PIXELS: {"pixel_size": self.pixel_size}}.get(row, {})

    def _measure(self, row: str, seed: int) -> Mapping[str, float]:
        if row == LABELS:
            return {task: self._train_with_labels(task, seed) for task in TASKS}
        if row == RAW_PIXELS:
            return self._probe(row, f"pixels:{self.pixel_size}", seed, head_seed=seed)
        make = self._save_untrained if row == UNTRAINED else self._predict_pixels
        place = self.folder / row / f"seed-{seed}"
        make(place, {"training.seed": seed})
        return self._probe(row, str(place), seed)

    def _save_untrained(self, place: Path, overrides: Mapping[str, Any]) -> None:
        recipe = self.recipe.with_overrides(overrides)
        model = build_model(recipe)
        build_processor(recipe).save_pretrained(place)
        save_published(place, model.config, model.state_dict())

    def _predict_pixels(self, place: Path, overrides: Mapping[str, Any]) -> None:
        recipe, videos = self.pixel_recipe.with_overrides(overrides), self.folder / VIDEOS
        train(VARIANTS["pixel-targets"], recipe, place, videos=videos, console=self.console)

    def _probe(self, row: str, encoder: str, seed: int, *, head_seed: int = 0) -> Mapping[str, float]:
        """Of the best head, as the record has it; the cache of tokens is removed."""
        place = self.folder / "probes" / f"{row}-seed-{seed}"
        with ProgressBar(self.console) as progress:
            found = probe_tasks(
                [encoder], self.folder / "tasks", place, self.tasks, seeds=(head_seed,), progress=progress
            )
        shutil.rmtree(place / "features", ignore_errors=True)
        return selected_accuracies(found)

    def _train_with_labels(self, task: str, seed: int) -> float:
        """Train from random weights, or go on, and judge after the last epoch."""
        videos, place = self.folder / "tasks", self.folder / LABELS / f"seed-{seed}" / task
        run = prepare_finetuning(
            f"{UNTRAINED_PREFIX}{self.folder / MODEL}",
            videos / TRAIN / f"{task}.csv",
            videos / TEST / f"{task}.csv",
            place,
            self._label_settings(seed),
            training_arguments={"eval_strategy": "no", "logging_strategy": "epoch", "disable_tqdm": True},
            callbacks=[PretrainingConsoleCallback(self.console)],
        )
        run.trainer.remove_callback(PrinterCallback)
        run.train()
        accuracy = run.trainer.evaluate()["eval_top1"]
        for checkpoint in place.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        return accuracy

    def _label_settings(self, seed: int) -> FineTuneSettings:
        clips = self.recipe.clips
        crops = Augmentation(scale=clips.scale, ratio=clips.ratio, auto_augment=None, erase_probability=0.0)
        return FineTuneSettings(
            num_epochs=self.label_epochs,
            batch_size=_LABEL_BATCH_SIZE,
            learning_rate=self.label_learning_rate,
            layer_decay=1.0,
            frame_step=self.tasks.frame_step,
            augmentation=crops,
            mixup=0.0,
            cutmix=0.0,
            num_workers=self.recipe.training.dataloader_num_workers,
            seed=seed,
        )

    # ------------------------------------------------------------------------------------------ results

    def missing(self) -> list[str]:
        """Pieces that are not measured yet, in words."""
        pieces = [(row, seed) for row in ROWS for seed in self.seeds]
        return [f"{row} with seed {seed}" for row, seed in pieces if self.read(row, seed) is None]

    def words(self, row: str) -> str:
        """What a row is, for the card."""
        return {
            TRAINED: f"the frozen encoder after {self.record.num_steps:,} steps",
            UNTRAINED: "the same encoder untrained",
            LABELS: f"the same architecture trained with {self.tasks.num_train:,} labels, {self.label_epochs} epochs",
            PIXEL_PREDICTION: f"equal compute spent on pixels, {self.pixel_recipe.training.max_steps:,} steps",
            RAW_PIXELS: f"raw pixels of frames of {self.pixel_size} x {self.pixel_size}, no encoder",
        }[row]

    def summarise(self) -> list[dict[str, Any]]:
        """The rows of `evaluation.json`; all pieces have to be there."""
        return [{"name": row, "words": self.words(row), "tasks": self._accuracies(row)} for row in ROWS]

    def _accuracies(self, row: str) -> dict[str, dict[str, Any]]:
        by_seed = [self.read(row, seed) for seed in self.seeds]
        values = {task: [found[task] for found in by_seed if found is not None] for task in TASKS}
        summaries = {task: summarise(found) for task, found in values.items()}
        return {
            task: {"accuracies": values[task], "mean": found.mean, "std": found.deviation}
            for task, found in summaries.items()
        }

    def write(self, command: str) -> Path:
        """Show the table, and write `evaluation.json` beside the weights."""
        rows = self.summarise()
        show(self.console, rows)
        content = EvaluationRecord(
            command=command,
            machine=this_machine(),
            recipe=self.recipe.name,
            num_steps=self.record.num_steps,
            seeds=self.seeds,
            num_train=self.tasks.num_train,
            num_test=self.tasks.num_test,
            rows=rows,
        )
        return write_whole(self.folder / MODEL / EVALUATION_FILE, content.model_dump_json(indent=1) + "\n")


def show(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """The table on the terminal."""
    table = Table("row", "what", *(f"{task} %" for task in TASKS), box=box.SIMPLE)
    for row in rows:
        percents = [[100 * value for value in row["tasks"][task]["accuracies"]] for task in TASKS]
        table.add_row(row["name"], row["words"], *map(in_words, percents))
    console.print(table)


# ------------------------------------------------------------------------------------------------ command


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of vjepa-hub reproduce")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="that are measured now")
    parser.add_argument("--seeds", type=int, nargs="+", help="that are measured now; by default all of the record")
    parser.add_argument("--label-epochs", type=int, default=40, help="of the training with labels")
    parser.add_argument("--label-learning-rate", type=float, default=1e-3, help="of the training with labels")
    parser.add_argument("--num-threads", type=int, help="that torch computes with; by default as in the record")
    return parser.parse_args(given)


def plan(arguments: argparse.Namespace) -> Baselines:
    """What a command line asks for.

    Raises:
        FileNotFoundError: The folder has no record.
        ValueError: The record cannot be read, or lacks a seed.
    """
    record = read_record(arguments.folder / MODEL)
    known = [training.seed for training in record.seeds]
    if unknown := sorted(set(arguments.seeds or ()) - set(known)):
        raise ValueError(f"no training of the record has the seeds {unknown}, which were asked for; choose of {known}")
    return Baselines(
        folder=arguments.folder,
        record=record,
        label_epochs=arguments.label_epochs,
        label_learning_rate=arguments.label_learning_rate,
    )


def describe_command(arguments: argparse.Namespace) -> str:
    """The command that makes the whole file, whichever parts this one was asked for."""
    default = vars(parse_arguments([str(arguments.folder)]))
    words = ["python", "benchmarks/baselines.py", str(arguments.folder)]
    for name in ("label_epochs", "label_learning_rate", "num_threads"):
        value = getattr(arguments, name)
        words += [] if value == default[name] else [f"--{name.replace('_', '-')}", str(value)]
    return shorten_machine_paths(shlex.join(words))


def main(given: Sequence[str] | None = None) -> None:
    transformers_logging.disable_progress_bar()
    arguments = parse_arguments(given)
    baselines = plan(arguments)
    tell = partial(baselines.console.print, soft_wrap=True)
    with computing_with(arguments.num_threads or baselines.record.machine.num_threads):
        try:
            baselines.measure(arguments.rows, arguments.seeds or baselines.seeds)
        except InterruptedRunError as stop:
            # Its own remedy would resume the run outside of this script
            tell("stopped, and saved; the same command goes on")
            sys.exit(128 + stop.signal_number)
        if missing := baselines.missing():
            tell(Text(f"{EVALUATION_FILE} is not written yet, as this is missing: {', '.join(missing)}"))
            return
        tell(Text(f"wrote {baselines.write(describe_command(arguments))}"))


if __name__ == "__main__":
    main()
