"""Video file to frames, frame-exact, with decord, PyAV or torchcodec.

Frame `i` is the i-th shown frame in presentation order, whatever the backend, the order of the packets in the file
(B-frames, open groups of pictures), the display rotation or the frame rate. Times come from the file's presentation
timestamps, never from index / fps. A file that cannot be read exactly raises `VideoDecodingError`.

The three libraries differ in what they leave to us:

| | decord 0.6 | PyAV | torchcodec |
|---|---|---|---|
| display rotation | applied by it in MP4 only | applied here | applied by it (0.11 and later) |
| random access in open groups of pictures | wrong frames, silently | planned here | exact |
| frames that an MP4 edit list hides | counted, then repeated | skipped | skipped |
| MPEG-TS, AVI with B-frames | wrong frames, silently | exact | error |
| damage that FFmpeg conceals | unnoticed | error, mostly | unnoticed |
| H.264 frames on the way that no wanted one needs | decoded | left out | decoded |

So MP4's own sample table is read here: it tells whether decord may seek, and gives all backends the same times. What
decord would get wrong is an error that names PyAV, never a wrong frame; left to choose, `open_video` takes PyAV there.
For single clips of H.264 PyAV takes a third less time than decord (`benchmarks/data_loading.py`).
Pixels of 8-bit video are equal to the bit; those of 10-bit video differ, mostly by a few grey levels, as the libraries
reduce them in different ways.
"""

import importlib
import logging
import math
import mmap
import os
import re
import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

logger = logging.getLogger(__name__)

DECODING_BACKENDS = ("decord", "pyav", "torchcodec")
_MODULES = {"decord": "decord", "pyav": "av", "torchcodec": "torchcodec.decoders"}
_REQUIREMENTS = {"decord": "decord", "pyav": "av", "torchcodec": "torchcodec"}

_HEADER_BYTES = 1 << 16
_CHECK_FILE = "check the path, and that the file plays (ffplay FILE)"
_PLAY_FILE = "check that the file plays (ffplay FILE); if it does, use another backend, or re-encode it"
_RECODE = "fetch the file again, or re-encode what is left of it (ffmpeg -i FILE -c:v libx264 NEW.mp4)"
_OTHER_BACKEND = 'use backend="pyav" (pip install av), or re-encode the file (ffmpeg -i FILE -c:v libx264 NEW.mp4)'


class VideoDecodingError(ValueError):
    """A video that cannot be decoded exactly.

    Attributes:
        path: the file, as a string.
        cause: what was found, in words.
        remedy: what to do about it.
    """

    def __init__(self, path: str | os.PathLike, cause: str, remedy: str = _CHECK_FILE):
        super().__init__(f"cannot decode '{os.fspath(path)}': {cause}; {remedy}")
        self.path, self.cause, self.remedy = os.fspath(path), cause, remedy

    def __reduce__(self):
        return type(self), (self.path, self.cause, self.remedy)


class FrameIndexError(VideoDecodingError, IndexError):
    """A frame index outside the video."""


def available_backends() -> tuple[str, ...]:
    """Return the backends that can be imported here, in order of preference.

    torchcodec counts only where FFmpeg's shared libraries are found as well.
    """
    return tuple(name for name in DECODING_BACKENDS if _import_failure(name) is None)


