import json
from pathlib import Path

import numpy as np
import pytest

from vjepa_hub.evaluation.ava.boxes import (
    EVALUATED_CLASS_IDS,
    KeyFrameBoxes,
    KeyFrameId,
    read_annotations,
    read_detections,
)
from vjepa_hub.evaluation.ava.metrics import average_precision, evaluate_detections, highest_per_frame

REFERENCE = Path(__file__).parents[2] / "reference_cases"
EXPECTED = json.loads((REFERENCE / "ava_result.json").read_text())


@pytest.fixture(scope="module")
def truth() -> KeyFrameBoxes:
    return read_annotations(REFERENCE / "ava_groundtruth.csv")


@pytest.fixture(scope="module")
def found() -> KeyFrameBoxes:
    return read_detections(REFERENCE / "ava_detections.csv")


def table(rows: list[tuple]) -> KeyFrameBoxes:
    """Rows of (second, left edge, class, score) with boxes of width 0.2 and full height, in one video."""
    seconds, lefts, classes, scores = (np.array(column) for column in zip(*rows, strict=True))
    names, indices = np.unique(seconds, return_inverse=True)
    boxes = np.stack([lefts, np.zeros(len(rows)), lefts + 0.2, np.ones(len(rows))], axis=1)
    frames = tuple(KeyFrameId("v", int(second)) for second in names)
    return KeyFrameBoxes(frames, indices, boxes, classes.astype(int), scores.astype(float))


def evaluate(truth_rows: list[tuple], found_rows: list[tuple], **options) -> float:
    return evaluate_detections(table(truth_rows), table(found_rows), class_ids=(1, 2), **options).average_precisions[1]


def test_mean_is_that_of_the_official_evaluation(truth, found):
    result = evaluate_detections(truth, found)
    assert result.mean_average_precision == pytest.approx(EXPECTED["mean_average_precision_at_0_5"], abs=1e-6)


@pytest.mark.parametrize("class_id", EVALUATED_CLASS_IDS)
def test_average_precision_of_each_class_is_that_of_the_official_evaluation(truth, found, class_id):
    expected = EXPECTED["average_precision_by_class_id"][str(class_id)]
    value = evaluate_detections(truth, found).average_precisions[class_id]
    assert value == (None if expected is None else pytest.approx(expected, abs=1e-6))


def test_evaluated_classes_are_those_of_the_official_evaluation():
    assert list(EVALUATED_CLASS_IDS) == EXPECTED["evaluated_class_ids"]


@pytest.mark.parametrize("other", [{"min_overlap": 0.45}, {"class_ids": range(1, 81)}, {"max_detections": 20}])
def test_reference_tells_the_rules_from_others(truth, found, other):
    result = evaluate_detections(truth, found, **other)
    assert abs(result.mean_average_precision - EXPECTED["mean_average_precision_at_0_5"]) > 1e-4


def test_reference_tells_that_classes_are_dropped_before_the_highest_scores_are_chosen(truth, found):
    early = found.rows(highest_per_frame(found.frame_indices, found.scores, 50))
    result = evaluate_detections(truth, early)
    assert abs(result.mean_average_precision - EXPECTED["mean_average_precision_at_0_5"]) > 1e-4


def test_perfect_detections_have_an_average_precision_of_one(truth):
    unique = truth.rows(
        np.unique(np.c_[truth.frame_indices, truth.class_ids, truth.boxes], axis=0, return_index=True)[1]
    )
    result = evaluate_detections(unique, unique)
    assert result.mean_average_precision == 1
    assert set(result.average_precisions.values()) == {1, None}


def test_order_of_lines_is_irrelevant_where_scores_differ(truth, found):
    scores = found.scores + np.arange(len(found)) * 1e-9  # the file has equal scores
    distinct = KeyFrameBoxes(found.key_frames, found.frame_indices, found.boxes, found.class_ids, scores)
    shuffled = distinct.rows(np.random.default_rng(0).permutation(len(found)))
    shuffled_truth = truth.rows(np.random.default_rng(1).permutation(len(truth)))
    expected = evaluate_detections(truth, distinct)
    assert evaluate_detections(shuffled_truth, shuffled).average_precisions == expected.average_precisions


def test_a_duplicate_lowers_the_average_precision():
    boxes = [(902, 0.0, 1, 1.0), (902, 0.5, 1, 1.0)]
    assert evaluate(boxes, [(902, 0.0, 1, 0.9), (902, 0.5, 1, 0.5)]) == 1
    assert evaluate(boxes, [(902, 0.0, 1, 0.9), (902, 0.01, 1, 0.8), (902, 0.5, 1, 0.5)]) == pytest.approx(
        (1 + 2 / 3) / 2
    )


def test_a_detection_does_not_go_on_to_its_second_best_box():
    boxes = [(902, 0.0, 1, 1.0), (902, 0.05, 1, 1.0)]
    both_nearest_to_the_first = [(902, 0.0, 1, 0.9), (902, 0.02, 1, 0.8)]
    assert evaluate(boxes, both_nearest_to_the_first) == 0.5


def test_the_earlier_of_equal_scores_goes_first():
    right, wrong = (902, 0.0, 1, 0.7), (902, 0.7, 1, 0.7)
    assert evaluate([(902, 0.0, 1, 1.0)], [right, wrong]) == 1
    assert evaluate([(902, 0.0, 1, 1.0)], [wrong, right]) == 0.5


def test_detections_of_another_class_second_or_video_find_nothing():
    boxes = [(902, 0.0, 1, 1.0), (903, 0.0, 2, 1.0)]
    assert evaluate(boxes, [(902, 0.0, 2, 0.9)]) == 0
    assert evaluate(boxes, [(903, 0.0, 1, 0.9)]) == 0


def test_detections_on_key_frames_that_the_truth_does_not_name_are_ignored():
    boxes = [(902, 0.0, 1, 1.0)]
    assert evaluate(boxes, [(904, 0.0, 1, 0.9), (902, 0.0, 1, 0.5)]) == 1
    assert evaluate([*boxes, (904, 0.0, 2, 1.0)], [(904, 0.0, 1, 0.9), (902, 0.0, 1, 0.5)]) == 0.5


def test_detections_beyond_the_highest_of_a_key_frame_are_dropped():
    rows = [(902, 0.8, 2, 0.9)] * 2 + [(902, 0.0, 1, 0.5)]
    assert evaluate([(902, 0.0, 1, 1.0)], rows, max_detections=3) == 1
    assert evaluate([(902, 0.0, 1, 1.0)], rows, max_detections=2) == 0


def test_highest_rows_of_each_key_frame_are_kept_in_the_files_order():
    kept = highest_per_frame(np.array([1, 0, 1, 0, 1]), np.array([0.1, 0.9, 0.3, 0.9, 0.3]), 1)
    assert kept.tolist() == [1, 2]


def test_area_under_the_curve_uses_all_points_of_the_non_increasing_precision():
    is_true = np.array([False, True, True, False, True])
    assert average_precision(is_true, 4) == pytest.approx((2 / 3 + 2 / 3 + 3 / 5) / 4)
    assert average_precision(np.zeros(0, dtype=bool), 4) == 0


def test_ground_truth_without_evaluated_classes_is_refused(truth, found):
    with pytest.raises(ValueError, match="no box of the 1 evaluated classes"):
        evaluate_detections(truth.rows(truth.class_ids == 1), found, class_ids=(2,))
