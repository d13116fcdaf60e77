"""Frames with decord 0.6, of the files in which it is exact."""

import importlib
import os
from typing import Any

import numpy as np

from ..video_errors import UnsuitableBackendError
from ..video_reader import Cut, VideoReader
from .plain_files import TAKE_PYAV, require_plain_file


class DecordReader(VideoReader):
    """decord 0.6, used only where it is named.

    It finds frames by counting from the key frame before, whose place it takes from the order in the file. That is
    right only where each key frame begins a closed group; it refuses other files. It does not notice damage that
    FFmpeg conceals, and decodes ahead without bound while nothing is read.
    """

    backend = "decord"
    _reader: Any = None

    def _library_errors(self) -> tuple[type[BaseException], ...]:
        decord = importlib.import_module("decord")
        return decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, AssertionError

    def _open(self) -> None:
        require_plain_file(self._stream, self.backend)
        if not self._stream.is_closed or len(self._stream.handle.streams.video) > 1:
            cause = "it has open groups of pictures, or several video streams, where decord is not exact"
            raise UnsuitableBackendError(self.path, cause, TAKE_PYAV)
        self._stream.close()
        decord = importlib.import_module("decord")
        # Any positive tolerance below one frame: the first frame that decord would replace by a neighbour is an error.
        self._reader = decord.VideoReader(
            os.path.abspath(self.path), ctx=decord.cpu(0), num_threads=self._num_threads, fault_tol=1e-6
        )
        if len(self._reader) != self.num_frames:
            cause = f"decord counts {len(self._reader)} frames, PyAV {self.num_frames}"
            raise UnsuitableBackendError(self.path, cause, TAKE_PYAV)
        self.height, self.width = self._reader[0].shape[:2]

    def _release(self) -> None:
        self._reader = None

    def _decode(self, indices: list[int], cut: Cut) -> np.ndarray:
        rows, columns = cut
        return self._reader.get_batch(indices).asnumpy()[:, rows, columns]