def open_video(path: str | os.PathLike, *, backend: str | None = None, num_threads: int = 1) -> "VideoReader":
    """Open a video file for frame-exact reading. Use it in a `with` statement, or call `close`.

    Args:
        path: the video file.
        backend: `"decord"`, `"pyav"` or `"torchcodec"`; None takes the first of them that can be imported and reads
            this file exactly.
        num_threads: threads of the decoder; 0 lets the library choose. One is right inside data loading workers.

    Raises:
        VideoDecodingError: for a backend that is unknown or cannot be imported, and for a file that is missing, empty,
            truncated, without a video stream, or not readable frame by frame with this backend.
    """
    if num_threads < 0:
        raise ValueError(f"num_threads is {num_threads}, but has to be 0 (automatic) or more")
    unsuitable = None
    for name in DECODING_BACKENDS if backend is None else (_checked_backend(path, backend),):
        # Looked for one by one: an import that fails is not remembered, and takes its time in each call.
        if backend is None and _import_failure(name) is not None:
            continue
        try:
            return _READERS[name](path, num_threads=num_threads)
        except UnsuitableBackendError as error:
            logger.debug("%s; trying the next backend", error)
            unsuitable = error
    if unsuitable is not None:
        raise unsuitable
    raise VideoDecodingError(path, f"none of {', '.join(DECODING_BACKENDS)} is installed", "pip install av")


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image file as RGB, turned upright as its EXIF orientation says.

    Returns:
        Array `(height, width, 3)`, uint8.

    Raises:
        VideoDecodingError: the file is missing, or is no image that Pillow can read completely.
    """
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise VideoDecodingError(path, f"not a readable image ({_first_line(error)})", "check the file") from error


class UnsuitableBackendError(VideoDecodingError):
    """A video that this backend would not read exactly, but another one may."""


class VideoReader(ABC):
    """An open video file; `open_video` makes one. Not safe to share between threads or processes.

    Attributes:
        path: the file.
        backend: name of the library that decodes.
        num_frames: number of frames that are shown, at least 1.
        height: of a frame after display rotation, in pixels.
        width: of a frame after display rotation, in pixels.
    """

    backend: ClassVar[str]
    num_frames: int
    height: int
    width: int

    def __init__(self, path: str | os.PathLike, *, num_threads: int = 1):
        self.path = Path(path)
        self._num_threads = num_threads
        self._container = _inspect_container(self.path)
        self._is_closed = False
        self._timestamps: np.ndarray | None = None
        self._quarter_turns = 0  # counter-clockwise, only where the library leaves the rotation to us
        try:
            with self._our_errors("open"):
                self._open()
        except VideoDecodingError:
            self.close()
            raise

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *exception_info: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.num_frames

    def close(self) -> None:
        """Release the file. Closing twice is allowed."""
        self._is_closed = True
        self._release()

    @property
    def timestamps(self) -> np.ndarray:
        """Presentation time of each frame in seconds, from the file, `(num_frames,)` float64; the first is 0.

        They grow strictly, and are equal for all backends. Without a sample table (that is, outside MP4) decord knows
        them in single precision only, and torchcodec has to decode the file once, at the first use.
        """
        if self._timestamps is None:
            self._check_open()
            with self._our_errors("decode"):
                seconds = np.asarray(self._read_timestamps(), dtype=np.float64)
            self._timestamps = self._checked_timestamps(seconds - seconds[0])
            self._timestamps.setflags(write=False)
        return self._timestamps

    @property
    def average_fps(self) -> float:
        """Frames per second over the whole video, from the timestamps; for a single frame what the file declares."""
        if self.num_frames == 1:
            return self._declared_fps()
        return round((self.num_frames - 1) / float(self.timestamps[-1]), 6)

    @property
    def duration(self) -> float:
        """Length in seconds: the number of frames, each shown for the average time."""
        return self.num_frames / self.average_fps if self.average_fps else 0.0

    def read_frames(
        self, indices: Sequence[int] | np.ndarray, *, box: tuple[int, int, int, int] | None = None
    ) -> np.ndarray:
        """Read frames by index. They are decoded in one forward pass, and only these are kept in memory.

        Args:
            indices: frame indices in `[0, num_frames)`, in any order; repeats are decoded once.
            box: the part of each frame to return, `(top, left, height, width)` in pixels of the upright frame. Faster
                than to cut it out of whole frames, which it equals: the rest is decoded, but not copied.

        Returns:
            Array `(num_indices, height, width, 3)`, uint8 RGB, upright; height and width are those of the box, if any.

        Raises:
            FrameIndexError: an index is negative or not below `num_frames`.
            ValueError: the box is empty or reaches beyond the frame.
            VideoDecodingError: a frame cannot be decoded, or the reader is closed.
        """
        self._check_open()
        wanted = self._checked_indices(indices)
        top, left, height, width = self._checked_box(box)
        if wanted.size == 0:
            return np.empty((0, height, width, 3), dtype=np.uint8)
        unique, positions = np.unique(wanted, return_inverse=True)
        cut = slice(top, top + height), slice(left, left + width)
        with self._our_errors("decode"):
            frames = self._decode(unique.tolist(), cut)
        if len(frames) != len(unique):
            cause = f"{self.backend} returned {len(frames)} of {len(unique)} frames"
            raise VideoDecodingError(self.path, cause, _RECODE)
        is_in_order = len(unique) == len(wanted) and bool((positions == np.arange(len(wanted))).all())
        return np.ascontiguousarray(frames if is_in_order else frames[positions])

    @abstractmethod
    def _open(self) -> None:
        """Open the file, and set `num_frames`, `height` and `width`."""

    @abstractmethod
    def _release(self) -> None:
        """Let go of the library's reader."""

    @abstractmethod
    def _decode(self, indices: list[int], cut: tuple[slice, slice]) -> np.ndarray:
        """Decode frames, indices sorted and unique, and return these rows and columns of them, `_upright`."""

    @abstractmethod
    def _read_timestamps(self) -> np.ndarray:
        """Return the presentation times in seconds, `(num_frames,)`."""

    @abstractmethod
    def _declared_fps(self) -> float:
        """Return the frame rate that the file declares, 0 where it does not."""

    @abstractmethod
    def _library_errors(self) -> tuple[type[BaseException], ...]:
        """Return what the library raises for a bad file."""

    def _our_errors(self, action: str) -> "_ErrorsOfOurs":
        return _ErrorsOfOurs(self.path, f"{self.backend} cannot {action} it", self._library_errors())

    def _check_open(self) -> None:
        if self._is_closed:
            raise VideoDecodingError(self.path, "the reader is closed", "read inside the `with open_video(...)` block")

    def _checked_indices(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted = np.asarray(indices)
        if wanted.ndim != 1 or (wanted.size and not np.issubdtype(wanted.dtype, np.integer)):
            raise TypeError(f"indices have to be a list of integers, not {wanted.dtype} of shape {wanted.shape}")
        outside = wanted[(wanted < 0) | (wanted >= self.num_frames)]
        if outside.size:
            cause = f"frame {outside[0]} is asked for, but the video has {self.num_frames} frames"
            raise FrameIndexError(self.path, cause, f"ask for indices from 0 to {self.num_frames - 1}")
        return wanted.astype(np.int64)

    def _checked_timestamps(self, seconds: np.ndarray) -> np.ndarray:
        if len(seconds) != self.num_frames or not np.isfinite(seconds).all() or (np.diff(seconds) <= 0).any():
            cause = f"the timestamps of its {self.num_frames} frames do not grow strictly"
            raise VideoDecodingError(self.path, cause, _RECODE)
        return seconds

    def _checked_box(self, box: tuple[int, int, int, int] | None) -> tuple[int, int, int, int]:
        if box is None:
            return 0, 0, self.height, self.width
        top, left, height, width = box
        if min(top, left) < 0 or min(height, width) < 1 or top + height > self.height or left + width > self.width:
            raise ValueError(
                f"box is {tuple(box)}, but (top, left, height, width) has to hold something and lie within the "
                f"{self.height} x {self.width} pixels of the frames of '{self.path}'"
            )
        return top, left, height, width

    def _upright(self, frames: np.ndarray, cut: tuple[slice, slice]) -> np.ndarray:
        """Turn frames, `(..., height, width, 3)` once they are upright, and cut these rows and columns out."""
        frames = np.rot90(frames, self._quarter_turns, axes=(-3, -2)) if self._quarter_turns else frames
        expected = (self.height, self.width, 3)
        if frames.shape[-3:] != expected or frames.dtype != np.uint8:
            cause = f"{self.backend} returned {frames.dtype} of shape {frames.shape} instead of uint8 {expected}"
            raise VideoDecodingError(self.path, cause, _RECODE)
        rows, columns = cut
        return frames[..., rows, columns, :]


class _DecordReader(VideoReader):
    """decord 0.6.

    It returns frames without their times, and finds them by counting: from the key frame before, whose place it takes
    from the order in the file. That is right only where decoding and presentation order agree at each key frame. Where
    the sample table proves it, decord seeks; elsewhere (open groups, trimmed, fragmented, not MP4) the file is decoded
    from its beginning, which takes long near the end of a long file. It refuses what it would get wrong even so:
    MPEG-TS and other containers that it cannot rewind, AVI with B-frames, rotated Matroska.
    """

    backend = "decord"
    _reader: Any = None
    _next_index = 0

    def _library_errors(self) -> tuple[type[BaseException], ...]:
        decord = importlib.import_module("decord")
        return decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, AssertionError

    def _open(self) -> None:
        self._restart()
        self._check_container()
        samples = self._container.samples
        self.num_frames = len(self._reader) if samples is None else samples.num_shown
        if samples is None:
            self._seconds = self._reader.get_frame_timestamp(range(self.num_frames))[:, 0]
            if not (np.isfinite(self._seconds).all() and (self._seconds >= 0).all()):
                cause = "decord finds no presentation timestamps in it"
                raise UnsuitableBackendError(self.path, cause, _OTHER_BACKEND)
        self.height, self.width = self._next_frame().shape[:2]

    def _check_container(self) -> None:
        samples, trap = self._container.samples, self._container.decord_trap
        if self._container.format is None:
            trap = "a container in which decord is not exact (it is so in MP4, Matroska, WebM and AVI)"
        if trap is not None:
            raise UnsuitableBackendError(self.path, trap, _OTHER_BACKEND)
        if samples is not None and samples.num_edits > 1:
            cause = f"an edit list of {samples.num_edits} parts, which decord does not follow"
            raise UnsuitableBackendError(self.path, cause, _OTHER_BACKEND)
        if samples is not None and not samples.is_trimmed and len(self._reader) != samples.num_shown:
            cause = f"decord counts {len(self._reader)} frames, the file's own table {samples.num_shown}"
            raise UnsuitableBackendError(self.path, cause, _OTHER_BACKEND)

    def _restart(self) -> None:
        decord = importlib.import_module("decord")
        # Any positive tolerance below one frame: the first frame that decord would replace by a neighbour is an error.
        self._reader = decord.VideoReader(
            os.fspath(self.path), ctx=decord.cpu(0), num_threads=self._num_threads, fault_tol=1e-6
        )
        self._next_index = 0

    def _release(self) -> None:
        self._reader = None

    def _decode(self, indices: list[int], cut: tuple[slice, slice]) -> np.ndarray:
        samples = self._container.samples
        if samples is not None and samples.is_seekable_by_count:
            return self._upright(self._reader.get_batch(indices).asnumpy(), cut)
        return self._decode_forward(indices, cut)

    def _decode_forward(self, indices: list[int], cut: tuple[slice, slice]) -> np.ndarray:
        if indices[0] < self._next_index:
            self._restart()
        frames = _empty_frames(len(indices), cut)
        for number, index in enumerate(indices):
            while self._next_index <= index:  # not skip_frames, which may seek
                frame = self._next_frame()
            frames[number] = self._upright(frame.asnumpy(), cut)
        return frames

    def _next_frame(self) -> Any:
        try:
            frame = self._reader.next()
        except StopIteration as error:
            raise VideoDecodingError(self.path, f"the stream ends at frame {self._next_index}", _RECODE) from error
        self._next_index += 1
        return frame

    def _read_timestamps(self) -> np.ndarray:
        if self._container.samples is not None:
            return self._container.samples.shown_seconds
        seconds = self._seconds.astype(np.float64)
        milliseconds = np.round(seconds, 3)  # Matroska's usual unit, exact again after single precision
        is_rounded = np.abs(milliseconds - seconds) <= np.spacing(self._seconds)
        return milliseconds if is_rounded.all() else seconds

    def _declared_fps(self) -> float:
        return float(self._reader.get_avg_fps())


class _PyAVReader(VideoReader):
    """PyAV: a read decodes forward, from the right key frame or from where the read before left off.

    Where MP4's sample table tells which packets come, none is read before it is decoded; elsewhere the packets are
    indexed first, without decoding. The key frame to start from for a frame is the last one that is shown no later:
    leading pictures of an open group, which are shown before their key frame, are so decoded from the group before.
    Frames are told by their timestamps.

    On the way to a wanted frame, packets of H.264 that no other frame needs are left out (`_H264Stream`): of a usual
    file a third to a half, and of the time a quarter to a third.
    """

    backend = "pyav"
    _FRAMES_WORTH_A_SEEK = 16
    _handle: Any = None
    _running: Iterator[tuple[int, Any]] | None = None
    _last_index = -1
    _h264: "_H264Stream | None" = None
    _has_sample_table = False
    _wanted_pts: frozenset[int] = frozenset()
    _last_wanted_pts = 0

    def _library_errors(self) -> tuple[type[BaseException], ...]:
        return (importlib.import_module("av.error").FFmpegError,)

    def _open(self) -> None:
        self._reopen()
        self._to_rgb = _rgb_converter(self._num_threads)
        self._h264 = _H264Stream.of_header(self._stream.codec_context.name, self._stream.codec_context.extradata)
        if not self._adopt_sample_table():
            self._index_packets()
        first = self._first_frame()
        self._quarter_turns = self._quarter_turns_of(first)
        self._coded_shape = (first.height, first.width)
        self.height, self.width = self._coded_shape[::-1] if self._quarter_turns % 2 else self._coded_shape

    def _reopen(self) -> None:
        self._release()
        self._handle = _open_with_pyav(self.path)
        if not self._handle.streams.video:
            raise VideoDecodingError(self.path, "it has no video stream")
        self._stream = self._handle.streams.video[0]
        if self._stream.codec_context is None:
            raise VideoDecodingError(self.path, "PyAV has no decoder for its codec", _PLAY_FILE)
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.thread_count = self._num_threads

    def _release(self) -> None:
        self._running = None
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _adopt_sample_table(self) -> bool:
        """Take the packets' timestamps from MP4's own table, if FFmpeg counts them with a constant difference."""
        samples = self._container.samples
        if samples is None or samples.num_edits > 1 or samples.is_trimmed or not len(samples.keys):
            return False
        first = next(self._handle.demux(self._stream), None)
        if first is None or first.pts is None or self._stream.time_base != Fraction(1, samples.timescale):
            return False
        all_pts = samples.pts + (first.pts - int(samples.pts[0]))
        self._set_packets(all_pts.tolist(), all_pts.tolist(), all_pts[samples.keys].tolist())
        self._has_sample_table = True
        return True

    def _index_packets(self) -> None:
        self._reopen()
        self._has_sample_table = False
        all_pts, shown, keys = [], [], []
        for packet in self._handle.demux(self._stream):
            if not packet.size:
                continue
            self._check_packet(packet)
            all_pts.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
            if not packet.is_discard:
                shown.append(packet.pts)
        self._set_packets(all_pts, shown, keys)

    def _set_packets(self, all_pts: list[int], shown: list[int], keys: list[int]) -> None:
        """Index the packets by their timestamps, which come in decoding order."""
        self._positions = {pts: position for position, pts in enumerate(all_pts)}
        if len(self._positions) != len(all_pts):
            raise VideoDecodingError(self.path, "several of its packets carry the same timestamp", _RECODE)
        if not shown or not keys:
            raise VideoDecodingError(self.path, "its video stream holds no frame, or no key frame", _RECODE)
        self._pts, self._key_pts = np.array(sorted(shown), dtype=np.int64), np.array(sorted(keys), dtype=np.int64)
        self._indices = {pts: index for index, pts in enumerate(sorted(shown))}
        self.num_frames = len(shown)

    def _check_packet(self, packet: Any) -> None:
        if packet.is_corrupt:
            raise VideoDecodingError(self.path, "the file is truncated or damaged (an incomplete packet)", _RECODE)
        if packet.pts is None:
            raise VideoDecodingError(self.path, "its packets carry no presentation timestamps", _RECODE)

    def _first_frame(self) -> Any:
        """Decode one frame to learn its size and rotation: the first packet by itself, else what comes out first."""
        packet = next(self._packets_from(0), None)
        # None ends the stream, so that the decoder holds nothing back. The next read seeks, which begins a new one.
        frames = [] if packet is None else packet.decode() + self._stream.codec_context.decode(None)
        first = frames[0] if frames else next((frame for _, frame in self._frames_from(0)), None)
        if first is None:
            raise VideoDecodingError(self.path, "none of its frames can be decoded", _RECODE)
        return first

    def _quarter_turns_of(self, frame: Any) -> int:
        turns = _display_rotation(frame) / 90
        if abs(turns - round(turns)) > 0.01:
            cause = f"a display rotation of {90 * turns:g} degrees; only quarter turns are supported"
            raise VideoDecodingError(self.path, cause, _RECODE)
        return round(turns) % 4

    def _start_for(self, index: int) -> int:
        """Return which key frame to start from, counted in presentation order."""
        place = int(np.searchsorted(self._key_pts, self._pts[index], side="right")) - 1
        return max(place, 0)

    def _frames_from(self, key: int) -> Iterator[tuple[int | None, Any]]:
        """Decode from the `key`-th key frame on, yielding `(frame index or None, frame)` in presentation order."""
        for packet in self._packets_from(key):
            if packet.size:  # the last one is empty, and lets the decoder give out what it holds back
                self._check_packet(packet)
                if self._can_leave_out(packet):
                    continue
            for frame in packet.decode():
                yield self._indices.get(frame.pts), frame

    def _can_leave_out(self, packet: Any) -> bool:
        """Whether no wanted frame needs the packet. What is shown after these stays: the next read may want it."""
        if self._h264 is None or packet.pts >= self._last_wanted_pts or packet.pts in self._wanted_pts:
            return False
        return not packet.is_keyframe and self._h264.is_disposable(memoryview(packet))

    def _packets_from(self, key: int) -> Iterator[Any]:
        """Demux from the `key`-th key frame on, or from earlier: demuxers may seek late, which is checked."""
        if key > 0 or self._has_sample_table:
            key_pts = int(self._key_pts[key])
            self._handle.seek(key_pts, stream=self._stream)
            packets = self._handle.demux(self._stream)
            first = next(packets, None)
            found = self._positions.get(first.pts) if first is not None else None
            if found is not None and found <= (self._positions[key_pts] if key > 0 else 0):
                yield first
                yield from packets
                return
        self._reopen()
        yield from self._handle.demux(self._stream)

    def _decode(self, indices: list[int], cut: tuple[slice, slice]) -> np.ndarray:
        try:
            return self._decode_all(indices, cut)
        except VideoDecodingError:
            if self._h264 is None and not self._has_sample_table:
                raise
        self._give_up_shortcuts()
        return self._decode_all(indices, cut)

    def _give_up_shortcuts(self) -> None:
        """Index all packets, and leave none out from now on."""
        self._h264, num_frames = None, self.num_frames
        self._index_packets()
        if self.num_frames != num_frames:
            cause = f"its sample table lists {num_frames} frames, but {self.num_frames} are in it"
            raise VideoDecodingError(self.path, cause, _RECODE)

    def _decode_all(self, indices: list[int], cut: tuple[slice, slice]) -> np.ndarray:
        wanted_pts = self._pts[indices].tolist()
        self._wanted_pts, self._last_wanted_pts = frozenset(wanted_pts), wanted_pts[-1]
        frames = _empty_frames(len(indices), cut)
        pending = deque(indices)
        while pending:
            self._decode_run(pending, frames, cut)
        return frames

    def _decode_run(self, pending: deque[int], frames: np.ndarray, cut: tuple[slice, slice]) -> None:
        """Decode forward until all is found, or a seek gets to the next wanted frame sooner."""
        running = self._frames_up_to(pending[0])
        for index, frame in running:
            self._check_frame(index, frame, pending[0])
            if index < pending[0]:
                continue
            frames[-len(pending)] = self._upright(self._to_rgb(frame).to_ndarray(), cut)
            pending.popleft()
            if not pending or self._is_seek_sooner(index, pending[0]):
                self._running, self._last_index = running, index
                return
        raise VideoDecodingError(self.path, f"the stream ends before frame {pending[0]}", _RECODE)

    def _frames_up_to(self, wanted: int) -> Iterator[tuple[int, Any]]:
        """Frames that lead to a wanted one: where the last read left off if that is no detour, else from a key frame.

        The state is given away: an error on the way leaves none behind.
        """
        running, self._running = self._running, None
        if running is not None and self._last_index < wanted and not self._is_seek_sooner(self._last_index, wanted):
            return running
        return self._shown_frames_from(self._start_for(wanted))

    def _shown_frames_from(self, key: int) -> Iterator[tuple[int, Any]]:
        for index, frame in self._frames_from(key):
            if index is not None and self._pts[index] >= self._key_pts[key]:
                yield index, frame

    def _check_frame(self, index: int, frame: Any, wanted: int) -> None:
        if frame.is_corrupt:
            raise VideoDecodingError(self.path, f"frame {index} is damaged", _RECODE)
        if index > wanted:
            raise VideoDecodingError(self.path, f"frame {wanted} cannot be decoded", _RECODE)
        if (frame.height, frame.width) != self._coded_shape:
            cause = f"frame {index} is {frame.height} x {frame.width}, the first one has another size"
            raise VideoDecodingError(self.path, cause, _RECODE)

    def _is_seek_sooner(self, index: int, wanted: int) -> bool:
        key_index = int(np.searchsorted(self._pts, self._key_pts[self._start_for(wanted)]))
        return key_index - index > self._FRAMES_WORTH_A_SEEK

    def _read_timestamps(self) -> np.ndarray:
        unit = self._stream.time_base
        return (self._pts - self._pts[0]) * unit.numerator / unit.denominator

    def _declared_fps(self) -> float:
        return float(self._stream.average_rate or 0)


class _TorchCodecReader(VideoReader):
    """torchcodec in its exact mode, which indexes the file first.

    Where it cannot seek exactly (MPEG-TS, AVI with B-frames) it raises. Before 0.11 it left display rotation alone:
    there MP4's own entry is applied here.
    """

    backend = "torchcodec"
    _FRAMES_AT_ONCE = 32
    _decoder: Any = None

    def _library_errors(self) -> tuple[type[BaseException], ...]:
        return RuntimeError, ValueError, IndexError

    def _open(self) -> None:
        self._decoder = importlib.import_module("torchcodec.decoders").VideoDecoder(
            os.fspath(self.path), dimension_order="NHWC", num_ffmpeg_threads=self._num_threads, device="cpu"
        )
        self.num_frames = len(self._decoder)
        if not hasattr(self._decoder.metadata, "rotation") and self._container.samples is not None:
            self._quarter_turns = self._container.samples.quarter_turns
        shape = self._decoder.get_frame_at(0).data.shape[:2]
        self.height, self.width = shape[::-1] if self._quarter_turns % 2 else shape

    def _release(self) -> None:
        self._decoder = None

    def _decode(self, indices: list[int], cut: tuple[slice, slice]) -> np.ndarray:
        return self._upright(self._decoder.get_frames_at(indices).data.numpy(), cut)

    def _read_timestamps(self) -> np.ndarray:
        if self._container.samples is not None and self._container.samples.num_shown == self.num_frames:
            return self._container.samples.shown_seconds
        starts = range(0, self.num_frames, self._FRAMES_AT_ONCE)
        batches = [
            self._decoder.get_frames_in_range(start, min(start + self._FRAMES_AT_ONCE, self.num_frames))
            for start in starts
        ]
        return np.concatenate([batch.pts_seconds.numpy() for batch in batches])

    def _declared_fps(self) -> float:
        return float(self._decoder.metadata.average_fps or 0)


_READERS: dict[str, type[VideoReader]] = {
    reader.backend: reader for reader in (_DecordReader, _PyAVReader, _TorchCodecReader)
}


class _ErrorsOfOurs:
    """Turn a library's errors into `VideoDecodingError`; ours and all others pass."""

    def __init__(self, path: Path, complaint: str, errors: tuple[type[BaseException], ...]):
        self._path, self._complaint, self._errors = path, complaint, errors

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if error is None or isinstance(error, VideoDecodingError) or not isinstance(error, self._errors):
            return
        raise VideoDecodingError(self._path, f"{self._complaint} ({_first_line(error)})", _PLAY_FILE) from error


def _empty_frames(num_frames: int, cut: tuple[slice, slice]) -> np.ndarray:
    rows, columns = cut
    return np.empty((num_frames, rows.stop - rows.start, columns.stop - columns.start, 3), dtype=np.uint8)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def _open_with_pyav(path: Path) -> Any:
    """Open a container whatever its text metadata holds; PyAV 19 ignores broken text by itself and lost the option."""
    options = {"metadata_errors": "ignore"} if _pyav_version() < 19 else {}
    return importlib.import_module("av").open(os.fspath(path), **options)


def _rgb_converter(num_threads: int) -> Callable[[Any], Any]:
    """Return what converts PyAV's frames, set up once: to set it up for each frame takes as long as to convert it."""
    converter = importlib.import_module("av.video.reformatter").VideoReformatter()
    threads = {"threads": num_threads} if _pyav_version() >= 17 else {}  # untold, it starts one for each core
    return partial(converter.reformat, format="rgb24", **threads)


def _pyav_version() -> int:
    return int(importlib.import_module("av").__version__.split(".")[0])


def _display_rotation(frame: Any) -> float:
    """Return the counter-clockwise rotation in degrees that a PyAV frame asks for."""
    if hasattr(frame, "rotation"):
        return float(frame.rotation)
    for side_data in frame.side_data:
        if side_data.type.name == "DISPLAYMATRIX":
            matrix = np.frombuffer(bytes(side_data), dtype=np.int32)
            return -float(np.degrees(np.arctan2(float(matrix[1]), float(matrix[0]))))
    return 0.0


# --- H.264: packets that no other frame needs ---


@dataclass(frozen=True)
class _H264Stream:
    """An H.264 stream whose pictures are all whole frames, as MP4 and Matroska hold it.

    A picture whose slices carry nal_ref_idc 0 is never used to predict another (ITU-T H.264, 7.4.1), nor is its place
    in the order of display (8.2.1): to leave its packet out changes no other frame. In a stream that may code fields
    apart, a packet may be half of a frame; such a stream is left alone.

    Attributes:
        length_size: bytes of the length before each unit of a packet.
    """

    length_size: int

    # Slice of a non-IDR picture, supplemental information, access unit delimiter, filler data.
    _SLICE: ClassVar[int] = 1
    _WITHOUT_EFFECT: ClassVar[frozenset[int]] = frozenset({1, 6, 9, 12})

    @classmethod
    def of_header(cls, codec: str, header: bytes | None) -> "_H264Stream | None":
        """Read the decoder configuration record (ISO 14496-15, 5.3.3.1); None for any other stream."""
        if codec != "h264" or not header or header[0] != 1:
            return None
        try:
            parameter_sets = _sequence_parameter_sets(header)
            if not parameter_sets or not all(_has_whole_frames_only(data) for data in parameter_sets):
                return None
        except (IndexError, ValueError):  # a header that ends early: the decoder has to make sense of it
            return None
        return cls(length_size=(header[4] & 3) + 1)

    def is_disposable(self, packet: memoryview) -> bool:
        """Whether the packet is one picture that no other needs, and holds nothing else."""
        place, has_slice = 0, False
        while place + self.length_size < len(packet):
            length = int.from_bytes(packet[place : place + self.length_size], "big")
            place += self.length_size
            kind = packet[place]  # the three highest bits hold nal_ref_idc, and one that is 0
            if kind not in self._WITHOUT_EFFECT:
                return False
            has_slice = has_slice or kind == self._SLICE
            place += length
        return has_slice and place == len(packet)


def _sequence_parameter_sets(header: bytes) -> list[bytes]:
    parameter_sets, place = [], 6
    for _ in range(header[5] & 31):
        length = int.from_bytes(header[place : place + 2], "big")
        parameter_sets.append(header[place + 2 : place + 2 + length])
        place += 2 + length
    return parameter_sets


def _has_whole_frames_only(parameter_set: bytes) -> bool:
    """Read frame_mbs_only_flag (ITU-T H.264, 7.3.2.1.1); False for a stream with features that are rare."""
    bits = _Bits(parameter_set.replace(b"\0\0\3", b"\0\0")[1:])
    profile = bits.read(8)
    bits.read(16)  # constraints, level
    bits.read_exp_golomb()  # number of the set
    if profile in _PROFILES_WITH_CHROMA_FORMAT and _has_rare_format(bits):
        return False
    bits.read_exp_golomb()  # length of frame_num
    order_type = bits.read_exp_golomb()
    if order_type == 1:
        return False
    if order_type == 0:
        bits.read_exp_golomb()  # length of the picture order count
    bits.read_exp_golomb()  # number of reference frames
    bits.read(1)  # whether frame_num may have gaps
    bits.read_exp_golomb()  # width
    bits.read_exp_golomb()  # height
    return bits.read(1) == 1


_PROFILES_WITH_CHROMA_FORMAT = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})


