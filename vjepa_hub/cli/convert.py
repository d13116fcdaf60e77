"""`vjepa-hub convert`: a released checkpoint as a folder for from_pretrained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from .common import (
    ConfigFile,
    usage_errors,
)

if TYPE_CHECKING:
    pass


def convert(
    file: Annotated[Path, typer.Argument(help="The released checkpoint, such as vitl16.pth.tar.")],
    output_dir: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, for from_pretrained.")],
    model: Annotated[
        str | None, typer.Option(help="The registered model that the file is. Default: by its shapes.")
    ] = None,
    config: ConfigFile = None,
    probe: Annotated[Path | None, typer.Option(help="A released probe: the folder becomes a classifier.")] = None,
    labels: Annotated[Path | None, typer.Option(help='Names of its classes, JSON: {"0": "abseiling", ...}.')] = None,
) -> None:
    """Write a released checkpoint as a folder for from_pretrained: the target encoder with its predictor.

    Conversion is strict: a key that is missing, left over or of another shape is named, and nothing is written. No
    code of the file is run.
    """
    from ..hub.conversion import convert_file
    from ..hub.loading import resolve_config
    from ..hub.registry import find_model

    if model is not None and config is not None:
        raise typer.BadParameter("--model and --config were both given: one of them says what the file is")
    console = Console(stderr=True)
    with usage_errors(), console.status(f"converting {file}"):
        id2label = None if labels is None else json.loads(labels.read_text())
        chosen = find_model(model).config() if model is not None else resolve_config(file, config)
        written = convert_file(file, output_dir, chosen, probe_file=probe, id2label=id2label)
    console.print(f"wrote {type(written).__name__} to {output_dir}")
    console.print("The weights keep the licence of the file; those of the release are CC BY-NC 4.0.")
