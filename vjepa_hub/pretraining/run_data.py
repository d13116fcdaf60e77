"""The videos of a run: those that the recipe names, or made ones, and the labelled clips of its probe."""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import Dataset

from ..core.names import counted
from ..core.progress import Progress, no_progress
from ..core.run_files import DataFacts, without_credentials
from ..data.dataset import VideoClipDataset
from ..data.manifests import MANIFEST_ENDINGS
from ..data.quarantine import Quarantine
from ..data.records import ClipSource
from ..data.sources import open_source
from ..data.streaming import ClipStream, open_shards
from ..data.synthetic.moving_pictures import MovingPictureSettings
from ..data.synthetic.shapes import SyntheticVideoSettings
from ..data.synthetic.videos import make_videos
from ..data.video import VideoDecodingError
from ..heads.clips import evaluation_pixels, read_segments
from ..model.video_processing_vjepa import VJEPAVideoProcessor
from .arguments import VJEPATrainingArguments
from .probe import LabelledClips, OnlineProbe, ProbeKind
from .recipe import Recipe

logger = logging.getLogger(__name__)

QUARANTINE = "quarantine.jsonl"
VIDEOS, TEST_VIDEOS = "videos", "test-videos"
SYNTHETIC_TASKS = ("appearance", "motion")
NO_DATA = (
    "no data: the recipe '{name}' makes no video of its own; pass --data with a manifest (.csv, .txt, .jsonl, "
    ".parquet), a folder of videos, or tar files"
)


@dataclass(frozen=True, kw_only=True)
class RunData:
    """Data of a run.

    Attributes:
        dataset: A `VideoClipDataset`, or a `ClipStream`.
        description: What it is, in words; it goes into the model's card, and so tells no more of this machine than the
            last part of a path.
        facts: Of each source, for `run.json`.
        probe: Labelled clips, if the recipe asks for a probe and there are labels.
    """

    dataset: Dataset
    description: str
    facts: Sequence[DataFacts] = ()
    probe: OnlineProbe | None = None


def open_run_data(recipe: Recipe, args: VJEPATrainingArguments, folder: Path, progress: Progress) -> RunData:
    """Open the videos of a recipe; where it names none, make them below the run's folder.

    Args:
        recipe: The run.
        args: Its arguments.
        folder: Its folder.
        progress: Called as videos are made and read.

    Raises:
        ValueError: There is no data, and the recipe makes none; or a source that cannot be understood.
        OSError: A source that is not there.
    """
    if recipe.data:
        return _open_given(recipe, args, folder, progress)
    if recipe.synthetic is None:
        raise ValueError(NO_DATA.format(name=recipe.name))
    return _make_synthetic(recipe, recipe.synthetic, args, folder, progress)


# ---------------------------------------------------------------------------------------------------------------------
# Data that was given
# ---------------------------------------------------------------------------------------------------------------------


def _open_given(recipe: Recipe, args: VJEPATrainingArguments, folder: Path, progress: Progress) -> RunData:
    paths = [share.path for share in recipe.data]
    names = ", ".join(os.path.basename(without_credentials(path).rstrip("/")) for path in paths)
    if recipe.clips.stream:
        return RunData(
            dataset=_open_stream(recipe, args, folder, paths),
            description=f"a stream of {names}",
            facts=[DataFacts.of(_role(number), path) for number, path in enumerate(paths)],
        )
    weights = [share.weight for share in recipe.data if share.weight is not None]
    with_labels = args.probe != "none"  # others may be text
    source = open_source(
        paths[0] if len(paths) == 1 else paths,
        weights=weights or None if len(paths) > 1 else None,
        with_labels=with_labels,
    )
    description = f"{counted(len(source), 'video')} of {names}"
    probe = None
    if args.probe != "none":
        probe = _probe_of_labels(recipe, args, source, progress)
    facts = [_describe_source(number, path, source if len(paths) == 1 else None) for number, path in enumerate(paths)]
    return RunData(
        dataset=_open_clips(recipe, args, folder, source), description=description, facts=facts, probe=probe
    )


def _role(number: int) -> str:
    return f"videos {number + 1}" if number else "videos"


def _describe_source(number: int, path: str, source: ClipSource | None) -> DataFacts:
    """Facts of a source; its count and the fingerprint of its names where it is the only one, else of its list."""
    if source is None:
        is_list = os.path.splitext(path)[1].lower() in MANIFEST_ENDINGS and os.path.isfile(path)
        listed = hashlib.sha256(Path(path).read_bytes()).hexdigest() if is_list else None
        return DataFacts.of(_role(number), path, sha256=listed)
    root = os.path.join(os.path.abspath(path if os.path.isdir(path) else os.path.dirname(path)), "")
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(f"{source.record(index).name.removeprefix(root)}\0".encode(errors="surrogateescape"))
    return DataFacts.of(_role(number), path, num_videos=len(source), sha256=digest.hexdigest())


def _open_clips(recipe: Recipe, args: VJEPATrainingArguments, folder: Path, source: ClipSource) -> VideoClipDataset:
    max_memory = int(recipe.clips.max_memory_gib * 2**30) // args.world_size
    return VideoClipDataset(source, **_clip_settings(recipe, args, folder), max_memory=max_memory)


