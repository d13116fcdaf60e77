"""Frozen evaluation from names to files: encoders, one protocol, a labelled set, and what is found written down.

A run is made of jobs: one for each encoder, share of the labels, split and seed. Each has a folder with

    run.json         its record; a job is only gone on with, or taken as done, if its settings and data are the same
    heads.pt         the heads after the last complete epoch
    results.json     see `results`
    confusion.png    of the selected head, with per_class.csv
    head.safetensors the selected head
    classifier/      the best attentive probe with its encoder, for `from_pretrained` and pipelines (V-JEPA encoders)

and the run's folder has `summary.json` with the table over all jobs. Which videos a share of the labels was, stands in
`splits/`, as manifests that others can use.
"""

import copy
import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationInfo, field_validator
from pydantic_core import to_json
from safetensors.torch import save

from ..core.distributed import join_processes
from ..core.files import require_replaceable, write_whole
from ..core.invocation import command_words
from ..core.progress import Progress, no_progress
from ..core.run_files import (
    CLASSES_TABLE,
    CLASSIFIER_FOLDER,
    RESULTS_FILE,
    RUN_FILE,
    DataFacts,
    ModelFacts,
    RunFile,
    RunRecord,
    read_run,
    require_own_folder,
)
from ..core.settings import Settings, Share
from ..data.items import ITEM_TIMEOUT
from ..heads.metrics import ClassificationMetrics, compute_metrics
from ..heads.pooling import AttentiveHead, HeadSettings, attach_head
from ..heads.prediction import Predictions, predict
from ..heads.tokens import TokenSource
from ..heads.training import CHECKPOINT, SideBySideTraining
from ..hub.class_names import chosen_names
from ..hub.cost import EncodingCost, encoding_cost
from ..model.modeling_vjepa import VJEPAForVideoClassification
from ..model.video_processing_vjepa import VJEPAVideoProcessor
from ..publishing.card import write_card
from ..viz.confusion import write_confusion_picture
from .clips import ClipFormat, EvaluationClips, TrainingClips, naming_killed_workers
from .encoders.frozen_encoder import FrozenEncoder
from .encoders.opening import VJEPAClipEncoder, open_encoder
from .label_efficiency import SplitSummary, stratified_split, summarise, write_split
from .labelled import LabelledSet, check_training_classes, open_labelled
from .protocols import Protocol
from .results import (
    EvaluationResults,
    HeadMetrics,
    HeadResult,
    SelectedHead,
    read_results,
    state_results,
    write_per_class_csv,
    write_results,
)
from .tokens import CachedClips, EncodedClips, EncodingSettings, SubsetTokens

logger = logging.getLogger(__name__)

SUMMARY_NAME, HEAD_NAME = "summary.json", "head.safetensors"
SELECTION_RULE = (
    "the head with the highest top-1 accuracy on the validation set itself, as the released evaluations of V-JEPA 2 "
    "and 2.1 report it; the first of equal ones"
)
ONLY_RULE = "the only head"


