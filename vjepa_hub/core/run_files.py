"""Names and typed contents of the files that a run writes, and the record of the run itself: `run.json`.

A record is written at the start of a run (state running) and whole at its end (complete, stopped or failed, with the
cause); a resumed run updates it. Cards, summaries and reports are made from it. No address in it has a user, a
password, a query or a token.
"""

import logging
import math
import os
import platform
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .. import __version__
from .files import require_replaceable, write_whole, writing

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

RUN_FILE, RESULTS_FILE, RECIPE_FILE, METRICS_TABLE = "run.json", "results.json", "recipe.yaml", "metrics.csv"
CLASSES_TABLE, CLASSIFIER_FOLDER, METRICS_FILE = "per_class.csv", "classifier", "metrics.json"
# Of a training or an evaluation, beside its record and its recipe
_WRITTEN_BY_RUNS = (
    RESULTS_FILE,
    METRICS_FILE,
    METRICS_TABLE,
    CLASSES_TABLE,
    CLASSIFIER_FOLDER,
    "README.md",
    "config.json",
    "model.safetensors",
    "head.safetensors",
    "heads.pt",
    "confusion.png",
    "report.html",
    "report.png",
    "detections.csv",
)
REPRODUCTION_FILE, EVALUATION_FILE = "reproduction.json", "evaluation.json"
PLOTS = ("report.png", "confusion.png")

Kind = Literal["pretrain", "probe", "finetune", "localise", "features", "reproduce"]
State = Literal["running", "complete", "stopped", "failed"]

_LIBRARIES = ("torch", "torchvision", "transformers", "huggingface_hub", "numpy", "timm", "av")
# User and password, address, query and fragment
_ADDRESS = re.compile(r"([A-Za-z][\w+.\-]*://)(?:[^\s/?#'\"]*@)?([^\s?#'\"]*)(?:[?#][^\s'\"]*)?")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}\b")


def without_credentials(text: str) -> str:
    """A text whose addresses have neither user, password, query nor fragment, and that has no token of the Hub."""
    return _TOKEN.sub("", _ADDRESS.sub(r"\1\2", text))


class Record(BaseModel):
    """Base of what is stored: frozen, every key known, its texts without credentials."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _clean(cls, values: Any) -> Any:
        return _without_credentials_below(values)

    @classmethod
    def read(cls, path: Path, *, remedy: str) -> "Self":
        """Read a JSON file of this form.

        Raises:
            ValueError: It is damaged, or of another form; the message names the file, the key and the remedy.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
            raise ValueError(f"{path} is not as vjepa_hub {__version__} writes it ({where}); {remedy}") from error


def _without_credentials_below(value: Any) -> Any:
    if isinstance(value, str | os.PathLike):
        return without_credentials(str(value))
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such number; a field that is one reads the text back
    if isinstance(value, Mapping):
        return {key: _without_credentials_below(entry) for key, entry in value.items()}
    return [_without_credentials_below(entry) for entry in value] if isinstance(value, list | tuple) else value


class ModelFacts(Record):
    """The model that a run began with.

    Attributes:
        name: What it was opened by: a registered name, a name on the Hub, a folder or a file.
        is_local: Whether that is a path of the machine, which cards do not name.
        weights: Sentence on the origin of its weights.
        revision: Commit on the Hub.
        sha256: Fingerprint of its weights.
    """

    name: str
    is_local: bool = False
    weights: str = ""
    revision: str | None = None
    sha256: str | None = None

    @classmethod
    def of(cls, name: str | Path, **facts: Any) -> "Self":
        """Facts of what was opened by a name or path, which may stand behind a prefix such as `untrained:`."""
        return cls(name=str(name), is_local=os.path.exists(str(name).rpartition(":")[2]), **facts)

    @property
    def placeholder(self) -> str:
        """Name that stands for it on a card: `MODEL` for a path, else its own."""
        prefix, separator, _ = self.name.rpartition(":")
        return f"{prefix}{separator}MODEL" if self.is_local else self.name


