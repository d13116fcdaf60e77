"""Files of a publication with their card, gathered and checked. Nothing is requested here.

Of a folder are sent: the weights (safetensors, in the shards that `save_pretrained` made), configuration and
processor, the three Python files for `trust_remote_code`, the card, and the records of the run (recipe, settings,
logs, results); plots if wanted. Nothing else: checkpoints, videos and pickles stay where they are. In what is sent,
absolute paths of this machine are shortened to their last name, and addresses have neither user, password nor query;
the folder itself is not changed.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.run_files import (
    CLASSES_TABLE,
    EVALUATION_FILE,
    METRICS_FILE,
    METRICS_TABLE,
    PLOTS,
    RECIPE_FILE,
    REPRODUCTION_FILE,
    RESULTS_FILE,
    RUN_FILE,
    RunRecord,
    read_run,
    without_credentials,
)
from ..hub.default_processor import default_processor
from ..hub.loading import UNTRAINED, open_model
from ..hub.safety import CONFIG_FILE, RefusedModelError, check_folder, read_config
from ..model.configuration_vjepa import VJEPAConfig
from ..model.modeling_vjepa import AUTO_CLASSES, VJEPAForVideoClassification, VJEPAPreTrainedModel
from ..model.video_processing_vjepa import VJEPAVideoProcessor
from .card import check_card, complete_card, render_card
from .facts import EVALUATION_RECORD, CardOptions, RunFolder, find_run, gather_facts, public_record
from .machine_paths import find_machine_paths, shorten_machine_paths
from .model_folder import (
    CARD_FILE,
    IMAGE_PROCESSOR_FILE,
    MODEL_CODE,
    PROCESSOR_FILE,
    is_pickle,
    list_differing_code,
    list_weight_files,
    package_code,
)

# What travels beside the model, and what only with the plots
RECORDS = (
    *(RECIPE_FILE, METRICS_TABLE, RESULTS_FILE, CLASSES_TABLE, METRICS_FILE),
    *(REPRODUCTION_FILE, EVALUATION_FILE),
)
_TEXT_ENDINGS = frozenset((".json", ".yaml", ".yml", ".csv", ".txt", ".md"))
_CHUNK = 1 << 20


class UnpublishableError(ValueError):
    """Problems of a publication; the message names each with its remedy, and nothing was sent.

    Attributes:
        problems: One text for each.
    """

    def __init__(self, source: str | Path, problems: Sequence[str]):
        self.problems = list(problems)
        super().__init__(f"{source} was not published: " + "; ".join(self.problems))


@dataclass(frozen=True)
class PublishedFile:
    """A file of a publication.

    Attributes:
        path: Where it goes in the repository.
        content: A file on disk, or the bytes themselves where they differ from what is on disk.
    """

    path: str
    content: Path | bytes = field(repr=False)

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def read_text(self) -> str:
        """Its content.

        Raises:
            ValueError: It is not in UTF-8.
        """
        content = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path} is not text in UTF-8 ({error}): write it anew, or take it out") from error

    def is_same_as(self, remote: Any) -> bool:
        """Return whether the repository has it already, to the letter.

        Args:
            remote: What `HfApi.model_info(files_metadata=True)` says of the file.
        """
        if remote.size is not None and remote.size != self.num_bytes:
            return False
        if remote.lfs is not None:
            return remote.lfs.sha256 == hash_content(self.content, "sha256")
        return remote.blob_id == hash_content(self.content, "git")


@dataclass(frozen=True, kw_only=True)
class Publication:
    """All that is to be sent, checked.

    Attributes:
        run: Where it comes from.
        repo_id: Where it goes.
        config: Of the model.
        files: In the order of their paths, with the card.
        problems: What forbids the publication; empty where it can go.
        notes: What the publisher should know.
        optional_metadata: What its card may lack, see `check_card`.
    """

    run: RunFolder
    repo_id: str
    config: VJEPAConfig
    files: Sequence[PublishedFile]
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()
    optional_metadata: Sequence[str] = ()

    @property
    def card(self) -> str:
        """The text of the card."""
        return next(file.read_text() for file in self.files if file.path == CARD_FILE)

    def with_card(self, text: str, *, notes: Sequence[str] = ()) -> "Publication":
        """The same with another card, which is checked in the place of the old one.

        Args:
            text: Of the card.
            notes: More of them.
        """
        card = PublishedFile(CARD_FILE, text.encode())
        files = sorted([*(file for file in self.files if file.path != CARD_FILE), card], key=lambda file: file.path)
        problems = check_card(text, self.config, optional=self.optional_metadata)
        found = [f"{CARD_FILE}: {problem}" for problem in problems]
        others = [problem for problem in self.problems if not problem.startswith(f"{CARD_FILE}: ")]
        return replace(self, files=files, problems=[*others, *found], notes=[*self.notes, *notes])


@contextmanager
def folder_of(
    source: str | Path | VJEPAPreTrainedModel, processor: VJEPAVideoProcessor | None = None
) -> Iterator[Path]:
    """The folder of a model: its own, or one that is written for as long as it is needed.

    Args:
        source: A folder, a model, or the name of one, as for `open_model`.
        processor: Of the model; by default that of its crop size.

    Raises:
        KeyError: There is no such folder, nor a model of that name.
    """
    if not isinstance(source, VJEPAPreTrainedModel) and not Path(source).is_dir():
        opened = open_model(source)
        source, processor = opened.model, opened.processor
    if isinstance(source, VJEPAPreTrainedModel):
        with tempfile.TemporaryDirectory(prefix="vjepa_hub-") as written:
            source.save_pretrained(written)
            (processor or _default_processor(source.config)).save_pretrained(written)
            yield Path(written)
        return
    yield Path(source)


# ---------------------------------------------------------------------------------------------------------------------
# What is sent
# ---------------------------------------------------------------------------------------------------------------------


def plan_publication(
    folder: str | Path,
    repo_id: str,
    *,
    card_options: CardOptions | None = None,
    with_plots: bool = False,
    extra_files: Sequence[str | Path] = (),
) -> Publication:
    """Gather the files of a publication with their card, and check them. Nothing is requested.

    Args:
        folder: As for `publish`.
        repo_id: As for `publish`.
        card_options: As for `publish`.
        with_plots: As for `publish`.
        extra_files: As for `publish`.

    Raises:
        UnpublishableError: The model is damaged, or the facts of its card contradict each other.
        FileNotFoundError: The folder holds no model, or an extra file is missing.
    """
    run = find_run(folder)
    try:
        check_folder(run.model)
        files = {file.path: file for file in _model_files(run.model)}
        files |= {file.path: file for file in _record_files(run, with_plots)}
        config = _published_config(files[CONFIG_FILE])
        options = card_options or CardOptions()
        evaluations = [_read_evaluation(Path(given)) for given in options.results]
        files |= {file.path: file for file in _evaluation_files(evaluations)}
        generated = render_card(gather_facts(run, repo_id, config, options, evaluations))
        text = complete_card(_present_card(run), generated)
        files |= {file.path: file for file in _extra_files(extra_files, files)}
    except ValueError as error:  # RefusedModelError, and what no card can be made from
        raise UnpublishableError(folder, [str(error)]) from error
    publication = Publication(
        run=run,
        repo_id=repo_id,
        config=config,
        files=sorted(files.values(), key=lambda file: file.path),
        problems=_file_problems(files.values()),
        notes=_notes(run, config, files),
        optional_metadata=() if options.requires_license else ("license",),
    )
    return publication.with_card(text)


def _model_files(folder: Path) -> Iterator[PublishedFile]:
    """Weights, configuration, processor and code; what an old folder lacks is added from this package."""
    yield from (PublishedFile(name, folder / name) for name in list_weight_files(folder))
    yield _with_code_named(_shortened(PublishedFile(CONFIG_FILE, folder / CONFIG_FILE)))
    with tempfile.TemporaryDirectory(prefix="vjepa_hub-") as written:
        _default_processor(read_config(folder / CONFIG_FILE)).save_pretrained(written)
        for name in (PROCESSOR_FILE, IMAGE_PROCESSOR_FILE):
            if (folder / name).is_file():
                yield _shortened(PublishedFile(name, folder / name))
            else:
                yield PublishedFile(name, Path(written, name).read_bytes())
    for name in MODEL_CODE:
        yield PublishedFile(name, folder / name if (folder / name).is_file() else package_code(name))


def _with_code_named(config: PublishedFile) -> PublishedFile:
    """A configuration that names the classes for `trust_remote_code`."""
    fields = json.loads(config.read_text())
    if "AutoModel" in (fields.get("auto_map") or {}):
        return config
    named = {auto: f"modeling_vjepa.{name}" for auto, name in AUTO_CLASSES.items()}
    fields["auto_map"] = {"AutoConfig": "configuration_vjepa.VJEPAConfig", **named}
    return PublishedFile(CONFIG_FILE, (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode())


def _default_processor(config: VJEPAConfig) -> VJEPAVideoProcessor:
    is_classifier = VJEPAForVideoClassification.__name__ in (config.architectures or ())
    return default_processor(config, is_classifier=is_classifier)


def _published_config(file: PublishedFile) -> VJEPAConfig:
    """The configuration as it will be read from the repository."""
    with tempfile.TemporaryDirectory(prefix="vjepa_hub-") as written:
        Path(written, CONFIG_FILE).write_text(file.read_text(), encoding="utf-8")
        return read_config(Path(written, CONFIG_FILE))


def _record_files(run: RunFolder, with_plots: bool) -> Iterator[PublishedFile]:
    record = run.read_record()
    if record is not None:
        yield _record_file(RUN_FILE, record)
    found = [name for name in (*RECORDS, *(PLOTS if with_plots else ())) if (run.records / name).is_file()]
    yield from (_shortened(PublishedFile(name, run.records / name)) for name in found)


def _record_file(name: str, record: RunRecord) -> PublishedFile:
    text = public_record(record).model_dump_json(indent=1) + "\n"
    return PublishedFile(name, shorten_machine_paths(text).encode())


def _read_evaluation(given: Path) -> RunRecord:
    """The record of an evaluation, by its folder or a file in it."""
    return read_run(given if given.is_dir() else given.parent)


def _evaluation_files(evaluations: Sequence[RunRecord]) -> Iterator[PublishedFile]:
    yield from (_record_file(EVALUATION_RECORD.format(number), one) for number, one in enumerate(evaluations, 1))


def _present_card(run: RunFolder) -> str:
    """The card in the folder; empty where there is none."""
    found = [folder / CARD_FILE for folder in (run.model, run.records) if (folder / CARD_FILE).is_file()]
    return PublishedFile(CARD_FILE, found[0]).read_text() if found else ""


def _extra_files(given: Sequence[str | Path], present: Mapping[str, PublishedFile]) -> Iterator[PublishedFile]:
    for path in map(Path, given):
        if not path.is_file():
            raise FileNotFoundError(f"the extra file {path} is not there")
        if path.name in present:
            raise RefusedModelError(f"the extra file {path} has the name of a file of the model; rename it")
        yield PublishedFile(path.name, path)


def _shortened(file: PublishedFile) -> PublishedFile:
    """The file without paths of this machine and credentials; the very file where it has none, or is no text."""
    if Path(file.path).suffix not in _TEXT_ENDINGS:
        return file
    text = file.read_text()
    public = shorten_machine_paths(without_credentials(text))
    return file if public == text else PublishedFile(file.path, public.encode())


def _file_problems(files: Iterable[PublishedFile]) -> list[str]:
    problems = []
    for file in files:
        if is_pickle(file.path):
            problems.append(f"{file.path} can run code when it is read: publish safetensors or text in its place")
        elif Path(file.path).suffix in _TEXT_ENDINGS and file.path != CARD_FILE:
            found = find_machine_paths(file.read_text())
            problems += [f"{file.path} names paths of this machine ({', '.join(found[:3])}): take them out"] * bool(
                found
            )
    return problems


def _notes(run: RunFolder, config: VJEPAConfig, files: Mapping[str, PublishedFile]) -> list[str]:
    notes = [
        f"{name} is not that of vjepa_hub {__version__}: loading and saving the model renews it"
        for name in list_differing_code(run.model)
    ]
    notes += [
        f"paths of this machine are shortened in {name}"
        for name, file in files.items()
        if isinstance(file.content, bytes) and Path(name).suffix in _TEXT_ENDINGS and _is_shortened(run, name)
    ]
    if not (run.model / PROCESSOR_FILE).is_file():
        notes.append(f"the folder has no {PROCESSOR_FILE}: the default of its crop size is sent")
    if (config.weights_origin or "").startswith(UNTRAINED):
        notes.append(f"the weights are {config.weights_origin}: the card says so")
    return notes


def _is_shortened(run: RunFolder, name: str) -> bool:
    places = [folder / name for folder in (run.model, run.records) if (folder / name).is_file()]
    return any(find_machine_paths(place.read_text(encoding="utf-8")) for place in places)


def hash_content(content: Path | bytes, kind: str) -> str:
    """The hash by which the Hub knows a file.

    Args:
        content: A file, or its bytes.
        kind: "sha256", of what is stored as LFS; or "git", of other files.
    """
    num_bytes = len(content) if isinstance(content, bytes) else content.stat().st_size
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % num_bytes, usedforsecurity=False)
    if isinstance(content, bytes):
        digest.update(content)
        return digest.hexdigest()
    with content.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
