"""Confusion matrices as figures: a colour is the share of a class that was taken for another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.names import counted
from .style import BLUE, DPI, FAINT, GREY, INK, PAPER, style, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of the matrix and of a class, in inches
LARGEST_SIDE, SMALLEST_SIDE, LARGEST_CELL = 6.25, 2.5, 0.62
MAX_NAMED_CLASSES, MAX_COUNTED_CLASSES, MAX_NAME_LENGTH = 40, 15, 28
# Colours go with the square root of shares, so that a few confusions of many videos can be seen
COLOUR_EXPONENT = 0.5


def write_confusion_picture(
    path: str | Path,
    confusion: np.ndarray,
    class_names: Sequence[str] | None = None,
    *,
    num_without_prediction: int = 0,
) -> Path:
    """Write a confusion matrix as a PNG file. Arguments and errors as for `draw_confusion`."""
    figure = draw_confusion(confusion, class_names, num_without_prediction=num_without_prediction)
    # The names of classes stand outside the figure's own size
    return write_png(figure, path, {"Title": "Confusion matrix"}, bbox_inches="tight", pad_inches=0.35)


@style()
def draw_confusion(
    confusion: np.ndarray, class_names: Sequence[str] | None = None, *, num_without_prediction: int = 0
) -> Figure:
    """Draw a confusion matrix.

    Up to 40 classes have their names beside it, fewer than 15 the numbers of videos in the cells. A row without videos
    is grey.

    Args:
        confusion: Integers `(num_classes, num_classes)`, number of videos by own class (row) and prediction (column).
        class_names: One for each class; the numbers of the classes by default.
        num_without_prediction: Videos that are not in the matrix, and are wrong: they count in the title's accuracy.

    Raises:
        ValueError: The matrix is not square, empty or has negative numbers, or the names do not fit.
    """
    from matplotlib.figure import Figure

    names = _names_beside(confusion, class_names)
    num_videos = int(confusion.sum()) + num_without_prediction
    share = f"{100 * np.trace(confusion) / num_videos:.1f} %" if num_videos else "unknown"
    missing = f", {num_without_prediction:,} of them without a prediction" if num_without_prediction else ""
    has_empty_row = not confusion.sum(axis=1).all()
    reading = f"colour: share of the videos of a class (row){'; grey: none' if has_empty_row else ''}"
    side = min(max(len(confusion) * LARGEST_CELL, SMALLEST_SIDE), LARGEST_SIDE)
    side = max(round(side * DPI / len(confusion)), 1) * len(confusion) / DPI  # whole pixels for each class
    figure = Figure(figsize=(side, side))
    axes = figure.add_axes((0, 0, 1, 1))
    _draw_matrix(axes, figure.add_axes((1 + 0.25 / side, 0, 0.14 / side, 1)), confusion)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set_title(f"of {counted(num_videos, 'video')}{missing}\n{reading}", size=8, color=GREY)
    axes.text(0, 1 + 0.5 / side, f"Top-1 {share}", transform=axes.transAxes, size=13, weight="bold")
    return figure


def _draw_matrix(axes: Axes, bar_axes: Axes, confusion: np.ndarray) -> None:
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    totals = confusion.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, confusion / np.maximum(totals, 1), np.nan)
    colours = LinearSegmentedColormap.from_list("share", [PAPER, BLUE, "#0b2545"]).with_extremes(bad=FAINT)
    image = axes.imshow(shares, cmap=colours, norm=PowerNorm(COLOUR_EXPONENT, vmin=0, vmax=1), interpolation="nearest")
    axes.spines[:].set_visible(True)
    for row, column in np.argwhere(confusion > 0) if len(confusion) < MAX_COUNTED_CLASSES else ():
        count, colour = f"{confusion[row, column]:,}", PAPER if shares[row, column] > 0.2 else INK
        weight = "bold" if row == column else "normal"
        axes.text(column, row, count, ha="center", va="center", color=colour, weight=weight)
    ticks = {0: "0", 0.01: "1 %", 0.05: "5 %", 0.2: "20 %", 0.5: "50 %", 1: "100 %"}
    bar = bar_axes.figure.colorbar(image, cax=bar_axes)
    bar.set_ticks(list(ticks), labels=list(ticks.values()))
    bar.outline.set_edgecolor(FAINT)


def _names_beside(confusion: np.ndarray, class_names: Sequence[str] | None) -> list[str]:
    """The names to write, short and each in one line; none of too many classes."""
    is_square = confusion.ndim == 2 and confusion.shape[0] == confusion.shape[1]
    if not is_square or not confusion.size or confusion.dtype.kind not in "iu" or confusion.min() < 0:
        raise ValueError(
            f"the confusion matrix is {confusion.dtype} {confusion.shape}, but must be square and count videos from 0 "
            "on, a row and a column for each class; give that of `compute_metrics`"
        )
    if class_names is not None and len(class_names) != len(confusion):
        raise ValueError(
            f"there are {len(class_names)} names for {len(confusion)} classes; give one for each class, or none at all"
        )
    if len(confusion) > MAX_NAMED_CLASSES:
        return []
    names = (" ".join(str(name).split()) for name in class_names or range(len(confusion)))
    return [name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1].rstrip() + "…" for name in names]
