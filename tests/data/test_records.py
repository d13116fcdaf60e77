import pickle

import numpy as np
import pytest
from PIL import Image

from vjepa_hub.data import records
from vjepa_hub.data.records import (
    FrameFolder,
    LocalVideo,
    PackedNames,
    RemoteVideo,
    VideoBytes,
    VideoRecord,
    natural_key,
    read_remote,
)
from vjepa_hub.data.video import FrameIndexError, VideoDecodingError


@pytest.fixture(scope="module")
def video(write_video):
    return write_video("clip.mp4", num_frames=20)


@pytest.fixture
def frame_folder(tmp_path):
    for number in range(12):
        Image.new("RGB", (4, 3), (number, 0, 0)).save(tmp_path / f"f{number}.png")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "._f1.png").touch()
    return tmp_path


def test_bytes_are_read_like_their_file_and_leave_nothing_open(video, read_number):
    with VideoRecord("a", VideoBytes(video.read_bytes())).open() as reader:
        assert (reader.num_frames, reader.height, reader.width, reader.average_fps) == (20, 64, 96, 25.0)
        frames = reader.read_frames([3, 15, 2])  # backwards: some decoders open the file anew
    assert [read_number(frame) for frame in frames] == [3, 15, 2]


def test_bytes_are_read_where_the_system_has_no_files_in_memory(video, read_number, monkeypatch):
    monkeypatch.delattr(records.os, "memfd_create", raising=False)
    with VideoRecord("a", VideoBytes(video.read_bytes())).open() as reader:
        assert read_number(reader.read_frames([7])[0]) == 7
        path = reader.path
        assert path.exists()
    assert not path.exists()


@pytest.mark.parametrize("content", [VideoBytes(b""), VideoBytes(b"text" * 100), RemoteVideo("memory://absent.mp4")])
def test_errors_carry_the_name_of_the_record(content):
    with pytest.raises(VideoDecodingError) as error, VideoRecord("row 7 of x", content).open():
        pass
    assert error.value.path == "row 7 of x"
    assert error.value.cause
    assert "/proc/" not in str(error.value)


def test_record_shows_no_bytes_and_can_be_sent(video):
    record = VideoRecord("a", VideoBytes(b"secret"), 3)
    assert "secret" not in repr(record)
    assert pickle.loads(pickle.dumps(record)) == record
    assert pickle.loads(pickle.dumps(VideoRecord("a", LocalVideo(video)))).content.path == video


def test_frames_of_a_folder_come_in_the_order_of_their_numbers(frame_folder):
    with VideoRecord("a", FrameFolder(frame_folder, fps=12.0)).open() as reader:
        assert (reader.num_frames, reader.height, reader.width, reader.average_fps) == (12, 3, 4, 12.0)
        frames = reader.read_frames([11, 2, 2, 10])
        box = reader.read_frames([5], box=(1, 2, 2, 1))
        with pytest.raises(FrameIndexError, match="frame 12 is asked for, but the folder has 12 frames"):
            reader.read_frames([0, 12])
    assert frames[:, 0, 0, 0].tolist() == [11, 2, 2, 10]
    assert (box.shape, box.dtype, box[0, 0, 0, 0]) == ((1, 2, 1, 3), np.uint8, 5)


@pytest.mark.parametrize(
    ("name", "make", "cause"),
    [
        ("f5.png", lambda path: path.write_bytes(path.read_bytes()[:40]), r"f5\.png: not a readable image"),
        ("f5.png", lambda path: Image.new("RGB", (5, 3)).save(path), "f5.png has another size than f0.png"),
    ],
)
def test_bad_frame_is_named(frame_folder, name, make, cause):
    make(frame_folder / name)
    with (
        pytest.raises(VideoDecodingError, match=cause) as error,
        VideoRecord("x", FrameFolder(frame_folder)).open() as r,
    ):
        r.read_frames([4, 5])
    assert error.value.path == "x"


def test_folder_without_images_or_that_is_not_there_is_an_error(tmp_path):
    for folder, cause in ((tmp_path, "holds no image"), (tmp_path / "absent", "cannot be listed")):
        with pytest.raises(VideoDecodingError, match=cause), VideoRecord("x", FrameFolder(folder)).open():
            pass


def test_natural_order_puts_numbers_by_value():
    names = ["f10.png", "f9.png", "a", "f9b2", "f09.png", "10", "9"]
    assert sorted(names, key=natural_key) == ["9", "10", "a", "f9.png", "f09.png", "f9b2", "f10.png"]


class Failing:
    def __init__(self, *errors):
        self.errors = list(errors)

    def __call__(self):
        if self.errors:
            raise self.errors.pop(0)
        return b"data"


@pytest.fixture
def no_pauses(monkeypatch):
    pauses = []
    monkeypatch.setattr(records.time, "sleep", pauses.append)
    return pauses


def test_address_is_tried_again_after_pauses_and_not_for_ever(no_pauses):
    assert read_remote("s3://b/a", Failing(OSError("reset"), TimeoutError("slow"))) == b"data"
    with pytest.raises(VideoDecodingError, match=r"it cannot be read \(OSError: third\)"):
        read_remote("s3://b/a", Failing(OSError("first"), OSError("second"), OSError("third")))
    assert no_pauses == [0.5, 2.0, 0.5, 2.0]


@pytest.mark.parametrize(
    ("address", "error"),
    [("s3://b/a", FileNotFoundError("gone")), ("s3://b/a", PermissionError("no")), ("/a", OSError("input/output"))],
)
def test_what_will_not_come_right_is_not_tried_again(no_pauses, address, error):
    with pytest.raises(VideoDecodingError, match="it cannot be read"):
        read_remote(address, Failing(error))
    assert no_pauses == []


def test_mistakes_in_the_program_are_no_fault_of_the_video(no_pauses):
    for error in (KeyError("x"), ImportError("install s3fs")):
        with pytest.raises(type(error)):
            read_remote("s3://b/a", Failing(error))


def test_names_are_packed_and_found_again():
    names = ["a b.mp4", "", "ä/ü.mp4", "\udcff.mp4", "s3://x"]
    packed = PackedNames(names)
    assert list(packed) == names
    assert len(packed) == 5
    for index in (5, -1):
        with pytest.raises(IndexError, match=f"index {index} is outside 0 to 4"):
            packed[index]
    assert list(PackedNames([])) == []
