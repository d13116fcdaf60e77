"""What a clip is, whatever its video is kept in, and what happens to videos that cannot be read."""

import io
import json
import pickle
import shutil
import struct
import tarfile
from contextlib import contextmanager
from itertools import pairwise

import psutil
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vjepa_hub.data.augmentation import draw_crop
from vjepa_hub.data.clip_order import ClipOrder, ClipRequest
from vjepa_hub.data.clip_sampling import ClipSpec
from vjepa_hub.data.crop_spec import CropSpec
from vjepa_hub.data.dataset import VideoClipDataset
from vjepa_hub.data.quarantine import NoReadableVideoError, Quarantine
from vjepa_hub.data.records import ClipSource, FrameFolder, VideoContent, VideoRecord
from vjepa_hub.data.sources import FrameFolderSource, MixedSource, VideoFileSource, open_source
from vjepa_hub.data.streaming import ClipStream, open_shards
from vjepa_hub.data.video import open_video

LABEL, POSITION = 3, 17
SHORT = {"clips": ClipSpec(frames_per_clip=4, frame_step=2)}
GROUPS_OF_12 = {"g": "12", "bf": "3"}


@pytest.fixture(scope="module")
def video(write_video):
    return write_video("my clip.mp4", **GROUPS_OF_12)


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory, write_video, write_audio):
    """A file of each kind that cannot be read, by its kind."""
    folder = tmp_path_factory.mktemp("bad")
    whole = write_video("whole.mp4", **GROUPS_OF_12).read_bytes()
    files = {
        "truncated": (folder / "truncated.mp4", whole[: len(whole) // 2]),
        "zero bytes": (folder / "empty.mp4", b""),
        "text": (folder / "text.mp4", b"<html>404 Not Found</html>\n" * 100),
        "audio only": (folder / "audio.mp4", write_audio("audio.mp4").read_bytes()),
        "no frames": (folder / "bare.mkv", write_video("bare.mkv").read_bytes()[:600]),
    }
    for path, data in files.values():
        path.write_bytes(data)
    return {"missing": folder / "missing.mp4", "folder": folder, **{kind: path for kind, (path, _) in files.items()}}


def equal(one, other):
    """Whether two clips are the same, labels aside."""
    keys = ("is_flipped", "position", "num_failures")
    return torch.equal(one["frames"], other["frames"]) and all(one[key] == other[key] for key in keys)


# --- the same clip from each kind of source ---


@pytest.fixture(scope="module")
def tar(tmp_path_factory, video):
    path = tmp_path_factory.mktemp("tar") / "shard-000.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(video, "my clip.mp4")
        label = tarfile.TarInfo("my clip.cls")
        label.size = 1
        tar.addfile(label, io.BytesIO(str(LABEL).encode()))
    return path


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets", reason="Hugging Face data sets are an extra (pip install datasets)")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def rows_of(datasets, video, kind):
    if kind == "path":
        return datasets.Dataset.from_dict({"video": [str(video)], "label": [LABEL]})
    if kind == "plain bytes":
        return datasets.Dataset.from_dict({"bytes": [video.read_bytes()], "cls": [LABEL]})
    value = {"path": str(video)} if kind == "video feature, path" else {"path": "x.mp4", "bytes": video.read_bytes()}
    features = datasets.Features({"clip": datasets.Video(), "label": datasets.ClassLabel(num_classes=10)})
    return datasets.Dataset.from_dict({"clip": [value], "label": [LABEL]}, features=features)


ROWS = ("path", "plain bytes", "video feature, path", "video feature, bytes")


@pytest.fixture(scope="module")
def expected(video):
    return VideoClipDataset(VideoFileSource([video]))[ClipRequest(POSITION, 0)]


def clip_of(spec):
    return VideoClipDataset(open_source(spec))[ClipRequest(POSITION, 0)]


def test_manifests_and_folders_give_the_same_clip(tmp_path, video, expected):
    shutil.copy(video, tmp_path / "my clip.mp4")
    (tmp_path / "list.csv").write_text(f"my clip.mp4 {LABEL}\n")
    (tmp_path / "table.csv").write_text(f"label,path\n{LABEL},my clip.mp4\n")
    (tmp_path / "list.jsonl").write_text(json.dumps({"video": "my clip.mp4", "label": LABEL}))
    (tmp_path / "list.txt").write_text(f"{video}\n")
    labelled = [clip_of(tmp_path / name) for name in ("list.csv", "table.csv", "list.jsonl")]
    bare = [clip_of(spec) for spec in (tmp_path / "list.txt", tmp_path, video)]
    assert all(equal(clip, expected) for clip in labelled + bare)
    assert [clip["label"] for clip in labelled] == [LABEL] * 3
    assert not any("label" in clip for clip in bare)


@pytest.mark.parametrize("address", ["shard-{000..000}.tar", "memory://clips/shard-*.tar"])
def test_tar_shards_give_the_same_clip_by_number_and_as_a_stream(tar, expected, address):
    fsspec = pytest.importorskip("fsspec", reason="comes with torch")
    fsspec.filesystem("memory").pipe("/clips/shard-000.tar", tar.read_bytes())
    spec = address if "://" in address else tar.parent / address
    streamed = next(iter(ClipStream(open_shards(spec), batch_size=1, start_position=POSITION)))
    for clip in (clip_of(spec), streamed):
        assert equal(clip, expected)
        assert clip["label"] == LABEL


def test_video_at_an_address_gives_the_same_clip(tmp_path, video, expected):
    fsspec = pytest.importorskip("fsspec", reason="comes with torch")
    fsspec.filesystem("memory").pipe("/videos/my clip.mp4", video.read_bytes())
    (tmp_path / "list.csv").write_text("memory://videos/my clip.mp4 0\n")
    assert equal(clip_of(tmp_path / "list.csv"), expected)


@pytest.mark.parametrize("kind", ROWS)
def test_hugging_face_data_sets_give_the_same_clip_by_number_as_parquet_and_as_a_stream(
    datasets, tmp_path, video, expected, kind
):
    rows = rows_of(datasets, video, kind)
    rows.to_parquet(tmp_path / "rows.parquet")
    stream = open_shards(rows.to_iterable_dataset())
    streamed = next(iter(ClipStream(stream, batch_size=1, start_position=POSITION)))
    for clip in (clip_of(rows), clip_of(tmp_path / "rows.parquet"), streamed):
        assert equal(clip, expected)
        assert clip["label"] == LABEL


def test_frame_folders_give_the_same_clip(tmp_path, video, expected):
    with open_video(video) as reader:
        frames = reader.read_frames(range(reader.num_frames))
    for number, frame in enumerate(frames):
        path = tmp_path / "clips" / "a" / f"frame{number}.png"  # not padded: the natural order is that of the numbers
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(path)
    clip = clip_of(tmp_path / "clips")
    assert equal(clip, expected)


# --- what a clip is ---


def test_clip_is_the_box_of_the_frames_and_nothing_around_it(video):
    crop = CropSpec(scale=(0.3, 0.4))
    source = VideoFileSource([video])
    whole = VideoClipDataset(source, crop=None, seed=5)[ClipRequest(9, 0)]
    clip = VideoClipDataset(source, crop=crop, seed=5)[ClipRequest(9, 0)]
    box = draw_crop(crop, height=64, width=96, seed=5, position=9)
    assert torch.equal(clip["frames"], whole["frames"][:, box.rows, box.columns])
    assert clip["frames"].dtype == torch.uint8
    assert clip["frames"].untyped_storage().nbytes() == clip["frames"].numel()
    assert clip["is_flipped"] == box.is_flipped
    assert not whole["is_flipped"]


def test_clip_follows_from_seed_and_position_not_from_the_video(video):
    twins = VideoFileSource([video, video])
    clips = VideoClipDataset(twins, **SHORT, seed=1)
    assert equal(clips[ClipRequest(5, 0)], clips[ClipRequest(5, 1)])
    assert equal(clips[1], clips[ClipRequest(1, 0)])
    others = [clips[ClipRequest(6, 0)], VideoClipDataset(twins, **SHORT, seed=2)[ClipRequest(5, 0)]]
    assert not any(equal(clips[ClipRequest(5, 0)], other) for other in others)


def test_frames_are_those_of_a_window_anywhere_in_the_video(video, read_number):
    clips = VideoClipDataset(VideoFileSource([video]), ClipSpec(frames_per_clip=4, frame_step=10), crop=None)
    numbers = [[read_number(frame.numpy()) for frame in clips[ClipRequest(p, 0)]["frames"]] for p in range(40)]
    for first, *others in numbers:
        assert others == [first + 13, first + 26, first + 39]
    assert {first for first, *_ in numbers} <= set(range(21))
    assert len({first for first, *_ in numbers}) > 12


def test_duration_counts_in_seconds_of_the_video(video, read_number):
    clips = VideoClipDataset(VideoFileSource([video]), ClipSpec(frames_per_clip=4, clip_duration=1.6), crop=None)
    first, *_, last = [read_number(frame.numpy()) for frame in clips[0]["frames"]]
    assert last - first == 39  # 1.6 s of 25 frames per second


def test_duration_needs_the_rate_of_frame_folders(tmp_path, video):
    for number in range(50):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    with pytest.raises(ValueError, match="clip_duration needs the video's frames per second"):
        VideoClipDataset(FrameFolderSource(tmp_path), ClipSpec(clip_duration=1.0))[0]
    clips = VideoClipDataset(FrameFolderSource(tmp_path, fps=25), ClipSpec(clip_duration=1.0))
    assert len(clips[0]["frames"]) == 16


def test_video_too_slow_for_the_duration_counts_as_one_that_cannot_be_read(write_video, video):
    slow = write_video("slow.mp4", num_frames=4, times_ms=[0, 1000, 2000, 3000])
    clips = VideoClipDataset(VideoFileSource([slow, video]), ClipSpec(clip_duration=2.0))
    assert clips[0]["num_failures"] == 1
    assert "2 s at 1 fps is 2 frames" in clips.reader.quarantine.cause(str(slow)).replace("2.0 s at 1.0", "2 s at 1")


def test_one_frame_fills_a_clip(write_video):
    clip = VideoClipDataset(VideoFileSource([write_video("one.mp4", num_frames=1)]), crop=None)[0]
    assert clip["frames"].shape == (16, 64, 96, 3)
    assert (clip["frames"] == clip["frames"][0]).all()


def test_wrong_ending_does_not_matter(tmp_path, video, expected):
    shutil.copy(video, tmp_path / "named.avi")
    assert equal(clip_of(tmp_path / "named.avi"), expected)


def test_clips_do_not_depend_on_the_number_of_workers(video, bad_files, write_video):
    source = VideoFileSource([video, bad_files["truncated"], write_video("second.mp4", num_frames=30)])
    order = ClipOrder(len(source), clips_per_step=6, seed=3)

    def batches(num_workers):
        dataset = VideoClipDataset(source, **SHORT, seed=3)
        loader = DataLoader(dataset, batch_size=3, sampler=order, num_workers=num_workers, collate_fn=list, timeout=0)
        return [clip for batch in loader for clip in batch]

    alone, shared = batches(0), batches(2)
    assert [clip["position"] for clip in alone] == list(range(6))
    assert all(equal(one, other) for one, other in zip(alone, shared, strict=True))
    assert sum(clip["num_failures"] for clip in alone) == 2


def test_number_outside_the_source_is_an_error(video):
    clips = VideoClipDataset(VideoFileSource([video, video]), **SHORT)
    assert len(list(clips)) == 2  # Python's iteration ends by it
    for number in (2, -1):
        with pytest.raises(IndexError, match=f"video {number} is asked for, but the source has the videos 0 to 1"):
            clips[number]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tries": 0}, "max_tries is 0"),
        ({"backend": "opencv"}, "'opencv' cannot be used"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_a_video_is_blamed(video, settings, message):
    with pytest.raises(ValueError, match=message):
        VideoClipDataset(VideoFileSource([video]), **settings)


# --- videos that cannot be read ---


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("truncated", "truncated"),
        ("zero bytes", "empty"),
        ("audio only", "no video stream"),
        ("text", ""),
        ("no frames", "truncated"),
        ("missing", "no such file"),
        ("folder", "directory"),
    ],
)
def test_bad_file_is_replaced_counted_and_listed(tmp_path, video, bad_files, kind, cause):
    quarantine = Quarantine(tmp_path / "bad.jsonl")
    clips = VideoClipDataset(VideoFileSource([bad_files[kind], video]), **SHORT, quarantine=quarantine)
    clip = clips[ClipRequest(4, 0)]
    assert clip["num_failures"] == 1
    assert torch.equal(clip["frames"], clips[ClipRequest(4, 1)]["frames"])
    (entry,) = Quarantine(tmp_path / "bad.jsonl").read()
    assert (entry.video, entry.position) == (str(bad_files[kind]), 4)
    assert cause in entry.cause
    assert entry.cause


@pytest.mark.parametrize("kind", ["truncated", "zero bytes", "audio only", "text"])
def test_bad_bytes_are_blamed_on_their_name_in_the_shard(tmp_path, video, bad_files, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(bad_files[kind], "x/bad.mp4")
        tar.add(video, "x/good.mp4")
    clips = VideoClipDataset(open_source(tmp_path / "a.tar"), **SHORT)
    assert clips[0]["num_failures"] == 1
    assert clips.reader.quarantine.read()[0].video == f"{tmp_path}/a.tar/x/bad.mp4"


def patch_count(path, name, marker, offset, count):
    data = bytearray(path.read_bytes())
    start = data.index(marker) + len(marker) + offset
    assert struct.unpack_from("<I" if path.suffix == ".avi" else ">I", data, start)[0] == 30
    struct.pack_into("<I" if path.suffix == ".avi" else ">I", data, start, count)
    copy = path.with_name(name)
    copy.write_bytes(data)
    return copy


def test_header_that_promises_more_frames_never_gives_a_frame_that_is_not_there(write_video, read_number):
    avi = write_video("plain.avi", num_frames=30, codec="mpeg4", g="12")
    mp4 = write_video("plain30.mp4", num_frames=30, bf="0")
    lying = [
        patch_count(avi, "lying.avi", b"avih", 4 + 16, 300),
        patch_count(mp4, "lying.mp4", b"stsz", 8, 300),
        patch_count(mp4, "stts.mp4", b"stts", 8, 300),
    ]
    whole = VideoFileSource([mp4])
    for path in lying:
        clips = VideoClipDataset(
            MixedSource([(VideoFileSource([path, mp4]), None)]), ClipSpec(frame_step=1), crop=None
        )
        clip = clips[ClipRequest(0, 0)]
        numbers = [read_number(frame.numpy()) for frame in clip["frames"]]
        if clip["num_failures"]:
            assert equal({**clip, "num_failures": 0}, VideoClipDataset(whole, ClipSpec(frame_step=1), crop=None)[0])
        else:
            assert numbers == list(range(numbers[0], numbers[0] + 16))
            assert numbers[-1] < 30


def test_stand_in_is_the_same_with_the_quarantine_file_and_without(tmp_path, video, write_video, bad_files):
    good = [write_video(f"good{number}.mp4", num_frames=20 + number) for number in range(4)]
    source = VideoFileSource([bad_files["truncated"], *good, bad_files["zero bytes"]])
    path = tmp_path / "bad.jsonl"
    first = VideoClipDataset(source, **SHORT, quarantine=Quarantine(path))
    seen = [first[ClipRequest(position, 0)] for position in range(30)]
    again = VideoClipDataset(source, **SHORT, quarantine=Quarantine(path))
    assert all(equal(clip, again[ClipRequest(position, 0)]) for position, clip in enumerate(seen))
    assert len({clip["frames"].numpy().tobytes() for clip in seen}) > 6
    assert max(clip["num_failures"] for clip in seen) == 2  # the other bad video stands in at times
    assert len(path.read_text().splitlines()) == 2


def test_listed_video_is_not_opened_again(tmp_path, video):
    quarantine = Quarantine(tmp_path / "bad.jsonl")
    quarantine.add(str(video), cause="found before", position=0)
    clips = VideoClipDataset(VideoFileSource([video]), quarantine=quarantine)
    with pytest.raises(NoReadableVideoError, match="found before"):
        clips[0]


class CountedContent(VideoContent):
    def __init__(self, opened, number):
        self.opened, self.number = opened, number

    @contextmanager
    def open(self, *, backend):
        self.opened.append(self.number)
        with FrameFolder("/absent").open(backend=backend) as reader:
            yield reader


class CountedSource(ClipSource):
    """Videos of which none can be read, and that note which of them was opened."""

    has_labels = False

    def __init__(self, num_videos):
        self.num_videos, self.opened = num_videos, []

    def __len__(self):
        return self.num_videos

    def record(self, index):
        return VideoRecord(f"video {index}", CountedContent(self.opened, index))


@pytest.mark.parametrize(("num_videos", "num_tried"), [(1, 1), (4, 4), (1000, 10)])
def test_tries_are_bounded_and_no_video_is_tried_twice(num_videos, num_tried):
    source = CountedSource(num_videos)
    with pytest.raises(NoReadableVideoError, match=f"none of the {num_tried} videos") as error:
        VideoClipDataset(source)[ClipRequest(123, 0)]
    assert source.opened[0] == 0
    assert len(set(source.opened)) == len(source.opened) == num_tried
    for number in source.opened:
        assert f"video {number}: the folder of frames cannot be listed" in str(error.value)


def test_stand_in_comes_from_the_same_source(video, write_video, bad_files):
    other = VideoFileSource([write_video("other.mp4", num_frames=1)] * 50)
    mixed = MixedSource([(other, 1.0), (VideoFileSource([bad_files["truncated"], video]), 1.0)])
    clips = VideoClipDataset(mixed, **SHORT)
    for position in range(10):
        clip = clips[ClipRequest(position, 50)]
        assert clip["num_failures"] == 1
        assert torch.equal(clip["frames"], clips[ClipRequest(position, 51)]["frames"])


def test_error_of_a_worker_names_the_videos(bad_files):
    clips = VideoClipDataset(VideoFileSource([bad_files["missing"]]))
    loader = DataLoader(clips, num_workers=1, collate_fn=list)
    with pytest.raises(NoReadableVideoError, match=r"missing\.mp4: there is no such file"):
        next(iter(loader))


def test_data_set_travels_to_a_worker_that_is_started_anew(video, expected):
    clips = pickle.loads(pickle.dumps(VideoClipDataset(VideoFileSource([video]))))
    assert equal(clips[ClipRequest(POSITION, 0)], expected)


@pytest.mark.parametrize("num_clips", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_over_many_clips(tmp_path, video, bad_files, num_clips):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(video, "x.mp4")
    clips = VideoClipDataset(open_source([tmp_path, video, bad_files["truncated"]]), ClipSpec(frame_step=1))
    process = psutil.Process()

    def read(positions):
        for position in positions:
            clips[ClipRequest(position, position % len(clips))]
        return process.memory_info().rss

    # The allocator may settle late, but clips that stay would show in each part: 170 kB a clip
    read(range(50))
    size = num_clips // 3
    used = [read(range(start, start + size)) for start in range(50, 50 + 4 * size, size)]
    grown = [after - before for before, after in pairwise(used)]
    assert min(grown) < size * 80_000
