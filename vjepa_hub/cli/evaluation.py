"""The commands of `vjepa-hub` that judge and fine-tune models: argument parsing, then one or two calls."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    Progress,
    TaskID,
)
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from .common import columns, is_first, progress, usage_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..evaluation.probe_run import ProbeSettings, SummaryRow
    from ..evaluation.protocols import Protocol
    from ..heads.metrics import ClassificationMetrics
    from ..model.modeling_vjepa import VJEPAForVideoClassification
    from ..model.video_processing_vjepa import VJEPAVideoProcessor

ENCODER_HELP = (
    "Encoders: a V-JEPA name, folder or released file; timm:NAME; hf:NAME (VideoMAE, VJEPA2, DINOv2, ...); "
    "untrained: before any of these. Several are compared in one table."
)
_NUMBER = r"[\d.]+(e[+-]?\d+)?"
# Options of several values, and what one of these looks like
LIST_OPTIONS = {
    "--pooling": "attentive|average",
    "--learning-rate": _NUMBER,
    "--weight-decay": _NUMBER,
    "--label-fraction": _NUMBER,
    "--seed": _NUMBER,
}
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ... Default: the accelerator, if there is one.")
]
SetValue = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Another value for a field of the protocol: num_segments=1, augmentation=none, "
        "augmentation.scale=0.5,1, ... May be repeated.",
    ),
]
ClassNames = Annotated[
    Path | None,
    typer.Option(help="Names of the classes in the order of their numbers: a name on each line, or JSON."),
]


class ListCommand(TyperCommand):
    """A command whose options of several values also take them in a row: `--label-fraction 0.05 0.1 0.5`.

    click wants the option before each of them; what follows such an option and looks like one more value gets it.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write the option before each of its values, then parse."""
        repeated: list[str] = []
        option = None
        for argument in args:
            is_value = option is not None and bool(re.fullmatch(LIST_OPTIONS[option], argument))
            if is_value and repeated[-1] != option:
                repeated.append(option or "")
            elif not is_value:
                option = argument if argument in LIST_OPTIONS else None
            repeated.append(argument)
        return super().parse_args(ctx, repeated)


def probe(
    encoders: Annotated[list[str], typer.Argument(metavar="MODEL...", help=ENCODER_HELP)],
    val: Annotated[str, typer.Option(help="Validation set: a manifest with labels, or a folder for each class.")],
    train: Annotated[
        str | None, typer.Option(help="Training set, likewise. Not needed with --eval-only.", show_default=False)
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="k400, ssv2, in1k, places205, inat21, plain (your own videos) or plain-image.")
    ] = "plain",
    output_dir: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/probe"),
    pooling: Annotated[
        list[str] | None, typer.Option(help="attentive or average. May be repeated; default: attentive.")
    ] = None,
    learning_rate: Annotated[
        list[float] | None, typer.Option(help="May be repeated: all heads train side by side. Default: protocol's.")
    ] = None,
    weight_decay: Annotated[
        list[float] | None, typer.Option(help="May be repeated, likewise. Default: the protocol's.")
    ] = None,
    label_fraction: Annotated[
        list[float] | None, typer.Option(help="Share of the training labels, such as 0.05. May be repeated.")
    ] = None,
    splits: Annotated[int, typer.Option(min=1, help="Draws of each share of the labels.")] = 3,
    seed: Annotated[list[int] | None, typer.Option(help="May be repeated: a run for each. Default: 0.")] = None,
    num_epochs: Annotated[int | None, typer.Option(min=1, help="As --set num_epochs=N.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="As --set batch_size=N: videos of a step.")] = None,
    no_augmentation: Annotated[
        bool, typer.Option("--no-augmentation", help="Train on the clips as validation sees them, one view.")
    ] = False,
    set_value: SetValue = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder to keep features in. Training clips that are augmented are not kept."),
    ] = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help="Default: the protocol's, or as in the data.")] = None,
    class_names: ClassNames = None,
    dtype: Annotated[
        str, typer.Option(help="What the encoder computes in: auto, float32, bfloat16, float16.")
    ] = "auto",
    clips_per_pass: Annotated[int, typer.Option(min=1, help="Clips that the encoder takes at once.")] = 16,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that decode, beside each that trains.")] = 2,
    crop_size: Annotated[int | None, typer.Option(min=1, help="Pixels. Default: the encoder's own.")] = None,
    frames_per_clip: Annotated[int | None, typer.Option(min=1, help="Default: the encoder's own.")] = None,
    device: Device = None,
    eval_only: Annotated[
        bool,
        typer.Option(
            "--eval-only", help="Evaluate a classifier as it is: a folder, or a released model with its probe."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace runs with other settings.")] = False,
) -> None:
    """Train an attentive probe on a frozen encoder, and evaluate it by a protocol of the paper.

    All heads are trained on one pass of the encoder. The folder gets results.json, a picture of the confusion matrix,
    accuracies by class, and the classifier for from_pretrained and pipelines. The same command again goes on where it
    was stopped. On several GPUs: [bold]torchrun --nproc-per-node 8 -m vjepa_hub probe ...[/bold]

    Without a network or a data set of your own, [bold]examples/evaluate.py[/bold] makes labelled video and runs this.
    """
    from ..evaluation.probe_run import ProbeSettings, run_probe
    from ..evaluation.protocols import find_protocol
    from ..evaluation.tokens import EncodingSettings

    changes = [f"{name}={value}" for name, value in (("num_epochs", num_epochs), ("batch_size", batch_size)) if value]
    changes += ["augmentation=none"] if no_augmentation else []
    with usage_errors():
        chosen = find_protocol(protocol).with_overrides([*(set_value or []), *changes])
        if train is None and not eval_only:
            raise ValueError("--train is missing; give a training set, or --eval-only for a trained classifier")
        settings = ProbeSettings(
            encoders=encoders,
            protocol=chosen,
            train=train,
            validation=val,
            heads=_heads(chosen, pooling, learning_rate, weight_decay),
            seeds=seed or (0,),
            label_fractions=label_fraction or (),
            num_splits=splits,
            num_classes=num_classes,
            class_names=_read_names(class_names),
            cache=cache,
            encoding=EncodingSettings(
                dtype=_dtype(dtype, device), clips_per_pass=clips_per_pass, num_workers=num_workers
            ),
            device=device,
            crop_size=crop_size,
            frames_per_clip=frames_per_clip,
            overwrite=overwrite,
        )
        if eval_only:
            _evaluate_only(settings, output_dir)
        else:
            _show_rows(run_probe(settings, output_dir, progress), settings, output_dir)


def localise(
    model: Annotated[str, typer.Argument(help="A V-JEPA name, folder or released file.")],
    train: Annotated[Path, typer.Option(help="AVA's annotations to train on, such as ava_train_v2.2.csv.")],
    val: Annotated[Path, typer.Option(help="Those of the validation, such as ava_val_v2.2.csv.")],
    videos: Annotated[Path, typer.Option(help="Folder of the videos of both, named by their ids.")],
    output_dir: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/ava"),
    train_proposals: Annotated[
        Path | None, typer.Option(help="Boxes of persons that a detector found, to train on as well.")
    ] = None,
    val_proposals: Annotated[
        Path | None,
        typer.Option(help="Boxes of persons to classify. Without, the annotated ones: no published number then."),
    ] = None,
    label_map: Annotated[
        Path | None, typer.Option(help="The .pbtxt of the actions that count. Default: v2.2.")
    ] = None,
    excluded: Annotated[Path | None, typer.Option(help="List of key frames to leave out of the validation.")] = None,
    start_second: Annotated[float, typer.Option(min=0, help="Where the files begin in the film: 900 if cut.")] = 0.0,
    set_value: SetValue = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and mirroring.")] = 0,
    dtype: Annotated[
        str, typer.Option(help="What the encoder computes in: auto, float32, bfloat16 or float16.")
    ] = "auto",
    clips_per_pass: Annotated[int, typer.Option(min=1, help="Clips that the encoder takes at once.")] = 8,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 2,
    device: Device = None,
) -> None:
    """Localise actions in AVA: a linear head on person boxes over a frozen encoder, and mean average precision.

    The same command again goes on where it was stopped. The folder gets results.json, which says where each setting
    comes from, and detections.csv in AVA's format, for the official evaluation.
    """
    import json

    from ..evaluation.ava.protocol import LocalisationProtocol
    from ..evaluation.ava.run import run_localisation

    with usage_errors(), _stages() as show_stage:
        file = run_localisation(
            model,
            train_annotations=train,
            val_annotations=val,
            videos=videos,
            output_dir=output_dir,
            train_proposals=train_proposals,
            val_proposals=val_proposals,
            label_map=label_map,
            excluded_key_frames=excluded,
            protocol=LocalisationProtocol().with_values(**_assigned(set_value or [])),
            start_second=start_second,
            seed=seed,
            device=_default_device(device),
            compute_dtype=_dtype(dtype, device),
            clip_batch_size=clips_per_pass,
            num_workers=num_workers,
            on_progress=show_stage,
        )
    found = json.loads(file.read_text())
    Console().print(Text(f"mean average precision {found['mean_average_precision']:.4f}"))
    typer.echo(f"wrote {file}")


def _assigned(assignments: list[str]) -> dict[str, Any]:
    from ..evaluation.protocols import parse_value, split_assignments

    return {name: parse_value(text) for name, text in split_assignments(assignments, example="num_epochs=5")}


def _default_device(device: str | None) -> str:
    from ..evaluation.processes import join_processes

    return device or str(join_processes().device)


@contextmanager
def _stages() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for each named part of the work."""
    with Progress(*columns(), console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show


def finetune(
    model: Annotated[
        str, typer.Argument(help="What is tuned: a V-JEPA name, a folder, a released file, or a Hub name.")
    ],
    train: Annotated[str, typer.Option(help="Training set: a manifest with labels, or a folder for each class.")],
    val: Annotated[str, typer.Option(help="Validation set, likewise, with the same classes.")],
    output_dir: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/finetune"),
    mode: Annotated[
        str, typer.Option(help="What is tuned besides pooler and classifier: full, last-k, head (nothing) or lora.")
    ] = "full",
    num_blocks: Annotated[int | None, typer.Option(min=1, help="Blocks of the encoder, for last-k.")] = None,
    num_epochs: Annotated[int, typer.Option(min=1, help="Passes over the training set.")] = 30,
    batch_size: Annotated[int, typer.Option(min=1, help="Videos of a batch on each device.")] = 8,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of the head. Default: 2e-4, lora 5e-4, head 1e-3.")
    ] = None,
    layer_decay: Annotated[
        float | None, typer.Option(help="Factor of the rate from block to block downwards. Default: 0.75, lora 1.")
    ] = None,
    num_segments: Annotated[int, typer.Option(min=1, help="Clips of a video, seen together.")] = 1,
    frame_step: Annotated[
        int | None, typer.Option(min=1, help="Frames of the video for each of a clip. Default: the model's, else 4.")
    ] = None,
    set_value: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Another value for a setting: mixup=0, drop_path_rate=0.2, augmentation.flip_probability=0.5, "
            "lora_rank=8, ... May be repeated.",
        ),
    ] = None,
    argument: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Another of transformers' TrainingArguments: gradient_accumulation_steps=4, report_to=tensorboard, "
            "... May be repeated.",
        ),
    ] = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help="Default: as in the training set.")] = None,
    class_names: ClassNames = None,
    keep_adapter: Annotated[bool, typer.Option("--keep-adapter", help="Save the LoRA adapter by itself too.")] = False,
    new_head: Annotated[
        bool, typer.Option("--new-head", help="Replace the head of a model that is a classifier already.")
    ] = False,
    allow_missing_classes: Annotated[
        bool, typer.Option("--allow-missing-classes", help="Go on though classes have no training video.")
    ] = False,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that decode, beside each that trains.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of the head, the order and the augmentation.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
) -> None:
    """Tune a model to classify your own videos, with transformers' Trainer.

    The folder gets the classifier with its processor, for from_pretrained and pipeline("video-classification"),
    checkpoints, and metrics.json with the accuracies after each epoch. Videos that cannot be read are replaced in
    training, and count as wrong in validation. On several GPUs:
    [bold]torchrun --nproc-per-node 8 -m vjepa_hub finetune ...[/bold]
    """
    from ..data.quarantine import NoReadableVideoError
    from ..evaluation.finetuning.run import FineTuneSettings, parse_arguments, prepare_finetuning
    from ..evaluation.labelled import open_labelled

    with usage_errors():
        settings = FineTuneSettings(
            mode=mode,
            num_blocks=num_blocks,
            num_epochs=num_epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            layer_decay=layer_decay,
            num_segments=num_segments,
            frame_step=frame_step,
            keep_adapter=keep_adapter,
            new_head=new_head,
            allow_missing_classes=allow_missing_classes,
            num_workers=num_workers,
            seed=seed,
        ).with_overrides(set_value or [])
        training_set = open_labelled(train, num_classes=num_classes, class_names=_read_names(class_names))
        try:
            run = prepare_finetuning(
                model,
                training_set,
                val,
                output_dir,
                settings,
                training_arguments=parse_arguments(argument or []),
                resume=resume,
            )
        except ImportError as error:
            raise typer.BadParameter(str(error)) from error
    console = Console(quiet=not is_first())
    counts = f"{run.counts.num_trained:,} of {run.counts.num_total:,} parameters are trained"
    console.print(Text(f"{model}: {counts}, on {len(training_set):,} videos of {training_set.num_classes} classes"))
    try:
        measured = run.train()
    except NoReadableVideoError as error:
        typer.echo(f"the run stopped: {error}", err=True)
        raise typer.Exit(1) from error
    if measured:
        top1, top5 = 100 * measured["eval_top1"], 100 * measured["eval_top5"]
        line = f"top-1 {top1:.2f} %, top-5 {top5:.2f} %, on {measured['eval_num_videos']:,} videos, one view"
        console.print(Text(line), soft_wrap=True)
        if is_first():
            _warn_of_unreadable(measured["eval_num_unreadable"])
    console.print(Text(f"wrote {run.folder}"), soft_wrap=True)


