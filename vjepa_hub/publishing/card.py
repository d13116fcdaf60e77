"""Model cards: README.md with the Hub's metadata, rendered from facts by one template.

A card of ours that nobody changed is made anew each time: its last line has a checksum of the rest. One that a person
wrote or changed keeps its prose and its own metadata, and gets the metadata that it lacks.
"""

import functools
import hashlib
import json
import logging
import re
import reprlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt

from .. import __version__
from ..core.files import write_whole
from ..core.run_files import Result, RunRecord
from ..core.settings import read_yaml
from ..hub.loading import UNTRAINED
from ..hub.registry import EVALUATION_SETS, PAPERS
from ..hub.safety import CONFIG_FILE, read_config
from ..model.configuration_vjepa import VJEPAConfig
from ..model.video_processing_vjepa import VJEPAVideoProcessor
from .facts import EVALUATION_RECORD, CardFacts, CardOptions, RunFolder, find_run, gather_facts
from .machine_paths import shorten_machine_paths
from .model_folder import CARD_FILE

__all__ = ["CardOptions", "check_card", "complete_card", "is_ours", "read_card", "render_card", "write_card"]

logger = logging.getLogger(__name__)

REQUIRED: Mapping[str, str] = {
    "library_name": "transformers",
    "pipeline_tag": "feature-extraction, or video-classification for a classifier",
    "tags": "a list such as [vjepa, video]",
    "license": "the Hub's name of the licence of the weights, such as apache-2.0; without one nobody may use them",
}
"""Metadata that every card needs, with what goes there."""
CLASSIFIER = "VJEPAForVideoClassification"

_TAGS = ("vjepa", "video", "video-feature-extraction", "video-classification", "self-supervised-learning")
_MARK = re.compile(r"<!-- written by vjepa_hub (\S+), sha256 ([0-9a-f]{64}); a changed card is kept -->\n\Z")
# The heading of the empty form that transformers' own push_to_hub puts in the place of a card
_FORM = "# Model Card for Model ID"
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2


# ---------------------------------------------------------------------------------------------------------------------
# From facts
# ---------------------------------------------------------------------------------------------------------------------


def render_card(facts: CardFacts) -> str:
    """The whole text of a card, with metadata before it, and the mark of `is_ours` in its last line."""
    entry = facts.registered
    own_clips = ""
    if entry is not None and entry.bundled_folder is not None:
        processor = VJEPAVideoProcessor.from_pretrained(entry.bundled_folder)
        own_clips = f", num_frames={processor.num_frames}, frame_step={processor.frame_step}"
    body = _template().render(
        facts=facts,
        config=facts.config,
        paper=PAPERS[facts.config.position_embedding],
        evaluation_sets=EVALUATION_SETS,
        refusals={name: found.refusal for name, found in EVALUATION_SETS.items() if found.refusal},
        own_clips=own_clips,
    )
    body = re.sub(r"\n{3,}", "\n\n", body).strip()
    text = shorten_machine_paths(f"---\n{_metadata(facts).to_yaml()}\n---\n\n{body}\n\n")
    return f"{text}<!-- written by vjepa_hub {__version__}, sha256 {_checksum(text)}; a changed card is kept -->\n"


