"""The video stream of a file as FFmpeg's demuxer gives it: which one it is, and when each of its frames is shown.

PyAV opens every file, whichever library decodes it, so that all of them agree on the stream, the number of frames and
their times.
"""

import importlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .containers import read_composition_offsets, require_whole_file
from .items import sign_of_life
from .video_errors import RECODE, VideoDecodingError

logger = logging.getLogger(__name__)

_INDEXED_CONTAINERS = frozenset({"mp4", "mov", "matroska"})
_INCOMPLETE = "the file is truncated or damaged (an incomplete packet)"


class VideoStream:
    """The video stream of a file that the `ffmpeg` command takes, open for demuxing with PyAV.

    The packets are indexed without decoding. Of MP4 the index is FFmpeg's own with the composition offsets of the
    file (PyAV 16 and later); of other files every packet is read once. Where time stamps are missing, equal, or begin
    anew (recordings that were joined), no index tells the frames: they are counted by decoding the whole file, and
    `is_counted` is True.

    Args:
        path: The file.
        num_threads: Threads of PyAV's decoder, 0 to let it choose.

    Attributes:
        handle: The open `av.container.InputContainer`.
        stream: Its `av.video.stream.VideoStream`.
        num_frames: Number of frames that are shown.
        declared_frames: Number that the header promises; None where it does not, or an edit list hides some of them.
        declared_fps: Frames per second by the header, 0 where it does not say.
        has_frame_index: True for containers that hold an index of their frames: MP4, QuickTime, Matroska, WebM.
        is_from_table: True where the index comes from the header, and no packet was read for it.
        is_counted: True where frames are told by counting from the first one, not by their time stamps.
        is_trimmed: True where an edit list hides frames.
        is_closed: True where every key frame begins a closed group: what is decoded before it is shown before it.

    Raises:
        VideoDecodingError: The file is missing, truncated or damaged, or has no video.
    """

    handle: Any = None

    def __init__(self, path: Path, *, num_threads: int = 1):
        require_whole_file(path)
        self.path, self._num_threads = path, num_threads
        self.is_counted = self.is_trimmed = False
        self.reopen()
        formats = self.handle.format.name.split(",")
        self.has_frame_index = not _INDEXED_CONTAINERS.isdisjoint(formats)
        self.is_from_table = "mp4" in formats and self._adopt_table()
        if not self.is_from_table:
            self.index_packets()
        self.declared_frames = None if self.is_trimmed else self.stream.frames or None
        self.declared_fps = float(self.stream.average_rate or 0)

    def reopen(self) -> None:
        """Go back to the beginning of the file, with a new decoder."""
        self.close()
        # An absolute path is no address to FFmpeg, whatever colons the name has. PyAV 19 has lost the option.
        options = {"metadata_errors": "ignore"} if pyav_version() < 19 else {}
        self.handle = importlib.import_module("av").open(os.path.abspath(self.path), **options)
        if not self.handle.streams.video:
            raise VideoDecodingError(self.path, "it has no video stream")
        self.stream = max(self.handle.streams.video, key=_rank)  # the first of equals
        self._is_at_start = True
        if self.has_decoder:
            self.stream.thread_type = "AUTO"
            self.stream.codec_context.thread_count = self._num_threads

    def _rewind(self) -> None:
        """Be at the beginning of the file, and leave it."""
        if not self._is_at_start:
            self.reopen()
        self._is_at_start = False

    def close(self) -> None:
        """Close the file. What is known of the frames stays."""
        if self.handle is not None:
            self.handle.close()
            self.handle = None

    @property
    def has_decoder(self) -> bool:
        """True where PyAV can decode the stream."""
        return self.stream.codec_context is not None

    @property
    def seconds(self) -> np.ndarray:
        """Presentation time of each frame in seconds, `(num_frames,)` float64; the first is 0, and they grow."""
        unit = self._time_base
        return (self._pts - self._pts[0]) * unit.numerator / unit.denominator

    def decode_first_frame(self) -> Any:
        """Decode the first frame that comes out, for its size, pixel format and display matrix.

        Raises:
            VideoDecodingError: No frame comes out.
        """
        packet = next(self.packets_from(0), None)
        # None ends the stream, so that the decoder holds nothing back. The next read seeks, which begins a new one.
        frames = [] if packet is None else packet.decode() + self.stream.codec_context.decode(None)
        first = frames[0] if frames else self._first_of_all()
        if first is None:
            raise VideoDecodingError(self.path, "none of its frames can be decoded", RECODE)
        return first

    def _first_of_all(self) -> Any:
        return next((frame for packet in self.packets_from(0) for frame in packet.decode()), None)

    def index_of(self, pts: int | None) -> int | None:
        """Return the index of the frame with this time stamp, None where none is shown then."""
        place = None if pts is None else int(np.searchsorted(self._pts, pts))
        return place if place is not None and place < self.num_frames and self._pts[place] == pts else None

    def pts_of(self, indices: list[int]) -> list[int]:
        """Return the time stamps of frames."""
        return self._pts[indices].tolist()

    def key_before(self, index: int) -> int:
        """Return the last key frame that is shown no later than a frame, counted in presentation order.

        Leading pictures of an open group, which are shown before their key frame, so belong to the group before.
        """
        place = int(np.searchsorted(self._key_pts, self._pts[index], side="right")) - 1
        return 0 if self.is_counted else max(place, 0)

    def first_index_of(self, key: int) -> int:
        """Return the index of the first frame that is shown no earlier than the `key`-th key frame."""
        return int(np.searchsorted(self._pts, self._key_pts[key]))

    def packets_from(self, key: int) -> Iterator[Any]:
        """Demux from the `key`-th key frame on, or from earlier: demuxers may seek late, which is checked."""
        if key > 0 or self.is_from_table:
            key_pts = int(self._key_pts[key])
            self.handle.seek(key_pts, stream=self.stream)
            packets = self._demux()
            first = next(packets, None)
            found = self._position(first.pts) if first is not None and first.pts is not None else None
            if found is not None and found <= (self._position(key_pts) or 0 if key > 0 else 0):
                yield first
                yield from packets
                return
        self._rewind()
        yield from self._demux()

    def _demux(self) -> Iterator[Any]:
        for packet in self.handle.demux(self.stream):
            sign_of_life()
            yield packet

    def require_whole_packet(self, packet: Any) -> None:
        """Raise VideoDecodingError for a packet that FFmpeg found to be incomplete."""
        if packet.is_corrupt and not self.is_counted:
            raise VideoDecodingError(self.path, _INCOMPLETE, RECODE)

    def index_packets(self) -> None:
        """Read all packets, without decoding, for the times of the frames."""
        self.is_from_table = False
        self._rewind()
        rows = [
            (packet.pts, packet.dts, packet.is_keyframe, packet.is_discard, packet.is_corrupt)
            for packet in self._demux()
            if packet.size
        ]
        pts, dts, is_key, is_hidden, is_corrupt = zip(*rows, strict=True) if rows else ((),) * 5
        keys = [time for time, key in zip(pts, is_key, strict=True) if key]
        is_irregular = None in pts or len(set(pts)) < len(pts) or keys != sorted(keys)
        # FFmpeg flags a packet right before the seam of recordings that were joined byte by byte, though it is whole.
        seams = [place for place in range(1, len(rows)) if is_key[place] and (dts[place] or 0) < (dts[place - 1] or 0)]
        for place, corrupt in enumerate(is_corrupt):
            if corrupt and not any(place < seam <= place + 3 for seam in seams):
                raise VideoDecodingError(self.path, _INCOMPLETE, RECODE)
        if is_irregular:
            self._count_frames()
            return
        self.is_trimmed = any(is_hidden)
        shown = [time for time, hidden in zip(pts, is_hidden, strict=True) if not hidden]
        self._set_index(pts, shown, keys)

    def _adopt_table(self) -> bool:
        """Take the times of MP4's packets from its header, if FFmpeg's index has all of its samples, and no others."""
        entries = getattr(self.stream, "index_entries", None)
        if not entries:
            return False
        offsets = read_composition_offsets(self.path, self.stream.id, len(entries))
        rows = [(entry.timestamp, entry.is_keyframe, entry.is_discard) for entry in entries]
        dts, is_key, is_hidden = (np.array(column) for column in zip(*rows, strict=True))
        self._is_at_start = False
        first = next(self.handle.demux(self.stream), None)
        if offsets is None or is_hidden.any() or not is_key.any() or first is None or first.pts is None:
            return False
        pts = dts + offsets
        pts += first.pts - int(pts[0])  # FFmpeg shifts all of them alike
        if len(np.unique(pts)) < len(pts):
            return False
        self._set_index(pts, pts, pts[is_key])
        return True

    def _set_index(self, pts: Any, shown: Any, keys: Any) -> None:
        """Note the time stamps of all packets, in decoding order, of those that are shown, and of the key frames."""
        if not len(shown) or not len(keys):
            raise VideoDecodingError(self.path, "its video stream holds no frame, or no key frame", RECODE)
        pts = np.asarray(pts, dtype=np.int64)
        self._order = np.argsort(pts, kind="stable")
        self._sorted_pts = pts[self._order]
        self._pts, self._key_pts = np.sort(np.asarray(shown, np.int64)), np.sort(np.asarray(keys, np.int64))
        self.num_frames, self._time_base = len(self._pts), self.stream.time_base
        smallest_from_here = np.minimum.accumulate(pts[::-1])[::-1]
        places = self._order[np.searchsorted(self._sorted_pts, self._key_pts)]
        ranks = np.searchsorted(self._sorted_pts, self._key_pts)
        self.is_closed = bool(((smallest_from_here[places] == self._key_pts) & (ranks == places)).all())

    def _position(self, pts: int) -> int | None:
        """Return the place of a packet in decoding order."""
        place = int(np.searchsorted(self._sorted_pts, pts))
        is_there = place < len(self._sorted_pts) and self._sorted_pts[place] == pts
        return int(self._order[place]) if is_there else None

    def _count_frames(self) -> None:
        """Decode the whole file for the number of frames; times that are missing or do not grow are mended."""
        if not self.has_decoder:
            raise VideoDecodingError(self.path, "its time stamps are irregular, and PyAV cannot decode it", RECODE)
        logger.debug("%s: its time stamps are missing, equal or begin anew; it is decoded from the start", self.path)
        self._rewind()
        pts = [frame.pts for packet in self._demux() for frame in packet.decode()]
        if not pts:
            raise VideoDecodingError(self.path, "none of its frames can be decoded", RECODE)
        self.is_counted, self.is_closed, self.num_frames = True, False, len(pts)
        self._time_base = self.stream.time_base
        usual = 1 / float((self.stream.average_rate or 25) * self._time_base)
        self._pts = self._key_pts = _growing([np.nan if each is None else each for each in pts], usual)


