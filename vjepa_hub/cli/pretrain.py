"""`vjepa-hub pretrain`: training by a recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .common import exit_for_unreadable, stopped_runs, usage_errors
from .options import complete_models, complete_recipes, existing, known_model, known_recipe, output_folder, set_values

if TYPE_CHECKING:
    from ..pretraining.recipe import Recipe


def pretrain(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe's name (tiny, small, base, vitl16, ...) or file (.yaml).",
            callback=known_recipe,
            autocompletion=complete_recipes,
        ),
    ],
    output_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the run. Default: runs/NAME.", show_default=False, callback=output_folder),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Videos: a manifest (.csv, .txt, .jsonl, .parquet), a folder, or tar files. May be repeated. Without "
            "it, a recipe such as tiny makes its own.",
            show_default=False,
            callback=existing,
        ),
    ] = None,
    weight: Annotated[
        list[float] | None,
        typer.Option(help="How often to draw from each --data, in their order. Default: every video equally often."),
    ] = None,
    set_value: Annotated[
        list[str] | None,
        set_values("learning_rate=1e-3, model.hidden_size=256, masks=random-tube, gradient_checkpointing=true"),
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps, as --set max_steps=N.")] = None,
    item_timeout: Annotated[
        float | None,
        typer.Option(help="Seconds without a new frame after which a video is given up. Default: the recipe's, 120."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Weights to start from: a model's name, a folder, or a released file.",
            callback=known_model,
            autocompletion=complete_models,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Show tokens, FLOPs, memory and time, and start nothing.")
    ] = False,
    num_processes: Annotated[
        int | None, typer.Option(min=1, help="For --estimate: processes, each on a device like this one.")
    ] = None,
) -> None:
    """Pretrain a model by feature prediction, from a recipe of which every value can be changed.

    [bold]vjepa-hub pretrain tiny[/bold] needs no data: it makes video, trains for minutes on two CPU cores, and ends
    with plots. The folder gets the recipe, checkpoints, metrics.csv, the model for from_pretrained, and a report. With
    --data, tiny is the recipe for a small folder of your own videos.

    Videos that cannot be read are replaced by others and listed with their causes in quarantine.jsonl; the exit code
    of a run that met some is 1. Ctrl-C ends a run after its step and saves it, a second Ctrl-C ends it at once; the
    same command again goes on from the last checkpoint.

    On several GPUs, with the same arguments:
    [bold]torchrun --nproc-per-node 8 -m vjepa_hub pretrain vitl16 ...[/bold], or
    [bold]accelerate launch --multi_gpu --num_processes 8 -m vjepa_hub pretrain vitl16 ...[/bold].
    """
    if weight and len(weight) != len(data or []):
        raise typer.BadParameter(f"{len(weight)} --weight for {len(data or [])} --data; give one for each, or none")

    from ..pretraining.recipe import DataShare, load_recipe

    options = {"max_steps": max_steps, "item_timeout": item_timeout}
    changes = [f"{name}={value}" for name, value in options.items() if value is not None]
    with usage_errors():
        chosen = load_recipe(recipe).with_overrides([*(set_value or []), *changes])
        weights: list[float | None] = [*weight] if weight else [None] * len(data or [])
        shares = [DataShare(path=path, weight=share) for path, share in zip(data or [], weights, strict=True)]
        chosen = chosen.with_inputs(data=shares or None, initial=init)
    if estimate:
        _show_estimate(chosen, num_processes)
        return

    from ..pretraining.run import prepare_run
    from ..pretraining.run_data import QUARANTINE

    with usage_errors():
        run = prepare_run(chosen, output_dir=output_dir or Path("runs", chosen.name), overwrite=overwrite)
    with stopped_runs():
        run.train()
    exit_for_unreadable(run.num_unreadable, f"other videos took their place; {run.folder / QUARANTINE} names them")


def _show_estimate(recipe: Recipe, num_processes: int | None) -> None:
    from ..pretraining.estimate import estimate_recipe

    with usage_errors():
        found = estimate_recipe(recipe, num_processes=num_processes or int(os.environ.get("WORLD_SIZE", "1")))
    console = Console()
    table = Table(f"estimate of {recipe.name}", "", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, value in found.rows():
        table.add_row(name, Text(value, overflow="fold"))
    console.print(table)
    console.print(Text(found.describe_assumptions(), style="dim"))
