"""Fine-tuning: a model of the family becomes a classifier of one's own videos, by transformers' Trainer.

    finetune("vjepa-vitl16", "train.csv", "validation.csv", "tuned")

The pieces can be used by themselves, with a `Trainer` of one's own: `build_classifier`, `set_trainable` or `add_lora`,
`layerwise_parameter_groups`, `FineTuningClips`, `FineTuningCollator`, `classification_loss`, `classification_metrics`.

What a run leaves in its folder:

    config.json, model.safetensors, video_preprocessor_config.json     the classifier, for from_pretrained and pipeline
    adapter/                                                           with `keep_adapter`, the LoRA adapter alone
    checkpoint-*                                                       to resume from
    run.json                                                           the record of the run
    README.md                                                          the card
    metrics.json                                                       all that was logged
"""

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast, get_type_hints

import torch
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    create_model,
    model_validator,
)
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from ...core.checkpoints import newest_checkpoint, require_readable
from ...core.distributed import join_processes
from ...core.files import folder_written_whole, write_whole
from ...core.invocation import command_words
from ...core.run_files import (
    METRICS_FILE,
    RUN_FILE,
    ModelFacts,
    Result,
    RunFile,
    RunRecord,
    read_run,
    require_own_folder,
)
from ...core.settings import Settings, Share, parse_assignment
from ...data.clip_sampling import ClipSpec
from ...data.items import ITEM_TIMEOUT
from ...heads.metrics import NUM_BEST
from ...hub.class_names import chosen_names
from ...hub.cost import EncodingCost, encoding_cost
from ...hub.loading import OpenedModel, load_folder, open_model
from ...model.modeling_vjepa import VJEPAForVideoClassification
from ...model.video_processing_vjepa import DEFAULT_FRAME_STEP, PACES, VJEPAVideoProcessor
from ...publishing.card import write_card
from ..clips import ClipFormat, EvaluationClips, TrainingClips, naming_killed_workers
from ..encoders.frozen_encoder import describe_untrained
from ..encoders.opening import UNTRAINED_PREFIX, build_untrained
from ..labelled import LabelledSet, open_labelled
from ..protocols import Augmentation, Protocol
from .data import (
    FineTuningClips,
    FineTuningCollator,
    MixingSettings,
    ShareBelowOne,
    check_sets,
    classification_loss,
    classification_metrics,
)
from .modes import Mode, add_lora, check_num_blocks, layerwise_parameter_groups, set_trainable

ADAPTER_FOLDER = "adapter"

# Starting points for batches of about 32 videos
LEARNING_RATES = {"full": 2e-4, "last-k": 2e-4, "head": 1e-3, "lora": 5e-4}
# Arguments of the Trainer that a setting of FineTuneSettings, or nothing, may change
_SET_ELSEWHERE = {
    "output_dir": "the argument output_dir",
    "learning_rate": "the setting learning_rate",
    "weight_decay": "the setting weight_decay",
    "num_train_epochs": "the setting num_epochs",
    "warmup_steps": "the setting warmup_share",
    "per_device_train_batch_size": "the setting batch_size",
    "dataloader_num_workers": "the setting num_workers",
    "max_grad_norm": "the setting max_grad_norm",
    "seed": "the setting seed",
    "label_smoothing_factor": "the setting label_smoothing",
    "remove_unused_columns": "nothing: the clips would be taken for unused",
    "dataloader_drop_last": "nothing: it would leave validation videos out",
}


