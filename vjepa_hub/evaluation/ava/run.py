"""Action localisation in AVA with a frozen encoder, from the files to the results.

Everything of a run is in one folder:

    features-train/, features-val/   the features of boxes, and which key frames could not be read
    head.pt                          the head with its optimiser, after the last whole epoch
    detections.csv                   what was found, in AVA's format
    results.json                     mean and per-class average precision, the settings and where they come from

What was done is not done again: a call that was stopped goes on, and ends as if it had not been.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ...core.files import write_whole
from ...core.progress import Progress, no_progress
from ...hub.loading import OpenedModel, open_model
from ..tokens import EncodingSettings
from .boxes import (
    EVALUATED_CLASS_IDS,
    LabelMap,
    read_annotations,
    read_excluded_key_frames,
    read_label_map,
    read_proposals,
)
from .key_frames import KeyFrame, KeyFrameDataset, list_annotated_boxes, list_proposed_boxes, list_training_boxes
from .metrics import AvaResult
from .protocol import PUBLISHED_RESULTS, LocalisationProtocol
from .roi_features import BoxFeatures, LayerFeatures, extract_box_features
from .training import evaluate_localisation, train_localisation

RESULTS_FORMAT = "vjepa_hub.localisation/1"
RESULTS_FILE = "results.json"
# Unreadable key frames in the results; the rest is counted
MAX_NAMED = 100


def run_localisation(
    model_name: str | Path,
    *,
    train_annotations: str | Path,
    val_annotations: str | Path,
    videos: str | Path,
    output_dir: str | Path,
    train_proposals: str | Path | None = None,
    val_proposals: str | Path | None = None,
    label_map: str | Path | None = None,
    excluded_key_frames: str | Path | None = None,
    protocol: LocalisationProtocol | None = None,
    start_second: float = 0.0,
    seed: int = 0,
    device: str | torch.device = "cpu",
    encoding: EncodingSettings | None = None,
    backend: str | None = None,
    progress: Progress = no_progress,
) -> Path:
    """Train and evaluate action localisation on a frozen V-JEPA encoder, or go on where a call was stopped.

    Args:
        model_name: What `vjepa_hub.load` takes.
        train_annotations: Such as `ava_train_v2.2.csv`.
        val_annotations: Such as `ava_val_v2.2.csv`.
        videos: The folder of the videos of both, named by their ids.
        output_dir: Where everything is written.
        train_proposals: Boxes of persons to train on as well, where they lie on annotated ones.
        val_proposals: Boxes of persons to classify. Without, the annotated boxes are: then nobody has to be found, and
            the result is no longer comparable with published ones.
        label_map: The `.pbtxt` of the actions that count; without, the 60 of AVA v2.2, which then have no names.
        excluded_key_frames: Key frames to leave out of the validation.
        protocol: Other settings than the paper's.
        start_second: The second of the film at which the files begin: 900 for files of the annotated part alone.
        seed: Of the head's weights, the order and the mirroring.
        device: Where encoder and head run.
        encoding: How clips are encoded.
        backend: The decoder, as for `open_video`.
        progress: Called with (stage, done, total); the stages are "features-train", "features-val" and "train".

    Returns:
        The file `results.json`.

    Raises:
        ValueError: a file does not follow AVA's format, the folder holds a run of other settings, or nothing is left
            to train on or to evaluate.
        FileNotFoundError: the folder has none of the videos.
    """
    protocol = protocol or LocalisationProtocol()
    output_dir = Path(output_dir)
    labels = None if label_map is None else read_label_map(label_map)
    class_ids = _evaluated_classes(labels, protocol)
    inputs = _Inputs(protocol, train_annotations, val_annotations, train_proposals, val_proposals, excluded_key_frames)
    opened = open_model(model_name, device=device)
    extraction = _Extraction(
        encoder=LayerFeatures(opened.model, protocol.choose_layers(opened.model.config.num_hidden_layers)),
        opened=opened,
        protocol=protocol,
        videos=videos,
        output_dir=output_dir,
        start_second=start_second,
        device=device,
        encoding=encoding or EncodingSettings(),
        backend=backend,
        progress=progress,
    )
    train_set, val_set = extraction.open(inputs.train_frames), extraction.open(inputs.val_frames)
    train_features = extraction.run(train_set, "features-train", has_mirrored=protocol.flip_probability > 0)
    val_features = extraction.run(val_set, "features-val", has_mirrored=False)
    trained = train_localisation(
        train_features,
        inputs.train_frames,
        protocol,
        output_dir=output_dir,
        seed=seed,
        device=device,
        progress=progress,
    )
    result = evaluate_localisation(
        trained.head,
        val_features,
        inputs.val_frames,
        inputs.val_annotations,
        output_dir=output_dir,
        class_ids=class_ids,
    )
    report = {
        "format": RESULTS_FORMAT,
        "package": __version__,
        **_describe_result(result, labels),
        **_describe_comparison(extraction, inputs, val_features),
        **_describe_settings(extraction),
        "seed": seed,
        "losses": trained.losses,
        "train": _count(inputs.train_frames, train_features),
        "val": _count(inputs.val_frames, val_features),
    }
    content = json.dumps(report, indent=2, allow_nan=False) + "\n"
    write_whole(output_dir / RESULTS_FILE, content)
    return output_dir / RESULTS_FILE


class _Inputs:
    """The key frames that the files name, with their boxes."""

    def __init__(
        self,
        protocol: LocalisationProtocol,
        train_annotations: str | Path,
        val_annotations: str | Path,
        train_proposals: str | Path | None,
        val_proposals: str | Path | None,
        excluded_key_frames: str | Path | None,
    ):
        num_classes, min_score = protocol.num_classes, protocol.proposal_score_threshold
        excluded = frozenset() if excluded_key_frames is None else read_excluded_key_frames(excluded_key_frames)
        self.val_annotations = read_annotations(val_annotations, num_classes=num_classes).without(excluded)
        self.train_frames = list_training_boxes(
            read_annotations(train_annotations, num_classes=num_classes),
            None if train_proposals is None else read_proposals(train_proposals, min_score=min_score),
            num_classes=num_classes,
            min_overlap=protocol.proposal_min_overlap,
        )
        self.has_val_proposals = val_proposals is not None
        if val_proposals is None:
            self.val_frames = list_annotated_boxes(self.val_annotations, num_classes=num_classes)
            return
        proposals = read_proposals(val_proposals, min_score=min_score)
        self.val_frames = list_proposed_boxes(self.val_annotations, proposals, num_classes=num_classes)
        if not any(len(frame.boxes) for frame in self.val_frames):
            raise ValueError(
                f"{val_proposals} has no box of a score of {min_score} or more on the {len(self.val_frames)} key "
                f"frames of {val_annotations}; check that they belong together, or lower proposal_score_threshold"
            )

    @property
    def shared_videos(self) -> set[str]:
        train, val = ({frame.id.video_id for frame in frames} for frames in (self.train_frames, self.val_frames))
        return train & val


@dataclass(frozen=True, kw_only=True)
class _Extraction:
    """How the features of key frames are computed, the same for both sets."""

    encoder: LayerFeatures
    opened: OpenedModel
    protocol: LocalisationProtocol
    videos: str | Path
    output_dir: Path
    start_second: float
    device: str | torch.device
    encoding: EncodingSettings
    backend: str | None
    progress: Progress

    def open(self, key_frames: list[KeyFrame]) -> KeyFrameDataset:
        return KeyFrameDataset(
            key_frames,
            self.videos,
            self.protocol,
            crop_size=self.opened.model.config.crop_size,
            mean=self.opened.processor.image_mean,
            std=self.opened.processor.image_std,
            start_second=self.start_second,
            backend=self.backend,
        )

    def run(self, dataset: KeyFrameDataset, stage: str, *, has_mirrored: bool) -> BoxFeatures:
        return extract_box_features(
            self.encoder,
            dataset,
            self.output_dir / stage,
            has_mirrored=has_mirrored,
            batch_size=self.encoding.clips_per_pass,
            num_workers=self.encoding.num_workers,
            device=self.device,
            compute_dtype=getattr(torch, self.encoding.dtype),
            stage=stage,
            progress=self.progress,
        )


def _evaluated_classes(labels: LabelMap | None, protocol: LocalisationProtocol) -> tuple[int, ...]:
    class_ids = EVALUATED_CLASS_IDS if labels is None else labels.class_ids
    if max(class_ids) > protocol.num_classes:
        raise ValueError(
            f"action {max(class_ids)} is to be evaluated, but num_classes is {protocol.num_classes}; pass the label "
            "map of these actions, or raise num_classes"
        )
    return class_ids


def _describe_result(result: AvaResult, labels: LabelMap | None) -> dict[str, Any]:
    classes = [
        {
            "id": class_id,
            "name": None if labels is None else labels.names[class_id],
            "average_precision": value,
            "num_ground_truths": result.num_ground_truths[class_id],
        }
        for class_id, value in result.average_precisions.items()
    ]
    return {
        "mean_average_precision": result.mean_average_precision,
        "classes": classes,
        "num_detections": result.num_detections,
    }


def _describe_settings(extraction: _Extraction) -> dict[str, Any]:
    opened = extraction.opened
    return {
        "encoder": {"name": opened.name, "weights": opened.weights, "is_trained": opened.is_trained},
        "layers": list(extraction.encoder.layers),
        "compute_dtype": extraction.encoding.dtype,
        "start_second": extraction.start_second,
        "protocol": {**extraction.protocol.to_tree(), "sources": extraction.protocol.sources},
    }


def _describe_comparison(extraction: _Extraction, inputs: _Inputs, val_features: BoxFeatures) -> dict[str, Any]:
    """The published number, and what stands between it and this one."""
    differences = []
    if inputs.shared_videos:
        differences.append(f"{len(inputs.shared_videos)} videos are in both sets, such as {min(inputs.shared_videos)}")
    if not inputs.has_val_proposals:
        differences.append("the annotated boxes were classified: no person had to be found")
    if val_features.failures:
        differences.append(
            f"{len(val_features.failures)} key frames could not be read; their boxes count as not found"
        )
    default = LocalisationProtocol()
    for name, value in extraction.protocol.changes.items():
        differences.append(f"{name} is {value}; the protocol has {getattr(default, name)}")
    return {"published": PUBLISHED_RESULTS.get(extraction.opened.name), "differences": differences}


def _count(key_frames: Sequence[KeyFrame], features: BoxFeatures) -> dict[str, Any]:
    """Sizes of a set, and its key frames that could not be read."""
    named = list(features.failures.items())[:MAX_NAMED]
    videos = {frame.id.video_id for frame in key_frames}
    return {
        "num_videos": len(videos),
        "num_key_frames": len(key_frames),
        "num_boxes": sum(len(frame.boxes) for frame in key_frames),
        "num_without_boxes": sum(not len(frame.boxes) for frame in key_frames),
        "num_unreadable": len(features.failures),
        "unreadable": [{"key_frame": str(key_frames[place].id), "cause": cause} for place, cause in named],
    }
