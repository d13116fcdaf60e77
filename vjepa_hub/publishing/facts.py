"""Typed facts of a model for its card: of the run that made it, of its configuration, and of its publisher."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..core.names import counted
from ..core.run_files import (
    CLASSIFIER_FOLDER,
    RECIPE_FILE,
    RUN_FILE,
    DataFacts,
    Result,
    RunRecord,
    read_run,
)
from ..hub.class_names import chosen_names
from ..hub.loading import UNTRAINED
from ..hub.registry import MODELS
from ..hub.safety import CONFIG_FILE, RefusedModelError, read_config
from ..model.configuration_vjepa import VJEPAConfig
from .records import EvaluationRecord, ReproductionRecord

Kind = Literal["features", "pretraining", "classifier", "probe"]
EVALUATION_RECORD = "evaluation-{}.json"  # of an evaluation that is published with the model, by its number

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_TOLD_SETTINGS = re.compile(r"rate|decay|momentum|batch|epochs|seed|mode|augmentation")


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Where the parts of a run lie.

    Attributes:
        model: Folder of the model.
        records: Folder of what was written beside it; the same, but for a probe.
        kind: Of the model, as the card calls it.
    """

    model: Path
    records: Path
    kind: Kind

    def read_record(self) -> RunRecord | None:
        """The record of the run; None for a model that no run of this package wrote.

        Raises:
            RefusedModelError: It is damaged.
        """
        return _read_record(self.records) if (self.records / RUN_FILE).is_file() else None


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """Statements of the publisher about the model, where its files have none.

    Args:
        license: Of the weights, an identifier of the Hub such as "apache-2.0". None: that of the released model that
            the weights go back to, if any.
        datasets: What it was trained on, names of the Hub.
        base_model: What it started from, a name of the Hub. None: as the run says.
        results: Folders of evaluations of this very model, or a file in them.
        tags: More tags for the Hub.
        requires_license: Whether a card without a licence is refused.
    """

    license: str | None = None
    datasets: Sequence[str] = ()
    base_model: str | None = None
    results: Sequence[Path] = ()
    tags: Sequence[str] = ()
    requires_license: bool = True


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Facts of a card.

    Attributes:
        name: What the model is loaded by: a name of the registry, a folder, or `owner/name` on the Hub.
        kind: What is published; "probe" is a classifier whose encoder was frozen.
        config: Of the model. Its `weights_origin` is told, and an untrained model is called so.
        license: The Hub's name of the licence of the weights; None where it is not known.
        base_model: What it was made from, `owner/name` on the Hub; None where there is none there.
        datasets: What it was trained on, as the metadata name it.
        results: To be stated, in `model-index` too.
        training: Facts of the training, by name.
        run: The record of the run.
        evaluation: The published encoder against baselines.
        reproduction: Several trainings of its recipe.
        limits: What it should not be trusted with; empty for what holds for each model of its kind.
        class_names_note: Why the labels of a classifier are LABEL_0, LABEL_1, ...; None where they have names.
        recipe: Name of the bundled recipe that repeats the pretraining; None where there is none.
        tags: More tags.
    """

    name: str
    kind: Kind
    config: VJEPAConfig
    license: str | None = None
    base_model: str | None = None
    datasets: Sequence[str] = ()
    results: Sequence[Result] = ()
    training: Mapping[str, str] = field(default_factory=dict)
    run: RunRecord | None = None
    evaluation: EvaluationRecord | None = None
    reproduction: ReproductionRecord | None = None
    limits: str = ""
    class_names_note: str | None = None
    recipe: str | None = None
    tags: Sequence[str] = ()

    def __post_init__(self) -> None:
        if "\n" in self.name or not self.name.strip():
            raise ValueError(f"name is {self.name!r}, but must be one line: a folder, or owner/name on the Hub")

    @property
    def is_classifier(self) -> bool:
        """Return whether there is a classifier in place of the predictor."""
        return self.kind in ("classifier", "probe")

    @property
    def is_untrained(self) -> bool:
        """Return whether no training has touched the weights."""
        return (self.config.weights_origin or "").startswith(UNTRAINED)

    @property
    def registered(self) -> Any:
        """The registry's entry of a features model that goes by this name."""
        return MODELS.get(self.name) if self.kind == "features" else None


# ---------------------------------------------------------------------------------------------------------------------
# From a folder
# ---------------------------------------------------------------------------------------------------------------------