def _has_rare_format(bits: "_Bits") -> bool:
    """Read on over chroma format and bit depths; whether it is 4:4:4, or has scaling matrices."""
    is_444 = bits.read_exp_golomb() == 3
    bits.read_exp_golomb()  # luma bits
    bits.read_exp_golomb()  # chroma bits
    bits.read(1)  # lossless transform
    return is_444 or bits.read(1) == 1


class _Bits:
    """Numbers from a string of bits, the highest first."""

    def __init__(self, data: bytes):
        self._bits = "".join(f"{byte:08b}" for byte in data)
        self._place = 0

    def read(self, num_bits: int) -> int:
        """Read a number of fixed length."""
        self._place += num_bits
        return int(self._bits[self._place - num_bits : self._place], 2)

    def read_exp_golomb(self) -> int:
        """Read an unsigned Exp-Golomb code (ITU-T H.264, 9.1)."""
        num_zeros = self._bits.index("1", self._place) - self._place
        self._place += num_zeros
        return self.read(num_zeros + 1) - 1


# --- which backend ---


def _checked_backend(path: str | os.PathLike, backend: str) -> str:
    if backend not in DECODING_BACKENDS:
        cause = f"unknown decoding backend '{backend}'"
        raise VideoDecodingError(path, cause, f"choose one of {', '.join(DECODING_BACKENDS)}")
    failure = _import_failure(backend)
    if failure is not None:
        cause = f"the decoding backend '{backend}' cannot be imported ({failure})"
        usable = ", ".join(available_backends()) or "none"
        raise VideoDecodingError(path, cause, f"pip install {_REQUIREMENTS[backend]}, or use another (here: {usable})")
    return backend


