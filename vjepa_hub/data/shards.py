"""Videos in tar files, in WebDataset's layout: files that share a stem are one sample, `.cls` holds its label.

Local or at any fsspec address; by number, for which the headers are read once (`TarSource`), or from beginning to end
(`TarShards`), which suits a distant store better.
"""

import glob
import importlib
import logging
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np

from .manifests import VIDEO_ENDINGS, is_video_name, parse_label
from .records import (
    ClipSource,
    PackedNames,
    RecordShards,
    TarMember,
    Unreadable,
    VideoBytes,
    VideoContent,
    VideoRecord,
    is_address,
    open_address,
    read_remote,
    reading_errors,
)
from .video import VideoDecodingError

logger = logging.getLogger(__name__)

COMPRESSED_SHARD_ENDINGS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
SHARD_ENDINGS = (".tar", *COMPRESSED_SHARD_ENDINGS)
_LABEL_ENDING = ".cls"
_END_MARK: type[tarfile.TarError] = tarfile.EOFHeaderError  # type: ignore[attr-defined]  # typeshed lacks it
_ALL_OR_NONE = "give all of them labels, or read without (with_labels=False)"
_WRITE_ANEW = "fetch the shard again, or write it anew"


class _TarInfo(tarfile.TarInfo):
    """Notes that the end mark was read: tarfile takes an archive that is cut off, or damaged, for ended."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> "_TarInfo":
        try:
            return super().fromtarfile(tarfile)
        except _END_MARK:
            assert isinstance(tarfile, _Tar)
            tarfile.has_end_mark = True
            raise


class _Tar(tarfile.TarFile):
    tarinfo = _TarInfo
    has_end_mark = False


def is_shard_name(name: str) -> bool:
    """Return whether a path, pattern or address names tar files, by its ending; a URL's query does not count."""
    return _without_query(name).endswith(SHARD_ENDINGS)


def shards_in(folder: str | Path) -> list[str]:
    """List the tar files in a folder, not below it, in the order of names.

    Raises:
        FileNotFoundError: there is none.
    """
    names = sorted(name for name in os.listdir(folder) if is_shard_name(name) and not name.startswith("."))
    if not names:
        raise FileNotFoundError(f"no shard in the folder {folder}: looked there for {', '.join(SHARD_ENDINGS)}")
    return [os.path.join(folder, name) for name in names]


def _without_query(name: str) -> str:
    return (name.partition("?")[0] if is_address(name) else name).lower()


def expand_shards(patterns: str | Path | Sequence[str | Path]) -> list[str]:
    """List the shards that paths, addresses and patterns name, each once, in this order.

    Args:
        patterns: One or several. Braces stand for a range (`shard-{000..010}.tar`) or for alternatives
            (`{train,extra}.tar`), `*`, `?` and `[...]` for what is there.

    Raises:
        FileNotFoundError: a pattern that nothing fits, or a file of this machine that is not there.
        ValueError: nothing was given.
    """
    given = [patterns] if isinstance(patterns, str | Path) else patterns
    expanded = [address for pattern in given for address in expand_braces(os.fspath(pattern))]
    shards = list(dict.fromkeys(shard for pattern in expanded for shard in _expand_wildcards(pattern)))
    if not shards:
        raise ValueError("no shard given; name at least one tar file, or a pattern such as shard-{000..010}.tar")
    missing = [shard for shard in shards if not is_address(shard) and not os.path.isfile(shard)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(shards)} shards are not there, the first of them {missing[0]}; check the path or "
            f"the pattern {', '.join(map(str, given))}"
        )
    return shards


def expand_braces(pattern: str) -> list[str]:
    """Write out the braces of a pattern: `{08..10}` is 08, 09, 10, and `{a,b}` is a, b.

    Raises:
        ValueError: a range that ends before it begins.
    """
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if found is None:
        return [pattern]
    first, last, alternatives = found.groups()
    parts = alternatives.split(",") if alternatives is not None else _numbers(first, last, pattern)
    rests = expand_braces(pattern[found.end() :])
    return [pattern[: found.start()] + part + rest for part in parts for rest in rests]


def _numbers(first: str, last: str, pattern: str) -> list[str]:
    if int(last) < int(first):
        raise ValueError(
            f"the range {{{first}..{last}}} in '{pattern}' ends before it begins; write the smaller first"
        )
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]


def _expand_wildcards(pattern: str) -> list[str]:
    is_url = pattern.startswith(("http://", "https://"))  # whose ? begins a query
    if not glob.has_magic(pattern.replace("?", "") if is_url else pattern) or os.path.isfile(pattern):
        return [pattern if is_address(pattern) else os.path.abspath(pattern)]
    if not is_address(pattern):
        found = sorted(glob.glob(pattern))
        shards = [os.path.abspath(path) for path in found]
    else:
        file_system, path = importlib.import_module("fsspec").url_to_fs(pattern)
        shards = [file_system.unstrip_protocol(path) for path in sorted(file_system.glob(path))]
    if not shards:
        raise FileNotFoundError(f"no shard fits the pattern {pattern}; check the folder and the ending")
    return shards


