"""Labelled sets of every kind: which class each video or image gets, and what is refused."""

import io
import json
import os
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vjepa_hub.data.hugging_face import HuggingFaceSource
from vjepa_hub.data.records import ClipSource, LocalVideo, VideoBytes, VideoRecord
from vjepa_hub.data.sources import open_source
from vjepa_hub.data.video import VideoDecodingError
from vjepa_hub.evaluation.labelled import (
    LabelledSet,
    VideoSource,
    check_training_classes,
    open_labelled,
    read_class_names,
)

datasets = pytest.importorskip("datasets", reason="Hugging Face data sets (pip install 'datasets>=4.2')")


@pytest.fixture(autouse=True)
def no_video_is_opened(monkeypatch):
    """Labels, names and stamps are to be had without decoding; the videos here are no videos."""

    def refuse(*arguments, **options):
        raise AssertionError("a video was opened")

    monkeypatch.setattr("vjepa_hub.data.records.open_video", refuse)


def write(path, data=b"no video"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def picture(path, colour=(200, 10, 10), size=(8, 6), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def class_folders(root, names, *, num_each=2):
    for name in names:
        for number in range(num_each):
            write(root / name / f"{number}.mp4")
    return root


def rows_of_images(**columns):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    images = [Image.new("RGB", (6, 6), colour) for colour in ("red", "green", "blue")]
    return datasets.Dataset.from_dict({"image": images, "label": [1, 0, 1], **columns}, features=features)


# --- videos ---


def test_the_label_in_a_released_list_stands_after_the_last_space(tmp_path):
    manifest = tmp_path / "train.csv"
    manifest.write_text(f"riding a bike/my video.mp4 3\n{tmp_path / 'b c'}/x.mp4 0\n")
    found = open_labelled(manifest)
    assert found.labels.tolist() == [3, 0]
    assert found.labels.dtype == np.int64
    assert found.names == [str(tmp_path / "riding a bike" / "my video.mp4"), str(tmp_path / "b c" / "x.mp4")]
    assert (found.num_classes, found.class_names, found.description) == (4, None, "train.csv")


def test_a_table_and_a_jsonl_give_the_same_set_as_the_released_list(tmp_path):
    (tmp_path / "a.csv").write_text("x.mp4 1\ny z.mp4 0\n")
    (tmp_path / "b.csv").write_text("label,path\n1,x.mp4\n0,y z.mp4\n")
    lines = [json.dumps({"video": "x.mp4", "label": 1}), json.dumps({"path": "y z.mp4", "label": 0})]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    sets = [open_labelled(tmp_path / name) for name in ("a.csv", "b.csv", "c.jsonl")]
    assert [found.names for found in sets[1:]] == [sets[0].names] * 2
    assert [found.labels.tolist() for found in sets] == [[1, 0]] * 3


def test_folders_of_classes_are_numbered_in_alphabetical_order(tmp_path):
    class_folders(tmp_path, ["run", "jump", ".hidden"])
    write(tmp_path / "run" / "deeper" / "last.webm")
    write(tmp_path / "run" / "notes.txt")
    (tmp_path / "walk").mkdir()
    found = open_labelled(str(tmp_path) + "/")
    assert found.class_names == ("jump", "run", "walk")
    assert found.labels.tolist() == [0, 0, 1, 1, 1]
    assert [os.path.relpath(name, tmp_path) for name in found.names[2:]] == [
        "run/0.mp4",
        "run/1.mp4",
        "run/deeper/last.webm",
    ]
    assert found.description == tmp_path.name


def test_a_video_beside_the_folders_of_classes_is_not_passed_over(tmp_path):
    write(class_folders(tmp_path, ["run"]) / "lost.mp4")
    with pytest.raises(ValueError, match=r"1 files are in none of them, such as lost.mp4"):
        open_labelled(tmp_path)


def test_videos_without_labels_are_refused(tmp_path):
    (tmp_path / "videos.txt").write_text("a.mp4\n")
    with pytest.raises(ValueError, match=r"videos.txt have no labels; write 'path label'"):
        open_labelled(tmp_path / "videos.txt")


def test_a_missing_file_is_named(tmp_path):
    for media in ("video", "image"):
        with pytest.raises(FileNotFoundError, match=r"nowhere.csv"):
            open_labelled(tmp_path / "nowhere.csv", media=media)


def test_labels_outside_the_classes_are_named_with_their_videos(tmp_path):
    (tmp_path / "a.csv").write_text("\n".join(f"{number}.mp4 {number}" for number in range(9)))
    with pytest.raises(ValueError, match=r"5 labels of a.csv are outside 0 to 3: 4 \(.*4.mp4\), 5 .*, 6 .*, \.\.\.;"):
        open_labelled(tmp_path / "a.csv", num_classes=4)
    assert open_labelled(tmp_path / "a.csv", num_classes=9).num_classes == 9


def test_a_label_that_is_no_number_is_named_with_its_line(tmp_path):
    (tmp_path / "a.csv").write_text("x.mp4 0\ny.mp4 jump\n")
    with pytest.raises(ValueError, match=r"line 2 of .*a.csv has the label 'jump'"):
        open_labelled(tmp_path / "a.csv")


def test_an_empty_split_is_refused():
    features = datasets.Features({"video": datasets.Value("string"), "label": datasets.Value("int64")})
    empty = datasets.Dataset.from_dict({"video": [], "label": []}, features=features)
    with pytest.raises(ValueError, match="a Dataset is empty, but an evaluation needs at least one video"):
        open_labelled(empty)


def test_rows_of_videos_bring_the_names_of_their_classes():
    features = {"video": datasets.Video(), "label": datasets.ClassLabel(names=["b", "a"])}
    rows = {"video": [{"path": None, "bytes": b"x"}, {"path": "/videos/y.mp4", "bytes": None}], "label": [1, 0]}
    found = open_labelled(datasets.Dataset.from_dict(rows, features=datasets.Features(features)))
    assert (found.class_names, found.labels.tolist()) == (("b", "a"), [1, 0])
    assert found.names[1] == "/videos/y.mp4"


# --- labels of sources ---


def test_labels_of_rows_are_read_without_the_videos():
    rows = datasets.Dataset.from_dict({"video": [b"x", b"y", b"z"], "label": [2, 0, 1]})
    source = HuggingFaceSource(rows)
    source.record = None  # never asked for
    assert source.labels().tolist() == [2, 0, 1]
    assert source.labels().dtype == np.int64


def test_labels_of_rows_are_the_records_labels():
    source = HuggingFaceSource(datasets.Dataset.from_dict({"path": ["x.mp4", "y.mp4"], "cls": [5, 0]}))
    assert source.labels().tolist() == [source.record(index).label for index in range(2)]


def test_a_negative_label_of_a_row_is_named():
    rows = datasets.Dataset.from_dict({"path": ["x.mp4", "y.mp4"], "label": [0, -1]})
    with pytest.raises(ValueError, match="row 1 of the data set has the label -1"):
        HuggingFaceSource(rows).labels()


@pytest.mark.parametrize("kind", ["files", "rows"])
def test_labels_that_are_not_there_are_refused(kind, tmp_path):
    (tmp_path / "a.txt").write_text("x.mp4\n")
    rows = datasets.Dataset.from_dict({"path": ["x.mp4"]})
    source = open_source(tmp_path / "a.txt") if kind == "files" else HuggingFaceSource(rows)
    with pytest.raises(ValueError, match="the videos have no labels, but they are asked for"):
        source.labels()


def test_labels_of_a_mixture_follow_its_order(tmp_path):
    (tmp_path / "a.csv").write_text("x.mp4 1\ny.mp4 0\n")
    (tmp_path / "b.csv").write_text("z.mp4 2\n")
    source = open_source([tmp_path / "b.csv", tmp_path / "a.csv"])
    assert source.labels().tolist() == [2, 1, 0]
    assert open_labelled([tmp_path / "b.csv", tmp_path / "a.csv"]).names[0].endswith("z.mp4")


# --- images ---


def test_folders_of_images_are_numbered_in_alphabetical_order(tmp_path):
    for name in ("b/2.png", "b/1.JPG", "a/x/deep.png", "a/.hidden/no.png", ".b/no.png"):
        picture(tmp_path / name)
    write(tmp_path / "a" / "notes.txt")
    found = open_labelled(tmp_path, media="image")
    assert [os.path.relpath(name, tmp_path) for name in found.names] == ["a/x/deep.png", "b/1.JPG", "b/2.png"]
    assert (found.labels.tolist(), found.class_names) == ([0, 1, 1], ("a", "b"))
    assert found.source.read(0).size == (8, 6)


def test_an_image_beside_the_folders_of_classes_is_not_passed_over(tmp_path):
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "lost.png")
    with pytest.raises(ValueError, match=r"such as lost.png"):
        open_labelled(tmp_path, media="image")


@pytest.mark.parametrize(("name", "found"), [("a/1.mp4", "videos, but no image,"), ("a/1.txt", "no image")])
def test_folders_without_images_are_refused(tmp_path, name, found):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=f"found {found} in the folders below"):
        open_labelled(tmp_path, media="image")


