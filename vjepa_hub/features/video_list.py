"""Which videos: files, folders and manifests to one list, and a name for the output of each."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.manifests import VIDEO_ENDINGS, read_manifest_entries, videos_below


@dataclass(frozen=True)
class VideoFile:
    """A video, and where it stands in the tree that the outputs mirror.

    Attributes:
        path: The file.
        root: The folder that it was found under: the output of `root/a/x.mp4` is `a/x`. None: the output is `x`.
    """

    path: Path
    root: Path | None = None

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


def find_videos(inputs: Sequence[str | Path], manifests: Sequence[str | Path] = ()) -> list[VideoFile]:
    """List the videos of files, folders and manifests, each once, in this order.

    Folders are searched with all that is below them, in the order of names, for the endings of `VIDEO_ENDINGS`; what
    begins with a dot is left out, and links to folders are not followed. A file that is named is taken whatever its
    ending, and whether it exists or not: what cannot be read is found out, and reported, when its turn comes.

    Args:
        inputs: Files and folders.
        manifests: Lists of videos, see `read_manifest`.

    Raises:
        ValueError: nothing was given, a folder or manifest that names no video, or a manifest that cannot be
            understood.
        OSError: a manifest that cannot be read.
    """
    found: list[VideoFile] = []
    for given in map(Path, inputs):
        found += _videos_below(given) if given.is_dir() else [VideoFile(given)]
    for manifest in manifests:
        found += read_manifest(manifest)
    if not found:
        raise ValueError("no video given: name at least one file, folder or manifest")
    return list({video.absolute: video for video in reversed(found)}.values())[::-1]


def _videos_below(root: Path) -> list[VideoFile]:
    paths = videos_below(root)
    if not paths:
        raise ValueError(
            f"no video in the folder {root}: looked there and below for {', '.join(sorted(VIDEO_ENDINGS))}; "
            "name files with other endings one by one, or in a manifest"
        )
    return [VideoFile(path, root) for path in paths]


def read_manifest(manifest: str | Path) -> list[VideoFile]:
    """Read a list of videos. Relative paths count from the manifest's folder, and the outputs mirror them.

    Args:
        manifest: A `.txt`, `.csv` or `.jsonl` file, see `vjepa_hub.data.manifests.read_manifest_entries`. Labels are
            passed over.

    Raises:
        ValueError: another ending, no video in it, or a line that cannot be understood.
        OSError: the file cannot be read.
    """
    return [_listed_video(entry.path, Path(manifest)) for entry in read_manifest_entries(manifest)]


def _listed_video(path: str, manifest: Path) -> VideoFile:
    is_below = not Path(path).is_absolute() and ".." not in Path(path).parts
    return VideoFile(manifest.parent / path, manifest.parent if is_below else None)


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
    for candidate in candidates:
        if candidate.casefold() not in taken:
            return candidate
    number = 2
    while f"{candidates[-1]}-{number}".casefold() in taken:
        number += 1
    return f"{candidates[-1]}-{number}"