class DataFacts(Record):
    """A set of videos or images that a run read, or another file that it was given.

    Attributes:
        role: "videos" (without labels), "train", "validation", "class names", ...
        source: Path or address, as it was given.
        is_local: Whether it is a path of the machine, which cards do not name.
        description: Sentence on what it holds.
        num_videos: Videos, or images.
        num_classes: Classes of the labels; None without labels.
        share: Share of the labels that was used.
        split: Number of the draw of that share.
        sha256: Fingerprint of names and labels, or of the file that lists them.
    """

    role: str
    source: str
    is_local: bool = False
    description: str = ""
    num_videos: int | None = None
    num_classes: int | None = None
    share: float = 1.0
    split: int | None = None
    sha256: str | None = None

    @classmethod
    def of(cls, role: str, given: Any, **facts: Any) -> "Self":
        """Facts of what was given: a path, an address, or a set that is open, of which its description stands."""
        is_path = isinstance(given, str | os.PathLike)
        source = str(given) if is_path else str(facts.get("description", type(given).__name__))
        return cls(role=role, source=source, is_local=is_path and os.path.exists(given), **facts)

    @property
    def placeholder(self) -> str:
        """Name that stands for it on a card: `VIDEOS`, `TRAIN_LABELS.csv`; an address or a name stands for itself."""
        if not self.is_local:
            return self.source
        name = self.role.upper().replace(" ", "_")
        if name.startswith("VIDEOS"):
            return name
        return f"{name}{'_LABELS' if self.num_classes is not None else ''}{Path(self.source).suffix}"


class Result(Record):
    """A measured or published number.

    Attributes:
        task: The Hub's name of the task, such as "video-classification".
        dataset: Name of the data set.
        metric: Name of the metric, with its unit.
        value: In that unit.
        protocol: Sentence on how it was measured, without what was changed and the share of labels.
        pooling: Of the head on a frozen encoder; empty for other models.
        is_selected: Whether its head stands for the encoder.
        metric_type: The Hub's name of the metric.
        source: Who measured it.
        source_address: Where a published number stands.
        command: The command that repeats it; None: that of the run.
    """

    task: str
    dataset: str
    metric: str
    value: float
    protocol: str
    pooling: str = ""
    is_selected: bool = True
    metric_type: str = "accuracy"
    source: str = ""
    source_address: str | None = None
    command: str | None = None


class Machine(Record):
    """Hardware of a run.

    Attributes:
        processor: Its name.
        num_processors: Of the machine.
        accelerator: Name of the GPUs; empty without.
        num_processes: That ran together.
    """

    processor: str = Field(default_factory=lambda: processor_name())
    num_processors: int = Field(default_factory=lambda: os.cpu_count() or 1)
    accelerator: str = Field(default_factory=lambda: _accelerator_name())
    num_processes: int = Field(default_factory=lambda: int(os.environ.get("WORLD_SIZE", "1")))


class RunRecord(Record):
    """Typed contents of `run.json`.

    Attributes:
        format: Of this file.
        kind: The command.
        state: How far the run came.
        cause: Why it stopped or failed.
        command: Words of the command that started it, or that would do the same, after `vjepa-hub`.
        package: Version of vjepa_hub.
        libraries: Versions, with that of Python.
        machine: Where it ran.
        started: Of the first start.
        ended: Of the last end.
        num_starts: Above 1 for a resumed run.
        seconds: All starts together.
        seeds: Of the run.
        settings: The full tree.
        changed: Those that differ from the named recipe or protocol, or from the defaults, by dotted key.
        model: What it began with; None for random weights.
        data: What it read.
        results: What it measured.
        steps: Optimiser steps that were done.
        max_steps: Optimiser steps of the whole run.
        measures: Measures at the end, by their words.
        warnings: What is wrong with the run, by its own rules.
    """

    format: Literal[1] = 1
    kind: Kind
    state: State = "running"
    cause: str | None = None
    command: tuple[str, ...]
    package: str = __version__
    libraries: dict[str, str] = Field(default_factory=lambda: library_versions())
    machine: Machine = Field(default_factory=Machine)
    started: datetime = Field(default_factory=lambda: _now())
    ended: datetime | None = None
    num_starts: int = 1
    seconds: float = 0.0
    seeds: tuple[int, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict)
    changed: dict[str, Any] = Field(default_factory=dict)
    model: ModelFacts | None = None
    data: tuple[DataFacts, ...] = ()
    results: tuple[Result, ...] = ()
    steps: int | None = None
    max_steps: int | None = None
    measures: dict[str, float | None] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def differences(self, other: "RunRecord") -> list[str]:
        """Names of the settings, data, weights and seeds by which another run is not the same one."""
        names = {*changed_settings(self.settings, other.settings), *changed_settings(other.settings, self.settings)}
        mine, theirs = ({fact.role: fact for fact in record.data} for record in (self, other))
        identity = ("num_videos", "num_classes", "share", "split", "sha256")
        for role in mine.keys() | theirs.keys():
            pair = mine.get(role), theirs.get(role)
            if None in pair or any(getattr(pair[0], name) != getattr(pair[1], name) for name in identity):
                names.add(role)
        models = [record.model and (record.model.sha256 or record.model.name) for record in (self, other)]
        names |= {"model"} if models[0] != models[1] else set()
        return sorted(names | ({"seeds"} if self.seeds != other.seeds else set()))


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0)


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            # The module tells its build too, such as +cpu
            found[name] = str(getattr(sys.modules.get(name), "__version__", None) or version(name))
        except PackageNotFoundError:
            continue
    return found


