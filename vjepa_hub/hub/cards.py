"""Model cards: README.md with the Hub's metadata, made from facts by one template.

The cards of the registry's models lie in `model_cards/` of a checkout. They are made by

    python -m vjepa_hub.hub.cards            # writes them
    python -m vjepa_hub.hub.cards --check    # exits with 1 where one differs from what would be written
"""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..model.configuration_vjepa import VJEPAConfig
from .card_checks import check_card
from .card_metadata import MODEL_INDEX, merge_card, metadata_block
from .card_text import (
    BY_FEATURE_PREDICTION,
    CITATION,
    CLASSIFIER_LIMITS,
    CLASSIFIER_USE,
    FEATURES_LIMITS,
    FEATURES_USE,
    NOT_INTENDED,
    architecture_facts,
    classifier_usage,
    fact_table,
    features_usage,
    is_ours,
    license_section,
    registered_usage,
    table_row,
    with_mark,
)
from .class_names import UNCERTAIN
from .loading import UNTRAINED
from .registry import EVALUATION_SETS, MODELS, PAPER, ModelEntry, find_model

__all__ = [
    "CardFacts",
    "CardResult",
    "check_card",
    "is_ours",
    "merge_card",
    "registered_facts",
    "render_card",
]

Kind = Literal["features", "pretraining", "classifier", "probe"]
CARDS_FOLDER = "model_cards"
PUBLISHED = "published by the authors, not measured here"

_KINDS: Mapping[str, str] = {
    "features": f"A video encoder, trained {BY_FEATURE_PREDICTION}. The weights are those of the EMA target encoder, "
    "which the paper evaluates, with the predictor.",
    "pretraining": f"A video encoder, trained {BY_FEATURE_PREDICTION}. The weights are those of the EMA target "
    "encoder, with the predictor.",
    "classifier": f"A video classifier: an encoder that was trained {BY_FEATURE_PREDICTION}, fine-tuned with an "
    "attentive pooler and a linear classifier.",
    "probe": f"A video classifier: a frozen encoder that was trained {BY_FEATURE_PREDICTION}, with an attentive probe "
    "(one cross-attention block and a linear classifier) trained on its features.",
}


@dataclass(frozen=True, kw_only=True)
class CardResult:
    """A result that a card states.

    Attributes:
        task: The Hub's name of the task, such as "video-classification".
        dataset: Name of the data set.
        metric: Name of the metric, such as "top-1 accuracy (%)".
        value: Its value, in the unit that the metric's name says.
        protocol: How it was evaluated, in words.
        source: Who says so, such as "measured by vjepa-hub probe".
        source_address: Where it stands; None for one's own measurement.
        command: The command that repeats it.
        metric_type: The Hub's name of the metric.
    """

    task: str
    dataset: str
    metric: str
    value: float
    protocol: str
    source: str
    source_address: str | None = None
    command: str | None = None
    metric_type: str = "accuracy"

    def to_metadata(self) -> dict[str, Any]:
        """An entry of `model-index`.

        It is written here and not by huggingface_hub's `EvalResult`, which puts results on one data set together
        under the source of the first, so that a measured number would get the paper as its source.
        """
        about = {"protocol": self.protocol, "source": self.source}
        metric = {"type": self.metric_type, "name": self.metric, "value": self.value}
        entry: dict[str, Any] = {
            "task": {"type": self.task},
            "dataset": {"name": self.dataset, "type": _slug(self.dataset)},
            "metrics": [metric | {"args": about | ({"command": self.command} if self.command else {})}],
        }
        if self.source_address is not None:
            entry["source"] = {"name": self.source, "url": self.source_address}
        return entry


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card is made from.

    Attributes:
        name: What the model is loaded by: a name of the registry, a folder, or `owner/name` on the Hub.
        kind: What is published; "probe" is a classifier whose encoder was frozen.
        config: Of the model. Its `weights_origin` is told, and an untrained model is called so.
        license: The Hub's name of the licence of the weights; None where it is not known.
        base_model: What it was made from, `owner/name` on the Hub; None where there is none there.
        datasets: What it was trained on, as the metadata name it.
        results: To be stated, in `model-index` too.
        training: Facts of the training, as text.
        limits: What it should not be trusted with; empty for what holds for each model of its kind.
        class_names_note: Why the labels of a classifier are LABEL_0, LABEL_1, ...; None where they have names.
        title: The heading; empty for the name.
        recipe: Name of the bundled recipe that repeats the pretraining; None where there is none.
        sections: More sections, by their headings, after the results.
        tags: More tags.
    """

    name: str
    kind: Kind
    config: VJEPAConfig
    license: str | None = None
    base_model: str | None = None
    datasets: tuple[str, ...] = ()
    results: tuple[CardResult, ...] = ()
    training: Mapping[str, str] = field(default_factory=dict)
    limits: str = ""
    class_names_note: str | None = None
    title: str = ""
    recipe: str | None = None
    sections: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind is '{self.kind}', but must be one of {', '.join(_KINDS)}")
        if "\n" in self.name or not self.name.strip():
            raise ValueError(f"name is {self.name!r}, but must be one line: a folder, or owner/name on the Hub")

    @property
    def is_classifier(self) -> bool:
        """Whether there is a classifier in place of the predictor."""
        return self.kind in ("classifier", "probe")

    @property
    def is_untrained(self) -> bool:
        """Whether no training has touched the weights."""
        return (self.config.weights_origin or "").startswith(UNTRAINED)


def _slug(name: str) -> str:
    """A data set's name in the form of an identifier."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def render_card(facts: CardFacts) -> str:
    """The whole text of a card, with metadata before it, and the mark of `is_ours` in its last line."""
    parts = [f"# {facts.title or facts.name}", *_summary(facts)]
    for heading, section in _sections(facts):
        parts += [f"## {heading}", section]
    text = "\n\n".join(parts)
    return with_mark(f"{metadata_block(_metadata(facts))}\n{text}\n\n")


