"""What the files of a run say of its model: results with their protocol, facts of the training, where it came from.

A run is a folder of `vjepa-hub pretrain`, `probe` or `finetune`, or any folder that `save_pretrained` wrote; only what
is there is read.
"""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..hub.registry import EVALUATION_SETS, MODELS
from ..hub.safety import CONFIG_FILE, RefusedModelError
from .cards import CardResult, Kind
from .machine_paths import shorten_machine_paths

RECIPE_FILE, METRICS_TABLE = "recipe.yaml", "metrics.csv"
TUNING_FILE, METRICS_FILE = "finetuning.json", "metrics.json"
REPRODUCTION_FILE, EVALUATION_FILE = "reproduction.json", "evaluation.json"
RESULTS_FILE, CLASSES_TABLE, CLASSIFIER_FOLDER = "results.json", "per_class.csv", "classifier"
# What travels beside the model, and what only with the plots
RECORDS = (RECIPE_FILE, METRICS_TABLE, TUNING_FILE, METRICS_FILE, REPRODUCTION_FILE, EVALUATION_FILE)
PROBE_RECORDS = (RESULTS_FILE, CLASSES_TABLE)
PLOTS = ("report.png", "confusion.png")

_RESULTS_FORMAT = 1
_METRICS = {
    "top1": "top-1 accuracy (%)",
    "top5": "top-5 accuracy (%)",
    "mean_class_accuracy": "mean accuracy of the classes (%)",
}


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Where the parts of a run lie.

    Attributes:
        model: Folder of the model.
        records: Folder of what was written beside it; the same, but for a probe.
        kind: "features", "pretraining", "classifier" or "probe", as the card calls it.
    """

    model: Path
    records: Path
    kind: Kind


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run says of its model.

    Attributes:
        origin: The model that it started from: a name of the registry, of the Hub, or of a folder; None: unknown.
        training: Facts for the card, by name.
        results: What was measured.
    """

    origin: str | None = None
    training: Mapping[str, str] = field(default_factory=dict)
    results: Sequence[CardResult] = ()


def find_run(folder: str | Path, architecture: str | None = None) -> RunFolder:
    """Find the model of a folder.

    Args:
        folder: A model's own, or that of a probe's run, which has its model in `classifier`.
        architecture: The class that wrote the model, where it is known; else as its configuration says.

    Raises:
        FileNotFoundError: There is no model; the message names those of the folders below.
    """
    folder = Path(folder).absolute()
    if folder.name == CLASSIFIER_FOLDER and (folder.parent / RESULTS_FILE).is_file():
        folder = folder.parent
    if (folder / CONFIG_FILE).is_file():
        architecture = architecture or (read_json(folder / CONFIG_FILE).get("architectures") or [""])[0]
        return RunFolder(model=folder, records=folder, kind=_kind_of(folder, str(architecture)))
    classifier = folder / CLASSIFIER_FOLDER
    if (classifier / CONFIG_FILE).is_file():
        return RunFolder(model=classifier, records=folder, kind="probe")
    below = sorted(str(path.parent) for path in folder.glob(f"*/**/{CONFIG_FILE}"))[:5]
    found = f"; there are models in {', '.join(below)}" if below else ""
    raise FileNotFoundError(
        f"{folder} holds no model (no {CONFIG_FILE}, no {CLASSIFIER_FOLDER}/{CONFIG_FILE}){found}; give a folder that "
        "save_pretrained, pretrain, probe or finetune wrote. A probe of an encoder that is not V-JEPA has no model"
    )


def _kind_of(folder: Path, architecture: str) -> Kind:
    if architecture.endswith("ForVideoClassification"):
        return "classifier"
    is_run = (folder / RECIPE_FILE).is_file() or architecture.endswith("ForPreTraining")
    return "pretraining" if is_run else "features"


def read_run_facts(run: RunFolder, datasets: Sequence[str] = ()) -> RunFacts:
    """Gather what the files of a run say.

    Args:
        run: Of `find_run`.
        datasets: Names of what it was trained on, for results of a fine-tuning, which does not write them down.

    Raises:
        RefusedModelError: A file is damaged; the message names it.
    """
    if run.kind == "probe":
        return _facts_of_probe(_read_results(run.records / RESULTS_FILE))
    if (run.records / TUNING_FILE).is_file():
        return _facts_of_tuning(run.records, datasets)
    if (run.records / RECIPE_FILE).is_file():
        return _facts_of_pretraining(run.records)
    return RunFacts()


def read_card_results(file: Path) -> list[CardResult]:
    """What an evaluation of the model found, for its card.

    Args:
        file: A `results.json`, or its folder.

    Raises:
        RefusedModelError: It is none that can be read.
    """
    return _results_of_probe(_read_results(file / RESULTS_FILE if file.is_dir() else file), pooling=None)


