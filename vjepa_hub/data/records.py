"""One video of a data set, wherever it is kept: a file, an address, bytes, a part of a tar file, a folder of frames.

All of them open to the same reader of frames, so that the same video gives the same clip from each. Bytes that lie in
no file are shown to the decoder as a file in memory. `ClipSource` and `RecordShards` are what hands records out: by
number, or one after the other.
"""

import asyncio
import importlib
import logging
import os
import re
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import numpy as np

from ..core.host_memory import machine_memory
from .images import ImageReader, read_image
from .items import ITEM_TIMEOUT, Item, sign_of_life
from .video import FrameIndexError, VideoDecodingError, open_video

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

IMAGE_ENDINGS = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# Remote reads that fail are tried again after these pauses; the last error then counts as the video's.
RETRY_SECONDS = (0.5, 2.0)
_BYTES_AT_ONCE = 1 << 22
_CHECK_ADDRESS = "check the address, the access rights and the connection"


class FrameReader(Protocol):
    """Source of a clip's frames: `VideoReader`, or a folder of frames."""

    @property
    def num_frames(self) -> int:
        """Number of frames, at least 1."""

    @property
    def height(self) -> int:
        """Pixels of a frame that is upright."""

    @property
    def width(self) -> int:
        """Pixels of a frame that is upright."""

    @property
    def average_fps(self) -> float | None:
        """Frames per second; None where nothing says so."""

    def read_frames(
        self, indices: Sequence[int] | np.ndarray, *, box: tuple[int, int, int, int] | None = None
    ) -> np.ndarray:
        """Read frames by index, or a box of each of them, see `VideoReader`."""


class VideoContent(ABC):
    """Where a video is kept. Cheap to make and to send to another process: nothing is read before it is opened."""

    @abstractmethod
    def open(self, *, backend: str | None) -> AbstractContextManager[FrameReader]:
        """Open for reading frames, in a `with` statement.

        Args:
            backend: The decoder, see `open_video`.

        Raises:
            VideoDecodingError: it cannot be read, at once or in the block.
        """


@dataclass(frozen=True)
class VideoRecord:
    """A video of a data set.

    Attributes:
        name: Tells it from all others of its source, in messages and in the quarantine file: a path, an address, the
            name in a tar file, or a row.
        content: Where it is kept.
        label: Number of its class; None without labels.
    """

    name: str
    content: VideoContent
    label: int | None = None

    @property
    def state(self) -> tuple[int, int] | None:
        """Size in bytes and time of change in nanoseconds, of the file of this machine that holds it; else None."""
        place = getattr(self.content, "path", None) or getattr(self.content, "shard", None)
        try:
            status = None if place is None or is_address(os.fspath(place)) else os.stat(place)
        except (OSError, ValueError):  # the last for a null character
            return None
        return None if status is None else (getattr(self.content, "size", status.st_size), status.st_mtime_ns)

    @contextmanager
    def open(self, *, backend: str | None = None, item_timeout: float | None = ITEM_TIMEOUT) -> Iterator[FrameReader]:
        """Open for reading frames. Whatever goes wrong in opening and reading carries the record's name.

        Args:
            backend: The decoder, see `open_video`.
            item_timeout: Seconds without a new frame after which the video is given up; None: never.

        Raises:
            VideoDecodingError: the video cannot be read.
        """
        item, opened = Item(self.name, item_timeout), ExitStack()
        try:
            reader = item.call(lambda: opened.enter_context(self.content.open(backend=backend)))
            yield _ItemReader(reader, item)
        finally:
            item.close(opened.close)


class _ItemReader:
    """Reader whose frames are read as those of an item."""

    def __init__(self, reader: FrameReader, item: Item):
        self._reader, self._item = reader, item

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def read_frames(
        self, indices: Sequence[int] | np.ndarray, *, box: tuple[int, int, int, int] | None = None
    ) -> np.ndarray:
        return self._item.call(lambda: self._reader.read_frames(indices, box=box))


@dataclass(frozen=True)
class LocalVideo(VideoContent):
    """A video file.

    Attributes:
        path: The file.
        num_threads: Threads of the decoder, as for `open_video`.
    """

    path: Path
    num_threads: int = 1

    def open(self, *, backend: str | None) -> AbstractContextManager[FrameReader]:
        """Implement `VideoContent`."""
        return open_video(self.path, backend=backend, num_threads=self.num_threads)


@dataclass(frozen=True)
class ImageFile(VideoContent):
    """An image file as a video, see `ImageReader`."""

    path: Path

    @contextmanager
    def open(self, *, backend: str | None) -> Iterator[FrameReader]:
        """Implement `VideoContent`."""
        yield ImageReader(self.path)


class StoredVideo(VideoContent):
    """A video that is no file here: all its bytes are read, and decoded from memory."""

    @abstractmethod
    def read(self) -> bytes:
        """Read the whole video.

        Raises:
            VideoDecodingError: it cannot be read.
        """

    @contextmanager
    def open(self, *, backend: str | None) -> Iterator[FrameReader]:
        """Implement `VideoContent`."""
        with _shown_as_file(self.read()) as path, open_video(path, backend=backend) as reader:
            yield reader


