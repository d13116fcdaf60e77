import json
import pickle

import numpy as np
import pytest
from PIL import Image

from vjepa_hub.data.clip_order import ClipOrder
from vjepa_hub.data.records import FrameFolder, LocalVideo, RemoteVideo
from vjepa_hub.data.shards import TarSource
from vjepa_hub.data.sources import FrameFolderSource, MixedSource, VideoFileSource, open_source

from .test_shards import write_tar


def names_of(source):
    return [source.record(index).name for index in range(len(source))]


def labels_of(source):
    return [source.record(index).label for index in range(len(source))]


def files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [str(folder / name) for name in names]


# --- files and manifests ---


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "a b.mp4 3\nsub/c.mp4 0\n"),
        ("list.csv", "label,path\n3,a b.mp4\n0,sub/c.mp4\n"),
        ("list.jsonl", '{"path": "a b.mp4", "label": 3}\n{"video": "sub/c.mp4", "label": 0}'),
    ],
)
def test_manifest_gives_paths_below_its_folder_and_labels_if_they_are_wanted(tmp_path, monkeypatch, name, text):
    (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path.parent)
    for spec in (tmp_path / name, f"{tmp_path.name}/{name}"):
        source = open_source(spec)
        monkeypatch.chdir("/")  # a source keeps its folder
        assert names_of(source) == [str(tmp_path / "a b.mp4"), str(tmp_path / "sub/c.mp4")]
        assert labels_of(source) == [3, 0]
        assert source.has_labels
        monkeypatch.chdir(tmp_path.parent)
    bare = open_source(tmp_path / name, with_labels=False)
    assert labels_of(bare) == [None, None]
    assert not bare.has_labels


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.csv", "a.mp4 0\nb.mp4 dog\n", r"line 2 of .*list\.csv has the label 'dog'"),
        ("list.csv", "a.mp4 -1\n", "line 1 of .* has the label '-1'"),
        ("list.csv", "a.mp4 1.5\n", "line 1 of .* has the label '1.5'"),
        ("list.csv", "path,label\na.mp4,1\nb.mp4,\n", "line 3 of .* has no label"),
        (
            "list.jsonl",
            '{"path": "a", "label": 0}\n{"path": "b", "label": "dog"}\n',
            "line 2 of .* has the label 'dog'",
        ),
        ("list.jsonl", '{"path": "a", "label": 0}\n{"path": "b"}\n', "line 2 of .* has no label"),
    ],
)
def test_label_that_is_no_class_number_is_an_error_unless_none_is_wanted(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / name)
    assert not open_source(tmp_path / name, with_labels=False).has_labels


