"""`vjepa-hub export`: a model for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from ..core.files import require_replaceable
from .common import usage_errors
from .options import complete_models, complete_probes, known_model


def export(
    model: Annotated[
        str,
        typer.Argument(
            help="A name, a folder, a released file, or a Hub name.",
            callback=known_model,
            autocompletion=complete_models,
        ),
    ],
    file: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="File to write, .onnx or .pt2, or a folder; replaced if it exists."),
    ],
    format: Annotated[  # noqa: A002  (it is the option's name)
        Literal["onnx", "pt2", "transformers"] | None,
        typer.Option(help="Default: by the ending of OUT.", show_default=False),
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(
            help="Data set of a released probe, such as k400: logits in place of features.",
            autocompletion=complete_probes,
        ),
    ] = None,
) -> None:
    """Write a model for other runtimes: features of every token, or the logits of a classifier.

    Any batch size, clips of the model's own size, preprocessed by its video processor. onnx needs the extra onnx;
    pt2 is a program of torch.export, which torch alone runs. transformers is a folder of its own VJEPA2, which it
    loads without this package: of V-JEPA 2 alone.
    """
    chosen = format or file.suffix.removeprefix(".")
    if chosen not in ("onnx", "pt2", "transformers"):
        raise typer.BadParameter(f"{file} ends with neither .onnx nor .pt2; change its name, or give --format")

    from ..hub.transformers_vjepa2 import export_transformers
    from ..publishing.export import export_onnx, export_program, open_for_export

    console = Console(stderr=True)
    with usage_errors():
        require_replaceable([file], inputs=[model])
    with usage_errors(), console.status(f"exporting {model}"):
        write = {"onnx": export_onnx, "pt2": export_program, "transformers": export_transformers}[chosen]
        written = write(open_for_export(model, probe), file)
    console.print(f"wrote {written}")
