import math
import re

import pytest

from tests.viz.test_training_report import panels_of, texts_of
from vjepa_hub.pretraining.health import HealthMeasurement, diagnose
from vjepa_hub.pretraining.report import PANELS, SHORTEST_JUDGED, judge, write_report


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
IN_VAIN = HEALTHY + [measured(step, fixed_loss_over_mean_target=1.35) for step in (600, 700)]
DYING = HEALTHY + [measured(step, target_std=0.1, target_content_std=0.1) for step in (600, 700)]
SHRINKING = [(0, {}), (10, {"target_effective_rank": 15.0}), (20, {"target_effective_rank": 15.0})]
NOT_FINITE = [measured(0), measured(10, fixed_loss=math.nan)]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    _, page = write_report(
        tmp_path_factory.mktemp("run"),
        COLLAPSED,
        title="A run",
        settings={"learning_rate": 6e-4},
        warnings=diagnose(COLLAPSED),
        start_warnings=["the half-life is too long"],
    )
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("history", "word", "finding"),
    [
        (HEALTHY, "Healthy", "no warning"),
        (COLLAPSED, "Collapsed", "collapsed-targets since step 700"),
        (RECOVERED, "Recovered", "collapsed-targets from step 700 to 700"),
        (DYING, "Look closer", "dying-variance"),
        (IN_VAIN, "Nothing learned yet", "1.35 times"),
        ([measured(0), measured(20)], "Too short to tell", f"20 steps, and a verdict needs {SHORTEST_JUDGED}"),
        ([measured(step, **rank) for step, rank in SHRINKING], "Too short to tell", "shrinking-rank since step 20"),
        (NOT_FINITE, "Not finite", "since step 10"),
        ([logged(10)], "Not measured", "no measure of health"),
    ],
)
def test_verdict_is_that_of_warnings_length_and_loss(history, word, finding):
    verdict = judge(history, diagnose(history, warmup_steps=10_000 if history is IN_VAIN else 0))
    assert verdict.word == word
    assert finding in verdict.finding


def test_verdict_tells_how_the_measures_went():
    progress = judge(HEALTHY, []).progress
    for words in ("500 steps", "rank of the targets 42 to 47", "spread 0.38 to 0.48", "0.75 of"):
        assert words in progress


def test_page_has_verdict_warnings_measures_and_settings(page):
    assert ">Collapsed</strong>: collapsed-targets since step 700" in page
    assert "The rule: the effective rank of the targets is below a quarter of its first value" in page
    assert re.search(r"Effective rank of the targets<small>.*?</small></td><td>42</td><td>5</td>", page)
    assert "the half-life is too long" in page[page.index("Warnings before the first step") :]
    assert "<td>learning_rate</td><td>0.0006</td>" in page


def test_page_shows_panels_that_were_logged_and_no_others(page):
    assert list(panels_of(page)) == [panel.title for panel in PANELS if panel.title != "Probe accuracy"]


def test_warnings_are_marked_in_the_panels_that_they_are_about(page):
    marked = {title for title, svg in panels_of(page).items() if "collapsed-targets" in texts_of(svg)}
    assert marked == {"Effective rank of the targets"}
