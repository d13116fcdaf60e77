"""The cards of the registry's models, which lie in `model_cards/` of a checkout.

They are made from the registry's facts, by

    python -m vjepa_hub.publishing.registry_cards            # writes them
    python -m vjepa_hub.publishing.registry_cards --check    # exits with 1 where one differs
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..hub.class_names import UNCERTAIN
from ..hub.registry import EVALUATION_SETS, MODELS, PAPER, ModelEntry, find_model
from ..model.configuration_vjepa import VJEPAConfig
from .card_text import table_row
from .cards import CardFacts, CardResult, data_set_identifier, render_card
from .run_facts import EVALUATION_FILE, REPRODUCTION_FILE, find_run, read_json, read_run_facts

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
    if entry.bundled_folder is not None:
        return _bundled_facts(entry, entry.bundled_folder)
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
    config.weights_origin = f"converted without a change of a value from {' and '.join(map(str, files))}"
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
        command=f"vjepa-hub probe {entry.name} --protocol {dataset} --eval-only --val {dataset}-val.csv",
    )


# ---------------------------------------------------------------------------------------------------------------------
# Models that the package carries: their facts are the records beside the weights
# ---------------------------------------------------------------------------------------------------------------------


def _bundled_facts(entry: ModelEntry, folder: Path) -> CardFacts:
    record, evaluation = (read_json(folder / name) for name in (REPRODUCTION_FILE, EVALUATION_FILE))
    return CardFacts(
        name=entry.name,
        kind="features",
        config=VJEPAConfig.from_pretrained(folder),
        license=entry.license,
        datasets=entry.datasets,
        results=tuple(_measured_results(entry, record, evaluation)),
        training={**read_run_facts(find_run(folder)).training, **entry.training},
        recipe=entry.recipe,
        sections={
            "Baselines": _baselines(evaluation),
            "Training it again": _retraining(entry, record),
        },
        limits=entry.limits,
    )


def _measured_results(
    entry: ModelEntry, record: Mapping[str, Any], evaluation: Mapping[str, Any]
) -> Iterator[CardResult]:
    """The mean over the trainings, one result for each task."""
    trained = next(row for row in evaluation["rows"] if row["name"] == "trained")
    protocol = (
        f"attentive probe on the frozen encoder, {evaluation['num_train']:,} labelled and {evaluation['num_test']:,} "
        f"test videos; mean of trainings with seeds {', '.join(map(str, evaluation['seeds']))}, deviation"
    )
    command = (
        f"vjepa-hub reproduce {entry.recipe} --short-steps {record['short_steps']} "
        f"--num-threads {record['machine']['num_threads']} --output-dir runs/{entry.recipe}"
    )
    for task, found in trained["tasks"].items():
        yield CardResult(
            task="video-classification",
            dataset=f"moving pictures of Fashion-MNIST, {task}",
            metric="top-1 accuracy (%)",
            value=round(100 * found["mean"], 1),
            protocol=f"{protocol} {100 * found['std']:.1f}",
            source="measured by vjepa_hub.reproduction",
            command=command,
        )


def _baselines(evaluation: Mapping[str, Any]) -> str:
    """A row for each encoder, with mean and deviation in each task, and the command that made them."""
    tasks = list(evaluation["rows"][0]["tasks"])
    rows = [("top-1 accuracy, %", *tasks), ("---",) * (1 + len(tasks))]
    for row in evaluation["rows"]:
        cells = (f"{100 * row['tasks'][task]['mean']:.1f} ± {100 * row['tasks'][task]['std']:.1f}" for task in tasks)
        rows.append((row["words"], *cells))
    table = "\n".join(table_row(*row) for row in rows)
    about = (
        f"Mean and standard deviation over {len(evaluation['seeds'])} seeds, on {evaluation['num_test']:,} videos "
        "whose pictures and backgrounds are in no training video. The weights are those of the first "
        "training."
    )
    return "\n\n".join([about, table, f"```bash\n{evaluation['command']}\n```"])


def _retraining(entry: ModelEntry, record: Mapping[str, Any]) -> str:
    minutes = max(seed["minutes"] for seed in record["seeds"])
    return (
        f"`vjepa-hub verify {entry.name} --short` makes the videos (`apt-get install dataset-fashion-mnist`), trains "
        f"the first {record['short_steps']:,} steps again and compares loss, accuracies and, on a machine like this "
        f"one, every bit of the weights with the record of the trainings; without `--short` all "
        f"{record['num_steps']:,} steps. A training took up to {minutes:.0f} minutes on one core of "
        f"{record['machine']['processor']}, beside another one."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the cards of the registry, or check those that are there.

    Args:
        arguments: Of the command line; by default those of the process.

    Raises:
        SystemExit: With `--check`, where a card is not what would be written; the message names it.
    """
    parser = argparse.ArgumentParser(
        prog="python -m vjepa_hub.publishing.registry_cards", description=str(__doc__).partition("\n")[0]
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
            "vjepa_hub.publishing.registry_cards, and delete the card of a model that the registry no longer has"
        )


if __name__ == "__main__":
    main()