def _import_failure(backend: str) -> str | None:
    """Return why a backend's library cannot be imported, None if it can."""
    try:
        importlib.import_module(_MODULES[backend])
    except (ImportError, OSError, RuntimeError) as error:  # the last two: shared libraries that are missing
        return _first_line(error)
    # From 0.17 on torchcodec can be imported without FFmpeg, for images.
    if backend == "torchcodec" and getattr(importlib.import_module("torchcodec"), "ffmpeg_major_version", 0) is None:
        return "it finds no FFmpeg, which the system has to provide: apt-get install ffmpeg"
    return None


# --- the container: is the file whole, and what does MP4's sample table say ---


@dataclass(frozen=True)
class _SampleTable:
    """MP4's table of the video track's frames, in decoding order.

    Attributes:
        pts: presentation time of each sample in units of 1 / timescale, `(num_samples,)` int64.
        keys: positions of the key frames, `(num_keys,)`.
        is_shown: which samples the edit list keeps, `(num_samples,)` bool.
        timescale: units in a second.
        num_edits: parts of the edit list that show something.
        quarter_turns: counter-clockwise turns that show the frames upright, 0 to 3.
    """

    pts: np.ndarray
    keys: np.ndarray
    is_shown: np.ndarray
    timescale: int
    num_edits: int
    quarter_turns: int

    @property
    def num_shown(self) -> int:
        return int(self.is_shown.sum())

    @property
    def is_trimmed(self) -> bool:
        return not bool(self.is_shown.all())

    @property
    def shown_seconds(self) -> np.ndarray:
        """Return the presentation times of the shown frames in seconds, sorted, `(num_shown,)`."""
        pts = np.sort(self.pts[self.is_shown])
        return (pts - pts[0]) / self.timescale

    @property
    def is_seekable_by_count(self) -> bool:
        """Whether frames can be counted from any key frame: all before it are shown before it, all after it after."""
        smallest_from_here = np.minimum.accumulate(self.pts[::-1])[::-1]
        ranks = np.argsort(np.argsort(self.pts, kind="stable"), kind="stable")
        is_closed = (smallest_from_here[self.keys] == self.pts[self.keys]) & (ranks[self.keys] == self.keys)
        return not self.is_trimmed and bool(is_closed.all())


