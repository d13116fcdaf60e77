"""The files of an evaluation: what stands in them, that they are whole, and that odd numbers do not break them."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import vjepa_hub
from vjepa_hub.evaluation.results import (
    EvaluationResults,
    read_results,
    state_results,
    write_per_class_csv,
    write_results,
)
from vjepa_hub.heads.metrics import ClassificationMetrics, compute_metrics


def measure(predicted: list[int], labels: list[int], *, num_classes: int = 3, unreadable=()) -> ClassificationMetrics:
    is_readable = np.array([place not in unreadable for place in range(len(labels))])
    probabilities = np.eye(num_classes)[predicted] * is_readable[:, None]
    return compute_metrics(probabilities, np.array(labels), is_readable)


# Class 2 has no video; one of class 1 cannot be read.
METRICS = measure([0, 0, 1, 1, 2, 0], [0, 0, 0, 1, 1, 1], unreadable=(3,))
WORSE = measure([1, 1, 1, 1, 2, 0], [0, 0, 0, 1, 1, 1], unreadable=(3,))


def some_results(*, selected: int = 1, measured=(WORSE, METRICS), **changes) -> EvaluationResults:
    settings = [("average", 1e-3, 0.01), ("attentive", 5e-4, 0.1)]
    heads = [
        {"pooling": pooling, "learning_rate": rate, "weight_decay": decay, "metrics": metrics.summary()}
        for (pooling, rate, decay), metrics in zip(settings, measured, strict=True)
    ]
    chosen = {**heads[selected], "metrics": measured[selected].to_dict(), "head": selected, "rule": "highest top-1"}
    values = {
        "protocol": {"name": "plain", "media": "video", "num_segments": 2, "num_views": 1, "scale": (0.08, 1.0)},
        "encoder": {"name": "runs/é", "frames_per_clip": 4, "crop_size": 32},
        "data": {"validation": {"description": "/home/me/val.csv", "num_videos": 6, "num_classes": 3}},
        "seeds": [0],
        "heads": heads,
        "selected": chosen,
        "num_unreadable": 1,
    }
    return EvaluationResults(**(values | changes))


def test_results_are_read_back_as_they_were_written(tmp_path):
    results = some_results()
    write_results(tmp_path / "new", results)
    found = read_results(tmp_path / "new")
    assert found == results
    assert (found.package, found.versions["torch"]) == (vjepa_hub.__version__, torch.__version__)
    assert [head.metrics.top1 for head in found.heads] == [WORSE.top1, METRICS.top1]
    assert found.selected.metrics.confusion == tuple(map(tuple, METRICS.confusion.tolist()))
    assert found.selected.metrics.per_class_accuracy[2] is None


def test_file_is_json_with_null_for_numbers_that_are_not_finite(tmp_path):
    odd = {"losses": [math.nan, math.inf, 0.5]}
    text = write_results(tmp_path, some_results(data=odd)).read_text(encoding="utf-8")
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_each_row_of_the_confusion_matrix_is_one_line(tmp_path):
    lines = write_results(tmp_path, some_results()).read_text(encoding="utf-8").splitlines()
    assert [line.strip() for line in lines].count("[2, 1, 0],") == 1


def test_texts_that_look_like_lists_stay_as_they_are(tmp_path):
    odd = {"a": "[\n  1,\n  2\n]", "b": ["[1,", "2]"], "c": [], "d": [[]], "e": [1, "2"]}
    write_results(tmp_path, some_results(data=odd))
    assert read_results(tmp_path).data == odd


@pytest.mark.parametrize("selected", [2, -1])
def test_selected_head_must_be_one_of_them(selected):
    chosen = some_results().selected.model_copy(update={"head": selected})
    with pytest.raises(ValueError, match=f"selected head is {selected}"):
        EvaluationResults(**{**dict(some_results()), "selected": chosen})


def test_heads_measured_on_different_videos_are_refused():
    with pytest.raises(ValueError, match=r"\[\(2, 0\), \(6, 1\)\]"):
        some_results(measured=(measure([0, 1], [0, 1]), METRICS))


@pytest.mark.parametrize(
    ("text", "place"), [('{"format": 2}', "format"), ('{"top1": 0.5}', "protocol"), ("[1]", ""), ('{"format": 1', "")]
)
def test_files_that_are_no_results_are_refused(tmp_path, text, place):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=rf"results\.json .*{place}.*evaluate again"):
        read_results(tmp_path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.json; give the folder"):
        read_results(tmp_path)


def test_stated_numbers_are_those_of_the_selected_and_of_the_saved_head():
    stated = state_results(some_results(selected=0))
    assert [(result.pooling, result.is_selected, result.value) for result in stated if "top-1" in result.metric] == [
        ("average", True, round(100 * WORSE.top1, 2)),
        ("attentive", False, round(100 * METRICS.top1, 2)),
    ]
    assert {result.dataset for result in stated} == {"val.csv"}
    assert not any("top-5" in result.metric for result in stated)  # of three classes
    assert {result.is_selected for result in state_results(some_results())} == {True}


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_table_has_a_line_for_each_class(tmp_path):
    rows = read_table(
        write_per_class_csv(tmp_path / "new" / "classes.csv", METRICS, ["run, fast", 'a "jump"', "fall"])
    )
    assert [list(row.values()) for row in rows] == [
        ["0", "run, fast", "3", "0", "2", "0.6666666666666666", 'a "jump"', "1"],
        ["1", 'a "jump"', "3", "1", "0", "0.0", "run, fast", "1"],
        ["2", "fall", "0", "0", "0", "", "", ""],
    ]


def test_table_leaves_the_measures_as_they_are(tmp_path):
    before = METRICS.confusion.copy()
    write_per_class_csv(tmp_path / "classes.csv", METRICS)
    assert (METRICS.confusion == before).all()


def test_table_without_names_has_numbers(tmp_path):
    assert [row["name"] for row in read_table(write_per_class_csv(tmp_path / "c.csv", METRICS))] == ["0", "1", "2"]


def test_wrong_number_of_names_is_refused(tmp_path):
    with pytest.raises(ValueError, match="2 names for 3 classes"):
        write_per_class_csv(tmp_path / "c.csv", METRICS, ["a", "b"])
