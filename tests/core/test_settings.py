"""One meaning for each value, from YAML, a command line or Python; errors that name key and remedy."""

import math
import pickle
import re
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, PositiveInt, model_validator

from vjepa_hub.core.settings import (
    PositiveRange,
    Settings,
    SettingsError,
    ShareRange,
    UnknownSettingError,
    nearest,
    read_yaml,
    require_at_least,
    write_yaml,
)


class Square(Settings):
    kind: Literal["square"] = "square"
    side: PositiveInt = 1
    colour: str = "red"


class Circle(Settings):
    kind: Literal["circle"] = "circle"
    radius: float = 1.0
    colour: str = "red"


class Training(Settings):
    seed: int = 0
    steps: PositiveInt = 10


class Videos(Settings):
    seed: int = 0
    size: PositiveInt = 64


Shape = Annotated[Square | Circle, Field(discriminator="kind")]


class Sample(Settings):
    rate: float = 1.0
    limit: float = Field(default=1.0, allow_inf_nan=True)
    count: int = 1
    choice: Literal[1, 3] = 1
    name: Literal["no", "on", "never"] = "never"
    text: str = ""
    optional: float | None = 1.0
    optional_text: str | None = ""
    is_on: bool = False
    pair: PositiveRange = (1.0, 1.0)
    shares: ShareRange = (1.0, 1.0)
    names: tuple[str, ...] = ()
    anything: Any = 0
    facts: dict[str, Any] = Field(default_factory=dict)
    training: Training = Training()
    videos: Videos = Videos()
    shapes: tuple[Shape, ...] = (Square(), Circle())
    shape: Shape | None = None


def from_yaml(field, text):
    return Sample.from_tree(read_yaml(f"{field}: {text}", source="a file"))


def from_assignment(field, text):
    return Sample().with_overrides([f"{field}={text}"])


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("rate", "1e-4", 1e-4),
        ("rate", "3", 3.0),
        ("rate", ".5", 0.5),
        ("limit", "inf", math.inf),
        ("limit", "-.inf", -math.inf),
        ("count", "1e3", 1000),
        ("count", "2.0", 2),
        ("choice", "3", 3),
        ("name", "no", "no"),
        ("name", "on", "on"),
        ("text", "12:30", "12:30"),
        ("text", "010", "010"),
        ("text", "1e-4", "1e-4"),
        ("text", "true", "true"),
        ("text", "none", "none"),
        ("text", "a,b", "a,b"),
        ("optional", "none", None),
        ("optional", "null", None),
        ("optional", "~", None),
        ("optional", "2", 2.0),
        ("optional_text", "none", None),
        ("optional_text", "null", None),
        ("optional_text", "'none'", "none"),
        ("optional_text", '"null"', "null"),
        ("is_on", "true", True),
        ("is_on", "on", True),
        ("is_on", "no", False),
        ("pair", "0.5,1", (0.5, 1.0)),
        ("pair", "[0.5, 1]", (0.5, 1.0)),
        ("pair", "[5e-1, 1e0]", (0.5, 1.0)),
        ("names", "no,on", ("no", "on")),
        ("names", "[no, 12:30, '1e-4']", ("no", "12:30", "1e-4")),
        ("names", "no", ("no",)),
        ("anything", "1e-4", 1e-4),
        ("anything", "10", 10),
        ("anything", "010", "010"),
        ("anything", "no", "no"),
        ("anything", "12:30", "12:30"),
        ("anything", "true", True),
        ("anything", "null", None),
        ("anything", "'10'", "10"),
        ("anything", "[1, no, 2.5]", [1, "no", 2.5]),
        ("facts", "{a: 1, b: {c: no, d: [1e-3, '2']}}", {"a": 1, "b": {"c": "no", "d": [1e-3, "2"]}}),
    ],
)
def test_a_value_means_the_same_in_yaml_on_the_command_line_and_in_python(field, text, value):
    for settings in (from_yaml(field, text), from_assignment(field, text), Sample(**{field: value})):
        found = getattr(settings, field)
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize(
    ("field", "text", "value", "rule"),
    [
        ("rate", "fast", "fast", "must be a number"),
        ("rate", "true", True, "must be a number"),
        ("rate", "none", None, "must be a number"),
        ("rate", "inf", math.inf, "finite"),
        ("count", "1.5", 1.5, "must be an integer"),
        ("count", "true", True, "must be (a number|an integer)"),
        ("count", "none", None, "must be an integer"),
        ("choice", "2", 2, "must be 1 or 3"),
        ("name", "off", "off", "must be 'no', 'on' or 'never'"),
        ("is_on", "maybe", "maybe", "must be true or false"),
        ("pair", "1", (1,), "must have more values"),
        ("pair", "1,2,3", (1, 2, 3), "must have fewer values"),
        ("pair", "2,1", (2, 1), "smaller number first.*twice"),
        ("pair", "0,1", (0, 1), "must be greater than 0"),
        ("pair", "true,2", (True, 2), "must be a number"),
        ("shares", "0.5,1.5", (0.5, 1.5), "must be less than or equal to 1"),
        ("training", "3", 3, "must have keys and values"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_key_and_the_rule(field, text, value, rule):
    makers = (lambda: from_yaml(field, text), lambda: from_assignment(field, text), lambda: Sample(**{field: value}))
    for make in makers:
        with pytest.raises(SettingsError, match=rf"^{field}[.\d]* is .*, but .*{rule}"):
            make()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.steps", 7),
        ("steps", 7),  # only one section has it
        ("shapes.0.side", 3),
        ("shapes.1.radius", 2.5),
        ("facts.source.pages", 12),
    ],
)
def test_keys_with_dots_reach_into_sections_lists_and_mappings(key, value):
    for overrides in ([f"{key}={value}"], {key: value}):
        flat = Sample().with_overrides(overrides).flatten()
        assert flat["training.steps" if key == "steps" else key] == value
        assert {name for name, one in Sample().flatten().items() if flat[name] != one} <= {key, "training.steps"}


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("rat=1", "nearest is 'rate'"),
        ("training.step=1", "training has no 'step'; the nearest is 'steps'"),
        ("shapes.0.sid=1", "shapes.0 has no 'sid'; the nearest is 'side'"),
        ("shapes=[{kind: circle, radus: 1}]", "shapes.0 has no 'radus'; the nearest is 'radius'"),
        ("shape={kind: circle, side: 1}", "shape has no 'side'"),
        ("trainin.steps=1", "nearest is 'training.steps'"),
        ("shapes.2.side=1", "2 entries"),
        ("rate.low=1", "has no 'low'"),
        ("seed=1", "write training.seed or videos.seed"),
    ],
)
def test_an_unknown_or_ambiguous_key_is_answered_with_those_that_there_are(override, remedy):
    with pytest.raises(UnknownSettingError, match=re.escape(remedy)) as caught:
        Sample().with_overrides([override])
    assert isinstance(caught.value, SettingsError)
    assert isinstance(caught.value, KeyError)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("shapes=[{side: 1}]", "shapes.0 has no 'kind'"),
        ("shapes=[{kind: star}]", "shapes.0.kind is 'star', but must be 'square' or 'circle'"),
        ("shapes.1.radius=far", "shapes.1.radius is 'far'"),
        ("shape.side=1", "shape has no 'kind'"),
        ("training.steps=0", "training.steps is '0', but must be greater than 0"),
        ("rate", "write KEY=VALUE"),
        ("=1", "write KEY=VALUE"),
        ("names=[1", "no YAML"),
    ],
)
def test_errors_inside_sections_and_lists_name_the_whole_key(override, message):
    with pytest.raises(SettingsError, match=re.escape(message)):
        Sample().with_overrides([override])