def _heads(
    protocol: Protocol, pooling: list[str] | None, rates: list[float] | None, decays: list[float] | None
) -> list[Any]:
    from ..heads.pooling import HeadSettings

    return [
        HeadSettings(pooling=kind, learning_rate=rate, weight_decay=decay)  # type: ignore[arg-type]  # it checks
        for kind in pooling or ["attentive"]
        for rate in rates or [protocol.learning_rate]
        for decay in decays or [protocol.weight_decay]
    ]


def _read_names(file: Path | None) -> list[str] | None:
    from ..evaluation.labelled import read_class_names

    return None if file is None else read_class_names(file)


def _dtype(name: str, device: str | None) -> Any:
    """What the encoder computes in; "auto" is bfloat16 on a GPU that has it, and float32 elsewhere."""
    import torch

    if name == "auto":
        is_gpu = torch.cuda.is_available() and (device is None or device.startswith("cuda"))
        return torch.bfloat16 if is_gpu and torch.cuda.is_bf16_supported() else torch.float32
    known = ("float32", "bfloat16", "float16")
    if name not in known:
        raise ValueError(f"--dtype is '{name}', but must be auto, {', '.join(known)}")
    return getattr(torch, name)


def _evaluate_only(settings: ProbeSettings, output_dir: Path) -> None:
    from ..evaluation.probe_run import evaluate_classifier

    if len(settings.encoders) > 1:
        raise ValueError(f"--eval-only takes one model, but {len(settings.encoders)} are given; run it for each")
    model, processor = _open_classifier(settings)
    metrics = evaluate_classifier(model, processor, settings, output_dir, progress)
    _show_metrics(metrics, output_dir)


