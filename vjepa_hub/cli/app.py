"""The `vjepa-hub` command: argument parsing, then one or two calls.

What is heavy (torch, transformers) is imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

from ..core.host_memory import reuse_freed_memory
from . import evaluation, publishing, reproduction
from .common import usage_errors

if TYPE_CHECKING:
    from ..core.distributed import Processes
    from ..data.checking import CheckedVideo, CheckProgress, CheckSummary
    from ..features.extraction import ExtractionSettings
    from ..features.mask_pictures import MaskedClip
    from ..features.video_list import VideoFile
    from ..features.video_set import AfterEach, VideoProgress, VideoReport
    from ..hub.cache import CachedFolder
    from ..hub.loading import OpenedModel
    from ..hub.registry import ModelEntry
    from ..pretraining.estimate import Estimate
    from ..pretraining.recipe import DataShare, Recipe

app = typer.Typer(
    name="vjepa-hub",
    help="V-JEPA: features, models and training from the command line.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)


# A summary of more videos than these names only those that failed.
MAX_ROWS = 50


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

    auto = "auto"
    nearest = "nearest"
    bilinear = "bilinear"


class Baseline(str, Enum):
    """What is subtracted from features before they become colours."""

    auto = "auto"
    none = "none"
    even = "even"
    clips = "clips"


class MadeKind(str, Enum):
    """What made video shows."""

    shapes = "shapes"
    fashion_mnist = "fashion-mnist"


class MaskKind(str, Enum):
    """Kinds of masks."""

    short_range = "short-range"
    long_range = "long-range"
    random_tube = "random-tube"
    causal = "causal"
    future = "future"
    box = "box"


VideoFiles = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="FILE...", help="Video or image files, and folders: all videos below them.", show_default=False
    ),
]
Manifests = Annotated[
    list[Path] | None,
    typer.Option(
        "--manifest",
        help="List of videos, with paths from its own folder: .txt (a path a line), .csv ('path label', or commas and "
        "a column 'path') or .jsonl (with 'path' or 'video'). May be repeated.",
        show_default=False,
    ),
]
SampleClip = Annotated[bool, typer.Option("--sample", help="Use the sample clip that comes with the package.")]
ModelName = Annotated[str, typer.Option(help="A model's name, a folder, or a released file.")]
ConfigFile = Annotated[Path | None, typer.Option(help="Configuration (JSON) for a released file.")]
OutputFolder = Annotated[Path, typer.Option(help="Folder for the results; a tree like that of the videos' folder.")]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace features that are there but were made with other weights or settings."),
]
Window = Annotated[int | None, typer.Option(help="Video frames that a clip spans. Default: 4 x the frames of a clip.")]
Stride = Annotated[int | None, typer.Option(help="Video frames from one clip to the next. Default: the window.")]
BatchSize = Annotated[int, typer.Option(help="Clips that go through the model together.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ... Default: the accelerator, if there is one.")
]
ModelDtype = Annotated[Dtype | None, typer.Option(help="Number format of the model. Default: as stored.")]
Backend = Annotated[str | None, typer.Option(help="decord, pyav or torchcodec. Default: the first that is there.")]
FrugalBackend = Annotated[
    str | None, typer.Option("--backend", help="decord, pyav or torchcodec. Default: pyav, for its bounded memory.")
]
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
MapDetail = Annotated[
    int | None,
    typer.Option(
        help="Cells of a drawn map for each token, in each direction: above 1 the model sees each clip at as many "
        "shifts by parts of a patch. Default: what makes 12 cells a side, which is 1 for the released models."
    ),
]


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


@app.command(
    epilog="Example: [bold]vjepa-hub features street.mp4 kitchen.mp4 --stride 32 --output-dir features[/bold]"
)
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
    animation: WithAnimation = None,
    interpolation: Annotated[Interpolation, typer.Option(help="How maps are enlarged.")] = Interpolation.auto,
    baseline: PictureBaseline = Baseline.auto,
    detail: MapDetail = None,
    batch_size: BatchSize = 1,
    device: Device = None,
    dtype: ModelDtype = None,
    backend: FrugalBackend = None,
) -> None:
    """Compute features of whole videos, as safetensors with timestamps, and draw them as colours.

    Clips are taken over each video. NAME.safetensors holds `pooled` (clips, hidden size), `dense` (clips, depth,
    height, width, hidden size), `frame_indices` and `timestamps` in seconds (clips, frames). Its header names the
    model, its weights and the settings.

    A file that cannot be read is reported, in failed.jsonl too; the others go on, and the exit code is 1. The same
    command again keeps what is done, goes on after an interruption, and tries again what failed. On several GPUs:
    [bold]torchrun --nproc-per-node 4 -m vjepa_hub features FOLDER[/bold].
    """
    from functools import partial

    from ..core.distributed import join_processes
    from ..features.extraction import ExtractionSettings
    from ..features.pictures import PictureSettings, update_video_pictures
    from ..features.shifted_windows import choose_detail

    with usage_errors():
        videos = _input_videos(files, manifest, sample)
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
    with join_processes() as processes:
        with usage_errors():
            opened = _open_on_own_device(processes, model, config, device, dtype)
            settings.require_window_for(opened.model.config.frames_per_clip)
            look = PictureSettings(
                interpolation=interpolation.value,
                baseline=baseline.value,
                detail=choose_detail("auto" if detail is None else detail, opened),
                backend=backend,
            )
            output_dir.mkdir(parents=True, exist_ok=True)
        draw = partial(update_video_pictures, opened=opened, settings=look, picture=picture, animation=animation)
        after_each = draw if picture or animation else None
        is_complete = _extract_shared(videos, output_dir, opened, settings, overwrite, after_each, processes)
    raise typer.Exit(0 if is_complete else 1)


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

    from ..hub.conversion import convert_file
    from ..hub.loading import resolve_config
    from ..hub.registry import find_model

    if model is not None and config is not None:
        raise typer.BadParameter("--model and --config were both given: one of them says what the file is")
    console = Console(stderr=True)
    with usage_errors(), console.status(f"converting {file}"):
        id2label = None if labels is None else json.loads(labels.read_text())
        chosen = find_model(model).config() if model is not None else resolve_config(file, config)
        written = convert_file(file, output_dir, chosen, probe_file=probe, id2label=id2label)
    console.print(f"wrote {type(written).__name__} to {output_dir}")
    console.print("The weights keep the licence of the file; those of the release are CC BY-NC 4.0.")


@app.command(name="list", epilog="Example: [bold]vjepa-hub list --json[/bold]")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")] = False,
) -> None:
    """List the models that go by a name, where their weights are, and what of them is in the local cache."""
    import json

    from huggingface_hub import constants

    from ..hub.cache import list_cached
    from ..hub.registry import MODELS, download_address

    with usage_errors():
        entries, cached = list(MODELS.values()), list_cached()
        addresses = [entry.checkpoint and download_address(entry.checkpoint) for entry in entries]
    if as_json:
        rows = [_model_fields(entry, address) for entry, address in zip(entries, addresses, strict=True)]
        folders = [{**vars(folder), "path": str(folder.path)} for folder in cached]
        typer.echo(json.dumps({"models": rows, "cache": constants.HF_HUB_CACHE, "cached": folders}, indent=2))
        return
    console = Console()
    console.print(_model_table(entries, addresses))
    console.print()
    if cached:
        console.print(_cache_table(cached))
    where = f"cache: {constants.HF_HUB_CACHE}" + ("" if cached else " (no model of the family)")
    console.print(Text(where, style="dim", overflow="fold"))


@app.command(
    name="show-masks",
    epilog="Example: [bold]vjepa-hub show-masks street.mp4 --kind short-range --kind future --output masks.png[/bold]",
)
def show_masks(
    video: Annotated[
        Path | None, typer.Argument(help="A video or an image. Default: the sample clip.", show_default=False)
    ] = None,
    output: Annotated[Path, typer.Option(help="The picture, a .png; replaced if it exists.")] = Path("masks.png"),
    kind: Annotated[
        list[MaskKind] | None,
        typer.Option(help="May be repeated. Default: the kinds of training, that is all but future and box."),
    ] = None,
    model: Annotated[str, typer.Option(help="The model whose tokens are shown: a name or a folder.")] = "vjepa-vitl16",
    size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Pixels of the clip, 224 or 192x320. Default: the model's.")
    ] = None,
    step: Annotated[int, typer.Option(help="Step of training, which sets the size of the blocks.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the places of blocks and patches.")] = 0,
    batch_size: Annotated[
        int, typer.Option(help="Clips that are drawn together and cut to the smallest counts; the first is shown.")
    ] = 1,
    frame: Annotated[
        int | None, typer.Option(help="First hidden frame of the clip, for future. Default: the middle one.")
    ] = None,
    box: Annotated[
        tuple[int, int, int, int] | None,
        typer.Option(metavar="TOP LEFT BOTTOM RIGHT", help="Pixels, for box. Default: the middle of the frame."),
    ] = None,
    columns: Annotated[int, typer.Option(min=1, help="Moments to show at most.")] = 8,
    animation: Annotated[bool, typer.Option("--animation", help="Draw a GIF of all moments too.")] = False,
    backend: Backend = None,
) -> None:
    """Draw masks on a clip: what the encoder sees, and what is hidden from it for the predictor to predict.

    short-range and long-range are the two kinds of the paper's training, random-tube and causal those of its
    ablation, future and box are made by hand. The same step and seed give the same masks.
    """
    from ..data.samples import sample_clip_path
    from ..features.mask_pictures import TRAINING_KINDS, MaskDraw, open_masked_clip, save_mask_pictures, token_grid

    kinds = [chosen.value for chosen in kind] if kind else list(TRAINING_KINDS)
    _require_kind("--frame", frame, "future", kinds)
    _require_kind("--box", box, "box", kinds)
    _require_new_png(output, video)
    with usage_errors():
        grid = token_grid(model, size)
        draw = MaskDraw(grid=grid, step=step, seed=seed, batch_size=batch_size, frame=frame, box=box)
        clip = open_masked_clip(video or sample_clip_path(), draw, kinds, model=model, backend=backend)
        written = save_mask_pictures(clip, draw, output, columns=columns, animation=animation)
    _show_counts(clip)
    for path in written:
        typer.echo(f"wrote {path}")


@app.command(
    name="check-data", epilog="Example: [bold]vjepa-hub check-data --manifest train.csv --output-dir checked[/bold]"
)
def check_data(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE...", help="Videos, and folders: all videos below them.", show_default=False),
    ] = None,
    manifest: Manifests = None,
    output_dir: Annotated[Path, typer.Option(help="Folder for the report and the lists.")] = Path("checked"),
    timeout: Annotated[
        float, typer.Option(help="Seconds without a new frame after which the decoder counts as hanging.")
    ] = 60.0,
    processes: Annotated[
        int | None, typer.Option(help="Files to decode at the same time. Default: one for each processor.")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="decord, pyav or torchcodec, and no other. Default: the one that training takes for a file, and then "
            "pyav, which notices more damage."
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Check also what was checked before.")] = False,
) -> None:
    """Decode every frame of every video, and list the good ones for training.

    Each file is decoded in a process of its own, which is killed if it hangs and may crash: such a file is bad, and
    the others go on. The exit code is 1 if any is bad. The same command again goes on after an interruption, and
    checks only what is new or has changed.

    The folder gets report.jsonl (a line for each video), bad.jsonl (path, cause and remedy), good-NAME for each
    manifest (in its own form, with labels) and good.txt for the videos of files and folders.
    """
    from ..data.checking import REPORT, check_videos, require_own_names, write_check_lists

    manifests = manifest or []
    with usage_errors():
        require_own_names(manifests)
        videos = [video.path for video in _input_videos(files, manifests, sample=False)]
        others = [video.path for video in _input_videos(files, [], sample=False)] if files else []
        with _check_progress() as progress:
            summary = check_videos(
                videos,
                output_dir / REPORT,
                timeout=timeout,
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


@app.command(
    name="make-videos",
    epilog="Example: [bold]vjepa-hub make-videos train --kind fashion-mnist[/bold]",
)
def make_videos_command(
    folder: Annotated[Path, typer.Argument(help="Made if it is not there; videos that are there are kept.")],
    kind: Annotated[MadeKind, typer.Option(help="What moves: drawn shapes, or pictures.")] = MadeKind.shapes,
    num_videos: Annotated[int, typer.Option(help="Number of videos.")] = 1000,
    size: Annotated[int, typer.Option(help="Side of the square frames in pixels.")] = 64,
    num_frames: Annotated[int, typer.Option(help="Frames of each video.")] = 32,
    split: Annotated[str, typer.Option(help="train or test; they share neither backgrounds nor pictures.")] = "train",
    seed: Annotated[int, typer.Option(help="Everything is a function of it.")] = 0,
    scene: Annotated[
        str | None,
        typer.Option(help="How pictures look: textured (the default), or grainy: grey, in grain new in every frame."),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the four IDX files of Fashion-MNIST (MIT licence). Default: that of Debian's package "
            "dataset-fashion-mnist."
        ),
    ] = None,
) -> None:
    """Make labelled video: H.264 files whose objects and motions are told apart by two labels each.

    The same numbers give the same videos. The folder gets videos.csv (path and both labels), and appearance.csv and
    motion.csv in the form 'path label', for pretrain, probe and finetune.
    """
    from ..data.synthetic.videos import MADE_KINDS, make_videos
    from ..pretraining.console import shown_progress

    if kind is MadeKind.shapes and (pictures is not None or scene is not None):
        raise typer.BadParameter("--pictures and --scene are for --kind fashion-mnist; shapes are drawn")
    look: dict[str, Any] = {} if scene is None else {"scene": scene}
    with usage_errors():
        settings = MADE_KINDS[kind.value](
            num_videos=num_videos, size=size, num_frames=num_frames, split=split, seed=seed, **look
        )
        with shown_progress(Console(stderr=True), f"making {num_videos:,} videos in {folder}") as progress:
            manifest = make_videos(folder, settings, pictures=pictures, progress=progress)
    typer.echo(f"wrote {manifest}")


@app.command(epilog="Example: [bold]vjepa-hub pretrain vitl16 --data videos.csv --output-dir out[/bold]")
def pretrain(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (tiny, small, base, vitl16, ...) or file (.yaml).")],
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder of the run. Default: runs/NAME.", show_default=False)
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Videos: a manifest (.csv, .txt, .jsonl, .parquet), a folder, or tar files. May be repeated. Without "
            "it, a recipe such as tiny makes its own.",
            show_default=False,
        ),
    ] = None,
    weight: Annotated[
        list[float] | None,
        typer.Option(help="How often to draw from each --data, in their order. Default: every video equally often."),
    ] = None,
    set_value: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Another value for a key of the recipe: learning_rate=1e-3, model.hidden_size=256, "
            "masks=random-tube, gradient_checkpointing=true, ... May be repeated.",
        ),
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps, as --set max_steps=N.")] = None,
    init: Annotated[
        str | None, typer.Option(help="Weights to start from: a model's name, a folder, or a released file.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Show tokens, FLOPs, memory and time, and start nothing.")
    ] = False,
    num_processes: Annotated[
        int | None, typer.Option(min=1, help="For --estimate: processes, each on a device like this one.")
    ] = None,
) -> None:
    """Pretrain a model by feature prediction, from a recipe of which every value can be changed.

    [bold]vjepa-hub pretrain tiny[/bold] needs no data: it makes video, trains for minutes on two CPU cores, and ends
    with plots. The folder gets the recipe, checkpoints, metrics.csv, the model for from_pretrained, and a report.

    Ctrl-C ends a run after its step and saves it. On several GPUs, with the same arguments:
    [bold]torchrun --nproc-per-node 8 -m vjepa_hub pretrain vitl16 ...[/bold], or
    [bold]accelerate launch --multi_gpu --num_processes 8 -m vjepa_hub pretrain vitl16 ...[/bold].
    """
    from ..pretraining.recipe import load_recipe

    steps = [] if max_steps is None else [f"max_steps={max_steps}"]
    with usage_errors():
        chosen = load_recipe(recipe).with_overrides([*(set_value or []), *steps])
        chosen = chosen.with_inputs(data=_data_shares(data, weight), initial=init)
    if estimate:
        _show_estimate(chosen, num_processes)
    else:
        _run_recipe(chosen, output_dir or Path("runs", chosen.name), resume=resume, overwrite=overwrite)


def _input_videos(files: list[Path] | None, manifests: list[Path] | None, sample: bool) -> list[VideoFile]:
    from ..features.video_list import find_videos

    paths = list(files or [])
    if sample:
        from ..data.samples import sample_clip_path

        paths.append(Path(sample_clip_path()))
    if not paths and not manifests:
        raise typer.BadParameter(
            "no video given: name at least one FILE, folder or --manifest, or use --sample for the clip in the package"
        )
    return find_videos(paths, manifests or [])


def _open_on_own_device(
    processes: Processes, model: str, config: Path | None, device: str | None, dtype: Dtype | None
) -> OpenedModel:
    from ..features.extraction import choose_device
    from ..hub.loading import open_model

    own = choose_device(device, process=None if processes.count == 1 else processes.local_rank)
    with processes.first_goes_first():
        return open_model(model, config=config, device=own, dtype=dtype.value if dtype else None)


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

    with _clip_progress(videos, processes) as progress:
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
def _clip_progress(videos: list[VideoFile], processes: Processes) -> Iterator[VideoProgress | None]:
    """A bar on stderr for the video at work in the first of the processes."""
    if not processes.is_first:
        yield None
        return
    numbers = {video.path: number for number, video in enumerate(videos, 1)}
    beside = "" if processes.count == 1 else f", process 1 of {processes.count}"
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
                place = f"{numbers[source]} of {len(videos)}{beside}"
                bars.reset(bar, total=total, description=f"{source.name} ({place})")
            bars.update(bar, completed=done)

        yield show


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


def _model_fields(entry: ModelEntry, address: str | None) -> dict:
    from ..hub.loading import find_cached

    cached = find_cached(entry.name)
    return {
        "name": entry.name,
        "description": entry.description,
        "license": entry.license,
        "num_parameters": _num_parameters(entry),
        "checkpoint": address,
        "probes": list(entry.probes),
        "cached": None if cached is None else str(cached),
        "bundled": None if entry.bundled_folder is None else str(entry.bundled_folder),
    }


def _num_parameters(entry: ModelEntry) -> int:
    """Of encoder and predictor, with their position tables."""
    from ..hub.safety import count_elements

    counts = count_elements(entry.config())
    return counts["encoder"] + counts["predictor"]


def _model_table(entries: list[ModelEntry], addresses: list[str | None]) -> Table:
    """A row for each model; the address of its released file and its probes under the description."""
    table = Table("model", "what it is", "size", "licence", "weights", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for entry, address in zip(entries, addresses, strict=True):
        about = Text(entry.description, overflow="fold")
        about.append("" if address is None else f"\n{address}", style="dim")
        about.append(f"\nprobes: {', '.join(entry.probes)}" if entry.probes else "", style="dim")
        weights = "download" if entry.bundled_folder is None else "bundled"
        table.add_row(Text(entry.name, style="bold", no_wrap=True), about, _millions(entry), entry.license, weights)
    return table


def _millions(entry: ModelEntry) -> str:
    return f"{_num_parameters(entry) / 1e6:.3g} M"


def _cache_table(cached: list[CachedFolder]) -> Table:
    table = Table("in the cache", "state", "size", "path", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.columns[2].justify = "right"
    for folder in cached:
        size = f"{folder.num_bytes / 1e6:,.1f} MB"
        table.add_row(Text(folder.name, no_wrap=True), folder.state, size, Text(str(folder.path), overflow="fold"))
    return table


def _require_kind(option: str, value: object, kind: str, kinds: list[str]) -> None:
    if value is not None and kind not in kinds:
        raise typer.BadParameter(f"{option} was given, but --kind {kind} was not, which it belongs to: add it")


def _require_new_png(output: Path, video: Path | None) -> None:
    if output.suffix.lower() != ".png":
        raise typer.BadParameter(f"--output is {output}, but the picture is a PNG: give a name that ends with .png")
    if video is not None and output.resolve() == video.resolve():
        raise typer.BadParameter(f"--output is {output}, the very file that is drawn on: give another name")


def _show_counts(clip: MaskedClip) -> None:
    from ..features.mask_pictures import MaskCounts

    table = Table("mask", "context", "targets", "in neither", "hidden", "mask token", box=None, pad_edge=False)
    for name, mask in clip.masks.items():
        counts = MaskCounts.of(mask, clip.grid)
        numbers = (counts.num_context, counts.num_targets, counts.num_unused)
        table.add_row(name, *map(str, numbers), f"{100 * counts.share_hidden:.1f} %", str(counts.mask_index))
    console = Console()
    console.print(Text(clip.subtitle))
    console.print(table)


def _data_shares(paths: list[str] | None, weights: list[float] | None) -> list[DataShare] | None:
    from ..pretraining.recipe import DataShare

    if weights and len(weights) != len(paths or []):
        raise ValueError(f"{len(weights)} --weight for {len(paths or [])} --data; give one for each, or none at all")
    if paths is None:
        return None
    shares: Sequence[float | None] = weights or [None] * len(paths)
    return [DataShare(path=path, weight=weight) for path, weight in zip(paths, shares, strict=True)]


def _run_recipe(recipe: Recipe, output_dir: Path, *, resume: bool, overwrite: bool) -> None:
    from transformers.utils import logging as transformers_logging

    from ..data.quarantine import NoReadableVideoError, TooManyBadVideosError
    from ..pretraining.finite import NonFiniteLossError
    from ..pretraining.interruption import InterruptedRunError
    from ..pretraining.run import prepare_run

    transformers_logging.disable_progress_bar()  # one for each checkpoint, through our own
    with usage_errors():
        run = prepare_run(recipe, output_dir=output_dir, resume=resume, overwrite=overwrite)
    try:
        run.train()
    except InterruptedRunError as interruption:
        run.console.print(Text(str(interruption)), soft_wrap=True)
        raise typer.Exit(128 + interruption.signal_number) from interruption
    except (NonFiniteLossError, NoReadableVideoError, TooManyBadVideosError) as error:
        typer.echo(f"the run stopped: {error}", err=True)
        raise typer.Exit(1) from error


def _show_estimate(recipe: Recipe, num_processes: int | None) -> None:
    import os

    from ..pretraining.estimate import estimate_recipe

    with usage_errors():
        found = estimate_recipe(recipe, num_processes=num_processes or int(os.environ.get("WORLD_SIZE", "1")))
    console = Console()
    console.print(_estimate_table(recipe, found))
    console.print(Text(found.describe_assumptions(), style="dim"))


def _estimate_table(recipe: Recipe, found: Estimate) -> Table:
    table = Table(f"estimate of {recipe.name}", "", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, value in found.rows():
        table.add_row(name, Text(value, overflow="fold"))
    return table


class _VideoRate(ProgressColumn):
    """Videos per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} videos/s" if task.speed else "", style="progress.data.speed")


