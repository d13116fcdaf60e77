"""`vjepa-hub features`: features of whole videos, and pictures of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.files import require_replaceable
from ..core.names import counted
from ..core.progress import ProgressBar
from .common import MAX_ROWS, input_videos, show_cost, usage_errors
from .options import Backend, ConfigFile, Device, ItemTimeout, Manifests, ModelName, existing, output_folder

if TYPE_CHECKING:
    from ..features.video_set import VideoReport
    from ..hub.loading import OpenedModel


def features(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Videos, images, and sources as for training: folders, manifests, parquet and tar files, addresses.",
            show_default=False,
            callback=existing,
        ),
    ] = None,
    manifest: Manifests = None,
    sample: Annotated[bool, typer.Option("--sample", help="Use the sample clip that comes with the package.")] = False,
    model: ModelName = "vjepa-vit-tiny",
    config: ConfigFile = None,
    output_dir: Annotated[
        Path,
        typer.Option(help="Folder for the results; a tree like that of the videos' folder.", callback=output_folder),
    ] = Path("features"),
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace features that are there but were made with other weights or settings."
        ),
    ] = False,
    window: Annotated[
        int | None, typer.Option(help="Video frames that a clip spans. Default: 4 x the frames of a clip.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Video frames from one clip to the next. Default: the window.")
    ] = None,
    pooled: Annotated[bool, typer.Option(help="Store one vector per clip, the mean over its tokens.")] = True,
    dense: Annotated[bool, typer.Option(help="Store every token.")] = True,
    levels: Annotated[
        bool, typer.Option("--levels", help="Store every token of each feature level too: four in V-JEPA 2.1.")
    ] = False,
    dense_dtype: Annotated[
        Literal["model", "float16"], typer.Option(help="Number format of dense features and levels.")
    ] = "model",
    picture: Annotated[
        bool | None,
        typer.Option("--picture/--no-picture", help="Draw a PNG of dense features. Default: as --dense."),
    ] = None,
    clips_per_pass: Annotated[int, typer.Option(min=1, help="Clips that the model takes at once.")] = 1,
    crop_size: Annotated[int | None, typer.Option(min=1, help="Pixels of a clip. Default: the model's own.")] = None,
    frames_per_clip: Annotated[int | None, typer.Option(min=1, help="Default: the model's own.")] = None,
    device: Device = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(help="Number format of the model. Default: as stored."),
    ] = None,
    backend: Backend = None,
    item_timeout: ItemTimeout = 120.0,
) -> None:
    """Compute features of whole videos, as safetensors with timestamps, and draw them as colours.

    Clips are taken over each video. NAME.safetensors holds `pooled` (clips, hidden size), `dense` (clips, depth,
    height, width, hidden size), with --levels `levels` too (clips, levels, depth, ...), `frame_indices` and
    `timestamps` in seconds (clips, frames). Its header names the model, its weights and the settings.

    A file that cannot be read is reported, in failed.jsonl too; the others go on, and the exit code is 1. The same
    command again keeps what is done, goes on after an interruption, and tries again what failed. On several GPUs:
    [bold]torchrun --nproc-per-node 4 -m vjepa_hub features FOLDER[/bold].
    """
    with usage_errors():
        videos = input_videos(files, manifest, sample)
        require_replaceable([output_dir / "failed.jsonl"], inputs=[*(files or []), *(manifest or [])])
    if picture and not dense:
        raise typer.BadParameter("a picture is drawn from dense features: leave out --no-dense or --picture")
    if not (pooled or dense or levels):
        raise typer.BadParameter("--no-pooled and --no-dense leave nothing to compute: leave out one, or add --levels")

    from functools import partial

    from ..core.distributed import join_processes
    from ..core.folder_lock import FolderInUseError
    from ..core.settings import SettingsError
    from ..features.extraction import ExtractionSettings, with_clips_of
    from ..features.pictures import draw_video_picture
    from ..features.video_set import OutputMismatchError, extract_video_set, extraction_cost
    from ..hub.loading import open_model

    with usage_errors():
        settings = ExtractionSettings(
            window=window,
            stride=stride,
            clips_per_pass=clips_per_pass,
            pooled=pooled,
            dense=dense,
            levels=levels,
            dense_dtype=dense_dtype,
            backend=backend,
            item_timeout=item_timeout,
        )
        processes = join_processes()
        with processes.first_goes_first():
            opened = open_model(model, config=config, device=processes.choose_device(device), dtype=dtype)
        opened = with_clips_of(opened, crop_size=crop_size, frames_per_clip=frames_per_clip)
        settings.require_window_for(opened.model.config.frames_per_clip)
        if processes.is_first:
            show_cost(extraction_cost(videos, opened, settings, processes.count))
    has_picture = dense if picture is None else picture
    picture_of = partial(draw_video_picture, opened=opened, backend=backend, item_timeout=item_timeout)
    refusals = (SettingsError, OutputMismatchError, FolderInUseError, FileExistsError)
    with usage_errors(*refusals), ProgressBar() as progress:
        reports = extract_video_set(
            videos,
            output_dir,
            opened,
            settings,
            overwrite=overwrite,
            after_each=picture_of if has_picture else None,
            progress=progress,
            processes=processes,
        )
    if processes.is_first:
        _show_reports(reports, opened)
    processes.wait()  # torchrun ends all as soon as one exits with 1
    raise typer.Exit(1 if any(report.error for report in reports) else 0)


def _show_reports(reports: list[VideoReport], opened: OpenedModel) -> None:
    """Show outputs, failures with their causes, and the weights."""
    console, table = Console(), Table("video", "clips", "written", box=None, pad_edge=False)
    names = Counter(report.source.name for report in reports)
    for report in reports:
        name = Text(report.source.name if names[report.source.name] == 1 else str(report.source), overflow="fold")
        if report.error:
            table.add_row(name, "-", Text(f"failed: {report.error}", style="red", overflow="fold"))
        elif len(reports) <= MAX_ROWS:
            lines = ["done before"] * report.is_done_before + [str(path) for path in report.outputs]
            table.add_row(name, str(report.num_clips), Text("\n".join(lines), overflow="fold"))
    console.print(table)
    console.print(Text(_describe_counts(reports)))
    console.print(Text(f"model {opened.name}: {opened.weights}", style="" if opened.is_trained else "bold yellow"))
    if not opened.is_trained:
        warning = "These features are UNTRAINED: they show that things work, and no more."
        console.print(Text(warning, style="bold yellow"))


def _describe_counts(reports: list[VideoReport]) -> str:
    failed = sum(report.error is not None for report in reports)
    before = sum(report.error is None and report.is_done_before for report in reports)
    total = counted(len(reports), "video")
    counts = f"{total}: {len(reports) - failed - before} done, {before} done before, {failed} failed"
    return counts + (", listed in failed.jsonl in the output folder" if failed else "")
