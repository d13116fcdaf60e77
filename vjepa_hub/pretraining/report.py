"""The page of a run: its curves as small multiples, a verdict in a sentence, and what the last numbers mean.

`write_report` makes a picture (PNG) and one HTML file that needs nothing else, for a screen of any width. Panels whose
numbers were not logged are left out.
"""

import base64
import html
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.files import write_whole
from .health import PREFIX, RULES, HealthMeasurement, HealthWarning, diagnose
from .metrics_log import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY, FAINT, PAPER = "#1c1c1e", "#707076", "#e6e6ea", "#ffffff"
BLUE, TEAL, PLUM, AMBER, RED, GREEN = "#2560a8", "#12857a", "#8a3f86", "#be5c00", "#b3261e", "#2a7d3f"
LINE_COLOURS = (BLUE, TEAL, PLUM, GREY)
# Of a panel and of the page's head, in inches
PANEL_WIDTH, PANEL_HEIGHT, MARGIN, HEAD_HEIGHT = 4.8, 2.65, 0.35, 1.35
NUM_COLUMNS = 3
MAX_RAW_POINTS, MAX_SMOOTH_POINTS = 1000, 100
# Smallest distance of two labels at the ends of lines, in heights of the axes
LABEL_DISTANCE = 0.13


# ------------------------------------------------------------------------------------------------ panels


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line of a panel.

    Attributes:
        key: Pattern of the names under which it was logged; every match is a line.
        label: Written at its end; where the pattern has a group, what that matches.
        colour: Of the line; by default by its place in the panel.
        is_noisy: Drawn pale, with means over stretches of steps on top.
    """

    key: str
    label: str = ""
    colour: str | None = None
    is_noisy: bool = False


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One of the small multiples.

    Attributes:
        title: What it shows.
        reading: How it is read, in a few words.
        curves: Its lines.
        reference: A level that is marked.
        top: End of the axis, where it is natural.
        starts_at_zero: Whether the axis does; otherwise it spans the values.
        is_log: Whether the axis is logarithmic.
    """

    title: str
    reading: str
    curves: tuple[Curve, ...]
    reference: float | None = None
    top: float | None = None
    starts_at_zero: bool = True
    is_log: bool = False


PANELS = (
    Panel(
        title="Loss",
        reading="a proxy: in good runs it falls, then rises",
        curves=(
            Curve(key=PREFIX + "fixed_loss", label="fixed clips"),
            Curve(key="loss", label="training", colour=GREY, is_noisy=True),
        ),
    ),
    Panel(
        title="Loss against trivial predictors",
        reading="on the fixed clips; below 1 something is learned",
        curves=(
            Curve(key=PREFIX + "fixed_loss_over_mean_target", label="mean target"),
            Curve(key=PREFIX + "fixed_loss_over_nearest_token", label="nearest token"),
        ),
        reference=1.0,
    ),
    Panel(
        title="Probe accuracy",
        reading="labels read from the frozen target encoder",
        curves=(Curve(key="probe/(.+)_accuracy"),),
        top=1.0,
    ),
    Panel(
        title="Effective rank of the targets",
        reading="the best sign without labels: falls in a collapse",
        curves=(Curve(key=PREFIX + "target_effective_rank"),),
    ),
    Panel(
        title="Spread of the targets",
        reading="over all tokens, and over clips at one place",
        curves=(
            Curve(key=PREFIX + "target_std", label="tokens"),
            Curve(key=PREFIX + "target_content_std", label="clips"),
        ),
    ),
    Panel(
        title="Cosine between a clip's tokens",
        reading="1 when they are all alike",
        curves=(Curve(key=PREFIX + "token_cosine"),),
        top=1.0,
    ),
    Panel(
        title="Length of predictions over targets",
        reading="small while the predictor knows nothing",
        curves=(Curve(key=PREFIX + "prediction_norm_ratio"),),
    ),
    Panel(
        title="Encoder to target encoder",
        reading="relative distance of their parameters",
        curves=(Curve(key=PREFIX + "encoder_target_distance"),),
    ),
    Panel(
        title="Gradient norm",
        reading="before clipping",
        curves=(
            Curve(key="encoder_grad_norm", label="encoder", is_noisy=True),
            Curve(key="predictor_grad_norm", label="predictor", is_noisy=True),
        ),
        is_log=True,
    ),
    Panel(title="Learning rate", reading="schedule", curves=(Curve(key="learning_rate"),)),
    Panel(title="Weight decay", reading="schedule", curves=(Curve(key="weight_decay"),)),
    Panel(title="EMA momentum", reading="schedule", curves=(Curve(key="momentum"),), starts_at_zero=False),
)


