"""HTML pages of one template: a verdict, figures and tables in a file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from . import style


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A judgement at a glance.

    Attributes:
        word: In colour.
        finding: Its reason.
        progress: A sentence of facts.
        colour: Of `style`.
    """

    word: str
    finding: str
    progress: str
    colour: str


@dataclass(frozen=True)
class PageFigure:
    """A figure (SVG) with its title, and a note on how it is read."""

    title: str
    note: str
    svg: bytes


@dataclass(frozen=True)
class Row:
    """Cells of a table, and a note below the first one."""

    cells: Sequence[str]
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table; one without rows is left out."""

    title: str
    rows: Sequence[Row]
    columns: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """The content of a page, all of it plain text that the template escapes."""

    title: str
    verdict: Verdict | None = None
    figures: Sequence[PageFigure] = ()
    tables: Sequence[Table] = ()


def render_page(page: Page) -> str:
    """The HTML of a page, for screens of any width."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("vjepa_hub.viz")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    return environment.get_template("page.html.jinja").render(page=page, colours=style)