class ProbeSettings(Settings):
    """Frozen evaluation: encoders, protocol, sets and heads.

    Args:
        encoders: Names as `open_encoder` takes them.
        protocol: Its frames and crop are those of each encoder.
        train: Training set, as `open_labelled` takes it; None where a trained classifier is evaluated.
        validation: Validation set.
        heads: Heads that are trained side by side; empty: the protocol's attentive probes.
        seeds: A job for each: first weights, order and augmentation.
        label_fractions: Shares of the training labels; empty: all of them, once.
        num_splits: Draws of each share.
        num_classes: See `open_labelled`; None: the protocol's, if it names a number.
        class_names: See `open_labelled`.
        cache: Folder of features, see `CachedClips`; None: none are kept.
        encoding: How clips are encoded.
        device: Where; None: the accelerator, if there is one.
        crop_size: Of the encoder's input; None: its own.
        frames_per_clip: Of the encoder's input; None: the protocol's, or its own.
        item_timeout: Seconds without a new frame after which a video or image is given up, and counts as wrong.
        overwrite: Delete jobs that were run with other settings, instead of refusing.

    Raises:
        SettingsError: A value out of its range, no encoder or seed, or a value twice in a list.
    """

    encoders: tuple[str, ...] = Field(min_length=1)
    protocol: Protocol
    train: Any
    validation: Any
    heads: tuple[HeadSettings, ...] = ()
    seeds: tuple[NonNegativeInt, ...] = Field((0,), min_length=1)
    label_fractions: tuple[Share, ...] = ()
    num_splits: PositiveInt = 1
    num_classes: PositiveInt | None = None
    class_names: tuple[str, ...] | None = None
    cache: Path | None = None
    encoding: EncodingSettings = Field(default_factory=EncodingSettings)
    device: str | None = None
    crop_size: PositiveInt | None = None
    frames_per_clip: PositiveInt | None = None
    item_timeout: PositiveFloat = ITEM_TIMEOUT
    overwrite: bool = False

    @field_validator("encoders", "heads", "seeds", "label_fractions")
    @classmethod
    def _require_each_once(cls, values: tuple, info: ValidationInfo) -> tuple:
        for place, value in enumerate(values):
            if value in values[:place]:
                raise ValueError(f"{info.field_name} has '{value}' twice; name each once")
        return values

    @property
    def all_heads(self) -> list[HeadSettings]:
        """The heads, those of the protocol where none are given."""
        return list(self.heads) or [
            HeadSettings(pooling="attentive", learning_rate=rate, weight_decay=decay)
            for rate, decay in self.protocol.distinct_heads
        ]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training.

    Attributes:
        encoder: Name of the encoder.
        fraction: Share of the training labels.
        split: Which draw of that share.
        seed: Of first weights, order and augmentation.
        folder: Where its files are.
    """

    encoder: str
    fraction: float
    split: int
    seed: int
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Findings of a job.

    Attributes:
        job: The job.
        heads: For each head its settings and the numbers of its metrics, as in `results.json`.
        selected: Place of the head that was selected.
        num_unreadable: Videos that could not be read, of training and validation; one of each epoch counts anew.
    """

    job: Job
    heads: Sequence[HeadResult]
    selected: int
    num_unreadable: int = 0

    @property
    def metrics(self) -> HeadMetrics:
        """Numbers of the selected head."""
        return self.heads[self.selected].metrics


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """A line of the table over all jobs.

    Attributes:
        encoder: Name of the encoder.
        fraction: Share of the training labels.
        head: Which head, in words.
        is_selected: Whether it is the best of the encoder's heads at this share.
        top1: Over splits and seeds.
        top5: Over splits and seeds.
        num_unreadable: Videos that could not be read, in all runs together.
    """

    encoder: str
    fraction: float
    head: str
    is_selected: bool
    top1: SplitSummary
    top5: SplitSummary
    num_unreadable: int = 0


def run_probe(
    settings: ProbeSettings,
    output_dir: str | Path,
    progress: Progress = no_progress,
    *,
    show_cost: Callable[[EncodingCost], None] | None = None,
) -> list[SummaryRow]:
    """Train and evaluate probes; what is complete from an earlier run with the same settings is kept.

    Every process of a `torchrun` calls it; the first one writes.

    Args:
        settings: What, on what, and how.
        output_dir: Folder of the run.
        progress: Called as the work goes on.
        show_cost: Called with the estimated cost of each encoder of the family, before its work begins.

    Returns:
        The table, in the order of encoders, shares and heads.

    Raises:
        FileNotFoundError: There is no such set.
        FolderInUseError: Another run writes into the folder.
        ValueError: A set that cannot be used, or a folder with the results of other settings.
    """
    output_dir = Path(output_dir)
    train, validation = _open_sets(settings)
    outcomes = []
    with join_processes().locking(output_dir):
        _require_own_outputs(settings, output_dir)
        for encoder_name in settings.encoders:
            evaluation = _EncoderEvaluation(settings, encoder_name, train, validation, progress)
            jobs = list(_jobs(settings, encoder_name, output_dir))
            if show_cost is not None and (cost := evaluation.cost(len(jobs))):
                show_cost(cost)
            for job in jobs:
                outcomes.append(evaluation.run(job, output_dir))
        rows = summarise_outcomes(outcomes)
        if join_processes().is_first:
            write_whole(output_dir / SUMMARY_NAME, to_json(rows, indent=1))
    return rows