def find_run(folder: str | Path) -> RunFolder:
    """Find the model of a folder.

    Args:
        folder: A model's own, or that of a probe's run, which has its model in `classifier`.

    Raises:
        FileNotFoundError: There is no model; the message names those of the folders below.
    """
    folder = Path(folder).absolute()
    if folder.name == CLASSIFIER_FOLDER and (folder.parent / RUN_FILE).is_file():
        folder = folder.parent
    if (folder / CONFIG_FILE).is_file():
        return RunFolder(model=folder, records=folder, kind=_kind_of(folder))
    if (folder / CLASSIFIER_FOLDER / CONFIG_FILE).is_file():
        return RunFolder(model=folder / CLASSIFIER_FOLDER, records=folder, kind="probe")
    below = sorted(str(path.parent) for path in folder.glob(f"*/**/{CONFIG_FILE}"))[:5]
    found = f"; there are models in {', '.join(below)}" if below else ""
    raise FileNotFoundError(
        f"{folder} holds no model (no {CONFIG_FILE}, no {CLASSIFIER_FOLDER}/{CONFIG_FILE}){found}; give a folder that "
        "save_pretrained, pretrain, probe or finetune wrote. A probe of an encoder that is not V-JEPA has no model"
    )


def _kind_of(folder: Path) -> Kind:
    architecture = str((read_config(folder / CONFIG_FILE).architectures or [""])[0])
    if architecture.endswith("ForVideoClassification"):
        record = _read_record(folder) if (folder / RUN_FILE).is_file() else None
        return "probe" if record is not None and record.kind == "probe" else "classifier"
    is_run = (folder / RECIPE_FILE).is_file() or (folder / RUN_FILE).is_file()
    return "pretraining" if is_run or architecture.endswith("ForPreTraining") else "features"


def _read_record(folder: Path) -> RunRecord:
    try:
        return read_run(folder)
    except ValueError as error:
        raise RefusedModelError(str(error)) from error


def gather_facts(
    run: RunFolder, name: str, config: VJEPAConfig, options: CardOptions, evaluations: Sequence[RunRecord] = ()
) -> CardFacts:
    """Facts of the model in a folder.

    Args:
        run: Where the model and its records are.
        name: By which the card loads it.
        config: Of the model.
        options: What the publisher adds.
        evaluations: Records of evaluations of this very model.

    Raises:
        ValueError: The licence contradicts that of released weights.
        RefusedModelError: A record of the run is damaged.
    """
    record = run.read_record()
    base = record.model.name if record is not None and record.model is not None else None
    names_note = "the classes were given by their numbers, which are those of the training set"
    is_unnamed = run.kind in ("classifier", "probe") and chosen_names(config.id2label) is None
    results = [] if record is None else _own_results(run.kind, record, options.datasets)
    return CardFacts(
        name=name,
        kind=run.kind,
        config=config,
        license=_choose_license(options.license, released_origin(base, config.weights_origin)),
        base_model=options.base_model or (base if _is_hub_name(record) else None),
        datasets=tuple(options.datasets),
        results=[
            *results,
            *(stated for found in evaluations for stated in stated_results(found) if stated.is_selected),
        ],
        training={} if record is None else training_rows(record),
        run=record,
        tags=tuple(options.tags),
        class_names_note=names_note if is_unnamed else None,
    )


def _own_results(kind: Kind, record: RunRecord, datasets: Sequence[str]) -> list[Result]:
    """Results of the model itself: of a probe, those of the attentive head, which the classifier was saved with."""
    stated = [result for result in stated_results(record) if kind != "probe" or result.pooling == "attentive"]
    if kind == "classifier" and datasets:  # a fine-tuning knows no name of its data
        stated = [result.model_copy(update={"dataset": datasets[0]}) for result in stated]
    return stated


def stated_results(record: RunRecord) -> list[Result]:
    """Results of a run as a card states them: with the share of labels, all changed settings, and the command."""
    parts = [
        f"{100 * fact.share:g} % of the training labels" + ("" if fact.split is None else f", split {fact.split}")
        for fact in record.data
        if fact.share != 1
    ]
    changed = ", ".join(f"{key}={value}" for key, value in record.changed.items())
    parts += [f"with {changed}"] * bool(changed) + [f"vjepa_hub {record.package}"]
    command = card_command(record)
    return [
        result.model_copy(
            update={"protocol": "; ".join([result.protocol, *parts]), "command": result.command or command}
        )
        for result in record.results
    ]


def card_command(record: RunRecord) -> str | None:
    """The command of a run, with names such as `VIDEOS` and `MODEL` in place of paths of the machine."""
    return shlex.join(["vjepa-hub", *public_record(record).command]) if record.command else None


