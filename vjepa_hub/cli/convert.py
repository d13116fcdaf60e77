"""`vjepa-hub convert`: a released checkpoint as a folder for from_pretrained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from .common import read_names, usage_errors
from .options import ClassNames, ConfigFile, complete_models, existing, output_folder, registered_model, set_values

if TYPE_CHECKING:
    from ..model.configuration_vjepa import VJEPAConfig

_FORK = "A fork's file"


def convert(
    file: Annotated[
        Path,
        typer.Argument(
            help="The released checkpoint, such as vitl16.pth.tar; or a folder of transformers' VJEPA2.",
            callback=existing,
        ),
    ],
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
    index: Annotated[
        int | None, typer.Option(help="Which head of a probe's file with several, from 0.", show_default=False)
    ] = None,
    class_names: ClassNames = None,
    num_attention_heads: Annotated[
        int | None, typer.Option(help="Heads of the encoder.", rich_help_panel=_FORK, min=1)
    ] = None,
    pred_num_attention_heads: Annotated[
        int | None, typer.Option(help="Heads of the predictor.", rich_help_panel=_FORK, min=1)
    ] = None,
    crop_size: Annotated[
        int | None, typer.Option(help="Height and width of its clips, in pixels.", rich_help_panel=_FORK, min=1)
    ] = None,
    frames_per_clip: Annotated[
        int | None, typer.Option(help="Frames of its clips.", rich_help_panel=_FORK, min=1)
    ] = None,
    set_value: Annotated[list[str] | None, set_values("position_embedding=rotary_tiled, num_pooler_heads=16")] = None,
) -> None:
    """Write a released checkpoint as a folder for from_pretrained: the target encoder with its predictor.

    The checkpoint of a fork needs the four numbers that no tensor tells; the rest of its configuration is inferred.

    Conversion is strict: a key that is missing, left over or of another shape is named, and nothing is written. No
    code of the file is run.
    """
    if model is not None and config is not None:
        raise typer.BadParameter("--model and --config were both given: one of them says what the file is")
    given = {
        "num_attention_heads": num_attention_heads,
        "pred_num_attention_heads": pred_num_attention_heads,
        "crop_size": crop_size,
        "frames_per_clip": frames_per_clip,
    }

    if file.is_dir() and any((model, config, probe, set_value, *given.values())):
        raise typer.BadParameter(f"{file} is a folder, which has its own configuration and head; give OUT alone")

    from ..core.folder_lock import FolderLock
    from ..core.run_files import require_own_model
    from ..hub.conversion import convert_file, write_folder
    from ..publishing.export import open_for_export

    console = Console(stderr=True)
    with usage_errors(), FolderLock(output_dir), console.status(f"converting {file}"):
        require_own_model(output_dir, inputs=[path for path in (file, config, probe) if path is not None])
        id2label = None if class_names is None else dict(enumerate(read_names(class_names) or []))
        if file.is_dir():
            written = open_for_export(str(file))
            write_folder(written, output_dir)
        else:
            chosen = _choose_config(file, model, config, given, set_value or [])
            written = convert_file(file, output_dir, chosen, probe_file=probe, id2label=id2label, index=index)
    console.print(f"wrote {type(written).__name__} to {output_dir}")
    console.print("The weights keep the licence of the file; those of V-JEPA's release are CC BY-NC 4.0.")


def _choose_config(
    file: Path, model: str | None, config: Path | None, given: dict[str, int | None], set_value: list[str]
) -> VJEPAConfig:
    from ..hub.inferred_config import infer_config
    from ..hub.loading import resolve_config
    from ..hub.registry import find_model
    from ..model.configuration_vjepa import VJEPAConfig
    from ..pretraining.recipe import ModelFields

    fields = ModelFields().with_overrides(set_value).to_tree()
    numbers = {name: number for name, number in given.items() if number is not None}
    if not numbers:
        chosen = find_model(model).config() if model is not None else resolve_config(file, config)
        return VJEPAConfig.from_dict(chosen.to_dict() | fields)
    if model is not None or config is not None:
        raise ValueError(f"{', '.join(numbers)} was given beside --model or --config, which say what the file is")
    if missing := [f"--{name.replace('_', '-')}" for name in given if name not in numbers]:
        raise ValueError(f"{', '.join(missing)} must be given too: no tensor of a file tells it")
    return infer_config(file, **numbers, **fields)
