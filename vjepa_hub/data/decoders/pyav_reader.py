"""Frames with PyAV: exact in every container, by seeking where the time stamps allow it, else by counting."""

import importlib
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from ..video_errors import RECODE, UnsuitableBackendError, VideoDecodingError
from ..video_reader import Cut, VideoReader
from ..video_stream import display_orientation, pyav_version

_FRAMES_WORTH_A_SEEK = 16


class PyAVReader(VideoReader):
    """PyAV: a read decodes forward, from the right key frame or from where the read before left off.

    Frames are told by their time stamps (`VideoStream`). On the way to a wanted frame FFmpeg leaves out those that no
    other frame is predicted from (`skip_frame = "NONREF"`): of H.264 in progressive frames, and of HEVC in a single
    temporal layer, where the rest stays equal to the bit. Of a usual file these are a third to a half. VP8 and VP9
    have no such frames for FFmpeg; AV1, MPEG-4, MPEG-2 and interlaced video are decoded whole.
    """

    backend = "pyav"
    _running: Iterator[tuple[int, Any]] | None = None
    _last_index = -1
    _wanted_pts: frozenset[int] = frozenset()
    _last_wanted_pts = 0

    def _library_errors(self) -> tuple[type[BaseException], ...]:
        return (importlib.import_module("av.error").FFmpegError,)

    def _open(self) -> None:
        if not self._stream.has_decoder:
            raise UnsuitableBackendError(self.path, "PyAV has no decoder for its codec", RECODE)
        self._to_rgb = _rgb_converter(self._num_threads)
        first = self._stream.decode_first_frame()
        self._coded_shape = first.height, first.width
        self._is_transposed, self._flips = display_orientation(self.path, first)
        self.height, self.width = self._coded_shape[::-1] if self._is_transposed else self._coded_shape
        self._may_skip = not self._stream.is_counted and _has_skippable_frames(self._stream.stream, first)

    def _release(self) -> None:
        self._running = None

    def _decode(self, indices: list[int], cut: Cut) -> np.ndarray:
        try:
            return self._decode_all(indices, cut)
        except VideoDecodingError:
            if not self._may_skip and not self._stream.is_from_table:
                raise
        # Once more without shortcuts: with the times of the packets themselves, and none left out.
        self._may_skip, num_frames = False, self.num_frames
        self._stream.index_packets()
        if self._stream.num_frames != num_frames:
            cause = f"its sample table lists {num_frames} frames, but {self._stream.num_frames} are in it"
            raise VideoDecodingError(self.path, cause, RECODE)
        return self._decode_all(indices, cut)

    def _decode_all(self, indices: list[int], cut: Cut) -> np.ndarray:
        wanted_pts = self._stream.pts_of(indices)
        self._wanted_pts, self._last_wanted_pts = frozenset(wanted_pts), wanted_pts[-1]
        rows, columns = cut
        frames = np.empty((len(indices), rows.stop - rows.start, columns.stop - columns.start, 3), dtype=np.uint8)
        pending = deque(indices)
        while pending:
            self._decode_run(pending, frames, cut)
        return frames

    def _decode_run(self, pending: deque[int], frames: np.ndarray, cut: Cut) -> None:
        """Decode forward until all is found, or a seek gets to the next wanted frame sooner."""
        running = self._frames_up_to(pending[0])
        for index, frame in running:
            self._check_frame(index, frame, pending[0])
            if index < pending[0]:
                continue
            frames[-len(pending)] = self._upright(self._to_rgb(frame).to_ndarray())[cut]
            pending.popleft()
            if not pending or self._is_seek_sooner(index, pending[0]):
                self._running, self._last_index = running, index
                return
        raise VideoDecodingError(self.path, f"the stream ends before frame {pending[0]}", RECODE)

    def _frames_up_to(self, wanted: int) -> Iterator[tuple[int, Any]]:
        """Frames that lead to a wanted one: where the last read left off if that is no detour, else from a key frame.

        The state is given away: an error on the way leaves none behind.
        """
        running, self._running = self._running, None
        if running is not None and self._last_index < wanted and not self._is_seek_sooner(self._last_index, wanted):
            return running
        return self._frames_from(self._stream.key_before(wanted))

    def _frames_from(self, key: int) -> Iterator[tuple[int, Any]]:
        """Decode from the `key`-th key frame on, yielding `(frame index, frame)` in presentation order."""
        frames = (frame for packet in self._stream.packets_from(key) for frame in self._decode_packet(packet))
        if self._stream.is_counted:
            yield from enumerate(frames)
            return
        first = self._stream.first_index_of(key)
        for frame in frames:
            index = self._stream.index_of(frame.pts)
            if index is not None and index >= first:
                yield index, frame

    def _decode_packet(self, packet: Any) -> list[Any]:
        """Decode a packet; the last one of a stream is empty, and lets the decoder give out what it holds back."""
        if packet.size:
            self._stream.require_whole_packet(packet)
            # What is shown after the last wanted frame stays: the next read may want it.
            is_left_out = self._may_skip and packet.pts < self._last_wanted_pts and packet.pts not in self._wanted_pts
            self._stream.stream.codec_context.skip_frame = "NONREF" if is_left_out else "DEFAULT"
        return packet.decode()

    def _check_frame(self, index: int, frame: Any, wanted: int) -> None:
        if frame.is_corrupt:
            raise VideoDecodingError(self.path, f"frame {index} is damaged", RECODE)
        if index > wanted:
            raise VideoDecodingError(self.path, f"frame {wanted} cannot be decoded", RECODE)
        if (frame.height, frame.width) != self._coded_shape:
            cause = f"frame {index} is {frame.height} x {frame.width}, the first one has another size"
            raise VideoDecodingError(self.path, cause, RECODE)

    def _is_seek_sooner(self, index: int, wanted: int) -> bool:
        if self._stream.is_counted:
            return False
        return self._stream.first_index_of(self._stream.key_before(wanted)) - index > _FRAMES_WORTH_A_SEEK

    def _upright(self, frame: np.ndarray) -> np.ndarray:
        """Turn and mirror a decoded frame as the display matrix says, `(height, width, 3)`."""
        frame = frame.swapaxes(0, 1) if self._is_transposed else frame
        return frame[self._flips]


def _has_skippable_frames(stream: Any, first_frame: Any) -> bool:
    """Return True for streams whose other frames are known to stay equal where non-reference frames are left out."""
    context = stream.codec_context
    if context.name == "h264":
        return not first_frame.interlaced_frame
    header = context.extradata or b""
    # Frames that no other of their temporal layer needs may be needed by a higher one (ISO 14496-15, 8.3.3.1.2: hvcC).
    return context.name == "hevc" and len(header) > 21 and header[0] == 1 and header[21] >> 3 & 7 == 1


def _rgb_converter(num_threads: int) -> Callable[[Any], Any]:
    """Return a converter of PyAV's frames, set up once: to set it up for each takes as long as to convert it."""
    converter = importlib.import_module("av.video.reformatter").VideoReformatter()
    threads = {"threads": num_threads} if pyav_version() >= 17 else {}  # untold, it starts one for each core
    return partial(converter.reformat, format="rgb24", **threads)