@contextmanager
def _check_progress() -> Iterator[CheckProgress]:
    """A bar on stderr over all videos, with the number of bad ones so far in this run."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _VideoRate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar, num_bad = bars.add_task("checking", total=None), 0

        def show(done: int, total: int, latest: CheckedVideo | None) -> None:
            nonlocal num_bad
            if latest is None:
                bars.reset(bar, total=total, completed=done)
                return
            num_bad += not latest.ok
            bars.update(bar, completed=done, description=f"checking, {num_bad} bad" if num_bad else "checking")

        yield show


def _show_check(summary: CheckSummary) -> None:
    """The bad videos one by one, then how many there are of which kind."""
    console = Console()
    for video in summary.bad[:MAX_ROWS]:
        console.print(Text(f"bad: {video.path}: {video.cause}", style="red"), soft_wrap=True)
    if len(summary.bad) > MAX_ROWS:
        console.print(f"... and {len(summary.bad) - MAX_ROWS} more, all in bad.jsonl")
    if summary.bad or summary.count_warnings():
        console.print(_cause_table(summary))
    counts = f"{len(summary.videos)} videos: {len(summary.good)} good, {len(summary.bad)} bad"
    console.print(Text(f"{counts}; {summary.num_done_before} of them checked before"))


def _cause_table(summary: CheckSummary) -> Table:
    table = Table("videos", "verdict", "cause", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.columns[0].justify = "right"
    for cause, count in summary.count_causes().most_common():
        table.add_row(str(count), Text("bad", style="red"), Text(cause, overflow="fold"))
    for warning, count in summary.count_warnings().most_common():
        table.add_row(str(count), "good, but", Text(warning, overflow="fold"))
    return table


app.command(
    cls=evaluation.ListCommand,
    epilog="Example: [bold]vjepa-hub probe vjepa-vitl16 --protocol ssv2 --train train.csv --val val.csv[/bold]",
)(evaluation.probe)


app.command(
    epilog="Example: [bold]vjepa-hub finetune vjepa-vitl16 --train train.csv --val val.csv --mode lora[/bold]"
)(evaluation.finetune)
app.command(
    epilog="Example: [bold]vjepa-hub localise vjepa-vitl16 --train ava_train_v2.2.csv --val ava_val_v2.2.csv "
    "--videos videos/ --val-proposals persons.csv[/bold]"
)(evaluation.localise)


app.command(epilog="Example: [bold]vjepa-hub publish runs/tiny --repo-id me/vjepa-tiny --license apache-2.0[/bold]")(
    publishing.publish
)
app.command(epilog="Example: [bold]vjepa-hub export vjepa-vitl16 vitl16.onnx[/bold]")(publishing.export)
app.command(epilog="Example: [bold]vjepa-hub verify me/vjepa-tiny --run-code[/bold]")(publishing.verify)

app.command(epilog="Example: [bold]vjepa-hub reproduce tiny --short-steps 100 --output-dir runs/recorded[/bold]")(
    reproduction.reproduce
)


def main() -> None:
    """Entry point of the `vjepa-hub` command."""
    app()