@dataclass(frozen=True, eq=False)
class Series:
    """Numbers logged under one name: steps, ascending, and the finite values there."""

    steps: np.ndarray
    values: np.ndarray


def collect_series(history: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """The numbers of a history by name. What was logged twice at a step counts once, the last time.

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


def _lines_of(panel: Panel, series: Mapping[str, Series]) -> list[tuple[Curve, Series]]:
    """The panel's curves that have numbers, each with its own label."""
    lines = []
    for curve in panel.curves:
        for name in sorted(series):
            match = re.fullmatch(curve.key, name)
            if match:
                label = match.group(1).replace("_", " ") if match.groups() else curve.label
                lines.append((replace(curve, label=label), series[name]))
    return lines


# ------------------------------------------------------------------------------------------------ verdict


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What to think of a run.

    Attributes:
        word: At a glance.
        finding: Which warnings there are.
        progress: How the main measures went, in a sentence.
        colour: Of the word.
    """

    word: str
    finding: str
    progress: str
    colour: str


def judge(history: Sequence[Mapping[str, Any]], warnings: Sequence[HealthWarning]) -> Verdict:
    """The verdict on a run: by the warnings that still hold at its end, else by those that are over.

    Args:
        history: Logged rows.
        warnings: What was found in them.
    """
    series = collect_series(history)
    progress, measured = _progress(series), series.get(PREFIX + "fixed_loss")
    last_step = -1 if measured is None else int(measured.steps[-1])
    present = [warning for warning in warnings if warning.last_step >= last_step]
    if present:
        is_lost = any(warning.name in ("collapsed-targets", "not-finite") for warning in present)
        word, colour = ("Collapsed", RED) if is_lost else ("Look closer", AMBER)
        finding = _join([f"{warning.name} since step {warning.step:,}" for warning in present])
    elif warnings:
        word, colour = "Recovered", AMBER
        finding = _join([f"{w.name} from step {w.step:,} to {w.last_step:,}" for w in warnings]) + ", not since"
    elif measured is None:
        word, finding, colour = "Not measured", "no measure of health was logged", GREY
    else:
        word, finding, colour = "Healthy", "no warning", GREEN
    return Verdict(word=word, finding=finding, progress=progress, colour=colour)


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _progress(series: Mapping[str, Series]) -> str:
    parts = []
    for name, words in (
        ("target_effective_rank", "the effective rank of the targets"),
        ("target_std", "their spread"),
    ):
        found = series.get(PREFIX + name)
        if found is not None:
            parts.append(f"{words} went from {_number(found.values[0])} to {_number(found.values[-1])}")
    ratio = series.get(PREFIX + "fixed_loss_over_mean_target")
    if ratio is not None:
        parts.append(f"the loss on fixed clips came to {_number(ratio.values[-1])} of that of predicting the mean")
    return f"In {_last_step(series):,} steps {_join(parts)}." if parts else ""


def _last_step(series: Mapping[str, Series]) -> int:
    return max((int(found.steps[-1]) for found in series.values()), default=0)


def _number(value: float) -> str:
    """Three digits, as short as they can be read."""
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.4f}" if 0.99 <= value < 0.99995 else f"{value:.3g}"


def _tick(value: float) -> str:
    """A tick's number with the digits that tell it from its neighbours."""
    value = round(value, 12)
    if not value or abs(value) >= 0.01:
        return f"{value:,.6g}"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


# ------------------------------------------------------------------------------------------------ drawing


@contextmanager
def _style() -> Iterator[None]:
    """The look of the page, and files that are the same for the same numbers; other figures keep theirs."""
    import matplotlib

    look: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 8,
        "axes.edgecolor": FAINT,
        "axes.linewidth": 0.8,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "xtick.color": GREY,
        "ytick.color": GREY,
        "ytick.major.size": 0,
        "ytick.minor.size": 0,
        "xtick.major.size": 0,
        "lines.solid_capstyle": "round",
        "lines.solid_joinstyle": "round",
        "svg.hashsalt": "vjepa_hub",
    }
    with matplotlib.rc_context(look):
        yield


def _add_axes(figure: "Figure", left: float, top: float) -> "Axes":
    """Axes of a panel whose upper left corner lies there, in inches from the figure's."""
    width, height = figure.get_size_inches()
    x, y = left + 0.42, height - top - PANEL_HEIGHT + 0.42
    return figure.add_axes((x / width, y / height, (PANEL_WIDTH - 1.9) / width, (PANEL_HEIGHT - 1.12) / height))