def _open_stream(recipe: Recipe, args: VJEPATrainingArguments, folder: Path, paths: Sequence[str]) -> ClipStream:
    return ClipStream(
        open_shards(list(paths), with_labels=False),
        batch_size=args.train_batch_size,
        rank=args.process_index,
        num_processes=args.world_size,
        **_clip_settings(recipe, args, folder),
    )


def _clip_settings(recipe: Recipe, args: VJEPATrainingArguments, folder: Path) -> dict[str, Any]:
    return {
        "clips": recipe.clip_spec(),
        "crop": recipe.clips,
        "seed": args.data_draw_seed,
        "quarantine": Quarantine(folder / QUARANTINE),
        "max_tries": recipe.clips.max_tries,
        "backend": recipe.clips.backend,
        "item_timeout": recipe.clips.item_timeout,
    }


def _probe_of_labels(
    recipe: Recipe, args: VJEPATrainingArguments, source: ClipSource, progress: Progress
) -> OnlineProbe | None:
    """A probe on clips of the data itself, sampled once; those that it is judged on are none that it learns from."""
    if not source.has_labels:
        logger.warning(
            "the recipe asks for an online probe (%s), but the data has no labels: there will be none", args.probe
        )
        return None
    drawn = np.random.default_rng(args.data_draw_seed).permutation(len(source))[: 2 * args.probe_clips].tolist()
    half = len(drawn) // 2
    train = read_labelled_clips(recipe, {"label": source}, drawn[:half], progress=progress)
    validation = read_labelled_clips(recipe, {"label": source}, drawn[half:], progress=progress)
    return OnlineProbe(cast(ProbeKind, args.probe), train, validation)


# ---------------------------------------------------------------------------------------------------------------------
# Made video
# ---------------------------------------------------------------------------------------------------------------------


def _make_synthetic(
    recipe: Recipe,
    settings: SyntheticVideoSettings,
    args: VJEPATrainingArguments,
    folder: Path,
    progress: Progress,
) -> RunData:
    """Make the videos, in the first process; those of the other split are for the probe alone."""
    test_settings = settings.with_values(split="test", num_videos=args.probe_clips)
    with args.main_process_first(local=False, desc="making video"):
        manifest = make_videos(folder / VIDEOS, settings, progress=progress)
        if args.probe != "none":
            make_videos(folder / TEST_VIDEOS, test_settings, progress=progress)
    probe = None
    if args.probe != "none":
        sizes = {VIDEOS: min(args.probe_clips, settings.num_videos), TEST_VIDEOS: args.probe_clips}
        train, validation = (
            read_labelled_clips(recipe, _task_sources(folder / name), range(num_clips), progress=progress)
            for name, num_clips in sizes.items()
        )
        probe = OnlineProbe(args.probe, train, validation)
    description = (
        f"{counted(settings.num_videos, 'video')} that vjepa_hub made itself ({_describe_made(settings)}, "
        f"{settings.size} pixels, seed {settings.seed})"
    )
    dataset = _open_clips(recipe, args, folder, open_source(manifest))
    facts = DataFacts(role="videos", source="synthetic", description=description, num_videos=settings.num_videos)
    return RunData(dataset=dataset, description=description, facts=[facts], probe=probe)


def _describe_made(settings: SyntheticVideoSettings) -> str:
    if isinstance(settings, MovingPictureSettings):
        return f"moving pictures of Fashion-MNIST, MIT licence, {settings.scene} scene"
    return "moving shapes"


def _task_sources(folder: Path) -> dict[str, ClipSource]:
    return {task: open_source(folder / f"{task}.csv") for task in SYNTHETIC_TASKS}


# ---------------------------------------------------------------------------------------------------------------------
# Clips with labels
# ---------------------------------------------------------------------------------------------------------------------


def read_labelled_clips(
    recipe: Recipe,
    tasks: Mapping[str, ClipSource],
    indices: Sequence[int],
    *,
    progress: Progress = no_progress,
) -> LabelledClips:
    """One clip of each of some videos, as an evaluation with one segment and one view sees it.

    A video that cannot be read is logged. Pixels are kept in float16: half the memory, and far finer than grey levels.

    Args:
        recipe: Clip and size of the model.
        tasks: For each task the same videos in the same order, with the labels of the task.
        indices: Videos to read.
        progress: Called with the videos that are read, and all videos, after each.

    Raises:
        ValueError: None of them can be read.
    """
    config, clips = recipe.config(), recipe.clip_spec()
    processor = VJEPAVideoProcessor(crop_size=config.crop_size)
    shape = (len(indices), config.frames_per_clip, 3, config.crop_size, config.crop_size)
    pixels, is_readable = torch.zeros(shape, dtype=torch.float16), torch.zeros(len(indices), dtype=torch.bool)
    first = next(iter(tasks.values()))
    for place, index in enumerate(indices):
        try:
            segments = read_segments(
                first.record(index), clips, backend=recipe.clips.backend, item_timeout=recipe.clips.item_timeout
            )
        except VideoDecodingError as error:
            logger.warning("counted as unreadable by the probe: %s", error)
        else:
            pixels[place], is_readable[place] = evaluation_pixels(segments, processor)[0, 0], True
        progress("reading clips for the probe", place + 1, len(indices))
    if not is_readable.any():
        raise ValueError(f"none of the {len(indices)} videos of the probe can be read; check them, or set probe=none")
    labels = {task: torch.tensor([source.record(index).label for index in indices]) for task, source in tasks.items()}
    return LabelledClips(pixel_values_videos=pixels, labels=labels, is_readable=is_readable)