@functools.cache
def _template() -> Any:
    folder = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(loader=folder, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["quoted"] = lambda name: json.dumps(name, ensure_ascii=False)  # paths may hold quotation marks
    environment.filters["counted"] = lambda number: f"{number:,}"
    # Bars and line breaks would end a cell of a table
    environment.filters["cell"] = lambda text: " ".join(str(text).replace("|", "/").split())
    return environment.get_template("model_card.md.jinja")


def _metadata(facts: CardFacts) -> ModelCardData:
    own_tag = "video-classification" if facts.is_classifier else "video-feature-extraction"
    return ModelCardData(
        library_name="transformers",
        # The Hub has no task of its own for features of video
        pipeline_tag="video-classification" if facts.is_classifier else "feature-extraction",
        tags=["vjepa", "video", own_tag, "self-supervised-learning", *facts.tags],
        license=facts.license,
        base_model=facts.base_model,
        datasets=list(facts.datasets) or None,
        model_name=facts.name,
        eval_results=[_to_eval_result(result) for result in facts.results] or None,
    )


def _to_eval_result(result: Result) -> EvalResult:
    about = {"protocol": result.protocol, "source": result.source, "command": result.command}
    return EvalResult(
        task_type=result.task,
        dataset_type=data_set_identifier(result.dataset),
        dataset_name=result.dataset,
        # The Hub's client puts results on one split under one source: a measured number would get the paper as its own
        dataset_split=None if result.source_address else "validation",
        metric_type=result.metric_type,
        metric_name=result.metric,
        metric_value=result.value,
        metric_args={name: value for name, value in about.items() if value},
        source_name=result.source if result.source_address else None,
        source_url=result.source_address,
    )


def data_set_identifier(name: str) -> str:
    """A data set's name in the form of an identifier."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def is_ours(text: str) -> bool:
    """Return whether a card is, to the letter, as this package wrote it."""
    mark = _MARK.search(text)
    return mark is not None and mark.group(2) == _checksum(text[: mark.start()])


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_card(folder: str | Path, name: str) -> Path:
    """Write the card of a run's model beside its weights, unless there is one that a person wrote or changed.

    Args:
        folder: Of the run.
        name: By which the card loads the model.

    Returns:
        The card.
    """
    run = find_run(folder)
    path = run.model / CARD_FILE
    if path.exists() and not is_ours(path.read_text(encoding="utf-8", errors="replace")):
        logger.warning("%s was written or changed by a person, and stays as it is", path)
        return path
    facts = gather_facts(run, name, read_config(run.model / CONFIG_FILE), CardOptions())
    return write_whole(path, render_card(facts))


# ---------------------------------------------------------------------------------------------------------------------
# A card that is there
# ---------------------------------------------------------------------------------------------------------------------


class HubCard(ModelCard):
    """A card with its typed metadata."""

    data: ModelCardData


def read_card(text: str) -> HubCard:
    """A card with its typed metadata, as the Hub's client reads it.

    Raises:
        ValueError: The metadata are no YAML, no mapping, use YAML's references, or have a result without its parts.
    """
    text = re.sub(r"\A---\s*\n---[ \t]*\r?\n", "", text.removeprefix("\ufeff"))  # an empty block states nothing
    block = REGEX_YAML_BLOCK.search(text)
    try:
        if block:
            read_yaml(block[2], source="it")
        return HubCard(text)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"the metadata of the card cannot be read ({str(error)[:500]}); correct the lines between the ---"
        ) from error


def complete_card(existing: str, generated: str) -> str:
    """Bring a card up to date that a person may have edited.

    A card of ours that nobody changed, and the empty form of transformers, are replaced. Of any other the prose stays
    to the letter; a person's metadata win, what they lack is added, and results that this package wrote before are
    replaced by the new ones of the same data set, metric and source.

    Args:
        existing: The card that is there; may be empty.
        generated: The one that was made now.

    Raises:
        ValueError: The metadata of the existing card cannot be read; the message says what to correct.
    """
    if not existing.strip() or is_ours(existing) or _FORM in existing:
        return generated
    theirs, ours = read_card(existing), read_card(generated).data
    before = theirs.data.to_dict()
    new = ours.eval_results or []
    replaced = {_identity(result) for result in new}
    kept = [
        result
        for result in theirs.data.eval_results or []
        if not (_is_of_ours(result) and _identity(result) in replaced)
    ]
    for key, value in ours.__dict__.items():
        if theirs.data.get(key) in (None, "", [], {}):
            theirs.data[key] = value
    theirs.data.eval_results = [*kept, *new] or None
    return existing if theirs.data.to_dict() == before else str(theirs)


def _identity(result: EvalResult) -> tuple[Any, ...]:
    """All that makes two results the same one, but for the value: published and measured ones differ in the source."""
    return result.dataset_name, result.metric_type, result.metric_name, result.source_url


# ---------------------------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------------------------


def python_blocks(text: str) -> list[str]:
    """The Python code blocks of a card, in their order."""
    tokens = MarkdownIt().parse(REGEX_YAML_BLOCK.sub("", text.removeprefix("\ufeff"), count=1))
    fences = [token for token in tokens if token.type == "fence"]
    return [token.content for token in fences if token.info.lower().split()[:1] in (["python"], ["py"])]


def check_card(text: str, config: VJEPAConfig, *, optional: Collection[str] = ()) -> list[str]:
    """The problems of a card; an empty list where there are none. Nothing is run or requested.

    Missing metadata, or such as the Hub's client does not take; a task that the configuration contradicts; untrained
    weights that are not called so; Python blocks that do not compile.

    Args:
        text: The card.
        config: Of the model that it stands beside.
        optional: Metadata of `REQUIRED` that may be missing.
    """
    try:
        data = read_card(text).data
    except ValueError as error:
        return [str(error)]
    return [*_metadata_problems(data, config, optional), *_text_problems(text, config)]


def _metadata_problems(data: ModelCardData, config: VJEPAConfig, optional: Collection[str]) -> Iterator[str]:
    for key, remedy in REQUIRED.items():
        if data.get(key) in (None, "", []) and key not in optional:
            yield f"the metadata have no {key}: add {remedy}"
    for key in ("tags", "datasets"):
        value = data.get(key)
        if value is not None and not all(
            isinstance(entry, str) for entry in ([value] if isinstance(value, str) else value)
        ):
            yield f"{key} is {_SHORT.repr(value)}, but must be a list of texts"
    for key in ("library_name", "pipeline_tag", "license"):
        if not isinstance(data.get(key, ""), str):
            yield f"{key} is {_SHORT.repr(data.get(key))}, but must be a text"
    is_classifier, tag = CLASSIFIER in (config.architectures or ()), data.get("pipeline_tag")
    if config.architectures and is_classifier != (tag == "video-classification") and tag:
        yield (
            f"pipeline_tag is '{tag}', but the model is {' or '.join(config.architectures)}: write "
            f"'{'video-classification' if is_classifier else 'feature-extraction'}'"
        )


def _text_problems(text: str, config: VJEPAConfig) -> Iterator[str]:
    if (config.weights_origin or "").startswith(UNTRAINED) and UNTRAINED not in text.lower():
        yield f"the weights are '{config.weights_origin}', which the card does not say: add a sentence"
    for number, code in enumerate(python_blocks(text), start=1):
        try:
            compile(code, f"Python block {number} of the card", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the latter two: nested too deep
            yield f"Python block {number} does not compile: {error}"


def read_evaluations(folder: Path) -> list[RunRecord]:
    """Records of evaluations that were published with a model."""
    files = sorted(folder.glob(EVALUATION_RECORD.format("*")))
    return [RunRecord.read(file, remedy="publish the model again") for file in files]


def compare_with_facts(text: str, run: RunFolder, config: VJEPAConfig) -> tuple[list[str], str]:
    """Compare a card with the one that its own metadata and the records beside it give.

    Args:
        text: The card; its metadata can be read.
        run: Where the model and its records are.
        config: Of the model.

    Returns:
        Contradictions, and a remark where the text cannot be compared (else empty).
    """
    data = read_card(text).data
    options = CardOptions(
        license=data.license,
        datasets=[data.datasets] if isinstance(data.datasets, str) else data.datasets or (),
        base_model=data.base_model if isinstance(data.base_model, str) else None,
        tags=[tag for tag in data.tags or () if tag not in _TAGS],
    )
    facts = gather_facts(run, data.model_name or run.model.name, config, options, read_evaluations(run.records))
    stated = {_identity(result): result.metric_value for result in data.eval_results or [] if _is_of_ours(result)}
    measured = {_identity(result): result.metric_value for result in map(_to_eval_result, facts.results)}
    problems = [
        f"{dataset}, {metric}: the card says {value}, but the records beside it {measured.get(key, 'nothing')}"
        for key, value in stated.items()
        for dataset, _, metric, _ in [key]
        if measured.get(key) != value
    ]
    if problems or text == render_card(facts):
        return problems, ""
    mark = _MARK.search(text)
    if not is_ours(text) or mark is None:
        return [], "written or changed by a person: the metadata are in order, the prose was not compared"
    if mark.group(1) != __version__:
        return [], f"written by vjepa_hub {mark.group(1)}: not compared with the text of {__version__}"
    return ["the card is not the one that the configuration and the records beside it give: publish again"], ""


def _is_of_ours(result: EvalResult) -> bool:
    return isinstance(result.metric_args, dict) and "protocol" in result.metric_args
