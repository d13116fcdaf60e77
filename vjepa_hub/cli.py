"""The `vjepa-hub` command: argument parsing, then one or two calls.

What is heavy (torch, transformers) is imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from .features.extraction import VideoProgress, VideoReport
    from .hub.loading import OpenedModel

app = typer.Typer(
    name="vjepa-hub",
    help="V-JEPA: features, models and training from the command line.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)


class Dtype(str, Enum):
    """Number formats of a model."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class DenseDtype(str, Enum):
    """Number formats of stored dense features."""

    model = "model"
    float16 = "float16"


class Interpolation(str, Enum):
    """Ways to enlarge a map of tokens."""

    nearest = "nearest"
    bilinear = "bilinear"


class Baseline(str, Enum):
    """What is subtracted from features before they become colours."""

    auto = "auto"
    none = "none"
    even = "even"
    clips = "clips"


VideoFiles = Annotated[
    list[Path] | None, typer.Argument(metavar="FILE...", help="Video or image files.", show_default=False)
]
SampleClip = Annotated[bool, typer.Option("--sample", help="Use the sample clip that comes with the package.")]
ModelName = Annotated[str, typer.Option(help="A model's name, a folder, or a released file.")]
ConfigFile = Annotated[Path | None, typer.Option(help="Configuration (JSON) for a released file.")]
OutputFolder = Annotated[Path, typer.Option(help="Folder for the results; files of equal name are replaced.")]
Window = Annotated[int | None, typer.Option(help="Video frames that a clip spans. Default: 4 x the frames of a clip.")]
Stride = Annotated[int | None, typer.Option(help="Video frames from one clip to the next. Default: the window.")]
BatchSize = Annotated[int, typer.Option(help="Clips that go through the model together.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ... Default: the accelerator, if there is one.")
]
ModelDtype = Annotated[Dtype | None, typer.Option(help="Number format of the model. Default: as stored.")]
Backend = Annotated[str | None, typer.Option(help="decord, pyav or torchcodec. Default: the first that is there.")]
WithPicture = Annotated[
    bool | None, typer.Option("--picture/--no-picture", help="Draw a PNG of dense features. Default: as --dense.")
]
WithAnimation = Annotated[
    bool | None, typer.Option("--animation/--no-animation", help="Draw a GIF of them. Default: as --dense.")
]
PictureBaseline = Annotated[
    Baseline,
    typer.Option(
        help="What is subtracted before maps are drawn: none; even, the features of an even clip in the mean colour; "
        "clips, the mean over clips. auto: even for an untrained model, none for a trained one."
    ),
]


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        from . import __version__

        typer.echo(f"vjepa-hub {__version__}")
        raise typer.Exit


@app.callback()
def common_options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """V-JEPA: features, models and training from the command line."""


@app.command(
    epilog="Example: [bold]vjepa-hub features street.mp4 kitchen.mp4 --stride 32 --output-dir features[/bold]"
)
def features(
    files: VideoFiles = None,
    sample: SampleClip = False,
    model: ModelName = "vjepa-vit-tiny",
    config: ConfigFile = None,
    output_dir: OutputFolder = Path("features"),
    window: Window = None,
    stride: Stride = None,
    pooled: Annotated[bool, typer.Option(help="Store one vector per clip, the mean over its tokens.")] = True,
    dense: Annotated[bool, typer.Option(help="Store every token.")] = True,
    dense_dtype: Annotated[DenseDtype, typer.Option(help="Number format of dense features.")] = DenseDtype.model,
    picture: WithPicture = None,
    animation: WithAnimation = None,
    interpolation: Annotated[Interpolation, typer.Option(help="How maps are enlarged.")] = Interpolation.nearest,
    baseline: PictureBaseline = Baseline.auto,
    batch_size: BatchSize = 1,
    device: Device = None,
    dtype: ModelDtype = None,
    backend: Backend = None,
) -> None:
    """Compute features of whole videos, as safetensors with timestamps, and draw them as colours.

    Clips are taken over each video. NAME.safetensors holds `pooled` (clips, hidden size), `dense` (clips, depth,
    height, width, hidden size), `frame_indices` and `timestamps` in seconds (clips, frames). Its header names the
    model, its weights and the settings. A file that cannot be read is reported, the others go on, and the exit code
    is 1.
    """
    from functools import partial

    from .features.extraction import ExtractionSettings, choose_device, extract_video_set
    from .features.pictures import PictureSettings, draw_video_pictures
    from .hub.loading import open_model

    with _usage_errors():
        paths = _input_files(files, sample)
        picture, animation = _wanted_pictures(dense, picture, animation)
        settings = ExtractionSettings(
            window=window,
            stride=stride,
            batch_size=batch_size,
            pooled=pooled,
            dense=dense,
            dense_dtype=dense_dtype.value,
            backend=backend,
        )
        look = PictureSettings(interpolation=interpolation.value, baseline=baseline.value, backend=backend)
        opened = open_model(model, config=config, device=choose_device(device), dtype=dtype.value if dtype else None)
        settings.require_window_for(opened.model.config.frames_per_clip)
        output_dir.mkdir(parents=True, exist_ok=True)
    draw = partial(draw_video_pictures, opened=opened, settings=look, picture=picture, animation=animation)
    with _clip_progress(paths) as progress:
        reports = extract_video_set(
            paths, output_dir, opened, settings, after_each=draw if picture or animation else None, progress=progress
        )
    _show_reports(reports, opened)
    raise typer.Exit(1 if any(report.error for report in reports) else 0)


