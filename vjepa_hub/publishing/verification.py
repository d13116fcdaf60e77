"""Does a published model hold what it says: hashes, weights, configuration, code and card, checked one by one.

Nothing of the repository is run, but for the card's code where that is asked for.
"""

import glob
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from .. import __version__
from ..core.run_files import CLASSIFIER_FOLDER
from ..hub.registry import find_bundled
from ..hub.safety import CONFIG_FILE, INDEX_FILE, RefusedModelError, check_folder, check_name, read_stored_tensors
from ..model.configuration_vjepa import VJEPAConfig
from ..model.video_processing_vjepa import VJEPAVideoProcessor
from .card import check_card, compare_with_facts, python_blocks, read_card
from .facts import find_run
from .hub_errors import hub_errors
from .model_folder import (
    CARD_FILE,
    MODEL_CODE,
    PROCESSOR_FILE,
    find_model_class,
    is_pickle,
    list_differing_code,
    list_weight_files,
)
from .publication import hash_content

PASSED, FAILED, REMARK, SKIPPED = "passed", "failed", "remark", "skipped"
_PLAIN_NAME = re.compile(r"(?:[\w.-]+/)?[\w.-]+")
_VIDEO = "video.mp4"
_MAX_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What.
        state: "passed", "failed", "remark" (worth knowing, no fault) or "skipped" (it could not be looked at).
        detail: What was found.
    """

    name: str
    state: str
    detail: str

    @property
    def passed(self) -> bool:
        """Return whether nothing is wrong here."""
        return self.state != FAILED


@dataclass(frozen=True, kw_only=True)
class VerificationReport:
    """Findings of a verification.

    Attributes:
        name: The repository or folder.
        commit: That was verified; None for a folder.
        folder: Where the files lie.
        config: None where it cannot be read.
        checks: In their order.
    """

    name: str
    commit: str | None
    folder: Path
    config: VJEPAConfig | None
    checks: Sequence[Check]

    @property
    def passed(self) -> bool:
        """Return whether no check failed."""
        return all(check.passed for check in self.checks)

    @property
    def is_classifier(self) -> bool:
        """Return whether the model is a classifier."""
        return self.config is not None and "VJEPAForVideoClassification" in (self.config.architectures or [])

    def with_check(self, check: Check) -> "VerificationReport":
        """The report with one check more."""
        return VerificationReport(
            name=self.name, commit=self.commit, folder=self.folder, config=self.config, checks=[*self.checks, check]
        )


def verify_model(name: str | Path, *, revision: str | None = None) -> VerificationReport:
    """Check a folder, a model that the package carries, or a repository of the Hub, by one of the three below.

    Args:
        name: A folder, a name of the registry, or `owner/name`.
        revision: Branch, tag or commit of the repository; by default main.
    """
    bundled = find_bundled(str(name))
    if Path(name).is_dir():
        return verify_folder(name)
    return verify_repo(str(name), revision=revision) if bundled is None else verify_bundled(str(name), bundled)


def verify_repo(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    api: HfApi | None = None,
    cache_dir: str | Path | None = None,
) -> VerificationReport:
    """Download a repository and check it. What is in the cache already is not fetched again, but is hashed again.

    Args:
        repo_id: `owner/name`.
        revision: Branch, tag or commit; by default main.
        token: Of the Hub, for private repositories.
        api: Client of the Hub, with its endpoint and token.
        cache_dir: Where files go; by default huggingface_hub's cache.

    Raises:
        HubAccessError: The repository cannot be read. An OSError.
    """
    api = api or HfApi(token=token, library_name="vjepa_hub", library_version=__version__)
    with hub_errors(f"read {repo_id}" + (f" at {revision}" if revision else "")):
        info = api.model_info(repo_id, revision=revision, files_metadata=True)
    remote = {file.rfilename: file for file in info.siblings or []}
    try:
        for name in remote:
            check_name(name, repo_id)
    except RefusedModelError as error:
        refused = Check(name="file names", state=FAILED, detail=str(error))
        return VerificationReport(name=repo_id, commit=info.sha, folder=Path(), config=None, checks=[refused])
    # Pickles are not even fetched
    wanted = [name for name in remote if not is_pickle(name)]
    with hub_errors(f"download {repo_id}"):
        folder = Path(
            api.snapshot_download(
                repo_id, revision=info.sha, allow_patterns=[glob.escape(name) for name in wanted], cache_dir=cache_dir
            )
        )
    hashes = Check(name="hashes", **_state(*_compare_hashes(folder, {name: remote[name] for name in wanted})))
    return _report(repo_id, folder, list(remote), commit=info.sha, first=[hashes])


def verify_folder(folder: str | Path) -> VerificationReport:
    """Check a folder, as `verify_repo` does but for the hashes of the server.

    Args:
        folder: Of a model with its card.

    Raises:
        NotADirectoryError: There is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"there is no folder {folder}; give a folder, or owner/name for the Hub")
    if (folder / CLASSIFIER_FOLDER / CONFIG_FILE).is_file():  # the run of a probe has its model there
        folder = folder / CLASSIFIER_FOLDER
    names = [str(path.relative_to(folder)) for path in sorted(folder.iterdir()) if path.is_file()]
    skipped = Check(name="hashes", state=SKIPPED, detail="a folder has no server to compare with")
    return _report(str(folder), folder, names, commit=None, first=[skipped])


