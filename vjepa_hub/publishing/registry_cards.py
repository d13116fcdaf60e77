"""The cards of the registry's models, which lie in `model_cards/` of a checkout.

They are made from the registry's facts, by

    python -m vjepa_hub.publishing.registry_cards            # writes them
    python -m vjepa_hub.publishing.registry_cards --check    # exits with 1 where one differs
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..core.run_files import DataFacts, Result, RunRecord
from ..hub.class_names import UNCERTAIN
from ..hub.registry import EVALUATION_SETS, MODELS, PAPERS, ModelEntry, find_model
from ..model.configuration_vjepa import VJEPAConfig
from .card import data_set_identifier, render_card
from .facts import CardFacts, training_rows
from .records import EvaluationRecord, ReproductionRecord, read_evaluation, read_record

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
    config = _config(entry, [entry.checkpoint, entry.probes[dataset]], dataset)
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


def _config(entry: ModelEntry, files: Sequence[str | None], dataset: str | None = None) -> VJEPAConfig:
    config = entry.config(dataset)
    config.weights_origin = f"converted without a change of a value from {' and '.join(map(str, files))}"
    return config


def _published_result(entry: ModelEntry, dataset: str) -> Result:
    found, paper = EVALUATION_SETS[dataset], PAPERS[entry.config().position_embedding]
    has_protocol = dataset in entry.probes and not found.refusal and dataset != "diving48"  # whose is not here yet
    command = f"vjepa-hub probe {entry.name} --protocol {dataset} --eval-only --val {dataset}-val.csv"
    if entry.config(dataset).frames_per_clip > 16:
        command += " --set frame_step=2"
    return Result(
        task=found.task,
        dataset=found.name,
        metric=found.metric,
        value=entry.results[dataset],
        protocol=f"attentive probe on the frozen encoder; {found.clips}",
        source=PUBLISHED,
        source_address=paper.address,
        metric_type="accuracy" if "accuracy" in found.metric else "recall",
        command=command if has_protocol else None,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Models that the package carries: their facts are the records beside the weights
# ---------------------------------------------------------------------------------------------------------------------


def _bundled_facts(entry: ModelEntry, folder: Path) -> CardFacts:
    record, evaluation = read_record(folder), read_evaluation(folder)
    made = record.recipe["synthetic"]
    data = f"{made['num_videos']:,} synthetic videos of {made['kind']}"
    run = RunRecord(
        kind="pretrain",
        command=(),
        seeds=(record.seeds[0].seed,),
        settings=record.recipe,
        data=(DataFacts(role="videos", source="synthetic", description=data),),
        steps=record.num_steps,
    )
    return CardFacts(
        name=entry.name,
        kind="features",
        config=VJEPAConfig.from_pretrained(folder),
        license=entry.license,
        datasets=entry.datasets,
        results=tuple(_measured_results(entry, record, evaluation)),
        training={**training_rows(run), **entry.training},
        recipe=entry.recipe,
        evaluation=evaluation,
        reproduction=record,
        limits=entry.limits,
    )


def _measured_results(entry: ModelEntry, record: ReproductionRecord, evaluation: EvaluationRecord) -> Iterator[Result]:
    """The mean over the trainings, one result for each task."""
    protocol = (
        f"attentive probe on the frozen encoder, {evaluation.num_train:,} labelled and {evaluation.num_test:,} "
        f"test videos; mean of trainings with seeds {', '.join(map(str, evaluation.seeds))}, deviation"
    )
    command = (
        f"vjepa-hub reproduce {entry.recipe} --short-steps {record.short_steps} "
        f"--num-threads {record.machine.num_threads} --output-dir runs/{entry.recipe}"
    )
    for task, found in evaluation.trained.items():
        yield Result(
            task="video-classification",
            dataset=f"moving pictures of Fashion-MNIST, {task}",
            metric="top-1 accuracy (%)",
            value=round(100 * found.mean, 1),
            protocol=f"{protocol} {100 * found.std:.1f}",
            source="measured by vjepa_hub.reproduction",
            command=command,
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