def test_a_list_of_images_counts_from_its_folder(tmp_path):
    picture(tmp_path / "two words.png")
    (tmp_path / "val.csv").write_text("two words.png 4\n")
    found = open_labelled(tmp_path / "val.csv", media="image")
    assert (found.labels.tolist(), found.num_classes) == ([4], 5)
    assert found.source.read(0).getpixel((0, 0)) == (200, 10, 10)


def test_a_list_of_addresses_of_images_is_refused_at_once(tmp_path):
    (tmp_path / "val.csv").write_text("s3://bucket/a.png 4\n")
    with pytest.raises(ValueError, match=r"line 1 of .* names the address s3://bucket/a.png"):
        open_labelled(tmp_path / "val.csv", media="image")


def test_rows_of_images_bring_pixels_labels_and_names():
    found = open_labelled(rows_of_images(), media="image")
    assert (found.labels.tolist(), found.class_names, found.num_classes) == ([1, 0, 1], ("cat", "dog"), 2)
    assert [found.source.read(index).getpixel((0, 0)) for index in range(3)] == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    assert len(set(found.names)) == 3


def test_a_parquet_of_images_is_read_like_the_rows(tmp_path):
    rows_of_images().to_parquet(tmp_path / "val.parquet")
    found = open_labelled(tmp_path / "val.parquet", media="image")
    assert (found.labels.tolist(), found.class_names) == ([1, 0, 1], ("cat", "dog"))
    assert found.source.read(2).getpixel((0, 0)) == (0, 0, 255)


