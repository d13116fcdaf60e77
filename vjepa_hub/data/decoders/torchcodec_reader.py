"""Frames with torchcodec, of the files in which it is exact."""

import importlib
import os
from typing import Any

import numpy as np

from ..video_errors import UnsuitableBackendError
from ..video_reader import Cut, VideoReader
from .plain_files import TAKE_PYAV, require_plain_file


class TorchCodecReader(VideoReader):
    """torchcodec in its exact mode, which indexes the file first. It does not notice damage that FFmpeg conceals."""

    backend = "torchcodec"
    _decoder: Any = None

    def _library_errors(self) -> tuple[type[BaseException], ...]:
        return RuntimeError, ValueError, IndexError

    def _open(self) -> None:
        require_plain_file(self._stream, self.backend)
        self._decoder = importlib.import_module("torchcodec.decoders").VideoDecoder(
            os.path.abspath(self.path),
            stream_index=self._stream.stream.index,
            dimension_order="NHWC",
            num_ffmpeg_threads=self._num_threads,
            device="cpu",
        )
        self._stream.close()
        if len(self._decoder) != self.num_frames:
            cause = f"torchcodec counts {len(self._decoder)} frames, PyAV {self.num_frames}"
            raise UnsuitableBackendError(self.path, cause, TAKE_PYAV)
        self.height, self.width = self._decoder.get_frame_at(0).data.shape[:2]

    def _release(self) -> None:
        self._decoder = None

    def _decode(self, indices: list[int], cut: Cut) -> np.ndarray:
        rows, columns = cut
        return self._decoder.get_frames_at(indices).data.numpy()[:, rows, columns]
