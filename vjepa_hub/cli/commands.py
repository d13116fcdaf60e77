"""The `vjepa-hub` command: each command in a module of its own, argument parsing and one or two calls.

What is heavy (torch, transformers) is imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..core.files import describe_output_error
from ..core.host_memory import reuse_freed_memory
from ..core.invocation import invoked_by
from ..core.progress import hide_library_bars
from .check_data import check_data
from .convert import convert
from .export import export
from .features import features
from .finetune import finetune
from .localise import localise
from .make_videos import make_videos
from .models import list_models
from .pretrain import pretrain
from .probe import ListCommand, probe
from .publish import publish
from .reproduce import reproduce
from .show_masks import show_masks
from .verify import verify


class RecordedGroup(TyperGroup):
    """Commands whose runs record the words of the command line."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Run a command; one whose output cannot be written ends with 1, and says why."""
        with invoked_by(sys.argv[1:] if args is None else args):
            try:
                return super().main(args, *rest, **options)
            except OSError as error:
                if not (reason := describe_output_error(error)):
                    raise
                typer.echo(reason, err=True)
                sys.exit(1)


app = typer.Typer(
    name="vjepa-hub",
    cls=RecordedGroup,
    help="V-JEPA: features, models and training from the command line.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        from .. import __version__

        typer.echo(f"vjepa-hub {__version__}")
        raise typer.Exit


@app.callback()
def common_options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """V-JEPA: features, models and training from the command line."""
    reuse_freed_memory()
    hide_library_bars()


def _add(name: str, command: Callable[..., None], example: str, parser: type[TyperCommand] = TyperCommand) -> None:
    # Lines of a paragraph are joined: the terminal's width breaks them, and rich would keep the source's breaks too
    text = re.sub(r"(?<!\n)\n(?![\n ])", " ", inspect.getdoc(command) or "")
    app.command(name, cls=parser, help=text, epilog=f"Example: [bold]vjepa-hub {name} {example}[/bold]")(command)


_add("features", features, "street.mp4 kitchen.mp4 --stride 32 --output-dir features")
_add("convert", convert, "vitl16.pth.tar vjepa-vitl16 --model vjepa-vitl16")
_add("list", list_models, "--json")
_add("show-masks", show_masks, "street.mp4 --kind short-range --kind future --output masks.png")
_add("check-data", check_data, "--manifest train.csv --output-dir checked")
_add("make-videos", make_videos, "train --kind fashion-mnist")
_add("pretrain", pretrain, "vitl16 --data videos.csv --output-dir out")
_add("probe", probe, "vjepa-vitl16 --protocol ssv2 --train train.csv --val val.csv", ListCommand)
_add("finetune", finetune, "vjepa-vitl16 --train train.csv --val val.csv --mode lora")
_add(
    "localise",
    localise,
    "vjepa-vitl16 --train ava_train_v2.2.csv --val ava_val_v2.2.csv --videos videos/ --val-proposals persons.csv",
)
_add("publish", publish, "runs/tiny --repo-id me/vjepa-tiny --license apache-2.0")
_add("export", export, "vjepa-vitl16 vitl16.onnx")
_add("verify", verify, "me/vjepa-tiny --run-code")
_add("reproduce", reproduce, "tiny --short-steps 100 --output-dir runs/recorded")


def main() -> None:
    """Entry point of the `vjepa-hub` command."""
    app()