def test_rows_without_a_column_of_images_are_refused():
    with pytest.raises(ValueError, match="has the columns photo, label, but images stand in one of image, img"):
        open_labelled(datasets.Dataset.from_dict({"photo": ["a.png"], "label": [0]}), media="image")
    with pytest.raises(TypeError, match="one split of a data set"):
        open_labelled(datasets.DatasetDict({"train": rows_of_images()}), media="image")


def test_images_come_upright_and_in_colour(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture(tmp_path / "a" / "1.jpg", exif=exif)
    Image.new("L", (8, 6), 7).save(tmp_path / "a" / "2.png")
    source = open_labelled(tmp_path, media="image").source
    assert source.read(0).size == (6, 8)
    assert source.read(1).getpixel((0, 0)) == (7, 7, 7)


def damaged_images():
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(buffer, "BMP")
    bitmap = bytearray(buffer.getvalue())
    bitmap[18:26] = b"\xff\xff\x00\x00" * 2  # 65535 x 65535 pixels
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return {
        "text.png": b"not an image",
        "empty.png": b"",
        "huge.bmp": bytes(bitmap),
        "cut.jpg": buffer.getvalue()[:700],
        "header.ppm": b"P6 4x 4 255 " + bytes(48),
    }


@pytest.mark.parametrize("name", damaged_images())
def test_a_damaged_image_is_an_error_of_that_image(tmp_path, name):
    write(tmp_path / "a" / name, damaged_images()[name])
    with pytest.raises(VideoDecodingError, match=f"{name}.*(not a readable image|is empty)"):
        open_labelled(tmp_path, media="image").source.read(0)


def test_a_row_without_an_image_is_an_error_of_that_row():
    rows = datasets.Dataset.from_dict({"image": [None], "label": [0]}, features=rows_of_images().features)
    with pytest.raises(VideoDecodingError, match=r"row 0 of the data set.*holds no image"):
        open_labelled(rows, media="image").source.read(0)


# --- classes ---


def test_folders_follow_the_order_of_given_class_names(tmp_path):
    found = open_labelled(class_folders(tmp_path, ["a", "b"], num_each=1), class_names=["b", "c", "a"])
    assert found.labels.tolist() == [2, 0]
    assert (found.class_names, found.num_classes) == (("b", "c", "a"), 3)


def test_a_validation_folder_without_a_class_is_numbered_as_its_training_set(tmp_path):
    train = open_labelled(class_folders(tmp_path / "train", ["a", "b", "c"]))
    val = open_labelled(class_folders(tmp_path / "val", ["a", "c"], num_each=1), class_names=train.class_names)
    assert val.labels.tolist() == [0, 2]
    check_training_classes(train, val)


def test_rows_follow_the_order_of_given_class_names():
    assert open_labelled(rows_of_images(), media="image", class_names=["dog", "cat"]).labels.tolist() == [0, 1, 0]


def test_other_words_for_all_classes_are_taken_in_their_order(tmp_path):
    class_folders(tmp_path, ["n01440764", "n01443537"], num_each=1)
    found = open_labelled(tmp_path, class_names=["tench", "goldfish"])
    assert (found.labels.tolist(), found.class_names) == ([0, 1], ("tench", "goldfish"))


@pytest.mark.parametrize("names", [["a", "x"], ["a", "x", "y"], ["x", "y", "z"]])
def test_class_names_that_are_not_those_of_the_data_are_refused(tmp_path, names):
    with pytest.raises(ValueError, match=f"not among the {len(names)} class names: .*'b'"):
        open_labelled(class_folders(tmp_path, ["a", "b"]), class_names=names)


def test_names_for_another_number_of_classes_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("x.mp4 0\n")
    with pytest.raises(ValueError, match=r"a.csv has 2 class names for 3 classes"):
        open_labelled(tmp_path / "a.csv", num_classes=3, class_names=["a", "b"])


def labelled(labels, num_classes=3, class_names=None):
    labels = np.array(labels)
    source = VideoSource(SimpleNamespace())
    return LabelledSet(
        source=source, indices=np.arange(len(labels)), labels=labels, num_classes=num_classes, class_names=class_names
    )


def test_a_class_without_a_training_video_is_named():
    train, val = labelled([0, 0], class_names=("a", "b", "c")), labelled([0, 2, 1], class_names=("a", "b", "c"))
    with pytest.raises(ValueError, match=r"2 classes of the validation set have no training video: 1 \(b\), 2 \(c\);"):
        check_training_classes(train, val)
    many = labelled(range(20), num_classes=20)
    with pytest.raises(ValueError, match=r"19 classes .*: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, \.\.\.;"):
        check_training_classes(labelled([0], num_classes=20), many)


def test_a_class_without_a_validation_video_is_allowed():
    check_training_classes(labelled([0, 1, 2]), labelled([1]))


@pytest.mark.parametrize("other", [labelled([0], 4), labelled([0], class_names=("a", "b", "c"))])
def test_sets_with_other_classes_are_refused(other):
    with pytest.raises(ValueError, match=r"has 3 classes and the validation set \d, or they have other names"):
        check_training_classes(labelled([0]), other)


def test_a_subset_keeps_labels_classes_and_names():
    whole = LabelledSet(
        source=VideoSource(SourceOfRecords([LocalVideo(name) for name in "abcd"])),
        indices=np.array([3, 2, 1, 0]),
        labels=np.array([0, 1, 2, 1]),
        num_classes=3,
        class_names=("x", "y", "z"),
        description="a set",
    )
    part = whole.subset(np.array([2, 0]), "two of it")
    assert (part.indices.tolist(), part.labels.tolist()) == ([1, 3], [2, 0])
    assert part.names == ["b", "d"]
    assert (part.num_classes, part.class_names, part.description) == (3, ("x", "y", "z"), "a set, two of it")


# --- names of classes ---


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "\ufeffzebra\n\n  ant bear \ncat\n"),
        ("names.json", '["zebra", "ant bear", "cat"]'),
        ("names.JSON", '{"2": "cat", "0": "zebra", "1": "ant bear"}'),
        ("names.json", '{"cat": "2", "zebra": "0", "ant bear": "1"}'),
        ("names.json", '{"cat": 2, "zebra": 0, "ant bear": 1}'),
    ],
)
def test_class_names_come_in_the_order_of_their_numbers(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_class_names(tmp_path / name) == ["zebra", "ant bear", "cat"]


def test_the_tenth_class_stands_behind_the_ninth(tmp_path):
    (tmp_path / "names.json").write_text(json.dumps({f"class {number}": str(number) for number in range(12)}))
    assert read_class_names(tmp_path / "names.json")[9:] == ["class 9", "class 10", "class 11"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"0": "x", "2": "y"}', "does not number its 2 classes from 0 to 1"),
        ("a.json", '{"x": "0", "y": "0"}', "does not number its 2 classes"),
        ("a.json", '{"x": "red", "y": "green"}', "does not number its 2 classes"),
        ("a.json", '["x", "y", "x"]', "names the class 'x' twice"),
        ("a.txt", "x\nx\n", "names the class 'x' twice"),
        ("a.txt", "\n", "names no class"),
        ("a.json", "[]", "names no class"),
        ("a.json", "{", "a.json is no JSON"),
        ("a.json", '"x"', "neither a list of names nor an object"),
        ("a.json", "[1, 2]", "neither a list of names nor an object"),
        ("a.json", '{"0": ["n01440764", "tench"]}', "neither a list of names nor an object"),
    ],
)
def test_class_names_that_cannot_be_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_class_names(tmp_path / name)