def _draw_panel(
    axes: "Axes",
    panel: Panel,
    series: Mapping[str, Series],
    warnings: Sequence[HealthWarning],
    *,
    with_title: bool = True,
) -> None:
    last_step = _last_step(series)
    if with_title:
        axes.text(0, 1.22, panel.title, transform=axes.transAxes, fontsize=10, fontweight="bold", color=INK)
        axes.text(0, 1.08, panel.reading, transform=axes.transAxes, color=GREY)
    lines = _lines_of(panel, series)
    ends = []
    for place, (curve, found) in enumerate(lines):
        colour = curve.colour or LINE_COLOURS[place % len(LINE_COLOURS)]
        height = _draw_curve(axes, curve, found, colour)
        ends.append((height, f"{curve.label} {_number(height)}".strip(), colour))
    _set_scales(axes, panel, lines, last_step=last_step)
    if panel.reference is not None:
        axes.axhline(panel.reference, color=GREY, linewidth=0.9, linestyle=(0, (3, 2)))
    _mark_warnings(axes, lines, warnings, last_step=last_step)
    _label_ends(axes, ends)


def _draw_curve(axes: "Axes", curve: Curve, found: Series, colour: str) -> float:
    """Draw a line; return the height at which it ends."""
    if not curve.is_noisy or len(found.steps) <= MAX_SMOOTH_POINTS // 4:
        is_sparse = len(found.steps) <= 12
        axes.plot(
            found.steps, found.values, color=colour, linewidth=1.6, marker="o" if is_sparse else "", markersize=2.6
        )
        return float(found.values[-1])
    thinned = np.linspace(0, len(found.steps) - 1, min(len(found.steps), MAX_RAW_POINTS)).round().astype(int)
    axes.plot(found.steps[thinned], found.values[thinned], color=colour, linewidth=0.6, alpha=0.3)
    num_stretches = min(MAX_SMOOTH_POINTS, len(found.steps) // 5)
    steps, values = (
        np.array([part.mean() for part in np.array_split(array, num_stretches)])
        for array in (found.steps.astype(float), found.values)
    )
    axes.plot(steps, values, color=colour, linewidth=1.6)
    return float(values[-1])


def _set_scales(axes: "Axes", panel: Panel, lines: Sequence[tuple[Curve, Series]], *, last_step: int) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    axes.set_xlim(0, max(last_step, 1))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    values = np.concatenate([found.values for _, found in lines])
    low, high = values.min(), values.max()
    if panel.is_log and low > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        if panel.reference is not None:
            high = max(high, panel.reference)
        low = min(low, 0.0) if panel.starts_at_zero else low
        room = 0.08 * (high - low) or 0.5 * abs(high) or 1.0
        axes.set_ylim(low if panel.starts_at_zero else low - room, panel.top or high + room)
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.text(1.03, -0.03, "steps", transform=axes.transAxes, color=GREY, va="top")
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)


def _mark_warnings(
    axes: "Axes", lines: Sequence[tuple[Curve, Series]], warnings: Sequence[HealthWarning], *, last_step: int
) -> None:
    """Tint the steps in which a rule about one of these lines held, and name it where it began."""
    measures = {rule.name: PREFIX + rule.measure for rule in RULES}
    keys = {curve.key for curve, _ in lines}
    shown = [warning for warning in warnings if measures.get(warning.name) in keys]
    for place, warning in enumerate(shown):
        axes.axvspan(warning.step, warning.last_step, color=AMBER, alpha=0.10, linewidth=0)
        axes.axvline(warning.step, color=AMBER, linewidth=1.0)
        is_late = warning.step > 0.55 * last_step
        axes.annotate(
            warning.name,
            (warning.step, 1 - 0.12 * place),
            xycoords=axes.get_xaxis_transform(),
            xytext=(-3 if is_late else 3, -2),
            textcoords="offset points",
            color=AMBER,
            fontsize=7.5,
            ha="right" if is_late else "left",
            va="top",
            bbox={"facecolor": PAPER, "alpha": 0.8, "linewidth": 0, "pad": 0.8},
        )