def _metadata(facts: CardFacts) -> dict[str, Any]:
    kind_tags = ["video-classification"] if facts.is_classifier else ["video-feature-extraction"]
    index = [{"name": facts.name, "results": [result.to_metadata() for result in facts.results]}]
    return {
        "library_name": "transformers",
        # the Hub has no task of its own for features of video
        "pipeline_tag": "video-classification" if facts.is_classifier else "feature-extraction",
        "tags": ["vjepa", "video", *kind_tags, "self-supervised-learning", *facts.tags],
        "license": facts.license,
        "base_model": facts.base_model,
        "datasets": list(facts.datasets) or None,
        MODEL_INDEX: index if facts.results else None,
    }


def _summary(facts: CardFacts) -> Iterator[str]:
    if facts.is_untrained:
        yield (
            f"**This model is {UNTRAINED}.** Its weights are an initialisation ({facts.config.weights_origin}). It "
            "shows that code, shapes and formats work, and its features mean nothing. The architecture is V-JEPA's "
            f"([Bardes et al. 2024]({PAPER}))."
        )
    else:
        yield _KINDS[facts.kind]
        if facts.config.weights_origin:
            yield f"Origin of the weights: {facts.config.weights_origin}."
    yield fact_table(architecture_facts(facts.config, is_classifier=facts.is_classifier))


def _sections(facts: CardFacts) -> Iterator[tuple[str, str]]:
    yield "Use", _usage(facts)
    if facts.class_names_note:
        yield "Labels", f"The labels are LABEL_0, LABEL_1, ...: {facts.class_names_note}."
    yield "Intended use", _intended_use(facts)
    yield "Training", _training(facts)
    yield "Results", _results(facts)
    yield from facts.sections.items()
    yield "Limits", facts.limits or _default_limits(facts)
    yield "Licence", license_section(facts.license)
    yield "Citation", CITATION


def _usage(facts: CardFacts) -> str:
    if facts.is_classifier:
        return classifier_usage(facts.name)
    if facts.kind == "features" and facts.name in MODELS:
        return registered_usage(MODELS[facts.name])
    return features_usage(facts.name, facts.config)


def _intended_use(facts: CardFacts) -> str:
    if facts.is_untrained:
        return "Tests and examples of code that takes a V-JEPA model, and a start for a training of one's own."
    return f"{CLASSIFIER_USE if facts.is_classifier else FEATURES_USE} {NOT_INTENDED}"


def _training(facts: CardFacts) -> str:
    if facts.is_untrained:
        return "None."
    parts = [fact_table(facts.training) if facts.training else "Nothing was recorded."]
    if facts.recipe:
        parts.append(
            f"Every value of the pretraining, with its source, stands in the recipe `{facts.recipe}`; `vjepa-hub "
            f"pretrain {facts.recipe} --data videos.csv` repeats it on your videos."
        )
    return "\n\n".join(parts)


