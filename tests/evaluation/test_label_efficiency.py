"""Label subsets: what they keep, that they are nested and repeatable, and that their files read back."""

import itertools
import json
import statistics

import numpy as np
import pytest

from vjepa_hub.data.manifests import read_manifest_entries
from vjepa_hub.data.random_streams import Stream
from vjepa_hub.evaluation.label_efficiency import (
    SPLIT_STREAM,
    read_split,
    stratified_split,
    summarise,
    write_split,
)

FRACTIONS = (0.001, 0.05, 0.1, 0.25, 0.5, 0.73, 1.0)


def random_labels(seed: int = 0, *, num_videos: int = 500, num_classes: int = 12) -> np.ndarray:
    """Classes of very different size, each with at least one video."""
    generator = np.random.default_rng(seed)
    labels = (generator.random(num_videos) ** 2 * num_classes).astype(np.int64)
    labels[generator.permutation(num_videos)[:num_classes]] = np.arange(num_classes)
    return labels


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_every_class_keeps_its_share_and_at_least_one_video(fraction, seed):
    labels = random_labels(seed)
    indices = stratified_split(labels, fraction=fraction, split=0, seed=seed)
    for label in range(12):
        assert (labels[indices] == label).sum() == max(1, round(fraction * int((labels == label).sum())))


def test_indices_are_ascending_int64_and_each_is_there_once():
    indices = stratified_split(random_labels(), fraction=0.5, split=1, seed=0)
    assert indices.dtype == np.int64
    assert (np.diff(indices) > 0).all()


def test_whole_fraction_is_the_whole_set():
    assert stratified_split(random_labels(), fraction=1.0, split=4, seed=9).tolist() == list(range(500))


@pytest.mark.parametrize("split", range(3))
def test_smaller_fraction_lies_within_a_larger_one(split):
    subsets = [set(stratified_split(random_labels(), fraction=f, split=split, seed=3).tolist()) for f in FRACTIONS]
    for smaller, larger in itertools.pairwise(subsets):
        assert smaller <= larger


def test_same_arguments_choose_the_same_and_labels_may_be_a_list():
    labels = random_labels()
    first = stratified_split(labels, fraction=0.1, split=2, seed=5)
    assert (first == stratified_split(labels.tolist(), fraction=0.1, split=2, seed=5)).all()
    assert (first == stratified_split(labels.astype(np.int16), fraction=0.1, split=2, seed=5)).all()


def test_choice_is_the_same_as_ever():
    """Written down once: subsets must not change with a version of numpy, torch or this package."""
    labels = np.arange(40) % 4
    assert stratified_split(labels, fraction=0.2, split=0, seed=0).tolist() == [5, 8, 19, 20, 22, 27, 30, 33]
    assert stratified_split(labels, fraction=0.2, split=1, seed=0).tolist() == [2, 12, 15, 21, 24, 25, 26, 31]


def test_splits_and_seeds_choose_independently():
    labels = np.zeros(2000, dtype=np.int64)
    chosen = [
        set(stratified_split(labels, fraction=0.5, split=split, seed=seed).tolist())
        for split, seed in ((0, 0), (1, 0), (2, 0), (0, 1), (1, 1))
    ]
    for place, first in enumerate(chosen):
        for second in chosen[place + 1 :]:
            assert 430 < len(first & second) < 570  # 500 expected, deviation 11


def test_every_video_of_a_class_is_chosen_equally_often():
    labels = np.array([0] * 10 + [1] * 5)
    counts = np.zeros(15)
    for split in range(400):
        counts[stratified_split(labels, fraction=0.2, split=split, seed=0)] += 1
    assert counts.sum() == 400 * 3
    assert (np.abs(counts - 80) < 40).all()  # deviation 8


def test_stream_is_that_of_no_other_draw():
    assert SPLIT_STREAM not in set(Stream)
    assert SPLIT_STREAM - Stream.MASKS > 100  # no run has so many kinds of masks


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"fraction": 0.0}, ValueError, "fraction is 0.0"),
        ({"fraction": 1.01}, ValueError, "fraction is 1.01"),
        ({"fraction": float("nan")}, ValueError, "fraction is nan"),
        ({"split": -1}, ValueError, "split is -1"),
        ({"labels": []}, ValueError, r"shape \(0,\)"),
        ({"labels": [0, -1]}, ValueError, "label -1"),
        ({"labels": [0.0, 1.0]}, TypeError, "type float64"),
        ({"num_classes": 3}, ValueError, "label 4, but 3 classes are numbered 0 to 2"),
        ({"num_classes": 6}, ValueError, "no training video has the label 2, 5, but each of the 6 classes"),
        ({"num_classes": 60}, ValueError, "2, 5, 6, .* and 46 more"),
    ],
)
def test_impossible_splits_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        stratified_split(**{"labels": [0, 1, 3, 1, 4], "fraction": 0.5, "split": 0, "seed": 0} | arguments)


