"""A slice of an evaluation that a published classifier states, run again: same protocol, some of the videos."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.progress import Progress, no_progress
from ..heads.metrics import ClassificationMetrics, compute_metrics
from ..heads.pooling import AttentiveHead
from ..heads.prediction import predict
from ..hub.class_names import chosen_names
from ..hub.loading import open_classifier
from ..model.video_processing_vjepa import DEFAULT_FRAME_STEP, VJEPAVideoProcessor
from ..publishing.facts import find_run
from ..publishing.verification import SKIPPED, Check, VerificationReport, compare_accuracy, find_stated_accuracy
from .clips import EvaluationClips
from .encoders.opening import VJEPAClipEncoder
from .labelled import open_labelled
from .probe_run import clip_format_of
from .protocols import PROTOCOLS, Protocol, find_protocol
from .tokens import EncodedClips, EncodingSettings

# What says how a video is seen; the rest of a protocol is about training
_VIEWING = ("media", "frame_step", "clip_duration", "fps", "num_segments", "num_views", "attends_across_segments")


def check_stated_accuracy(
    report: VerificationReport,
    data: str | Path,
    *,
    protocol: Protocol | None = None,
    limit: int,
    device: str = "cpu",
    num_workers: int = 0,
    progress: Progress = no_progress,
) -> Check:
    """Compare the accuracy that a classifier's card states with that on a slice of the data set.

    Args:
        report: Verification of the classifier so far.
        data: The data set, as for `evaluate_slice`.
        protocol: By default the stated one.
        limit: As for `evaluate_slice`, and so are the rest and the errors.
        device: Where.
        num_workers: Processes that decode.
        progress: Called with the videos that are done, and all videos, after each batch.

    Returns:
        The check; skipped where the model is no classifier, a check failed before, or the card states no accuracy.
    """
    if not report.is_classifier or not report.passed:
        reason = "a check failed before" if report.is_classifier else "the model is no classifier: probe it"
        return Check(name="stated accuracy", state=SKIPPED, detail=reason)
    protocol = protocol or find_stated_protocol(report.folder)
    metrics = evaluate_slice(
        report.folder,
        data,
        protocol=protocol,
        limit=limit,
        device=device,
        num_workers=num_workers,
        progress=progress,
    )
    stated = find_stated_accuracy(report, Path(data).name)
    num_correct = round(metrics.top1 * metrics.num_videos)
    if stated is None:
        found = f"{num_correct} of {metrics.num_videos} right; the card states no top-1 accuracy to compare with"
        return Check(name="stated accuracy", state=SKIPPED, detail=found)
    return compare_accuracy(stated, num_correct, metrics.num_videos)


def find_stated_protocol(folder: str | Path) -> Protocol:
    """The protocol of the evaluation that a classifier's folder states.

    Args:
        folder: With `run.json` of a probe; of another the clips are as its processor takes them, one view.

    Raises:
        ValueError: The file cannot be read, or has values that no protocol has.
    """
    run = find_run(folder)
    record = run.read_record()
    if record is not None and record.kind == "probe":
        stated = record.settings["protocol"]
        name = stated["name"] if stated["name"] in PROTOCOLS else "plain"
        return find_protocol(name).with_values(**{key: stated[key] for key in _VIEWING if key in stated})
    processor = VJEPAVideoProcessor.from_pretrained(run.model)
    return find_protocol("plain").with_values(
        frame_step=processor.frame_step or DEFAULT_FRAME_STEP,
        clip_duration=processor.clip_duration,
        fps=processor.fps,
        num_segments=processor.num_segments or 1,
        num_views=1,
    )


def evaluate_slice(
    folder: str | Path,
    data: Any,
    *,
    protocol: Protocol,
    limit: int,
    device: str = "cpu",
    num_workers: int = 0,
    progress: Progress = no_progress,
) -> ClassificationMetrics:
    """Evaluate a classifier on some of the videos of a labelled set, drawn at random from seed 0.

    Args:
        folder: Of the classifier.
        data: What `open_labelled` takes; its classes are those of the model.
        protocol: How each video is seen.
        limit: Videos at most.
        device: Where.
        num_workers: Processes that decode.
        progress: Called with the videos that are done, and all videos, after each batch.

    Raises:
        FileNotFoundError: There is no such set.
        ValueError: The set has other classes than the model.
    """
    model, processor = open_classifier(folder)
    names = chosen_names(model.config.id2label)
    labelled = open_labelled(data, media=protocol.media, num_classes=model.num_labels, class_names=names)
    if len(labelled) > limit:
        chosen = np.sort(np.random.default_rng(0).permutation(len(labelled))[:limit])
        labelled = labelled.subset(chosen, f"{limit} drawn at random")
    encoder = VJEPAClipEncoder.of_model(
        model,
        processor,
        name=str(folder),
        description="a published model",
        feature_layers=model.config.pooler_feature_layers,
    ).place(torch.device(device))
    head: torch.nn.Module = AttentiveHead.of_classifier(model)
    head.to(device)
    clips = EvaluationClips(labelled, protocol, clip_format_of(encoder))
    source = EncodedClips(encoder, clips, EncodingSettings(num_workers=num_workers))
    predictions = predict(source, [head], attends_across_segments=protocol.attends_across_segments, progress=progress)
    return compute_metrics(predictions.probabilities[0], labelled.labels, predictions.is_readable)