def _require_own_outputs(settings: ProbeSettings, output_dir: Path) -> None:
    """Refuse folders with files that no probe has written, before any work."""
    folders = [job.folder for encoder in settings.encoders for job in _jobs(settings, encoder, output_dir)]
    for folder in folders:
        require_own_folder(folder, "probe")
    has_run = any((folder / RUN_FILE).exists() for folder in folders)
    require_replaceable([output_dir / SUMMARY_NAME], is_own=lambda _: has_run)


def evaluate_classifier(
    model: VJEPAForVideoClassification,
    processor: VJEPAVideoProcessor,
    settings: ProbeSettings,
    output_dir: str | Path,
    progress: Progress = no_progress,
) -> ClassificationMetrics:
    """Evaluate a classifier that is trained already, such as a released probe.

    Args:
        model: Encoder and probe.
        processor: The one that belongs to it.
        settings: The protocol and the validation set; there must be one name in `encoders`, that of the model.
        output_dir: Where results, picture and table go.
        progress: Called as the work goes on.

    Raises:
        FolderInUseError: Another run writes into the folder.
        ValueError: The set has other classes than the model.
    """
    names = tuple(settings.class_names or ()) or chosen_names(model.config.id2label)
    validation = open_labelled(
        settings.validation,
        media=settings.protocol.media,
        num_classes=model.num_labels,
        class_names=names,
        item_timeout=settings.item_timeout,
    )
    device = torch.device(join_processes().choose_device(settings.device))
    encoder = VJEPAClipEncoder.of_model(
        model,
        processor,
        name=settings.encoders[0],
        description=f"V-JEPA, {model.config.weights_origin or 'weights of unknown origin'}",
        frames_per_clip=settings.frames_per_clip or settings.protocol.frames_per_clip,
        crop_size=settings.crop_size,
        feature_layers=model.config.pooler_feature_layers,
    ).place(device)
    head: torch.nn.Module = AttentiveHead.of_classifier(model)
    head.to(device)
    own = HeadSettings(pooling="attentive", learning_rate=settings.protocol.learning_rate, weight_decay=0.0)
    settings = settings.with_values(heads=(own,))
    clips = EvaluationClips(validation, settings.protocol, clip_format_of(encoder))
    record = _record_of(settings, encoder, [validation.facts("validation")], Path(output_dir), job=None)
    run = RunFile(output_dir, record, is_writer=join_processes().is_first)
    require_own_folder(output_dir, "probe")
    with join_processes().locking(output_dir), run.recording(), naming_killed_workers([clips]):
        predictions = predict(
            EncodedClips(encoder, clips, settings.encoding),
            [head],
            attends_across_segments=settings.protocol.attends_across_segments,
            progress=progress,
            processes=join_processes(),
        )
        metrics = compute_metrics(predictions.probabilities[0], validation.labels, predictions.is_readable)
        if join_processes().is_first:
            rule = "the classifier's own probe; nothing was trained"
            _write_results(run, settings, encoder, [metrics], validation.class_names, rule=rule)
    return metrics


def summarise_outcomes(outcomes: Sequence[Outcome]) -> list[SummaryRow]:
    """The table over jobs: mean and deviation over splits and seeds for each encoder, share and head."""
    groups: dict[tuple[str, float], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.job.encoder, outcome.job.fraction), []).append(outcome)
    rows = []
    for (encoder, fraction), found in groups.items():
        of_heads = [[outcome.heads[place].metrics for outcome in found] for place in range(len(found[0].heads))]
        means = [float(np.mean([metrics.top1 for metrics in of_head])) for of_head in of_heads]
        for place, of_head in enumerate(of_heads):
            rows.append(
                SummaryRow(
                    encoder=encoder,
                    fraction=fraction,
                    head=_head_words(found[0].heads[place]),
                    is_selected=place == int(np.argmax(means)),
                    top1=summarise([metrics.top1 for metrics in of_head]),
                    top5=summarise([metrics.top5 for metrics in of_head]),
                    num_unreadable=sum(outcome.num_unreadable for outcome in found),
                )
            )
    return rows


