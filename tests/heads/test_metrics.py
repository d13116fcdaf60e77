"""The measures against slow and obvious loops, and the rules for ties and for videos without a prediction."""

import json
import math

import numpy as np
import pytest

from vjepa_hub.heads.metrics import bootstrap_interval, compute_metrics


def random_case(seed: int, *, num_videos: int = 200, num_classes: int = 9, num_unreadable: int = 0, has_ties=False):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(num_videos, num_classes)) * 2
    labels = generator.integers(0, num_classes, size=num_videos)
    logits[np.arange(num_videos), labels] += 1
    if has_ties:
        logits = logits.round()
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    is_readable = np.ones(num_videos, dtype=bool)
    is_readable[generator.permutation(num_videos)[:num_unreadable]] = False
    probabilities[~is_readable] = 0
    return probabilities, labels, is_readable


def slow_metrics(probabilities, labels, is_readable) -> dict:
    """By sorting each video's classes, its own last among equals."""
    num_videos, num_classes = probabilities.shape
    confusion = [[0] * num_classes for _ in range(num_classes)]
    hits, best_hits, class_hits, class_videos = 0, 0, [0] * num_classes, [0] * num_classes
    for row, label, readable in zip(probabilities.tolist(), labels.tolist(), is_readable, strict=True):
        class_videos[label] += 1
        if not readable:
            continue
        order = sorted(range(num_classes), key=lambda place: (-row[place], place == label, place))
        hits += order[0] == label
        best_hits += label in order[:5]
        class_hits[label] += order[0] == label
        confusion[label][order[0]] += 1
    shares = [h / n if n else None for h, n in zip(class_hits, class_videos, strict=True)]
    known = [share for share in shares if share is not None]
    return {
        "top1": hits / num_videos,
        "top5": best_hits / num_videos,
        "per_class_accuracy": shares,
        "mean_class_accuracy": sum(known) / len(known),
        "confusion": confusion,
        "num_videos_per_class": class_videos,
    }


def one_hot(predicted: list[int], num_classes: int) -> np.ndarray:
    return np.eye(num_classes)[predicted]


