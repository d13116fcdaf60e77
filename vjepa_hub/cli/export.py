"""`vjepa-hub export`: a model for other runtimes."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from .common import usage_errors
from .options import complete_models, complete_probes, known_model

if TYPE_CHECKING:
    from ..model.modeling_vjepa import VJEPAPreTrainedModel


class ExportFormat(str, Enum):
    """Formats of an exported model."""

    onnx = "onnx"
    pt2 = "pt2"


def export(
    model: Annotated[
        str,
        typer.Argument(
            help="A name, a folder, a released file, or a Hub name.",
            callback=known_model,
            autocompletion=complete_models,
        ),
    ],
    file: Annotated[Path, typer.Argument(metavar="OUT", help="File to write, .onnx or .pt2; replaced if it exists.")],
    format: Annotated[  # noqa: A002  (it is the option's name)
        ExportFormat | None, typer.Option(help="Default: by the ending of OUT.", show_default=False)
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
    pt2 is a program of torch.export, which torch alone runs.
    """
    chosen = format.value if format else file.suffix.removeprefix(".")
    if chosen not in ("onnx", "pt2"):
        raise typer.BadParameter(f"{file} ends with neither .onnx nor .pt2; change its name, or give --format")

    from ..publishing.export import export_onnx, export_program

    console = Console(stderr=True)
    with usage_errors(), console.status(f"exporting {model}"):
        written = (export_onnx if chosen == "onnx" else export_program)(_open_for_export(model, probe), file)
    console.print(f"wrote {written}")


def _open_for_export(name: str, probe: str | None) -> VJEPAPreTrainedModel:
    """The features model, or the classifier where a folder holds one or a released probe is asked for."""
    from ..hub.loading import load_classifier, open_classifier, open_model
    from ..hub.safety import check_folder
    from ..model.modeling_vjepa import VJEPAForVideoClassification

    if probe is not None:
        return load_classifier(name, probe)
    if Path(name).is_dir() and VJEPAForVideoClassification.__name__ in (check_folder(name).architectures or ()):
        return open_classifier(name)[0]
    return open_model(name).model
