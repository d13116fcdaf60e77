import os
from pathlib import Path

import pytest

from vjepa_hub.data.manifests import (
    ManifestEntry,
    parse_label,
    path_line,
    read_manifest_entries,
    select_entries,
    videos_below,
)


@pytest.mark.parametrize(
    ("name", "text", "entries"),
    [
        ("list.txt", "a b.mp4\n\n  c.mp4  \r\n", [("a b.mp4", None, 1), ("c.mp4", None, 3)]),
        ("list.txt", "a.mp4 0\nb c.mp4 1\nd 12\n", [("a.mp4", "0", 1), ("b c.mp4", "1", 2), ("d 12", None, 3)]),
        (
            "list.jsonl",
            '{"path": "a\u2028b.mp4"}\n{"path": "c\x85.mp4"}\n',
            [("a\u2028b.mp4", None, 1), ("c\x85.mp4", None, 2)],
        ),
        ("list.csv", "my clip 1.mp4 12\nc.mp4  0\n", [("my clip 1.mp4", "12", 1), ("c.mp4", "0", 2)]),
        ("list.csv", '"a b.mp4" 3\n', [("a b.mp4", "3", 1)]),
        ("list.csv", 'label,path\n3,"a, b.mp4"\n,c d.mp4\n', [("a, b.mp4", "3", 2), ("c d.mp4", None, 3)]),
        ("list.csv", "path\na b.mp4\n", [("a b.mp4", None, 2)]),
        ("list.jsonl", '{"path": "a", "label": 1}\n{"video": "b"}\n', [("a", 1, 1), ("b", None, 2)]),
        ("list.csv", "s3://bucket/a b.mp4 7\n", [("s3://bucket/a b.mp4", "7", 1)]),
    ],
)
def test_paths_and_labels_are_read_as_they_are_written(tmp_path, name, text, entries):
    (tmp_path / name).write_text(text)
    assert read_manifest_entries(tmp_path / name) == [ManifestEntry(*entry) for entry in entries]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.csv", "ok.mp4 1\nmy clip.mp4\n", "line 2 .* without a label"),
        ("list.csv", "path,label\n,3\n", "line 2 .* nothing in its column 'path'"),
        ("list.jsonl", '{"path": "a"}\n{path}', "line 2 .* is no JSON"),
        ("list.jsonl", '{"file": "a"}', "line 1 .* 'path' or 'video'"),
        ("list.yaml", "a", "ends in '.yaml'"),
        ("list.txt", "", "names no video"),
    ],
)
def test_line_that_cannot_be_understood_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_manifest_entries(tmp_path / name)


@pytest.mark.parametrize(("label", "number"), [("3", 3), (" 0 ", 0), (7, 7), ("012", 12)])
def test_label_is_the_number_of_a_class(label, number):
    assert parse_label(label, "line 1") == number


@pytest.mark.parametrize("label", ["dog", "-1", -1, "3.0", 3.0, True, "", None, "²", "٣"])
def test_label_that_is_no_number_of_a_class_is_an_error_that_says_where(label):
    with pytest.raises(ValueError, match=r"line 9 has .*, but a label is the number of a class"):
        parse_label(label, "line 9")


ODD_NAMES = [
    "a\u2028b.mp4",
    "a\x85b.mp4",
    "a\nb.mp4",
    "a\r.mp4",
    " leading.mp4",
    "a.mp4 3.mp4",
    "a.mp4 3",
    '"quoted".mp4',
    "comma, and 'quote'.mp4",
    "caf\udce9.mp4",
    "#x.mp4",
    "trailing ",
]


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "table.csv", "list.jsonl"])
def test_any_legal_file_name_survives_a_list(tmp_path, name):
    first = {
        "list.csv": "old.mp4 7\n",
        "table.csv": "label,path\n7,old.mp4\n",
        "list.jsonl": '{"video": "old.mp4", "label": 7}',
    }
    for odd in ODD_NAMES:
        if name == "table.csv" and not odd.isascii():
            odd = odd.encode("ascii", "ignore").decode()  # CSV has no escapes for what is not UTF-8
        (tmp_path / name).write_text(first.get(name, "old.mp4\n"))
        text = select_entries(tmp_path / name, lambda path, odd=odd: odd)
        (tmp_path / name).write_bytes(text.encode())
        (entry,) = read_manifest_entries(tmp_path / name)
        assert (entry.path, str(entry.label)) == (odd, "None" if name == "list.txt" else "7")


def test_lines_of_paths_read_back(tmp_path):
    (tmp_path / "good.txt").write_text("".join(f"{path_line(name)}\n" for name in ODD_NAMES))
    assert [entry.path for entry in read_manifest_entries(tmp_path / "good.txt")] == ODD_NAMES


def test_files_that_are_no_videos_are_counted_by_their_endings(tmp_path, caplog):
    for name in ("a.mp4", "b.gif", "c.txt", "d/e.txt", "d/f", ".hidden.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in videos_below(tmp_path)] == ["a.mp4", "b.gif"]
    assert "2 .txt, 1 no ending" in caplog.text


def test_videos_below_a_folder_come_in_order_without_what_is_hidden(tmp_path):
    for name in ("b/2.MP4", "b/10.webm", "a.mkv", "b/notes.txt", ".git/x.mp4", "b/._2.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert videos_below(tmp_path) == [Path(tmp_path, name) for name in ("a.mkv", "b/10.webm", "b/2.MP4")]


def test_whatever_a_folder_holds_and_is_not_taken_is_said(tmp_path, caplog):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/x.mp4", "a/b/y.gif", "a/notes.txt", "a/photo.webp", "a/.hidden.mp4", "a/raw"):
        (tmp_path / name).touch()
    (tmp_path / "a" / "link").symlink_to(tmp_path / "a" / "b")
    assert videos_below(tmp_path) == [tmp_path / "a" / "b" / "y.gif", tmp_path / "a" / "x.mp4"]
    for part in ("1 .txt", "1 .webp", "1 no ending", "links to folders are not followed; left out: link"):
        assert part in caplog.text


def test_folder_that_cannot_be_listed_is_said(tmp_path, monkeypatch, caplog):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.mp4").touch()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert videos_below(tmp_path) == [tmp_path / "a.mp4"]
    assert f"the folder {tmp_path / 'closed'} is left out: it cannot be listed (Permission denied)" in caplog.text