class FineTuneSettings(MixingSettings):
    """Fine-tuning of a classifier. The defaults are usual starting points for the supervised tuning of video ViTs.

    Args:
        mode: Part that is tuned: "full", "last-k" (the encoder's last blocks), "head" (pooler and classifier), or
            "lora". Pooler and classifier are tuned in every mode.
        num_blocks: Blocks of "last-k".
        num_epochs: Passes over the training set.
        batch_size: Videos of a training batch on each device.
        learning_rate: Of the head, at the end of the warm-up. None: that of the mode in `LEARNING_RATES`.
        layer_decay: Factor of the learning rate from each block to the one below it. None: 0.75 for full and last-k,
            1 for lora.
        warmup_share: Share of all steps in which the rate grows from 0; it falls to 0 on a cosine.
        weight_decay: Of AdamW; none on biases and 1-D parameters.
        max_grad_norm: Gradients are clipped to this norm; 0: never.
        drop_path_rate: Stochastic depth of the last block, from 0 at the first. Frozen blocks have none.
        num_segments: Clips of a video, whose tokens are attended together.
        frame_step: Frames of the video from one of the clip to the next, about. With `clip_duration` None too: as the
            model's own processor has it, else 4.
        clip_duration: Length of a clip in seconds, in place of `frame_step`.
        augmentation: Of training clips.
        mixup: See `MixingSettings`.
        cutmix: See `MixingSettings`.
        mix_probability: See `MixingSettings`.
        switch_probability: See `MixingSettings`.
        label_smoothing: See `MixingSettings`.
        lora_rank: See `add_lora`.
        lora_alpha: See `add_lora`.
        lora_dropout: See `add_lora`.
        keep_adapter: Saves the adapter by itself too, beside the classifier that it was merged into.
        new_head: Gives a model that is a classifier already a new pooler and classifier.
        allow_missing_classes: Allows classes without a training video.
        num_workers: Processes on each device that load clips; 0: the training process does.
        item_timeout: Seconds without a new frame after which a video is given up.
        seed: Of the head, the adapters, the order, the clips and their augmentation.

    Raises:
        SettingsError: A value out of its range, a number of blocks without "last-k" or "last-k" without one, or an
            adapter to be kept in another mode than "lora".
    """

    mode: Mode = "full"
    num_blocks: PositiveInt | None = None
    num_epochs: PositiveInt = 30
    batch_size: PositiveInt = 8
    learning_rate: PositiveFloat | None = None
    layer_decay: Share | None = None
    warmup_share: ShareBelowOne = 0.1
    weight_decay: NonNegativeFloat = 0.05
    max_grad_norm: NonNegativeFloat = 1.0
    drop_path_rate: ShareBelowOne = 0.1
    num_segments: PositiveInt = 1
    frame_step: PositiveInt | None = None
    clip_duration: PositiveFloat | None = None
    augmentation: Augmentation = Field(default_factory=Augmentation)
    mixup: NonNegativeFloat = 0.8
    cutmix: NonNegativeFloat = 1.0
    label_smoothing: ShareBelowOne = 0.1
    lora_rank: PositiveInt = 16
    lora_alpha: PositiveFloat = 32.0
    lora_dropout: ShareBelowOne = 0.0
    keep_adapter: bool = False
    new_head: bool = False
    allow_missing_classes: bool = False
    num_workers: NonNegativeInt = 2
    item_timeout: PositiveFloat = ITEM_TIMEOUT
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _check_mode(self) -> "FineTuneSettings":
        check_num_blocks(self.mode, self.num_blocks)
        if self.keep_adapter and self.mode != "lora":
            raise ValueError(f"keep_adapter is set and the mode is '{self.mode}', but only lora has an adapter")
        return self

    @property
    def base_learning_rate(self) -> float:
        """Learning rate of the head."""
        return LEARNING_RATES[self.mode] if self.learning_rate is None else self.learning_rate

    @property
    def decay(self) -> float:
        """Factor of the learning rate from each block to the one below it."""
        if self.layer_decay is not None:
            return self.layer_decay
        return 0.75 if self.mode in ("full", "last-k") else 1.0


