"""Which clips a stream gives to whom: positions, shares of the readers, resumption, shards that break."""

import tarfile
from contextlib import contextmanager
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from vjepa_hub.data.clip_sampling import ClipSpec
from vjepa_hub.data.dataset import VideoClipDataset
from vjepa_hub.data.quarantine import NoReadableVideoError, Quarantine
from vjepa_hub.data.records import RecordShards, VideoContent, VideoRecord
from vjepa_hub.data.sources import open_source
from vjepa_hub.data.streaming import ClipStream, open_shards
from vjepa_hub.data.video import VideoDecodingError

pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create"
)  # more workers than this machine has cores
SHORT = {"clips": ClipSpec(frames_per_clip=2, frame_step=1)}


class GreyVideo(VideoContent):
    """Ten frames of one grey value; or a video that cannot be read."""

    num_frames, height, width, average_fps = 10, 24, 32, 25.0

    def __init__(self, value, is_readable=True):
        self.value, self.is_readable = value, is_readable

    @contextmanager
    def open(self, *, backend):
        if not self.is_readable:
            raise VideoDecodingError(f"video {self.value}", "bad", "none")
        yield self

    def read_frames(self, indices, *, box):
        return np.full((len(indices), box[2], box[3], 3), self.value, dtype=np.uint8)


