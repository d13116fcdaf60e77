import io
import json
import random
import tarfile
import time
from pathlib import Path

import pytest
from PIL import Image

from vjepa_hub.features.video_list import VideoFile, find_videos, output_names


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        folder.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
        folder.joinpath(name).touch()
    return folder


def found(videos: list[VideoFile], folder: Path) -> list[str]:
    return [video.path.relative_to(folder).as_posix() for video in videos]


def test_folder_gives_its_videos_in_order_and_leaves_out_what_is_hidden_or_no_video(tmp_path):
    touch(tmp_path, "b/2.MP4", "b/10.webm", "a.mkv", "b/notes.txt", "b/picture.bmp", ".git/x.mp4", "b/._2.mp4")
    assert found(find_videos([tmp_path]), tmp_path) == ["a.mkv", "b/10.webm", "b/2.MP4"]


def test_video_is_listed_once_however_it_is_named(tmp_path, monkeypatch):
    touch(tmp_path, "a/x.mp4", "a/y.mp4")
    (tmp_path / "list.txt").write_text("a/y.mp4\na/../a/x.mp4\n")
    monkeypatch.chdir(tmp_path)
    videos = find_videos(["a/y.mp4", tmp_path / "a", "a", "list.txt"])
    assert [video.absolute for video in videos] == [tmp_path / "a/y.mp4", tmp_path / "a/x.mp4"]


def test_folder_without_videos_is_an_error_that_says_what_was_looked_for(tmp_path):
    touch(tmp_path, "a/notes.txt")
    with pytest.raises(ValueError, match=r"nothing to read in the folder .*\.mp4"):
        find_videos([tmp_path])
    with pytest.raises(ValueError, match="no video given"):
        find_videos([])


def test_file_that_is_named_is_taken_whatever_its_ending_or_whether_it_exists(tmp_path):
    touch(tmp_path, "picture.png")
    videos = find_videos([tmp_path / "picture.png", tmp_path / "absent.mp4"])
    assert found(videos, tmp_path) == ["picture.png", "absent.mp4"]


@pytest.mark.parametrize(
    ("name", "text", "paths"),
    [
        ("list.txt", "a b.mp4\n\n  sub/c.mp4  \r\n", ["a b.mp4", "sub/c.mp4"]),
        ("list.csv", "my clip 1.mp4 12\nsub/c.mp4  0\n", ["my clip 1.mp4", "sub/c.mp4"]),
        ("list.csv", "a, b.mp4 3\n", ["a, b.mp4"]),
        ("list.csv", '"a b.mp4" 3\n', ["a b.mp4"]),
        ("list.csv", 'label,path\n3,"a, b.mp4"\n4, c d.mp4\n', ["a, b.mp4", "c d.mp4"]),
        ("list.csv", "path\na b.mp4\n", ["a b.mp4"]),
        ("LIST.JSONL", '{"path": "a b.mp4", "label": 1}\n{"video": "c.mp4"}\n', ["a b.mp4", "c.mp4"]),
        ("list.txt", "\ufeffä.mp4", ["ä.mp4"]),
    ],
)
def test_manifest_paths_count_from_its_folder(tmp_path, name, text, paths):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert found(find_videos([tmp_path / name]), tmp_path) == paths


def test_absolute_manifest_paths_stay(tmp_path):
    (tmp_path / "list.csv").write_text("/videos/a b.mp4 0\n")
    assert find_videos([tmp_path / "list.csv"]) == [VideoFile(Path("/videos/a b.mp4"))]


def test_outputs_of_tar_members_mirror_the_tar(tmp_path):
    data = b"a video"
    for shard in ("0.tar", "1.tar"):
        with tarfile.open(tmp_path / shard, "w") as tar:
            for name in ("a/x.mp4", "a/x.1.mp4"):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    expected = ["0.tar/a/x", "0.tar/a/x.1", "1.tar/a/x", "1.tar/a/x.1"]
    assert list(output_names(find_videos([tmp_path])).values()) == expected
    assert list(output_names(find_videos([tmp_path / "{0,1}.tar"])).values()) == expected


