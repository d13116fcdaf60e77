"""The metadata of a card: the YAML block before its text, read, and merged into one that a person wrote."""

import copy
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from huggingface_hub.utils import yaml_dump

from .card_text import is_ours

MODEL_INDEX = "model-index"
# As huggingface_hub finds the block; here a byte order mark may precede it, and nothing may be in it
_BLOCK = re.compile(r"\A(\ufeff?\s*---(?:\r\n|\r|\n))([\s\S]*?)((?:\r\n|\r|\n|(?<=[\r\n]))---[ \t]*(?:\r\n|\n|\Z))")
_KEY = re.compile(r"^(?:\"[^\"]+\"|'[^']+'|[A-Za-z_][\w.-]*)\s*:(?:\s|$)")
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2


@dataclass(frozen=True)
class SplitCard:
    """A card in its parts; joined, they are the card to the letter.

    Attributes:
        opening: What stands before the metadata; empty where there are none.
        metadata: The YAML text.
        closing: The line that ends it.
        prose: The rest.
    """

    opening: str
    metadata: str
    closing: str
    prose: str


def split_card(text: str) -> SplitCard:
    """The parts of a card."""
    match = _BLOCK.match(text)
    if match is None:
        return SplitCard("", "", "", text)
    return SplitCard(match[1], match[2], match[3], text[match.end() :])


def read_metadata(text: str) -> dict[str, Any]:
    """The metadata of a card; empty where it has none.

    Raises:
        ValueError: The block is no YAML, or no mapping.
    """
    try:
        found = yaml.safe_load(split_card(text).metadata)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2024-02-30
        raise ValueError(
            f"the metadata of the card are no YAML ({error}); correct the lines between the ---"
        ) from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ValueError(
            f"the metadata of the card are {in_short(found)}, but must be lines of the form key: value; correct "
            "those between the ---, or put an empty line and no --- at the beginning of the card"
        )
    return found


def in_short(value: Any) -> str:
    """A value as Python writes it, cut off: a few lines of YAML can stand for a text without an end."""
    return _SHORT.repr(value)


def metadata_block(metadata: Mapping[str, Any]) -> str:
    """A block of metadata with its two lines of dashes.

    Args:
        metadata: Values of None are left out.
    """
    return f"---\n{_dump({key: value for key, value in metadata.items() if value is not None})}---\n"


def merge_card(existing: str, generated: str) -> str:
    """Bring a card that a person may have edited up to date.

    A card of ours that nobody changed is replaced. Of any other the prose stays to the letter, and the metadata get
    what they lack: a person's values win, and results in `model-index` that this package wrote before are replaced by
    the new ones of the same model, data set, metric and source.

    Args:
        existing: The card that is there.
        generated: The one that was made now.

    Raises:
        ValueError: The metadata of the existing card cannot be read; the message says what to correct.
    """
    if not existing.strip() or is_ours(existing):
        return generated
    theirs, ours = read_metadata(existing), read_metadata(generated)
    changed = {key: value for key, value in ours.items() if theirs.get(key) in (None, "", [], {})}
    if MODEL_INDEX in ours and MODEL_INDEX not in changed:
        merged = merge_model_index(theirs[MODEL_INDEX], ours[MODEL_INDEX])
        if merged != theirs[MODEL_INDEX]:
            changed[MODEL_INDEX] = merged
    return _with_metadata(existing, theirs, changed) if changed else existing


def merge_model_index(theirs: Any, ours: list[dict[str, Any]]) -> Any:
    """Replace what this package wrote before by what it has now, and keep the rest.

    Args:
        theirs: Of the existing card. What has not the form of a model-index stays as it is.
        ours: The new one.
    """
    if not _is_model_index(theirs):
        return theirs
    merged = copy.deepcopy(theirs)
    for model in ours:
        replaced = {_identity(result, metric) for result in model["results"] for metric in result["metrics"]}
        named = [entry for entry in merged if entry["name"] == model["name"]]
        for entry in named:
            entry["results"] = _without(entry["results"], replaced)
        target = named[-1] if named else {"name": model["name"], "results": []}
        target["results"] += copy.deepcopy(model["results"])
        if not named:
            merged.append(target)
    return merged


