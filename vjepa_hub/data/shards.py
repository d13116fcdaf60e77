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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

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
    require_room,
)
from .video import VideoDecodingError

logger = logging.getLogger(__name__)

COMPRESSED_SHARD_ENDINGS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
SHARD_ENDINGS = (".tar", *COMPRESSED_SHARD_ENDINGS)
_LABEL_ENDING = ".cls"
# typeshed lacks these
_HEADER_ERROR: type[tarfile.TarError] = tarfile.HeaderError
_END_MARK: type[tarfile.TarError] = tarfile.EOFHeaderError  # type: ignore[attr-defined]
_NO_MORE: type[tarfile.TarError] = tarfile.EmptyHeaderError  # type: ignore[attr-defined]
_ALL_OR_NONE = "give all of them labels, or read without (with_labels=False)"
_WRITE_ANEW = "fetch the shard again, or write it anew"
_BYTES_OF_LABEL = 100
_EMPTY_READS = 100


class _TarInfo(tarfile.TarInfo):
    """Tells its archive what stands in the place of a header, which tarfile passes over without a word."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> "_TarInfo":
        assert isinstance(tarfile, _Tar)
        place = tarfile.offset
        try:
            member = super().fromtarfile(tarfile)
        except _HEADER_ERROR as error:
            tarfile.note_header(place, error)
            raise
        tarfile.has_end_mark = False
        return member


class _Tar(tarfile.TarFile):
    """Archive that is read to the end of its file: beyond damaged headers, and end marks of archives joined to one.

    Attributes:
        has_end_mark: True where the last that was read is an end mark.
        damage: Places in bytes where something else stands than a header, a stretch of blocks once, and what it is.
    """

    tarinfo = _TarInfo
    has_end_mark = False

    def __init__(self, *arguments: Any, **options: Any):
        self.damage: list[tuple[int, str]] = []
        self._damage_end = -1
        super().__init__(*arguments, **{**options, "ignore_zeros": True})

    def note_header(self, place: int, error: Exception) -> None:
        """Note what was found in the place of a header."""
        if isinstance(error, _END_MARK):
            self.has_end_mark = True
        elif not isinstance(error, _NO_MORE):
            if place > self._damage_end:
                self.damage.append((place, str(error)))
            self._damage_end = place + tarfile.BLOCKSIZE


class _EndedFile:
    """File that tells tarfile of its end: to skip what a member lacks, a stream would read nothing over and over."""

    def __init__(self, file: IO[bytes]):
        self._file, self._num_empty = file, 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._num_empty = 0 if data else self._num_empty + 1
        if self._num_empty > _EMPTY_READS:
            raise EOFError("unexpected end of data")
        return data


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


class TarSource(ClipSource):
    """The videos of tar files that are not compressed, by number.

    The headers of all shards are read at the beginning, one after the other; a clip then reads its video alone. A
    damaged part of a shard, and one that is no tar file at all, count as videos that cannot be read.

    Args:
        shards: Paths, addresses or patterns, see `expand_shards`.
        with_labels: Whether to read the labels, if there are any: the number in the `.cls` file of the same name, or
            of the name up to its first dot, in the video's sample, else anywhere in the shard.

    Raises:
        FileNotFoundError: A shard is not there.
        ValueError: A compressed shard, no video in all of them, a label that is no number of a class, or one that is
            missing while other videos have one.
    """

    def __init__(self, shards: str | Path | Sequence[str | Path], *, with_labels: bool = True):
        self._shards = expand_shards(shards)
        videos: list[VideoRecord] = []
        shard_numbers: list[int] = []
        for number, shard in enumerate(self._shards):
            videos += _index_shard(shard, with_labels)
            shard_numbers += [number] * (len(videos) - len(shard_numbers))
        self._broken = {n: video.content for n, video in enumerate(videos) if isinstance(video.content, Unreadable)}
        if len(videos) == len(self._broken):
            _raise_without_videos(self._shards)
        self._names = PackedNames([video.name for video in videos])
        self._shard_numbers = np.array(shard_numbers, dtype=np.int32)
        places = [(getattr(video.content, "offset", 0), getattr(video.content, "size", 0)) for video in videos]
        self._places = np.array(places, dtype=np.int64)
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

    def _labels_of(self, videos: list[VideoRecord]) -> np.ndarray | None:
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


def _index_shard(shard: str, with_labels: bool) -> list[VideoRecord]:
    if _without_query(shard).endswith(COMPRESSED_SHARD_ENDINGS):
        raise ValueError(
            f"the shard {shard} is compressed, so that one video in it cannot be reached without reading all before "
            "it; decompress it (videos are compressed already), or read the shards with a ClipStream"
        )
    labels: dict[str, int | Unreadable] = {}
    try:
        with open_address(shard) as file, _Tar.open(fileobj=file, mode="r:") as tar:
            found = list(_records_in(tar, shard, labels if with_labels else None, partial(_place_of, shard)))
    except _tar_errors() as error:
        return [_damaged(shard, 0, error)]
    return [video if video.label is not None else _labelled(video, labels) for video in found]


def _place_of(shard: str, tar: _Tar, member: tarfile.TarInfo) -> VideoContent:
    return TarMember(shard, member.offset_data, member.size)


def _damaged(shard: str, place: int, found: object) -> VideoRecord:
    """Return a record for the videos that are missing where a shard is damaged."""
    where = f"is damaged at its byte {place}" if place else "is no tar file"
    logger.warning("the shard %s %s (%s): videos may be missing", shard, where, found)
    name = f"{shard} at byte {place}" if place else shard
    return VideoRecord(name, Unreadable(f"the shard {where} ({found}): videos may be missing there", _WRITE_ANEW))


class TarShards(RecordShards):
    """The videos of tar files, compressed or not, read from beginning to end.

    A damaged part of a shard, and one that cannot be opened, count as videos that cannot be read.

    Args:
        shards: Paths, addresses or patterns, see `expand_shards`.
        with_labels: Whether to read the labels, if there are any: the number in the `.cls` file of the same name, or
            of the name up to its first dot, in the video's sample.

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
        with file, ExitStack() as stack:
            try:
                ended: Any = _EndedFile(file)
                tar = stack.enter_context(_Tar.open(fileobj=ended, mode="r|*"))
            except _tar_errors() as error:
                yield _damaged(address, 0, error)
                return
            yield from _all_labelled_or_none(_records_in(tar, address, {} if self._with_labels else None, _read_video))

    def num_records(self, shard: int, *, pass_number: int) -> int:
        """Implement `RecordShards`; of a file of this machine, the headers alone are read."""
        address = self._shards[shard]
        if is_address(address) or _without_query(address).endswith(COMPRESSED_SHARD_ENDINGS):
            return super().num_records(shard, pass_number=pass_number)
        try:
            with open_address(address) as file, _Tar.open(fileobj=file, mode="r:") as tar:
                return sum(1 for _ in _records_in(tar, address, None, partial(_place_of, address)))
        except _tar_errors():  # `records` tells of it, in a record
            return 1


