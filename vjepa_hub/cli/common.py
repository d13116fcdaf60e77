"""Shared by the commands: usage errors and options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text

from ..core.files import describe_output_error
from ..core.names import counted
from ..core.progress import is_first_process

if TYPE_CHECKING:
    from ..features.video_list import VideoFile
    from ..hub.cost import EncodingCost


@contextmanager
def usage_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turn what the library says of wrong options into a usage message without a traceback, exit code 2.

    Args:
        kinds: The errors; by default KeyError, ValueError and OSError.
    """
    told = kinds or (KeyError, ValueError, OSError)
    try:
        yield
    except told as error:
        if isinstance(error, OSError) and describe_output_error(error):  # no mistake of usage
            raise
        raise typer.BadParameter(str(error.args[0] if isinstance(error, KeyError) else error)) from error


@contextmanager
def stopped_runs() -> Iterator[None]:
    """End with 1 and the reason where a training stops by itself, and after a signal with 128 and its number."""
    from ..core.checkpoints import CheckpointError
    from ..data.quarantine import KilledWorkerError, NoReadableVideoError, TooManyBadVideosError
    from ..pretraining.finite import NonFiniteLossError
    from ..pretraining.interruption import InterruptedRunError

    try:
        yield
    except InterruptedRunError as interruption:
        if is_first_process():
            typer.echo(str(interruption))
        raise typer.Exit(128 + interruption.signal_number) from interruption
    except (
        CheckpointError,
        KilledWorkerError,
        NonFiniteLossError,
        NoReadableVideoError,
        TooManyBadVideosError,
    ) as error:
        typer.echo(f"the run stopped: {error}", err=True)
        raise typer.Exit(1) from error


# A summary of more videos than these names only those that failed.
MAX_ROWS = 50


def input_videos(files: list[str] | None, manifests: list[Path] | None, sample: bool) -> list[VideoFile]:
    """Videos of files and sources, and the sample clip where it is asked for."""
    from ..features.video_list import find_videos

    paths: list[str | Path] = [*(files or []), *(manifests or [])]
    if sample:
        from ..data.samples import sample_clip_path

        paths.append(sample_clip_path())
    if not paths:
        raise typer.BadParameter(
            "no video given: name at least one FILE, folder or --manifest, or use --sample for the clip in the package"
        )
    return find_videos(paths)


def read_names(file: Path | None) -> list[str] | None:
    """Names of classes, in the order of their numbers."""
    from ..evaluation.labelled import read_class_names

    return None if file is None else read_class_names(file)


def compute_dtype(name: str, device: str | None) -> str:
    """Number format of an encoder; "auto" is bfloat16 on a GPU that has it, and float32 elsewhere."""
    if name != "auto":
        return name
    import torch

    is_gpu = torch.cuda.is_available() and (device is None or device.startswith("cuda"))
    return "bfloat16" if is_gpu and torch.cuda.is_bf16_supported() else "float32"


def exit_for_unreadable(number: int, consequence: str = "they count as wrong, and are named above") -> None:
    """End with exit code 1 where videos could not be read, and say so on stderr.

    Args:
        number: Of these videos.
        consequence: What became of them, in words.

    Raises:
        typer.Exit: There are some; in the first process, since torchrun ends all as soon as one exits with 1.
    """
    if number and is_first_process():
        typer.echo(f"{counted(number, 'video')} could not be read: {consequence}", err=True)
        raise typer.Exit(1)


def show_cost(cost: EncodingCost) -> None:
    """Show what a command is going to cost, and warn of what is much, in the first process."""
    console = Console(quiet=not is_first_process())
    console.print(Text(cost.describe(), style="dim"), soft_wrap=True)
    for warning in cost.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)
