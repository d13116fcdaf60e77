import io
import logging

import matplotlib
import matplotlib.figure
import numpy as np
import pytest
from matplotlib import ft2font
from matplotlib.font_manager import FontProperties, findfont, fontManager
from PIL import Image

from vjepa_hub.viz.style import AMBER, FONT, encode_figure, fonts_for, style, write_png


def figure_of(text: str, family: list[str] | None = None) -> matplotlib.figure.Figure:
    with style():
        figure = matplotlib.figure.Figure(figsize=(2, 1))
        figure.text(0.1, 0.5, text, size=20, color=AMBER)
    return figure


def test_figures_of_others_keep_their_settings_and_change_none_of_ours():
    plain = encode_figure(figure_of("a"), "png")
    with matplotlib.rc_context({"font.size": 30, "savefig.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        assert encode_figure(figure_of("a"), "png") == plain
        assert dict(matplotlib.rcParams) == before


def test_equal_figures_are_equal_files():
    for kind in ("png", "svg"):
        assert encode_figure(figure_of("a"), kind) == encode_figure(figure_of("a"), kind)


def test_png_carries_metadata_and_colours(tmp_path):
    path = write_png(figure_of("a"), tmp_path / "new" / "a.png", {"model": "größe 日本"})
    with Image.open(path) as image:
        assert image.text == {"model": "größe 日本"}
        assert (np.asarray(image.convert("RGB")) == [0xBE, 0x5C, 0x00]).all(-1).any()


def test_dollar_signs_are_text_and_no_formula():
    assert b"<!-- $x_1$ -->" in encode_figure(figure_of("$x_1$"), "svg")


@pytest.fixture
def only_fonts(monkeypatch):
    """Leaves of the installed fonts those of some families."""

    def leave(*families: str) -> None:
        kept = [entry for entry in fontManager.ttflist if entry.name in families]
        monkeypatch.setattr(fontManager, "ttflist", kept)

    fonts_for.cache_clear()
    yield leave
    fonts_for.cache_clear()


def test_letters_that_the_font_lacks_come_from_an_installed_one(only_fonts, caplog):
    only_fonts(FONT, "STIXGeneral")
    letter = next(chr(c) for c in letters_of("STIXGeneral") - letters_of(FONT) if chr(c).isprintable())
    assert fonts_for(f"word {letter}") == [FONT, "STIXGeneral"]
    encode_figure(figure_of(letter), "png")
    assert caplog.text == ""


def letters_of(family: str) -> set[int]:
    return set(ft2font.FT2Font(findfont(FontProperties(family=family))).get_charmap())


def test_letters_without_any_font_are_named_with_the_remedy_and_stop_nothing(only_fonts, caplog):
    only_fonts(FONT, "Last Resort High-Efficiency")
    with caplog.at_level(logging.WARNING, logger="vjepa_hub"):
        image = Image.open(io.BytesIO(encode_figure(figure_of("a 日本"), "png")))
    assert image.size == (288, 144)
    assert "日本" in caplog.text
    assert "install" in caplog.text
