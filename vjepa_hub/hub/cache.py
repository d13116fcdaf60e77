"""The family's part of huggingface_hub's cache: converted models, their downloads, and Hub repositories."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from ..model.configuration_vjepa import VJEPAConfig
from .download import INCOMPLETE_SUFFIX
from .loading import CACHE_ACCOUNT, find_cached
from .registry import MODELS


@dataclass(frozen=True)
class CachedFolder:
    """A model in the cache, or a download for one.

    Attributes:
        name: A registry name (with its probe's data set, for a classifier), or a Hub name (`owner/name`).
        state: "converted", "converted by another version", "from the Hub", "download kept" or "download unfinished".
        path: The folder, for `from_pretrained`; of a download the file.
        num_bytes: Size on disk.
    """

    name: str
    state: str
    path: Path
    num_bytes: int


def list_cached() -> list[CachedFolder]:
    """The models of the family in huggingface_hub's cache, by name; only their configurations are read."""
    current = {
        path
        for entry in MODELS.values()
        for probe in (None, *entry.probes)
        if (path := find_cached(entry.name, probe))
    }
    found: list[CachedFolder] = []
    ours = f"{CACHE_ACCOUNT}/"
    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*")):
        name = folder.name.removeprefix("models--").replace("--", "/")
        is_converted = name.startswith(ours)
        for snapshot in sorted(path for path in folder.glob("snapshots/*") if _is_of_the_family(path)):
            converted = "converted" if snapshot in current else "converted by another version"
            state = converted if is_converted else "from the Hub"
            found.append(CachedFolder(name.removeprefix(ours), state, snapshot, _num_bytes(snapshot)))
        if is_converted:
            found += _downloads(name.removeprefix(ours), folder)
    return found


def _downloads(name: str, folder: Path) -> Iterator[CachedFolder]:
    for file in sorted([*folder.glob("kept/*"), *folder.glob("blobs/*")]):
        is_unfinished = file.parent.name == "blobs" or file.name.endswith(INCOMPLETE_SUFFIX)
        yield CachedFolder(name, f"download {'unfinished' if is_unfinished else 'kept'}", file, file.stat().st_size)


def _is_of_the_family(snapshot: Path) -> bool:
    """Return whether its configuration says so; a folder without a readable one is no model of ours."""
    try:
        fields = json.loads((snapshot / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(fields, dict) and fields.get("model_type") == VJEPAConfig.model_type


def _num_bytes(folder: Path) -> int:
    """The files of a folder; the Hub's are links to blobs, which are counted in their place."""
    files = (Path(root, name) for root, _, names in os.walk(folder) for name in names)
    return sum(file.stat().st_size for file in files if file.exists())
