import base64
import html
import math
import re

import pytest
from PIL import Image

from vjepa_hub.viz.page import Row, Table, Verdict
from vjepa_hub.viz.style import GREEN
from vjepa_hub.viz.training_report import Curve, Mark, Panel, short_number, write_training_report

VERDICT = Verdict(word="Good", finding="no warning", progress="In 2 steps.", colour=GREEN)
LOSS = Panel("Loss", "falls", (Curve("loss", "training", is_noisy=True),))
PROBE = Panel("Probe", "rises", (Curve("probe/(.+)_accuracy"),), top=1.0)
NORM = Panel("Norm", "of gradients", (Curve("norm"),), is_log=True)
MOMENTUM = Panel("Momentum", "rises", (Curve("momentum"),), starts_at_zero=False, reference=1.0)
PANELS = [LOSS, PROBE, NORM, MOMENTUM]


def write(folder, history, **options):
    return write_training_report(folder, "A <run> & more", history, PANELS, verdict=VERDICT, **options)


def panels_of(page: str) -> dict[str, str]:
    """The SVG of each panel by its title; its texts stand there as comments."""
    found = re.findall(r"<figcaption><b>(.*?)</b>.*?base64,([\w+/=]+)", page, re.DOTALL)
    return {html.unescape(title): base64.b64decode(data).decode() for title, data in found}


def texts_of(svg: str) -> list[str]:
    return re.findall(r"<!-- (.*?) -->", svg)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    history = [{"step": step, "loss": 1 / (step + 1), "norm": 1.5, "momentum": 0.9985} for step in range(3)]
    history += [{"step": 2, "probe/motion_accuracy": 0.3, "probe/hand_shape_accuracy": 0.6}]
    tables = [Table("Settings", [Row(["data", "<b>videos</b>"], "a note")]), Table("Empty", [])]
    return write(tmp_path_factory.mktemp("run"), history, marks=[Mark("norm", "jump", 1, 2)], tables=tables)


@pytest.fixture(scope="module")
def page(report) -> str:
    return report[1].read_text(encoding="utf-8")


def test_picture_has_a_panel_for_each_measure_that_was_logged(report, tmp_path):
    pictures = [report[0], write(tmp_path, [{"step": 1, "loss": 0.5}])[0]]
    sizes = []
    for path in pictures:
        with Image.open(path) as image:
            assert image.text == {"Title": "A <run> & more"}
            assert len(image.convert("L").getcolors(256)) > 10
            sizes.append(image.size)
    assert sizes[0][0] == sizes[1][0] > 1500
    assert sizes[0][1] > 1.5 * sizes[1][1]  # four panels are two rows


def test_page_needs_nothing_else_and_fits_a_phone(page):
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 4
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert not re.search(r"https?://|@import|<script|url\(", page)
    assert 'name="viewport"' in page


def test_page_shows_foreign_text_as_text_and_no_empty_table(page):
    assert "<h1>A &lt;run&gt; &amp; more</h1>" in page
    assert "<b>videos</b>" not in page
    assert "&lt;b&gt;videos&lt;/b&gt;" in page
    assert "Empty" not in page
    assert ">Good</strong>: no warning." in page


def test_lines_are_labelled_with_name_and_last_value(page):
    panels = panels_of(page)
    assert list(panels) == ["Loss", "Probe", "Norm", "Momentum"]
    assert "training 0.3333" in texts_of(panels["Loss"])
    assert {"motion 0.3", "hand shape 0.6"} <= set(texts_of(panels["Probe"]))
    assert "0.9985" in texts_of(panels["Momentum"])


def test_marks_stand_in_the_panel_of_their_key(page):
    assert [title for title, svg in panels_of(page).items() if "jump" in texts_of(svg)] == ["Norm"]


def test_same_numbers_give_the_same_bytes(tmp_path):
    first, second = (write(tmp_path / name, [{"step": 1, "loss": 0.5}]) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["report.html", "report.png"]


@pytest.mark.parametrize(
    "history",
    [
        [{"step": 1, "loss": math.nan, "norm": math.inf}, {"step": 2, "loss": 0.5}],
        [{"step": 1, "norm": 0.0, "loss": "none"}],
        [{"step": 1, "norm": 1e-9}, {"step": 2, "norm": 1e9}],
        [{"step": 0, "loss": -1e9}, {"step": 10**7, "loss": 0.0}],
        [{"step": 1, "momentum": 1.0}, {"step": 2, "momentum": 1.0}],
    ],
)
def test_odd_histories_make_a_page(tmp_path, history):
    picture, page = write(tmp_path, history)
    assert picture.stat().st_size > 10_000
    assert len(panels_of(page.read_text())) == 1


def test_long_histories_make_no_larger_page(tmp_path):
    _, page = write(tmp_path, [{"step": step, "loss": math.sin(step)} for step in range(20_000)])
    assert page.stat().st_size < 200_000


def test_history_without_known_numbers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="eval_loss"):
        write(tmp_path, [{"step": 1, "eval_loss": 2.0}])


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (42.123, "42.12"), (1234.5, "1,234"), (0.99875, "0.9988"), (1e9, "1e+09")]
)
def test_numbers_are_short(value, text):
    assert short_number(value) == text