def test_outputs_of_rows_have_their_numbers(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"video": [b"one", b"two"]}).to_parquet(tmp_path / "t.parquet")
    videos = find_videos([tmp_path / "t.parquet"])
    assert list(output_names(videos).values()) == ["t.parquet/row-000000", "t.parquet/row-000001"]


def test_frame_folders_and_addresses_are_videos(tmp_path):
    for name in ("r/a/1.png", "r/b/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "list.txt").write_text("memory://bucket/clip.mp4\n")
    videos = find_videos([tmp_path / "r", tmp_path / "list.txt"])
    assert list(output_names(videos).values()) == ["a", "b", "clip"]
    assert videos[2].record.name == "memory://bucket/clip.mp4"


def test_long_stem_leaves_room_for_endings_and_stays_unique(tmp_path):
    paths = [tmp_path / f"{'ä' * 120}{number}.mp4" for number in range(2)]
    names = list(output_names(paths).values())
    assert len(set(names)) == 2
    assert all(len(f"{name}.safetensors.partial".encode()) <= 255 for name in names)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/x.mp4"], ["x"]),
        (["a/x.mp4", "a/x.mp4", "a/../a/x.mp4"], ["x"]),
        (["a/x.mp4", "b/x.mp4", "b/y.mp4"], ["a-x", "b-x", "y"]),
        (["a/x.mp4", "a/x.avi"], ["x-mp4", "x-avi"]),
        (["1/a/x.mp4", "2/a/x.mp4"], ["1-a-x", "2-a-x"]),
        (["a/x.mp4", "b/X.mp4"], ["a-x", "b-X"]),
        (["a/x.mp4", "b/x.mp4", "c/a-x.mp4"], ["a-x", "b-x", "a-x-mp4"]),
    ],
)
def test_equal_stems_get_readable_names(tmp_path, paths, names):
    assert list(output_names([tmp_path / path for path in paths]).values()) == names


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["r"], ["a/x.1", "b/x"]),
        (["r", "s"], ["r/a/x.1", "r/b/x", "s/a/x.1", "s/b/x"]),
        (["r/a", "s"], ["x.1", "a/x.1", "b/x"]),
    ],
)
def test_outputs_mirror_the_folders(tmp_path, folders, names):
    for folder in ("r", "s"):
        touch(tmp_path / folder, "a/x.1.mp4", "b/x.mp4")
    videos = find_videos([tmp_path / folder for folder in folders])
    assert list(output_names(videos).values()) == names


def test_outputs_mirror_relative_paths_of_a_manifest_and_no_others(tmp_path):
    paths = ["sub/x.mp4", "../y.mp4", "/videos/z.mp4"]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps({"path": path}) for path in paths))
    assert list(output_names(find_videos([tmp_path / "list.jsonl"])).values()) == ["sub/x", "y", "z"]


def test_two_videos_never_share_an_output_name(tmp_path):
    draw = random.Random(0)
    parts = ["x", "a", "x-mp4", "a-x", "X", "x-2"]
    for _ in range(200):
        paths = {
            tmp_path.joinpath(
                *draw.choices(parts, k=draw.randint(0, 2)), draw.choice(parts) + draw.choice([".mp4", ".avi", ""])
            )
            for _ in range(8)
        }
        videos = [VideoFile(path, draw.choice([None, tmp_path, path.parent])) for path in sorted(paths)]
        names = output_names(videos).values()
        assert len({name.casefold() for name in names}) == len(paths)


def test_names_of_many_equal_stems_are_found_in_linear_time(tmp_path):
    paths = [tmp_path / f"{number}" / "x.mp4" for number in range(3000)]
    started = time.process_time()
    names = output_names(paths)
    assert list(names.values())[:2] == ["0-x", "1-x"]
    assert time.process_time() - started < 5  # quadratic: minutes