class GreyShards(RecordShards):
    """Shards of grey videos, numbered throughout; the label is the number."""

    def __init__(self, *sizes, bad=()):
        ends = np.cumsum(sizes).tolist()
        self.shards = [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        self.bad = set(bad)
        self.read = []

    @property
    def num_shards(self):
        return len(self.shards)

    def records(self, shard, *, pass_number):
        self.read.append((pass_number, shard))
        for number in self.shards[shard]:
            yield VideoRecord(f"video {number}", GreyVideo(number, number not in self.bad), number)


def clips_of(stream, num_batches, num_workers=0):
    loader = DataLoader(stream, batch_size=stream.batch_size, num_workers=num_workers, collate_fn=list)
    batches = list(islice(loader, num_batches))
    return [clip for batch in batches for clip in batch]


def labels_of(clips):
    return [clip["label"] for clip in clips]


def equal(one, other):
    return torch.equal(one["frames"], other["frames"]) and all(
        one[key] == other[key] for key in ("label", "position", "is_flipped", "num_failures")
    )


# --- positions ---


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("num_processes", [1, 2])
def test_batches_of_all_processes_hold_each_position_once_and_in_order(num_workers, num_processes):
    source, by_process = GreyShards(5, 5, 5, 5), []
    for rank in range(num_processes):
        stream = ClipStream(source, batch_size=3, rank=rank, num_processes=num_processes, **SHORT)
        clips = clips_of(stream, 7, num_workers)
        by_process.append([clip["position"] for clip in clips])
    step = 3 * num_processes
    expected = [[batch * step + rank * 3 + i for batch in range(7) for i in range(3)] for rank in range(num_processes)]
    assert by_process == expected


def test_box_and_flip_at_a_position_do_not_depend_on_the_number_of_workers():
    def boxes(num_workers):
        clips = clips_of(ClipStream(GreyShards(5, 5, 5), batch_size=4, seed=7, **SHORT), 5, num_workers)
        return [(clip["frames"].shape, clip["is_flipped"]) for clip in clips]

    assert boxes(0) == boxes(2) == boxes(3)
    assert len(set(boxes(0))) > 10


# --- who reads what ---


def test_one_reader_sees_each_video_once_in_a_pass_and_the_next_pass_in_another_order():
    labels = labels_of(clips_of(ClipStream(GreyShards(*[2] * 6), batch_size=12, **SHORT), 4))
    passes = [labels[start : start + 12] for start in range(0, 48, 12)]
    assert all(sorted(one) == list(range(12)) for one in passes)
    assert len({tuple(one) for one in passes}) == 4
    others = labels_of(clips_of(ClipStream(GreyShards(*[2] * 6), batch_size=12, seed=1, **SHORT), 4))
    assert labels != others


@pytest.mark.parametrize("num_processes", [1, 2])
def test_shards_are_shared_out_among_workers_and_processes(num_processes):
    source, labels = GreyShards(*[4] * 6), []
    for rank in range(num_processes):
        stream = ClipStream(source, batch_size=4, rank=rank, num_processes=num_processes, **SHORT)
        labels += labels_of(clips_of(stream, 6 // num_processes, num_workers=3))
    assert sorted(labels) == list(range(24))


@pytest.mark.parametrize("sizes", [(12,), (5, 7)])
def test_fewer_shards_than_readers_still_give_each_video_once_in_a_pass(sizes):
    clips = clips_of(ClipStream(GreyShards(*sizes), batch_size=2, **SHORT), 12, num_workers=3)
    labels = labels_of(clips)
    assert sorted(labels[:12]) == sorted(labels[12:]) == list(range(12))


def test_more_readers_than_videos_all_go_on():
    labels = labels_of(clips_of(ClipStream(GreyShards(2), batch_size=1, **SHORT), 8, num_workers=3))
    assert sorted(labels) == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("num_shards", [1, 4])
def test_hugging_face_stream_is_shared_out_once_not_twice(num_shards, write_video):
    """In a worker, `datasets` shares a stream out by itself: of one shard, all workers but the first got nothing."""
    datasets = pytest.importorskip("datasets", reason="Hugging Face data sets are an extra (pip install datasets)")
    path = str(write_video("stream.mp4", num_frames=4))
    rows = datasets.Dataset.from_dict({"video": [path] * 8, "label": list(range(8))}).cast_column(
        "video", datasets.Video()
    )
    source = open_shards(rows.to_iterable_dataset(num_shards=num_shards))
    labels = labels_of(clips_of(ClipStream(source, batch_size=2, **SHORT), 8, num_workers=2))
    assert sorted(labels[:8]) == sorted(labels[8:]) == list(range(8))


# --- going on ---


@pytest.mark.parametrize(
    ("num_workers", "sizes"), [(0, (3, 1, 4)), (2, (7,)), (2, (3, 1, 4, 1, 5)), (3, (3, 1, 4, 5))]
)
def test_resumed_stream_equals_one_that_did_not_stop(num_workers, sizes):
    def stream(start_position=0):
        source = GreyShards(*sizes, bad={2, 3})
        return ClipStream(source, batch_size=2, seed=4, start_position=start_position, **SHORT)

    whole = clips_of(stream(), 14, num_workers)
    for num_batches_before in (1, 4, 11):
        rest = clips_of(stream(2 * num_batches_before), 14 - num_batches_before, num_workers)
        assert len(rest) == 2 * (14 - num_batches_before)
        assert all(equal(one, other) for one, other in zip(whole[2 * num_batches_before :], rest, strict=True))


def test_resumed_process_goes_on_with_its_own_share():
    def stream(rank, start_position=0):
        return ClipStream(
            GreyShards(*[3] * 4), batch_size=2, rank=rank, num_processes=2, start_position=start_position, **SHORT
        )

    for rank in range(2):
        whole = clips_of(stream(rank), 9, num_workers=2)
        rest = clips_of(stream(rank, 20), 4, num_workers=2)
        assert all(equal(one, other) for one, other in zip(whole[10:], rest, strict=True))


def test_passes_gone_by_are_not_read_again():
    source = GreyShards(*[2] * 5)
    stream = ClipStream(source, batch_size=1, **SHORT)
    stream.start_position = 10 * 1000 + 5
    assert next(iter(stream))["position"] == 10005
    assert len(source.read) <= 6  # each once, to count its videos, and the one where it goes on
    assert source.read[-1][0] == 1000


def test_start_inside_a_batch_is_an_error():
    stream = ClipStream(GreyShards(4), batch_size=4, num_processes=2)
    stream.start_position = 16
    for position in (12, -8):
        with pytest.raises(ValueError, match=r"give a multiple of batch_size x num_processes, 8"):
            stream.start_position = position


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"rank": 1}, {"rank": -1}, {"num_processes": 0}])
def test_impossible_share_is_an_error(options):
    with pytest.raises(ValueError, match=r"batch_size is .*, num_processes .* and rank"):
        ClipStream(GreyShards(4), **{"batch_size": 2, **options})


# --- what cannot be read ---


def test_next_video_stands_in_and_keeps_its_own_turn():
    clips = clips_of(ClipStream(GreyShards(6, bad={2, 3}), batch_size=6, **SHORT), 2)
    assert labels_of(clips) == [0, 1, 4, 4, 4, 5] * 2
    assert [clip["num_failures"] for clip in clips] == [0, 0, 2, 1, 0, 0] * 2


