"""The page of a run: what stands on it, and that odd histories do not break it."""

import base64
import math
import re

import matplotlib
import numpy as np
import pytest
from PIL import Image
from transformers import TrainerControl, TrainerState

from vjepa_hub.pretraining.health import HealthMeasurement, diagnose
from vjepa_hub.pretraining.metrics_log import MetricsCSVCallback
from vjepa_hub.pretraining.report import PANELS, _number, _spread_out, judge, write_report


def measured(step: int, **changes: float) -> dict:
    values = {
        "target_std": 0.38 + step / 5000,
        "target_content_std": 0.3,
        "target_effective_rank": 42 + step / 100,
        "token_cosine": 0.7,
        "prediction_norm_ratio": 0.9,
        "encoder_target_distance": 0.1,
        "fixed_loss": 0.4,
        "fixed_loss_over_mean_target": 0.75,
        "fixed_loss_over_nearest_token": 0.98,
    }
    return {"step": step} | HealthMeasurement(**values | changes).to_logs()


def logged(step: int) -> dict:
    return {
        "step": step,
        "epoch": step / 100,
        "loss": 0.41 + math.sin(step) / 50,
        "learning_rate": 6e-4,
        "weight_decay": 0.04,
        "momentum": 0.9985,
        "encoder_grad_norm": 0.5,
        "predictor_grad_norm": 1.5,
    }


HEALTHY = [
    measured(0),
    *(logged(step) for step in range(10, 500, 10)),
    *(measured(step) for step in range(100, 600, 100)),
]
COLLAPSED = HEALTHY + [measured(step, target_effective_rank=5.0, token_cosine=0.999) for step in (600, 700)]
RECOVERED = [*COLLAPSED, measured(800)]
SHORT = [{"step": step, "loss": 1 / (step + 1)} for step in range(3)]  # one panel: quickly drawn


def read_panels(page: str) -> dict[str, str]:
    """The SVG of each panel by its title; its texts stand there as comments."""
    found = re.findall(r"<figcaption><b>(.*?)</b>.*?base64,([\w+/=]+)", page)
    return {title.replace("&#x27;", "'"): base64.b64decode(data).decode() for title, data in found}


def texts(svg: str) -> list[str]:
    return re.findall(r"<!-- (.*?) -->", svg)


@pytest.fixture(scope="module")
def collapsed_report(tmp_path_factory):
    return write_report(
        tmp_path_factory.mktemp("run"),
        history=COLLAPSED,
        title="A <run> & more",
        settings={"learning_rate": 6e-4, "data": "<b>videos</b>"},
    )


@pytest.fixture(scope="module")
def collapsed_page(collapsed_report) -> str:
    return collapsed_report[1].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("history", "word", "finding"),
    [
        (HEALTHY, "Healthy", "no warning"),
        (COLLAPSED, "Collapsed", "collapsed-targets since step 700"),
        (RECOVERED, "Recovered", "collapsed-targets from step 700 to 700"),
        (
            HEALTHY + [measured(s, target_std=0.1, target_content_std=0.1) for s in (600, 700)],
            "Look closer",
            "dying-var",
        ),
        ([logged(10)], "Not measured", "no measure of health"),
    ],
)
def test_verdict_is_that_of_the_warnings(history, word, finding):
    verdict = judge(history, diagnose(history))
    assert verdict.word == word
    assert finding in verdict.finding


def test_verdict_tells_how_the_measures_went():
    assert judge(HEALTHY, []).progress == (
        "In 500 steps the effective rank of the targets went from 42 to 47, their spread went from 0.38 to 0.48 and "
        "the loss on fixed clips came to 0.75 of that of predicting the mean."
    )


def test_picture_is_a_large_png_with_a_panel_for_what_was_logged(collapsed_report, tmp_path):
    sizes = []
    for picture in (collapsed_report[0], write_report(tmp_path, history=SHORT)[0]):
        with Image.open(picture) as image:
            assert image.format == "PNG"
            assert len(image.convert("L").getcolors(256)) > 10
            sizes.append(image.size)
    assert sizes[0][0] == sizes[1][0] > 1500
    assert sizes[0][1] > 2 * sizes[1][1]  # 11 panels are four rows


def test_page_needs_nothing_else_and_fits_a_phone(collapsed_page):
    sources = re.findall(r'(?:src|href)="([^"]*)"', collapsed_page)
    assert sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert not re.search(r"https?://|@import|<script|url\(", collapsed_page)
    assert 'name="viewport"' in collapsed_page


def test_page_shows_panels_that_were_logged_and_no_others(collapsed_page):
    expected = [panel.title for panel in PANELS if panel.title != "Probe accuracy"]
    assert list(read_panels(collapsed_page)) == expected


