"""Figures of images in rows and columns, each row with a name, under a title."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .style import DPI, GREY, INK, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

# In pixels: round the figure, between images, of the three sizes of letters, and of the narrowest text
MARGIN, GAP = 28, 8
TITLE, TEXT, LABEL = 22, 15, 14
NARROWEST = 420
# Width that a letter is given, over its size: an "a" of the font is 0.61 wide
LETTER_WIDTH = 0.64


@dataclass(frozen=True)
class ImageRow:
    """A row of images.

    Attributes:
        name: Short, in bold above the first image.
        note: Beside the name.
        images: uint8 (num_columns, height, width, 3).
    """

    name: str
    note: str
    images: np.ndarray


def evenly_spaced(length: int, count: int) -> list[int]:
    """At most `count` places in a sequence, evenly spread, with the first and (from 2 on) the last among them."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()


def resize_images(images: np.ndarray, size: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
    """Images (num_images, height, width, 3) of a size in pixels, (width, height)."""
    return np.stack([np.asarray(Image.fromarray(image).resize(size, resampling)) for image in images])


@style()
def draw_image_grid(
    rows: Sequence[ImageRow], column_labels: Sequence[str], *, title: str, lines: Sequence[tuple[str, str]]
) -> Figure:
    """Draw rows of images, each pixel of an image as one of the figure.

    Args:
        rows: With images of one size, as many in each row.
        column_labels: Written below the columns.
        title: First line, wrapped where it is too long.
        lines: Text below the title and its colour.
    """
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

    height, width = rows[0].images.shape[1:3]
    body_width = max(len(column_labels) * (width + GAP) - GAP, NARROWEST)
    header = [
        (line, size, colour)
        for text, size, colour in [(title, TITLE, INK), *((text, TEXT, colour) for text, colour in lines)]
        for line in textwrap.wrap(text, int(body_width / (LETTER_WIDTH * size)))
    ]
    top = MARGIN + sum(size + GAP for _, size, _ in header)
    row_height = 2 * GAP + LABEL + GAP + height
    total_width, total_height = body_width + 2 * MARGIN, top + len(rows) * row_height + GAP + LABEL + MARGIN
    figure = Figure(figsize=(total_width / DPI, total_height / DPI))

    def write(text: str, x: float, y: float, size: float, **look: Any) -> Text:
        return figure.text(
            x / total_width, 1 - y / total_height, text, size=size * 72 / DPI, va="center_baseline", **look
        )

    y = MARGIN
    for line, size, colour in header:
        write(line, MARGIN, y + size / 2, size, color=colour)
        y += size + GAP
    for number, row in enumerate(rows):
        y = top + number * row_height + 2 * GAP
        name = write(row.name, MARGIN, y + LABEL / 2, LABEL, weight="bold")
        beside = Annotation(row.note, (1, 0), (6, 0), xycoords=name, textcoords="offset points", va="bottom")
        beside.set(size=LABEL * 72 / DPI, color=GREY)
        figure.add_artist(beside)
        for column, image in enumerate(row.images):
            figure.figimage(image, MARGIN + column * (width + GAP), total_height - y - LABEL - GAP - height)
    for column, label in enumerate(column_labels):
        x = MARGIN + column * (width + GAP) + width / 2
        write(label, x, total_height - MARGIN - LABEL / 2, LABEL, color=GREY, ha="center")
    return figure
