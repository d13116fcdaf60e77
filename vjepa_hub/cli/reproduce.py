"""`vjepa-hub reproduce`: a recipe trained with several seeds, and the model with its record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from .common import usage_errors
from .options import complete_recipes, known_recipe, output_folder, set_values


def reproduce(
    recipe: Annotated[
        str,
        typer.Argument(
            help="Name of a bundled recipe, or a YAML file; on synthetic videos.",
            callback=known_recipe,
            autocompletion=complete_recipes,
        ),
    ],
    short_steps: Annotated[int, typer.Option(help="Steps of the short check.")],
    output_dir: Annotated[
        Path, typer.Option(help="Folder; the same command goes on where it was stopped.", callback=output_folder)
    ],
    set_value: Annotated[list[str] | None, set_values("num_train_epochs=2, learning_rate=1e-3")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="May be repeated. Default: 0, 1 and 2.")] = None,
    num_train: Annotated[int, typer.Option(help="Labelled videos that heads learn from.")] = 1000,
    num_test: Annotated[int, typer.Option(help="Labelled videos that they are judged on.")] = 1000,
    num_epochs: Annotated[int, typer.Option(help="Passes of the heads over the labelled videos.")] = 20,
    num_threads: Annotated[int, typer.Option(min=1, help="That torch computes with.")] = 2,
    train_only: Annotated[
        bool,
        typer.Option(
            "--train-only",
            help="Train and measure these seeds, and write no record: for seeds side by side in the same folder. The "
            "command without it then collects them.",
        ),
    ] = False,
) -> None:
    """Train a recipe with several seeds, judge the frozen encoders, and write the first one with the record of all.

    `vjepa-hub verify FOLDER --retrain` then trains it again and compares.
    """
    from ..pretraining.recipe import load_recipe
    from ..reproduction.retraining import record_trainings, tasks_of, train_seeds

    with usage_errors():
        chosen = load_recipe(recipe).with_overrides(set_value or [])
        tasks = tasks_of(chosen, num_train=num_train, num_test=num_test, num_epochs=num_epochs)
        run: Callable[..., object] = train_seeds if train_only else record_trainings
        made = run(
            chosen,
            output_dir,
            seeds=seed or (0, 1, 2),
            short_steps=short_steps,
            tasks=tasks,
            num_threads=num_threads,
        )
    typer.echo(f"trained in {output_dir}" if train_only else f"wrote {made}")