def processor_name() -> str:
    """Name of the processor as Linux tells it; elsewhere the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _accelerator_name() -> str:
    import torch

    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""


def changed_settings(tree: Mapping[str, Any], default: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings of a tree that differ from those of another, by dotted key."""
    changed: dict[str, Any] = {}
    for key, value in tree.items():
        other = default.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            changed |= changed_settings(value, other, f"{prefix}{key}.")
        elif key not in default or value != other:
            changed[f"{prefix}{key}"] = value
    return changed


# ---------------------------------------------------------------------------------------------------------------------
# The file
# ---------------------------------------------------------------------------------------------------------------------


class RunFile:
    """`run.json` of a run at work.

    Args:
        folder: Of the run.
        record: At its start. A record that is there, of an earlier start, gives the time of the first one.
        is_writer: False in all processes but the first, which write nothing.

    Attributes:
        record: As it was last written.
    """

    def __init__(self, folder: str | Path, record: RunRecord, *, is_writer: bool = True):
        self.folder, self._is_writer = Path(folder), is_writer
        self._began, self._seconds_before = time.monotonic(), 0.0
        self.record = record

    def update(self, **values: Any) -> None:
        """Change fields of the record, and write it whole."""
        seconds = round(self._seconds_before + time.monotonic() - self._began, 1)
        kept = {name: getattr(self.record, name) for name in RunRecord.model_fields}
        self.record = RunRecord(**{**kept, "seconds": seconds, **values})
        if self._is_writer:
            write_whole(self.folder / RUN_FILE, self.record.model_dump_json(indent=1) + "\n")

    @contextmanager
    def recording(self, *, stopped_by: tuple[type[BaseException], ...] = ()) -> Iterator["RunFile"]:
        """Record a run from its start to its end, however it ends.

        Args:
            stopped_by: Errors that mean a stop on purpose, beside KeyboardInterrupt.

        Raises:
            ValueError: The folder has a `run.json` that is no record.
            WriteError: The disk is full or read-only, whichever library writes.
        """
        earlier = self._earlier()
        if earlier is not None:
            self._seconds_before = earlier.seconds
            self.update(started=earlier.started, num_starts=earlier.num_starts + 1)
        else:
            self.update()
        try:
            with writing(self.folder):
                yield self
        except BaseException as error:
            is_stop = isinstance(error, (KeyboardInterrupt, SystemExit, *stopped_by))
            try:
                cause = f"{type(error).__name__}: {error}".strip(": ")
                self.update(state="stopped" if is_stop else "failed", cause=cause, ended=_now())
            except OSError as unwritten:  # the run's own error must come through
                logger.warning("%s", unwritten)
            raise
        self.update(state="complete", cause=None, ended=_now())

    def _earlier(self) -> RunRecord | None:
        if not (self.folder / RUN_FILE).exists():
            return None
        found = read_run(self.folder)  # a file that is no record is somebody's own, and is not replaced
        return found if found.kind == self.record.kind else None


def require_own_folder(folder: str | Path, kind: Kind) -> None:
    """Refuse a folder whose files a run would replace, though no run of its kind has written them.

    Args:
        folder: Of the run; need not be there.
        kind: The command.

    Raises:
        FileExistsError: It has a file of a name that runs write, and no record of a run of this kind.
        ValueError: Its `run.json` is no record.
    """
    folder = Path(folder)
    earlier = read_run(folder) if (folder / RUN_FILE).exists() else None
    require_replaceable(
        [folder / name for name in _WRITTEN_BY_RUNS], is_own=lambda _: earlier is not None and earlier.kind == kind
    )


def require_own_model(folder: str | Path, *, inputs: Iterable[str | Path] = ()) -> None:
    """Refuse a folder with a model's files that are read, or are not those of a V-JEPA model.

    Args:
        folder: For a model; need not be there.
        inputs: Files that the same command reads.

    Raises:
        FileExistsError: With the first of them.
    """
    folder = Path(folder)
    config = folder / "config.json"
    is_own = config.is_file() and '"model_type": "vjepa"' in config.read_text(encoding="utf-8", errors="replace")
    processors = ("video_preprocessor_config.json", "preprocessor_config.json")
    names = ("config.json", "model.safetensors", *processors, "README.md")
    require_replaceable([folder / name for name in names], inputs=inputs, is_own=lambda _: is_own)


def read_run(folder: str | Path) -> RunRecord:
    """Read the `run.json` of a folder.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, or of another format.
    """
    path = Path(folder) / RUN_FILE
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; give the folder of a run of this version of vjepa_hub")
    return RunRecord.read(path, remedy="delete it, or name another folder")