@dataclass
class _IndexedVideo:
    """A video in a tar file: where it lies, and its label if it has one."""

    name: str
    offset: int
    size: int
    label: int | None = None


class TarSource(ClipSource):
    """The videos of tar files that are not compressed, by number.

    The headers of all shards are read at the beginning, one after the other; a clip then reads its video alone. Of a
    shard that is cut off, the videos up to there are taken, with a warning; one that is no tar file at all counts as a
    video that cannot be read.

    Args:
        shards: Paths, addresses or patterns, see `expand_shards`.
        with_labels: Whether to read the labels, if there are any: the number in the `.cls` file of the same stem.

    Raises:
        FileNotFoundError: A shard is not there.
        ValueError: A compressed shard, no video in all of them, a label that is no number of a class, or one that is
            missing while other videos have one.
    """

    def __init__(self, shards: str | Path | Sequence[str | Path], *, with_labels: bool = True):
        self._shards = expand_shards(shards)
        self._broken: dict[int, Unreadable] = {}
        videos, shard_numbers = self._index(with_labels)
        self._names = PackedNames([video.name for video in videos])
        self._shard_numbers = np.array(shard_numbers, dtype=np.int32)
        self._places = np.array([(video.offset, video.size) for video in videos], dtype=np.int64)
        self._labels = self._labels_of(videos) if with_labels else None

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
        if index in self._broken:
            return VideoRecord(name, self._broken[index])
        offset, size = self._places[index].tolist()
        content = TarMember(self._shards[self._shard_numbers[index]], offset, size)
        return VideoRecord(name, content, None if self._labels is None else int(self._labels[index]))

    def _index(self, with_labels: bool) -> tuple[list[_IndexedVideo], list[int]]:
        videos: list[_IndexedVideo] = []
        shard_numbers: list[int] = []
        for number, shard in enumerate(self._shards):
            try:
                found = _index_shard(shard, with_labels)
            except tarfile.TarError as error:
                logger.warning("the shard %s cannot be read (%s): its videos are missing", shard, error)
                self._broken[len(videos)] = Unreadable(f"the shard is no tar file ({error})", _WRITE_ANEW)
                found = [_IndexedVideo(shard, 0, 0)]
            videos += found
            shard_numbers += [number] * len(found)
        if len(videos) == len(self._broken):
            _raise_without_videos(self._shards)
        return videos, shard_numbers

    def _labels_of(self, videos: list[_IndexedVideo]) -> np.ndarray | None:
        """Return the labels, `(num_videos,)`, -1 for a shard that cannot be read; None where no video has one."""
        readable = [video for number, video in enumerate(videos) if number not in self._broken]
        if all(video.label is None for video in readable):
            return None
        for video in readable:
            if video.label is None:
                raise ValueError(f"{video.name} has no {_LABEL_ENDING} file, but other videos have; {_ALL_OR_NONE}")
        return np.array([-1 if video.label is None else video.label for video in videos], dtype=np.int64)


def _raise_without_videos(shards: list[str]) -> None:
    raise ValueError(
        f"no video in {len(shards)} shards ({shards[0]}, ...); looked for members that end in "
        f"{', '.join(sorted(VIDEO_ENDINGS))}"
    )


def _index_shard(shard: str, with_labels: bool) -> list[_IndexedVideo]:
    if _without_query(shard).endswith(COMPRESSED_SHARD_ENDINGS):
        raise ValueError(
            f"the shard {shard} is compressed, so that one video in it cannot be reached without reading all before "
            "it; decompress it (videos are compressed already), or read the shards with a ClipStream"
        )
    videos: list[_IndexedVideo] = []
    labels: dict[str, int] = {}
    with open_address(shard) as file, _Tar.open(fileobj=file, mode="r:") as tar:
        for member in _files_in(tar, shard):
            name = f"{shard}/{member.name}"
            if is_video_name(os.path.basename(member.name)):
                videos.append(_IndexedVideo(name, member.offset_data, member.size))
            elif with_labels and member.name.endswith(_LABEL_ENDING):
                labels[name.removesuffix(_LABEL_ENDING)] = parse_label(_read_text(tar, member), name)
    for video in videos:
        video.label = next((labels[stem] for stem in _stems(video.name) if stem in labels), None)
    return videos