def read_json(file: Path) -> Any:
    """What a record holds.

    Raises:
        RefusedModelError: It cannot be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RefusedModelError(
            f"{file} cannot be read ({error}); give a folder that a run wrote to its end"
        ) from error
    except ValueError as error:
        raise RefusedModelError(f"{file} is no JSON ({error}); write it anew by the same command") from error


# ---------------------------------------------------------------------------------------------------------------------
# Probes
# ---------------------------------------------------------------------------------------------------------------------


def _read_results(file: Path) -> dict[str, Any]:
    found = read_json(file)
    version = found.get("format") if isinstance(found, dict) else None
    if version != _RESULTS_FORMAT:
        raise RefusedModelError(
            f"{file} has the format {version!r}, but {_RESULTS_FORMAT} is read; evaluate again with this version"
        )
    return found


def _facts_of_probe(found: Mapping[str, Any]) -> RunFacts:
    head, data, protocol = _attentive_head(found), found["data"], found["protocol"]
    training = {
        "encoder's weights": str(found["encoder"]["description"]),
        "what was trained": "an attentive probe on the frozen encoder",
        "data": _describe_set(data["train"]) if "train" in data else "",
        "epochs": f"{protocol['num_epochs']}, {protocol['batch_size']} videos a step",
        "learning rate": f"{head['learning_rate']:g} to {protocol['final_learning_rate']:g}",
        "weight decay": f"{head['weight_decay']:g} to {protocol['final_weight_decay']:g}",
        "augmentation": "none" if protocol["augmentation"] is None else "random crop, RandAugment, erasing",
        "seed": ", ".join(map(str, found["seeds"])),
    }
    shortened = {name: shorten_machine_paths(text) for name, text in training.items() if text}
    return RunFacts(
        origin=found["encoder"]["name"], training=shortened, results=_results_of_probe(found, pooling="attentive")
    )


def _attentive_head(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The head of the saved classifier: the best attentive one, whichever was selected."""
    attentive = [head for head in found["heads"] if head["pooling"] == "attentive"]
    return max(attentive, key=lambda head: head["metrics"]["top1"])  # the first of equal ones, as it was saved


def _results_of_probe(found: Mapping[str, Any], pooling: str | None) -> list[CardResult]:
    """Results of the attentive head, or of the selected one.

    Args:
        found: The file.
        pooling: "attentive" for those of the saved classifier; None: of the head that stands for the encoder.
    """
    head = _attentive_head(found) if pooling else found["selected"]
    metrics, protocol = head["metrics"], found["protocol"]
    task = "image-classification" if protocol["media"] == "image" else "video-classification"
    common: dict[str, Any] = {
        "task": task,
        "dataset": _dataset_name(protocol["name"], found["data"]["validation"]),
        "protocol": _describe_protocol(found, head),
        "source": "measured by vjepa-hub probe",
        "command": _probe_command(found, head),
    }
    names = [name for name in _METRICS if name != "top5" or metrics["num_classes"] > 5]
    return [_percent(name, metrics[name], common) for name in names]


def _percent(name: str, share: float, common: Mapping[str, Any]) -> CardResult:
    return CardResult(metric=_METRICS[name], value=round(100 * share, 2), **common)


def _dataset_name(protocol: str, validation: Mapping[str, Any]) -> str:
    """The data set's own name where the protocol belongs to one, and has its number of classes; else the file's."""
    known = EVALUATION_SETS.get(protocol)
    if known is not None and known.num_classes == validation["num_classes"]:
        return known.name
    return shorten_machine_paths(str(validation["description"]))


def _describe_set(labelled: Mapping[str, Any]) -> str:
    return f"{labelled['num_videos']:,} of {labelled['description']}, {labelled['num_classes']:,} classes"


def _describe_protocol(found: Mapping[str, Any], head: Mapping[str, Any]) -> str:
    protocol, validation, encoder = found["protocol"], found["data"]["validation"], found["encoder"]
    changed = ", ".join(f"{name}={_as_option(value)}" for name, value in protocol["changes"].items())
    parts = [
        f"protocol {protocol['name']}" + (f" with {changed}" if changed else ""),
        f"frozen encoder, {head['pooling']} probe",
        f"{protocol['num_segments']} segments x {protocol['num_views']} views"
        f" of {encoder['frames_per_clip']} frames at {encoder['crop_size']} pixels",
        f"{validation['num_videos']:,} validation items",
        f"vjepa_hub {found['package']}",
    ]
    return "; ".join(parts)


def _probe_command(found: Mapping[str, Any], head: Mapping[str, Any]) -> str:
    """The command that repeats the evaluation, with the names of the files in place of their paths."""
    protocol, data = found["protocol"], found["data"]
    words = ["vjepa-hub probe", str(found["encoder"]["name"]), f"--protocol {protocol['name']}"]
    for option, part in (("--train", "train"), ("--val", "validation")):
        if part in data:
            words.append(f"{option} {data[part]['description']}")
    words += [] if "train" in data else ["--eval-only"]
    words += [f"--set {name}={_as_option(value)}" for name, value in protocol["changes"].items()]
    if "train" in data:
        words.append(f"--pooling {head['pooling']} --learning-rate {head['learning_rate']:g}")
        words.append(f"--weight-decay {head['weight_decay']:g}")
        words += [f"--seed {seed}" for seed in found["seeds"]]
    return shorten_machine_paths(" ".join(words))