def test_manifest_mixes_files_and_addresses(tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4\n/videos/b.mp4\ns3://bucket/my c.mp4\n")
    source = open_source(tmp_path / "list.txt")
    assert names_of(source) == [str(tmp_path / "a.mp4"), "/videos/b.mp4", "s3://bucket/my c.mp4"]
    kinds = [type(source.record(index).content) for index in range(3)]
    assert kinds == [LocalVideo, LocalVideo, RemoteVideo]


def test_folder_gives_its_videos_without_labels(tmp_path):
    paths = files(tmp_path, "a.mp4", "b/c d.webm")
    files(tmp_path, "a.jpg", "notes.txt")
    assert names_of(open_source(tmp_path)) == paths
    assert not open_source(tmp_path).has_labels


def test_one_video_and_a_list_of_videos_are_sources(tmp_path):
    paths = files(tmp_path, "a.mp4", "b.avi")
    assert names_of(open_source(paths[0])) == paths[:1]
    assert names_of(open_source(paths)) == paths


def test_source_of_files_checks_what_it_is_given():
    with pytest.raises(ValueError, match="no video given"):
        VideoFileSource([])
    with pytest.raises(ValueError, match="1 labels for 2 videos"):
        VideoFileSource(["a", "b"], labels=[1])
    with pytest.raises(IndexError, match="index 2 is outside 0 to 1"):
        VideoFileSource(["a", "b"]).record(2)


def test_million_videos_take_little_memory_and_time_to_send():
    source = VideoFileSource([f"/videos/class {number % 400}/{number}.mp4" for number in range(100_000)], root="/")
    assert len(pickle.dumps(source)) < 100_000 * 40
    assert source.record(99_999).name == "/videos/class 399/99999.mp4"


# --- frame folders ---


def test_each_folder_with_images_is_a_video_in_natural_order(tmp_path):
    files(tmp_path, "v10/1.jpg", "v9/1.PNG", "x/y/2.webp", "empty/notes.txt", ".hidden/1.jpg")
    source = open_source(tmp_path, fps=12)
    assert isinstance(source, FrameFolderSource)
    assert names_of(source) == [str(tmp_path / name) for name in ("v9", "v10", "x/y")]
    assert source.record(0).content == FrameFolder(tmp_path / "v9", 12)
    assert not source.has_labels


def test_folder_of_images_is_itself_a_video(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "1.png")
    assert names_of(open_source(tmp_path)) == [str(tmp_path)]


def test_rate_of_frames_is_positive_and_there_are_frames(tmp_path):
    with pytest.raises(ValueError, match="fps is 0"):
        FrameFolderSource(tmp_path, fps=0)
    with pytest.raises(ValueError, match="no folder of frames"):
        FrameFolderSource(tmp_path)


# --- several sources ---


def test_each_source_is_drawn_as_often_as_its_weight_says():
    small, large = VideoFileSource(["a"] * 3), VideoFileSource(["b"] * 97)
    mixed = MixedSource([(small, 3.0), (large, 1.0)])
    assert mixed.weights.shape == (100,)
    assert mixed.weights.sum() == pytest.approx(1)
    order = ClipOrder(len(mixed), clips_per_step=2000, weights=mixed.weights)
    drawn = np.array([request.index for request in order])
    assert (drawn < 3).mean() == pytest.approx(0.75, abs=0.03)


def test_without_weights_every_video_is_drawn_equally_often():
    mixed = open_source([VideoFileSource(["a", "b"]), VideoFileSource(["c"])])
    assert mixed.weights is None
    assert [name[-1] for name in names_of(mixed)] == ["a", "b", "c"]
    assert mixed.stand_ins(2) == range(3)


def test_mixture_within_a_mixture_keeps_both_shares():
    inner = MixedSource([(VideoFileSource(["a"]), 1), (VideoFileSource(["b"]), 3)])
    outer = MixedSource([(VideoFileSource(["x"] * 4), 1), (inner, 1)])
    assert outer.weights.tolist() == [0.125] * 4 + [0.125, 0.375]
    assert outer.stand_ins(1) == range(4)
    assert outer.stand_ins(5) == range(5, 6)
    joined = MixedSource([(VideoFileSource(["x"] * 2), None), (inner, None)])
    assert joined.weights.tolist() == [0.25, 0.25, 0.125, 0.375]


def test_mixture_has_labels_only_where_all_sources_have():
    labelled, bare = VideoFileSource(["a"], labels=[1]), VideoFileSource(["b"])
    assert labels_of(MixedSource([(labelled, 1), (labelled, 1)])) == [1, 1]
    mixed = MixedSource([(labelled, 1), (bare, 1)])
    assert not mixed.has_labels
    assert labels_of(mixed) == [None, None]
    with pytest.raises(IndexError):
        mixed.record(2)


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1.0, 0.0], "weight 0.0"), ([1.0, -1], "weight -1"), ([1.0, float("nan")], "nan"), ([1.0], "1 weights for 2")],
)
def test_weights_that_cannot_be_are_errors(weights, message):
    with pytest.raises(ValueError, match=message):
        open_source([VideoFileSource(["a"]), VideoFileSource(["b"])], weights=weights)


def test_weights_for_one_source_or_for_some_are_errors(tmp_path):
    with pytest.raises(ValueError, match="weights are given for one source"):
        open_source(VideoFileSource(["a"]), weights=[1.0])
    with pytest.raises(ValueError, match="either all sources have one or none has"):
        MixedSource([(VideoFileSource(["a"]), 1.0), (VideoFileSource(["b"]), None)])
    with pytest.raises(ValueError, match="no source given"):
        open_source([])


def test_list_of_manifests_is_one_source_with_weights(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text(f"{name}.mp4 0\n")
    source = open_source([tmp_path / "a.csv", tmp_path / "b.csv"], weights=[1, 3])
    assert source.weights.tolist() == [0.25, 0.75]
    assert source.has_labels


# --- which kind it is ---


def test_tar_files_are_found_by_path_pattern_list_and_folder(tmp_path):
    paths = [write_tar(tmp_path / f"s-{number}.tar", (f"{number}.mp4", b"x")) for number in range(2)]
    for spec in (tmp_path, tmp_path / "s-*.tar", tmp_path / "s-{0..1}.tar", paths):
        source = open_source(spec)
        assert isinstance(source, TarSource)
        assert names_of(source) == [f"{path}/{number}.mp4" for number, path in enumerate(paths)]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda folder: folder / "absent", FileNotFoundError, "there is no file or folder"),
        (lambda folder: folder / "absent.csv", FileNotFoundError, "there is no file or folder"),
        (lambda folder: folder, ValueError, r"nothing to read in the folder .*\.mp4.*\.png.* tar files"),
        (lambda folder: folder / "a.yaml", ValueError, r"ends in '\.yaml'; known are .*\.csv, .*\.parquet, \.tar"),
        (lambda folder: "s3://bucket/list.csv", ValueError, "an address .* names tar files or a video"),
        (lambda folder: 3, TypeError, "found a int, but videos come from"),
        (lambda folder: {"train": folder}, TypeError, "found a dict"),
    ],
)
def test_what_is_no_source_is_an_error_that_names_what_is_known(tmp_path, make, error, message):
    (tmp_path / "a.yaml").touch()
    with pytest.raises(error, match=message):
        open_source(make(tmp_path))


def test_jsonl_labels_may_be_text_of_numbers(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"path": "a.mp4", "label": "12"}))
    assert labels_of(open_source(tmp_path / "a.jsonl")) == [12]
