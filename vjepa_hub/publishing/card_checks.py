"""What is wrong with a card, in words, before anybody else reads it."""

import re
import textwrap
from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import ModelCardData

from ..hub.loading import UNTRAINED
from ..model.configuration_vjepa import VJEPAConfig
from .card_metadata import in_short, read_metadata, split_card
from .card_text import architecture_facts, features_shape

REQUIRED: Mapping[str, str] = {
    "library_name": "transformers",
    "pipeline_tag": "feature-extraction, or video-classification for a classifier",
    "tags": "a list such as [vjepa, video]",
    "license": "the Hub's name of the licence of the weights, such as apache-2.0; without one nobody may use them",
}
"""Metadata that every card needs, with what goes there."""
CLASSIFIER = "VJEPAForVideoClassification"

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})\s*([^`]*)$")
_INLINE_CODE = re.compile(r"`[^`\n]+`")
_LINK = re.compile(
    r"\]\(\s*<?([^)\s>]+)"  # [text](link)
    r"|^\[[^\]\n]{1,300}\]:\s*(\S+)"  # [text]: link
    r"|<(?:img|a)\s[^>]{0,300}?(?:src|href)=[\"']([^\"']+)",
    re.MULTILINE,
)
_ROW = re.compile(r"^\|([^|\n]+)\|([^|\n]+)\|[ \t]*$", re.MULTILINE)
_SHAPE = re.compile(r"last_hidden_state\s+# (\(1, \d+, \d+\))")


def python_blocks(text: str) -> list[str]:
    """The Python code blocks of a card, in their order."""
    _, blocks = _separate_code(text)
    return [textwrap.dedent(code) for language, code in blocks if language.lower() in ("python", "py")]


def _separate_code(text: str) -> tuple[str, list[tuple[str, str]]]:
    """The text without its fenced blocks, and these: language and code. A fence that is not closed holds the rest.

    Line by line and not by one expression, which a card can be made to keep busy for hours.
    """
    prose, blocks = [], []
    fence, language, code = "", "", list[str]()
    for line in text.splitlines():
        found = _FENCE.match(line)
        if fence and found and found[1].startswith(fence) and not found[2]:
            blocks.append((language, "\n".join([*code, ""])))
            fence = ""
        elif fence:
            code.append(line)
        elif found:
            fence, language, code = found[1], found[2].partition(" ")[0].strip(), []
        else:
            prose.append(line)
    return "\n".join(prose), blocks + ([(language, "\n".join(code))] if fence else [])


def check_card(
    text: str, config: VJEPAConfig, *, files: Collection[str] = (), optional: Collection[str] = ()
) -> list[str]:
    """The problems of a card; an empty list where there are none.

    Missing metadata, or such as the Hub's client does not take; statements that the configuration contradicts; links
    to files that are not in the repository; Python blocks that do not compile. Nothing is run or requested.

    Args:
        text: The card.
        config: Of the model that it stands beside.
        files: Paths of the repository's files, which links may lead to.
        optional: Metadata of `REQUIRED` that may be missing.
    """
    return [
        *_metadata_problems(text, config, optional),
        *_contradictions(text, config),
        *_dead_links(text, files),
        *_code_problems(text),
    ]


def _metadata_problems(text: str, config: VJEPAConfig, optional: Collection[str]) -> Iterator[str]:
    try:
        metadata = read_metadata(text)
        ModelCardData(**metadata)
    except (ValueError, TypeError) as error:
        yield str(error)  # what is read may be a stranger's: values are quoted in short
        return
    for key, remedy in REQUIRED.items():
        if metadata.get(key) in (None, "", []) and key not in optional:
            yield f"the metadata have no {key}: add {remedy}"
    yield from _wrong_types(metadata)
    is_classifier, tag = CLASSIFIER in (config.architectures or ()), metadata.get("pipeline_tag")
    if config.architectures and is_classifier != (tag == "video-classification") and tag:
        yield (
            f"pipeline_tag is '{tag}', but the model is {' or '.join(config.architectures)}: write "
            f"'{'video-classification' if is_classifier else 'feature-extraction'}'"
        )


def _wrong_types(metadata: Mapping[str, Any]) -> Iterator[str]:
    for key in ("tags", "datasets"):
        value = metadata.get(key)
        values = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(entry, str) for entry in values):
            yield f"{key} is {in_short(value)}, but must be a list of texts"
    for key in ("library_name", "pipeline_tag", "license"):
        value = metadata.get(key)
        if value is not None and not isinstance(value, str):
            yield f"{key} is {in_short(value)}, but must be a text"


def _contradictions(text: str, config: VJEPAConfig) -> Iterator[str]:
    prose = split_card(text).prose
    is_classifier = CLASSIFIER in (config.architectures or ())
    expected = architecture_facts(config, is_classifier=is_classifier)
    for name, value in (map(str.strip, row) for row in _ROW.findall(prose)):
        if name in expected and value != expected[name]:
            yield f"the card says '{name}: {value}', but the configuration says '{expected[name]}'"
    for shape in sorted(set(_SHAPE.findall(prose)) - {features_shape(config)}):
        yield f"the card says that features are {shape}, but by the configuration they are {features_shape(config)}"
    if (config.weights_origin or "").startswith(UNTRAINED) and UNTRAINED not in prose.lower():
        yield f"the weights are '{config.weights_origin}', which the card does not say: add a sentence"


def _dead_links(text: str, files: Collection[str]) -> Iterator[str]:
    known = {str(PurePosixPath(file)) for file in files}
    folders = {str(parent) for file in known for parent in PurePosixPath(file).parents} - {"."}
    prose = _INLINE_CODE.sub("", _separate_code(split_card(text).prose)[0])
    for found in _LINK.findall(prose):
        link = next(filter(None, found))
        address = urlsplit(link)
        if address.scheme or address.netloc or not address.path:
            continue  # of the web, or within the page
        path = str(PurePosixPath(unquote(address.path)))
        if path not in known | folders:
            yield f"the link '{link}' leads to no file of the repository: publish that file too, or take the link away"


def _code_problems(text: str) -> Iterator[str]:
    for number, code in enumerate(python_blocks(split_card(text).prose), start=1):
        try:
            compile(code, f"Python block {number} of the card", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the latter two: nested too deep
            yield f"Python block {number} does not compile: {error}"
