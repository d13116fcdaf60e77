"""The report of a training: its curves as small multiples under a verdict, as a picture and as a page."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.files import write_whole
from .image_grid import evenly_spaced
from .page import Page, PageFigure, Table, Verdict, render_page
from .style import AMBER, GREY, encode_figure, style, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_COLUMNS = 3
# In inches: of a panel, and of the picture's head
PANEL_WIDTH, PANEL_HEIGHT, HEAD_HEIGHT = 4.6, 2.5, 1.3
MAX_RAW_POINTS, MAX_SMOOTH_POINTS = 1000, 100
MAX_MARKED_POINTS = 12
LINE_LENGTH = 150


@dataclass(frozen=True)
class Curve:
    """Lines of a panel.

    Attributes:
        key: Pattern of the names under which numbers were logged; every match is a line.
        label: Beside its last value; where the pattern has a group, what that matches.
        is_noisy: Shown pale, with means over stretches of steps on top.
    """

    key: str
    label: str = ""
    is_noisy: bool = False


@dataclass(frozen=True)
class Panel:
    """One of the small multiples.

    Attributes:
        title: Name of the measure.
        note: How it is read, in a few words.
        curves: Its lines.
        reference: A level that is marked.
        top: End of the axis, where it is natural.
        starts_at_zero: Whether the axis does; otherwise it spans the values.
        is_log: Whether the axis is logarithmic.
    """

    title: str
    note: str
    curves: tuple[Curve, ...]
    reference: float | None = None
    top: float | None = None
    starts_at_zero: bool = True
    is_log: bool = False


@dataclass(frozen=True)
class Mark:
    """A stretch of steps with a name, marked in the panel that shows a key."""

    key: str
    name: str
    first_step: int
    last_step: int


@dataclass(frozen=True, eq=False)
class Series:
    """Numbers logged under one name: steps, ascending, and the finite values there."""

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, eq=False)
class _Drawing:
    """A panel with its lines (curve, label, numbers), its marks, and the last step of the history."""

    panel: Panel
    lines: Sequence[tuple[Curve, str, Series]]
    marks: Sequence[Mark]
    last_step: int


def collect_series(history: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """The numbers of a history by name. A number that was logged twice at a step counts once, the last time.

    Args:
        history: Logged rows, each with a "step".
    """
    points: dict[str, dict[int, float]] = {}
    for row in history:
        for name, value in row.items():
            if isinstance(value, int | float) and math.isfinite(value):
                points.setdefault(name, {})[int(row["step"])] = float(value)
    return {
        name: Series(np.array(sorted(found)), np.array([found[step] for step in sorted(found)]))
        for name, found in points.items()
    }


def short_number(value: float) -> str:
    """A number of four digits."""
    return f"{value:,.4g}"


def write_training_report(
    folder: str | Path,
    title: str,
    history: Sequence[Mapping[str, Any]],
    panels: Sequence[Panel],
    *,
    verdict: Verdict,
    marks: Sequence[Mark] = (),
    tables: Sequence[Table] = (),
) -> list[Path]:
    """Write `report.png` and `report.html`. The same numbers give the same bytes.

    Args:
        folder: It is made.
        title: Of both.
        history: Logged rows, each with a "step".
        panels: Those whose numbers were not logged are left out.
        verdict: On the training.
        marks: Stretches of steps to be marked.
        tables: Below the curves of the page.

    Returns:
        The picture and the page.

    Raises:
        ValueError: No panel has any numbers.
    """
    series = collect_series(history)
    last_step = max((int(found.steps[-1]) for found in series.values()), default=0)
    shown = [_Drawing(panel, lines, marks, last_step) for panel in panels if (lines := _lines_of(panel, series))]
    if not shown:
        raise ValueError(
            f"the history has {', '.join(sorted(series)) or 'no numbers'}, and none of what a panel shows, such as "
            "'loss'; give the history of a training run"
        )
    figures = [PageFigure(d.panel.title, d.panel.note, _draw_alone(d)) for d in shown]
    page = Page(title=title, verdict=verdict, figures=figures, tables=tables)
    picture = _draw_together(shown, title, verdict)
    return [
        write_png(picture, Path(folder) / "report.png", {"Title": title}),
        write_whole(Path(folder) / "report.html", render_page(page)),
    ]


@style()
def _draw_together(shown: Sequence[_Drawing], title: str, verdict: Verdict) -> Figure:
    """All panels under the verdict."""
    from matplotlib.figure import Figure

    num_rows = math.ceil(len(shown) / NUM_COLUMNS)
    heights = [HEAD_HEIGHT, num_rows * PANEL_HEIGHT]
    figure = Figure(figsize=(NUM_COLUMNS * PANEL_WIDTH, sum(heights)), layout="constrained")
    head, body = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    finding = textwrap.fill(f"{verdict.word}: {verdict.finding}", LINE_LENGTH)
    head.text(0.02, 0.75, title, size=17, weight="bold", va="center")
    head.text(0.02, 0.42, finding, size=11, color=verdict.colour, va="center")
    head.text(0.02, 0.12, textwrap.fill(verdict.progress, LINE_LENGTH), size=9, color=GREY, va="center")
    panels = body.subplots(num_rows, NUM_COLUMNS, squeeze=False).flat
    for axes, drawing in zip(panels, shown, strict=False):
        axes.set_title(drawing.panel.title, size=10, weight="bold", pad=18)
        axes.text(0, 1.05, drawing.panel.note, transform=axes.transAxes, color=GREY)
        _draw_panel(axes, drawing)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    body.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
    return figure


@style()
def _draw_alone(drawing: _Drawing) -> bytes:
    """One panel without its title, as SVG, for a page that arranges panels by itself."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL_WIDTH, PANEL_HEIGHT - 0.5))
    _draw_panel(figure.add_axes((0.11, 0.2, 0.54, 0.74)), drawing)  # the same in all panels of a page
    return encode_figure(figure, "svg")