def _label_ends(axes: "Axes", ends: Sequence[tuple[float, str, str]]) -> None:
    """Write what each line is, and its last value, at its end; labels that would touch are moved apart."""
    to_axes = axes.transData + axes.transAxes.inverted()
    placed = sorted(
        (float(to_axes.transform((axes.get_xlim()[1], height))[1]), text, colour) for height, text, colour in ends
    )
    heights = _spread_out([min(max(height, 0.0), 1.0) for height, _, _ in placed], LABEL_DISTANCE)
    for height, (_, text, colour) in zip(heights, placed, strict=True):
        axes.text(1.03, height, text, transform=axes.transAxes, color=colour, va="center", fontweight="bold")


def _spread_out(heights: Sequence[float], distance: float) -> list[float]:
    """Ascending heights moved so that neighbours are at least `distance` apart, each cluster round its own middle."""
    clusters: list[list[float]] = []
    for height in heights:
        clusters.append([height])
        while len(clusters) > 1 and _lowest(clusters[-1], distance) - _highest(clusters[-2], distance) < distance:
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    return [_lowest(cluster, distance) + distance * place for cluster in clusters for place in range(len(cluster))]


def _lowest(cluster: Sequence[float], distance: float) -> float:
    return sum(cluster) / len(cluster) - distance * (len(cluster) - 1) / 2


def _highest(cluster: Sequence[float], distance: float) -> float:
    return _lowest(cluster, distance) + distance * (len(cluster) - 1)


def _draw_page(
    panels: Sequence[Panel],
    series: Mapping[str, Series],
    warnings: Sequence[HealthWarning],
    title: str,
    verdict: Verdict,
) -> bytes:
    """The picture, as PNG."""
    from matplotlib.figure import Figure

    num_rows = max(1, math.ceil(len(panels) / NUM_COLUMNS))
    width = 2 * MARGIN + NUM_COLUMNS * PANEL_WIDTH - 0.3
    figure = Figure(figsize=(width, HEAD_HEIGHT + num_rows * PANEL_HEIGHT + MARGIN), facecolor=PAPER)
    _draw_head(figure, title, verdict)
    for place, panel in enumerate(panels):
        row, column = divmod(place, NUM_COLUMNS)
        axes = _add_axes(figure, MARGIN + column * PANEL_WIDTH, HEAD_HEIGHT + row * PANEL_HEIGHT)
        _draw_panel(axes, panel, series, warnings)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=144, metadata={"Title": title, "Software": None})
    return file.getvalue()


def _draw_head(figure: "Figure", title: str, verdict: Verdict) -> None:
    width, height = figure.get_size_inches()
    left = (MARGIN + 0.42) / width
    figure.text(left, 1 - 0.42 / height, title, fontsize=17, fontweight="bold", color=INK, va="center")
    word = figure.text(
        left, 1 - 0.82 / height, verdict.word, fontsize=11, fontweight="bold", color=verdict.colour, va="center"
    )
    figure.draw_without_rendering()
    end = word.get_window_extent().transformed(figure.transFigure.inverted()).x1
    figure.text(end + 0.1 / width, 1 - 0.82 / height, verdict.finding, fontsize=11, color=verdict.colour, va="center")
    figure.text(left, 1 - 1.08 / height, verdict.progress, fontsize=9.5, color=GREY, va="center")


def _draw_alone(panel: Panel, series: Mapping[str, Series], warnings: Sequence[HealthWarning]) -> bytes:
    """One panel without its title, as SVG, for a page that arranges panels by itself."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL_WIDTH, PANEL_HEIGHT - 0.6), facecolor=PAPER)
    axes = _add_axes(figure, 0.1, -0.55)
    _draw_panel(axes, panel, series, warnings, with_title=False)
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


# ------------------------------------------------------------------------------------------------ page


STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 3rem; max-width: 78rem; background: #fff; color: #1c1c1e;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0 0 .75rem; font-size: 1.6rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.1rem; }
.verdict { margin: 0 0 1.5rem; padding: .25rem 0 .25rem 1rem; border-left: 5px solid; }
.verdict p { margin: 0; color: #1c1c1e; }
.verdict strong { font-size: 1.15rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1.5rem 1rem; }
figure { margin: 0; }
figcaption { line-height: 1.3; font-size: .9rem; }
figcaption b { display: block; }
figcaption span, small { color: #707076; }
img { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: .45rem .75rem .45rem 0; border-bottom: 1px solid #e6e6ea; text-align: left; vertical-align: top; }
th { font-weight: 600; color: #707076; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td small { display: block; font-size: .85em; }
td.value { overflow-wrap: anywhere; }
li { margin-bottom: .5rem; }
"""