def test_page_says_verdict_warnings_measures_and_settings(collapsed_page):
    assert (
        ">Collapsed</strong>: shrinking-rank since step 700 and collapsed-targets since step 700." in collapsed_page
        or (
            ">Collapsed</strong>: collapsed-targets since step 700 and shrinking-rank since step 700."
            in collapsed_page
        )
    )
    assert "The rule: the effective rank of the targets is below a quarter of its first value" in collapsed_page
    assert re.search(r"Effective rank of the targets<small>.*?</small></td>.*?>42</td>.*?>5</td>", collapsed_page)
    assert "<td>learning_rate</td>" in collapsed_page


def test_page_shows_foreign_text_as_text(collapsed_page):
    assert "<h1>A &lt;run&gt; &amp; more</h1>" in collapsed_page
    assert "<b>videos</b>" not in collapsed_page
    assert "&lt;b&gt;videos&lt;/b&gt;" in collapsed_page


def test_warnings_are_marked_in_the_panels_that_they_are_about(collapsed_page):
    marked = {title for title, svg in read_panels(collapsed_page).items() if "collapsed-targets" in texts(svg)}
    assert marked == {"Effective rank of the targets"}


def test_lines_are_labelled_with_name_and_last_value(collapsed_page):
    panels = read_panels(collapsed_page)
    assert {"tokens 0.52", "clips 0.3"} <= set(texts(panels["Spread of the targets"]))
    assert "0.9985" in texts(panels["EMA momentum"])


def test_each_task_of_a_probe_is_a_line(tmp_path):
    history = [{"step": 1, "probe/motion_accuracy": 0.3, "probe/hand_shape_accuracy": 0.6}]
    _, page = write_report(tmp_path, history=history)
    labels = texts(read_panels(page.read_text())["Probe accuracy"])
    assert {"motion 0.3", "hand shape 0.6"} <= set(labels)


def test_same_numbers_give_the_same_bytes(tmp_path):
    first, second = (write_report(tmp_path / name, history=SHORT, title="A run") for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["report.html", "report.png"]


def test_report_from_the_metrics_file_is_that_from_the_history(tmp_path):
    state = TrainerState(log_history=SHORT)
    MetricsCSVCallback(tmp_path / "metrics.csv").on_train_begin(None, state, TrainerControl())
    _, from_file = write_report(tmp_path / "a", metrics_path=tmp_path / "metrics.csv", title="A run")
    _, from_history = write_report(tmp_path / "b", history=SHORT, title="A run")
    assert from_file.read_bytes() == from_history.read_bytes()


@pytest.mark.parametrize(
    "history",
    [
        [measured(0)],
        [{"step": 1, "loss": math.nan, "encoder_grad_norm": math.inf}, {"step": 2, "loss": 0.5}],
        [{"step": 1, "encoder_grad_norm": 0.0, "loss": "none"}],
        [{"step": 0, "health/fixed_loss": -1e9}, {"step": 10**7, "health/fixed_loss": 0.0}],
        [{"step": 1, "momentum": 1.0}, {"step": 2, "momentum": 1.0}],
    ],
)
def test_odd_histories_make_a_page(tmp_path, history):
    picture, page = write_report(tmp_path, history=history)
    assert picture.stat().st_size > 10_000
    assert tmp_path.name in page.read_text()


def test_long_histories_make_no_larger_page(tmp_path):
    _, page = write_report(tmp_path, history=[{"step": step, "loss": math.sin(step)} for step in range(20_000)])
    assert page.stat().st_size < 200_000


def test_other_figures_keep_their_look(tmp_path):
    before = dict(matplotlib.rcParams)
    write_report(tmp_path, history=SHORT)
    assert dict(matplotlib.rcParams) == before


def test_labels_that_would_touch_are_moved_apart_and_others_stay():
    assert _spread_out([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert _spread_out([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    heights = _spread_out([0.2, 0.25, 0.3, 0.32, 0.9], 0.1)
    assert min(np.diff(heights)) >= 0.1 - 1e-9


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.4142, "0.414"),
        (42.123, "42.1"),
        (1234.5, "1,234"),
        (6.25e-4, "6.25e-4"),
        (0.99875, "0.9988"),
        (1e9, "1e9"),
    ],
)
def test_numbers_are_short(value, text):
    assert _number(value) == text


def test_a_history_or_a_file_is_needed(tmp_path):
    with pytest.raises(ValueError, match="either history"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="either history"):
        write_report(tmp_path, history=HEALTHY, metrics_path=tmp_path / "metrics.csv")


def test_history_without_known_numbers_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"eval_loss.*give the history of a training run"):
        write_report(tmp_path, history=[{"step": 1, "eval_loss": 2.0}])
