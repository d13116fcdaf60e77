"""`vjepa-hub finetune`: a classifier of one's videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ..core.names import counted
from ..core.progress import is_first_process
from .common import exit_for_unreadable, read_names, show_cost, stopped_runs, usage_errors
from .options import ClassNames, ItemTimeout, complete_models, existing, known_model, output_folder, set_values

_LOG_ENTRIES = (
    ("loss", "loss", ".4f"),
    ("learning_rate", "lr", ".1e"),
    ("eval_loss", "validation loss", ".4f"),
    ("eval_top1", "top-1", ".1%"),
    ("eval_top5", "top-5", ".1%"),
)


def finetune(
    model: Annotated[
        str,
        typer.Argument(
            help="What is tuned: a V-JEPA name, a folder, a released file, or a Hub name.",
            callback=known_model,
            autocompletion=complete_models,
        ),
    ],
    train: Annotated[
        str, typer.Option(help="Training set: a manifest with labels, or a folder for each class.", callback=existing)
    ],
    val: Annotated[str, typer.Option(help="Validation set, likewise, with the same classes.", callback=existing)],
    output_dir: Annotated[Path, typer.Option(help="Folder of the run.", callback=output_folder)] = Path(
        "runs/finetune"
    ),
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
        set_values("mixup=0, drop_path_rate=0.2, augmentation.flip_probability=0.5, lora_rank=8"),
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
    item_timeout: ItemTimeout = 120.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the head, the order and the augmentation.")] = 0,
) -> None:
    """Tune a model to classify your own videos, with transformers' Trainer.

    The folder gets the classifier with its processor, for from_pretrained and pipeline("video-classification"),
    checkpoints, and metrics.json with the accuracies after each epoch. Videos that cannot be read are replaced in
    training, and count as wrong in validation. The same command again goes on where it was stopped. On several GPUs:
    [bold]torchrun --nproc-per-node 8 -m vjepa_hub finetune ...[/bold]
    """
    from transformers import PrinterCallback

    from ..core.training_console import ConsoleCallback
    from ..evaluation.finetuning.run import FineTuneSettings, parse_arguments, prepare_finetuning
    from ..evaluation.labelled import open_labelled

    console = Console(quiet=not is_first_process())
    with usage_errors(KeyError, ValueError, OSError, ImportError):
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
            item_timeout=item_timeout,
            seed=seed,
        ).with_overrides(set_value or [])
        training_set = open_labelled(train, num_classes=num_classes, class_names=read_names(class_names))
        run = prepare_finetuning(
            model,
            training_set,
            val,
            output_dir,
            settings,
            training_arguments={"disable_tqdm": True, **parse_arguments(argument or [])},
            callbacks=[ConsoleCallback(console, _LOG_ENTRIES)],
        )
    run.trainer.remove_callback(PrinterCallback)
    tuned: Any = run.trainer.model
    counts = f"{tuned.num_parameters(only_trainable=True):,} of {tuned.num_parameters():,} parameters are trained"
    videos = f"{counted(len(training_set), 'video')} of {counted(training_set.num_classes, 'class', 'classes')}"
    console.print(Text(f"{model}: {counts}, on {videos}"))
    show_cost(run.cost())
    with stopped_runs():
        measured = run.train()
    if measured:
        top1, top5 = 100 * measured["eval_top1"], 100 * measured["eval_top5"]
        line = f"top-1 {top1:.2f} %, top-5 {top5:.2f} %, on {counted(measured['eval_num_videos'], 'video')}, one view"
        console.print(Text(line), soft_wrap=True)
    console.print(Text(f"wrote {run.folder}"), soft_wrap=True)
    exit_for_unreadable(measured["eval_num_unreadable"] if measured else 0)