def _head_words(head: HeadResult) -> str:
    return str(HeadSettings(**{name: getattr(head, name) for name in ("pooling", "learning_rate", "weight_decay")}))


def _open_sets(settings: ProbeSettings) -> tuple[LabelledSet, LabelledSet]:
    """Both sets with the same classes, those of the training set where nothing else tells."""
    num_classes = settings.num_classes or settings.protocol.num_classes
    reading: dict[str, Any] = {"media": settings.protocol.media, "item_timeout": settings.item_timeout}
    train = open_labelled(settings.train, num_classes=num_classes, class_names=settings.class_names or None, **reading)
    validation = open_labelled(
        settings.validation, num_classes=train.num_classes, class_names=train.class_names, **reading
    )
    check_training_classes(train, validation)
    return train, validation


def _jobs(settings: ProbeSettings, encoder: str, output_dir: Path) -> Iterator[Job]:
    """The jobs of one encoder; a run of a single job has no folders below its own."""
    root = output_dir / _as_folder(encoder) if len(settings.encoders) > 1 else output_dir
    for fraction in settings.label_fractions or (1.0,):
        for split in range(settings.num_splits if settings.label_fractions else 1):
            for seed in settings.seeds:
                parts = [f"labels-{fraction:g}-split-{split}"] if settings.label_fractions else []
                parts += [f"seed-{seed}"] if len(settings.seeds) > 1 else []
                folder = root.joinpath("-".join(parts)) if parts else root
                yield Job(encoder=encoder, fraction=fraction, split=split, seed=seed, folder=folder)


def _as_folder(name: str) -> str:
    """A name of an encoder as that of a folder; a digest tells apart what looks alike then."""
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip(".-")
    return plain if plain == name else f"{plain[-60:]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def clip_format_of(encoder: FrozenEncoder) -> ClipFormat:
    """The clips that an encoder takes."""
    return ClipFormat(
        crop_size=encoder.crop_size, frames_per_clip=encoder.frames_per_clip, mean=encoder.mean, std=encoder.std
    )


