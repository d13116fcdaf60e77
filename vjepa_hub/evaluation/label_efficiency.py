"""Evaluation with few labels: subsets of a training set that keep its classes, the same on every machine.

The videos of each class are ordered at random, and a fraction takes the first of them. So the 5 % of a split lie
within its 10 %, and accuracies over fractions compare like with like; other splits are other orders.

The order of a class is that of a hash of the seed, the split and the place of the video in the list of all
(`vjepa_hub.data.random_streams`), which no update of a library changes. The hash's stream `SPLIT_STREAM` is that of
no draw in training: those are below 1000, and that of a mask kind is 1000 plus its index.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.files import write_whole
from ..data.manifests import labelled_line, parse_label, read_manifest_entries
from ..data.random_streams import draw_uniform
from ..heads.metrics import shorten_list

SPLIT_STREAM = 2000
SPLIT_FORMAT = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelSplit:
    """A subset of a labelled set as it was written.

    Attributes:
        names: Paths of the videos as the manifest has them, absolute or relative to its folder.
        labels: int64 `(num_videos,)`.
        fraction: Share of each class.
        split: Number of the split.
        seed: Of the order.
        counts: Number of videos of each class in it, by class; classes without videos are left out.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    fraction: float
    split: int
    seed: int
    counts: Mapping[int, int]


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """A measure over splits.

    Attributes:
        mean: Over the splits.
        deviation: Standard deviation of a sample (division by the number of splits less one); None with one split.
        num_splits: How many there are.
    """

    mean: float
    deviation: float | None
    num_splits: int

    def to_percent(self) -> str:
        """The entry of a table for a share between 0 and 1, such as "63.2 ± 1.4"; without "±" for one split."""
        mean = f"{100 * self.mean:.1f}"
        return mean if self.deviation is None else f"{mean} ± {100 * self.deviation:.1f}"


def stratified_split(
    labels: Sequence[int] | np.ndarray, *, fraction: float, split: int, seed: int, num_classes: int | None = None
) -> np.ndarray:
    """Choose a fraction of the videos of each class, at least one of each.

    Of a class with n videos it keeps `max(1, round(fraction * n))`, halves rounded to even. A smaller fraction of the
    same split and seed chooses a part of what a larger one does. The choice depends on the order of the list.

    Args:
        labels: Integers `(num_videos,)` from 0, the classes of the training set's videos in its order.
        fraction: Share of each class, above 0 and at most 1.
        split: Number of the split, from 0; other splits order the videos anew.
        seed: Any integer.
        num_classes: Where it is given, each of the classes must have a video.

    Returns:
        int64, ascending: places of the chosen videos in the list.

    Raises:
        TypeError: The labels are no integers.
        ValueError: No video, a fraction or split outside its range, a negative label, one that is not below
            `num_classes`, or a class without a video.
    """
    labels = _as_labels(labels)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}, but is a share of the labels; give one above 0 and at most 1")
    if split < 0:
        raise ValueError(f"split is {split}, but splits are numbered from 0; give 0 or more")
    if num_classes is not None:
        _check_classes(labels, num_classes)
    keys = draw_uniform(seed, np.arange(len(labels)), stream=SPLIT_STREAM, num_draws=1, first_draw=split).numpy()[:, 0]
    order = np.lexsort((keys, labels))  # by class, within a class at random; equal keys stay in order
    _, counts = np.unique(labels, return_counts=True)
    return np.sort(order[_is_kept(counts, fraction)]).astype(np.int64)


def _is_kept(counts: np.ndarray, fraction: float) -> np.ndarray:
    """Which places of an order by class are among the first of their class, bool `(num_videos,)`."""
    num_kept = [max(1, round(fraction * int(count))) for count in counts]
    ranks = np.concatenate([np.arange(count) for count in counts])
    return ranks < np.repeat(num_kept, counts)


def write_split(
    path: str | Path,
    names: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    indices: Sequence[int] | np.ndarray,
    *,
    fraction: float,
    split: int,
    seed: int,
) -> Path:
    """Write a subset as a manifest, a line 'path label' for each video, and beside it what it is, as JSON.

    The file of the same name with the ending .json has the fraction, split and seed, the number of videos in the
    subset and in the whole set, and the number of each class.

    Args:
        path: The manifest, with the ending .csv. Its folder is made.
        names: Of all videos of the training set, as they are to stand in the manifest: absolute paths, or relative to
            its folder.
        labels: Of all videos.
        indices: Which of them are in the subset, as from `stratified_split`.
        fraction: As for `stratified_split`.
        split: As for `stratified_split`.
        seed: As for `stratified_split`.

    Returns:
        The manifest.

    Raises:
        ValueError: Another ending, numbers that do not fit, or no video.
    """
    path, labels, indices = Path(path), _as_labels(labels), np.asarray(indices)
    if path.suffix.lower() != ".csv":
        raise ValueError(f"the manifest {path} ends in '{path.suffix}', but has lines 'path label'; call it .csv")
    _check_indices(indices, names=names, labels=labels)
    chosen = [(str(names[index]), str(labels[index])) for index in indices]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(f"{labelled_line(name, label)}\n" for name, label in chosen))
    description = {
        "format": SPLIT_FORMAT,
        "fraction": float(fraction),
        "split": int(split),
        "seed": int(seed),
        "num_videos": len(indices),
        "num_videos_of_all": len(labels),
        "counts": {str(label): count for label, count in _count_classes(labels[indices]).items()},
    }
    write_whole(path.with_suffix(".json"), json.dumps(description, indent=2) + "\n")
    return path


