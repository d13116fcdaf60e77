"""Where the videos of a data set come from: manifests, folders, frame folders, parquet, tar files, and mixtures.

`open_source` tells by what it is given which of them it is. The same video gives the same clip from each.
"""

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .hugging_face import HuggingFaceSource, read_parquet
from .manifests import (
    MANIFEST_ENDINGS,
    VIDEO_ENDINGS,
    ManifestEntry,
    is_video_name,
    parse_label,
    read_manifest_entries,
    videos_below,
    walk_folders,
)
from .records import (
    IMAGE_ENDINGS,
    ClipSource,
    FrameFolder,
    LocalVideo,
    PackedNames,
    RemoteVideo,
    VideoRecord,
    is_address,
    is_image_name,
    natural_key,
)
from .shards import SHARD_ENDINGS, TarSource, is_shard_name, shards_in

SourceSpec = Any
"""What `open_source` takes: path, pattern, address, `datasets.Dataset`, `ClipSource`, or a list of these."""


class VideoFileSource(ClipSource):
    """Video files, on this machine or at fsspec addresses. Whether they are there is found out when they are read.

    Args:
        paths: Paths or addresses, at least one. Relative paths count from `root`.
        labels: The number of the class of each, or None.
        root: A folder; None: the current one.

    Raises:
        ValueError: No path, or another number of labels than of paths.
    """

    def __init__(
        self, paths: Sequence[str | Path], *, labels: Sequence[int] | None = None, root: str | Path | None = None
    ):
        if not paths:
            raise ValueError("no video given; name at least one file")
        if labels is not None and len(labels) != len(paths):
            raise ValueError(f"{len(labels)} labels for {len(paths)} videos; give one for each, or none at all")
        base = os.path.abspath(root or "")
        texts = [os.fspath(path) for path in paths]
        self._names = PackedNames([text if is_address(text) else os.path.join(base, text) for text in texts])
        self._labels = None if labels is None else np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        """Number of videos."""
        return len(self._names)

    @property
    def has_labels(self) -> bool:
        """Implement `ClipSource`."""
        return self._labels is not None

    def record(self, index: int) -> VideoRecord:
        """Implement `ClipSource`."""
        name = self._names[index]
        content = RemoteVideo(name) if is_address(name) else LocalVideo(Path(name))
        return VideoRecord(name, content, None if self._labels is None else int(self._labels[index]))


class FrameFolderSource(ClipSource):
    """Videos as folders of numbered images, one folder for each video.

    Args:
        root: Each folder in it, or below, that holds images is a video; so is it itself. They are taken in the natural
            order of their names, and so are the images in them.
        fps: Frames per second of all of them. Only needed for clips whose length is given in seconds.

    Raises:
        ValueError: No folder with images, or a rate that is not positive.
    """

    has_labels = False

    def __init__(self, root: str | Path, *, fps: float | None = None):
        if fps is not None and not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps is {fps}, but must be a positive number of frames per second, or None")
        root = os.path.abspath(root)
        folders = [folder for folder, names in walk_folders(root) if any(map(is_image_name, names))]
        if not folders:
            raise ValueError(
                f"no folder of frames in {root}: looked there and below for images that end in "
                f"{', '.join(sorted(IMAGE_ENDINGS))}"
            )
        self._names, self._fps = PackedNames(sorted(folders, key=natural_key)), fps

    def __len__(self) -> int:
        """Number of folders."""
        return len(self._names)

    def record(self, index: int) -> VideoRecord:
        """Implement `ClipSource`."""
        return VideoRecord(self._names[index], FrameFolder(Path(self._names[index]), self._fps))