class _EncoderEvaluation:
    """All jobs of one encoder, which is opened when the first one has something to do."""

    def __init__(
        self,
        settings: ProbeSettings,
        name: str,
        train: LabelledSet,
        validation: LabelledSet,
        progress: Progress,
    ):
        self.settings, self.train, self.validation, self.progress = settings, train, validation, progress
        self.device = torch.device(join_processes().choose_device(settings.device))
        self.encoder = open_encoder(
            name,
            device=self.device,
            crop_size=settings.crop_size,
            frames_per_clip=settings.frames_per_clip or settings.protocol.frames_per_clip,
        )
        self._choose_feature_layers()
        self.format = clip_format_of(self.encoder)
        self.validation_facts = validation.facts("validation")
        self.read: list[EvaluationClips | TrainingClips] = []

    def cost(self, num_jobs: int) -> EncodingCost | None:
        """Estimate the cost of jobs; a cache spares some of it. None for an encoder of another family."""
        if not isinstance(self.encoder, VJEPAClipEncoder):
            return None
        protocol, encoding = self.settings.protocol, self.settings.encoding
        passes = 1 if protocol.augmentation is None and self.settings.cache else protocol.num_epochs
        in_training = len(self.train.labels) * protocol.num_training_segments * passes
        in_validation = len(self.validation.labels) * protocol.num_segments * protocol.num_views
        return encoding_cost(
            self.encoder.model.config,
            crop=(self.format.crop_size, self.format.crop_size),
            num_frames=self.format.frames_per_clip,
            num_clips=num_jobs * (in_training + in_validation),
            clips_at_once=encoding.clips_per_pass,
            dtype=getattr(torch, encoding.dtype),
            device=self.device,
            num_processes=join_processes().count,
        )

    def _choose_feature_layers(self) -> None:
        protocol, encoder = self.settings.protocol, self.encoder
        if isinstance(encoder, VJEPAClipEncoder):
            config = encoder.model.config
            encoder.feature_layers = protocol.choose_feature_layers(config.num_hidden_layers, config.feature_levels)
        elif protocol.pooler_feature_layers is not None:
            raise ValueError(
                f"the protocol '{protocol.name}' joins the tokens of several blocks, which {encoder.name} does not "
                "give; add --set pooler_feature_layers=none to take its last tokens"
            )

    def run(self, job: Job, output_dir: Path) -> Outcome:
        chosen = self._share_of_labels(job, output_dir)
        train = self.train if chosen is None else self._subset(chosen, job)
        drawn = {} if chosen is None else {"share": job.fraction, "split": job.split}
        data = [train.facts("train", **drawn), self.validation_facts]
        record = _record_of(self.settings, self.encoder, data, output_dir, job=job)
        run = RunFile(job.folder, record, is_writer=join_processes().is_first)
        if not _is_done(run, overwrite=self.settings.overwrite):
            with run.recording(), naming_killed_workers(self.read):
                training = self._train(train, chosen, job)
                predictions = self._predict([head.head for head in training.heads], job)
                self._write(run, job, training, predictions)
        join_processes().wait()
        results = read_results(job.folder)
        num_unreadable = results.num_unreadable + results.data["training"]["num_unreadable_in_training"]
        return Outcome(job=job, heads=results.heads, selected=results.selected.head, num_unreadable=num_unreadable)

    def _share_of_labels(self, job: Job, output_dir: Path) -> np.ndarray | None:
        """Places of the training videos of a job, written down; None: all of them."""
        if not self.settings.label_fractions:
            return None
        labels, fraction = self.train.labels, job.fraction
        chosen = stratified_split(labels, fraction=fraction, split=job.split, seed=0)
        if join_processes().is_first:
            file = output_dir / "splits" / f"labels-{fraction:g}-split-{job.split}.csv"
            write_split(file, self.train.names, labels, chosen, fraction=fraction, split=job.split, seed=0)
        return chosen

    def _subset(self, chosen: np.ndarray, job: Job) -> LabelledSet:
        return self.train.subset(chosen, f"{job.fraction:.3g} of the labels, split {job.split}")

    def _train(self, train: LabelledSet, chosen: np.ndarray | None, job: Job) -> SideBySideTraining:
        encoder = self.encoder
        training = SideBySideTraining(
            self._training_source(train, chosen, job),
            self.settings.all_heads,
            self.settings.protocol,
            hidden_size=encoder.hidden_size,
            num_attention_heads=self.settings.protocol.num_pooler_heads or encoder.num_attention_heads,
            num_pooler_layers=self.settings.protocol.num_pooler_layers,
            items_per_pass=self._videos_per_pass(self.settings.protocol.num_training_segments),
            seed=job.seed,
            device=self.device,
            processes=join_processes(),
        )
        training.run(job.folder, progress=self._progress_of(job))
        return training

    def _training_source(self, train: LabelledSet, chosen: np.ndarray | None, job: Job) -> TokenSource:
        protocol = self.settings.protocol
        if protocol.augmentation is not None:
            return self._encoded(TrainingClips(train, protocol, self.format, seed=job.seed))
        plain = protocol.with_values(num_views=1, num_segments=protocol.num_training_segments)
        if chosen is None or self.settings.cache is None:
            return self._source(train, plain, job)
        return SubsetTokens(self._source(self.train, plain, job), chosen, train)  # one cache for all shares

    def _source(self, labelled: LabelledSet, protocol: Protocol, job: Job) -> TokenSource:
        """Tokens of clips that nothing is drawn for: from the cache, if there is to be one."""
        encoded = self._encoded(EvaluationClips(labelled, protocol, self.format))
        if self.settings.cache is None:
            return encoded
        cached = CachedClips(self.settings.cache, encoded)
        size = self._videos_per_pass(protocol.num_segments * protocol.num_views)
        cached.fill(processes=join_processes(), batch_size=size, progress=self._progress_of(job))
        return cached

    def _encoded(self, clips: EvaluationClips | TrainingClips) -> EncodedClips:
        self.read.append(clips)
        return EncodedClips(self.encoder, clips, self.settings.encoding)

    def _predict(self, heads: Sequence[torch.nn.Module], job: Job) -> Predictions:
        protocol = self.settings.protocol
        source = self._source(self.validation, protocol, job)
        size = self._videos_per_pass(protocol.num_segments * protocol.num_views)
        return predict(
            source,
            heads,
            attends_across_segments=protocol.attends_across_segments,
            batch_size=size,
            progress=self._progress_of(job),
            processes=join_processes(),
        )

    def _videos_per_pass(self, clips_per_video: int) -> int:
        """As many as fill a pass of the encoder, at least one."""
        return max(1, self.settings.encoding.clips_per_pass // clips_per_video)

    def _progress_of(self, job: Job) -> Progress:
        """Progress that names the encoder, the share of the labels and the seed."""
        share = f", {job.fraction:g} of the labels, split {job.split}" if self.settings.label_fractions else ""
        title = f"{self.encoder.name}{share}, seed {job.seed}"
        return lambda what, done, total: self.progress(f"{what} {title}", done, total)

    def _write(self, run: RunFile, job: Job, training: SideBySideTraining, predictions: Predictions) -> None:
        if not join_processes().is_first:
            return
        metrics = [
            compute_metrics(probabilities, self.validation.labels, predictions.is_readable)
            for probabilities in predictions.probabilities
        ]
        self._save_heads([head.head for head in training.heads], metrics, job)
        losses = {"losses": training.losses, "num_unreadable_in_training": training.num_unreadable}
        _write_results(
            run,
            self.settings,
            self.encoder,
            metrics,
            self.validation.class_names,
            training=losses,
            rule=SELECTION_RULE if len(metrics) > 1 else ONLY_RULE,
        )
        if (job.folder / CLASSIFIER_FOLDER).is_dir():
            write_card(job.folder, f"{job.folder.resolve().name}/{CLASSIFIER_FOLDER}")

    def _save_heads(
        self, heads: Sequence[torch.nn.Module], metrics: Sequence[ClassificationMetrics], job: Job
    ) -> None:
        """The selected head alone, and the best attentive probe with its encoder as a classifier."""
        state = heads[_best(metrics)].state_dict()
        write_whole(job.folder / HEAD_NAME, save({name: value.cpu().contiguous() for name, value in state.items()}))
        probes = [place for place, head in enumerate(heads) if isinstance(head, AttentiveHead)]
        if not (probes and isinstance(self.encoder, VJEPAClipEncoder)):
            return
        probe = heads[max(probes, key=lambda place: (metrics[place].top1, -place))]
        config = copy.deepcopy(cast(Any, self.encoder.model.config))
        config.weights_origin = (
            f"{config.weights_origin or self.encoder.name}; attentive probe on {self.train.description}"
        )
        if config.has_rotary_positions:  # no table belongs to the encoder's own size
            config.frames_per_clip, config.crop_size = self.encoder.frames_per_clip, self.encoder.crop_size
        config.pooler_feature_layers = list(self.encoder.feature_layers) if self.encoder.feature_layers else None
        model = attach_head(cast(AttentiveHead, probe), self.encoder.model, config, self.validation.class_names)
        model.save_pretrained(job.folder / CLASSIFIER_FOLDER)
        clips = self.settings.protocol.clip_spec(self.encoder.frames_per_clip, is_training=True)
        if clips.frames_per_clip != config.frames_per_clip:
            logger.warning(
                "clips of %d frames were evaluated, but the model's own have %d, which pipelines take: give them "
                "num_frames=%d",
                clips.frames_per_clip,
                config.frames_per_clip,
                clips.frames_per_clip,
            )
        processor = VJEPAVideoProcessor(
            crop_size=self.encoder.crop_size,
            image_mean=list(self.encoder.mean),
            image_std=list(self.encoder.std),
            **clips.processor_options,
        )
        processor.save_pretrained(job.folder / CLASSIFIER_FOLDER)


def _best(metrics: Sequence[ClassificationMetrics]) -> int:
    return int(np.argmax([of_head.top1 for of_head in metrics]))


def _is_done(run: RunFile, *, overwrite: bool) -> bool:
    """Return whether the results of exactly this run are there; a folder of another one is cleared, or refused.

    Raises:
        ValueError: The folder holds another evaluation, or its record is damaged.
    """
    state, folder = join_processes(), run.folder
    found = read_run(folder) if (folder / RUN_FILE).exists() else None
    differing = [] if found is None else found.differences(run.record)
    state.wait()  # before the first process changes the folder
    if differing and not overwrite:
        raise ValueError(
            f"{folder} holds an evaluation with other settings ({', '.join(differing)} differ); take another folder, "
            "or --overwrite to delete it"
        )
    if differing and state.is_first:
        for name in (RESULTS_FILE, CHECKPOINT, HEAD_NAME, RUN_FILE):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / CLASSIFIER_FOLDER, ignore_errors=True)
    state.wait()
    return found is not None and not differing and (folder / RESULTS_FILE).exists()


