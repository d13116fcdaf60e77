"""Action localisation in AVA with a frozen encoder, from the files to the results.

    key frames -> clips -> frozen encoder -> features of boxes (on disk) -> linear head -> detections -> mean AP

Everything of a run is in one folder:

    features/        the stored features of boxes
    heads.pt         the head with its optimiser, after the last whole epoch
    detections.csv   what was found, in AVA's format
    run.json         the record of the run
    results.json     mean and per-class average precision, see `LocalisationResults`

What was done is not done again: a resumed run ends as an uninterrupted one.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import nn

from ... import __version__
from ...core.distributed import join_processes
from ...core.files import write_whole
from ...core.fingerprints import hash_weights
from ...core.invocation import command_words
from ...core.progress import Progress, no_progress
from ...core.run_files import (
    RESULTS_FILE,
    RUN_FILE,
    DataFacts,
    ModelFacts,
    Record,
    Result,
    RunFile,
    RunRecord,
    read_run,
    require_own_folder,
)
from ...core.settings import Settings
from ...heads.pooling import HeadSettings
from ...heads.tokens import in_order
from ...heads.training import SideBySideTraining
from ...hub.loading import OpenedModel, open_model
from ..tokens import EncodingSettings
from .boxes import (
    EVALUATED_CLASS_IDS,
    KeyFrameBoxes,
    read_annotations,
    read_detections,
    read_excluded_key_frames,
    read_label_map,
    read_proposals,
    write_detections,
)
from .key_frames import KeyFrame, KeyFrameDataset, list_annotated_boxes, list_proposed_boxes, list_training_boxes
from .metrics import MAX_DETECTIONS, AvaResult, evaluate_detections, highest_per_frame
from .protocol import PUBLISHED_RESULTS, LocalisationProtocol
from .roi_features import BoxFeatures, LayerFeatures

FEATURES_FOLDER, DETECTIONS_FILE = "features", "detections.csv"
# Unreadable key frames in the results; the rest is counted
MAX_NAMED = 100


class LocalisationSettings(Settings):
    """Action localisation on a frozen V-JEPA encoder.

    Args:
        model: What `vjepa_hub.load` takes.
        train: Annotations to train on, such as `ava_train_v2.2.csv`.
        validation: Annotations to evaluate on, such as `ava_val_v2.2.csv`.
        videos: Folder of the videos of both, named by their ids.
        train_proposals: Boxes of persons to train on as well, where they lie on annotated ones.
        val_proposals: Boxes of persons to classify. Without, the annotated boxes are: then nobody has to be found, and
            the result is not comparable with published ones.
        label_map: The `.pbtxt` of the actions that count; without, the 60 of AVA v2.2, which then have no names.
        excluded: Key frames to leave out of the validation.
        protocol: Clips, boxes and optimisation.
        start_second: Second of the film at which the files begin: 900 for files of the annotated part alone.
        seed: Of the head's weights, the order and the mirroring.
        encoding: How clips are encoded.
        device: Where; None: the accelerator, if there is one.
    """

    model: str
    train: Path
    validation: Path
    videos: Path
    train_proposals: Path | None = None
    val_proposals: Path | None = None
    label_map: Path | None = None
    excluded: Path | None = None
    protocol: LocalisationProtocol = Field(default_factory=LocalisationProtocol)
    start_second: NonNegativeFloat = 0.0
    seed: NonNegativeInt = 0
    encoding: EncodingSettings = Field(default_factory=EncodingSettings)
    device: str | None = None


class KeyFrameCounts(Record):
    """Sizes of a set, and its first key frames that could not be read."""

    num_videos: int
    num_key_frames: int
    num_boxes: int
    num_without_boxes: int
    num_unreadable: int
    unreadable: tuple[str, ...]


class LocalisationResults(AvaResult):
    """Typed contents of `results.json`.

    Attributes:
        format: Of this file.
        package: Version of vjepa_hub.
        names: Of the actions, by their numbers; empty without a label map.
        published: The paper's number for this model.
        differences: Sentences on what stands between the two numbers.
        layers: Blocks of the encoder whose outputs are used.
        protocol: Its settings and where they come from.
        losses: Mean loss of each epoch.
        train: The training set.
        val: The validation set.
    """

    format: Literal["localisation/2"] = "localisation/2"
    package: str = __version__
    names: dict[int, str]
    published: float | None
    differences: tuple[str, ...]
    layers: tuple[int, ...]
    protocol: dict[str, Any]
    losses: tuple[float, ...]
    train: KeyFrameCounts
    val: KeyFrameCounts


def run_localisation(
    settings: LocalisationSettings, output_dir: str | Path, progress: Progress = no_progress
) -> LocalisationResults:
    """Train and evaluate action localisation on a frozen V-JEPA encoder, or resume.

    Every process of a `torchrun` calls it; the first one writes.

    Args:
        settings: Model, files and protocol.
        output_dir: Folder of the run.
        progress: Called as the work goes on.

    Raises:
        ValueError: A file does not follow AVA's format, the folder holds a run of other settings, or nothing is left
            to train on or to evaluate.
        FileNotFoundError: The folder has none of the videos.
        FolderInUseError: Another run writes into the output folder.
    """
    output_dir, processes, inputs = Path(output_dir), join_processes(), _Inputs(settings)
    opened = open_model(settings.model, device=processes.choose_device(settings.device))
    record = _record_of(settings, opened, output_dir)
    differing = read_run(output_dir).differences(record) if (output_dir / RUN_FILE).exists() else []
    require_own_folder(output_dir, "localise")
    processes.wait()  # before the first process changes the folder
    if differing:
        raise ValueError(
            f"{output_dir} holds a run with other settings ({', '.join(differing)} differ); take another folder, or "
            "delete it"
        )
    run_file = RunFile(output_dir, record, is_writer=processes.is_first)
    with processes.locking(output_dir), run_file.recording() as run:
        _localise(settings, inputs, opened, run, progress)
        processes.wait()
    return LocalisationResults.read(output_dir / RESULTS_FILE, remedy="localise again")


def _record_of(settings: LocalisationSettings, opened: OpenedModel, output_dir: Path) -> RunRecord:
    """The record of a run at its start."""
    files = {
        "train": settings.train,
        "validation": settings.validation,
        "train proposals": settings.train_proposals,
        "validation proposals": settings.val_proposals,
        "label map": settings.label_map,
        "excluded": settings.excluded,
    }
    words = command_words(
        "localise",
        settings.model,
        train=settings.train,
        val=settings.validation,
        videos=settings.videos,
        output_dir=output_dir,
        train_proposals=settings.train_proposals,
        val_proposals=settings.val_proposals,
        label_map=settings.label_map,
        excluded=settings.excluded,
        start_second=settings.start_second,
        seed=settings.seed,
        dtype=settings.encoding.dtype,
        assignments=settings.protocol.changes,
    )
    listed = [
        DataFacts.of(role, file, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
        for role, file in files.items()
        if file is not None and file.is_file()
    ]
    return RunRecord(
        kind="localise",
        command=words,
        seeds=(settings.seed,),
        settings={
            "protocol": settings.protocol.to_tree(),
            "dtype": settings.encoding.dtype,
            "start_second": settings.start_second,
        },
        changed=settings.protocol.changes,
        model=ModelFacts.of(
            settings.model, weights=opened.weights, sha256=hash_weights(opened.model.encoder.state_dict())
        ),
        data=(DataFacts.of("videos", settings.videos), *listed),
    )


def _localise(
    settings: LocalisationSettings, inputs: "_Inputs", opened: OpenedModel, run: RunFile, progress: Progress
) -> None:
    """Encode, train and, in the first process, detect, evaluate and write."""
    processes, protocol, folder = join_processes(), settings.protocol, run.folder
    train = _box_features(inputs.train_frames, settings, opened, folder, flip_probability=protocol.flip_probability)
    validation = _box_features(inputs.val_frames, settings, opened, folder)
    for source in (train, validation):
        source.fill(processes=processes, progress=progress)
    training = SideBySideTraining(
        train,
        [HeadSettings(pooling="average", learning_rate=protocol.learning_rate, weight_decay=protocol.weight_decay)],
        protocol,
        hidden_size=train.features.num_features,
        num_attention_heads=1,  # of the attentive probe
        items_per_pass=protocol.batch_size,
        seed=settings.seed,
        device=train.device,
        processes=processes,
    )
    (head,) = training.run(folder, progress=progress)
    if not processes.is_first:
        return
    write_detections(folder / DETECTIONS_FILE, detect_actions(head, validation, class_ids=inputs.class_ids))
    # Of the file as it was rounded, so that AVA's own evaluation says the same of it
    found = read_detections(folder / DETECTIONS_FILE, num_classes=protocol.num_classes)
    result = evaluate_detections(inputs.val_annotations, found, class_ids=inputs.class_ids)
    results = LocalisationResults(
        **result.model_dump(),
        names=inputs.names,
        published=PUBLISHED_RESULTS.get(opened.name),
        differences=tuple(_list_differences(settings, inputs, validation)),
        layers=train.features.layers,
        protocol={**protocol.to_tree(), "sources": protocol.sources},
        losses=tuple(of_heads[0] for of_heads in training.losses),
        train=_count(inputs.train_frames, train),
        val=_count(inputs.val_frames, validation),
    )
    write_whole(folder / RESULTS_FILE, results.model_dump_json(indent=2) + "\n")
    stated = Result(
        task="video-classification",
        dataset="AVA v2.2",
        metric="mean average precision (%)",
        metric_type="mean_average_precision",
        value=round(100 * result.mean_average_precision, 2),
        protocol=f"protocol {protocol.name}; frozen encoder, linear head on boxes of persons",
        source="measured by vjepa-hub localise",
    )
    run.update(results=(stated,))


@torch.no_grad()
def detect_actions(
    head: nn.Module,
    features: BoxFeatures,
    *,
    class_ids: Sequence[int] = EVALUATED_CLASS_IDS,
    max_detections: int = MAX_DETECTIONS,
    batch_size: int = 1024,
) -> KeyFrameBoxes:
    """Score the actions of boxes.

    Args:
        head: The classifier.
        features: Of the boxes.
        class_ids: The actions to score.
        max_detections: Only the highest scores of a key frame are kept, as the evaluation counts no more.
        batch_size: Key frames at a time.
    """
    columns, ids = torch.tensor(class_ids) - 1, np.asarray(class_ids, dtype=np.int64)
    parts = []
    for batch in features.batches(in_order(range(len(features)), batch_size)):
        assert batch is not None
        rows = batch.indices[batch.is_readable.cpu()].numpy()
        tokens = batch.tokens[batch.is_readable].flatten(1, 3)  # (R, 1, L * D)
        scores = head(tokens.float()).sigmoid().cpu()[:, columns].double().numpy().ravel()
        key_frames = np.repeat(features.key_frame_of_row[rows], len(ids))
        kept = highest_per_frame(key_frames, scores, max_detections)
        boxes = features.boxes[rows[kept // len(ids)]].astype(np.float64)
        parts.append((key_frames[kept], boxes, ids[kept % len(ids)], scores[kept]))
    columns_of_parts = (np.concatenate(column) for column in zip(*parts, strict=True))
    return KeyFrameBoxes(tuple(frame.id for frame in features.dataset.key_frames), *columns_of_parts)


class _Inputs:
    """The key frames that the files name, with their boxes."""

    def __init__(self, settings: LocalisationSettings):
        protocol = settings.protocol
        num_classes, min_score = protocol.num_classes, protocol.proposal_score_threshold
        self.names = {} if settings.label_map is None else read_label_map(settings.label_map)
        self.class_ids = tuple(self.names) or EVALUATED_CLASS_IDS
        if max(self.class_ids) > num_classes:
            raise ValueError(
                f"action {max(self.class_ids)} is to be evaluated, but num_classes is {num_classes}; pass the label "
                "map of these actions, or raise num_classes"
            )
        excluded = frozenset() if settings.excluded is None else read_excluded_key_frames(settings.excluded)
        self.val_annotations = read_annotations(settings.validation, num_classes=num_classes).without(excluded)
        self.train_frames = list_training_boxes(
            read_annotations(settings.train, num_classes=num_classes),
            None
            if settings.train_proposals is None
            else read_proposals(settings.train_proposals, min_score=min_score),
            num_classes=num_classes,
            min_overlap=protocol.proposal_min_overlap,
        )
        self.val_frames = list_annotated_boxes(self.val_annotations, num_classes=num_classes)
        if settings.val_proposals is not None:
            proposals = read_proposals(settings.val_proposals, min_score=min_score)
            self.val_frames = list_proposed_boxes(self.val_annotations, proposals, num_classes=num_classes)
        if not any(len(frame.boxes) for frame in self.val_frames):
            raise ValueError(
                f"{settings.val_proposals or settings.validation} has no box of a score of {min_score} or more on the "
                f"{len(self.val_frames)} key frames of {settings.validation}; check that they belong together, or "
                "lower proposal_score_threshold"
            )


def _box_features(
    key_frames: Sequence[KeyFrame],
    settings: LocalisationSettings,
    opened: OpenedModel,
    output_dir: Path,
    *,
    flip_probability: float = 0.0,
) -> BoxFeatures:
    """The features of those key frames that have boxes."""
    layers = settings.protocol.choose_layers(opened.model.config.num_hidden_layers)
    dataset = KeyFrameDataset(
        [frame for frame in key_frames if len(frame.boxes)],
        settings.videos,
        settings.protocol,
        crop_size=opened.model.config.crop_size,
        mean=opened.processor.image_mean,
        std=opened.processor.image_std,
        start_second=settings.start_second,
    )
    return BoxFeatures(
        output_dir / FEATURES_FOLDER,
        LayerFeatures(opened.model, layers, name=opened.name),
        dataset,
        settings.encoding,
        flip_probability=flip_probability,
        seed=settings.seed,
        device=opened.model.device,
    )


def _list_differences(settings: LocalisationSettings, inputs: _Inputs, validation: BoxFeatures) -> list[str]:
    """Differences between this number and the published one."""
    differences = []
    train, val = ({frame.id.video_id for frame in frames} for frames in (inputs.train_frames, inputs.val_frames))
    if train & val:
        differences.append(f"{len(train & val)} videos are in both sets, such as {min(train & val)}")
    if settings.val_proposals is None:
        differences.append("the annotated boxes were classified: no person had to be found")
    num_unreadable = int((~validation.is_readable).sum())
    if num_unreadable:
        differences.append(f"{num_unreadable} key frames could not be read; their boxes count as not found")
    default = LocalisationProtocol()
    for name, value in settings.protocol.changes.items():
        differences.append(f"{name} is {value}; the protocol has {getattr(default, name)}")
    return differences


def _count(key_frames: Sequence[KeyFrame], features: BoxFeatures) -> KeyFrameCounts:
    unreadable = np.flatnonzero(~features.is_readable)
    return KeyFrameCounts(
        num_videos=len({frame.id.video_id for frame in key_frames}),
        num_key_frames=len(key_frames),
        num_boxes=len(features.boxes),
        num_without_boxes=len(key_frames) - len(features),
        num_unreadable=len(unreadable),
        unreadable=tuple(str(features.dataset.key_frames[place].id) for place in unreadable[:MAX_NAMED]),
    )
