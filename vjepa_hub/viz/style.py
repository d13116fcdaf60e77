"""The look of all figures: colours, font, resolution. matplotlib is imported when a figure is drawn, not before."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

INK, GREY, FAINT, PAPER = "#1c1c1e", "#707076", "#e6e6ea", "#ffffff"
BLUE, TEAL, PLUM, AMBER, RED, GREEN = "#2560a8", "#12857a", "#8a3f86", "#be5c00", "#b3261e", "#2a7d3f"
DPI = 144
FONT = "DejaVu Sans"  # comes with matplotlib

SETTINGS: dict[Any, Any] = {
    "font.family": FONT,
    "font.size": 8,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$x_1$"
    "axes.edgecolor": FAINT,
    "axes.labelcolor": GREY,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.prop_cycle": f"cycler('color', {[BLUE, TEAL, PLUM, AMBER, GREY]})",
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "figure.facecolor": PAPER,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "svg.hashsalt": "vjepa_hub",  # equal figures are equal files
}


@contextmanager
def style() -> Iterator[None]:
    """Settings of matplotlib inside a `with` block or a decorated function; figures outside keep their own."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


@style()
def encode_figure(figure: Figure, kind: str, metadata: Mapping[str, str] | None = None, **options: Any) -> bytes:
    """Content of a picture file; the same for the same figure.

    Args:
        figure: A figure that was made inside `style`. It needs no window and no pyplot.
        kind: "png" or "svg".
        metadata: Text that a PNG carries along.
        options: For `Figure.savefig`.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_fontfamily(fonts_for(text.get_text()))
    unstated: Mapping[str, Any] = {"Software": None} if kind == "png" else {"Creator": None, "Date": None}
    if kind == "png":
        options = {"pil_kwargs": {"compress_level": 3}, **options}  # a third of the time of 6, a tenth larger
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # logged by `fonts_for`
        figure.savefig(file, format=kind, metadata={**unstated, **(metadata or {})}, **options)
    return file.getvalue()


def write_png(figure: Figure, path: str | Path, metadata: Mapping[str, str] | None = None, **options: Any) -> Path:
    """Write a figure as a PNG file, whole or not at all.

    Args:
        figure: As for `encode_figure`.
        path: The file; its folder is made.
        metadata: Text that the file carries along.
        options: For `Figure.savefig`.
    """
    return write_whole(path, encode_figure(figure, "png", metadata, **options))


@cache
def fonts_for(text: str) -> list[str]:
    """Families of installed fonts that have the letters of a text, the one of all figures first.

    Letters that no font has are logged, once for each text.
    """
    from matplotlib.font_manager import FontProperties, findfont, fontManager

    families, missing = [FONT], {letter for letter in text if letter.isprintable()}
    missing -= _letters_of(findfont(FontProperties(family=FONT)))
    for entry in fontManager.ttflist:
        if not missing:
            break
        is_placeholder = entry.name.lstrip(".").startswith("Last")  # Last Resort: a box for every letter
        if not is_placeholder and (found := missing & _letters_of(entry.fname)):
            families.append(entry.name)
            missing -= found
    if missing:
        letters = "".join(sorted(missing))
        logger.warning("no installed font has the letters '%s': install one that does, such as Noto Sans CJK", letters)
    return families


@cache
def _letters_of(font_file: str) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    return frozenset(map(chr, FT2Font(font_file).get_charmap()))