@dataclass(frozen=True)
class VideoBytes(StoredVideo):
    """The bytes of a video file."""

    data: bytes = field(repr=False)

    def read(self) -> bytes:
        """Implement `StoredVideo`."""
        return self.data


@dataclass(frozen=True)
class RemoteVideo(StoredVideo):
    """A video file at an fsspec address, such as `s3://bucket/a.mp4`."""

    address: str

    def read(self) -> bytes:
        """Implement `StoredVideo`."""
        return read_remote(self.address, self._read)

    def _read(self) -> bytes:
        parts = []
        with open_address(self.address) as file:
            while part := file.read(_BYTES_AT_ONCE):
                sign_of_life()
                parts.append(part)
                require_room(self.address, len(parts) * _BYTES_AT_ONCE)
        return b"".join(parts)


@dataclass(frozen=True)
class TarMember(StoredVideo):
    """A video in a tar file that is not compressed.

    Attributes:
        shard: Path or fsspec address of the tar file.
        offset: Where the video begins, in bytes.
        size: Its length in bytes.
    """

    shard: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Implement `StoredVideo`."""
        return read_remote(self.shard, self._read)

    def _read(self) -> bytes:
        with open_address(self.shard) as file:
            num_there = min(max(file.seek(0, os.SEEK_END) - self.offset, 0), self.size)
            if num_there < self.size:
                cause = f"the shard is truncated: it holds {num_there} of the video's {self.size} bytes"
                raise VideoDecodingError(self.shard, cause, "fetch the shard again, or write it anew")
            require_room(self.shard, self.size)
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class SourceVideo(VideoContent):
    """A video of a source, fetched from it when it is opened: rows hold their bytes."""

    source: "ClipSource"
    index: int

    def open(self, *, backend: str | None) -> AbstractContextManager[FrameReader]:
        """Implement `VideoContent`."""
        return self.source.record(self.index).open(backend=backend)


@dataclass(frozen=True)
class FrameFolder(VideoContent):
    """A video as a folder of images, one for each frame, in the natural order of their names (`f2` before `f10`).

    Attributes:
        path: The folder; what in it is no image is passed over.
        fps: Frames per second, where it is known.
    """

    path: Path
    fps: float | None = None

    @contextmanager
    def open(self, *, backend: str | None) -> Iterator[FrameReader]:
        """Implement `VideoContent`."""
        yield _FrameFolderReader(self.path, self.fps)


@dataclass(frozen=True)
class Unreadable(VideoContent):
    """A video, or a whole shard of them, that turned out to be unreadable before it came to decoding.

    Attributes:
        cause: What was found, in words.
        remedy: What to do about it.
    """

    cause: str
    remedy: str

    def open(self, *, backend: str | None) -> AbstractContextManager[FrameReader]:
        """Raise the error."""
        raise VideoDecodingError("", self.cause, self.remedy)


class _FrameFolderReader:
    def __init__(self, path: Path, fps: float | None):
        self._path, self.average_fps = path, fps
        self._images = _images_of(path)
        self.num_frames = len(self._images)
        self.timestamps = np.arange(self.num_frames) / (np.nan if fps is None else fps)
        self.height, self.width, _ = self._read(0).shape

    def read_frames(
        self, indices: Sequence[int] | np.ndarray, *, box: tuple[int, int, int, int] | None = None
    ) -> np.ndarray:
        top, left, height, width = (0, 0, self.height, self.width) if box is None else box
        unique, positions = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        frames = np.empty((len(unique), height, width, 3), dtype=np.uint8)
        for place, index in enumerate(unique.tolist()):
            frames[place] = self._read_alike(index)[top : top + height, left : left + width]
        return frames[positions]

    def _read_alike(self, index: int) -> np.ndarray:
        if not 0 <= index < self.num_frames:
            cause = f"frame {index} is asked for, but the folder has {self.num_frames} frames"
            raise FrameIndexError(self._path, cause, f"ask for indices from 0 to {self.num_frames - 1}")
        frame = self._read(index)
        if frame.shape[:2] != (self.height, self.width):
            cause = f"{self._images[index].name} has another size than {self._images[0].name}"
            raise VideoDecodingError(self._path, cause, "write all frames of a video in one size")
        return frame

    def _read(self, index: int) -> np.ndarray:
        sign_of_life()
        try:
            return np.array(read_image(self._images[index]))
        except VideoDecodingError as error:
            raise VideoDecodingError(self._path, f"{self._images[index].name}: {error.cause}", error.remedy) from error


def is_image_name(name: str) -> bool:
    """Return whether a file of this name is an image: by its ending, and it is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_ENDINGS


