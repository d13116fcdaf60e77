"""Clips are the same with decoded frames kept in memory and without, and each video is decoded once."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vjepa_hub.data import frame_memory
from vjepa_hub.data.clip_order import ClipRequest
from vjepa_hub.data.clip_sampling import ClipSpec
from vjepa_hub.data.dataset import VideoClipDataset
from vjepa_hub.data.frame_memory import FrameMemory, open_memory
from vjepa_hub.data.records import FrameFolder, VideoRecord
from vjepa_hub.data.sources import FrameFolderSource, VideoFileSource
from vjepa_hub.data.synthetic.shapes import SyntheticVideoSettings, make_synthetic_videos
from vjepa_hub.data.video import VideoReader

NUM_VIDEOS, NUM_FRAMES, SIZE = 4, 12, 32
ENOUGH = NUM_VIDEOS * NUM_FRAMES * SIZE * SIZE * 3
CLIP = {"clips": ClipSpec(frames_per_clip=4, frame_step=2), "seed": 3}
REQUESTS = [ClipRequest(position, position % NUM_VIDEOS) for position in range(3 * NUM_VIDEOS)]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    make_synthetic_videos(folder, SyntheticVideoSettings(num_videos=NUM_VIDEOS, num_frames=NUM_FRAMES, size=SIZE))
    return sorted(folder.glob("*.mp4"))


def clips_of(paths, **options):
    return VideoClipDataset(VideoFileSource(paths), **CLIP | options)


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) if key == "frames" else value == other[key] for key, value in one.items()
    )


def count_decoded(monkeypatch):
    """Numbers of frames that decoders are asked for from here on, one for each call."""
    decoded = []
    read = VideoReader.read_frames

    def count(reader, indices, **options):
        decoded.append(len(set(indices)))
        return read(reader, indices, **options)

    monkeypatch.setattr(VideoReader, "read_frames", count)
    return decoded


@pytest.mark.parametrize(
    "clip", [{}, {"crop": None}, {"clips": ClipSpec(frames_per_clip=4, clip_duration=1.0)}], ids=str
)
def test_clips_are_the_same_and_each_video_is_decoded_once(paths, monkeypatch, clip):
    plain, kept = clips_of(paths, **clip), clips_of(paths, **clip, max_memory=ENOUGH)
    expected = [plain[request] for request in REQUESTS]
    decoded = count_decoded(monkeypatch)
    assert all(same(kept[request], clip) for request, clip in zip(REQUESTS, expected, strict=True))
    assert decoded == [NUM_FRAMES] * NUM_VIDEOS
    assert kept.memory.num_kept == NUM_VIDEOS
    assert kept.memory.num_bytes == ENOUGH


def test_clips_that_are_changed_leave_the_memory_as_it_is(paths):
    clips = clips_of(paths, max_memory=ENOUGH)
    expected = clips_of(paths)[REQUESTS[0]]
    for _ in range(2):
        assert same(clips[REQUESTS[0]], expected)
        clips[REQUESTS[0]]["frames"].zero_()


@pytest.mark.parametrize("max_memory", [0, ENOUGH - 1])
def test_without_room_for_all_videos_none_is_kept(paths, max_memory):
    assert clips_of(paths, max_memory=max_memory).memory is None


def test_no_more_than_half_of_the_machine_is_taken(paths, monkeypatch):
    monkeypatch.setattr(frame_memory, "machine_memory", lambda: 2 * ENOUGH)
    assert clips_of(paths, max_memory=2**40).memory is not None
    monkeypatch.setattr(frame_memory, "machine_memory", lambda: 2 * ENOUGH - 1)
    assert clips_of(paths, max_memory=2**40).memory is None


@pytest.mark.parametrize("is_persistent", [False, True])
def test_workers_share_what_each_of_them_has_decoded(paths, monkeypatch, is_persistent):
    clips = clips_of(paths, max_memory=ENOUGH)
    workers = {"num_workers": 2, "persistent_workers": is_persistent, "multiprocessing_context": "fork"}
    loader = DataLoader(clips, sampler=REQUESTS, batch_size=None, **workers)
    plain = clips_of(paths)
    for _ in range(2):
        assert all(same(clip, plain[request]) for clip, request in zip(loader, REQUESTS, strict=True))
    decoded = count_decoded(monkeypatch)
    assert all(same(clips[request], plain_clip) for request, plain_clip in zip(REQUESTS, loader, strict=True))
    assert clips.memory.num_kept == NUM_VIDEOS
    assert decoded == []


def test_sent_to_another_process_the_memory_is_empty_and_clips_are_the_same(paths):
    clips = clips_of(paths, max_memory=ENOUGH)
    expected = [clips[request] for request in REQUESTS]
    data = pickle.dumps(clips)
    assert len(data) < 10_000
    sent = pickle.loads(data)
    assert all(same(sent[request], clip) for request, clip in zip(REQUESTS, expected, strict=True))
    assert sent.memory.num_kept == 0


def test_videos_unlike_the_first_are_decoded_each_time(paths, tmp_path):
    make_synthetic_videos(tmp_path, SyntheticVideoSettings(num_videos=1, num_frames=NUM_FRAMES + 1, size=SIZE))
    mixed = [*paths[:3], next(tmp_path.glob("*.mp4"))]
    plain, kept = clips_of(mixed), clips_of(mixed, max_memory=ENOUGH)
    assert all(same(kept[request], plain[request]) for request in REQUESTS)
    assert kept.memory.num_kept == 3


def write_frames(folder, numbers):
    folder.mkdir()
    for number in numbers:
        Image.fromarray(np.full((8, 8, 3), number, dtype=np.uint8)).save(folder / f"{number}.png")


def test_a_video_of_which_only_other_frames_are_broken_still_gives_its_clip(tmp_path):
    for name in ("a", "b"):
        write_frames(tmp_path / name, range(NUM_FRAMES))
    (tmp_path / "b" / "11.png").write_bytes(b"no picture")
    options = CLIP | {"crop": None, "max_tries": 1}
    clips = VideoClipDataset(FrameFolderSource(tmp_path), **options, max_memory=2**20)
    position = next(p for p in range(100) if clips.reader.sample_indices(NUM_FRAMES, fps=None, position=p)[-1] < 11)
    clip = clips[ClipRequest(position, 1)]
    assert clip["num_failures"] == 0
    assert (
        clip["frames"].unique().tolist()
        == clips.reader.sample_indices(NUM_FRAMES, fps=None, position=position).tolist()
    )
    assert clips.memory.num_kept == 0


def test_rate_is_kept_with_the_frames(tmp_path):
    write_frames(tmp_path / "a", range(3))
    memory = FrameMemory(num_videos=2, num_frames=3, height=8, width=8)
    for number, fps in enumerate((None, 12.5)):
        record = memory.wrap(VideoRecord("a", FrameFolder(tmp_path / "a", fps)), number)
        for _ in range(2):
            with record.open() as reader:
                assert (reader.average_fps, reader.num_frames, reader.height, reader.width) == (fps, 3, 8, 8)
                assert reader.read_frames([2, 0, 2], box=(1, 2, 3, 4)).shape == (3, 3, 4, 3)
    assert memory.num_kept == 2


def test_first_video_that_cannot_be_read_is_left_to_its_turn(tmp_path, paths):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    assert open_memory(VideoFileSource([tmp_path / "bad.mp4", *paths]), max_bytes=2**30) is None