def _record_of(
    settings: ProbeSettings, encoder: FrozenEncoder, data: Sequence[DataFacts], output_dir: Path, *, job: Job | None
) -> RunRecord:
    """The record of a job at its start, or of an evaluation of a classifier that is trained already."""
    protocol, heads = settings.protocol, settings.heads
    sizes = {"crop_size": settings.crop_size, "frames_per_clip": settings.frames_per_clip}
    trained = {
        "train": settings.train,
        "pooling": sorted({head.pooling for head in heads}),
        "learning_rate": sorted({head.learning_rate for head in heads}),
        "weight_decay": sorted({head.weight_decay for head in heads}),
        "label_fraction": settings.label_fractions,
        "splits": settings.num_splits,
        "seed": settings.seeds,
    }
    return RunRecord(
        kind="probe",
        command=command_words(
            "probe",
            *settings.encoders,
            assignments=protocol.changes,
            val=settings.validation,
            protocol=protocol.name,
            output_dir=output_dir,
            num_classes=settings.num_classes,
            dtype=settings.encoding.dtype,
            **sizes,
            **(trained if job else {"eval_only": True}),
        ),
        seeds=(job.seed if job else 0,),
        settings={
            "protocol": protocol.to_tree(),
            "heads": [head.to_tree() for head in settings.all_heads],
            "clip": clip_format_of(encoder).to_tree(),
            "dtype": settings.encoding.dtype,
        },
        changed={**protocol.changes, **{name: value for name, value in sizes.items() if value is not None}},
        model=ModelFacts.of(encoder.name, weights=encoder.description, sha256=encoder.fingerprint()),
        data=tuple(data),
    )


