"""Decoded frames of a small data set, kept in memory, so that each video is decoded once in a run.

A tiny model trains as fast as one core decodes its clips, and sees the same few thousand short videos again and again.
Clips are the same with and without the memory. It is shared by the workers of a process, of this pass over the data
and of the next ones, and takes pages of the machine only as videos come in.

Shapes: V videos of T frames, each H x W pixels.
"""

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..core.host_memory import machine_memory
from .items import ITEM_TIMEOUT
from .records import ClipSource, FrameReader, VideoContent, VideoRecord
from .video import VideoDecodingError


class FrameMemory:
    """A place for all frames of each of some videos that are alike in their number of frames and in their size.

    It travels to workers by a fork. Sent to a process in another way, it arrives empty and holds nothing: all videos
    are decoded there.

    Args:
        num_videos: Videos of the data set.
        num_frames: Frames of a video.
        height: Pixels of a frame.
        width: Pixels of a frame.
    """

    def __init__(self, *, num_videos: int, num_frames: int, height: int, width: int):
        self.shape = (num_frames, height, width, 3)
        self._frames: np.ndarray = _shared((num_videos, *self.shape), np.uint8)  # (V, T, H, W, 3)
        self._fps: np.ndarray = _shared((num_videos,), np.float64)  # NaN where nothing tells it
        self._is_kept: np.ndarray = _shared((num_videos,), np.bool_)  # written last

    def __getstate__(self) -> dict:
        """Leave the frames behind."""
        nothing = {
            "_frames": self._frames[:0].copy(),
            "_fps": self._fps[:0].copy(),
            "_is_kept": self._is_kept[:0].copy(),
        }
        return vars(self) | nothing

    @property
    def num_bytes(self) -> int:
        """Bytes of the full memory."""
        return self._frames.nbytes

    @property
    def num_kept(self) -> int:
        """Videos that are in it."""
        return int(self._is_kept.sum())

    def wrap(self, record: VideoRecord, number: int) -> VideoRecord:
        """Return a record that is read from memory, and decoded the first time.

        Args:
            record: The video.
            number: Its place in the data set.
        """
        if number >= len(self._is_kept):
            return record
        return VideoRecord(record.name, _KeptVideo(record.content, self, number), record.label)

    def recall(self, number: int) -> FrameReader | None:
        """Return a reader of a video that is kept; None where it is not."""
        if not self._is_kept[number]:
            return None
        fps = float(self._fps[number])
        return _KeptFrames(self._frames[number], None if np.isnan(fps) else fps)

    def keep(self, number: int, reader: FrameReader) -> FrameReader:
        """Decode a whole video, if it is like the others, and return the reader to go on with."""
        if (reader.num_frames, reader.height, reader.width, 3) != self.shape:
            return reader
        try:
            frames, fps = reader.read_frames(range(reader.num_frames)), reader.average_fps
        except VideoDecodingError:
            return reader  # a clip may do without the frames that cannot be read
        self._frames[number] = frames
        self._fps[number] = np.nan if fps is None else fps
        self._is_kept[number] = True
        return _KeptFrames(self._frames[number], fps)


def open_memory(
    source: ClipSource, *, max_bytes: int, backend: str | None = None, item_timeout: float = ITEM_TIMEOUT
) -> FrameMemory | None:
    """Make a memory for a data set, if all of it fits when each video is like the first one.

    Args:
        source: The videos.
        max_bytes: Bytes of decoded frames that may be kept; never more than half of the machine's memory.
        backend: The decoder, see `open_video`.
        item_timeout: Seconds without a new frame after which the first video is given up.

    Returns:
        The memory, still empty; None where the videos do not fit, or where the first one cannot be read.
    """
    try:
        with source.record(0).open(backend=backend, item_timeout=item_timeout) as reader:
            sizes = {"num_frames": reader.num_frames, "height": reader.height, "width": reader.width}
    except VideoDecodingError:
        return None  # reported when its turn comes
    num_bytes = 3 * len(source) * sizes["num_frames"] * sizes["height"] * sizes["width"]
    if num_bytes > min(max_bytes, machine_memory() / 2):
        return None
    return FrameMemory(num_videos=len(source), **sizes)


def _shared(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array of zeros that this process and those forked from it write together."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, size), dtype=dtype).reshape(shape)


@dataclass(frozen=True)
class _KeptVideo(VideoContent):
    content: VideoContent
    memory: FrameMemory
    number: int

    @contextmanager
    def open(self, *, backend: str | None) -> Iterator[FrameReader]:
        kept = self.memory.recall(self.number)
        if kept is not None:
            yield kept
            return
        with self.content.open(backend=backend) as reader:
            yield self.memory.keep(self.number, reader)


class _KeptFrames:
    def __init__(self, frames: np.ndarray, average_fps: float | None):
        self._frames, self.average_fps = frames, average_fps
        self.num_frames, self.height, self.width, _ = frames.shape

    def read_frames(
        self, indices: Sequence[int] | np.ndarray, *, box: tuple[int, int, int, int] | None = None
    ) -> np.ndarray:
        top, left, height, width = (0, 0, self.height, self.width) if box is None else box
        cutout = self._frames[:, top : top + height, left : left + width]
        return cutout[np.asarray(indices, dtype=np.int64)]  # a copy
