"""`vjepa-hub localise`: actions of persons in AVA, localised on a frozen encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from ..core.progress import ProgressBar, is_first_process
from .common import compute_dtype, usage_errors
from .options import Device, complete_models, existing, known_model, output_folder, set_values


def localise(
    model: Annotated[
        str,
        typer.Argument(
            help="A V-JEPA name, folder or released file.", callback=known_model, autocompletion=complete_models
        ),
    ],
    train: Annotated[
        Path, typer.Option(help="AVA's annotations to train on, such as ava_train_v2.2.csv.", callback=existing)
    ],
    val: Annotated[Path, typer.Option(help="Those of the validation, such as ava_val_v2.2.csv.", callback=existing)],
    videos: Annotated[Path, typer.Option(help="Folder of the videos of both, named by their ids.", callback=existing)],
    output_dir: Annotated[Path, typer.Option(help="Folder of the run.", callback=output_folder)] = Path("runs/ava"),
    train_proposals: Annotated[
        Path | None,
        typer.Option(help="Boxes of persons that a detector found, to train on as well.", callback=existing),
    ] = None,
    val_proposals: Annotated[
        Path | None,
        typer.Option(
            help="Boxes of persons to classify. Without, the annotated ones: no published number then.",
            callback=existing,
        ),
    ] = None,
    label_map: Annotated[
        Path | None, typer.Option(help="The .pbtxt of the actions that count. Default: v2.2.", callback=existing)
    ] = None,
    excluded: Annotated[
        Path | None, typer.Option(help="List of key frames to leave out of the validation.", callback=existing)
    ] = None,
    start_second: Annotated[float, typer.Option(min=0, help="Where the files begin in the film: 900 if cut.")] = 0.0,
    set_value: Annotated[list[str] | None, set_values("num_epochs=5, learning_rate=1e-4")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and mirroring.")] = 0,
    dtype: Annotated[
        str, typer.Option(help="What the encoder computes in: auto, float32, bfloat16 or float16.")
    ] = "auto",
    clips_per_pass: Annotated[int, typer.Option(min=1, help="Clips that the encoder takes at once.")] = 8,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 2,
    device: Device = None,
) -> None:
    """Localise actions in AVA: a linear head on person boxes over a frozen encoder, and mean average precision.

    The same command again goes on where it was stopped. The folder gets results.json, which says where each setting
    comes from, and detections.csv in AVA's format, for the official evaluation.
    """
    from ..core.run_files import RESULTS_FILE
    from ..evaluation.ava.protocol import LocalisationProtocol
    from ..evaluation.ava.run import LocalisationSettings, run_localisation
    from ..evaluation.tokens import EncodingSettings

    with usage_errors(), ProgressBar() as progress:
        settings = LocalisationSettings(
            model=model,
            train=train,
            validation=val,
            videos=videos,
            train_proposals=train_proposals,
            val_proposals=val_proposals,
            label_map=label_map,
            excluded=excluded,
            protocol=LocalisationProtocol().with_overrides(set_value or []),
            start_second=start_second,
            seed=seed,
            device=device,
            encoding=EncodingSettings(
                dtype=compute_dtype(dtype, device), clips_per_pass=clips_per_pass, num_workers=num_workers
            ),
        )
        found = run_localisation(settings, output_dir, progress)
    if is_first_process():
        Console().print(Text(f"mean average precision {found.mean_average_precision:.4f}"))
        typer.echo(f"wrote {output_dir / RESULTS_FILE}")