def _write_results(
    run: RunFile,
    settings: ProbeSettings,
    encoder: FrozenEncoder,
    metrics: Sequence[ClassificationMetrics],
    class_names: Sequence[str] | None,
    *,
    rule: str,
    training: dict[str, Any] | None = None,
) -> None:
    """Write the table and the picture of the classes, and last the results, which go into the record too."""
    selected = _best(metrics)
    best = metrics[selected]
    write_per_class_csv(run.folder / CLASSES_TABLE, best, class_names)
    write_confusion_picture(
        run.folder / "confusion.png", best.confusion, class_names, num_without_prediction=best.num_without_prediction
    )
    heads, protocol = [head.to_tree() for head in settings.all_heads], settings.protocol
    results = EvaluationResults(
        protocol={**protocol.to_tree(), "sources": protocol.sources, "changes": protocol.changes},
        encoder={
            "name": encoder.name,
            "description": encoder.description,
            "is_trained": encoder.is_trained,
            "fingerprint": encoder.fingerprint(),
            "dtype": settings.encoding.dtype,
            **clip_format_of(encoder).to_tree(),
        },
        data={**{fact.role: fact.model_dump() for fact in run.record.data}, "training": training},
        seeds=run.record.seeds,
        heads=[HeadResult(**head, metrics=found.summary()) for head, found in zip(heads, metrics, strict=True)],
        selected=SelectedHead(**heads[selected], metrics=best.to_dict(), head=selected, rule=rule),
        num_unreadable=best.num_unreadable,
    )
    write_results(run.folder, results)
    run.update(results=tuple(state_results(results)))
