import math

import pytest

from vjepa_hub.pretraining.schedules import Schedules, half_life, rise


def _schedules(**changes) -> Schedules:
    """The released ViT-L/16 run."""
    settings = {
        "total_steps": 90_000,
        "warmup_steps": 12_000,
        "start_learning_rate": 2e-4,
        "learning_rate": 6.25e-4,
        "final_learning_rate": 1e-6,
        "weight_decay": 0.04,
        "final_weight_decay": 0.4,
        "momentum": 0.998,
        "final_momentum": 1.0,
    }
    return Schedules(**settings | changes)


def test_learning_rate_rises_to_its_peak_and_is_read_one_step_ahead():
    schedules = _schedules()
    assert schedules.learning_rate_at(0) == pytest.approx(2e-4 + (6.25e-4 - 2e-4) / 12_000)
    assert schedules.learning_rate_at(11_999) == pytest.approx(6.25e-4)
    assert schedules.learning_rate_at(12_000) < 6.25e-4


def test_run_ends_at_four_fifths_of_the_stretched_curves():
    schedules = _schedules()
    progress = (90_000 - 12_000) / (112_500 - 12_000)
    expected = 1e-6 + (6.25e-4 - 1e-6) * 0.5 * (1 + math.cos(math.pi * progress))
    assert schedules.learning_rate_at(89_999) == pytest.approx(expected)
    assert schedules.momentum_at(90_000) == pytest.approx(0.998 + 0.002 * 0.8)
    assert schedules.weight_decay_at(89_999) == pytest.approx(0.4 - 0.36 * 0.5 * (1 + math.cos(math.pi * 0.8)))


def test_stretched_steps_are_cut_for_the_cosines_and_not_for_the_momentum():
    schedules = _schedules(total_steps=15, warmup_steps=3)  # 18.75 stretched steps
    assert schedules.stretched_steps == 18
    assert schedules.momentum_at(15) == pytest.approx(0.998 + 0.002 * 15 / 18.75)


@pytest.mark.parametrize("name", ["learning_rate_at", "weight_decay_at", "momentum_at"])
def test_curves_stay_at_their_ends_beyond_the_stretched_steps(name):
    curve = getattr(_schedules(), name)
    assert curve(10**6) == curve(2 * 10**6)


def test_learning_rate_without_warmup_begins_at_its_peak():
    schedules = _schedules(warmup_steps=0)
    assert schedules.learning_rate_at(0) == pytest.approx(6.25e-4, rel=1e-6)


def test_line_of_a_cooldown_is_read_one_step_ahead_and_ends_at_four_fifths():
    schedules = _schedules(total_steps=12_000, warmup_steps=0, learning_rate=5.25e-4, lr_decay="linear")
    assert schedules.learning_rate_at(0) == pytest.approx(5.25e-4 + (1e-6 - 5.25e-4) / 15_000, rel=1e-12)
    assert schedules.learning_rate_at(11_999) == pytest.approx(1.058e-4)  # as released: 1.06e-4


def test_share_rises_between_its_steps_and_at_once_where_they_are_equal():
    assert [rise(step, start=3, end=7) for step in (0, 3, 4, 7, 9)] == [0, 0, 0.25, 1, 1]
    assert [rise(step, start=2, end=2) for step in (0, 1, 2, 3)] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_steps": 0}, "total_steps is 0"),
        ({"stretch": 0.5}, "schedule_stretch is 0.5"),
        ({"warmup_steps": 200_000}, "warmup_steps is 200000"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
    ],
)
def test_impossible_curves_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        _schedules(**changes)


def test_half_life_halves():
    assert 0.998 ** half_life(0.998) == pytest.approx(0.5)
    assert half_life(1.0) == math.inf
    assert half_life(0.0) == 0.0