def _rank(stream: Any) -> tuple[bool, bool, int]:
    """Rank a stream as the `ffmpeg` command does: no cover picture, marked as default, of the most pixels."""
    disposition, context = int(getattr(stream, "disposition", 0) or 0), stream.codec_context
    is_default, is_cover = bool(disposition & 0x1), bool(disposition & 0x400)
    return not is_cover, is_default, 0 if context is None else context.width * context.height


def display_orientation(path: Path, frame: Any) -> tuple[bool, tuple[slice, slice]]:
    """Read the display matrix of a PyAV frame, as the `ffmpeg` command follows it.

    Returns:
        True where rows and columns change places, then the slices that reverse rows and columns.

    Raises:
        VideoDecodingError: The frame is turned by less than a quarter.
    """
    straight, back = slice(None), slice(None, None, -1)
    data = [bytes(part) for part in frame.side_data if part.type.name == "DISPLAYMATRIX"]
    if not data:
        return False, (straight, straight)
    # Column x of a pixel goes to column a x + c y, row y to row b x + d y.
    a, b, _, c, d = np.frombuffer(data[0], dtype=np.int32)[:5] / (1 << 16)
    is_transposed = abs(b) > abs(a)
    for_columns, for_rows, rest = (c, b, (a, d)) if is_transposed else (a, d, (b, c))
    if max(map(abs, rest)) > 0.01 * min(abs(for_columns), abs(for_rows)):
        degrees = np.degrees(np.arctan2(b, a))
        raise VideoDecodingError(path, f"a display rotation of {degrees:g} degrees, no quarter turns", RECODE)
    return bool(is_transposed), (back if for_rows < 0 else straight, back if for_columns < 0 else straight)


def _growing(times: list[float], usual: float) -> np.ndarray:
    """Return times that grow: where they do not, or one is missing, the step is the median of those that do."""
    steps = np.diff(np.array(times, dtype=np.float64))
    grows = steps > 0  # False for what is missing
    usual = float(np.median(steps[grows])) if grows.any() else usual
    return np.concatenate([[0.0], np.cumsum(np.where(grows, steps, usual))])


def pyav_version() -> int:
    """Return the major version of PyAV."""
    return int(importlib.import_module("av").__version__.split(".")[0])
