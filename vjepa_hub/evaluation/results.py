"""The files of an evaluation: `results.json`, and a table of the classes.

`results.json` is one object, in UTF-8; a number that is not finite is null:

    {"format": 1,
     "package": version of vjepa_hub,
     "versions": {"python", "torch", "transformers", "timm", "numpy"},
     "protocol": {...}, "encoder": {...}, "data": {...},      as they were given
     "seeds": [...],
     "heads": [{"pooling", "learning_rate", "weight_decay", "metrics": {...}}, ...],
     "selected": {"head": its place in "heads", "rule": why it is the one,
                  "pooling", "learning_rate", "weight_decay", "metrics": {...}},
     "num_unreadable": videos that could not be decoded, and count as wrong}

The metrics of the heads are those of `ClassificationMetrics.summary`; the selected head's also have the measures of
each class and the confusion matrix, see `ClassificationMetrics.to_dict`. "format" grows when a reader would have to
change.
"""

import csv
import io
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..core.files import write_whole
from ..heads.metrics import ClassificationMetrics

RESULTS_FORMAT = 1
RESULTS_NAME = "results.json"
CLASS_COLUMNS = (
    *("class", "name", "num_videos", "num_unreadable"),
    *("num_correct", "accuracy", "most_confused_with", "num_confused"),
)


@dataclass(frozen=True, kw_only=True)
class HeadResult:
    """How one of the heads did that were trained on the same features.

    Attributes:
        pooling: Name of what makes one vector of the tokens.
        learning_rate: At its highest.
        weight_decay: At the start.
        metrics: On the evaluation set.
    """

    pooling: str
    learning_rate: float
    weight_decay: float
    metrics: ClassificationMetrics


@dataclass(frozen=True, kw_only=True)
class EvaluationResults:
    """What an evaluation found, and all that it takes to understand and repeat it.

    The mappings may hold anything that has a meaning in JSON, and dataclasses, paths, arrays and dtypes.

    Attributes:
        protocol: Settings of the protocol.
        encoder: What was evaluated: where it came from, its fingerprint.
        data: The sets: where they are, how many videos and classes they have.
        seeds: Of the run.
        heads: All that were trained, at least one.
        selected: Place in `heads` of the one that stands for the encoder.
        selection_rule: How it was chosen, in words, with the set on which.

    Raises:
        ValueError: There is no head, the selected one is none of them, or they were measured on different videos.
    """

    protocol: Mapping[str, Any]
    encoder: Mapping[str, Any]
    data: Mapping[str, Any]
    seeds: Sequence[int]
    heads: Sequence[HeadResult]
    selected: int
    selection_rule: str

    def __post_init__(self) -> None:
        if not 0 <= self.selected < len(self.heads):
            raise ValueError(
                f"selected is {self.selected}, but there are {len(self.heads)} heads, counted from 0; give the place "
                "of one of them"
            )
        sets = {(head.metrics.num_videos, head.metrics.num_unreadable) for head in self.heads}
        if len(sets) > 1:
            raise ValueError(
                f"the heads were measured on sets of (videos, unreadable ones) {sorted(sets)}, but are compared with "
                "each other; measure all of them on the same videos"
            )

    @property
    def num_unreadable(self) -> int:
        """Videos of the evaluation set that could not be decoded."""
        return self.heads[0].metrics.num_unreadable

    def to_dict(self) -> dict[str, Any]:
        """What `results.json` holds, as plain types for JSON.

        Raises:
            TypeError: A mapping has a value that has no meaning in JSON.
        """
        chosen = self.heads[self.selected]
        content = {
            "format": RESULTS_FORMAT,
            "package": __version__,
            "versions": _find_versions(),
            "protocol": self.protocol,
            "encoder": self.encoder,
            "data": self.data,
            "seeds": list(self.seeds),
            "heads": [_describe_head(head, head.metrics.summary()) for head in self.heads],
            "selected": {"head": self.selected, "rule": self.selection_rule}
            | _describe_head(chosen, chosen.metrics.to_dict()),
            "num_unreadable": self.num_unreadable,
        }
        return {name: to_plain(value, where=name) for name, value in content.items()}


def write_results(folder: str | Path, results: EvaluationResults) -> Path:
    """Write `results.json`. It is complete when it has its name; an earlier one is replaced.

    Args:
        folder: It is made.
        results: What is written.

    Returns:
        The file.

    Raises:
        TypeError: A mapping has a value that has no meaning in JSON.
    """
    text = json.dumps(results.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    return write_whole(Path(folder) / RESULTS_NAME, _join_numbers(text) + "\n")


def read_results(folder: str | Path) -> dict[str, Any]:
    """Read the `results.json` of a folder, as the head of the module describes it.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is no JSON, or has another format.
    """
    path = Path(folder) / RESULTS_NAME
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; give the folder that an evaluation wrote its results to")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); evaluate again") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != RESULTS_FORMAT:
        raise ValueError(
            f"{path} has the format {found!r}, but vjepa_hub {__version__} reads the format {RESULTS_FORMAT}; read it "
            "with the version that wrote it, or evaluate again"
        )
    return content


def to_plain(value: Any, *, where: str) -> Any:
    """A value as plain types for JSON; a number that is not finite is None.

    Args:
        value: Text, numbers, None, mappings, lists, tuples, and dataclasses, arrays, paths, dtypes and devices.
        where: What it is, for the error.

    Raises:
        TypeError: It, or something in it, is something else.
    """
    if value is None or isinstance(value, str | bool | int):
        return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return to_plain(value.tolist(), where=where)
    if isinstance(value, os.PathLike | torch.dtype | torch.device):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(name): to_plain(entry, where=f"{where}.{name}") for name, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [to_plain(entry, where=f"{where}[{place}]") for place, entry in enumerate(value)]
    raise TypeError(
        f"{where} is a {type(value).__name__}, which has no meaning in JSON; give text, numbers, lists or mappings"
    )


def _find_versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in ("transformers", "timm", "numpy")},
    }


def _describe_head(head: HeadResult, metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "pooling": head.pooling,
        "learning_rate": head.learning_rate,
        "weight_decay": head.weight_decay,
        "metrics": metrics,
    }


def _join_numbers(text: str) -> str:
    """Indented JSON with each list of numbers on one line. A line break of the text is never one within a string."""
    number = r"(?:-?[\d.eE+-]+|null)"
    lists = re.compile(rf"\[\n\s*({number}(?:,\n\s*{number})*)\n\s*\]")
    return lists.sub(lambda match: "[" + " ".join(match.group(1).split()) + "]", text)


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