def _without(results: list[dict[str, Any]], replaced: set[tuple]) -> list[dict[str, Any]]:
    def is_kept(result: dict[str, Any], metric: dict[str, Any]) -> bool:
        return not (_is_written_by_us(metric) and _identity(result, metric) in replaced)

    kept = []
    for result in results:
        metrics = [metric for metric in result["metrics"] if is_kept(result, metric)]
        if metrics or not result["metrics"]:
            kept.append({**result, "metrics": metrics})
    return kept


def _is_written_by_us(metric: dict[str, Any]) -> bool:
    return isinstance(metric.get("args"), dict) and "protocol" in metric["args"]


def _identity(result: dict[str, Any], metric: dict[str, Any]) -> tuple[str, ...]:
    """What makes two results the same one, but for its value: a published and a measured one differ in the source."""
    source = result.get("source")
    address = source.get("url") if isinstance(source, dict) else None
    return tuple(map(str, (result["dataset"].get("name"), metric.get("type"), metric.get("name"), address)))


def _is_model_index(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(model, dict)
        and isinstance(model.get("name"), str)
        and isinstance(model.get("results"), list)
        and all(_is_result(result) for result in model["results"])
        for model in value
    )


def _is_result(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("dataset"), dict)
        and isinstance(value.get("metrics"), list)
        and all(isinstance(metric, dict) for metric in value["metrics"])
    )


def _with_metadata(text: str, old: dict[str, Any], changed: dict[str, Any]) -> str:
    """The card with other values of some keys; every other line of it stays as it was written, comments too."""
    parts = split_card(text)
    if not parts.opening:
        mark = "\ufeff" if text.startswith("\ufeff") else ""
        return f"{mark}{metadata_block(changed)}\n{text.removeprefix(mark)}"
    newline = "\r\n" if parts.opening.endswith("\r\n") else "\n"
    metadata = _with_chunks(parts.metadata, changed, newline)
    if not _says(metadata, old | changed):  # it is written in a form that lines do not show, such as {a: 1}
        metadata = _dump(old | changed).replace("\n", newline).removesuffix(newline)
    line_end = "" if parts.closing.startswith(("\r", "\n")) else newline
    return f"{parts.opening}{metadata}{line_end}{parts.closing}{parts.prose}"


def _says(metadata: str, expected: dict[str, Any]) -> bool:
    try:
        return yaml.safe_load(metadata) == expected
    except yaml.YAMLError:
        return False


def _with_chunks(metadata: str, changed: dict[str, Any], newline: str) -> str:
    """The YAML text with the lines of some keys replaced, and those of new keys appended."""
    lines = metadata.splitlines(keepends=True)
    for key, value in changed.items():
        start, end = _lines_of(key, lines)
        if lines and not lines[-1].endswith(("\n", "\r")):
            lines[-1] += newline
        lines[start:end] = _dump({key: value}).replace("\n", newline).splitlines(keepends=True)
    return "".join(lines).removesuffix(newline)


def _lines_of(key: str, lines: list[str]) -> tuple[int, int]:
    """Where a key and its value stand; the end of the lines for one that is not there."""
    starts = [number for number, line in enumerate(lines) if _KEY.match(line)]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=False):
        if lines[start].split(":")[0].strip().strip("\"'") != key:
            continue
        while end > start + 1 and lines[end - 1].startswith(("#", "\n", "\r")):
            end -= 1  # a comment between two keys belongs to the one below
        return start, end
    return len(lines), len(lines)


def _dump(values: Mapping[str, Any]) -> str:
    return yaml_dump(dict(values), sort_keys=False)
