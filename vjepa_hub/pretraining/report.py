"""The report of a pretraining run: its panels, and the verdict on it."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..viz.page import Row, Table, Verdict
from ..viz.style import AMBER, GREEN, GREY, RED
from ..viz.training_report import (
    Curve,
    Mark,
    Panel,
    Series,
    collect_series,
    short_number,
    write_training_report,
)
from .health import PREFIX, RULES, HealthMeasurement, HealthWarning

# Of a shorter run nothing is said but that it is lost
SHORTEST_JUDGED = 100

PANELS = (
    Panel(
        "Loss",
        "a proxy: in good runs it falls, then rises",
        (Curve(PREFIX + "fixed_loss", "fixed clips"), Curve("loss", "training", is_noisy=True)),
    ),
    Panel(
        "Loss against trivial predictors",
        "on the fixed clips; below 1 something is learned",
        (
            Curve(PREFIX + "fixed_loss_over_mean_target", "mean target"),
            Curve(PREFIX + "fixed_loss_over_nearest_token", "nearest token"),
        ),
        reference=1.0,
    ),
    Panel("Probe accuracy", "labels read from the frozen target encoder", (Curve("probe/(.+)_accuracy"),), top=1.0),
    Panel(
        "Effective rank of the targets",
        "the best sign without labels: falls in a collapse",
        (Curve(PREFIX + "target_effective_rank"),),
    ),
    Panel(
        "Spread of the targets",
        "over all tokens, and over clips at one place",
        (Curve(PREFIX + "target_std", "tokens"), Curve(PREFIX + "target_content_std", "clips")),
    ),
    Panel("Cosine between a clip's tokens", "1 when they are all alike", (Curve(PREFIX + "token_cosine"),), top=1.0),
    Panel(
        "Length of predictions over targets",
        "small while the predictor knows nothing",
        (Curve(PREFIX + "prediction_norm_ratio"),),
    ),
    Panel(
        "Encoder to target encoder",
        "relative distance of their parameters",
        (Curve(PREFIX + "encoder_target_distance"),),
    ),
    Panel(
        "Gradient norm",
        "before clipping",
        (
            Curve("encoder_grad_norm", "encoder", is_noisy=True),
            Curve("predictor_grad_norm", "predictor", is_noisy=True),
        ),
        is_log=True,
    ),
    Panel("Learning rate", "schedule", (Curve("learning_rate"),)),
    Panel("Weight decay", "schedule", (Curve("weight_decay"),)),
    Panel("EMA momentum", "schedule", (Curve("momentum"),), starts_at_zero=False),
)


def judge(history: Sequence[Mapping[str, Any]], warnings: Sequence[HealthWarning]) -> Verdict:
    """The verdict on a run: by the warnings that still hold at its end, its length, what it learned, past warnings.

    Args:
        history: Logged rows.
        warnings: Those that `diagnose` finds in them.
    """
    series = collect_series(history)
    last_step = max((int(found.steps[-1]) for found in series.values()), default=0)
    measured, ratio = (series.get(PREFIX + name) for name in ("fixed_loss", "fixed_loss_over_mean_target"))
    last_measured = -1 if measured is None else int(measured.steps[-1])
    present = {warning.name: warning for warning in warnings if warning.last_step >= last_measured}
    since = ", ".join(f"{name} since step {warning.step:,}" for name, warning in present.items())
    past = ", ".join(f"{w.name} from step {w.step:,} to {w.last_step:,}" for w in warnings)
    if "not-finite" in present:
        word, finding, colour = "Not finite", since, RED
    elif "collapsed-targets" in present:
        word, finding, colour = "Collapsed", since, RED
    elif measured is None:
        word, finding, colour = "Not measured", "no measure of health was logged", GREY
    elif last_step < SHORTEST_JUDGED:
        steps = f"{last_step:,} steps, and a verdict needs {SHORTEST_JUDGED}"
        word, finding, colour = "Too short to tell", f"{steps}; {since}" if since else steps, GREY
    elif present:
        word, finding, colour = "Look closer", since, AMBER
    elif ratio is not None and ratio.values[-1] >= 1:
        loss = f"the loss on fixed clips is {short_number(ratio.values[-1])} times that of predicting the mean"
        word, finding, colour = "Nothing learned yet", loss, AMBER
    elif warnings:
        word, finding, colour = "Recovered", f"{past}, not since", AMBER
    else:
        word, finding, colour = "Healthy", "no warning", GREEN
    return Verdict(word=word, finding=finding, progress=_progress(series, last_step), colour=colour)


def _progress(series: Mapping[str, Series], last_step: int) -> str:
    """The course of the main measures in a sentence."""
    parts = []
    for name, words in (("target_effective_rank", "effective rank of the targets"), ("target_std", "their spread")):
        if found := series.get(PREFIX + name):
            parts.append(f"{words} {short_number(found.values[0])} to {short_number(found.values[-1])}")
    if ratio := series.get(PREFIX + "fixed_loss_over_mean_target"):
        parts.append(f"loss on fixed clips {short_number(ratio.values[-1])} of that of predicting the mean")
    return f"In {last_step:,} steps: {', '.join(parts)}." if parts else ""


def write_report(
    folder: str | Path,
    history: Sequence[Mapping[str, Any]],
    *,
    title: str,
    settings: Mapping[str, Any],
    warnings: Sequence[HealthWarning] = (),
    start_warnings: Sequence[str] = (),
) -> list[Path]:
    """Write `report.png` and `report.html`. The same numbers give the same bytes.

    Args:
        folder: It is made.
        history: Logged rows, such as `trainer.state.log_history`.
        title: Of both.
        settings: Settings of the run, for the table at the end of the page.
        warnings: Those of `HealthCallback.warnings`.
        start_warnings: Those that the run gave before its first step.

    Returns:
        The picture and the page.

    Raises:
        ValueError: None of the known numbers were logged.
    """
    measures = {rule.name: PREFIX + rule.measure for rule in RULES}
    return write_training_report(
        folder,
        title,
        history,
        PANELS,
        verdict=judge(history, warnings),
        marks=[Mark(measures[w.name], w.name, w.step, w.last_step) for w in warnings],
        tables=[
            Table("Warnings before the first step", [Row([text]) for text in start_warnings]),
            Table("Warnings", [Row([warning.message], f"The rule: {warning.rule}.") for warning in warnings]),
            Table("Measures", _measure_rows(collect_series(history)), ("measure", "first", "last")),
            Table("Settings", [Row([str(name), str(value)]) for name, value in settings.items()]),
        ],
    )


def _measure_rows(series: Mapping[str, Series]) -> list[Row]:
    """The first and last value of each measure of health, with its meaning in words."""
    rows = []
    for entry in fields(HealthMeasurement):
        if found := series.get(PREFIX + entry.name):
            cells = [entry.metadata["label"], short_number(found.values[0]), short_number(found.values[-1])]
            rows.append(Row(cells, entry.metadata["meaning"]))
    return rows
