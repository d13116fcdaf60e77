"""Train a recipe with several seeds and record it; train it once more and compare.

What a folder gets:

    videos                      the training videos, made once for all seeds
    tasks                       labelled videos of the evaluation
    seed-S                      the run with seed S, and step-N in it: the model after step N, with both encoders
    run.json                    the record of the whole
    model                       the model of the first seed after the last step, with its recipe, log, records and
                                card
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ..core.invocation import command_words
from ..core.progress import Progress, ProgressBar
from ..core.run_files import METRICS_TABLE, RECIPE_FILE, RUN_FILE, RunFile, RunRecord
from ..data.synthetic.moving_pictures import MovingPictureSettings
from ..evaluation.made_tasks import MadeTaskSettings, make_task_videos, probe_tasks, selected_accuracies
from ..pretraining.interruption import InterruptedRunError
from ..pretraining.recipe import Recipe
from ..pretraining.run_data import VIDEOS
from ..publishing.card import write_card
from ..publishing.records import ReproductionRecord, SeedRecord, read_record, this_machine, write_record
from ..publishing.verification import Check
from .comparison import compare, compare_published
from .training import Training, computing_with, digest_weights, train_seed

MODEL = "model"


def record_trainings(
    recipe: Recipe,
    folder: str | Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    short_steps: int,
    tasks: MadeTaskSettings | None = None,
    num_threads: int = 2,
    console: Console | None = None,
) -> Path:
    """Train a recipe with several seeds, measure each twice, and write the model of the first with its record.

    The same call goes on after an interruption.

    Args:
        recipe: With `max_steps`, on made video.
        folder: For all files.
        seeds: Of the trainings.
        short_steps: Steps of the short check, fewer than those of the recipe.
        tasks: How the frozen encoders are judged; by default as `tasks_of` the recipe.
        num_threads: That torch computes with.
        console: Where progress is shown.

    Returns:
        The folder of the model.

    Raises:
        ValueError: The steps do not fit each other, or there are fewer than two different seeds.
    """
    if len(set(seeds)) < 2:
        raise ValueError(
            f"the seeds are {', '.join(map(str, seeds))}, but a record needs at least two, whose spread tells what is "
            "alike; give more, or --train-only"
        )
    tasks, folder = tasks or tasks_of(recipe), Path(folder)
    num_steps = _require_steps(recipe, short_steps)
    records = train_seeds(
        recipe, folder, seeds=seeds, short_steps=short_steps, tasks=tasks, num_threads=num_threads, console=console
    )
    record = ReproductionRecord(
        recipe=recipe.to_tree(),
        short_steps=short_steps,
        num_steps=num_steps,
        tasks=_plain(tasks),
        machine=this_machine(num_threads),
        seeds=records,
    )
    run, model = folder / f"seed-{seeds[0]}", folder / MODEL
    shutil.copytree(run / f"step-{num_steps}", model, dirs_exist_ok=True)
    for name in (RECIPE_FILE, METRICS_TABLE, RUN_FILE):
        shutil.copy(run / name, model)
    write_record(model, record)
    write_card(model, model.name)
    return model


def train_seeds(
    recipe: Recipe,
    folder: str | Path,
    *,
    seeds: Sequence[int],
    short_steps: int,
    tasks: MadeTaskSettings | None = None,
    num_threads: int = 2,
    console: Console | None = None,
) -> list[SeedRecord]:
    """Train a recipe with some seeds and measure each twice: what `record_trainings` then finds done.

    Several processes may share the folder, each with seeds of its own, once the videos are there.

    Args:
        recipe: With `max_steps`, on made video.
        folder: For all files.
        seeds: Of the trainings.
        short_steps: Steps of the short check, fewer than those of the recipe.
        tasks: How the frozen encoders are judged; by default as `tasks_of` the recipe.
        num_threads: That torch computes with.
        console: Where progress is shown.

    Raises:
        ValueError: The steps do not fit each other.
    """
    tasks, console, folder = tasks or tasks_of(recipe), console or Console(), Path(folder)
    steps, records = (short_steps, _require_steps(recipe, short_steps)), []
    words = command_words(
        "reproduce",
        recipe.name,
        short_steps=short_steps,
        output_dir=folder,
        seed=list(seeds),
        num_train=tasks.num_train,
        num_test=tasks.num_test,
        num_epochs=tasks.num_epochs,
        num_threads=num_threads,
    )
    record = RunRecord(kind="reproduce", command=words, seeds=seeds, settings=recipe.to_tree(), max_steps=steps[1])
    with RunFile(folder, record).recording(stopped_by=(InterruptedRunError,)):
        for seed in seeds:
            console.print(Text(f"training with seed {seed}"))
            with computing_with(num_threads):
                training = _train(recipe, seed, folder, steps=steps, console=console)
                records.append(_measure(training, seed, folder, tasks, console))
    return records


def tasks_of(recipe: Recipe, *, num_train: int = 1000, num_test: int = 1000, num_epochs: int = 20) -> MadeTaskSettings:
    """The two tasks on video like that which a recipe makes.

    Args:
        recipe: On made video.
        num_train: Labelled videos that heads learn from: the first of those that it makes.
        num_test: Videos that they are judged on.
        num_epochs: Passes of the heads over the labelled videos.

    Raises:
        ValueError: The recipe makes no video, or its clips are not told by a step.
    """
    made, clips = recipe.synthetic, recipe.clips
    if made is None or clips.needs_frame_rate or clips.frame_step is None:
        raise ValueError(
            f"the recipe {recipe.name} has no `synthetic` video with clips of a frame_step, which heads could be "
            "judged on; give one that has, such as tiny"
        )
    return MadeTaskSettings(
        num_train=num_train,
        num_test=num_test,
        num_epochs=num_epochs,
        size=made.size,
        num_frames=made.num_frames,
        frame_step=clips.frame_step,
        has_pictures=isinstance(made, MovingPictureSettings),
        scene=made.scene if isinstance(made, MovingPictureSettings) else "textured",
    )


def verify_training(
    model_folder: str | Path,
    folder: str | Path,
    *,
    is_short: bool = False,
    seed: int | None = None,
    console: Console | None = None,
) -> list[Check]:
    """Train the recipe of a model again, and compare with its record.

    The same call goes on after an interruption.

    Args:
        model_folder: With `reproduction.json`.
        folder: For the new training.
        is_short: Train the first part only.
        seed: Of the new training; by default that of the model.
        console: Where progress is shown.

    Raises:
        FileNotFoundError: The model has no record.
        ValueError: The record cannot be read.
    """
    record, folder, console = read_record(model_folder), Path(folder), console or Console()
    recipe = Recipe.from_tree(record.recipe)
    seed = record.seeds[0].seed if seed is None else seed
    step = record.short_steps if is_short else record.num_steps
    steps = [record.short_steps] if is_short else [record.short_steps, record.num_steps]
    machine = this_machine(record.machine.num_threads)
    with computing_with(machine.num_threads):
        training = _train(recipe, seed, folder, steps=steps, console=console)
        found = _measure(training, seed, folder, MadeTaskSettings(**record.tasks), console)
    return [
        compare_published(record, digest_weights(model_folder)),
        *compare(
            record,
            seed=seed,
            step=step,
            losses=found.losses,
            digest=found.digests[step],
            accuracies=found.accuracies[step],
            machine=machine,
        ),
    ]


def _require_steps(recipe: Recipe, short_steps: int) -> int:
    num_steps = int(recipe.training.max_steps)
    if not 1 <= short_steps < num_steps:
        raise ValueError(
            f"short_steps is {short_steps}, but must be at least 1 and below the recipe's max_steps, {num_steps}"
        )
    return num_steps


def _train(recipe: Recipe, seed: int, folder: Path, *, steps: Sequence[int], console: Console) -> Training:
    run = folder / f"seed-{seed}"
    share_videos(folder / VIDEOS, run)
    return train_seed(recipe, seed, run, steps=steps, console=console)


def share_videos(videos: Path, run: Path) -> None:
    """Let a run make its videos where those of other runs are: they are the same.

    Args:
        videos: The folder that is shared, made if it is not there.
        run: Folder of the run, made too; it gets a link.
    """
    for folder in (videos, run):
        folder.mkdir(parents=True, exist_ok=True)
    if not (run / VIDEOS).exists():
        (run / VIDEOS).symlink_to(videos.absolute(), target_is_directory=True)


def _measure(training: Training, seed: int, folder: Path, tasks: MadeTaskSettings, console: Console) -> SeedRecord:
    """Accuracies after each step of a training, by heads that are trained from seed 0."""
    with ProgressBar(console) as progress:
        make_task_videos(folder / "tasks", tasks, progress)
        accuracies = {
            step: _accuracies(place, folder, f"seed-{seed}-step-{step}", tasks, progress)
            for step, place in training.snapshots.items()
        }
    return SeedRecord(
        seed=seed,
        losses=training.losses,
        digests={step: training.digest(step) for step in training.snapshots},
        accuracies=accuracies,
        minutes=round(training.minutes, 1),
    )


def _accuracies(
    model: Path, folder: Path, name: str, tasks: MadeTaskSettings, progress: Progress
) -> Mapping[str, float]:
    """Of the best head, by task."""
    summaries = probe_tasks(
        [str(model)], folder / "tasks", folder / "probes" / name, tasks, seeds=(0,), progress=progress
    )
    return selected_accuracies(summaries)


def _plain(tasks: MadeTaskSettings) -> dict[str, Any]:
    """Settings as JSON has them; where the pictures lie on this machine is none of them."""
    return {name: value for name, value in tasks.to_tree().items() if name != "pictures"}
