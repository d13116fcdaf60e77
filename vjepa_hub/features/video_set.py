"""Features of many videos: one file each, by one process or several, and again after an interruption.

The outputs are the record of what is done. Each file appears whole under its name and says in its header what made it,
so a run that starts again skips what fits and goes on; what does not fit is an error, unless it is to be replaced.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.distributed import Processes, share_out
from ..core.files import require_replaceable, write_whole
from ..core.invocation import command_words
from ..core.progress import Progress, no_progress
from ..core.run_files import RUN_FILE, DataFacts, ModelFacts, RunFile, RunRecord
from ..data.clip_sampling import plan_windows
from ..data.video import VideoDecodingError
from ..hub.cost import EncodingCost, encoding_cost
from .extraction import (
    FORMAT,
    ExtractionSettings,
    FeatureExtractionError,
    VideoSource,
    as_record,
    describe_model,
    describe_source,
    extract_features_to_file,
    load_features,
    open_frames,
    read_header,
)
from .video_list import VideoFile, output_names

if TYPE_CHECKING:
    from ..hub.loading import OpenedModel

logger = logging.getLogger(__name__)

FAILED_VIDEOS = "failed.jsonl"
# Videos whose lengths stand for all in an estimate
NUM_LENGTHS = 8
# Videos in the command of a run that no command line started
MAX_NAMED = 100
OUTPUT_ENDINGS = (".safetensors", ".png")
_BYTES_OF_HEAD = 1 << 16
# What of a header has to agree for a file to be what this run would write. Names may differ: the digest tells.
_IDENTITY = (
    "format",
    "file",
    "source_bytes",
    "source_mtime_ns",
    "encoder_sha256",
    "encoder_details",  # what shapes do not tell
    "frames_per_clip",
    "patch_size",
    "tubelet_size",
    "dtype",
    "preprocessing",
    "window",
    "stride",
    "pooled",
    "dense",
    "levels",
)

AfterEach = Callable[[VideoSource, Path], Sequence[Path]]
"""Called with (video, its features file); returns the further files that it wrote."""


class OutputMismatchError(ValueError):
    """Outputs that are there already, but that this run would not have written."""


@dataclass(frozen=True)
class VideoReport:
    """Outcome for one video of a set.

    Attributes:
        source: The video.
        outputs: The files that this run wrote.
        num_clips: Clips, 0 where it failed.
        is_done_before: Whether its features were there from an earlier run.
        error: Why it failed, or None.
        name: Of the video, as messages and lists have it: a path or an address.
    """

    source: Path
    outputs: tuple[Path, ...] = ()
    num_clips: int = 0
    is_done_before: bool = False
    error: str | None = None
    name: str = ""


@dataclass(frozen=True)
class _Task:
    """One video: where its features go, whether they are there, and its size in bytes."""

    source: Path
    content: VideoSource
    output: Path
    is_done: bool
    num_bytes: int


def extract_video_set(
    videos: Sequence[str | Path | VideoFile],
    output_dir: str | Path,
    opened: OpenedModel,
    settings: ExtractionSettings,
    *,
    overwrite: bool = False,
    after_each: AfterEach | None = None,
    progress: Progress = no_progress,
    processes: Processes | None = None,
) -> list[VideoReport]:
    """Features of several videos, one file each. One that cannot be read is reported, and the others go on.

    Features that are there already are kept where they were made from the same file with the same weights and
    settings; the same call after an interruption so goes on where it stopped. The videos that failed are listed in
    `failed.jsonl` in the output folder, and tried again by the next call.

    Args:
        videos: Video files, as `find_videos` lists them. One that is given twice is done once.
        output_dir: Folder for `NAME.safetensors`; made if it is not there. Names are those of `output_names`.
        opened: The model and its processor.
        settings: Windows, and what to keep.
        overwrite: Whether to replace outputs of these names that were made in another way.
        after_each: Called for each video with its features, also where they are kept (pictures).
        progress: Called before the first batch of clips of each video and after each batch.
        processes: Those that share the videos out among them; None: this one does all.

    Returns:
        One report for each video, in the order of `videos`, in every process.

    Raises:
        FolderInUseError: another run writes into the folder.
        FileExistsError: an output would replace an input, or a file that is none of ours; nothing is computed then.
        OutputMismatchError: an output is there that was made in another way; nothing is computed then.
        ValueError: a window shorter than a clip.
    """
    settings.require_window_for(opened.model.config.frames_per_clip)
    processes, folder, model_metadata = processes or Processes(), Path(output_dir), describe_model(opened)
    wanted = {**model_metadata, **settings.describe(opened.model.config.frames_per_clip)}
    endings = OUTPUT_ENDINGS if after_each is not None else OUTPUT_ENDINGS[:1]
    tasks = processes.from_first(lambda: _plan_set(videos, folder, wanted, overwrite, endings))
    described = settings.describe(opened.model.config.frames_per_clip)
    record = _record_of([task.source for task in tasks], folder, opened, described, model_metadata["encoder_sha256"])

    def numbered(place: int) -> Progress:
        return lambda what, done, total: progress(f"{what} ({place + 1} of {len(tasks)})", done, total)

    with processes.locking(folder), RunFile(folder, record, is_writer=processes.is_first).recording() as run:
        reports = []
        for place in _own_share(tasks, processes):
            task, outputs, error, num_clips = tasks[place], [], None, 0
            try:
                if not task.is_done:
                    extract_features_to_file(
                        task.content,
                        task.output,
                        opened,
                        settings,
                        progress=numbered(place),
                        model_metadata=model_metadata,
                    )
                    outputs = [task.output]
                outputs += after_each(task.content, task.output) if after_each is not None else []
                num_clips = load_features(task.output).num_clips
            except (VideoDecodingError, FeatureExtractionError) as failure:
                logger.warning("skipped %s: %s", task.source, failure)
                error = str(failure)
            name = as_record(task.content).name
            report = VideoReport(task.source, tuple(outputs), num_clips, task.is_done, error=error, name=name)
            reports.append((place, report))
        in_order = [report for _, report in sorted(processes.gather(reports), key=lambda numbered: numbered[0])]
        if processes.is_first:
            _list_failures(in_order, folder)
            num_failed = sum(report.error is not None for report in in_order)
            run.update(measures={"videos": len(in_order), "failed": num_failed})
    return in_order


def extraction_cost(
    videos: Sequence[str | Path | VideoFile], opened: OpenedModel, settings: ExtractionSettings, num_processes: int = 1
) -> EncodingCost:
    """Estimate memory and time of `extract_video_set`, from the lengths of a few of the videos.

    Args:
        videos: As for `extract_video_set`.
        opened: The model and its processor.
        settings: Windows, and what to keep.
        num_processes: Processes that share the videos.
    """
    step, num_clips = max(len(videos) // NUM_LENGTHS, 1), []
    frames_per_clip = opened.model.config.frames_per_clip
    chosen = settings.describe(frames_per_clip)
    for video in videos[::step][:NUM_LENGTHS]:
        content = video.record or video.path if isinstance(video, VideoFile) else video
        try:
            with open_frames(content, settings.backend, settings.item_timeout) as frames:
                windows = plan_windows(
                    frames.num_frames,
                    frames_per_clip=frames_per_clip,
                    window=int(chosen["window"]),
                    stride=int(chosen["stride"]),
                )
        except VideoDecodingError:  # told with its path and cause when its turn comes
            continue
        num_clips.append(len(windows))
    crop, weight = opened.processor.to_dict()["crop_size"], next(opened.model.parameters())
    return encoding_cost(
        opened.model.config,
        crop=(crop["height"], crop["width"]),
        num_frames=frames_per_clip,
        num_clips=round(len(videos) * sum(num_clips) / max(len(num_clips), 1)),
        clips_at_once=settings.clips_per_pass,
        dtype=weight.dtype,
        device=weight.device,
        num_processes=num_processes,
    )


def _record_of(
    sources: list[Path], folder: Path, opened: OpenedModel, settings: dict[str, str], sha256: str
) -> RunRecord:
    """The record of an extraction at its start; of many videos the command names the folder that all are below."""
    parents = {os.path.abspath(source.parent) for source in sources}
    names = sources if len(sources) <= MAX_NAMED or not sources else [os.path.commonpath(parents)]
    digest = hashlib.sha256("\0".join(source.name for source in sources).encode(errors="surrogateescape"))
    options: dict[str, Any] = {name: value for name, value in settings.items() if name in ("window", "stride")}
    options |= {"no_pooled": settings["pooled"] == "false", "no_dense": settings["dense"] == "false"}
    options["levels"] = settings["levels"] != "false"
    return RunRecord(
        kind="features",
        command=command_words("features", *names, model=opened.name, output_dir=folder, **options),
        settings=settings,
        model=ModelFacts.of(opened.name, weights=opened.weights, sha256=sha256),
        data=(
            DataFacts.of(
                "videos",
                os.path.commonpath(parents) if parents else "",
                num_videos=len(sources),
                sha256=digest.hexdigest(),
            ),
        ),
    )


def _plan_set(
    videos: Sequence[str | Path | VideoFile],
    folder: Path,
    wanted: dict[str, str],
    overwrite: bool,
    endings: Sequence[str],
) -> list[_Task]:
    tasks, mismatches = [], []
    records = {video.path: video.record for video in videos if isinstance(video, VideoFile)}
    names = output_names(videos)
    require_replaceable([folder / FAILED_VIDEOS], inputs=names, is_own=lambda _: (folder / RUN_FILE).exists())
    outputs = [folder / f"{name}{ending}" for name in names.values() for ending in endings]
    require_replaceable(outputs, inputs=names, is_own=_is_own_output)
    for source, name in names.items():
        output, content = folder / f"{name}.safetensors", records.get(source) or source
        differing = _differences(content, output, wanted)
        num_bytes = (as_record(content).state or (0, 0))[0]
        tasks.append(_Task(source, content, output, is_done=differing == [], num_bytes=num_bytes))
        if differing and not overwrite:
            mismatches.append(f"{output} ({'; '.join(differing)})")
    if mismatches:
        raise OutputMismatchError(_mismatch_sentence(mismatches, len(tasks)))
    folder.mkdir(parents=True, exist_ok=True)
    return tasks


def _is_own_output(path: Path) -> bool:
    """Return whether a file states the format of features, as their pictures do too; so does a damaged one."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_BYTES_OF_HEAD)
    return not head or FORMAT.partition("/")[0].encode() in head