def test_classes_that_all_have_a_video_pass():
    assert len(stratified_split([2, 0, 1], fraction=0.1, split=0, seed=0, num_classes=3)) == 3


NAMES = [f"/data/a folder/clip {i}, with commas.mp4" for i in range(10)]
LABELS = np.array([0, 1, 2, 11, 0, 1, 2, 11, 0, 1])


def write(path, names=NAMES, labels=LABELS, indices=(0, 2, 3, 4), **changes):
    return write_split(path, names, labels, indices, **{"fraction": 0.5, "split": 1, "seed": 7} | changes)


def test_manifest_of_a_split_reads_back_as_any_manifest(tmp_path):
    path = write(tmp_path / "new" / "train.csv")
    entries = read_manifest_entries(path)
    assert [(entry.path, entry.label) for entry in entries] == [
        (NAMES[0], "0"),
        (NAMES[2], "2"),
        (NAMES[3], "11"),
        (NAMES[4], "0"),
    ]
    assert sorted(file.name for file in path.parent.iterdir()) == ["train.csv", "train.json"]


def test_description_says_what_the_split_is(tmp_path):
    description = json.loads(write(tmp_path / "train.csv").with_suffix(".json").read_text())
    assert description == {
        "format": 1,
        "fraction": 0.5,
        "split": 1,
        "seed": 7,
        "num_videos": 4,
        "num_videos_of_all": 10,
        "counts": {"0": 2, "2": 1, "11": 1},
    }


def test_written_split_reads_back(tmp_path):
    found = read_split(write(tmp_path / "train.csv"))
    assert found.names == tuple(NAMES[index] for index in (0, 2, 3, 4))
    assert found.labels.tolist() == [0, 2, 11, 0]
    assert (found.fraction, found.split, found.seed) == (0.5, 1, 7)
    assert found.counts == {0: 2, 2: 1, 11: 1}


@pytest.mark.parametrize(
    "name",
    [
        "plain.mp4",
        "two  spaces.mp4",
        "ends in 3",
        "Straße é 動画.mp4",
        'mid"quote.mp4',
        "https://a.b/c?d=e&f",
        " a.mp4",
        "a.mp4 ",
        "a\nb.mp4",
        "a\u2028b.mp4",
        "a\x85b.mp4",
        '"a.mp4',
        "a\udc80.mp4",
        "back\\slash\\",
        "a,path,b.mp4",
        "path,b.mp4",
        'a",path,b.mp4',
    ],
)
def test_any_name_reads_back(tmp_path, name):
    assert read_split(write(tmp_path / "s.csv", names=[name], labels=[3], indices=[0])).names == (name,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "train.txt"}, "ends in '.txt'"),
        ({"names": NAMES[:3]}, "3 names and 10 labels"),
        ({"indices": []}, "at least one integer"),
        ({"indices": [0, 10]}, "from 0 to 10"),
        ({"indices": [-1, 0]}, "from -1 to 0"),
        ({"indices": [1, 1]}, "1 of them twice"),
        ({"indices": [True, False]}, "type bool"),
    ],
)
def test_what_does_not_fit_is_not_written(tmp_path, changes, message):
    path = tmp_path / changes.pop("path", "train.csv")
    with pytest.raises(ValueError, match=message):
        write(path, **changes)
    assert not list(tmp_path.iterdir())


def test_manifest_without_description_or_with_another_one_is_refused(tmp_path):
    path = write(tmp_path / "train.csv")
    description = path.with_suffix(".json")
    path.write_text(path.read_text() + "more.mp4 0\n")
    with pytest.raises(ValueError, match=r"5 videos.*4 in all.*was changed"):
        read_split(path)
    description.write_text('{"format": 2}')
    with pytest.raises(ValueError, match=r"has the format 2, but this version reads 1"):
        read_split(path)
    description.write_text('{"format": 1, "split": 0, "seed": 0}')
    with pytest.raises(ValueError, match=r"has no fraction, counts"):
        read_split(path)
    description.write_text("[")
    with pytest.raises(ValueError, match="is no JSON"):
        read_split(path)
    description.unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.json"):
        read_split(path)


def test_summary_has_mean_and_sample_deviation():
    values = [0.61, 0.655, 0.63]
    summary = summarise(values)
    assert summary.mean == pytest.approx(statistics.mean(values))
    assert summary.deviation == pytest.approx(statistics.stdev(values))
    assert summary.num_splits == 3
    assert summary.to_percent() == "63.2 ± 2.3"


def test_one_split_has_no_deviation():
    assert summarise([0.5]).deviation is None
    assert summarise([0.5]).to_percent() == "50.0"


@pytest.mark.parametrize("values", [[], [0.5, float("nan")], [[0.5]]])
def test_summary_of_what_is_no_measure_is_refused(values):
    with pytest.raises(ValueError, match="one for each split"):
        summarise(values)
