"""`vjepa-hub check-data`: every frame of every video is decoded, and the good videos are listed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.names import counted
from ..core.progress import ProgressBar
from .common import MAX_ROWS, input_videos, usage_errors
from .options import Backend, ItemTimeout, Manifests, existing, output_folder

if TYPE_CHECKING:
    from ..data.checking import CheckSummary


def check_data(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Videos, and sources as for training: folders, manifests, parquet and tar files, addresses.",
            show_default=False,
            callback=existing,
        ),
    ] = None,
    manifest: Manifests = None,
    output_dir: Annotated[
        Path, typer.Option(help="Folder for the report and the lists.", callback=output_folder)
    ] = Path("checked"),
    item_timeout: ItemTimeout = 120.0,
    processes: Annotated[
        int | None, typer.Option(help="Files to decode at the same time. Default: one for each processor.")
    ] = None,
    backend: Backend = None,
    again: Annotated[bool, typer.Option("--again", help="Check also what was checked before.")] = False,
) -> None:
    """Decode every frame of every video, and list the good ones for training.

    Each file is decoded in a process of its own, which is killed if it hangs and may crash: such a file is bad, and
    the others go on. The exit code is 1 if any is bad. The same command again goes on after an interruption, and
    checks only what is new or has changed.

    The folder gets report.jsonl (a line for each video), bad.jsonl (path, cause and remedy), good-NAME for each
    manifest (in its own form, with labels) and good.txt for the videos of files and folders.
    """
    from ..core.folder_lock import FolderLock
    from ..data.checking import REPORT, check_videos, require_own_lists, write_check_lists
    from ..data.manifests import MANIFEST_ENDINGS

    manifests = list(manifest or [])
    with usage_errors():
        # A manifest that is named as a source gets its own list of good videos, too.
        is_manifest = [file.lower().endswith(MANIFEST_ENDINGS) for file in files or []]
        manifests += [Path(file) for file, is_list in zip(files or [], is_manifest, strict=True) if is_list]
        sources = [file for file, is_list in zip(files or [], is_manifest, strict=True) if not is_list]
        require_own_lists(output_dir, manifests=manifests, has_others=bool(sources))
        named = input_videos(sources, [], sample=False) if sources or not manifests else []
        listed = input_videos([], manifests, sample=False) if manifests else []
        videos = [video.record or video.path for video in (*named, *listed)]
        others = [video.path for video in named if video.record is None]
        with FolderLock(output_dir), ProgressBar() as progress:
            summary = check_videos(
                videos,
                output_dir / REPORT,
                item_timeout=item_timeout,
                processes=processes,
                backend=backend,
                again=again,
                progress=progress,
            )
            written = write_check_lists(summary, output_dir, manifests=manifests, others=others)
    _show_check(summary)
    for path in [output_dir / REPORT, *written]:
        typer.echo(f"wrote {path}")
    raise typer.Exit(1 if summary.bad else 0)


def _show_check(summary: CheckSummary) -> None:
    """The bad videos one by one, then how many there are of which kind."""
    console = Console()
    for video in summary.bad[:MAX_ROWS]:
        console.print(Text(f"bad: {video.path}: {video.cause}", style="red"), soft_wrap=True)
    if len(summary.bad) > MAX_ROWS:
        console.print(f"... and {len(summary.bad) - MAX_ROWS} more, all in bad.jsonl")
    if summary.bad or summary.count_warnings():
        console.print(_cause_table(summary))
    counts = f"{counted(len(summary.videos), 'video')}: {len(summary.good)} good, {len(summary.bad)} bad"
    console.print(Text(f"{counts}; {summary.num_done_before} of them checked before"))


def _cause_table(summary: CheckSummary) -> Table:
    table = Table("videos", "verdict", "cause (of the first)", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.columns[0].justify = "right"
    for cause, count in summary.count_causes().most_common():
        table.add_row(str(count), Text("bad", style="red"), Text(cause, overflow="fold"))
    for warning, count in summary.count_warnings().most_common():
        table.add_row(str(count), "good, but", Text(warning, overflow="fold"))
    return table