def _open_classifier(settings: ProbeSettings) -> tuple[VJEPAForVideoClassification, VJEPAVideoProcessor]:
    """A folder or Hub name of a classifier, or a registered model with its released probe for the protocol."""
    from ..hub.loading import load_classifier, open_classifier
    from ..hub.registry import MODELS
    from ..model.video_processing_vjepa import VJEPAVideoProcessor

    name = settings.encoders[0]
    if name not in MODELS:
        return open_classifier(name)
    released = settings.protocol.released_probe
    if released is None:
        raise ValueError(f"there is no released probe for the protocol '{settings.protocol.name}'; train one")
    model = load_classifier(name, released)
    return model, VJEPAVideoProcessor(crop_size=model.config.crop_size)


def _show_metrics(metrics: ClassificationMetrics, output_dir: Path) -> None:
    if not is_first():
        return
    low, high = metrics.top1_interval
    line = (
        f"top-1 {100 * metrics.top1:.2f} % ({100 * low:.2f} to {100 * high:.2f}), top-5 {100 * metrics.top5:.2f} %, "
        f"mean of classes {100 * metrics.mean_class_accuracy:.2f} %, on {metrics.num_videos:,} videos"
    )
    Console().print(Text(line), soft_wrap=True)
    _warn_of_unreadable(metrics.num_unreadable)
    typer.echo(f"wrote {output_dir / 'results.json'}")


def _warn_of_unreadable(number: int) -> None:
    if number:
        typer.echo(f"{number} videos could not be read: they count as wrong, and are named above", err=True)


def _show_rows(rows: list[SummaryRow], settings: ProbeSettings, output_dir: Path) -> None:
    if not is_first():
        return
    table = Table("encoder", "labels", "head", "top-1 %", "top-5 %", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        style = "bold" if row.is_selected else "dim"
        cells = (row.encoder, f"{100 * row.fraction:g} %", row.head, row.top1.to_percent(), row.top5.to_percent())
        table.add_row(*(Text(cell, style=style) for cell in cells))
    console = Console()
    console.print(table)
    number = rows[0].top1.num_splits
    if number > 1:
        console.print(Text(f"mean ± standard deviation over {number} runs (splits x seeds)", style="dim"))
    if len(settings.heads) > 1:
        console.print(Text("in bold the best head, chosen on the validation set itself", style="dim"))
    typer.echo(f"wrote {output_dir / 'summary.json'}, and results.json for each run")
