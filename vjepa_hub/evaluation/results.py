"""The files of an evaluation: `results.json`, and a table of the classes.

`results.json` is a typed model, `EvaluationResults`, in UTF-8; a number that is not finite is null. "format" grows
a reader would have to change.
"""

import csv
import io
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from .. import __version__
from ..core.files import write_whole
from ..core.run_files import RESULTS_FILE, Record, Result, library_versions
from ..heads.metrics import NUM_BEST, ClassificationMetrics
from ..hub.registry import EVALUATION_SETS

CLASS_COLUMNS = (
    *("class", "name", "num_videos", "num_unreadable"),
    *("num_correct", "accuracy", "most_confused_with", "num_confused"),
)


class HeadMetrics(Record):
    """Numbers of `ClassificationMetrics` that do not grow with the classes."""

    num_videos: int
    num_unreadable: int
    num_not_finite: int
    num_classes: int
    top1: float
    top1_interval: tuple[float, float]
    top5: float
    mean_class_accuracy: float | None


class ClassMetrics(HeadMetrics):
    """All numbers of `ClassificationMetrics`; the accuracy of a class without videos is None."""

    per_class_accuracy: tuple[float | None, ...]
    num_videos_per_class: tuple[int, ...]
    num_unreadable_per_class: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...]


class HeadResult(Record):
    """One of the heads that were trained on the same features.

    Attributes:
        pooling: Name of what makes one vector of the tokens.
        learning_rate: At its highest.
        weight_decay: At the start.
        metrics: On the evaluation set.
    """

    pooling: str
    learning_rate: float
    weight_decay: float
    metrics: HeadMetrics


class SelectedHead(HeadResult):
    """The head that stands for the encoder.

    Attributes:
        head: Its place among the heads.
        rule: Sentence on how it was chosen, with the set on which.
        metrics: With those of each class.
    """

    head: int
    rule: str
    metrics: ClassMetrics


class EvaluationResults(Record):
    """Typed contents of `results.json`; how they were measured stands in `run.json` too.

    Attributes:
        format: Of this file.
        package: Version of vjepa_hub.
        versions: Of Python and libraries.
        protocol: Settings of the protocol.
        encoder: Name, origin and fingerprint of the encoder, and its clips.
        data: The sets, with the number of their videos and classes.
        seeds: Of the run.
        heads: All that were trained, at least one.
        selected: The one that stands for the encoder.
        num_unreadable: Videos of the evaluation set that could not be decoded, and count as wrong.

    Raises:
        ValueError: There is no head, the selected one is none of them, or they were measured on different videos.
    """

    format: Literal[1] = 1
    package: str = __version__
    versions: dict[str, str] = Field(default_factory=library_versions)
    protocol: dict[str, Any]
    encoder: dict[str, Any]
    data: dict[str, Any]
    seeds: tuple[int, ...]
    heads: tuple[HeadResult, ...] = Field(min_length=1)
    selected: SelectedHead
    num_unreadable: int

    @model_validator(mode="after")
    def _check(self) -> "EvaluationResults":
        if not 0 <= self.selected.head < len(self.heads):
            raise ValueError(f"the selected head is {self.selected.head}, but must be one of {len(self.heads)} heads")
        sets = {(head.metrics.num_videos, head.metrics.num_unreadable) for head in self.heads}
        if len(sets) > 1:
            raise ValueError(
                f"the heads were measured on sets of (videos, unreadable ones) {sorted(sets)}, but are compared with "
                "each other; measure all of them on the same videos"
            )
        return self

    @property
    def attentive(self) -> HeadResult:
        """The head of the saved classifier: the best attentive one, of equal ones the first; else the selected one."""
        attentive = [head for head in self.heads if head.pooling == "attentive"]
        return max(attentive, key=lambda head: head.metrics.top1, default=self.selected)


def write_results(folder: str | Path, results: EvaluationResults) -> Path:
    """Write `results.json`, whole or not at all; an earlier one is replaced, and the folder is made."""
    # A list of numbers on one line: a confusion matrix has a line for each row. No string holds a line break in JSON
    number = r"(?:-?[\d.eE+-]+|null)"
    lists = re.compile(rf"\[\n\s*({number}(?:,\n\s*{number})*)\n\s*\]")
    text = lists.sub(lambda match: "[" + " ".join(match.group(1).split()) + "]", results.model_dump_json(indent=2))
    return write_whole(Path(folder) / RESULTS_FILE, text + "\n")


