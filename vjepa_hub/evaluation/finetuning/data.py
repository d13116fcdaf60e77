"""Labelled clips for transformers' Trainer: items, batches with mixed clips and soft labels, loss and metrics.

A validation video that cannot be read keeps its place with the label `UNREADABLE`: the loss passes over it, and the
metrics count it as wrong. A training video that cannot be read is replaced by another one.
"""

import logging
from collections.abc import Sequence
from typing import Annotated, Any, TypedDict, cast

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat
from timm.data.mixup import Mixup
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import EvalPrediction

from ...core.settings import Probability, Settings
from ...data.clip_order import ClipRequest
from ...data.quarantine import NoReadableVideoError
from ...heads.metrics import compute_metrics, shorten_list
from ..clips import EvaluationClips, LabelledClip, TrainingClips
from ..labelled import LabelledSet

logger = logging.getLogger(__name__)

# The label that torch's cross-entropy and the Trainer's counts leave out
UNREADABLE = -100
# Positions are drawn from so many that no two of a run are likely to be the same
_NUM_POSITIONS = 2**62
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]


class FineTuningClip(TypedDict):
    """Item of `FineTuningClips`.

    Attributes:
        pixel_values_videos: `(num_frames, 3, height, width)`, or `(num_segments, num_frames, 3, height, width)` where
            a video has more than one segment.
        labels: Number of the class, or `UNREADABLE`.
        is_training: Whether it may be mixed with others.
    """

    pixel_values_videos: torch.Tensor
    labels: int
    is_training: bool


class FineTuningClips(Dataset[FineTuningClip]):
    """Clips of a labelled set as the Trainer asks for them, by number alone.

    In training each request draws a new position, and with it all that is random about the clip, from torch's
    generator of the process that loads: epochs differ, and the Trainer's seed decides.

    Args:
        clips: For training `TrainingClips`, whose unreadable videos are replaced by others; for validation
            `EvaluationClips`.
        max_tries: Training videos that are tried for one item.

    Raises:
        ValueError: There are no videos, `max_tries` is below 1, or a validation video has several views.
    """

    def __init__(self, clips: TrainingClips | EvaluationClips, *, max_tries: int = 10):
        self.clips, self.max_tries = clips, max_tries
        self.is_training = not isinstance(clips, EvaluationClips)
        if not len(clips):
            split = "training" if self.is_training else "validation"
            raise ValueError(f"the {split} set has no videos, but needs at least one: check its list")
        if max_tries < 1:
            raise ValueError(
                f"max_tries is {max_tries}, but at least the video itself has to be tried: give 1 or more"
            )
        if isinstance(clips, EvaluationClips) and clips.protocol.num_views != 1:
            raise ValueError(
                f"a validation video has {clips.protocol.num_views} views, but while tuning one is looked at: set "
                "num_views=1, and evaluate the tuned model with more views afterwards"
            )

    def __len__(self) -> int:
        """Number of videos."""
        return len(self.clips)

    def __getitem__(self, index: int) -> FineTuningClip:
        """Read a video.

        Args:
            index: Its number.

        Raises:
            NoReadableVideoError: In training, neither it nor those drawn in its place can be read.
        """
        item = self._first_readable(index) if self.is_training else self.clips[index]
        clips = item["pixel_values_videos"].flatten(0, -5)  # (views and segments, T, 3, H, W)
        return FineTuningClip(
            pixel_values_videos=clips[0] if len(clips) == 1 else clips,
            labels=item["label"] if item["is_readable"] else UNREADABLE,
            is_training=self.is_training,
        )

    def _first_readable(self, index: int) -> LabelledClip:
        tried = []
        for _ in range(self.max_tries):
            position = int(torch.randint(_NUM_POSITIONS, ()))
            item = cast(TrainingClips, self.clips)[ClipRequest(position, index)]
            if item["is_readable"]:
                return item
            tried.append(index)
            index = int(torch.randint(len(self), ()))
        raise NoReadableVideoError(
            f"none of the {len(tried)} training videos that were tried can be read (numbers {shorten_list(tried)}); "
            "check the paths, and all videos with `vjepa-hub check-data`"
        )


class MixingSettings(Settings):
    """Mixing of training clips with each other, and softening of their labels.

    Args:
        mixup: Both parameters of the beta distribution of the mixing factor (Zhang et al. 2018); 0: no mixup.
        cutmix: The same for the share of a box that comes from another clip (Yun et al. 2019); 0: no cutmix.
        mix_probability: Probability of mixing a batch.
        switch_probability: Probability of cutmix for a mixed batch, where there are both.
        label_smoothing: Share of a label that is spread over all classes.
    """

    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0
    mix_probability: Probability = 1.0
    switch_probability: Probability = 0.5
    label_smoothing: ShareBelowOne = 0.0