@app.command(epilog="Example: [bold]vjepa-hub convert vitl16.pth.tar vjepa-vitl16 --model vjepa-vitl16[/bold]")
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
    import json

    from .hub.conversion import convert_file
    from .hub.loading import resolve_config
    from .hub.registry import find_model

    if model is not None and config is not None:
        raise typer.BadParameter("--model and --config were both given: one of them says what the file is")
    console = Console(stderr=True)
    with _usage_errors(), console.status(f"converting {file}"):
        id2label = None if labels is None else json.loads(labels.read_text())
        chosen = find_model(model).config() if model is not None else resolve_config(file, config)
        written = convert_file(file, output_dir, chosen, probe_file=probe, id2label=id2label)
    console.print(f"wrote {type(written).__name__} to {output_dir}")
    console.print("The weights keep the licence of the file; those of the release are CC BY-NC 4.0.")


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn what the library says of wrong options into a usage message without a traceback, exit code 2."""
    try:
        yield
    except KeyError as error:
        raise typer.BadParameter(str(error.args[0])) from error
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error


def _input_files(files: list[Path] | None, sample: bool) -> list[Path]:
    paths = list(files or [])
    if sample:
        from .data.samples import sample_clip_path

        paths.append(Path(sample_clip_path()))
    if not paths:
        raise typer.BadParameter("no video given: name at least one FILE, or use --sample for the clip in the package")
    return paths


def _wanted_pictures(dense: bool, picture: bool | None, animation: bool | None) -> tuple[bool, bool]:
    if not dense and (picture or animation):
        raise typer.BadParameter(
            "pictures are drawn from dense features: leave out --no-dense, --picture and --animation"
        )
    return dense if picture is None else picture, dense if animation is None else animation


class _ClipRate(ProgressColumn):
    """Clips per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} clips/s" if task.speed else "", style="progress.data.speed")


@contextmanager
def _clip_progress(paths: list[Path]) -> Iterator[VideoProgress]:
    """A bar on stderr for the video at work."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _ClipRate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task("", total=None)

        def show(source: Path, done: int, total: int) -> None:
            if done == 0:
                bars.reset(bar, total=total, description=f"{source.name} ({paths.index(source) + 1} of {len(paths)})")
            bars.update(bar, completed=done)

        yield show


def _show_reports(reports: list[VideoReport], opened: OpenedModel) -> None:
    """What was written where, what failed and why, and with which weights."""
    table = Table("video", "clips", "written", box=None, pad_edge=False)
    names = [report.source.name for report in reports]
    for report in reports:
        is_unique = names.count(report.source.name) == 1
        name = Text(report.source.name if is_unique else str(report.source), overflow="fold")
        if report.error:
            table.add_row(name, "-", Text(f"failed: {report.error}", style="red", overflow="fold"))
        else:
            table.add_row(name, str(report.num_clips), Text("\n".join(map(str, report.outputs)), overflow="fold"))
    console = Console()
    console.print(table)
    console.print(Text(f"model {opened.name}: {opened.weights}", style="" if opened.is_trained else "bold yellow"))
    if not opened.is_trained:
        console.print(
            Text("These features are UNTRAINED: they show that things work, and no more.", style="bold yellow")
        )


def main() -> None:
    """Entry point of the `vjepa-hub` command."""
    app()


if __name__ == "__main__":
    main()