def _differences(source: VideoSource, output: Path, wanted: dict[str, str]) -> list[str] | None:
    """In what an output differs from what would be written: None where there is none, or none that is whole."""
    if not output.exists() or (isinstance(source, Path) and not source.exists()):
        return None
    header = read_header(output)
    if header is None:
        logger.warning("%s is no whole safetensors file: it is made again", output)
        return None
    found = header.get("__metadata__", {})
    expected = {**describe_source(source), **wanted}
    return [
        f"{name} is {_shortened(found.get(name, 'not stated'))} there and {_shortened(expected[name])} now"
        for name in _IDENTITY
        if found.get(name) != expected[name]
    ]


def _shortened(value: str) -> str:
    return value if len(value) <= 24 else f"{value[:16]}..."


def _mismatch_sentence(mismatches: list[str], num_tasks: int) -> str:
    return (
        f"{len(mismatches)} of {num_tasks} outputs are there already, made in another way; first {mismatches[0]}: "
        "name another output folder, use the settings of before, or replace them (overwrite=True, --overwrite)"
    )


def _own_share(tasks: list[_Task], processes: Processes) -> list[int]:
    """The tasks of this process: its share of what is to be done, and of what is only to be looked at."""
    shares = []
    for is_done in (False, True):
        numbers = [number for number, task in enumerate(tasks) if task.is_done == is_done]
        share = share_out([tasks[number].num_bytes for number in numbers], processes.count)[processes.rank]
        shares += [numbers[place] for place in share]
    return sorted(shares)


def _list_failures(reports: list[VideoReport], folder: Path) -> None:
    """Write `failed.jsonl`: the videos that failed now, and those of earlier runs that were not among these."""
    file, tried = folder / FAILED_VIDEOS, {report.name for report in reports}
    text = file.read_text(encoding="utf-8", errors="surrogateescape") if file.exists() else ""
    earlier = text.split("\n")[:-1]
    lines = [line for line in earlier if _failed_video(line) not in tried]
    failures = [{"video": report.name, "error": report.error} for report in reports if report.error is not None]
    lines += [json.dumps(failure) for failure in failures]
    if not lines:
        file.unlink(missing_ok=True)
        return
    write_whole(file, "".join(f"{line}\n" for line in lines))


def _failed_video(line: str) -> str | None:
    """The video of a line, or None of one that somebody else has written: it stays."""
    try:
        return json.loads(line)["video"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
