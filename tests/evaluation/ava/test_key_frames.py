import multiprocessing
import pickle

import numpy as np
import pytest
import torch

from vjepa_hub.data.video import open_video
from vjepa_hub.evaluation.ava.boxes import KeyFrameId, read_annotations, read_proposals
from vjepa_hub.evaluation.ava.key_frames import (
    KeyFrame,
    KeyFrameDataset,
    find_clip_frames,
    list_annotated_boxes,
    list_proposed_boxes,
    list_training_boxes,
)
from vjepa_hub.evaluation.ava.protocol import LocalisationProtocol

FPS = 10
PROTOCOL = LocalisationProtocol(frames_per_clip=4, frame_step=2, clip_fps=FPS)


def write_ramp(path, num_frames: int = 40):
    """A video whose frame `i` is grey of level 20 + 5 i."""
    av = pytest.importorskip("av", reason="PyAV writes the test videos (pip install av)")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"threads": "1", "crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for number in range(num_frames):
            pixels = np.full((32, 64, 3), 20 + 5 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    (folder / "part").mkdir()
    write_ramp(folder / "part" / "ramp.mp4")
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def key_frame(video_id: str, second: int) -> KeyFrame:
    return KeyFrame(
        KeyFrameId(video_id, second), np.array([[0, 0, 1, 1]], dtype=np.float32), np.ones((1, 3), dtype=bool)
    )


def open_dataset(key_frames, videos, **options) -> KeyFrameDataset:
    options = {"crop_size": 16, "mean": (0, 0, 0), "std": (1, 1, 1), "start_second": 900, **options}
    return KeyFrameDataset(key_frames, videos, PROTOCOL, **options)


def read_levels(item) -> list[int]:
    """The numbers of the frames of a clip of the ramp."""
    levels = item.pixel_values_videos.mean(dim=(1, 2, 3)) * 255
    return [round((level - 20) / 5) for level in levels.tolist()]


def test_clip_lies_around_the_key_frame_which_is_its_middle_frame():
    timestamps = np.arange(300) / 30
    indices = find_clip_frames(timestamps, 5.0, frames_per_clip=16, frame_step=4, fps=30)
    assert indices.tolist() == list(range(150 - 32, 150 + 32, 4))


def test_clip_is_at_the_same_times_in_a_video_of_another_rate():
    timestamps = np.arange(250) / 25
    indices = find_clip_frames(timestamps, 5.0, frames_per_clip=16, frame_step=4, fps=30)
    assert indices[8] == 125
    wanted = 5 + (np.arange(16) - 8) * 4 / 30
    assert np.abs(timestamps[indices] - wanted).max() <= 0.5 / 25 + 1e-9


def test_ends_of_the_video_are_repeated():
    timestamps = np.arange(20) / 10
    assert find_clip_frames(timestamps, 0.0, frames_per_clip=4, frame_step=2, fps=10).tolist() == [0, 0, 0, 2]
    assert find_clip_frames(timestamps, 1.9, frames_per_clip=4, frame_step=2, fps=10).tolist() == [15, 17, 19, 19]


def test_frames_of_a_file_are_those_around_its_key_frame(videos):
    dataset = open_dataset([key_frame("ramp", 902), key_frame("ramp", 900)], videos)
    assert read_levels(dataset[0]) == [16, 18, 20, 22]
    assert read_levels(dataset[1]) == [0, 0, 0, 2]
    assert dataset[0].pixel_values_videos.shape == (4, 3, 16, 16)


def test_unreadable_key_frames_say_why_and_do_not_stop_the_others(videos, caplog):
    frames = [key_frame("broken", 902), key_frame("missing", 902), key_frame("ramp", 990), key_frame("ramp", 902)]
    dataset = open_dataset(frames, videos)
    items = [dataset[place] for place in range(4)]
    assert [item.is_readable for item in items] == [False, False, False, True]
    assert all(not item.pixel_values_videos.any() for item in items[:3])
    causes = [record.message for record in caplog.records if record.name.startswith("vjepa_hub")]
    assert "broken.mp4" in causes[0]
    assert "there is no such file" in causes[1]
    assert "at 90 s, but it lasts to 3.90 s" in causes[2]
    assert "start_second" in causes[2]


def test_consecutive_key_frames_of_a_video_are_read_from_one_open_file(videos, monkeypatch):
    calls, open_file = [], open_video
    monkeypatch.setattr(
        "vjepa_hub.data.records.open_video",
        lambda path, **options: calls.append(path) or open_file(path, **options),
    )
    dataset = open_dataset([key_frame("ramp", 902), key_frame("ramp", 903)], videos)
    assert all(dataset[place].is_readable for place in range(2))
    assert len(calls) == 1


def test_folder_without_any_of_the_videos_is_refused(videos):
    with pytest.raises(FileNotFoundError, match=r"none of the 1 videos, such as 'other\.mp4', but 2 others"):
        open_dataset([key_frame("other", 902)], videos)


def test_open_reader_neither_travels_nor_is_used_after_a_fork(videos):
    dataset = open_dataset([key_frame("ramp", 902)], videos)
    expected = dataset[0].pixel_values_videos
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[0].pixel_values_videos, expected)
    if "fork" in multiprocessing.get_all_start_methods():
        loader = torch.utils.data.DataLoader(dataset, num_workers=1, batch_size=None, multiprocessing_context="fork")
        assert torch.equal(next(iter(loader)).pixel_values_videos, expected)


