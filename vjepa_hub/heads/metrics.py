"""Measures of a classification: accuracies, the confusion matrix, and how sure the accuracy is.

Accuracies are shares between 0 and 1 of all videos. A video that could not be decoded counts as wrong: leaving it out
would make two evaluations incomparable, of which one failed on the harder videos. The same holds for a video whose
probabilities are not finite, as those of a head whose training has diverged; it is counted on its own.

Ties never help. A video is among the first k when fewer than k other classes are at least as probable as its own, and
its predicted class is the most probable one, of equal ones the lowest, its own only where it is more probable than all
others. So a head that gives all classes the same probability has an accuracy of 0, not that of the class that happens
to be numbered 0; only where k is the number of classes is every prediction a hit, as it would be by chance.

Letters: N videos, C classes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

NUM_BEST = 5
INTERVAL_PERCENTILES = (2.5, 97.5)
# Probabilities may come from half precision and be averaged over views.
SUM_TOLERANCE = 0.02


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassificationMetrics:
    """Accuracies of a classifier, as shares of all videos; the module says what counts as wrong.

    Attributes:
        num_videos: All, also those that could not be decoded.
        num_unreadable: Those that could not be decoded.
        num_not_finite: Those that could, and whose probabilities are not finite.
        top1: Share whose own class is the most probable.
        top5: Share whose own class is among the five most probable; of all classes where there are fewer than five.
        top1_interval: Ends of the 95 % interval of `top1`, from a bootstrap over the videos.
        mean_class_accuracy: Mean of `per_class_accuracy` over the classes that have videos.
        per_class_accuracy: float64 `(num_classes,)`, share of a class's videos; NaN for a class without videos.
        num_videos_per_class: int64 `(num_classes,)`.
        num_unreadable_per_class: int64 `(num_classes,)`.
        confusion: int64 `(num_classes, num_classes)`, number of videos by own class (row) and predicted class
            (column), without those that have no prediction.
    """

    num_videos: int
    num_unreadable: int
    num_not_finite: int
    top1: float
    top5: float
    top1_interval: tuple[float, float]
    mean_class_accuracy: float
    per_class_accuracy: np.ndarray
    num_videos_per_class: np.ndarray
    num_unreadable_per_class: np.ndarray
    confusion: np.ndarray

    @property
    def num_classes(self) -> int:
        """Number of classes, with and without videos."""
        return len(self.confusion)

    @property
    def num_without_prediction(self) -> int:
        """Videos that are wrong because there is no prediction: unreadable ones, and probabilities not finite."""
        return self.num_unreadable + self.num_not_finite

    def summary(self) -> dict[str, Any]:
        """The numbers that do not grow with the number of classes, as plain types for JSON."""
        return {
            "num_videos": self.num_videos,
            "num_unreadable": self.num_unreadable,
            "num_not_finite": self.num_not_finite,
            "num_classes": self.num_classes,
            "top1": self.top1,
            "top1_interval": list(self.top1_interval),
            "top5": self.top5,
            "mean_class_accuracy": self.mean_class_accuracy,
        }

    def to_dict(self) -> dict[str, Any]:
        """All of it, as plain types for JSON; the accuracy of a class without videos is None."""
        accuracies = [None if math.isnan(share) else share for share in self.per_class_accuracy.tolist()]
        return self.summary() | {
            "per_class_accuracy": accuracies,
            "num_videos_per_class": self.num_videos_per_class.tolist(),
            "num_unreadable_per_class": self.num_unreadable_per_class.tolist(),
            "confusion": self.confusion.tolist(),
        }


def compute_metrics(
    probabilities: np.ndarray,
    labels: np.ndarray,
    is_readable: np.ndarray,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> ClassificationMetrics:
    """Measure a classifier on a labelled set. What counts as right and wrong stands at the head of the module.

    Args:
        probabilities: `(num_videos, num_classes)`, of each video's classes, each row with the sum 1; zeros for a video
            that could not be decoded.
        labels: Integers `(num_videos,)`, from 0 to `num_classes - 1`.
        is_readable: Booleans `(num_videos,)`, false for a video that could not be decoded.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap. The same seed and numbers give the same interval.

    Raises:
        TypeError: The labels are no integers, or `is_readable` no booleans.
        ValueError: No video or no class, shapes that do not fit, a label without a class, rows that are no
            probabilities, or probabilities of an unreadable video.
    """
    probabilities, labels, is_readable = np.asarray(probabilities), np.asarray(labels), np.asarray(is_readable)
    _check_shapes(probabilities, labels, is_readable)
    _check_labels(labels, num_classes=probabilities.shape[1])
    _check_rows(probabilities, is_readable)
    probabilities, labels = probabilities.astype(np.float64), labels.astype(np.int64)
    has_prediction = is_readable & np.isfinite(probabilities).all(axis=1)
    num_ahead = _count_ahead(probabilities, labels)
    is_hit = has_prediction & (num_ahead < 1)
    is_among_best = has_prediction & (num_ahead < min(NUM_BEST, probabilities.shape[1]))
    predicted = _predict(probabilities, labels, is_hit)
    per_class = _accuracy_per_class(is_hit, labels, num_classes=probabilities.shape[1])
    return ClassificationMetrics(
        num_videos=len(labels),
        num_unreadable=int((~is_readable).sum()),
        num_not_finite=int((is_readable & ~has_prediction).sum()),
        top1=float(is_hit.mean()),
        top5=float(is_among_best.mean()),
        top1_interval=bootstrap_interval(is_hit, num_resamples=num_resamples, seed=seed),
        mean_class_accuracy=float(np.nanmean(per_class)),
        per_class_accuracy=per_class,
        num_videos_per_class=np.bincount(labels, minlength=probabilities.shape[1]),
        num_unreadable_per_class=np.bincount(labels[~is_readable], minlength=probabilities.shape[1]),
        confusion=_count_confusion(labels[has_prediction], predicted[has_prediction], probabilities.shape[1]),
    )


def bootstrap_interval(is_hit: np.ndarray, *, num_resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of a share, from a bootstrap over the videos.

    Of a resample, N videos drawn with replacement, only the number of hits counts, and that is binomial with the share
    of hits in the set. So the numbers of hits are drawn, which takes no memory of resamples by videos.

    Args:
        is_hit: Booleans `(num_videos,)`.
        num_resamples: How often the set is drawn anew.
        seed: Of the draws.

    Returns:
        The lower and the upper end.

    Raises:
        ValueError: There is no video, or no resample.
    """
    if is_hit.size == 0 or num_resamples < 1:
        raise ValueError(
            f"there are {is_hit.size} videos and {num_resamples} resamples, but an interval needs at least one of "
            "each; give more"
        )
    generator = np.random.default_rng(seed)
    shares = generator.binomial(is_hit.size, is_hit.mean(), size=num_resamples) / is_hit.size
    low, high = np.percentile(shares, INTERVAL_PERCENTILES)
    return float(low), float(high)


