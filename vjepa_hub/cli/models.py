"""`vjepa-hub list`: the models that go by a name, and the local cache."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .common import usage_errors

if TYPE_CHECKING:
    from ..hub.cache import CachedFolder
    from ..hub.registry import ModelEntry


def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")] = False,
) -> None:
    """List the models that go by a name, where their weights are, and what of them is in the local cache."""
    from huggingface_hub import constants

    from ..hub.cache import list_cached
    from ..hub.registry import MODELS, download_address

    with usage_errors():
        entries, cached = list(MODELS.values()), list_cached()
        addresses = [entry.checkpoint and download_address(entry.checkpoint) for entry in entries]
    if as_json:
        rows = [_model_fields(entry, address) for entry, address in zip(entries, addresses, strict=True)]
        folders = [{**vars(folder), "path": str(folder.path)} for folder in cached]
        typer.echo(json.dumps({"models": rows, "cache": constants.HF_HUB_CACHE, "cached": folders}, indent=2))
        return
    console = Console()
    console.print(_model_table(entries, addresses))
    console.print()
    if cached:
        console.print(_cache_table(cached))
    where = f"cache: {constants.HF_HUB_CACHE}" + ("" if cached else " (no model of the family)")
    console.print(Text(where, style="dim", overflow="fold"))


def _model_fields(entry: ModelEntry, address: str | None) -> dict:
    from ..hub.loading import find_cached

    cached = find_cached(entry.name)
    return {
        "name": entry.name,
        "description": entry.description,
        "license": entry.license,
        "num_parameters": _num_parameters(entry),
        "checkpoint": address,
        "probes": list(entry.probes),
        "cached": None if cached is None else str(cached),
        "bundled": None if entry.bundled_folder is None else str(entry.bundled_folder),
    }


def _num_parameters(entry: ModelEntry) -> int:
    """Of encoder and predictor, with their position tables."""
    from ..hub.safety import count_elements

    counts = count_elements(entry.config())
    return counts["encoder"] + counts["predictor"]


def _model_table(entries: list[ModelEntry], addresses: list[str | None]) -> Table:
    """A row for each model; the address of its released file and its probes under the description."""
    table = Table("model", "what it is", "size", "licence", "weights", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for entry, address in zip(entries, addresses, strict=True):
        about = Text(entry.description, overflow="fold")
        about.append("" if address is None else f"\n{address}", style="dim")
        about.append(f"\nprobes: {', '.join(entry.probes)}" if entry.probes else "", style="dim")
        weights = "download" if entry.bundled_folder is None else "bundled"
        table.add_row(Text(entry.name, style="bold", no_wrap=True), about, _millions(entry), entry.license, weights)
    return table


def _millions(entry: ModelEntry) -> str:
    return f"{_num_parameters(entry) / 1e6:.3g} M"


def _cache_table(cached: list[CachedFolder]) -> Table:
    table = Table("in the cache", "state", "size", "path", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.columns[2].justify = "right"
    for folder in cached:
        size = f"{folder.num_bytes / 1e6:,.1f} MB"
        table.add_row(Text(folder.name, no_wrap=True), folder.state, size, Text(str(folder.path), overflow="fold"))
    return table