class MixedSource(ClipSource):
    """Several sources in one, each drawn as often as its weight says, whatever its size.

    With weights, a video that cannot be read is replaced by one of the same source, so that the shares stay. There are
    labels only where all sources have them; whether they mean the same is not known here.

    Args:
        sources: Pairs of a source and its weight: positive numbers, in proportion to each other. With None as the
            weight of all of them, every video is drawn equally often.

    Raises:
        ValueError: No source, a weight that is not positive, weights for some only, or two Hugging Face sources of one
            name.
    """

    def __init__(self, sources: Sequence[tuple[ClipSource, float | None]]):
        if not sources:
            raise ValueError("no source given; name at least one")
        self._sources = [source for source, _ in sources]
        self._shares = _checked_shares([weight for _, weight in sources])
        self._ends = np.cumsum([len(source) for source in self._sources])
        _require_different_names(self._sources)

    def __len__(self) -> int:
        """Number of videos of all sources."""
        return int(self._ends[-1])

    @property
    def has_labels(self) -> bool:
        """Implement `ClipSource`."""
        return all(source.has_labels for source in self._sources)

    @property
    def weights(self) -> np.ndarray | None:
        """Implement `ClipSource`."""
        parts = [source.weights for source in self._sources]
        if self._shares is None and all(part is None for part in parts):
            return None
        shares = np.diff(self._ends, prepend=0) / len(self) if self._shares is None else self._shares
        even = [np.full(len(source), 1 / len(source)) for source in self._sources]
        return np.concatenate(
            [share * (flat if part is None else part) for share, part, flat in zip(shares, parts, even, strict=True)]
        )

    def record(self, index: int) -> VideoRecord:
        """Implement `ClipSource`."""
        number, start = self._place(index)
        record = self._sources[number].record(index - start)
        return record if self.has_labels else VideoRecord(record.name, record.content)

    def stand_ins(self, index: int) -> range:
        """Implement `ClipSource`."""
        if self._shares is None:
            return super().stand_ins(index)
        number, start = self._place(index)
        inner = self._sources[number].stand_ins(index - start)
        return range(inner.start + start, inner.stop + start)

    def _place(self, index: int) -> tuple[int, int]:
        """Return which source a video belongs to, and the number of that source's first video."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside 0 to {len(self) - 1}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, int(self._ends[number]) - len(self._sources[number])


def _checked_shares(weights: list[float | None]) -> np.ndarray | None:
    given = [weight for weight in weights if weight is not None]
    if not given:
        return None
    if len(given) != len(weights):
        raise ValueError(f"the weights are {weights}, but either all sources have one or none has; fill them in")
    for weight in given:
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(
                f"a source has the weight {weight}, but a weight is a positive number; leave it out instead"
            )
    return np.array(given, dtype=np.float64) / sum(given)


def _require_different_names(sources: list[ClipSource]) -> None:
    """Rows without a path are told apart by the name of their data set, in the quarantine file too."""
    names = [source.name for source in sources if isinstance(source, HuggingFaceSource)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two data sets are called '{name}'; give each a name: HuggingFaceSource(..., name=...)")


def open_source(
    spec: SourceSpec,
    *,
    weights: Sequence[float] | None = None,
    with_labels: bool = True,
    fps: float | None = None,
    video_column: str | None = None,
    label_column: str | None = None,
) -> ClipSource:
    """Open what holds the videos of a data set, of whatever kind it is.

    - a `.csv` (`path label` on each line, or a table with commas), `.txt` or `.jsonl` manifest, see
      `read_manifest_entries`; relative paths count from its folder, and addresses are read over the network;
    - a `.parquet` file with a column of paths, or of videos as bytes; these are copied into the cache of the
      `datasets` library once, to be found by number;
    - a folder of videos; or of frame folders, if there are images and no videos below it; or of tar files;
    - tar files: a path, a pattern (`shard-{000..010}.tar`, `shard-*.tar`), or an fsspec address or pattern;
    - a `datasets.Dataset`, or a `ClipSource`;
    - a list of these: one source in which every video is drawn equally often, or as `weights` say.

    Args:
        spec: One of the above.
        weights: For a list: how often to draw from each, in proportion, whatever its size.
        with_labels: Whether to read labels, where there are any.
        fps: Frames per second of frame folders.
        video_column: Column of the videos in parquet files and Hugging Face data sets, if its name does not say so.
        label_column: Column of the labels there.

    Raises:
        FileNotFoundError: there is no such file, folder or shard.
        TypeError: an object that is no data set.
        ValueError: a kind that is not known, no video in it, or labels that are no integers from 0.
        ImportError: a data set or parquet file without the libraries that read it.
    """
    options = _Options(with_labels=with_labels, fps=fps, video_column=video_column, label_column=label_column)
    if isinstance(spec, list | tuple):
        return _open_several(spec, weights, options)
    if weights is not None:
        raise ValueError(f"weights are given for one source, {spec}; they are for a list of several")
    return _open_one(spec, options)


@dataclass(frozen=True, kw_only=True)
class _Options:
    """Of `open_source`, by the same names."""

    with_labels: bool
    fps: float | None
    video_column: str | None
    label_column: str | None

    def of_rows(self, dataset: Any, **place: str) -> HuggingFaceSource:
        columns = {"video_column": self.video_column, "label_column": self.label_column}
        return HuggingFaceSource(dataset, with_labels=self.with_labels, **columns, **place)


def _open_several(specs: Sequence[SourceSpec], weights: Sequence[float] | None, options: _Options) -> ClipSource:
    texts = [os.fspath(spec) for spec in specs if isinstance(spec, str | Path)]
    if weights is None and texts and len(texts) == len(specs):
        if all(is_shard_name(text) for text in texts):
            return TarSource(texts, with_labels=options.with_labels)
        if all(is_video_name(os.path.basename(text)) for text in texts):
            return VideoFileSource(texts)
    if weights is not None and len(weights) != len(specs):
        raise ValueError(f"{len(weights)} weights for {len(specs)} sources; give one for each")
    sources = [_open_one(spec, options) for spec in specs]
    pairs = [(source, None if weights is None else weights[number]) for number, source in enumerate(sources)]
    return MixedSource(pairs)


def _open_one(spec: SourceSpec, options: _Options) -> ClipSource:
    if isinstance(spec, ClipSource):
        return spec
    if isinstance(spec, str | Path):
        return _open_path(os.fspath(spec), options)
    datasets = sys.modules.get("datasets")  # who has no such object need not have the library
    if datasets is not None and isinstance(spec, datasets.Dataset | datasets.IterableDataset | datasets.DatasetDict):
        return options.of_rows(spec)
    raise TypeError(
        f"found a {type(spec).__name__}, but videos come from a path, a pattern, an address, a datasets.Dataset, a "
        "ClipSource, or a list of these"
    )


def _open_path(path: str, options: _Options) -> ClipSource:
    if is_shard_name(path):
        return TarSource(path, with_labels=options.with_labels)
    if os.path.isdir(path):
        return _open_folder(path, options)
    if is_video_name(os.path.basename(path)):
        return VideoFileSource([path])
    if not is_address(path) and not os.path.exists(path):
        raise FileNotFoundError(f"there is no file or folder {path}; check the path")
    ending = os.path.splitext(path)[1].lower()
    if ending in MANIFEST_ENDINGS and not is_address(path):
        return _source_of_entries(read_manifest_entries(path), path, options.with_labels)
    if ending == ".parquet" and not is_address(path):
        path = os.path.abspath(path)
        return options.of_rows(read_parquet(path), name=path, root=os.path.dirname(path))
    known = ", ".join([*MANIFEST_ENDINGS, ".parquet", *SHARD_ENDINGS])
    raise ValueError(
        f"{path} ends in '{ending}'; known are lists of videos and tar files ({known}), a folder, and a video; "
        "an address (s3://...) names tar files or a video"
    )


def _open_folder(folder: str, options: _Options) -> ClipSource:
    videos = videos_below(folder)
    if videos:
        return VideoFileSource(videos)
    if any(is_image_name(name) for _, names in walk_folders(folder) for name in names):
        return FrameFolderSource(folder, fps=options.fps)
    if any(is_shard_name(name) for name in os.listdir(folder)):
        return TarSource(shards_in(folder), with_labels=options.with_labels)
    raise ValueError(
        f"nothing to read in the folder {folder}: looked there and below for videos "
        f"({', '.join(sorted(VIDEO_ENDINGS))}) and images ({', '.join(sorted(IMAGE_ENDINGS))}), and in it for tar "
        "files; name files with other endings in a manifest"
    )


def _source_of_entries(entries: list[ManifestEntry], manifest: str, with_labels: bool) -> VideoFileSource:
    """Make a source of a manifest's lines; either all of them have labels or none."""
    labels = None
    if with_labels and any(entry.label is not None for entry in entries):
        labels = [parse_label(entry.label, f"line {entry.line} of {manifest}") for entry in entries]
    return VideoFileSource([entry.path for entry in entries], labels=labels, root=os.path.dirname(manifest))
