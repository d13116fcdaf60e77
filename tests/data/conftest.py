"""Small real video files, written by PyAV when a test asks for them; each frame carries its number in its pixels."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

HEIGHT, WIDTH, BLOCK = 64, 96, 16


def draw_number(number: int) -> np.ndarray:
    """A frame whose eight grey blocks are the bits of `number`; coloured corners tell it from its turned copies."""
    frame = np.full((HEIGHT, WIDTH, 3), 128, dtype=np.uint8)
    for bit in range(8):
        row, column = divmod(bit, 4)
        block = frame[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK]
        block[:] = 235 if number >> bit & 1 else 16
    frame[-BLOCK:, -BLOCK:] = (255, 0, 0)
    frame[-BLOCK:, :BLOCK] = (0, 255, 0)
    return frame


def decode_number(frame: np.ndarray) -> int:
    """The number that `draw_number` drew, after lossy coding."""
    grey = frame.astype(np.float64).mean(axis=-1)
    blocks = grey[: 2 * BLOCK, : 4 * BLOCK].reshape(2, BLOCK, 4, BLOCK)[:, 4:-4, :, 4:-4].mean(axis=(1, 3))
    return sum(int(value > 128) << bit for bit, value in enumerate(blocks.ravel()))


@pytest.fixture(scope="session")
def read_number():
    """`read_number(frame)`: the number of a frame of `write_video`."""
    return decode_number


@pytest.fixture(scope="session")
def write_video(tmp_path_factory):
    """`write_video(name, num_frames=60, times_ms=None, codec="libx264", container_options=None, **codec_options)`."""
    av = pytest.importorskip("av", reason="PyAV writes the test videos (pip install av)")
    folder = tmp_path_factory.mktemp("videos")

    def write(name, *, num_frames=60, times_ms=None, codec="libx264", container_options=None, **options) -> Path:
        if codec not in av.codecs_available:
            pytest.skip(f"this build of PyAV has no {codec}")
        path = folder / name
        times = [40 * index for index in range(num_frames)] if times_ms is None else times_ms
        unit = Fraction(1, 25) if times_ms is None else Fraction(1, 1000)
        with av.open(str(path), "w", options=container_options or {}) as container:
            stream = container.add_stream(codec, rate=25, options={"threads": "1", **options})
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.codec_context.time_base = unit
            for number in range(num_frames):
                frame = av.VideoFrame.from_ndarray(draw_number(number), format="rgb24")
                frame.pts, frame.time_base = int(Fraction(times[number], 1000) / unit), unit
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture(scope="session")
def write_audio(tmp_path_factory):
    """`write_audio(name)`: a tenth of a second of silence, and no picture."""
    av = pytest.importorskip("av", reason="PyAV writes the test files (pip install av)")
    folder = tmp_path_factory.mktemp("audio")

    def write(name) -> Path:
        path = folder / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
            frame.rate = 16000
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write
