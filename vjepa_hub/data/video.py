"""Video file to frames, frame-exact: the one place that decides which decoder reads a file, for every command.

Frame `i` is the i-th shown frame in presentation order, whatever the order of the packets in the file (B-frames, open
groups of pictures), the display matrix or the frame rate. Times come from the file's presentation time stamps, never
from index / fps. A file that cannot be read exactly raises `VideoDecodingError`.

PyAV reads every file. torchcodec comes in where PyAV has no decoder for the codec; it and decord, which is used only
where it is named, refuse the files that they would misread, and name PyAV:

| | PyAV | torchcodec | decord 0.6 |
|---|---|---|---|
| chosen | first | second, where it is exact | only by name |
| MPEG-TS, MPEG-PS, AVI and others without an index | exact | refused | refused |
| frames that an MP4 edit list hides | skipped | refused | refused |
| display matrix (rotation, mirroring) | followed as by FFmpeg | refused | refused |
| palettes; time stamps missing, equal, or beginning anew | exact | refused | refused |
| open groups of pictures | exact | exact | refused |
| several video streams | that of the `ffmpeg` command | the same | refused |
| damage that FFmpeg conceals | error, mostly | unnoticed | unnoticed |
| damage that leaves whole packets out (zeroed bytes in WebM) | unnoticed | unnoticed | unnoticed |

Pixels of 8-bit video are equal to the bit; those of 10-bit video differ, mostly by a few grey levels, as the libraries
reduce them in different ways.
"""

import importlib
import logging
import os

from .decoders.decord_reader import DecordReader
from .decoders.pyav_reader import PyAVReader
from .decoders.torchcodec_reader import TorchCodecReader
from .video_errors import FrameIndexError, UnsuitableBackendError, VideoDecodingError, first_line
from .video_reader import VideoReader

__all__ = [
    "DECODING_BACKENDS",
    "FrameIndexError",
    "UnsuitableBackendError",
    "VideoDecodingError",
    "VideoReader",
    "available_backends",
    "open_video",
    "require_backend",
]

logger = logging.getLogger(__name__)

DECODING_BACKENDS = ("pyav", "torchcodec", "decord")
_READERS: dict[str, type[VideoReader]] = {
    reader.backend: reader for reader in (PyAVReader, TorchCodecReader, DecordReader)
}
_MODULES = {"pyav": "av", "torchcodec": "torchcodec.decoders", "decord": "decord"}
_PACKAGES = {"pyav": "av", "torchcodec": "torchcodec", "decord": "decord"}


def available_backends() -> tuple[str, ...]:
    """Return the backends that can be imported here, in order of preference.

    torchcodec counts only where FFmpeg's shared libraries are found as well.
    """
    return tuple(name for name in DECODING_BACKENDS if _import_failure(name) is None)


def require_backend(backend: str | None) -> None:
    """Raise before any video is opened, where an unusable backend would be each video's fault.

    Args:
        backend: As for `open_video`.

    Raises:
        ValueError: It is unknown, or it or PyAV, which indexes every file, cannot be imported.
    """
    for name in dict.fromkeys(["pyav", backend or "pyav"]):
        failure = _import_failure(name) if name in DECODING_BACKENDS else "it is unknown"
        if failure is not None:
            install = f"pip install {_PACKAGES[name]}, or " if name in _PACKAGES else ""
            usable = ", ".join(available_backends()) or "none"
            raise ValueError(
                f"the decoding backend '{name}' cannot be used ({failure}); {install}take one of these: {usable}"
            )


def open_video(path: str | os.PathLike, *, backend: str | None = None, num_threads: int = 1) -> VideoReader:
    """Open a video file for frame-exact reading. Use it in a `with` statement, or call `close`.

    Args:
        path: The video file, on this machine: a name with a colon is no address.
        backend: `"pyav"`, `"torchcodec"` or `"decord"`; None takes PyAV, or torchcodec for a codec that PyAV cannot
            decode.
        num_threads: Threads of the decoder; 0 lets the library choose. One is right inside data loading workers.

    Raises:
        VideoDecodingError: For a backend that is unknown or cannot be imported, and for a file that is missing, empty,
            truncated, without a video stream, or not readable frame by frame with this backend.
    """
    if num_threads < 0:
        raise ValueError(f"num_threads is {num_threads}, but has to be 0 (automatic) or more")
    try:
        require_backend(backend)
    except ValueError as error:
        raise VideoDecodingError(path, *str(error).split("; ", 1)) from error
    if backend is not None:
        return _READERS[backend](path, num_threads=num_threads)
    try:
        return PyAVReader(path, num_threads=num_threads)
    except UnsuitableBackendError as error:
        if _import_failure("torchcodec") is not None:
            raise
        logger.debug("%s; trying torchcodec", error)
        return TorchCodecReader(path, num_threads=num_threads)


def _import_failure(backend: str) -> str | None:
    """Return why a backend's library cannot be imported, None if it can."""
    try:
        importlib.import_module(_MODULES[backend])
    except (ImportError, OSError, RuntimeError) as error:  # the last two: shared libraries that are missing
        return first_line(error)
    # From 0.17 on torchcodec can be imported without FFmpeg, for images.
    if backend == "torchcodec" and getattr(importlib.import_module("torchcodec"), "ffmpeg_major_version", 0) is None:
        return "it finds no FFmpeg, which the system has to provide: apt-get install ffmpeg"
    return None
