"""`vjepa-hub convert`: a released checkpoint as a folder for from_pretrained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .common import read_names, usage_errors
from .options import ClassNames, ConfigFile, complete_models, existing, output_folder, registered_model


def convert(
    file: Annotated[Path, typer.Argument(help="The released checkpoint, such as vitl16.pth.tar.", callback=existing)],
    output_dir: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder to write, for from_pretrained.", callback=output_folder)
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="The registered model that the file is. Default: by its shapes.",
            callback=registered_model,
            autocompletion=complete_models,
        ),
    ] = None,
    config: ConfigFile = None,
    probe: Annotated[
        Path | None, typer.Option(help="A released probe: the folder becomes a classifier.", callback=existing)
    ] = None,
    class_names: ClassNames = None,
) -> None:
    """Write a released checkpoint as a folder for from_pretrained: the target encoder with its predictor.

    Conversion is strict: a key that is missing, left over or of another shape is named, and nothing is written. No
    code of the file is run.
    """
    if model is not None and config is not None:
        raise typer.BadParameter("--model and --config were both given: one of them says what the file is")

    from ..core.folder_lock import FolderLock
    from ..hub.conversion import convert_file
    from ..hub.loading import resolve_config
    from ..hub.registry import find_model

    console = Console(stderr=True)
    with usage_errors(), FolderLock(output_dir), console.status(f"converting {file}"):
        id2label = None if class_names is None else dict(enumerate(read_names(class_names) or []))
        chosen = find_model(model).config() if model is not None else resolve_config(file, config)
        written = convert_file(file, output_dir, chosen, probe_file=probe, id2label=id2label)
    console.print(f"wrote {type(written).__name__} to {output_dir}")
    console.print("The weights keep the licence of the file; those of the release are CC BY-NC 4.0.")