def shorten_list(items: Iterable[object], *, max_items: int = 10) -> str:
    """A list for a message: the first items, and how many more there are."""
    words = [str(item) for item in items]
    more = f" and {len(words) - max_items} more" if len(words) > max_items else ""
    return ", ".join(words[:max_items]) + more


def _count_ahead(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Number of other classes that are at least as probable as a video's own, int64 `(N,)`."""
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)
    return (probabilities >= own).sum(axis=1) - 1


def _predict(probabilities: np.ndarray, labels: np.ndarray, is_hit: np.ndarray) -> np.ndarray:
    """The predicted classes, int64 `(N,)`; those of videos without a prediction mean nothing."""
    others = probabilities.copy()
    np.put_along_axis(others, labels[:, None], -1.0, axis=1)
    return np.where(is_hit, labels, others.argmax(axis=1))


def _accuracy_per_class(is_hit: np.ndarray, labels: np.ndarray, *, num_classes: int) -> np.ndarray:
    num_videos = np.bincount(labels, minlength=num_classes)
    num_hits = np.bincount(labels[is_hit], minlength=num_classes)
    return np.where(num_videos > 0, num_hits / np.maximum(num_videos, 1), np.nan)


def _count_confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    cells = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def _check_shapes(probabilities: np.ndarray, labels: np.ndarray, is_readable: np.ndarray) -> None:
    if probabilities.ndim != 2 or not probabilities.size:
        raise ValueError(
            f"the probabilities have shape {probabilities.shape}, but there must be a row for each video and a column "
            "for each class, at least one of both; evaluate on at least one video"
        )
    for name, array in (("labels", labels), ("is_readable", is_readable)):
        if array.shape != probabilities.shape[:1]:
            raise ValueError(
                f"{name} has shape {array.shape}, but the probabilities are those of {len(probabilities)} videos; "
                f"give one value for each, shape ({len(probabilities)},)"
            )
    if is_readable.dtype != np.bool_:
        raise TypeError(f"is_readable has type {is_readable.dtype}, but says yes or no of a video; give booleans")


def _check_labels(labels: np.ndarray, *, num_classes: int) -> None:
    if labels.dtype.kind not in "iu":
        raise TypeError(f"the labels have type {labels.dtype}, but a label is the number of a class; give integers")
    is_outside = (labels < 0) | (labels >= num_classes)
    if is_outside.any():
        raise ValueError(
            f"there are labels {shorten_list(np.unique(labels[is_outside]))}, but the classes of {num_classes} "
            f"probabilities are numbered 0 to {num_classes - 1}; give the number of classes that the labels have"
        )


def _check_rows(probabilities: np.ndarray, is_readable: np.ndarray) -> None:
    """Refuse what is no probabilities; rows that are not finite pass, they are counted."""
    is_filled = ~is_readable & (probabilities != 0).any(axis=1)
    if is_filled.any():
        raise ValueError(
            f"videos {shorten_list(np.flatnonzero(is_filled))} are marked as unreadable and have probabilities; give "
            "zeros for them, or mark them as readable"
        )
    rows = probabilities[is_readable]
    rows = rows[np.isfinite(rows).all(axis=1)].astype(np.float64)
    is_wrong = (rows < 0).any(axis=1) | (np.abs(rows.sum(axis=1) - 1) > SUM_TOLERANCE)
    if is_wrong.any():
        row = rows[is_wrong][0]
        raise ValueError(
            f"{is_wrong.sum()} readable videos have rows that are no probabilities, the first with the smallest value "
            f"{row.min():.4g} and the sum {row.sum():.4g}; give the softmax of the logits, from 0 to 1 with the sum 1"
        )
