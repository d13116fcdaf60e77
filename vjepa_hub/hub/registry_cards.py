"""The cards of the registry's models, which lie in `model_cards/` of a checkout.

They are made from the registry's facts, by

    python -m vjepa_hub.hub.registry_cards            # writes them
    python -m vjepa_hub.hub.registry_cards --check    # exits with 1 where one differs from what would be written
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..model.configuration_vjepa import VJEPAConfig
from .cards import CardFacts, CardResult, data_set_identifier, render_card
from .class_names import UNCERTAIN
from .loading import UNTRAINED
from .registry import EVALUATION_SETS, MODELS, PAPER, ModelEntry, find_model

CARDS_FOLDER = "model_cards"
PUBLISHED = "published by the authors, not measured here"


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
        datasets=(*entry.datasets, data_set_identifier(found.name)),
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
    parser = argparse.ArgumentParser(
        prog="python -m vjepa_hub.hub.registry_cards", description=str(__doc__).partition("\n")[0]
    )
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
            f"{folder} is not what the registry says: {', '.join(differing)}; run python -m "
            "vjepa_hub.hub.registry_cards, and delete the card of a model that the registry no longer has"
        )


if __name__ == "__main__":
    main()
