"""The reader of a video file that all decoders share: indices in, upright RGB frames out."""

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from .video_errors import RECODE, FrameIndexError, VideoDecodingError, translate_errors
from .video_stream import VideoStream

Cut = tuple[slice, slice]
"""Rows and columns of an upright frame."""


class VideoReader(ABC):
    """An open video file; `open_video` makes one. Not safe to share between threads or processes.

    Attributes:
        path: The file.
        backend: Name of the library that decodes.
        num_frames: Number of frames that are shown, at least 1.
        height: Of a frame after display rotation, in pixels.
        width: Of a frame after display rotation, in pixels.
    """

    backend: ClassVar[str]
    num_frames: int
    height: int
    width: int

    def __init__(self, path: str | os.PathLike, *, num_threads: int = 1):
        self.path, self._num_threads, self._is_closed = Path(path), num_threads, False
        ffmpeg_errors = (importlib.import_module("av.error").FFmpegError,)
        with translate_errors(self.path, "FFmpeg cannot open it", ffmpeg_errors):
            self._stream = VideoStream(self.path, num_threads=num_threads)
        self.num_frames = self._stream.num_frames
        try:
            with translate_errors(self.path, f"{self.backend} cannot open it", self._library_errors()):
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
        self._stream.close()

    @property
    def timestamps(self) -> np.ndarray:
        """Presentation time of each frame in seconds, from the file, `(num_frames,)` float64; the first is 0.

        They grow strictly, and are equal for all backends. Where those of the file do not grow, or are missing, the
        usual time between two frames stands in.
        """
        self._require_open()
        return self._stream.seconds

    @property
    def average_fps(self) -> float:
        """Frames per second over the whole video, from the timestamps; for a single frame what the file declares."""
        if self.num_frames == 1:
            return self._stream.declared_fps
        return round((self.num_frames - 1) / float(self.timestamps[-1]), 6)

    @property
    def duration(self) -> float:
        """Length in seconds: the number of frames, each shown for the average time."""
        return self.num_frames / self.average_fps if self.average_fps else 0.0

    @property
    def declared_frames(self) -> int | None:
        """Number of frames that the header promises; None where it does not, or an edit list hides some of them."""
        return self._stream.declared_frames

    def read_frames(
        self, indices: Sequence[int] | np.ndarray, *, box: tuple[int, int, int, int] | None = None
    ) -> np.ndarray:
        """Read frames by index. They are decoded in one forward pass, and only these are kept in memory.

        Args:
            indices: Frame indices in `[0, num_frames)`, in any order; repeats are decoded once.
            box: The part of each frame to return, `(top, left, height, width)` in pixels of the upright frame. Faster
                than to cut it out of whole frames, which it equals: the rest is decoded, but not copied.

        Returns:
            Array `(num_indices, height, width, 3)`, uint8 RGB, upright; height and width are those of the box, if any.

        Raises:
            FrameIndexError: An index is negative or not below `num_frames`.
            ValueError: The box is empty or reaches beyond the frame.
            VideoDecodingError: A frame cannot be decoded, or the reader is closed.
        """
        self._require_open()
        wanted = self._checked_indices(indices)
        top, left, height, width = self._checked_box(box)
        if wanted.size == 0:
            return np.empty((0, height, width, 3), dtype=np.uint8)
        unique, positions = np.unique(wanted, return_inverse=True)
        cut = slice(top, top + height), slice(left, left + width)
        with translate_errors(self.path, f"{self.backend} cannot decode it", self._library_errors()):
            frames = self._decode(unique.tolist(), cut)
        if frames.shape != (len(unique), height, width, 3) or frames.dtype != np.uint8:
            cause = f"{self.backend} returned {frames.dtype} {frames.shape} for {len(unique)} frames"
            raise VideoDecodingError(self.path, f"{cause} of {self.height} x {self.width} pixels", RECODE)
        is_in_order = len(unique) == len(wanted) and bool((positions == np.arange(len(wanted))).all())
        return np.ascontiguousarray(frames if is_in_order else frames[positions])

    @abstractmethod
    def _open(self) -> None:
        """Open the file, and set `height` and `width`."""

    @abstractmethod
    def _release(self) -> None:
        """Let go of the library's reader."""

    @abstractmethod
    def _decode(self, indices: list[int], cut: Cut) -> np.ndarray:
        """Decode frames, indices sorted and unique, and return these rows and columns of them, upright."""

    @abstractmethod
    def _library_errors(self) -> tuple[type[BaseException], ...]:
        """Return the library's error classes for a bad file."""

    def _require_open(self) -> None:
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