def _images_of(folder: Path) -> list[Path]:
    try:
        names = [name for name in os.listdir(folder) if is_image_name(name)]
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise VideoDecodingError(folder, f"the folder of frames cannot be listed ({error.strerror})") from error
    if not names:
        endings = ", ".join(sorted(IMAGE_ENDINGS))
        raise VideoDecodingError(folder, "the folder holds no image", f"frames are files that end in {endings}")
    return [folder / name for name in sorted(names, key=natural_key)]


def natural_key(name: str) -> list[str | int]:
    """Sort key that puts numbers in names in the order of their values: `f2.png` before `f10.png`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name, flags=re.ASCII)]


def require_room(name: str, num_bytes: int) -> None:
    """Raise VideoDecodingError for a video that is read whole, and is larger than half of the machine's memory."""
    if num_bytes > machine_memory() / 2:
        cause = f"it has {num_bytes:,} bytes or more, over half of this machine's memory, and is read whole"
        raise VideoDecodingError(name, cause, "leave it out, or store it as a file of its own")


def is_address(path: str) -> bool:
    """Return whether a path is an fsspec address (`s3://bucket/a.mp4`), not a path of this machine."""
    return "://" in path


def open_address(address: str) -> IO[bytes]:
    """Open a path or an fsspec address for reading. Use it in a `with` statement."""
    if not is_address(address):
        return open(address, "rb")
    return importlib.import_module("fsspec").open(address, "rb").open()


def read_remote(address: str, read: Callable[[], Result]) -> Result:
    """Call a function that reads from a path or an address; again after a pause if an address fails.

    Args:
        address: What is read, for the errors.
        read: Does it.

    Raises:
        VideoDecodingError: it is not there, may not be read, or failed `len(RETRY_SECONDS) + 1` times.
    """
    pauses = list(RETRY_SECONDS) if is_address(address) else []
    while True:
        try:
            return read()
        except reading_errors() as error:
            cause = f"it cannot be read ({type(error).__name__}: {error})"
            if not pauses or isinstance(error, FileNotFoundError | PermissionError):
                raise VideoDecodingError(address, cause, _CHECK_ADDRESS) from error
            logger.warning("%s: %s; trying again in %g s", address, cause, pauses[0])
        time.sleep(pauses.pop(0))


def reading_errors() -> tuple[type[BaseException], ...]:
    """Errors of reading a file or an address; those of the client behind `http://` are no OSError."""
    aiohttp = sys.modules.get("aiohttp")
    return (OSError, EOFError, asyncio.TimeoutError, *([aiohttp.ClientError] if aiohttp else []))


@contextmanager
def _shown_as_file(data: bytes) -> Iterator[Path]:
    """Give bytes a path: a file in memory where the system has them (Linux), else a temporary one."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("video"), "wb") as file:
            file.write(data)
            file.flush()
            yield Path(f"/proc/self/fd/{file.fileno()}")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "video")
        path.write_bytes(data)
        yield path


class ClipSource(ABC):
    """The videos of a data set, by number. Cheap to send to another process, which then reads on its own."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of videos."""

    @abstractmethod
    def record(self, index: int) -> VideoRecord:
        """Return one video.

        Args:
            index: In `[0, len(self))`.

        Raises:
            IndexError: outside.
        """

    @property
    @abstractmethod
    def has_labels(self) -> bool:
        """Return whether every record has a label; else none has."""

    def labels(self) -> np.ndarray:
        """Read the labels of all videos, `(num_videos,)` int64, without the videos where that can be.

        Raises:
            ValueError: there are none.
        """
        if not self.has_labels:
            raise ValueError("the videos have no labels, but they are asked for; name a class for each")
        return np.array([self.record(index).label for index in range(len(self))], dtype=np.int64)

    @property
    def weights(self) -> np.ndarray | None:
        """How often to draw each video, `(num_videos,)` float64 with sum 1; None: all equally often."""
        return None

    def stand_ins(self, index: int) -> range:
        """Return the videos among which one is drawn in place of `index`, if that cannot be read."""
        return range(len(self))


class RecordShards(ABC):
    """The videos of a data set in pieces (shards) that are read from beginning to end."""

    @property
    @abstractmethod
    def num_shards(self) -> int:
        """Number of pieces, at least 1."""

    @abstractmethod
    def records(self, shard: int, *, pass_number: int) -> Iterator[VideoRecord]:
        """Read one piece.

        Args:
            shard: In `[0, num_shards)`.
            pass_number: How often the whole data set was read before; a source may order a piece by it, but gives the
                same number of records each time.
        """

    def num_records(self, shard: int, *, pass_number: int) -> int:
        """Count the records of one piece.

        Args:
            shard: In `[0, num_shards)`.
            pass_number: See `records`.
        """
        return sum(1 for _ in self.records(shard, pass_number=pass_number))


class PackedNames:
    """Millions of names in two blocks of memory, which processes share after a fork.

    A list of strings is an object for each, whose reference count is written when it is looked at: every worker ends
    up with a copy of its own.
    """

    def __init__(self, names: Sequence[str]):
        encoded = [os.fsencode(name) for name in names]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside 0 to {len(self) - 1}")
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]])