def read_results(folder: str | Path) -> EvaluationResults:
    """Read the `results.json` of a folder.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, or of another format.
    """
    path = Path(folder) / RESULTS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; give the folder that an evaluation wrote its results to")
    return EvaluationResults.read(path, remedy="evaluate again")


# ------------------------------------------------------------------------------------------------ stated numbers

_METRICS = {
    "top1": "top-1 accuracy (%)",
    "top5": "top-5 accuracy (%)",
    "mean_class_accuracy": "mean accuracy of the classes (%)",
}


def state_results(results: EvaluationResults) -> list[Result]:
    """Numbers of an evaluation for `run.json` and cards: of the selected head, and of the saved classifier's."""
    stated = [
        results.selected,
        *([results.attentive] if results.attentive.pooling != results.selected.pooling else []),
    ]
    return [result for head in stated for result in _state_head(results, head)]


def _state_head(results: EvaluationResults, head: HeadResult) -> Iterator[Result]:
    protocol, encoder, validation = results.protocol, results.encoder, results.data["validation"]
    sentence = (
        f"protocol {protocol['name']}; frozen encoder, {head.pooling} probe, learning rate {head.learning_rate:g}, "
        f"weight decay {head.weight_decay:g}; {protocol['num_segments']} segments x {protocol['num_views']} views of "
        f"{encoder['frames_per_clip']} frames at {encoder['crop_size']} pixels; {validation['num_videos']:,} "
        "validation items"
    )
    for name, metric in _METRICS.items():
        value = getattr(head.metrics, name)
        if value is not None and (name != "top5" or head.metrics.num_classes > NUM_BEST):
            yield Result(
                task=f"{protocol['media']}-classification",
                dataset=_dataset_name(protocol["name"], validation),
                metric=metric,
                value=round(100 * value, 2),
                protocol=sentence,
                pooling=head.pooling,
                is_selected=isinstance(head, SelectedHead),
                source="measured by vjepa-hub probe",
            )


def _dataset_name(protocol: str, validation: Mapping[str, Any]) -> str:
    """The data set's own name where the protocol belongs to one, and has its number of classes; else the file's."""
    known = EVALUATION_SETS.get(protocol)
    if known is not None and known.num_classes == validation["num_classes"]:
        return known.name
    return os.path.basename(str(validation["description"]).rstrip("/"))


# ------------------------------------------------------------------------------------------------ table of classes


def write_per_class_csv(
    path: str | Path, metrics: ClassificationMetrics, class_names: Sequence[str] | None = None
) -> Path:
    """Write a table with a line for each class: how many of its videos were right, and what the others were taken for.

    Columns: class, name, num_videos, num_unreadable, num_correct, accuracy, most_confused_with, num_confused. Empty
    are the accuracy of a class without videos and the last two of a class that was never taken for another.

    Args:
        path: The file; its folder is made.
        metrics: The measures.
        class_names: One for each class; the numbers of the classes by default.

    Raises:
        ValueError: There are more or fewer names than classes.
    """
    names = _names_of(class_names, metrics.num_classes)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CLASS_COLUMNS)
    writer.writerows(_class_row(metrics, place, names) for place in range(metrics.num_classes))
    return write_whole(path, text.getvalue())


def _class_row(metrics: ClassificationMetrics, place: int, names: Sequence[str]) -> tuple[object, ...]:
    share, row = float(metrics.per_class_accuracy[place]), metrics.confusion[place].copy()
    num_correct, row[place] = int(row[place]), 0
    other = int(row.argmax())
    confused = (names[other], int(row[other])) if row[other] else ("", "")
    return (
        *(place, names[place], int(metrics.num_videos_per_class[place])),
        *(int(metrics.num_unreadable_per_class[place]), num_correct, "" if math.isnan(share) else share),
        *confused,
    )


def _names_of(class_names: Sequence[str] | None, num_classes: int) -> list[str]:
    """The names, each in one line."""
    if class_names is None:
        return [str(place) for place in range(num_classes)]
    if len(class_names) != num_classes:
        raise ValueError(
            f"there are {len(class_names)} names for {num_classes} classes; give one for each class, or none at all"
        )
    return [" ".join(str(name).split()) for name in class_names]