def verify_bundled(name: str, folder: Path) -> VerificationReport:
    """Check the files of a model that the package carries. Its code is the package's, and its card in the checkout.

    Args:
        name: Of the registry.
        folder: Its `bundled_folder`.
    """
    names = [path.name for path in folder.iterdir()]
    config, weights = _check_weights(folder)
    checks = [weights, _check_pickles(names)]
    if config is not None:
        checks.append(_check_processor(folder, config))
    return VerificationReport(name=name, commit=None, folder=folder, config=config, checks=checks)


def _report(
    name: str, folder: Path, names: Sequence[str], *, commit: str | None, first: Sequence[Check]
) -> VerificationReport:
    config, weights = _check_weights(folder)
    checks = [*first, weights]
    if config is not None:
        checks.append(_check_processor(folder, config))
    checks += [_check_pickles(names), _check_code(folder)]
    if config is not None:
        checks += _check_card(folder, config, is_repository=commit is not None)
    return VerificationReport(name=name, commit=commit, folder=folder, config=config, checks=checks)


def _check_weights(folder: Path) -> tuple[VJEPAConfig | None, Check]:
    """The configuration, if weights fit it, and what was found."""
    try:
        config = check_folder(folder)
        find_model_class(config)
        return config, Check(name="weights", state=PASSED, detail=_describe_weights(folder, config))
    except (RefusedModelError, OSError) as error:
        return None, Check(name="weights", state=FAILED, detail=str(error))


def _state(problems: Sequence[str], fine: str) -> dict[str, str]:
    """State and detail of a check that found these problems."""
    if not problems:
        return {"state": PASSED, "detail": fine}
    more = f"; and {len(problems) - _MAX_SHOWN} more" if len(problems) > _MAX_SHOWN else ""
    return {"state": FAILED, "detail": "; ".join(problems[:_MAX_SHOWN]) + more}


def _compare_hashes(folder: Path, remote: Mapping[str, Any]) -> tuple[list[str], str]:
    problems, num_bytes = [], 0
    for name, said in sorted(remote.items()):
        file = folder / name
        if not file.is_file():
            problems.append(f"{name} did not arrive")
            continue
        num_bytes += file.stat().st_size
        kind, wanted = ("git", said.blob_id) if said.lfs is None else ("sha256", said.lfs.sha256)
        if hash_content(file, kind) != wanted:
            problems.append(f"{name} is not what the server has: delete {file.resolve()}, and verify again")
    return problems, f"{len(remote)} files of {num_bytes / 1e6:,.1f} MB are those of the server"


def _describe_weights(folder: Path, config: VJEPAConfig) -> str:
    files = [name for name in list_weight_files(folder) if name != INDEX_FILE]
    shapes = [tensor.shape for name in files for tensor in read_stored_tensors(folder / name).values()]
    kind = (config.architectures or ["a model"])[0]
    return f"complete, {len(shapes)} tensors in {len(files)} files, keys and shapes of {kind}"


def _check_processor(folder: Path, config: VJEPAConfig) -> Check:
    if not (folder / PROCESSOR_FILE).is_file():
        return Check(
            name="processor", state=FAILED, detail=f"there is no {PROCESSOR_FILE}, which AutoVideoProcessor reads"
        )
    try:
        processor = VJEPAVideoProcessor.from_pretrained(folder)
    except (ValueError, TypeError, OSError) as error:
        return Check(name="processor", state=FAILED, detail=f"{PROCESSOR_FILE} cannot be read: {error}")
    crop = dict(processor.crop_size or {}).get("height")
    if crop not in (config.crop_size, _evaluated_crop(folder)):
        wrong = f"it crops to {crop} pixels, but the model's position table is made for {config.crop_size}"
        return Check(name="processor", state=FAILED, detail=wrong)
    return Check(name="processor", state=PASSED, detail=f"crops to {crop} pixels")


def _evaluated_crop(folder: Path) -> int | None:
    """Crop size that a run of the model chose instead of its own: positions are interpolated then."""
    try:
        record = find_run(folder).read_record()
    except RefusedModelError:
        return None  # the check of the card tells it
    return None if record is None else record.changed.get("crop_size")


def _check_pickles(names: Sequence[str]) -> Check:
    pickles = sorted(filter(is_pickle, names))
    if not pickles:
        return Check(name="pickles", state=PASSED, detail="none")
    detail = f"not needed, and neither fetched nor read here: {', '.join(pickles[:_MAX_SHOWN])}"
    return Check(name="pickles", state=REMARK, detail=detail)