class FineTuningCollator:
    """Makes batches; training clips are mixed with each other (mixup, cutmix), and labels become distributions.

    One factor or one box is sampled for a batch and is the same in all frames and segments (timm's `Mixup` in its mode
    "batch"). A batch of odd size is mixed too. Validation clips are left as they are, with class numbers as labels.

    Args:
        num_classes: Number of classes.
        mixing: Of training clips; None: no mixing and no smoothing.
    """

    def __init__(self, num_classes: int, mixing: MixingSettings | None = None):
        mixing = mixing or MixingSettings()
        self.mixer = Mixup(
            mixup_alpha=mixing.mixup,
            cutmix_alpha=mixing.cutmix,
            prob=mixing.mix_probability,
            switch_prob=mixing.switch_probability,
            label_smoothing=mixing.label_smoothing,
            num_classes=num_classes,
        )
        self.mixer.mixup_enabled = mixing.mixup > 0 or mixing.cutmix > 0
        self.has_soft_labels = self.mixer.mixup_enabled or mixing.label_smoothing > 0

    def __call__(self, items: Sequence[FineTuningClip]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            items: All of training, or all of validation.

        Returns:
            `pixel_values_videos`, stacked, and `labels`: class numbers `(batch_size,)`, or in training with mixing or
            smoothing distributions `(batch_size, num_classes)`, float32.
        """
        clips = torch.stack([item["pixel_values_videos"] for item in items])
        labels = torch.tensor([item["labels"] for item in items])
        if items[0]["is_training"] and self.has_soft_labels:
            clips, labels = self._mix(clips, labels)
        return {"pixel_values_videos": clips, "labels": labels}

    def _mix(self, clips: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        num_clips, shape = len(clips), clips.shape[1:]
        frames = clips.flatten(1, -3)  # (B, [S *] T * 3, H, W): to timm one image, so one draw for all frames
        if num_clips % 2:  # timm wants pairs: the last clip comes twice, and once leaves again
            frames, labels = torch.cat([frames, frames[-1:]]), torch.cat([labels, labels[-1:]])
        mixed, soft_labels = self.mixer(frames, labels)
        return mixed[:num_clips].unflatten(1, shape[:-2]), soft_labels[:num_clips]


def classification_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross-entropy with class numbers or distributions, for the Trainer's `compute_loss_func`.

    The model's own loss takes labels that are floats for several labels of a clip, and would score each class by
    itself. `UNREADABLE` labels are passed over.

    Args:
        outputs: The model's, with `logits` `(batch_size, num_classes)`.
        labels: `(batch_size,)` integers or `(batch_size, num_classes)` floats.
        num_items_in_batch: What the Trainer counted over all batches and processes of the optimiser step: elements of
            the labels that are not -100, so that a distribution counts once for each class. None: this batch alone.

    Returns:
        The batch's share of the mean over the optimiser step; scalar, float32.
    """
    logits = outputs["logits"].float()
    is_soft = labels.ndim == 2
    total = F.cross_entropy(logits, labels.to(logits.device), ignore_index=UNREADABLE, reduction="sum")
    if num_items_in_batch is None:
        return total / labels.ne(UNREADABLE).sum().clamp(min=1) * (logits.shape[-1] if is_soft else 1)
    num_items = (
        torch.as_tensor(num_items_in_batch, device=total.device).float().mean()
    )  # one for each DataParallel GPU
    return total * (logits.shape[-1] if is_soft else 1) / num_items.clamp(min=1)


def classification_metrics(evaluation: EvalPrediction) -> dict[str, float]:
    """Accuracies over all validation videos, for the Trainer's `compute_metrics`; see `metrics` for what counts.

    Args:
        evaluation: `predictions`, logits `(num_videos, num_classes)`, and `label_ids` `(num_videos,)`.

    Returns:
        `top1`, `top5`, `num_videos`, `num_unreadable`, `num_not_finite`.
    """
    labels = np.asarray(evaluation.label_ids)
    is_readable = labels != UNREADABLE
    probabilities = torch.from_numpy(np.asarray(evaluation.predictions)).double().softmax(-1).numpy()
    measured = compute_metrics(
        np.where(is_readable[:, None], probabilities, 0.0), np.where(is_readable, labels, 0), is_readable
    )
    if measured.num_without_prediction:
        logger.warning(
            "%d of %d validation videos cannot be read, and the scores of %d are not finite: they count as wrong",
            measured.num_unreadable,
            measured.num_videos,
            measured.num_not_finite,
        )
    names = ("top1", "top5", "num_videos", "num_unreadable", "num_not_finite")
    return {name: getattr(measured, name) for name in names}


def check_sets(train: LabelledSet, validation: LabelledSet, *, allow_missing_classes: bool = False) -> None:
    """Make sure that two sets can be tuned and judged on.

    Args:
        train: The training set.
        validation: The validation set.
        allow_missing_classes: Whether there may be classes without a training video.

    Raises:
        ValueError: The sets have other classes, one is empty or has a label outside them, or a class has no training
            video.
    """
    if (train.num_classes, train.class_names) != (validation.num_classes, validation.class_names):
        raise ValueError(
            f"the training set has {train.num_classes} classes and the validation set {validation.num_classes}, or "
            "they have other names: give both the same classes"
        )
    for split, labelled in (("training", train), ("validation", validation)):
        _check_labels(labelled, split)
    missing = np.setdiff1d(np.arange(train.num_classes), train.labels)
    if len(missing) and not allow_missing_classes:
        names = train.class_names or range(train.num_classes)
        raise ValueError(
            f"{len(missing)} of {train.num_classes} classes have no training video: "
            f"{shorten_list(names[number] for number in missing)}; add some, leave these classes out, or allow it "
            "with allow_missing_classes"
        )


def _check_labels(labelled: LabelledSet, split: str) -> None:
    if not len(labelled):
        raise ValueError(f"the {split} set has no videos, but needs at least one: check its list")
    is_outside = (labelled.labels < 0) | (labelled.labels >= labelled.num_classes)
    if is_outside.any():
        place = int(is_outside.argmax())
        raise ValueError(
            f"'{labelled.names[place]}' of the {split} set has the class {labelled.labels[place]}, but there are "
            f"{labelled.num_classes}, 0 to {labelled.num_classes - 1}: correct it, or give the number of classes"
        )