def _lines_of(panel: Panel, series: Mapping[str, Series]) -> list[tuple[Curve, str, Series]]:
    """The panel's lines that have numbers, with the label of each."""
    lines = []
    for curve in panel.curves:
        for name in sorted(series):
            if match := re.fullmatch(curve.key, name):
                label = match[1].replace("_", " ") if match.groups() else curve.label
                lines.append((curve, label, series[name]))
    return lines


def _draw_panel(axes: Axes, drawing: _Drawing) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    panel, lines = drawing.panel, drawing.lines
    for curve, label, found in lines:
        _draw_curve(axes, curve, label, found)
    if panel.reference is not None:
        axes.axhline(panel.reference, color=GREY, linewidth=0.9, linestyle=(0, (3, 2)))
    values = np.concatenate([found.values for *_, found in lines])
    if panel.is_log and values.min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
        if panel.starts_at_zero:
            axes.set_ylim(bottom=min(0.0, float(values.min())))
        if panel.top is not None:
            axes.set_ylim(top=panel.top)
    for mark in drawing.marks:
        if any(mark.key == curve.key for curve, *_ in lines):
            axes.axvspan(mark.first_step, mark.last_step, color=AMBER, alpha=0.1, linewidth=0)
            axes.axvline(mark.first_step, color=AMBER, linewidth=1, label=mark.name)
    axes.set_xlim(0, max(drawing.last_step, 1))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:.6g}")
    axes.set_xlabel("steps", loc="right")
    axes.grid(axis="y")
    without_handles = {"handlelength": 0, "handletextpad": 0, "markerscale": 0, "labelcolor": "linecolor"}
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1, 1.05), **without_handles)
    for text in legend.get_texts():
        text.set_fontweight("bold")


def _draw_curve(axes: Axes, curve: Curve, label: str, found: Series) -> None:
    """A line with its last value in the legend."""
    steps, values = found.steps.astype(float), found.values
    colour = None
    if curve.is_noisy and len(steps) > MAX_SMOOTH_POINTS // 4:
        kept = evenly_spaced(len(steps), MAX_RAW_POINTS)
        colour = axes.plot(steps[kept], values[kept], linewidth=0.6, alpha=0.3)[0].get_color()
        num_stretches = min(MAX_SMOOTH_POINTS, len(steps) // 5)
        steps, values = (
            np.array([part.mean() for part in np.array_split(array, num_stretches)]) for array in (steps, values)
        )
    marker = "o" if len(steps) <= MAX_MARKED_POINTS else ""
    name = f"{label} {short_number(values[-1])}".strip()
    axes.plot(steps, values, color=colour, linewidth=1.6, marker=marker, markersize=2.6, label=name)
