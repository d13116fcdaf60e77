"""Which videos: files, folders and manifests to one list, and a name for the output of each."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..data.manifests import MANIFEST_ENDINGS
from ..data.records import ClipSource, LocalVideo, SourceVideo, VideoBytes, VideoRecord, is_address
from ..data.shards import is_shard_name
from ..data.sources import open_source

_MAX_BYTES = 200


@dataclass(frozen=True)
class VideoFile:
    """A video, and where it stands in the tree that the outputs mirror.

    Attributes:
        path: The file.
        root: The folder that it was found under: the output of `root/a/x.mp4` is `a/x`. None: the output is `x`.
        record: The video of a data set, where it is no file of its own.
    """

    path: Path
    root: Path | None = None
    record: VideoRecord | None = field(default=None, compare=False)

    @property
    def absolute(self) -> Path:
        """The path from the file system's root, without `..`; links are left as they are."""
        return Path(os.path.abspath(self.path))

    def output_name(self, depth: int = 0) -> str:
        """Where the output goes, without ending; told apart by `depth` of the folders above.

        Args:
            depth: Number of folders above the root (or, without a root, above the file) that the name begins with.
        """
        folder = self.absolute.parent if self.root is None else Path(os.path.abspath(self.root))
        above = folder.parts[len(folder.parts) - depth :]
        if self.root is None:
            return "-".join([*above, self.path.stem])
        return Path(*above, self.absolute.relative_to(folder).with_suffix("")).as_posix()

    @property
    def max_depth(self) -> int:
        """Number of folders that `output_name` can begin with, without that of the file system's root."""
        folder = self.absolute.parent if self.root is None else Path(os.path.abspath(self.root))
        return len(folder.parts) - 1


def find_videos(inputs: Sequence[str | Path]) -> list[VideoFile]:
    """List the videos of files and data sources, each once, in this order.

    A source is whatever `vjepa_hub.data.sources.open_source` reads: a folder of videos, of frame folders or of tar
    files; a manifest, a parquet or tar file; an address. Any other file is taken as a video or image whatever its
    ending, and whether it exists or not: what cannot be read is found out, and reported, when its turn comes.

    Args:
        inputs: Files and sources.

    Raises:
        ValueError: Nothing was given, a source that holds no video, or one that cannot be understood.
        OSError: A source that cannot be read.
    """
    found = [video for given in inputs for video in _videos_of(os.fspath(given))]
    if not found:
        raise ValueError("no video given: name at least one file or source")
    return list({video.absolute: video for video in reversed(found)}.values())[::-1]


def _videos_of(given: str) -> list[VideoFile]:
    is_list = given.lower().endswith((*MANIFEST_ENDINGS, ".parquet")) or is_shard_name(given) or is_address(given)
    if not is_list and not os.path.isdir(given):
        return [VideoFile(Path(given))]
    source = open_source(given, with_labels=False)
    return [_listed(source, index, given) for index in range(len(source))]


def _listed(source: ClipSource, index: int, given: str) -> VideoFile:
    """A video of a source: below the source's folder the outputs mirror its place."""
    record = source.record(index)
    if isinstance(record.content, VideoBytes):  # of a row, which has no place of its own
        row = Path(os.path.abspath(given), f"row-{index:06d}")
        return VideoFile(row, row.parent.parent, VideoRecord(str(row), SourceVideo(source, index)))
    path, home = Path(os.path.abspath(record.name)), Path(os.path.abspath(given))
    home = home if home.is_dir() and path != home else home.parent
    is_below = not is_address(record.name) and path.is_relative_to(home)
    is_plain = isinstance(record.content, LocalVideo)
    return VideoFile(Path(record.name), home if is_below else None, None if is_plain else record)


def output_names(videos: Sequence[str | Path | VideoFile]) -> dict[Path, str]:
    """Where the output of each video goes, without ending; no two share one, on file systems that ignore case too.

    A video found in a folder gets its path below that folder (`a/x`), one that was named gets its own stem. Where
    these are equal, the names of the folders above (`a/x.mp4`, `b/x.mp4`: `a-x`, `b-x`), then the ending (`x.mp4`,
    `x.avi`: `x-mp4`, `x-avi`), then a number tell them apart.

    Args:
        videos: Video files; one that is given twice has one entry.
    """
    unique: dict[Path, VideoFile] = {}
    for given in videos:
        video = given if isinstance(given, VideoFile) else VideoFile(Path(given))
        unique.setdefault(video.absolute, video)
    namesakes: dict[str, list[VideoFile]] = defaultdict(list)
    for video in unique.values():
        namesakes[video.output_name().casefold()].append(video)
    told_apart = {path: name for group in namesakes.values() for path, name in _told_apart(group).items()}
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for video in unique.values():
        plain = video.output_name()
        by_folder = [told_apart[video.path]] if video.path in told_apart else []
        names[video.path] = _first_free([*by_folder, f"{plain}-{video.path.suffix[1:]}", plain], taken)
        taken.add(names[video.path].casefold())
    return names


def _told_apart(group: list[VideoFile]) -> dict[Path, str]:
    """The names of those videos of a group that the folders above tell from the others, as short as can be."""
    names: dict[Path, str] = {}
    for depth in range(1 + min(video.max_depth for video in group)):
        candidates = [video.output_name(depth) for video in group]
        uses = Counter(name.casefold() for name in candidates)
        for video, name in zip(group, candidates, strict=True):
            if uses[name.casefold()] == 1:
                names.setdefault(video.path, name)
        if len(names) == len(group):
            break
    return names


def _first_free(candidates: list[str], taken: set[str]) -> str:
    candidates = [_shortened(candidate) for candidate in candidates]
    for candidate in candidates:
        if candidate.casefold() not in taken:
            return candidate
    number = 2
    while f"{candidates[-1]}-{number}".casefold() in taken:
        number += 1
    return f"{candidates[-1]}-{number}"


def _shortened(name: str) -> str:
    """A name whose last part leaves room for endings in the 255 bytes of a file name."""
    folder, slash, last = name.rpartition("/")
    data = os.fsencode(last)
    if len(data) <= _MAX_BYTES:
        return name
    kept = data[:_MAX_BYTES].decode("utf-8", errors="ignore")
    return f"{folder}{slash}{kept}-{hashlib.blake2b(data, digest_size=4).hexdigest()}"