def public_record(record: RunRecord) -> RunRecord:
    """The record with `VIDEOS`, `MODEL` and the like in place of local paths; counts and fingerprints stay."""
    names = {fact.source: fact.placeholder for fact in record.data}
    model = record.model
    if model is not None:
        names[model.name] = model.placeholder
        model = model.model_copy(update={"name": model.placeholder})
    words, is_folder = list[str](), False
    for word in record.command:
        is_pair = word.startswith("--") or word.partition("=")[2] in names  # an option, or an assignment of --set
        option, _, value = word.partition("=") if is_pair and "=" in word else ("", "", word)
        value = "RUN" if is_folder or option == "--output-dir" else names.get(value, value)
        words.append(f"{option}={value}" if option else value)
        is_folder = word == "--output-dir"
    if record.kind == "pretrain" and words and words[1].endswith((".yaml", ".yml")):
        words[1] = RECIPE_FILE
    data = tuple(fact.model_copy(update={"source": fact.placeholder}) for fact in record.data)
    return record.model_copy(update={"command": tuple(words), "model": model, "data": data})


def training_rows(record: RunRecord) -> dict[str, str]:
    """Facts of a training, by name: first weights, data, steps, and the settings that decide most."""
    rows = {"recipe": str(record.settings["name"])} if record.kind == "pretrain" and "name" in record.settings else {}
    if record.model is not None:
        rows["started from"] = _identified(record.model.weights or record.model.placeholder, record.model.sha256)
    elif record.kind == "pretrain":
        rows["started from"] = f"random weights, seed {', '.join(map(str, record.seeds))}"
    rows |= {"data" if fact.role == "videos" else fact.role: _describe_data(fact) for fact in record.data}
    if record.steps is not None:
        rows["steps"] = f"{record.steps:,}" + (f" of {record.max_steps:,}" if record.max_steps else "")
    rows |= {
        f"masks, kind {place}": _describe_masks(kind) for place, kind in enumerate(record.settings.get("masks", []))
    }
    rows |= _setting_rows(record.settings)
    command = card_command(record)
    return rows | ({"command": f"`{command}`"} if command and record.kind == "pretrain" else {})


def _setting_rows(tree: Mapping[str, Any]) -> dict[str, str]:
    rows: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            is_told = key in ("training", "protocol")
            rows |= _setting_rows(value) if is_told else {}
        elif _TOLD_SETTINGS.search(key) and not isinstance(value, list) and value is not None:
            rows[key.replace("_", " ")] = str(value)
    return rows


def _describe_data(fact: DataFacts) -> str:
    name = fact.description if not fact.is_local else fact.placeholder
    count = counted(fact.num_videos, "video") if fact.num_videos is not None and fact.is_local else ""
    classes = counted(fact.num_classes, "class", "classes") if fact.num_classes is not None else ""
    share = f"{100 * fact.share:g} % of the labels" if fact.share != 1 else ""
    return _identified(", ".join(filter(None, (name or fact.source, count, classes, share))), fact.sha256)


def _identified(text: str, sha256: str | None) -> str:
    return text if sha256 is None else f"{text} (sha256 {sha256[:12]})"


def _describe_masks(kind: Any) -> str:
    """A kind of masks: a name, or its settings."""
    if not isinstance(kind, Mapping):
        return str(kind)
    if "ratio" in kind:
        return f"random tubes over {kind['ratio']:.0%} of the frame"
    lowest, highest = kind["spatial_scale"]
    share = f"{lowest:.0%}" if lowest == highest else f"{lowest:.0%} to {highest:.0%}"
    text = f"{kind['num_blocks']} blocks of {share} of the frame"
    kept = kind["max_temporal_keep"]
    return text if kept == 1 else f"{text}, context from the first {kept:.0%}"


# ---------------------------------------------------------------------------------------------------------------------
# Licence and origin
# ---------------------------------------------------------------------------------------------------------------------


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


def _is_hub_name(record: RunRecord | None) -> bool:
    """Return whether a run started from what others can find; a folder of a machine is nobody's base model."""
    model = None if record is None else record.model
    return model is not None and not model.is_local and _HUB_NAME.fullmatch(model.name) is not None


def released_origin(base: str | None, weights_origin: str | None) -> str | None:
    """The released model that weights go back to, as far as a run knows; its licence holds for them too.

    Args:
        base: Name of the model that the run began with.
        weights_origin: Of the configuration.
    """
    for entry in MODELS.values():
        if entry.checkpoint is None:
            continue
        names = "|".join(re.escape(name) for name in (entry.name, entry.checkpoint.rsplit("/", 1)[-1]))
        if base == entry.name or re.search(rf"(?<![\w-])({names})(?![\w-])", weights_origin or ""):
            return entry.name
    return None