CASES = [
    {},
    {"num_unreadable": 40},
    {"has_ties": True, "num_unreadable": 7},
    {"num_videos": 12, "num_classes": 30},  # classes without videos
    {"num_classes": 3},
    {"num_videos": 1, "num_classes": 2},
    {"num_classes": 1},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_measures_are_those_of_a_loop_over_sorted_classes(case, seed):
    arrays = random_case(seed, **case)
    found, expected = compute_metrics(*arrays).to_dict(), slow_metrics(*arrays)
    assert found["mean_class_accuracy"] == pytest.approx(expected.pop("mean_class_accuracy"))
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("has_ties", [False, True])
def test_hits_are_the_diagonal_and_every_video_is_counted_once(has_ties):
    metrics = compute_metrics(*random_case(5, num_unreadable=20, has_ties=has_ties))
    assert np.trace(metrics.confusion) == round(metrics.top1 * metrics.num_videos)
    assert metrics.confusion.sum() + metrics.num_without_prediction == metrics.num_videos == 200
    assert (metrics.confusion.sum(axis=1) + metrics.num_unreadable_per_class == metrics.num_videos_per_class).all()


def test_unreadable_videos_stay_in_the_denominator():
    probabilities, labels = one_hot([0, 1, 1, 0], 2), np.array([0, 1, 1, 0])
    is_readable = np.array([True, True, False, False])
    probabilities[~is_readable] = 0
    metrics = compute_metrics(probabilities, labels, is_readable)
    assert (metrics.top1, metrics.top5, metrics.num_unreadable) == (0.5, 0.5, 2)
    assert metrics.per_class_accuracy.tolist() == [0.5, 0.5]
    assert metrics.num_unreadable_per_class.tolist() == [1, 1]
    assert metrics.confusion.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(("num_classes", "top1", "top5"), [(1, 1.0, 1.0), (2, 0.0, 1.0), (5, 0.0, 1.0), (6, 0.0, 0.0)])
def test_equal_probabilities_are_no_hit_unless_all_classes_are_among_the_best(num_classes, top1, top5):
    labels = np.arange(num_classes)
    metrics = compute_metrics(np.full((num_classes,) * 2, 1 / num_classes), labels, np.ones(num_classes, dtype=bool))
    assert (metrics.top1, metrics.top5) == (top1, top5)
    assert np.trace(metrics.confusion) == top1 * num_classes


def test_renumbering_the_classes_changes_no_accuracy_even_with_ties():
    probabilities, labels, is_readable = random_case(3, has_ties=True)
    order = np.random.default_rng(0).permutation(9)
    renumbered = compute_metrics(probabilities[:, order], np.argsort(order)[labels], is_readable)
    metrics = compute_metrics(probabilities, labels, is_readable)
    assert (renumbered.top1, renumbered.top5) == (metrics.top1, metrics.top5)
    assert renumbered.per_class_accuracy.tolist() == metrics.per_class_accuracy[order].tolist()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_probabilities_that_are_not_finite_are_wrong_and_counted(value):
    probabilities, labels, is_readable = random_case(0)
    expected = slow_metrics(probabilities, labels, is_readable & (np.arange(200) >= 10))
    probabilities[:10, 4] = value
    metrics = compute_metrics(probabilities, labels, is_readable)
    assert (metrics.num_not_finite, metrics.num_unreadable, metrics.num_without_prediction) == (10, 0, 10)
    assert metrics.top1 == expected["top1"]
    assert metrics.top5 == expected["top5"]


def test_interval_is_that_of_resampled_videos():
    is_hit = np.random.default_rng(1).random(300) < 0.7
    generator = np.random.default_rng(2)
    shares = [is_hit[generator.integers(0, 300, size=300)].mean() for _ in range(4000)]
    found = bootstrap_interval(is_hit, num_resamples=4000)
    assert found == pytest.approx(np.percentile(shares, [2.5, 97.5]), abs=0.006)
    assert found[0] < is_hit.mean() < found[1]


def test_interval_covers_the_true_accuracy_about_95_times_in_100():
    generator = np.random.default_rng(0)
    intervals = [bootstrap_interval(generator.random(400) < 0.6, seed=trial) for trial in range(400)]
    assert 0.91 < np.mean([low <= 0.6 <= high for low, high in intervals]) < 0.98


def test_interval_depends_on_the_seed_and_on_nothing_else():
    arrays = random_case(0)
    first, second, other = (compute_metrics(*arrays, seed=seed).top1_interval for seed in (1, 1, 2))
    assert first == second != other
    assert bootstrap_interval(np.ones(10, dtype=bool)) == (1.0, 1.0)


def test_dictionaries_are_json_without_nan():
    metrics = compute_metrics(*random_case(0, num_videos=4, num_classes=20))
    read = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
    assert None in read["per_class_accuracy"]
    assert read == metrics.to_dict()
    assert "confusion" not in metrics.summary()


def test_half_precision_and_narrow_labels_count_the_same():
    probabilities, labels, is_readable = random_case(0)
    narrow = probabilities.astype(np.float16)
    found = compute_metrics(narrow, labels.astype(np.uint8), is_readable)
    assert found.to_dict() == compute_metrics(narrow.astype(np.float64), labels, is_readable).to_dict()


def test_inputs_are_left_as_they_were():
    arrays = random_case(0, num_unreadable=3)
    copies = [array.copy() for array in arrays]
    compute_metrics(*arrays)
    assert all((array == copy).all() for array, copy in zip(arrays, copies, strict=True))


P, L, R = one_hot([0, 1, 2], 3), np.array([0, 1, 2]), np.ones(3, dtype=bool)


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ((P[:0], L[:0], R[:0]), ValueError, r"shape \(0, 3\).*at least one video"),
        ((P[:, :0], L, R), ValueError, r"shape \(3, 0\)"),
        ((P[0], L, R), ValueError, r"shape \(3,\)"),
        ((P, L[:2], R), ValueError, r"labels has shape \(2,\).*3 videos"),
        ((P, L, R[:2]), ValueError, r"is_readable has shape \(2,\)"),
        ((P, L[:, None], R), ValueError, r"labels has shape \(3, 1\)"),
        ((P, L, R.astype(int)), TypeError, "is_readable has type int64"),
        ((P, L.astype(float), R), TypeError, "labels have type float64"),
        ((P, np.array([0, 1, 3]), R), ValueError, "labels 3, but the classes of 3 probabilities are numbered 0 to 2"),
        ((P, np.array([0, -1, 2]), R), ValueError, "labels -1"),
        ((P, L, np.array([True, False, True])), ValueError, "videos 1 are marked as unreadable and have prob"),
        ((P * 0, L, R), ValueError, "3 readable videos .* the sum 0"),
        ((P * 4 - 1, L, R), ValueError, "smallest value -1.*softmax"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays, error, message):
    with pytest.raises(error, match=message):
        compute_metrics(*arrays)


@pytest.mark.parametrize(("num_videos", "num_resamples"), [(0, 10), (10, 0)])
def test_interval_of_nothing_is_refused(num_videos, num_resamples):
    with pytest.raises(ValueError, match=f"{num_videos} videos and {num_resamples} resamples"):
        bootstrap_interval(np.ones(num_videos, dtype=bool), num_resamples=num_resamples)
