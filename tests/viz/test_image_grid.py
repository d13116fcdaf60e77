import io

import numpy as np
import pytest
from PIL import Image

from vjepa_hub.viz.image_grid import GAP, LABEL, MARGIN, ImageRow, draw_image_grid, evenly_spaced
from vjepa_hub.viz.style import AMBER, GREY, encode_figure

NOISE = np.random.default_rng(0).integers(0, 255, (2, 3, 40, 300, 3), dtype=np.uint8)  # (rows, columns, H, W, C)


def pixels_of(figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encode_figure(figure, "png"))).convert("RGB"))


def draw(title: str = "title", colour: str = GREY) -> np.ndarray:
    rows = [ImageRow(f"row {number}", "note", images) for number, images in enumerate(NOISE)]
    return pixels_of(draw_image_grid(rows, ["0 s", "1 s", "2 s"], title=title, lines=[("line", colour)]))


def test_each_image_is_in_its_row_and_column_to_the_pixel():
    drawn = draw()
    bottom = len(drawn) - MARGIN - LABEL - GAP
    distance = 40 + LABEL + 3 * GAP
    for row, images in enumerate(NOISE[::-1]):
        for column, image in enumerate(images):
            y, x = bottom - 40 - row * distance, MARGIN + column * (300 + GAP)
            np.testing.assert_array_equal(drawn[y : y + 40, x : x + 300], image)


@pytest.mark.parametrize("title", ["word " * 60, "a" * 300])
def test_long_titles_are_wrapped_inside_the_margins(title):
    drawn = draw(title)
    assert (drawn[:, -MARGIN:] == 255).all()
    assert len(drawn) > len(draw()) + 50


def test_lines_have_their_colour():
    assert (draw(colour=AMBER) == [0xBE, 0x5C, 0x00]).all(-1).any()
    assert not (draw() == [0xBE, 0x5C, 0x00]).all(-1).any()


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (99, list(range(10)))])
def test_places_are_spread_over_the_whole_sequence(count, expected):
    assert evenly_spaced(10, count) == expected