def test_another_kind_keeps_the_fields_that_it_has_too():
    changed = Sample().with_overrides(["shapes.0.side=3", "shapes.0.colour=blue", "shapes.0.kind=circle"])
    assert changed.shapes == (Circle(colour="blue"), Circle())


def test_overrides_are_set_together():
    class Pair(Settings):
        low: int = 1
        high: int = 2

        @model_validator(mode="after")
        def _in_order(self):
            if self.low >= self.high:
                raise ValueError(f"low is {self.low} and high {self.high}; exchange them")
            return self

    assert Pair().with_overrides(["low=5", "high=6"]) == Pair(low=5, high=6)
    with pytest.raises(SettingsError, match=r"low is 5 and high 2; exchange them"):
        Pair().with_overrides(["low=5"])


@pytest.mark.parametrize("text", ["none", "null", "~", "no", "1e-3", "12:30", "010", "true", "", " a ", "[1]", "a: b"])
def test_any_text_is_read_back_from_the_yaml_that_was_written(text):
    settings = Sample(text=text, optional_text=text, anything=text, names=(text,), facts={"a": [text]})
    assert Sample.from_tree(read_yaml(write_yaml(settings.to_tree()), source="a file")) == settings


def test_settings_are_read_back_as_they_were_written():
    settings = Sample(pair=(0.1, 1e9), shape=Circle(radius=1e-7), anything={"a": None, "b": [True, 3, 1e-5]})
    tree = settings.to_tree()
    assert tree["pair"] == [0.1, 1e9]
    assert Sample.from_tree(tree) == settings
    assert Sample.from_tree(read_yaml(write_yaml(tree), source="a file")) == settings
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_settings_do_not_change_but_have_changed_copies():
    settings = Sample(rate=2.0)
    with pytest.raises(ValueError, match="frozen"):
        settings.rate = 3.0
    changed = settings.with_values(count=5, training=Training(steps=3))
    assert (changed.rate, changed.count, changed.training.steps) == (2.0, 5, 3)
    assert changed.changes_from(settings) == {"count": 5, "training.steps": 3}
    with pytest.raises(UnknownSettingError, match="nearest is 'count'"):
        settings.with_values(cont=5)


def test_a_key_that_is_needed_is_named():
    class Grid(Settings):
        num_frames: int

    class Run(Settings):
        grid: Grid

    with pytest.raises(SettingsError, match="the grid has no 'num_frames'"):
        Grid()
    with pytest.raises(SettingsError, match="grid has no 'num_frames'"):
        Run.from_tree({"grid": {}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "'a' stands twice"),
        ("{a: 1", "a file is no YAML"),
        ("a: [1\n", "a file is no YAML"),
        ("a: &a [1]\nb: [*a, *a]", "write the value out"),  # nine lines of these stand for a billion values
    ],
)
def test_yaml_that_says_nothing_clear_is_refused(text, message):
    with pytest.raises(SettingsError, match=message):
        read_yaml(text, source="a file")


def test_a_tree_without_keys_is_refused():
    with pytest.raises(SettingsError, match=r"the sample is .*, but must have keys and values"):
        Sample.from_tree(read_yaml("[1, 2]", source="a file"))


def test_arguments_below_their_least_value_are_named():
    require_at_least(1, frames=1, steps=None)
    with pytest.raises(SettingsError, match=r"steps is 0.*at least 1"):
        require_at_least(1, frames=1, steps=0)
    assert nearest("frame", ["steps", "frames"]) == "frames"
