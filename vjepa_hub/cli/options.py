"""Options of several commands: one name and one meaning each, with completion and the checks that need no model.

The checks run while the command line is parsed: a missing file or an unknown name is told at once, and not after torch
has been imported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.progress import is_first_process
from .common import usage_errors


def _each(check: Callable[[str], None]) -> Callable[[Any], Any]:
    """A callback that checks an option's value, or each of its values."""

    def check_all(value: Any) -> Any:
        with usage_errors():
            for item in value if isinstance(value, list | tuple) else [] if value is None else [value]:
                check(str(item))
        return value

    return check_all


# ------------------------------------------------------------------------------------------------ checks


def _require_input(path: str) -> None:
    is_pattern = "://" in path or any(sign in path for sign in "*?[{")
    if not is_pattern and not os.path.exists(path):
        raise FileNotFoundError(f"there is no file or folder '{path}'; correct the path")


def _require_folder(path: str) -> None:
    folder = os.path.abspath(path)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"'{folder}' is a file, but results go into a folder; name another")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"nothing can be written to '{folder}'; name another folder")
    if is_first_process():  # it locks the folder for the others
        from ..core.folder_lock import require_unlocked

        require_unlocked(path)


def _require_model(name: str) -> None:
    from ..hub.registry import require_model

    require_model(name)


def _require_registered(name: str) -> None:
    from ..hub.registry import find_model

    find_model(name)


def _require_encoder(name: str) -> None:
    plain = name.removeprefix("untrained:")
    if not re.match(r"[A-Za-z][\w.+-]+:", plain):  # other libraries' models are known to them
        _require_model(plain)


def _require_recipe(name: str) -> None:
    from ..pretraining.recipes import recipe_names

    if name not in recipe_names() and not os.path.isfile(name):
        from ..core.names import nearest

        raise ValueError(
            f"there is no recipe '{name}', nor a file of that name; there are {', '.join(recipe_names())}; the "
            f"nearest is '{nearest(name, recipe_names())}'"
        )


def _require_protocol(name: str) -> None:
    from ..evaluation.protocols import find_protocol

    find_protocol(name)


existing = _each(_require_input)
output_folder = _each(_require_folder)
known_encoders = _each(_require_encoder)
known_model = _each(_require_model)
known_protocol = _each(_require_protocol)
registered_model = _each(_require_registered)
known_recipe = _each(_require_recipe)


# ------------------------------------------------------------------------------------------------ completion


def _completing(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


def _model_names() -> Iterable[str]:
    from ..hub.registry import MODELS

    return MODELS


def _probe_names() -> Iterable[str]:
    from ..hub.registry import EVALUATION_SETS

    return EVALUATION_SETS


def _recipe_names() -> Iterable[str]:
    from ..pretraining.recipes import recipe_names

    return recipe_names()


def _protocol_names() -> Iterable[str]:
    from ..evaluation.protocols import PROTOCOLS

    return PROTOCOLS


complete_models = _completing(_model_names)
complete_probes = _completing(_probe_names)
complete_protocols = _completing(_protocol_names)
complete_recipes = _completing(_recipe_names)


# ------------------------------------------------------------------------------------------------ options

Manifests = Annotated[
    list[Path] | None,
    typer.Option(
        "--manifest",
        help="List of videos, with paths from its own folder: .txt (a path a line), .csv ('path label', or commas and "
        "a column 'path') or .jsonl (with 'path' or 'video'). May be repeated.",
        show_default=False,
        callback=existing,
    ),
]
ModelName = Annotated[
    str,
    typer.Option(
        help="A model's name, a folder, or a released file.", callback=known_model, autocompletion=complete_models
    ),
]
ConfigFile = Annotated[Path | None, typer.Option(help="Configuration (JSON) for a released file.", callback=existing)]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ... Default: the accelerator, if there is one.")
]
Backend = Annotated[str | None, typer.Option(help="pyav (the default), torchcodec or decord.")]
ItemTimeout = Annotated[
    float, typer.Option(help="Seconds without a new frame after which a video or image is given up.")
]
ClassNames = Annotated[
    Path | None,
    typer.Option(
        help="Names of the classes in the order of their numbers: a name on each line, or JSON.", callback=existing
    ),
]


def set_values(examples: str) -> Any:
    """The option `--set KEY=VALUE`, with examples of a command's own settings."""
    return typer.Option(
        "--set", metavar="KEY=VALUE", help=f"Another value for a setting: {examples}, ... May be repeated."
    )
