"""`vjepa-hub probe`: heads on frozen encoders, trained and evaluated by a protocol."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from ..core.names import counted
from ..core.progress import ProgressBar, is_first_process
from .common import compute_dtype, exit_for_unreadable, read_names, show_cost, stopped_runs, usage_errors
from .options import (
    ClassNames,
    Device,
    ItemTimeout,
    complete_models,
    complete_protocols,
    existing,
    known_encoders,
    known_protocol,
    output_folder,
    set_values,
)

if TYPE_CHECKING:
    from ..evaluation.probe_run import ProbeSettings, SummaryRow
    from ..evaluation.protocols import Protocol
    from ..heads.metrics import ClassificationMetrics


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
    encoders: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help=ENCODER_HELP, callback=known_encoders, autocompletion=complete_models),
    ],
    val: Annotated[
        str,
        typer.Option(help="Validation set: a manifest with labels, or a folder for each class.", callback=existing),
    ],
    train: Annotated[
        str | None,
        typer.Option(
            help="Training set, likewise. Not needed with --eval-only.", show_default=False, callback=existing
        ),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="k400, ssv2, in1k, places205, inat21; of V-JEPA 2 and 2.1 vjepa2-k400, vjepa2-ssv2, vjepa2-in1k, "
            "coin, diving48, jester; plain (your own videos) or plain-image.",
            callback=known_protocol,
            autocompletion=complete_protocols,
        ),
    ] = "plain",
    output_dir: Annotated[Path, typer.Option(help="Folder of the run.", callback=output_folder)] = Path("runs/probe"),
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
    set_value: Annotated[
        list[str] | None, set_values("num_segments=1, augmentation=none, augmentation.scale=0.5,1")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder to keep features in. Training clips that are augmented are not kept.",
            callback=output_folder,
        ),
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
    item_timeout: ItemTimeout = 120.0,
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
    accuracies by class, and the classifier for from_pretrained and pipelines. A video that cannot be read is named and
    counts as wrong, and the exit code is 1. The same command again goes on where it
    was stopped. On several GPUs: [bold]torchrun --nproc-per-node 8 -m vjepa_hub probe ...[/bold]

    Without a network or a data set of your own, [bold]examples/evaluate.py[/bold] makes labelled video and runs this.
    """
    if train is None and not eval_only:
        raise typer.BadParameter("--train is missing; give a training set, or --eval-only for a trained classifier")
    if eval_only and len(encoders) > 1:
        raise typer.BadParameter(f"--eval-only takes one model, but {len(encoders)} are given; run it for each")

    from ..evaluation.protocols import find_protocol

    changes = [f"{name}={value}" for name, value in (("num_epochs", num_epochs), ("batch_size", batch_size)) if value]
    changes += ["augmentation=none"] if no_augmentation else []
    with usage_errors():
        chosen = find_protocol(protocol).with_overrides([*(set_value or []), *changes])

    from ..evaluation.probe_run import ProbeSettings, evaluate_classifier, run_probe
    from ..evaluation.tokens import EncodingSettings
    from ..hub.loading import open_classifier
    from ..hub.registry import MODELS

    with stopped_runs(), usage_errors():
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
            class_names=read_names(class_names),
            cache=cache,
            encoding=EncodingSettings(
                dtype=compute_dtype(dtype, device), clips_per_pass=clips_per_pass, num_workers=num_workers
            ),
            device=device,
            crop_size=crop_size,
            frames_per_clip=frames_per_clip,
            item_timeout=item_timeout,
            overwrite=overwrite,
        )
        with ProgressBar() as progress:
            if eval_only:
                dataset = chosen.dataset or chosen.name
                model, processor = open_classifier(encoders[0], dataset if encoders[0] in MODELS else None)
                metrics = evaluate_classifier(model, processor, settings, output_dir, progress)
                num_unreadable = metrics.num_unreadable
                _show_metrics(metrics, output_dir)
            else:
                rows = run_probe(settings, output_dir, progress, show_cost=show_cost)
                num_unreadable = sum(row.num_unreadable for row in rows if row.is_selected)
                _show_rows(rows, settings, output_dir)
    exit_for_unreadable(num_unreadable)


def _heads(
    protocol: Protocol, pooling: list[str] | None, rates: list[float] | None, decays: list[float] | None
) -> list[Any]:
    """The heads that options name; without any the protocol's own."""
    from ..heads.pooling import HeadSettings

    if not (pooling or rates or decays):
        return []
    rates_and_decays = itertools.product(rates or [protocol.learning_rate], decays or [protocol.weight_decay])
    pairs = list(rates_and_decays if rates or decays else protocol.distinct_heads)
    return [
        HeadSettings(pooling=kind, learning_rate=rate, weight_decay=decay)
        for kind in pooling or ["attentive"]
        for rate, decay in pairs
    ]


def _show_metrics(metrics: ClassificationMetrics, output_dir: Path) -> None:
    if not is_first_process():
        return
    low, high = metrics.top1_interval
    line = (
        f"top-1 {100 * metrics.top1:.2f} % ({100 * low:.2f} to {100 * high:.2f}), top-5 {100 * metrics.top5:.2f} %, "
        f"mean of classes {100 * metrics.mean_class_accuracy:.2f} %, on {counted(metrics.num_videos, 'video')}"
    )
    Console().print(Text(line), soft_wrap=True)
    typer.echo(f"wrote {output_dir / 'results.json'}")


def _show_rows(rows: list[SummaryRow], settings: ProbeSettings, output_dir: Path) -> None:
    if not is_first_process():
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
    if len(settings.all_heads) > 1:
        console.print(Text("in bold the best head, chosen on the validation set itself", style="dim"))
    typer.echo(f"wrote {output_dir / 'summary.json'}, and results.json for each run")