def _check_code(folder: Path) -> Check:
    missing = [name for name in MODEL_CODE if not (folder / name).is_file()]
    if missing:
        detail = f"{', '.join(missing)} missing: it does not load without vjepa_hub"
        return Check(name="remote code", state=FAILED, detail=detail)
    differing = list_differing_code(folder)
    if differing:
        detail = f"{', '.join(differing)} not as in vjepa_hub {__version__}: of another version, or changed; read it"
        return Check(name="remote code", state=REMARK, detail=detail)
    return Check(name="remote code", state=PASSED, detail=f"as in vjepa_hub {__version__}")


def _check_card(folder: Path, config: VJEPAConfig, *, is_repository: bool) -> list[Check]:
    """The card against its rules, the configuration and the records beside it. Only a repository needs a licence."""
    if not (folder / CARD_FILE).is_file():
        return [Check(name="card", state=FAILED, detail=f"there is no {CARD_FILE}")]
    text = (folder / CARD_FILE).read_text(encoding="utf-8", errors="replace")
    problems, remark = check_card(text, config, optional=() if is_repository else ("license",)), ""
    if not problems:
        try:
            problems, remark = compare_with_facts(text, find_run(folder), config)
        except ValueError as error:  # a record is damaged, or the licence is not that of the weights
            problems = [str(error)]
    card = Check(name="card", **_state(problems, remark or "as the configuration and the records beside it say"))
    if remark and not problems:
        card = replace(card, state=REMARK)
    if not python_blocks(text):
        return [card, Check(name="card's code", state=REMARK, detail="the card has no Python block")]
    return [card]


# ---------------------------------------------------------------------------------------------------------------------
# The card's code
# ---------------------------------------------------------------------------------------------------------------------


def run_card_code(report: VerificationReport, video: str | Path, *, timeout: float = 600) -> Check:
    """Run the first Python block of the card in a process of its own, on the files that were verified.

    The name that the block loads stands for the verified folder, and `video.mp4` for a real video.

    Args:
        report: Of `verify_repo` or `verify_folder`.
        video: What the block is to read.
        timeout: In seconds.
    """
    name = "card's code runs"
    if report.config is None:
        return Check(name=name, state=SKIPPED, detail="the model cannot be read, see above")
    card = report.folder / CARD_FILE
    blocks = python_blocks(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else []
    if not blocks:
        return Check(name=name, state=FAILED, detail="the card has no Python block")
    with _place_for(
        str(read_card(card.read_text(encoding="utf-8")).data.model_name), report.folder, Path(video)
    ) as place:
        command = [sys.executable, "-c", blocks[0]]
        try:
            child = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            return Check(name=name, state=FAILED, detail=f"it has not ended after {timeout:g} s")
    if child.returncode:
        last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        return Check(name=name, state=FAILED, detail=last)
    return Check(name=name, state=PASSED, detail="the first block ends without an error")


@contextmanager
def _place_for(name: str, folder: Path, video: Path) -> Iterator[Path]:
    """A folder where the name that the card's code loads is that of the verified folder."""
    with tempfile.TemporaryDirectory(prefix="vjepa_hub-") as made:
        place = Path(made)
        (place / _VIDEO).symlink_to(video.resolve())
        if _PLAIN_NAME.fullmatch(name) and not {".", ".."} & set(Path(name).parts):
            link = place / name
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(folder.resolve(), target_is_directory=True)
        yield place


def find_stated_accuracy(report: VerificationReport, dataset: str) -> float | None:
    """The top-1 accuracy that the card's `model-index` states, in percent; None where it states none.

    Args:
        report: Of a verification.
        dataset: Its name, where the card has results on several.
    """
    try:
        results = read_card((report.folder / CARD_FILE).read_text(encoding="utf-8")).data.eval_results or []
        stated = {
            str(result.dataset_name): float(result.metric_value)
            for result in results
            if str(result.metric_name).startswith("top-1")
        }
    except (OSError, ValueError, TypeError):
        return None  # check_card tells what is wrong with it
    return stated.get(dataset, next(iter(stated.values())) if len(stated) == 1 else None)


def compare_accuracy(stated: float, num_correct: int, num_videos: int) -> Check:
    """Return whether a slice of an evaluation is what one would see where a stated accuracy is true.

    Args:
        stated: Accuracy on the whole set, in percent.
        num_correct: Of the slice.
        num_videos: Of the slice. Small ones tell little: the interval is that of the slice at 99.9 % (Wilson).
    """
    share, z = num_correct / num_videos, 3.29
    centre = (share + z**2 / (2 * num_videos)) / (1 + z**2 / num_videos)
    half = z * math.sqrt(share * (1 - share) / num_videos + z**2 / (4 * num_videos**2)) / (1 + z**2 / num_videos)
    low, high = 100 * (centre - half), 100 * (centre + half)
    found = f"{num_correct} of {num_videos} right ({100 * share:.1f} %)"
    detail = f"{found}; the card states {stated:g} %, within {low:.1f} to {high:.1f} %"
    if low <= stated <= high:
        return Check(name="stated accuracy", state=PASSED, detail=detail)
    return Check(name="stated accuracy", state=FAILED, detail=detail.replace("within", "outside of"))