class TarShards(RecordShards):
    """The videos of tar files, compressed or not, read from beginning to end.

    A shard that breaks off or cannot be opened counts as a video that cannot be read.

    Args:
        shards: Paths, addresses or patterns, see `expand_shards`.
        with_labels: Whether to read the labels, if there are any: the number in the `.cls` file of the same stem,
            which stands right before or behind the video.

    Raises:
        FileNotFoundError: A shard is not there.
    """

    def __init__(self, shards: str | Path | Sequence[str | Path], *, with_labels: bool = True):
        self._shards = expand_shards(shards)
        self._with_labels = with_labels

    @property
    def num_shards(self) -> int:
        """Implement `RecordShards`."""
        return len(self._shards)

    def records(self, shard: int, *, pass_number: int) -> Iterator[VideoRecord]:
        """Implement `RecordShards`."""
        address = self._shards[shard]
        try:
            file = read_remote(address, lambda: open_address(address))
        except VideoDecodingError as error:
            yield VideoRecord(address, Unreadable(error.cause, error.remedy))
            return
        with file:
            yield from self._records_in(file, address)

    def num_records(self, shard: int, *, pass_number: int) -> int:
        """Implement `RecordShards`; of a file of this machine, the headers alone are read."""
        address = self._shards[shard]
        if is_address(address) or _without_query(address).endswith(COMPRESSED_SHARD_ENDINGS):
            return super().num_records(shard, pass_number=pass_number)
        try:
            with open_address(address) as file, _Tar.open(fileobj=file, mode="r:") as tar:
                return sum(is_video_name(os.path.basename(member.name)) for member in _files_in(tar, address))
        except _tar_errors():  # `records` tells of it, in a record
            return 1

    def _records_in(self, file: IO[bytes], address: str) -> Iterator[VideoRecord]:
        with ExitStack() as stack:
            try:
                tar = stack.enter_context(_Tar.open(fileobj=file, mode="r|*"))
            except _tar_errors() as error:
                yield VideoRecord(address, Unreadable(f"the shard is no tar file ({error})", _WRITE_ANEW))
                return
            yield from _all_labelled_or_none(self._videos_in(tar, address))

    def _videos_in(self, tar: _Tar, address: str) -> Iterator[VideoRecord]:
        """Read the videos, each with the label that stands right before or behind it."""
        video: VideoRecord | None = None
        label: tuple[str, int | Unreadable] = "", -1
        for member in _files_in(tar, address):
            name = f"{address}/{member.name}"
            if is_video_name(os.path.basename(member.name)):
                if video is not None:
                    yield video
                video = _labelled(VideoRecord(name, _read_video(tar, member)), label)
            elif self._with_labels and name.endswith(_LABEL_ENDING):
                label = name.removesuffix(_LABEL_ENDING), _read_label(tar, member, name)
                video = _labelled(video, label) if video is not None else None
        if video is not None:
            yield video


def _all_labelled_or_none(records: Iterator[VideoRecord]) -> Iterator[VideoRecord]:
    has_labels: bool | None = None
    for record in records:
        if not isinstance(record.content, Unreadable):
            has_label = record.label is not None
            if has_labels not in (None, has_label):
                raise ValueError(f"only one of {record.name} and the video before it has a label; {_ALL_OR_NONE}")
            has_labels = has_label
        yield record


def _labelled(video: VideoRecord, label: tuple[str, int | Unreadable]) -> VideoRecord:
    """Give a video the label that was read last, if it is its own."""
    stem, value = label
    if stem not in _stems(video.name):
        return video
    return replace(video, content=value) if isinstance(value, Unreadable) else replace(video, label=value)


def _stems(name: str) -> tuple[str, str]:
    """Return a name without its ending, and up to the first dot, which is what WebDataset goes by."""
    folder, slash, base = name.rpartition("/")
    return name.rpartition(".")[0], folder + slash + base.partition(".")[0]


def _read_video(tar: _Tar, member: tarfile.TarInfo) -> VideoContent:
    try:
        return VideoBytes(_read_bytes(tar, member))
    except _tar_errors() as error:
        return Unreadable(f"the shard breaks off in it ({error})", _WRITE_ANEW)


def _read_label(tar: _Tar, member: tarfile.TarInfo, name: str) -> int | Unreadable:
    try:
        return parse_label(_read_text(tar, member), name)
    except _tar_errors() as error:
        return Unreadable(f"the shard breaks off in its label ({error})", _WRITE_ANEW)


def _read_text(tar: _Tar, member: tarfile.TarInfo) -> str:
    return _read_bytes(tar, member).decode(errors="replace")


def _read_bytes(tar: _Tar, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


def _files_in(tar: _Tar, shard: str) -> Iterator[tarfile.TarInfo]:
    """Walk over the files; where the shard breaks off, warn and end."""
    num_files = 0
    while True:
        try:
            member = tar.next()
        except _tar_errors() as error:
            logger.warning("the shard %s breaks off after %d files (%s)", shard, num_files, error)
            return
        if member is None:
            break
        if member.isfile():
            num_files += 1
            yield member
    if not tar.has_end_mark:
        logger.warning("the shard %s has no end mark after %d files: it may be cut off there", shard, num_files)


def _tar_errors() -> tuple[type[BaseException], ...]:
    return (tarfile.TarError, zlib.error, lzma.LZMAError, *reading_errors())