def _as_option(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_as_option, value))
    return "none" if value is None else str(value)


# ---------------------------------------------------------------------------------------------------------------------
# Fine-tuning and pretraining
# ---------------------------------------------------------------------------------------------------------------------


def _facts_of_tuning(folder: Path, datasets: Sequence[str]) -> RunFacts:
    settings = read_json(folder / TUNING_FILE)
    training = {
        "started from": str(settings["model"]),
        "what was trained": f"fine-tuning, {settings['mode']}",
        "data": f"{settings['num_videos']:,} videos of {settings['num_classes']:,} classes",
        "epochs": f"{settings['num_epochs']}, {settings['batch_size']} videos a step on each device",
        "weight decay": f"{settings['weight_decay']:g}",
        "seed": str(settings["seed"]),
    }
    if settings.get("learning_rate") is not None:
        training["learning rate"] = f"{settings['learning_rate']:g}"
    return RunFacts(
        origin=str(settings["model"]),
        training={name: shorten_machine_paths(text) for name, text in training.items()},
        results=_results_of_tuning(folder, settings, datasets),
    )


def _results_of_tuning(folder: Path, settings: Mapping[str, Any], datasets: Sequence[str]) -> list[CardResult]:
    history = read_json(folder / METRICS_FILE) if (folder / METRICS_FILE).is_file() else []
    rows = [row for row in history if "eval_top1" in row]
    if not rows:
        return []
    last = rows[-1]
    common: dict[str, Any] = {
        "task": "video-classification",
        "dataset": datasets[0] if datasets else "validation videos of the fine-tuning",
        "protocol": f"fine-tuned ({settings['mode']}); one view, {settings['num_segments']} segments; "
        f"{last['eval_num_videos']:,} validation videos; after epoch {last['epoch']:g}",
        "source": "measured by vjepa-hub finetune",
        "command": shorten_machine_paths(
            f"vjepa-hub finetune {settings['model']} --mode {settings['mode']} --num-epochs {settings['num_epochs']} "
            f"--batch-size {settings['batch_size']} --seed {settings['seed']} --train train.csv --val validation.csv"
        ),
    }
    names = ["top1", *(["top5"] if settings["num_classes"] > 5 else [])]
    return [_percent(name, last[f"eval_{name}"], common) for name in names]


def _facts_of_pretraining(folder: Path) -> RunFacts:
    try:
        recipe = yaml.safe_load((folder / RECIPE_FILE).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RefusedModelError(f"{folder / RECIPE_FILE} is no recipe ({error}); restore it") from error
    if not isinstance(recipe, dict):
        raise RefusedModelError(f"{folder / RECIPE_FILE} is no recipe; restore it")
    training = {"recipe": str(recipe.get("name")), "data": _describe_data(recipe)}
    training |= {"first weights": str(recipe.get("initial") or "random"), "steps": _count_steps(folder)}
    for name, text in (recipe.get("training") or {}).items():
        if re.search("rate|decay|momentum|batch|seed", name):
            training[name.replace("_", " ")] = str(text)
    shortened = {name: shorten_machine_paths(text) for name, text in training.items() if text}
    return RunFacts(origin=recipe.get("initial"), training=shortened)


def _describe_data(recipe: Mapping[str, Any]) -> str:
    shares = [share["path"] if isinstance(share, dict) else str(share) for share in recipe.get("data") or []]
    if shares:
        return ", ".join(Path(share).name for share in shares)
    made = recipe.get("synthetic")
    if not made:
        return ""
    content = f" of {made['kind']}" if made.get("kind", "shapes") != "shapes" else ""
    return f"{made['num_videos']:,} videos{content} that vjepa_hub made itself"


def _count_steps(folder: Path) -> str:
    """The last step of the log, empty where there is none."""
    if not (folder / METRICS_TABLE).is_file():
        return ""
    with (folder / METRICS_TABLE).open(newline="", encoding="utf-8") as file:
        steps = [row["step"] for row in csv.DictReader(file) if row.get("step")]
    return f"{int(float(steps[-1])):,}" if steps else ""


def released_origin(origin: str | None, weights_origin: str | None) -> str | None:
    """The released model that weights go back to, as far as a run knows; its licence holds for them too.

    Args:
        origin: See `RunFacts`.
        weights_origin: Of the configuration.
    """
    for entry in MODELS.values():
        if entry.checkpoint is None:
            continue
        names = "|".join(re.escape(name) for name in (entry.name, entry.checkpoint.rsplit("/", 1)[-1]))
        if origin == entry.name or re.search(rf"(?<![\w-])({names})(?![\w-])", weights_origin or ""):
            return entry.name
    return None