# --- stamps ---


class SourceOfRecords(ClipSource):
    has_labels = False

    def __init__(self, contents):
        self.contents = contents

    def __len__(self) -> int:
        return len(self.contents)

    def record(self, index: int) -> VideoRecord:
        content = self.contents[index]
        return VideoRecord(str(getattr(content, "path", f"row {index}")), content)


def test_a_file_that_was_changed_has_another_stamp(tmp_path):
    (tmp_path / "a.csv").write_text("x.mp4 0\ny.mp4 1\n")
    write(tmp_path / "x.mp4"), write(tmp_path / "y.mp4")
    source = open_labelled(tmp_path / "a.csv").source
    before = source.stamp(0), source.stamp(1)
    write(tmp_path / "x.mp4", b"another video")
    assert source.stamp(0) != before[0]
    assert source.stamp(1) == before[1]


def test_bytes_are_told_apart_by_what_they_are():
    first, second = VideoSource(SourceOfRecords([VideoBytes(b"x")])), VideoSource(SourceOfRecords([VideoBytes(b"y")]))
    assert first.name(0) == second.name(0)
    assert first.stamp(0) != second.stamp(0)
    assert first.stamp(0) == VideoSource(SourceOfRecords([VideoBytes(b"x")])).stamp(0)


def test_rows_of_images_are_told_apart_by_what_they_are():
    source, turned = (
        open_labelled(rows, media="image").source for rows in (rows_of_images(), rows_of_images().select([1, 0, 2]))
    )
    assert source.name(0) == turned.name(0)
    assert source.stamp(0) == turned.stamp(1) != turned.stamp(0)


def test_a_video_in_a_tar_file_changes_with_the_tar_file(tmp_path):
    def shard(data):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name, content in (("x.mp4", data), ("x.cls", b"2")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return open_labelled(tmp_path / "a.tar")

    first = shard(b"a video")
    assert first.labels.tolist() == [2]
    before = first.source.stamp(0)
    again = shard(b"another")
    os.utime(tmp_path / "a.tar", ns=(0, 0))
    assert again.names == first.names
    assert again.source.stamp(0) != before


def test_a_file_that_is_not_there_has_no_stamp(tmp_path):
    (tmp_path / "a.csv").write_text("x.mp4 0\n")
    assert open_labelled(tmp_path / "a.csv").source.stamp(0) == ""