def _results(facts: CardFacts) -> str:
    if not facts.results:
        return "None are stated."
    rows = [("data set", "metric", "value", "protocol", "source"), ("---",) * 5]
    for result in facts.results:
        source = f"[{result.source}]({result.source_address})" if result.source_address else result.source
        rows.append((result.dataset, result.metric, f"{result.value:g}", result.protocol, source))
    commands = dict.fromkeys(result.command for result in facts.results if result.command)
    table = "\n".join(table_row(*row) for row in rows)
    return table if not commands else "\n".join([table, "", "```bash", *commands, "```"])


def _default_limits(facts: CardFacts) -> str:
    if facts.is_untrained:
        return "It knows nothing. No number that was measured with it says anything about V-JEPA."
    return CLASSIFIER_LIMITS if facts.is_classifier else FEATURES_LIMITS


# ---------------------------------------------------------------------------------------------------------------------
# The registry's models
# ---------------------------------------------------------------------------------------------------------------------


def registered_facts(name: str, dataset: str | None = None) -> CardFacts:
    """The facts of a model of the registry, or of it with a released probe.

    Args:
        name: A model of the registry.
        dataset: A data set of its probes, for the classifier that `load_classifier` gives.

    Raises:
        KeyError: There is no such model, or no such probe of it.
    """
    entry = find_model(name)
    if dataset is not None:
        return _probe_facts(entry, dataset)
    return CardFacts(
        name=name,
        kind="features",
        config=_config(entry, [entry.checkpoint]),
        license=entry.license,
        datasets=entry.datasets,
        results=tuple(_published_result(entry, result) for result in entry.results),
        training=entry.training,
        recipe=entry.recipe,
    )


def _probe_facts(entry: ModelEntry, dataset: str) -> CardFacts:
    if dataset not in entry.probes:
        raise KeyError(f"'{entry.name}' has no probe for '{dataset}'; there are: {', '.join(entry.probes) or 'none'}")
    found = EVALUATION_SETS[dataset]
    config = _config(entry, [entry.checkpoint, entry.probes[dataset]])
    config.num_labels = found.num_classes
    return CardFacts(
        name=f"{entry.name}-{dataset}",
        kind="probe",
        config=config,
        license=entry.license,
        datasets=(*entry.datasets, _slug(found.name)),
        results=(_published_result(entry, dataset),),
        training={**entry.training, "probe": f"on {found.name}, by the authors; the encoder was frozen"},
        class_names_note=UNCERTAIN.get(dataset),
        recipe=entry.recipe,
    )


def _config(entry: ModelEntry, files: Sequence[str | None]) -> VJEPAConfig:
    config = entry.config()
    if entry.is_trained:
        config.weights_origin = f"converted without a change of a value from {' and '.join(map(str, files))}"
    else:
        config.weights_origin = f"{UNTRAINED}, seed {entry.seed}"
    return config


def _published_result(entry: ModelEntry, dataset: str) -> CardResult:
    found = EVALUATION_SETS[dataset]
    return CardResult(
        task=found.task,
        dataset=found.name,
        metric="top-1 accuracy (%)",
        value=entry.results[dataset],
        protocol=f"attentive probe on the frozen encoder; {found.clips}",
        source=PUBLISHED,
        source_address=PAPER,
        command=f"vjepa-hub probe {entry.name} --protocol {found.protocol} --eval-only --val {dataset}-val.csv",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the cards of the registry, or check those that are there.

    Args:
        arguments: Of the command line; by default those of the process.

    Raises:
        SystemExit: With `--check`, where a card is not what would be written; the message names it.
    """
    parser = argparse.ArgumentParser(prog="python -m vjepa_hub.hub.cards", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a card differs")
    parser.add_argument("--output-dir", type=Path, default=Path(CARDS_FOLDER), help="default: %(default)s")
    options = parser.parse_args(arguments)
    cards = {f"{name}.md": render_card(registered_facts(name)) for name in MODELS}
    if options.check:
        _require_equal(options.output_dir, cards)
        return
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for name, text in cards.items():
        (options.output_dir / name).write_text(text, encoding="utf-8", newline="\n")


def _require_equal(folder: Path, cards: Mapping[str, str]) -> None:
    found = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    differing = sorted(name for name in found.keys() | cards.keys() if found.get(name) != cards.get(name))
    if differing:
        raise SystemExit(
            f"{folder} is not what the registry says: {', '.join(differing)}; run python -m vjepa_hub.hub.cards, and "
            "delete the card of a model that the registry no longer has"
        )


if __name__ == "__main__":
    main()
