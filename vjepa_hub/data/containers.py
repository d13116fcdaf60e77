"""Facts of a video file that FFmpeg keeps to itself: its declared length, and MP4's composition offsets.

FFmpeg reads a file that is cut off as if it ended there, so the length is compared here. It gives the times of MP4's
frames packet by packet only; with the composition offsets they are known before the file is read through.
"""

import mmap
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .video_errors import RECODE, VideoDecodingError

_MP4_KINDS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp")


def require_whole_file(path: Path) -> None:
    """Raise for a file that is missing, no regular file, empty, or shorter than its container declares.

    The length is declared in MP4, Matroska and AVI.

    Raises:
        VideoDecodingError: with the finding.
    """
    num_bytes = require_regular_file(path)
    with _naming_causes(path), path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        declared = _declared_length(path, data)
    if declared > num_bytes:
        cause = f"the file is truncated: it says it has {declared} bytes, but there are {num_bytes}"
        raise VideoDecodingError(path, cause, RECODE)


def require_regular_file(path: str | os.PathLike) -> int:
    """Return the size of a file in bytes.

    Raises:
        VideoDecodingError: It is missing, empty or no regular file: to open a pipe would wait for a writer.
    """
    with _naming_causes(path):
        status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise VideoDecodingError(path, "it is a directory, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise VideoDecodingError(path, "it is no regular file, but a pipe, socket or device")
    if status.st_size == 0:
        raise VideoDecodingError(path, "the file is empty (0 bytes)")
    return status.st_size


@contextmanager
def _naming_causes(path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise VideoDecodingError(path, "there is no such file") from error
    except VideoDecodingError:
        raise
    except (OSError, ValueError) as error:  # of the last kind: a null character in the name
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise VideoDecodingError(path, f"it cannot be read ({reason})") from error


def _declared_length(path: Path, data: mmap.mmap) -> int:
    """Return the length that the container declares, 0 where it declares none."""
    if data[4:8] in _MP4_KINDS:
        ends = {kind: end for kind, _, end in _boxes(data, 0, len(data))}
        if b"moov" not in ends or not ends.keys() & {b"mdat", b"moof"}:
            missing = "index (moov box)" if b"moov" not in ends else "frames (mdat box)"
            cause = f"the file is truncated or was never finished: it has no {missing}"
            raise VideoDecodingError(path, cause, RECODE)
        return max(ends.get(kind, 0) for kind in (b"mdat", b"moov", b"moof"))
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska_length(data)
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return struct.unpack_from("<I", data, 4)[0]
    return 0


def _matroska_length(data: mmap.mmap) -> int:
    """Return where Matroska's segment ends, 0 if it is open-ended (a live recording)."""
    header_size, start = _ebml_size(data, 4)
    segment = start + (header_size or 0)
    if data[segment : segment + 4] != b"\x18\x53\x80\x67":
        return 0
    size, start = _ebml_size(data, segment + 4)
    return 0 if size is None else start + size


def _ebml_size(data: mmap.mmap, offset: int) -> tuple[int | None, int]:
    """Read EBML's variable-length size: `(size or None for unknown, offset after it)`."""
    if offset >= len(data) or data[offset] == 0:
        return None, offset
    length = 9 - data[offset].bit_length()
    value = int.from_bytes(data[offset : offset + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), offset + length


def read_composition_offsets(path: Path, track: int, num_samples: int) -> np.ndarray | None:
    """Read from MP4's `ctts` box by how much each sample is shown later than it is decoded.

    Args:
        path: An MP4 or QuickTime file.
        track: Number of the track, as in its header.
        num_samples: Samples that the track is expected to have.

    Returns:
        Offsets in units of the track, `(num_samples,)` int64, in decoding order; None where the samples lie in
        fragments, or the box does not fit them.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            counts, values = _read_offset_runs(data, track)
        except (struct.error, ValueError, StopIteration):  # an unusual table: FFmpeg has to make sense of it
            return None
    if not len(counts):
        return np.zeros(num_samples, dtype=np.int64)
    # Checked before they are expanded: damaged counts would ask for more memory than there is.
    if (counts < 0).any() or counts.sum() != num_samples:
        return None
    return np.repeat(values, counts)


def _read_offset_runs(data: mmap.mmap, track: int) -> tuple[np.ndarray, np.ndarray]:
    """Read a track's `ctts` box: counts and offsets, `(num_runs,)` each; none where there is no such box."""
    movie = next((start, end) for kind, start, end in _boxes(data, 0, len(data)) if kind == b"moov")
    tracks = []
    for kind, start, end in _boxes(data, *movie):
        if kind == b"mvex":
            raise ValueError("the samples lie in fragments")
        if kind == b"trak":
            tracks.append((start, end))
    samples = next(_child(data, box, b"mdia", b"minf", b"stbl") for box in tracks if _number(data, box) == track)
    box = next(((start, end) for kind, start, end in _boxes(data, *samples) if kind == b"ctts"), None)
    if box is None:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    num_runs = struct.unpack_from(">I", data, box[0] + 4)[0]
    runs = np.frombuffer(data[box[0] + 8 : box[1]], dtype=">i4", count=2 * num_runs).astype(np.int64).reshape(-1, 2)
    return runs[:, 0], runs[:, 1]


def _number(data: mmap.mmap, track: tuple[int, int]) -> int:
    start, _ = _child(data, track, b"tkhd")
    return struct.unpack_from(">I", data, start + (20 if data[start] == 1 else 12))[0]  # 64-bit times in version 1


def _boxes(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
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


def _child(data: mmap.mmap, box: tuple[int, int], *kinds: bytes) -> tuple[int, int]:
    """Follow a path of box kinds; StopIteration where it ends early."""
    for wanted in kinds:
        box = next((start, end) for kind, start, end in _boxes(data, *box) if kind == wanted)
    return box