def test_stream_is_the_same_with_the_quarantine_file_and_without(tmp_path):
    def clips():
        quarantine = Quarantine(tmp_path / "bad.jsonl")
        return clips_of(ClipStream(GreyShards(6, bad={2, 3}), batch_size=6, quarantine=quarantine, **SHORT), 2)

    assert all(equal(one, other) for one, other in zip(clips(), clips(), strict=True))
    listed = Quarantine(tmp_path / "bad.jsonl").read()
    assert [(entry.video, entry.position) for entry in listed] == [("video 2", 2), ("video 3", 2)]


def test_stream_without_a_readable_video_ends_with_an_error():
    stream = ClipStream(GreyShards(3, 4, bad=range(7)), batch_size=2, max_tries=5, **SHORT)
    with pytest.raises(NoReadableVideoError, match="none of the 5 videos"):
        clips_of(stream, 1)


@pytest.mark.parametrize("start_position", [0, 4])
@pytest.mark.parametrize("sizes", [(0,), (0, 0, 0)])
def test_shards_without_a_video_end_with_an_error(sizes, start_position):
    stream = ClipStream(GreyShards(*sizes), batch_size=2, start_position=start_position, **SHORT)
    with pytest.raises(ValueError, match="no video in any of the"):
        next(iter(stream))


# --- tar files ---


@pytest.fixture(scope="module")
def shards(tmp_path_factory, write_video):
    """Two shards of three videos each, of different lengths."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        with tarfile.open(folder / f"shard-{shard:03d}.tar", "w") as tar:
            for number in range(3):
                name = f"{3 * shard + number}.mp4"
                tar.add(write_video(name, num_frames=4 + 3 * shard + number), name)
    return folder


def test_stream_of_tar_files_gives_the_clips_that_their_videos_give_by_number(shards):
    streamed = clips_of(ClipStream(open_shards(shards), batch_size=6, **SHORT), 1)
    numbered = VideoClipDataset(open_source(shards), **SHORT)
    for clip in streamed:
        same = [numbered[clip["position"], index] for index in range(6)]
        assert any(torch.equal(clip["frames"], other["frames"]) for other in same)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shard_that_breaks_off_costs_one_video_and_the_others_go_on(tmp_path, shards, num_workers):
    for shard in shards.iterdir():
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    with tarfile.open(tmp_path / "shard-001.tar") as tar:
        broken = tar.getmembers()[1]
    (tmp_path / "shard-001.tar").write_bytes(
        (shards / "shard-001.tar").read_bytes()[: broken.offset_data + broken.size // 2]
    )
    quarantine = Quarantine(tmp_path / "bad.jsonl")
    clips = clips_of(ClipStream(open_shards(tmp_path), batch_size=1, quarantine=quarantine, **SHORT), 15, num_workers)
    assert 2 <= sum(clip["num_failures"] for clip in clips) <= 3  # once for each time that the shard was read
    (entry,) = quarantine.read()
    assert entry.video == f"{tmp_path}/shard-001.tar/4.mp4"
    assert "breaks off" in entry.cause


@pytest.mark.parametrize("kind", ["whole", "broken"])
def test_resumed_stream_of_tar_files_equals_one_that_did_not_stop(tmp_path, shards, kind):
    for shard in shards.iterdir():
        data = shard.read_bytes()
        (tmp_path / shard.name).write_bytes(data if kind == "whole" else data[: len(data) // 3])

    def stream(start_position=0):
        return ClipStream(open_shards(tmp_path), batch_size=1, start_position=start_position, **SHORT)

    whole, rest = clips_of(stream(), 16), clips_of(stream(9), 7)
    for one, other in zip(whole[9:], rest, strict=True):
        assert torch.equal(one["frames"], other["frames"])
        assert one["num_failures"] == other["num_failures"]


def test_shard_that_is_no_tar_file_counts_as_a_video(tmp_path, shards):
    (tmp_path / "a.tar").write_bytes(b"<html>404 Not Found</html>" * 100)
    (tmp_path / "b.tar").write_bytes((shards / "shard-000.tar").read_bytes())
    stream = ClipStream(open_shards(tmp_path), batch_size=8, **SHORT)
    clips = clips_of(stream, 1)
    assert len(clips) == 8
    assert any(clip["num_failures"] for clip in clips)
    assert stream.reader.quarantine.read()[0].video == str(tmp_path / "a.tar")


def test_kinds_that_are_not_read_as_a_stream_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"list\.csv is not read as a stream: that takes tar files"):
        open_shards("list.csv")
    with pytest.raises(FileNotFoundError, match="no shard in the folder"):
        open_shards(tmp_path)