def finetune(
    model_name_or_folder: str | Path,
    train: LabelledSet | Any,
    validation: LabelledSet | Any,
    output_dir: str | Path,
    settings: FineTuneSettings | None = None,
    *,
    training_arguments: Mapping[str, Any] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Path:
    """Tune a model to classify videos, on all processes that were started together, and save it.

    A run of the same settings that the folder holds goes on from its newest checkpoint.

    Validation runs after each epoch, on one view; what is saved is the model of the last epoch, or with
    `training_arguments={"load_best_model_at_end": True, "metric_for_best_model": "top1"}` that of the best one.

    Args:
        model_name_or_folder: What `open_model` takes: a registered name, a folder, a released file, or a Hub name.
            With the prefix `untrained:` its architecture with random weights, the baseline of training from scratch.
        train: Training videos, or what `open_labelled` takes.
        validation: Validation videos, or what `open_labelled` takes; their classes are those of the training set.
        output_dir: Folder of the run.
        settings: By default those of `FineTuneSettings()`.
        training_arguments: Further arguments of transformers' `TrainingArguments`, such as `{"bf16": False,
            "gradient_accumulation_steps": 4}`.
        callbacks: Others to be called while it trains.

    Returns:
        The folder, which `AutoModelForVideoClassification` and `pipeline("video-classification")` load.

    Raises:
        CheckpointError: The newest checkpoint of the folder lacks a part, or has a damaged one.
        FileExistsError: The folder has another model.
        FolderInUseError: Another run writes into the folder.
        ValueError: The folder has a run of other settings, or sets, classes, settings or arguments do not fit; the
            message says which.
        KeyError: There is no such model.
        ImportError: The mode is lora, and peft is not installed.
    """
    run = prepare_finetuning(
        model_name_or_folder,
        train,
        validation,
        output_dir,
        settings,
        training_arguments=training_arguments,
        callbacks=callbacks,
    )
    run.train()
    return run.folder


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """A run that is ready to begin.

    Attributes:
        folder: Where it writes.
        trainer: With its model and data.
        settings: Of the run.
        record: As `record_finetuning` gives it.
        checkpoint: Where it goes on from; None: it begins.
        lock: Of the folder, until the run ends.
    """

    folder: Path
    trainer: Trainer
    settings: FineTuneSettings
    record: RunRecord
    checkpoint: Path | None
    lock: ExitStack

    def cost(self) -> EncodingCost:
        """Estimate memory and time of the training steps, without those done before and the validations."""
        trainer, model = self.trainer, cast(nn.Module, self.trainer.model)
        config: Any = model.config
        is_trained = any(weight.requires_grad for name, weight in model.named_parameters() if "encoder." in name)
        dtype = torch.bfloat16 if trainer.args.bf16 else torch.float16 if trainer.args.fp16 else torch.float32
        num_videos = len(cast(Any, trainer.train_dataset))
        return encoding_cost(
            config,
            crop=(config.crop_size, config.crop_size),
            num_frames=config.frames_per_clip,
            num_clips=round(num_videos * self.settings.num_segments * trainer.args.num_train_epochs),
            clips_at_once=trainer.args.per_device_train_batch_size * self.settings.num_segments,
            is_trained=is_trained,
            dtype=dtype,
            device=trainer.args.device,
            num_processes=trainer.args.world_size,
        )

    def train(self) -> dict[str, Any]:
        """Train to the end and save the classifier.

        Returns:
            The measures of the last validation, `eval_top1` and others; empty where there was none.
        """
        trainer, folder = self.trainer, self.folder
        trainer.accelerator.wait_for_everyone()  # all have looked into the folder
        run_file = RunFile(folder, self.record, is_writer=trainer.is_world_process_zero())
        with self.lock, run_file.recording() as run:
            if self.checkpoint is not None:
                join_processes().from_first(partial(require_readable, self.checkpoint))
            read = [cast(FineTuningClips, clips).clips for clips in (trainer.train_dataset, trainer.eval_dataset)]
            with naming_killed_workers(read):
                trainer.train(resume_from_checkpoint=None if self.checkpoint is None else str(self.checkpoint))
            save_classifier(trainer, folder, self.settings)
            measured = next((row for row in reversed(trainer.state.log_history) if "eval_top1" in row), {})
            run.update(
                results=tuple(self._state_results(measured)) if measured else (),
                steps=trainer.state.global_step,
                max_steps=trainer.state.max_steps,
            )
            if trainer.is_world_process_zero():
                write_card(folder, folder.resolve().name)
        return measured

    def _state_results(self, measured: Mapping[str, Any]) -> Iterator[Result]:
        validation = next(fact for fact in self.record.data if fact.role == "validation")
        metrics = {"eval_top1": "top-1 accuracy (%)", "eval_top5": "top-5 accuracy (%)"}
        for name, metric in metrics.items():
            if name == "eval_top1" or (validation.num_classes or 0) > NUM_BEST:
                yield Result(
                    task="video-classification",
                    dataset=Path(validation.source).name,
                    metric=metric,
                    value=round(100 * measured[name], 2),
                    protocol=f"fine-tuned ({_describe_mode(self.settings)}); one view, {self.settings.num_segments} "
                    f"segments; {measured['eval_num_videos']:,} validation videos; after epoch {measured['epoch']:g}",
                    source="measured by vjepa-hub finetune",
                )


def prepare_finetuning(
    model_name_or_folder: str | Path,
    train: LabelledSet | Any,
    validation: LabelledSet | Any,
    output_dir: str | Path,
    settings: FineTuneSettings | None = None,
    *,
    training_arguments: Mapping[str, Any] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> FineTuning:
    """Do all of a fine-tuning that comes before its first step, and lock its folder. As for `finetune`."""
    settings, folder = settings or FineTuneSettings(), Path(output_dir)
    train, validation = open_sets(train, validation, allow_missing_classes=settings.allow_missing_classes)
    record = record_finetuning(
        str(model_name_or_folder), train, validation, folder, settings, training_arguments or {}
    )
    args = build_arguments(settings, folder, training_arguments)  # the Trainer's way to join processes comes first
    with ExitStack() as lock:
        lock.enter_context(join_processes().locking(folder))
        require_own_folder(folder, "finetune")
        check_run_folder(folder, record)
        model, processor = build_classifier(model_name_or_folder, train, settings)
        trainer = build_finetuning_trainer(model, processor, train, validation, settings=settings, args=args)
        for callback in callbacks:
            trainer.add_callback(callback)
        return FineTuning(
            folder=folder,
            trainer=trainer,
            settings=settings,
            record=record,
            checkpoint=join_processes().from_first(lambda: newest_checkpoint(folder)),
            lock=lock.pop_all(),
        )


def open_sets(
    train: LabelledSet | Any, validation: LabelledSet | Any, *, allow_missing_classes: bool = False
) -> tuple[LabelledSet, LabelledSet]:
    """Open the two sets where they are not open yet, with the same classes, and check them.

    Args:
        train: A set, or what `open_labelled` takes.
        validation: A set, or what `open_labelled` takes.
        allow_missing_classes: Whether classes may have no training video.

    Raises:
        ValueError: See `check_sets` and `open_labelled`.
        FileNotFoundError: There is no such file or folder.
    """
    if not isinstance(train, LabelledSet):
        train = open_labelled(train)
    if not isinstance(validation, LabelledSet):
        names = None if train.class_names is None else list(train.class_names)
        found = open_labelled(validation)  # its own names are compared, not replaced
        validation = (
            found if found.class_names else open_labelled(validation, num_classes=train.num_classes, class_names=names)
        )
    check_sets(train, validation, allow_missing_classes=allow_missing_classes)
    return train, validation


# ---------------------------------------------------------------------------------------------------------------------
# The folder of a run
# ---------------------------------------------------------------------------------------------------------------------


def check_run_folder(folder: Path, record: RunRecord) -> None:
    """Make sure that a folder has no run, or this run; `require_own_folder` has looked for models of others.

    Args:
        folder: Need not be there.
        record: Of the run, at its start.

    Raises:
        FileExistsError: Checkpoints are there, or a run, but of no fine-tuning.
        ValueError: The run that is there has other settings.
    """
    if not (folder / RUN_FILE).exists():
        if any(folder.glob("checkpoint-*")):
            raise FileExistsError(f"the folder {folder} has another model already: name another folder")
        return
    found = read_run(folder)
    if found.kind != record.kind:
        raise FileExistsError(f"the folder {folder} has a run of {found.kind} already: name another folder")
    differing = found.differences(record)
    if differing:
        raise ValueError(
            f"the run in {folder} has other settings, differing in {', '.join(differing)}: go on with it with those "
            f"of {folder / RUN_FILE}, or name another folder"
        )


def record_finetuning(
    model: str,
    train: LabelledSet,
    validation: LabelledSet,
    folder: Path,
    settings: FineTuneSettings,
    training_arguments: Mapping[str, Any],
) -> RunRecord:
    """The record of a run at its start; only an equal run is gone on with.

    Args:
        model: Name or folder of the tuned model.
        train: The training videos.
        validation: The validation videos.
        folder: Of the run.
        settings: Of the run.
        training_arguments: Further arguments of the Trainer.
    """
    changed, arguments = settings.changes_from(FineTuneSettings()), dict(training_arguments)
    words = command_words(
        "finetune",
        model,
        train=train.given,
        val=validation.given,
        output_dir=folder,
        num_classes=train.num_classes,
        argument=[f"{name}={json.dumps(value)}" for name, value in arguments.items()],
        assignments=changed,
    )
    return RunRecord(
        kind="finetune",
        command=words,
        seeds=(settings.seed,),
        settings={**settings.to_tree(), "training_arguments": arguments},
        changed={**changed, **arguments},
        model=ModelFacts.of(model),
        data=(train.facts("train"), validation.facts("validation")),
    )


def save_classifier(trainer: Trainer, folder: Path, settings: FineTuneSettings) -> None:
    """Write the tuned classifier with its processor, its adapter if wanted, and what was logged.

    Adapters are merged into the model, which is then without them.

    Args:
        trainer: After the training.
        folder: Where to write.
        settings: Of the run.
    """
    trainer.accelerator.wait_for_everyone()
    if not trainer.is_world_process_zero():
        return
    model: Any = trainer.accelerator.unwrap_model(cast(nn.Module, trainer.model))
    if settings.mode == "lora":
        if settings.keep_adapter:
            with folder_written_whole(folder / ADAPTER_FOLDER, folder / f"_{ADAPTER_FOLDER}") as adapter:
                model.save_pretrained(adapter)
        model = model.merge_and_unload()
    model.save_pretrained(folder)
    cast(VJEPAVideoProcessor, trainer.processing_class).save_pretrained(folder)
    write_whole(folder / METRICS_FILE, json.dumps(trainer.state.log_history, indent=2) + "\n")


# ---------------------------------------------------------------------------------------------------------------------
# Model and trainer
# ---------------------------------------------------------------------------------------------------------------------


def build_classifier(
    model_name_or_folder: str | Path, train: LabelledSet, settings: FineTuneSettings
) -> tuple[VJEPAForVideoClassification, VJEPAVideoProcessor]:
    """A classifier of the set's classes, in float32, with the processor that goes with it.

    Pooler and classifier are initialised from the seed as the model's constructor does, unless the model has them for
    these classes already.

    Args:
        model_name_or_folder: What `open_model` takes, or `untrained:` and that.
        train: Gives the classes and their names.
        settings: Of the run.

    Raises:
        ValueError: The model is a classifier of other classes, and its head is not to be replaced.
        KeyError: There is no such model.
    """
    name = str(model_name_or_folder)
    is_untrained = name.startswith(UNTRAINED_PREFIX)
    opened = _build_start(name, settings.seed) if is_untrained else open_model(name, dtype="float32")
    config: Any = copy.deepcopy(opened.model.config)
    is_classifier = VJEPAForVideoClassification.__name__ in (config.architectures or [])
    has_head = is_classifier and not settings.new_head and not is_untrained
    if has_head:
        _require_same_classes(name, config.id2label, train)
    config.id2label = _names_of(train)
    config.label2id = {label: number for number, label in config.id2label.items()}
    config.drop_path_rate = settings.drop_path_rate
    config.problem_type = "single_label_classification"  # transformers would choose by the first batch it sees
    config.weights_origin = f"fine-tuned ({_describe_mode(settings)}) from: {opened.weights}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = VJEPAForVideoClassification(config)
    if has_head:
        model.load_state_dict(load_folder(VJEPAForVideoClassification, name).state_dict())
    else:
        model.encoder.load_state_dict(opened.model.encoder.state_dict())
    model.name_or_path = name  # an adapter says what it belongs to
    return model, _adapt_processor(opened.processor, settings, config.frames_per_clip)


def _build_start(name: str, seed: int) -> OpenedModel:
    """Random weights, whose description does not name the model: nothing of its weights is in them."""
    opened = build_untrained(name.removeprefix(UNTRAINED_PREFIX), seed)
    return replace(opened, weights=describe_untrained(seed))


def _names_of(train: LabelledSet) -> dict[int, str]:
    names = train.class_names or [f"LABEL_{number}" for number in range(train.num_classes)]
    return dict(enumerate(names))


def _require_same_classes(name: str, id2label: dict[int, str], train: LabelledSet) -> None:
    remedy = "give it a new head with new_head=True, or videos of its own classes"
    if len(id2label) != train.num_classes:
        raise ValueError(
            f"{name} is a classifier of {len(id2label)} classes, but the videos have {train.num_classes}: {remedy}"
        )
    if chosen_names(id2label) is None or train.class_names is None:
        return
    for number, own in enumerate(train.class_names):
        if id2label[number] != own:
            raise ValueError(
                f"{name} is a classifier whose class {number} is '{id2label[number]}', but that of the videos is "
                f"'{own}': {remedy}"
            )


def _describe_mode(settings: FineTuneSettings) -> str:
    return f"last {settings.num_blocks} blocks" if settings.mode == "last-k" else settings.mode


def _adapt_processor(
    processor: VJEPAVideoProcessor, settings: FineTuneSettings, frames_per_clip: int
) -> VJEPAVideoProcessor:
    """Takes clips as the tuning does: as many segments, at the same pace, one view."""
    adapted: Any = copy.deepcopy(processor)
    is_given = settings.frame_step is not None or settings.clip_duration is not None
    pace: Any = settings if is_given else adapted
    clips = ClipSpec(
        frames_per_clip=frames_per_clip,
        frame_step=pace.frame_step or DEFAULT_FRAME_STEP,
        clip_duration=pace.clip_duration,
        fps=None if is_given else adapted.fps,
        num_segments=settings.num_segments,
    )
    options = {**dict.fromkeys(PACES), "num_spatial_views": 1, **clips.processor_options}
    for name, value in options.items():
        setattr(adapted, name, value)
    return adapted


def build_clips(
    model: nn.Module, processor: VJEPAVideoProcessor, labelled: LabelledSet, settings: FineTuneSettings, split: str
) -> FineTuningClips:
    """Clips of a set, as the model wants them.

    Args:
        model: A classifier, with or without adapters.
        processor: Of `build_classifier`; it has the length of a clip.
        labelled: The videos.
        settings: Of the run.
        split: "training", with augmentation, or "validation".
    """
    config: Any = model.config
    colours: Any = {"mean": tuple(processor.image_mean), "std": tuple(processor.image_std)}
    clip_format = ClipFormat(crop_size=config.crop_size, frames_per_clip=config.frames_per_clip, **colours)
    protocol = Protocol(
        name="fine-tuning",
        description="clips of a fine-tuning",
        frame_step=processor.frame_step,
        clip_duration=processor.clip_duration,
        fps=processor.fps,
        num_segments=settings.num_segments,
        augmentation=settings.augmentation,
    )
    labelled = replace(labelled, item_timeout=settings.item_timeout)
    if split == "training":
        return FineTuningClips(TrainingClips(labelled, protocol, clip_format, seed=settings.seed))
    return FineTuningClips(EvaluationClips(labelled, protocol, clip_format))


def build_finetuning_trainer(
    model: VJEPAForVideoClassification,
    processor: VJEPAVideoProcessor,
    train: LabelledSet,
    validation: LabelledSet,
    *,
    settings: FineTuneSettings,
    args: TrainingArguments,
) -> Trainer:
    """The Trainer of transformers itself, with all that a fine-tuning needs.

    Args:
        model: A classifier; what is tuned of it is set here, and adapters are added.
        processor: Saved with the model.
        train: Training videos.
        validation: Validation videos.
        settings: Of the run.
        args: Of `build_arguments`.
    """
    tuned: nn.Module = model
    if settings.mode == "lora":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)  # the Trainer sets it only when it is built
            tuned = add_lora(model, rank=settings.lora_rank, alpha=settings.lora_alpha, dropout=settings.lora_dropout)
    else:
        set_trainable(model, settings.mode, num_blocks=settings.num_blocks)
    return Trainer(
        model=tuned,
        args=args,
        data_collator=FineTuningCollator(train.num_classes, settings),
        train_dataset=build_clips(model, processor, train, settings, "training"),
        eval_dataset=build_clips(model, processor, validation, settings, "validation"),
        processing_class=processor,
        compute_loss_func=classification_loss,
        compute_metrics=classification_metrics,
        optimizers=(build_optimizer(tuned, settings), None),
    )


def build_optimizer(model: nn.Module, settings: FineTuneSettings) -> torch.optim.AdamW:
    """AdamW with a learning rate for each layer.

    Args:
        model: After `set_trainable` or `add_lora`.
        settings: Of the run.
    """
    groups = layerwise_parameter_groups(
        model,
        learning_rate=settings.base_learning_rate,
        weight_decay=settings.weight_decay,
        decay=settings.decay,
    )
    return torch.optim.AdamW(groups, lr=settings.base_learning_rate)


def parse_arguments(assignments: Iterable[str]) -> dict[str, Any]:
    """Arguments of the Trainer as they are written on a command line, typed by the fields of `TrainingArguments`.

    Args:
        assignments: `KEY=VALUE` each, such as `gradient_accumulation_steps=4`.

    Raises:
        SettingsError: No assignment, a name that is no argument, or a value of another type.
    """
    fields: dict[str, Any] = {name: (hint, None) for name, hint in get_type_hints(TrainingArguments).items()}
    fields["report_to"] = (list[str], None)  # as a text `none`; None would mean every reporter that is installed
    typed = create_model("TrainingArgument", __base__=Settings, **fields)
    return typed(**dict(map(parse_assignment, assignments))).model_dump(exclude_unset=True)


def build_arguments(
    settings: FineTuneSettings, output_dir: str | Path, others: Mapping[str, Any] | None = None
) -> TrainingArguments:
    """The Trainer's arguments.

    Args:
        settings: Of the run.
        output_dir: Where checkpoints are written.
        others: Further arguments of `TrainingArguments`.

    Raises:
        ValueError: One of them is set elsewhere.
    """
    for name in others or {}:
        if name in _SET_ELSEWHERE:
            raise ValueError(f"the training argument {name} was given, but it is set by {_SET_ELSEWHERE[name]}")
    values: dict[str, Any] = {
        "output_dir": str(output_dir),
        "num_train_epochs": settings.num_epochs,
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.batch_size,
        "learning_rate": settings.base_learning_rate,
        "weight_decay": settings.weight_decay,
        "warmup_steps": settings.warmup_share,  # below 1, a share of all steps
        "lr_scheduler_type": "cosine",
        "max_grad_norm": settings.max_grad_norm,
        "seed": settings.seed,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "logging_steps": 10,
        "report_to": "none",
        "use_cpu": not torch.accelerator.is_available(),  # or several processes are taken for one each
        "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        "dataloader_num_workers": settings.num_workers,
        "remove_unused_columns": False,  # would drop what the data sets give
        "label_names": ["labels"],
        "ddp_find_unused_parameters": False,  # there are none
        "ddp_broadcast_buffers": False,  # position tables never change
    }
    return TrainingArguments(**{**values, **(others or {})})