def read_split(path: str | Path) -> LabelSplit:
    """Read what `write_split` wrote.

    Args:
        path: The manifest; its description lies beside it.

    Raises:
        FileNotFoundError: The manifest or its description is missing.
        ValueError: One of them cannot be understood, or they do not belong together.
    """
    path = Path(path)
    entries = read_manifest_entries(path)
    description = _read_description(path.with_suffix(".json"))
    labels = np.array(
        [parse_label(entry.label, f"line {entry.line} of the manifest {path}") for entry in entries], dtype=np.int64
    )
    counts = {int(label): int(count) for label, count in description["counts"].items()}
    if counts != _count_classes(labels):
        raise ValueError(
            f"the manifest {path} has {len(labels)} videos, and their numbers by class are not those of "
            f"{path.with_suffix('.json')}, {sum(counts.values())} in all; one of the two was changed: write the split "
            "again"
        )
    return LabelSplit(
        names=tuple(entry.path for entry in entries),
        labels=labels,
        fraction=float(description["fraction"]),
        split=int(description["split"]),
        seed=int(description["seed"]),
        counts=counts,
    )


def summarise(values: Sequence[float] | np.ndarray) -> SplitSummary:
    """Mean and deviation of a measure over splits, for a table of "mean ± deviation".

    Args:
        values: The measure of each split, at least one, all finite.

    Raises:
        ValueError: There is none, or one is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(
            f"the values over splits are {array.tolist()}, but there must be one for each split, all finite; leave "
            "out splits that have none"
        )
    deviation = float(array.std(ddof=1)) if array.size > 1 else None
    return SplitSummary(mean=float(array.mean()), deviation=deviation, num_splits=array.size)


def _as_labels(labels: Sequence[int] | np.ndarray) -> np.ndarray:
    array = np.asarray(labels)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"the labels have shape {array.shape}; give one for each video, of at least one video")
    if array.dtype.kind not in "iu":
        raise TypeError(f"the labels have type {array.dtype}, but a label is the number of a class; give integers")
    if array.min() < 0:
        raise ValueError(f"there is a label {array.min()}, but classes are numbered from 0; leave such videos out")
    return array.astype(np.int64)


def _check_classes(labels: np.ndarray, num_classes: int) -> None:
    if labels.max() >= num_classes:
        raise ValueError(
            f"there is a label {labels.max()}, but {num_classes} classes are numbered 0 to {num_classes - 1}; give "
            "the number of classes that the labels have"
        )
    missing = np.setdiff1d(np.arange(num_classes), labels)
    if missing.size:
        raise ValueError(
            f"no training video has the label {shorten_list(missing)}, but each of the {num_classes} classes needs "
            "one to be learned; add videos of these classes, or number the classes without them"
        )


def _check_indices(indices: np.ndarray, *, names: Sequence[str], labels: np.ndarray) -> None:
    if len(names) != len(labels):
        raise ValueError(f"there are {len(names)} names and {len(labels)} labels; give one of both for each video")
    if indices.ndim != 1 or not indices.size or indices.dtype.kind not in "iu":
        raise ValueError(
            f"the indices have shape {indices.shape} and type {indices.dtype}; give those of `stratified_split`, "
            "a vector of at least one integer"
        )
    if indices.min() < 0 or indices.max() >= len(labels) or len(np.unique(indices)) != len(indices):
        raise ValueError(
            f"the indices go from {indices.min()} to {indices.max()}, {len(indices) - len(np.unique(indices))} of "
            f"them twice, but choose from {len(labels)} videos, each once; give those of `stratified_split`"
        )


def _count_classes(labels: np.ndarray) -> dict[int, int]:
    classes, counts = np.unique(labels, return_counts=True)
    return dict(zip(classes.tolist(), counts.tolist(), strict=True))


def _read_description(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}, which describes the split beside its manifest; write it again")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); write the split again") from error
    found = description.get("format") if isinstance(description, dict) else None
    if found != SPLIT_FORMAT:
        raise ValueError(
            f"{path} has the format {found!r}, but this version reads {SPLIT_FORMAT}; give the manifest of a split, "
            "or write the split again"
        )
    missing = [name for name in ("fraction", "split", "seed", "counts") if name not in description]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}, so it was changed; write the split again")
    return description
