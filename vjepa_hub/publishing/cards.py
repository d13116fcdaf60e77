"""Model cards: README.md with the Hub's metadata, made from facts by one template."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..hub.loading import UNTRAINED
from ..hub.registry import MODELS, PAPER
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

__all__ = [
    "CardFacts",
    "CardResult",
    "check_card",
    "is_ours",
    "merge_card",
    "render_card",
]

Kind = Literal["features", "pretraining", "classifier", "probe"]

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
            "dataset": {"name": self.dataset, "type": data_set_identifier(self.dataset)},
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


def data_set_identifier(name: str) -> str:
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