def _all_labelled_or_none(records: Iterator[VideoRecord]) -> Iterator[VideoRecord]:
    has_labels: bool | None = None
    for record in records:
        if not isinstance(record.content, Unreadable):
            has_label = record.label is not None
            if has_labels not in (None, has_label):
                raise ValueError(f"only one of {record.name} and the video before it has a label; {_ALL_OR_NONE}")
            has_labels = has_label
        yield record


def _records_in(
    tar: _Tar,
    shard: str,
    labels: dict[str, int | Unreadable] | None,
    read: Callable[[_Tar, tarfile.TarInfo], VideoContent],
) -> Iterator[VideoRecord]:
    """Read the videos of an archive with the labels of their samples, and each damaged part as an unreadable one.

    A sample is what stands side by side and has one name up to the first dot, as in WebDataset; a name that stands
    there already begins a new one.

    Args:
        tar: The archive.
        shard: Its name.
        labels: All labels are put in, by their names without ending; None: none are read.
        read: Reads a video, or notes its place.
    """
    key, names, videos, own = "", set[str](), list[VideoRecord](), dict[str, int | Unreadable]()
    for member in _members(tar, shard):
        name = member.name if isinstance(member, VideoRecord) else f"{shard}/{member.name}"
        if _stems(name)[1] != key or name in names:
            yield from (_labelled(video, own) for video in videos)
            key, names, videos, own = _stems(name)[1], set(), [], {}
        names.add(name)
        if isinstance(member, VideoRecord):
            videos.append(member)
        elif is_video_name(os.path.basename(member.name)):
            videos.append(VideoRecord(name, read(tar, member)))
        elif labels is not None and name.endswith(_LABEL_ENDING):
            own[name.removesuffix(_LABEL_ENDING)] = _read_label(tar, member, name)
            labels |= own
    yield from (_labelled(video, own) for video in videos)


def _labelled(video: VideoRecord, labels: Mapping[str, int | Unreadable]) -> VideoRecord:
    """Give a video the label of its own name, else of its sample, if there is one."""
    label = next((labels[stem] for stem in _stems(video.name) if stem in labels), None)
    return replace(video, content=label) if isinstance(label, Unreadable) else replace(video, label=label)


def _stems(name: str) -> tuple[str, str]:
    """Return a name without its ending, and up to the first dot, which is what WebDataset goes by."""
    folder, slash, base = name.rpartition("/")
    return name.rpartition(".")[0], folder + slash + base.partition(".")[0]


def _read_video(tar: _Tar, member: tarfile.TarInfo) -> VideoContent:
    try:
        require_room(member.name, member.size)
        file = tar.extractfile(member)
        return VideoBytes(b"" if file is None else file.read())
    except VideoDecodingError as error:
        return Unreadable(error.cause, error.remedy)
    except _tar_errors() as error:
        return Unreadable(f"the shard breaks off in it ({error})", _WRITE_ANEW)


def _read_label(tar: _Tar, member: tarfile.TarInfo, name: str) -> int | Unreadable:
    try:
        file = tar.extractfile(member)
        return parse_label("" if file is None else file.read(_BYTES_OF_LABEL).decode(errors="replace"), name)
    except _tar_errors() as error:
        return Unreadable(f"the shard breaks off in its label ({error})", _WRITE_ANEW)


def _members(tar: _Tar, shard: str) -> Iterator[tarfile.TarInfo | VideoRecord]:
    """Walk over the files, and over damaged parts as unreadable videos; where the shard breaks off, warn and end."""
    num_files = num_damaged = 0
    while True:
        try:
            member, error = tar.next(), None
        except _tar_errors() as caught:
            member, error = None, caught
        for place, found in tar.damage[num_damaged:]:
            yield _damaged(shard, place, found)
        num_damaged = len(tar.damage)
        if error is not None:
            logger.warning("the shard %s breaks off after %d files (%s)", shard, num_files, error)
            return
        if member is None:
            break
        if member.issparse():
            yield VideoRecord(f"{shard}/{member.name}", Unreadable("it is stored with holes (sparse)", _WRITE_ANEW))
        elif member.isfile():
            num_files += 1
            yield member
    if not tar.has_end_mark and not num_damaged:
        logger.warning("the shard %s has no end mark after %d files: it may be cut off there", shard, num_files)


def _tar_errors() -> tuple[type[BaseException], ...]:
    return (tarfile.TarError, zlib.error, lzma.LZMAError, *reading_errors())
