"""The files of an evaluation: what stands in them, that they are whole, and that odd numbers do not break them."""

import csv
import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vjepa_hub
from vjepa_hub.evaluation import results as results_module
from vjepa_hub.evaluation.results import (
    EvaluationResults,
    HeadResult,
    read_results,
    to_plain,
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


@dataclass(frozen=True)
class Settings:
    name: str
    scale: tuple[float, float]


def some_results(**changes) -> EvaluationResults:
    heads = [
        HeadResult(pooling="mean", learning_rate=1e-3, weight_decay=0.01, metrics=WORSE),
        HeadResult(pooling="attentive", learning_rate=5e-4, weight_decay=0.1, metrics=METRICS),
    ]
    return EvaluationResults(
        **{
            "protocol": {"name": "k400", "augmentation": Settings("crop", (0.08, 1.0))},
            "encoder": {"path": Path("runs/é"), "dtype": torch.bfloat16, "hidden_size": np.int64(384)},
            "data": {"evaluation": "val.csv"},
            "seeds": [0],
            "heads": heads,
            "selected": 1,
            "selection_rule": "highest top-1 on the validation set",
        }
        | changes
    )


def test_file_has_exactly_what_the_module_documents(tmp_path):
    content = json.loads(write_results(tmp_path / "new", some_results()).read_text(encoding="utf-8"))
    documented = results_module.__doc__
    assert set(content) == set(re.findall(r'^    [{ ]"(\w+)":', documented, re.MULTILINE)) | {"encoder", "data"}
    assert set(content["versions"]) == {"python", "torch", "transformers", "timm", "numpy"}
    assert all(
        f'"{name}"' in documented for name in (*content["heads"][0], *content["selected"], *content["versions"])
    )


def test_file_tells_what_was_given(tmp_path):
    write_results(tmp_path, some_results())
    content = read_results(tmp_path)
    assert content["format"] == 1
    assert content["package"] == vjepa_hub.__version__
    assert content["versions"]["torch"] == torch.__version__
    assert content["protocol"] == {"name": "k400", "augmentation": {"name": "crop", "scale": [0.08, 1.0]}}
    assert content["encoder"] == {"path": "runs/é", "dtype": "torch.bfloat16", "hidden_size": 384}
    assert [head["metrics"]["top1"] for head in content["heads"]] == [WORSE.top1, METRICS.top1]
    assert content["num_unreadable"] == 1


def test_selected_head_stands_there_with_its_classes_and_why_it_is_the_one(tmp_path):
    write_results(tmp_path, some_results())
    selected = read_results(tmp_path)["selected"]
    assert (selected["head"], selected["pooling"], selected["rule"]) == (
        1,
        "attentive",
        "highest top-1 on the validation set",
    )
    assert selected["metrics"] == METRICS.to_dict()
    assert selected["metrics"]["per_class_accuracy"][2] is None


def test_numbers_that_are_not_finite_are_null(tmp_path):
    odd = {
        "loss": math.nan,
        "rates": [math.inf, 0.5],
        "array": np.array([[1.0, -np.inf]]),
        "scalar": np.float32("nan"),
    }
    text = write_results(tmp_path, some_results(data=odd)).read_text(encoding="utf-8")
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read_results(tmp_path)["data"] == {
        "loss": None,
        "rates": [None, 0.5],
        "array": [[1.0, None]],
        "scalar": None,
    }


def test_each_row_of_the_confusion_matrix_is_one_line(tmp_path):
    lines = write_results(tmp_path, some_results()).read_text(encoding="utf-8").splitlines()
    assert [line.strip() for line in lines].count("[2, 1, 0],") == 1
    assert any(line.strip() == '"per_class_accuracy": [0.6666666666666666, 0.0, null],' for line in lines)


def test_texts_that_look_like_lists_stay_as_they_are(tmp_path):
    odd = {"a": "[\n  1,\n  2\n]", "b": ["[1,", "2]"], "c": [], "d": [[]], "e": [1, "2"]}
    write_results(tmp_path, some_results(data=odd))
    assert read_results(tmp_path)["data"] == odd


def test_failed_writing_leaves_the_earlier_file_and_no_other(tmp_path, monkeypatch):
    before = write_results(tmp_path, some_results()).read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(results_module.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_results(tmp_path, some_results(seeds=[1]))
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_bytes() == before


def test_same_results_give_the_same_file(tmp_path):
    first, second = (write_results(tmp_path / name, some_results()).read_bytes() for name in "ab")
    assert first == second


@pytest.mark.parametrize("value", [{1, 2}, b"ab", object(), Settings])
def test_value_without_a_meaning_in_json_is_refused_with_its_place(value):
    with pytest.raises(TypeError, match=rf"data\.sets\[1\] is a {type(value).__name__}"):
        to_plain({"sets": [0, value]}, where="data")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selected": 2}, "selected is 2, but there are 2 heads"),
        ({"selected": -1}, "selected is -1"),
        ({"heads": [], "selected": 0}, "there are 0 heads"),
    ],
)
def test_selected_head_must_be_one_of_them(changes, message):
    with pytest.raises(ValueError, match=message):
        some_results(**changes)


def test_heads_measured_on_different_videos_are_refused():
    heads = some_results().heads
    other = replace(heads[0], metrics=measure([0, 1], [0, 1]))
    with pytest.raises(ValueError, match=r"\[\(2, 0\), \(6, 1\)\]"):
        some_results(heads=[other, heads[1]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 2}', "has the format 2, but .* reads the format 1"),
        ('{"top1": 0.5}', "has the format None"),
        ("[1]", "has the format None"),
        ('{"format": 1', "is no JSON"),
    ],
)
def test_files_that_are_no_results_are_refused(tmp_path, text, message):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.json; give the folder"):
        read_results(tmp_path)


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
