"""The files of AVA (Gu et al. 2018, arXiv 1705.08421): annotations, proposals, detections, and the list of actions.

All are CSV without a header. A key frame is a video's id and a whole second; boxes are `x1, y1, x2, y2` relative to
the frame's width and height, from its top left corner.

| file | columns |
|---|---|
| annotations | video_id, second, x1, y1, x2, y2, action_id[, person_id] |
| proposals | video_id, second, x1, y1, x2, y2, score; or with an action_id, mostly empty, before the score |
| detections | video_id, second, x1, y1, x2, y2, action_id, score |
| excluded key frames | video_id, second |

A row of two columns in the first two is a key frame without boxes.
"""

import csv
import math
import re
from array import array
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...core.files import read_utf8, written_whole

# The 60 of the 80 actions that the evaluation of AVA v2.2 counts: those with 25 examples or more to validate on
EVALUATED_CLASS_IDS = (
    *(1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 20, 22, 24, 26, 27, 28, 29, 30, 34, 36, 37, 38, 41, 43, 45),
    *(46, 47, 48, 49, 51, 52, 54, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 72, 73, 74, 76, 77, 78),
    *(79, 80),
)

# Boxes may reach a little over the frame; further out they are pixels, or the columns are others
_LOWEST, _HIGHEST = -1.0, 2.0
_ITEM_LINE = re.compile(r'\s*(?:(name)\s*:\s*"(.*)"|(id|label_id)\s*:\s*(\d+))\s*$')


class AvaFormatError(ValueError):
    """A line of one of AVA's files that does not follow the format; the message names file, line, value and rule."""


class KeyFrameId(NamedTuple):
    """A key frame: the id of its video, which is the name of the file without its ending, and its second there."""

    video_id: str
    second: int

    def __str__(self) -> str:
        return f"{self.video_id},{self.second:04d}"


@dataclass(frozen=True)
class KeyFrameBoxes:
    """The rows of a file, as columns.

    Attributes:
        key_frames: Those that the file names, in the order of their first rows; some may have no boxes.
        frame_indices: For each row the index of its key frame, `(num_rows,)` int64.
        boxes: `(num_rows, 4)` float64, `x1, y1, x2, y2` relative to the frame.
        class_ids: The action's number, from 1, `(num_rows,)` int64; 0 in proposals.
        scores: `(num_rows,)` float64; 1 in annotations.
    """

    key_frames: tuple[KeyFrameId, ...]
    frame_indices: np.ndarray
    boxes: np.ndarray
    class_ids: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.frame_indices)

    def rows(self, keep: np.ndarray) -> "KeyFrameBoxes":
        """Some of the rows, by a mask or by indices; the key frames stay as they are."""
        columns = (self.frame_indices[keep], self.boxes[keep], self.class_ids[keep], self.scores[keep])
        return KeyFrameBoxes(self.key_frames, *columns)

    def without(self, excluded: Set[KeyFrameId]) -> "KeyFrameBoxes":
        """Boxes without those of some key frames."""
        is_kept = np.array([key_frame not in excluded for key_frame in self.key_frames], dtype=bool)
        new_indices = np.cumsum(is_kept) - 1
        rows = self.rows(is_kept[self.frame_indices])
        key_frames = tuple(frame for frame, keep in zip(self.key_frames, is_kept, strict=True) if keep)
        return KeyFrameBoxes(key_frames, new_indices[rows.frame_indices], rows.boxes, rows.class_ids, rows.scores)


def read_annotations(path: str | Path, *, num_classes: int = 80) -> KeyFrameBoxes:
    """Read ground truth, such as `ava_train_v2.2.csv`. A box has a row for each of its actions.

    Args:
        path: The file.
        num_classes: Number of actions; higher numbers are errors.

    Raises:
        AvaFormatError: a line does not follow the format; it has the number, the value and the rule.
        OSError: the file cannot be read.
    """
    table = _Table(path)
    for row in _rows(path, allowed=(2, 7, 8)):
        table.add(row, class_id=row.class_id(6, num_classes) if len(row) > 2 else 0)
    return table.finish()