@dataclass(frozen=True)
class _Container:
    """What the file says of itself.

    Attributes:
        format: `mp4`, `matroska` (WebM too), `avi`, or None for any other.
        samples: MP4's sample table, if it has one that is read here.
        decord_trap: why decord would return wrong frames, None if nothing speaks for it.
    """

    format: str | None
    samples: _SampleTable | None = None
    decord_trap: str | None = None


def _inspect_container(path: Path) -> _Container:
    """Tell the container by its first bytes; raise if the file is missing, empty, or shorter than it says it is."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise VideoDecodingError(path, "the file is empty (0 bytes)")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _inspect_bytes(path, data)
    except FileNotFoundError as error:
        raise VideoDecodingError(path, "there is no such file") from error
    except IsADirectoryError as error:
        raise VideoDecodingError(path, "it is a directory, not a file") from error
    except PermissionError as error:
        raise VideoDecodingError(path, "it may not be read (permission denied)") from error


def _inspect_bytes(path: Path, data: mmap.mmap) -> _Container:
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp"):
        return _inspect_mp4(path, data)
    if data[:4] == b"\x1a\x45\xdf\xa3":
        _check_length(path, _matroska_length(data), len(data))
        trap = "a display rotation, which decord applies in MP4 only" if _is_matroska_rotated(data) else None
        return _Container("matroska", decord_trap=trap)
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        _check_length(path, struct.unpack_from("<I", data, 4)[0] or None, len(data))
        # As FFmpeg reads it: a build tag that ends in p announces several frames in one packet (packed B-frames).
        is_packed = re.search(rb"DivX\d+(Build|b)\d+p", data[:_HEADER_BYTES]) is not None
        return _Container("avi", decord_trap="DivX packed B-frames, which decord miscounts" if is_packed else None)
    return _Container(None)


def _check_length(path: Path, declared: int | None, found: int) -> None:
    if declared is not None and declared > found:
        cause = f"the file is truncated: it says it has {declared} bytes, but there are {found}"
        raise VideoDecodingError(path, cause, _RECODE)


def _matroska_length(data: mmap.mmap) -> int | None:
    """Return where Matroska's segment ends, None if it is open-ended (a live recording)."""
    header_size, start = _ebml_size(data, 4)
    segment = start + (header_size or 0)
    if data[segment : segment + 4] != b"\x18\x53\x80\x67":
        return None
    size, start = _ebml_size(data, segment + 4)
    return None if size is None else start + size


