"""Mean average precision as AVA's evaluation computes it (PASCAL VOC's, with all points), at an overlap of 0.5.

The rules, in this order:

1. Rows of classes that are not evaluated are dropped from both files.
2. Of each key frame the 50 detections of the highest scores are kept.
3. Detections for key frames that the ground truth does not name are ignored, as are boxes that are empty or inside
   out, and all that concerns excluded key frames. A key frame without boxes counts: what is found there is false.
4. A detection belongs to the box of its class and key frame that it overlaps most, and is true if the overlap is 0.5
   or more and no detection of a higher score has taken that box; it does not go on to the next best box.
5. The average precision of a class is the area under its curve of precision over recall, precision being made
   non-increasing. A class whose boxes nobody found has 0; one without boxes has none, and is left out of the mean.

Among equal scores the earlier row goes first. (The official evaluation leaves that to its sorting routine.)
"""

from collections.abc import Sequence

import numpy as np

from ...core.run_files import Record
from .boxes import EVALUATED_CLASS_IDS, KeyFrameBoxes, overlaps

MAX_DETECTIONS = 50
MIN_OVERLAP = 0.5


class AvaResult(Record):
    """Result of the evaluation.

    Attributes:
        mean_average_precision: Mean over the classes that have ground truth, in [0, 1].
        average_precisions: For each evaluated class, by its number; None without ground truth.
        num_ground_truths: Boxes of each class, by its number.
        num_detections: Detections that were counted.
        num_ignored: Detections that the rules ignored, for whatever reason.
    """

    mean_average_precision: float
    average_precisions: dict[int, float | None]
    num_ground_truths: dict[int, int]
    num_detections: int
    num_ignored: int


def evaluate_detections(
    ground_truth: KeyFrameBoxes,
    detections: KeyFrameBoxes,
    *,
    class_ids: Sequence[int] = EVALUATED_CLASS_IDS,
    max_detections: int = MAX_DETECTIONS,
    min_overlap: float = MIN_OVERLAP,
) -> AvaResult:
    """Compute the mean average precision of detections.

    Args:
        ground_truth: All key frames to evaluate, without the excluded ones.
        detections: What was found.
        class_ids: The classes that count, by their numbers.
        max_detections: Detections that count in a key frame.
        min_overlap: Intersection over union from which a detection may be true.

    Raises:
        ValueError: no class is left that has ground truth.
    """
    truth = ground_truth.rows(np.isin(ground_truth.class_ids, class_ids))
    found = detections.rows(np.isin(detections.class_ids, class_ids))
    found = found.rows(highest_per_frame(found.frame_indices, found.scores, max_detections))
    found = _on_frames_of(truth, found)
    precisions, counts = {}, {}
    for class_id in class_ids:
        of_class = truth.rows(truth.class_ids == class_id)
        counts[class_id] = len(of_class)
        is_true = _match(of_class, found.rows(found.class_ids == class_id), min_overlap)
        precisions[class_id] = average_precision(is_true, len(of_class)) if len(of_class) else None
    known = [value for value in precisions.values() if value is not None]
    if not known:
        raise ValueError(
            f"the ground truth has no box of the {len(class_ids)} evaluated classes; check that it is the right file"
        )
    return AvaResult(
        mean_average_precision=float(np.mean(known)),
        average_precisions=precisions,
        num_ground_truths=counts,
        num_detections=len(found),
        num_ignored=len(detections) - len(found),
    )


def average_precision(is_true: np.ndarray, num_ground_truths: int) -> float:
    """Area under the curve of precision over recall.

    Args:
        is_true: Whether each detection is true, in descending order of scores, `(num_detections,)` bool.
        num_ground_truths: Boxes to find, at least 1.
    """
    true_counts = np.cumsum(is_true)
    precisions = true_counts / np.arange(1, len(is_true) + 1)
    highest_from_here = np.maximum.accumulate(precisions[::-1])[::-1]
    return float(highest_from_here[is_true].sum() / num_ground_truths)


def highest_per_frame(frame_indices: np.ndarray, scores: np.ndarray, num_kept: int) -> np.ndarray:
    """Find the rows of the highest scores of each key frame, the earlier ones among equals.

    Args:
        frame_indices: The key frame of each row, `(num_rows,)` integers.
        scores: Of each row, `(num_rows,)`.
        num_kept: Rows to keep of a key frame.

    Returns:
        Indices of rows, ascending.
    """
    order = np.lexsort((-scores, frame_indices))
    ordered = frame_indices[order]
    ranks = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return np.sort(order[ranks < num_kept])


def _on_frames_of(truth: KeyFrameBoxes, found: KeyFrameBoxes) -> KeyFrameBoxes:
    """Valid detections on the key frames of the ground truth, numbered as there."""
    numbers = {key_frame: index for index, key_frame in enumerate(truth.key_frames)}
    new_indices = np.array([numbers.get(key_frame, -1) for key_frame in found.key_frames], dtype=np.int64)
    renumbered = new_indices[found.frame_indices]
    is_valid = (found.boxes[:, :2] < found.boxes[:, 2:]).all(axis=1)
    keep = (renumbered >= 0) & is_valid
    kept = found.rows(keep)
    return KeyFrameBoxes(truth.key_frames, renumbered[keep], kept.boxes, kept.class_ids, kept.scores)


def _match(truth: KeyFrameBoxes, found: KeyFrameBoxes, min_overlap: float) -> np.ndarray:
    """Mark the true detections of a class, in descending order of scores."""
    found = found.rows(np.argsort(-found.scores, kind="stable"))
    best, best_overlaps = _best_truths(truth.rows(np.argsort(truth.frame_indices, kind="stable")), found)
    candidates = np.flatnonzero(best_overlaps >= min_overlap)
    _, first = np.unique(best[candidates], return_index=True)
    is_true = np.zeros(len(found), dtype=bool)
    is_true[candidates[first]] = True
    return is_true


def _best_truths(truth: KeyFrameBoxes, found: KeyFrameBoxes) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the row of the box that it overlaps most, and how much; `truth` is sorted by key frames.

    One place among a key frame's boxes at a time: memory is a multiple of the detections, whatever the crowd.
    """
    starts = np.searchsorted(truth.frame_indices, found.frame_indices, side="left")
    counts = np.searchsorted(truth.frame_indices, found.frame_indices, side="right") - starts
    best, best_overlaps = np.full(len(found), -1), np.zeros(len(found))
    for place in range(int(counts.max(initial=0))):
        rows = np.flatnonzero(counts > place)
        here = overlaps(found.boxes[rows], truth.boxes[starts[rows] + place])
        is_better = here > best_overlaps[rows]
        best[rows[is_better]] = starts[rows[is_better]] + place
        best_overlaps[rows[is_better]] = here[is_better]
    return best, best_overlaps