def read_detections(path: str | Path, *, num_classes: int = 80) -> KeyFrameBoxes:
    """Read results in the form that AVA's evaluation takes.

    Args:
        path: The file.
        num_classes: Number of actions; higher numbers are errors.

    Raises:
        AvaFormatError: a line does not follow the format.
        OSError: the file cannot be read.
    """
    table = _Table(path)
    for row in _rows(path, allowed=(8,)):
        table.add(row, class_id=row.class_id(6, num_classes), score=row.number(7, "score"))
    return table.finish()


def read_proposals(path: str | Path, *, min_score: float = 0.0) -> KeyFrameBoxes:
    """Read boxes of persons, as a detector found them, each once; actions beside them are not read.

    Args:
        path: The file: with 7 columns, or with 8, as the lists of SlowFast are, where a box may stand in several rows.
        min_score: Boxes of a lower score are left out.

    Raises:
        AvaFormatError: a line does not follow the format.
        OSError: the file cannot be read.
    """
    table, seen = _Table(path), set()
    for row in _rows(path, allowed=(2, 7, 8)):
        score = row.number(len(row) - 1, "score") if len(row) > 2 else 0.0
        box = (row.key_frame, *row.cells[2:6])
        is_left_out = len(row) > 2 and (score < min_score or box in seen)
        seen.add(box)
        table.add(row, score=score, is_left_out=is_left_out)
    return table.finish()


def read_excluded_key_frames(path: str | Path) -> frozenset[KeyFrameId]:
    """Read the key frames that the evaluation leaves out, such as `ava_val_excluded_timestamps_v2.2.csv`.

    Raises:
        AvaFormatError: a line has not two columns.
        OSError: the file cannot be read.
    """
    return frozenset(row.key_frame for row in _rows(path, allowed=(2,)))


def read_label_map(path: str | Path) -> dict[int, str]:
    """Read a `.pbtxt` of actions, such as `ava_action_list_v2.2_for_activitynet_2019.pbtxt`.

    Returns:
        The name of each action by its number, ascending: in the map of the AVA evaluation those that count.

    Raises:
        AvaFormatError: an action without a name, a number that is there twice, or no action at all.
        OSError: the file cannot be read.
    """
    names: dict[int, str] = {}
    name, line = None, 0
    for line, text in enumerate(read_utf8(path).split("\n"), 1):
        match = _ITEM_LINE.match(text)
        if match and match[1]:
            name = match[2]
        elif match:
            class_id = int(match[4])
            if name is None or class_id in names:
                raise _format_error(path, line, f"action {class_id} has no name before it, or is there twice")
            names[class_id], name = name, None
    if not names:
        raise _format_error(path, line, 'no action up to here; an action is item { name: "..." id: ... }')
    return dict(sorted(names.items()))