def _is_matroska_rotated(data: mmap.mmap) -> bool:
    """Whether the header has a ProjectionPoseRoll (0x7675, in degrees, a 4- or 8-byte float) other than 0."""
    header = data[:_HEADER_BYTES].split(b"\x1f\x43\xb6\x75")[0]  # up to the first cluster
    short = re.search(rb"\x76\x75\x84(.{4})", header, re.DOTALL)
    long = re.search(rb"\x76\x75\x88(.{8})", header, re.DOTALL)
    return any(roll is not None and roll.group(1).strip(b"\0") != b"" for roll in (short, long))


def _ebml_size(data: mmap.mmap, offset: int) -> tuple[int | None, int]:
    """Read EBML's variable-length size: `(size or None for unknown, offset after it)`."""
    if offset >= len(data) or data[offset] == 0:
        return None, offset
    length = 9 - data[offset].bit_length()
    value = int.from_bytes(data[offset : offset + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), offset + length


def _inspect_mp4(path: Path, data: mmap.mmap) -> _Container:
    boxes = {kind: (start, end) for kind, start, end in _boxes(data, 0, len(data))}
    for kind in (b"mdat", b"moov", b"moof"):
        if kind in boxes:
            _check_length(path, boxes[kind][1], len(data))
    if b"moov" not in boxes or not boxes.keys() & {b"mdat", b"moof"}:
        missing = "index (moov box)" if b"moov" not in boxes else "frames (mdat box)"
        raise VideoDecodingError(path, f"the file is truncated or was never finished: it has no {missing}", _RECODE)
    if not _video_tracks(data, boxes[b"moov"]):
        raise VideoDecodingError(path, "it has no video stream")
    try:
        return _Container("mp4", _read_sample_table(data, boxes[b"moov"]))
    except (struct.error, ValueError, IndexError, KeyError):  # an unusual table: the decoder has to make sense of it
        return _Container("mp4")


def _boxes(data: Any, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Walk over MP4's boxes (ISO 14496-12, 4.2), yielding `(kind, start of the content, end)`, the end as declared."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        header = 8
        if size == 1 and start + 16 <= end:
            size, header = struct.unpack_from(">Q", data, start + 8)[0], 16
        if size == 0:
            size = end - start
        if size < header:
            return
        yield kind, start + header, start + size
        start += size


def _child(data: Any, box: tuple[int, int], *kinds: bytes) -> tuple[int, int] | None:
    """Follow a path of box kinds; None where it ends early."""
    for wanted in kinds:
        found = next(((start, end) for kind, start, end in _boxes(data, *box) if kind == wanted), None)
        if found is None:
            return None
        box = found
    return box


def _video_tracks(data: Any, movie: tuple[int, int]) -> list[tuple[int, int]]:
    tracks = [(start, end) for kind, start, end in _boxes(data, *movie) if kind == b"trak"]
    return [track for track in tracks if _is_video_track(data, track)]


def _read_sample_table(data: Any, movie: tuple[int, int]) -> _SampleTable | None:
    """Read the table of the only video track; None where there are more, or where the samples lie in fragments."""
    tracks = _video_tracks(data, movie)
    if len(tracks) != 1 or _child(data, movie, b"mvex") is not None:
        return None
    pts, keys = _read_samples(data, tracks[0])
    timescale = _read_timescale(data, _child(data, tracks[0], b"mdia", b"mdhd"))
    movie_timescale = _read_timescale(data, _child(data, movie, b"mvhd"))
    edits = _read_edits(data, tracks[0])
    is_shown = np.ones(len(pts), dtype=bool)
    if len(edits) == 1:
        duration, first_pts = edits[0]
        last_pts = first_pts + round(duration * timescale / movie_timescale) if duration else pts.max() + 1
        is_shown = (pts >= first_pts) & (pts < last_pts)
    return _SampleTable(pts, keys, is_shown, timescale, len(edits), _read_quarter_turns(data, tracks[0]))


def _read_quarter_turns(data: Any, track: tuple[int, int]) -> int:
    """Read the rotation of the track header's matrix (rows a b u, c d v, ...; b and c point clockwise)."""
    header = _child(data, track, b"tkhd")
    if header is None:
        raise ValueError("no track header")
    first, second = struct.unpack_from(">ii", data, header[0] + (52 if data[header[0]] == 1 else 40))
    return round(-math.atan2(second, first) / (math.pi / 2)) % 4


def _is_video_track(data: Any, track: tuple[int, int]) -> bool:
    handler = _child(data, track, b"mdia", b"hdlr")
    return handler is not None and data[handler[0] + 8 : handler[0] + 12] == b"vide"


def _read_timescale(data: Any, box: tuple[int, int] | None) -> int:
    if box is None:
        raise ValueError("no timescale")
    offset = 20 if data[box[0]] == 1 else 12  # the times before it are 64-bit in version 1
    timescale = struct.unpack_from(">I", data, box[0] + offset)[0]
    if timescale == 0:
        raise ValueError("a timescale of 0")
    return timescale


def _read_samples(data: Any, track: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the presentation times and the positions of the key frames, in decoding order."""
    table = _child(data, track, b"mdia", b"minf", b"stbl")
    if table is None:
        raise ValueError("no sample table")
    num_samples = int(_read_numbers(data, _child(data, table, b"stsz"), 4)[1])
    durations = _expand_runs(*_read_runs(data, table, b"stts"), num_samples)
    dts = np.cumsum(durations) - durations
    if _child(data, table, b"ctts") is not None:
        dts = dts + _expand_runs(*_read_runs(data, table, b"ctts"), num_samples)
    sync = _child(data, table, b"stss")
    keys = np.arange(len(dts)) if sync is None else _read_numbers(data, sync, 4)[1:] - 1
    if ((keys < 0) | (keys >= num_samples)).any():
        raise ValueError("a key frame that is none of the samples")
    return dts, keys


def _expand_runs(counts: np.ndarray, values: np.ndarray, num_samples: int) -> np.ndarray:
    """Give each sample its value. Counts are checked first: damaged ones would ask for more memory than there is."""
    if num_samples < 1 or (counts < 0).any() or counts.sum() != num_samples:
        raise ValueError("the tables disagree")
    return np.repeat(values, counts)


def _read_numbers(data: Any, box: tuple[int, int] | None, offset: int) -> np.ndarray:
    if box is None:
        raise ValueError("a table is missing")
    return np.frombuffer(data[box[0] + offset : box[1]], dtype=">i4").astype(np.int64)


def _read_runs(data: Any, table: tuple[int, int], kind: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read a run-length table: `(counts, values)`."""
    numbers = _read_numbers(data, _child(data, table, kind), 4)
    runs = numbers[1 : 1 + 2 * numbers[0]].reshape(-1, 2)
    return runs[:, 0], runs[:, 1]


def _read_edits(data: Any, track: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the edits that show something: `(duration in movie units, first shown time in track units)`."""
    box = _child(data, track, b"edts", b"elst")
    if box is None:
        return []
    version, count = data[box[0]], struct.unpack_from(">I", data, box[0] + 4)[0]
    form, step = (">Qq", 20) if version == 1 else (">Ii", 12)
    edits = [struct.unpack_from(form, data, box[0] + 8 + step * number) for number in range(count)]
    return [(duration, first) for duration, first in edits if first >= 0]