def test_pixels_are_normalised_channel_by_channel(videos):
    plain = open_dataset([key_frame("ramp", 902)], videos)[0].pixel_values_videos
    normalised = open_dataset([key_frame("ramp", 902)], videos, mean=(0.5, 0.25, 0), std=(0.5, 1, 2))[0]
    expected = (plain - torch.tensor([0.5, 0.25, 0]).view(3, 1, 1)) / torch.tensor([0.5, 1, 2]).view(3, 1, 1)
    torch.testing.assert_close(normalised.pixel_values_videos, expected)


@pytest.fixture
def annotations(tmp_path):
    rows = "a,0902,0.5,0.5,1,1,3\na,0902,0,0,0.5,1,1\na,0903\na,0902,0.5,0.5,1,1,2\n"
    (tmp_path / "truth.csv").write_text(rows)
    return read_annotations(tmp_path / "truth.csv", num_classes=3)


@pytest.fixture
def proposals(tmp_path):
    rows = "a,0902,0.01,0,0.5,1,0.9\na,0902,0.2,0,0.7,1,0.9\na,0903,0,0,1,1,0.9\nb,0902,0,0,1,1,0.9\n"
    (tmp_path / "proposals.csv").write_text(rows)
    return read_proposals(tmp_path / "proposals.csv")


def test_each_annotated_box_is_there_once_with_all_its_actions(annotations):
    first, second = list_annotated_boxes(annotations, num_classes=3)
    assert first.boxes.tolist() == [[0.5, 0.5, 1, 1], [0, 0, 0.5, 1]]
    assert first.labels.tolist() == [[False, True, True], [True, False, False]]
    assert second.boxes.shape == (0, 4)


def test_training_proposals_on_a_person_get_her_actions_and_others_are_left_out(annotations, proposals):
    first, second = list_training_boxes(annotations, proposals, num_classes=3, min_overlap=0.9)
    assert len(first.boxes) == 3
    np.testing.assert_allclose(first.boxes[2], [0.01, 0, 0.5, 1])
    assert first.labels[2].tolist() == [True, False, False]
    assert len(second.boxes) == 0


def test_proposals_are_on_the_key_frames_of_the_annotations_alone(annotations, proposals):
    frames = list_proposed_boxes(annotations, proposals, num_classes=3)
    assert [str(frame.id) for frame in frames] == ["a,0902", "a,0903"]
    assert [len(frame.boxes) for frame in frames] == [2, 1]
    assert not any(frame.labels.any() for frame in frames)