def write_detections(path: str | Path, detections: KeyFrameBoxes) -> None:
    """Write results in the form that AVA's evaluation takes.

    Args:
        path: The file; one that is there is replaced.
        detections: They are rounded to six digits.
    """
    columns = (detections.frame_indices, detections.boxes, detections.class_ids, detections.scores)
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        for index, box, class_id, score in zip(*(column.tolist() for column in columns), strict=True):
            video_id, second = str(detections.key_frames[index]).rsplit(",", 1)
            rows.writerow([video_id, second, *(f"{value:.6g}" for value in box), class_id, f"{score:.6g}"])


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes, pair by pair; 0 for boxes that are empty or inside out.

    Args:
        boxes: `(..., 4)`, `x1, y1, x2, y2`.
        others: Of a shape that fits.

    Returns:
        `(...)`, float64.
    """
    low = np.maximum(boxes[..., :2], others[..., :2])
    high = np.minimum(boxes[..., 2:], others[..., 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=-1)
    both = _areas(boxes) + _areas(others) - shared
    return np.divide(shared, both, out=np.zeros(shared.shape), where=both > 0)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.prod(np.clip(boxes[..., 2:] - boxes[..., :2], 0, None), axis=-1)


class _Row:
    """A line of a file, whose cells are read with errors that say what is wrong with them."""

    def __init__(self, path: str | Path, line: int, cells: Sequence[str]):
        self.path, self.line, self.cells = path, line, cells

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def key_frame(self) -> KeyFrameId:
        video_id, second = self.cells[:2]
        if not video_id:
            raise self.error("the first column is empty, but must be the video's id")
        if not (second.isascii() and second.isdigit()):
            raise self.error(f"the key frame is at '{second}', but must be at a whole second, such as 0902")
        return KeyFrameId(video_id, int(second))

    @property
    def box(self) -> tuple[float, ...]:
        box = tuple(self.number(2 + place, name) for place, name in enumerate(("x1", "y1", "x2", "y2")))
        if not all(_LOWEST <= value <= _HIGHEST for value in box):
            raise self.error(
                f"the box is {box}, but must be x1, y1, x2, y2 relative to the frame, about 0 to 1; divide pixels by "
                "the frame's width and height"
            )
        return box

    def number(self, place: int, name: str) -> float:
        try:
            value = float(self.cells[place])
        except ValueError as error:
            raise self.error(
                f"{name}, in column {place + 1}, is '{self.cells[place]}', but must be a number"
            ) from error
        if not math.isfinite(value):
            raise self.error(f"{name}, in column {place + 1}, is {value}, but must be finite")
        return value

    def class_id(self, place: int, num_classes: int) -> int:
        text = self.cells[place]
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= num_classes):
            raise self.error(f"the action, in column {place + 1}, is '{text}', but must be from 1 to {num_classes}")
        return int(text)

    def error(self, cause: str) -> AvaFormatError:
        return _format_error(self.path, self.line, cause)


def _format_error(path: str | Path, line: int, cause: str) -> AvaFormatError:
    return AvaFormatError(f"line {line} of {path}: {cause}")


def _rows(path: str | Path, *, allowed: Sequence[int]) -> Iterator[_Row]:
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            for line, cells in enumerate(csv.reader(file), 1):
                if not any(cell.strip() for cell in cells):
                    continue
                row = _Row(path, line, [cells[0], *(cell.strip() for cell in cells[1:])])  # names keep their spaces
                if len(row) not in allowed:
                    counts = " or ".join(str(count) for count in allowed)
                    raise row.error(f"it has {len(row)} columns, '{','.join(cells)}', but must have {counts}")
                yield row
    except (UnicodeDecodeError, csv.Error) as error:
        raise AvaFormatError(f"{path} is no table of text in UTF-8 ({error}): fetch it anew") from error


class _Table:
    """Rows on their way into columns, without an object for each number: detections are millions."""

    def __init__(self, path: str | Path):
        self._path = path
        self._numbers: dict[KeyFrameId, int] = {}
        self._frame_indices, self._class_ids = array("q"), array("q")
        self._boxes, self._scores = array("d"), array("d")

    def add(self, row: _Row, *, class_id: int = 0, score: float = 1.0, is_left_out: bool = False) -> None:
        index = self._numbers.setdefault(row.key_frame, len(self._numbers))
        if len(row) == 2 or is_left_out:
            return
        self._frame_indices.append(index)
        self._boxes.extend(row.box)
        self._class_ids.append(class_id)
        self._scores.append(score)

    def finish(self) -> KeyFrameBoxes:
        return KeyFrameBoxes(
            tuple(self._numbers),
            np.array(self._frame_indices, dtype=np.int64),
            np.array(self._boxes, dtype=np.float64).reshape(-1, 4),
            np.array(self._class_ids, dtype=np.int64),
            np.array(self._scores, dtype=np.float64),
        )