def _write_page(
    panels: Sequence[Panel],
    series: Mapping[str, Series],
    warnings: Sequence[HealthWarning],
    title: str,
    verdict: Verdict,
    settings: Mapping[str, Any],
) -> str:
    """The HTML file."""
    figures = [_figure(panel, _draw_alone(panel, series, warnings)) for panel in panels]
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        f'<div class="verdict" style="border-color: {verdict.colour}"><p><strong style="color: {verdict.colour}">'
        f"{verdict.word}</strong>: {html.escape(verdict.finding)}.</p><p>{html.escape(verdict.progress)}</p></div>",
        f'<div class="panels">{"".join(figures)}</div>',
        *_warning_section(warnings),
        *_measure_section(series),
        *_settings_section(settings),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def _figure(panel: Panel, svg: bytes) -> str:
    data = base64.b64encode(svg).decode()
    caption = f"<b>{html.escape(panel.title)}</b><span>{html.escape(panel.reading)}</span>"
    image = f'<img alt="{html.escape(panel.title)} over steps" src="data:image/svg+xml;base64,{data}">'
    return f"<figure><figcaption>{caption}</figcaption>{image}</figure>"


def _warning_section(warnings: Sequence[HealthWarning]) -> list[str]:
    if not warnings:
        return []
    items = "".join(
        f"<li>{html.escape(warning.message)} <small>The rule: {html.escape(warning.rule)}.</small></li>"
        for warning in warnings
    )
    return ["<h2>Warnings</h2>", f"<ul>{items}</ul>"]


def _measure_section(series: Mapping[str, Series]) -> list[str]:
    """The first and last value of each measure of health, with its meaning in words."""
    rows = []
    for entry in fields(HealthMeasurement):
        found = series.get(PREFIX + entry.name)
        if found is not None:
            label, meaning = html.escape(entry.metadata["label"]), html.escape(entry.metadata["meaning"])
            numbers = "".join(f'<td class="number">{_number(found.values[place])}</td>' for place in (0, -1))
            rows.append(f"<tr><td>{label}<small>{meaning}</small></td>{numbers}</tr>")
    if not rows:
        return []
    head = '<tr><th>Measure</th><th class="number">first</th><th class="number">last</th></tr>'
    return ["<h2>What the numbers mean</h2>", f"<table>{head}{''.join(rows)}</table>"]


def _settings_section(settings: Mapping[str, Any]) -> list[str]:
    if not settings:
        return []
    rows = [
        f'<tr><td>{html.escape(str(name))}</td><td class="value">{html.escape(str(value))}</td></tr>'
        for name, value in settings.items()
    ]
    return ["<h2>Settings</h2>", f"<table>{''.join(rows)}</table>"]


def write_report(
    output_dir: str | Path,
    *,
    history: Sequence[Mapping[str, Any]] | None = None,
    metrics_path: str | Path | None = None,
    title: str | None = None,
    settings: Mapping[str, Any] | None = None,
    warnings: Sequence[HealthWarning] | None = None,
) -> tuple[Path, Path]:
    """Write `report.png` and `report.html`. The same numbers give the same bytes.

    Args:
        output_dir: The folder; it is made.
        history: Logged rows, such as `trainer.state.log_history`.
        metrics_path: Or the file that `MetricsCSVCallback` wrote.
        title: Of the page; by default the folder's name.
        settings: What the run was started with, for the table at the end of the page.
        warnings: Those of `HealthCallback.warnings`; by default what `diagnose` finds.

    Returns:
        The picture and the page.

    Raises:
        ValueError: Not exactly one of `history` and `metrics_path` is given, or none of the known numbers were logged.
    """
    if (history is None) == (metrics_path is None):
        raise ValueError("give either history, the logged rows, or metrics_path, the file they were written to")
    rows = read_metrics(metrics_path) if metrics_path is not None else list(history or [])
    series = collect_series(rows)
    panels = [panel for panel in PANELS if _lines_of(panel, series)]
    if not panels:
        raise ValueError(
            f"the history has {', '.join(sorted(series)) or 'no numbers'}, and none of what a panel shows, such as "
            "'loss'; give the history of a training run"
        )
    folder = Path(output_dir)
    title = title or folder.resolve().name
    if warnings is None:
        warnings = diagnose(rows, warmup_steps=_last_step(series) // 5)
    verdict = judge(rows, warnings)
    with _style():
        picture = _draw_page(panels, series, warnings, title, verdict)
        page = _write_page(panels, series, warnings, title, verdict, settings or {})
    return write_whole(folder / "report.png", picture), write_whole(folder / "report.html", page)
