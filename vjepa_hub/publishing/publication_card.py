"""The card that goes with a publication: what the run says of itself, what the publisher adds, and what was there.

Whose text is whose: a card of ours is made anew each time. One that a person wrote or changed, in the folder or in the
repository, keeps its prose and its own metadata, and gets the metadata that it lacks.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..hub.class_names import chosen_names
from ..hub.registry import MODELS
from ..model.configuration_vjepa import VJEPAConfig
from .card_text import architecture_facts, is_ours, with_mark
from .cards import CardFacts, merge_card, render_card
from .machine_paths import shorten_machine_paths
from .model_folder import CARD_FILE
from .run_facts import RunFolder, read_card_results, read_run_facts, released_origin

_ROW = re.compile(r"^\| ([^|]+) \| ([^|]*) \|$", re.MULTILINE)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HEALTH = "Health at the end"
# The heading of the empty form that transformers' own push_to_hub puts in the place of a card
_FORM = "# Model Card for Model ID"


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """What the publisher says of the model, where its files do not.

    Args:
        license: Of the weights, an identifier of the Hub such as "apache-2.0". None: that of the released model that
            the weights go back to, if any.
        datasets: What it was trained on, names of the Hub.
        base_model: What it started from, a name of the Hub. None: as the run says.
        results: Files `results.json`, or their folders, of evaluations of this very model.
        limits: What it should not be trusted with, in place of the usual paragraph.
        tags: More tags for the Hub.
        requires_license: Whether a card without a licence is refused.
    """

    license: str | None = None
    datasets: Sequence[str] = ()
    base_model: str | None = None
    results: Sequence[Path] = ()
    limits: str = ""
    tags: Sequence[str] = ()
    requires_license: bool = True


def build_card(run: RunFolder, repo_id: str, config: VJEPAConfig, options: CardOptions) -> str:
    """The card of a folder for a repository.

    Args:
        run: Where the model and its records are.
        repo_id: The repository's name, which the card's code uses.
        config: Of the model.
        options: What the publisher adds.

    Raises:
        ValueError: The licence contradicts that of released weights, or the metadata of a person's card are damaged.
        RefusedModelError: A record of the run is damaged.
    """
    card = run.model / CARD_FILE if (run.model / CARD_FILE).is_file() else run.records / CARD_FILE
    present = card.read_text(encoding="utf-8") if card.is_file() else ""
    generated = shorten_machine_paths(render_card(_facts(run, repo_id, config, options, present)))
    return merge_with_present(present, with_mark(generated[: generated.rindex("<!--")]))


def merge_with_present(present: str, generated: str) -> str:
    """A card that is there, brought up to date; the empty form of transformers is nobody's work, and is replaced.

    Args:
        present: Of the folder or the repository; may be empty.
        generated: The one that was made now.

    Raises:
        ValueError: The metadata of a person's card are damaged.
    """
    return generated if _FORM in present else merge_card(present, generated)


def _facts(run: RunFolder, repo_id: str, config: VJEPAConfig, options: CardOptions, present: str) -> CardFacts:
    found = read_run_facts(run, options.datasets)
    results = [*found.results, *(result for file in options.results for result in read_card_results(Path(file)))]
    is_own = run.kind == "pretraining" and is_ours(present)  # the run itself knows more than its files
    health = _section(present, _HEALTH) if is_own else ""
    return CardFacts(
        name=repo_id,
        kind=run.kind,
        config=config,
        license=_choose_license(options.license, released_origin(found.origin, config.weights_origin)),
        base_model=options.base_model or _as_hub_name(found.origin),
        datasets=tuple(options.datasets),
        results=tuple(results),
        training=(_training_rows(present, config) if is_own else {}) or found.training,
        limits=options.limits,
        tags=tuple(options.tags),
        class_names_note=_note_on_names(run.kind, config),
        sections={_HEALTH: health} if health else {},
    )


def _choose_license(wanted: str | None, released: str | None) -> str | None:
    """The licence of the weights; those that go back to released ones have theirs."""
    if released is None:
        return wanted
    binding = MODELS[released].license
    if wanted not in (None, binding):
        raise ValueError(
            f"the licence is '{wanted}', but the weights go back to {released}, which is under {binding}: that holds "
            f"for them too; leave the licence out, or give {binding}"
        )
    return binding


def _as_hub_name(origin: str | None) -> str | None:
    """What a run started from, where others can find it; a folder here is nobody's base model."""
    is_name = origin is not None and _HUB_NAME.fullmatch(origin) and not Path(origin).exists()
    return origin if is_name else None


def _note_on_names(kind: str, config: VJEPAConfig) -> str | None:
    if kind not in ("classifier", "probe") or chosen_names(config.id2label) is not None:
        return None
    return "the classes were given by their numbers, which are those of the training set"


def _training_rows(card: str, config: VJEPAConfig) -> Mapping[str, str]:
    """The table of a pretraining run's own card, but for the rows that follow from the configuration."""
    known = architecture_facts(config, is_classifier=False)
    rows = _ROW.findall(_section(card, "Training"))
    return {name.strip(): value.strip() for name, value in rows if name.strip() and name.strip() not in known}


def _section(card: str, heading: str) -> str:
    """The text below a heading, empty where there is none."""
    return card.partition(f"\n## {heading}\n")[2].partition("\n## ")[0].strip()
