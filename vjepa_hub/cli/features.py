"""`vjepa-hub features`: features of whole videos, and pictures of them."""

from __future__ import annotations

from collections import Counter
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.progress import ProgressBar
from .common import MAX_ROWS, input_videos, usage_errors
from .options import Backend, ConfigFile, Device, Manifests, ModelName, existing, output_folder

if TYPE_CHECKING:
    from ..core.distributed import Processes
    from ..features.extraction import ExtractionSettings
    from ..features.video_list import VideoFile
    from ..features.video_set import AfterEach, VideoReport
    from ..hub.loading import OpenedModel


class Dtype(str, Enum):
    """Number formats of a model."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class DenseDtype(str, Enum):
    """Number formats of stored dense features."""

    model = "model"
    float16 = "float16"


VideoFiles = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="FILE...",
        help="Video or image files, and folders: all videos below them.",
        show_default=False,
        callback=existing,
    ),
]


SampleClip = Annotated[bool, typer.Option("--sample", help="Use the sample clip that comes with the package.")]


OutputFolder = Annotated[
    Path,
    typer.Option(help="Folder for the results; a tree like that of the videos' folder.", callback=output_folder),
]


Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace features that are there but were made with other weights or settings."),
]


Window = Annotated[int | None, typer.Option(help="Video frames that a clip spans. Default: 4 x the frames of a clip.")]


Stride = Annotated[int | None, typer.Option(help="Video frames from one clip to the next. Default: the window.")]


ClipsPerPass = Annotated[int, typer.Option(min=1, help="Clips that the model takes at once.")]


ModelDtype = Annotated[Dtype | None, typer.Option(help="Number format of the model. Default: as stored.")]


WithPicture = Annotated[
    bool | None, typer.Option("--picture/--no-picture", help="Draw a PNG of dense features. Default: as --dense.")
]


def features(
    files: VideoFiles = None,
    manifest: Manifests = None,
    sample: SampleClip = False,
    model: ModelName = "vjepa-vit-tiny",
    config: ConfigFile = None,
    output_dir: OutputFolder = Path("features"),
    overwrite: Overwrite = False,
    window: Window = None,
    stride: Stride = None,
    pooled: Annotated[bool, typer.Option(help="Store one vector per clip, the mean over its tokens.")] = True,
    dense: Annotated[bool, typer.Option(help="Store every token.")] = True,
    dense_dtype: Annotated[DenseDtype, typer.Option(help="Number format of dense features.")] = DenseDtype.model,
    picture: WithPicture = None,
    clips_per_pass: ClipsPerPass = 1,
    device: Device = None,
    dtype: ModelDtype = None,
    backend: Backend = None,
) -> None:
    """Compute features of whole videos, as safetensors with timestamps, and draw them as colours.

    Clips are taken over each video. NAME.safetensors holds `pooled` (clips, hidden size), `dense` (clips, depth,
    height, width, hidden size), `frame_indices` and `timestamps` in seconds (clips, frames). Its header names the
    model, its weights and the settings.

    A file that cannot be read is reported, in failed.jsonl too; the others go on, and the exit code is 1. The same
    command again keeps what is done, goes on after an interruption, and tries again what failed. On several GPUs:
    [bold]torchrun --nproc-per-node 4 -m vjepa_hub features FOLDER[/bold].
    """
    with usage_errors():
        videos = input_videos(files, manifest, sample)
    if picture and not dense:
        raise typer.BadParameter("a picture is drawn from dense features: leave out --no-dense or --picture")

    from functools import partial

    from ..core.distributed import join_processes
    from ..features.extraction import ExtractionSettings
    from ..features.pictures import draw_video_picture
    from ..hub.loading import open_model

    with usage_errors():
        settings = ExtractionSettings(
            window=window,
            stride=stride,
            clips_per_pass=clips_per_pass,
            pooled=pooled,
            dense=dense,
            dense_dtype=dense_dtype.value,
            backend=backend,
        )
        processes = join_processes()
        with processes.first_goes_first():
            own_device = processes.choose_device(device)
            opened = open_model(model, config=config, device=own_device, dtype=dtype.value if dtype else None)
        settings.require_window_for(opened.model.config.frames_per_clip)
        output_dir.mkdir(parents=True, exist_ok=True)
    has_picture = dense if picture is None else picture
    after_each = partial(draw_video_picture, opened=opened, backend=backend) if has_picture else None
    is_complete = _extract_shared(videos, output_dir, opened, settings, overwrite, after_each, processes)
    raise typer.Exit(0 if is_complete else 1)


def _extract_shared(
    videos: list[VideoFile],
    output_dir: Path,
    opened: OpenedModel,
    settings: ExtractionSettings,
    overwrite: bool,
    after_each: AfterEach | None,
    processes: Processes,
) -> bool:
    """Do the videos of this process; the first one shows a bar and the summary. Whether all videos succeeded."""
    from ..features.video_set import OutputMismatchError, extract_video_set

    with ProgressBar() as progress:
        try:
            reports = extract_video_set(
                videos,
                output_dir,
                opened,
                settings,
                overwrite=overwrite,
                after_each=after_each,
                progress=progress,
                processes=processes,
            )
        except OutputMismatchError as error:
            raise typer.BadParameter(str(error)) from error
    if processes.is_first:
        _show_reports(reports, opened)
    processes.wait()  # torchrun ends all as soon as one exits with 1
    return not any(report.error for report in reports)


def _show_reports(reports: list[VideoReport], opened: OpenedModel) -> None:
    """What was written where, what failed and why, and with which weights."""
    console = Console()
    console.print(_report_table(reports))
    console.print(Text(_report_counts(reports)))
    console.print(Text(f"model {opened.name}: {opened.weights}", style="" if opened.is_trained else "bold yellow"))
    if not opened.is_trained:
        console.print(
            Text("These features are UNTRAINED: they show that things work, and no more.", style="bold yellow")
        )


def _report_table(reports: list[VideoReport]) -> Table:
    """A row for each video; of a long list, for each that failed."""
    table = Table("video", "clips", "written", box=None, pad_edge=False)
    names = Counter(report.source.name for report in reports)
    for report in reports:
        name = Text(report.source.name if names[report.source.name] == 1 else str(report.source), overflow="fold")
        if report.error:
            table.add_row(name, "-", Text(f"failed: {report.error}", style="red", overflow="fold"))
        elif len(reports) <= MAX_ROWS:
            lines = ["done before"] * report.is_done_before + [str(path) for path in report.outputs]
            table.add_row(name, str(report.num_clips), Text("\n".join(lines), overflow="fold"))
    return table


def _report_counts(reports: list[VideoReport]) -> str:
    failed = sum(report.error is not None for report in reports)
    before = sum(report.error is None and report.is_done_before for report in reports)
    counts = f"{len(reports)} videos: {len(reports) - failed - before} done, {before} done before, {failed} failed"
    return counts + (", listed in failed.jsonl in the output folder" if failed else "")
