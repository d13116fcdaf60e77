import io
import tarfile

import pytest

from vjepa_hub.data import records
from vjepa_hub.data.records import Unreadable
from vjepa_hub.data.shards import TarShards, TarSource, expand_braces, expand_shards, is_shard_name
from vjepa_hub.data.video import VideoDecodingError


def write_tar(path, *members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def both(path, **options):
    """The records by number and as a stream: `(name, label, bytes)`."""
    source, shards = TarSource(path, **options), TarShards(path, **options)
    numbered = [source.record(index) for index in range(len(source))]
    streamed = [record for shard in range(shards.num_shards) for record in shards.records(shard, pass_number=0)]
    return [[(record.name, record.label, record.content.read()) for record in part] for part in (numbered, streamed)]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("s-{008..011}.tar", ["s-008.tar", "s-009.tar", "s-010.tar", "s-011.tar"]),
        ("s-{8..11}.tar", ["s-8.tar", "s-9.tar", "s-10.tar", "s-11.tar"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("{x}.tar", ["{x}.tar"]),
    ],
)
def test_braces_are_written_out(pattern, names):
    assert expand_braces(pattern) == names


def test_range_that_ends_before_it_begins_is_an_error():
    with pytest.raises(ValueError, match=r"the range \{3\.\.1\} in 's-\{3\.\.1\}\.tar' ends before"):
        expand_braces("s-{3..1}.tar")


def test_shards_are_listed_once_in_order_and_missing_ones_named(tmp_path):
    paths = [str(write_tar(tmp_path / f"s-{number}.tar")) for number in range(3)]
    assert expand_shards([tmp_path / "s-{1..2}.tar", tmp_path / "s-*.tar"]) == [paths[1], paths[2], paths[0]]
    assert expand_shards(tmp_path / "s-[01].tar") == paths[:2]
    with pytest.raises(FileNotFoundError, match=r"2 of 5 shards are not there, the first of them .*s-3\.tar"):
        expand_shards(tmp_path / "s-{0..4}.tar")
    with pytest.raises(FileNotFoundError, match="no shard fits the pattern"):
        expand_shards(tmp_path / "t-*.tar")
    with pytest.raises(ValueError, match="no shard given"):
        expand_shards([])


def test_addresses_are_expanded_by_their_file_system():
    fsspec = pytest.importorskip("fsspec", reason="comes with torch")
    for number in range(2):
        fsspec.filesystem("memory").pipe(f"/expand/s-{number}.tar", b"x")
    assert [address.replace(":///", "://") for address in expand_shards("memory://expand/s-?.tar")] == [
        "memory://expand/s-0.tar",
        "memory://expand/s-1.tar",
    ]
    assert expand_shards("https://host/s-{0..1}.tar?key=a") == [f"https://host/s-{n}.tar?key=a" for n in (0, 1)]


@pytest.mark.parametrize(
    ("name", "is_shard"),
    [("a.tar", True), ("A.TAR", True), ("s-{0..1}.tar.gz", True), ("http://h/a.tar?x=1.mp4", True), ("a.mp4", False)],
)
def test_tar_files_are_told_by_their_ending(name, is_shard):
    assert is_shard_name(name) == is_shard


@pytest.mark.parametrize(
    "members",
    [
        [("0.mp4", b"zero"), ("0.cls", b"5"), ("1.mp4", b"one"), ("1.cls", b"6")],
        [("0.cls", b"5"), ("0.mp4", b"zero"), ("1.cls", b" 6\n"), ("1.mp4", b"one")],
        [("0.cls", b"5"), ("0.json", b"{}"), ("0.mp4", b"zero"), ("1.mp4", b"one"), ("1.txt", b""), ("1.cls", b"6")],
    ],
)
def test_label_is_that_of_the_same_stem_before_or_behind_the_video(tmp_path, members):
    path = write_tar(tmp_path / "a.tar", *members)
    numbered, streamed = both(path)
    assert numbered == streamed == [(f"{path}/0.mp4", 5, b"zero"), (f"{path}/1.mp4", 6, b"one")]
    assert TarSource(path).has_labels
    numbered, streamed = both(path, with_labels=False)
    assert [label for _, label, _ in numbered + streamed] == [None] * 4


def test_stem_ends_at_the_first_dot_or_at_the_last(tmp_path):
    members = [("d.1/v1.0.mp4", b"a"), ("d.1/v1.0.cls", b"1"), ("d.1/x.video.webm", b"b"), ("d.1/x.cls", b"2")]
    numbered, streamed = both(write_tar(tmp_path / "a.tar", *members))
    assert [(label, data) for _, label, data in numbered] == [(1, b"a"), (2, b"b")]
    assert numbered == streamed


def test_what_is_no_video_or_hidden_is_passed_over(tmp_path):
    path = write_tar(tmp_path / "a.tar", ("a.jpg", b"x"), ("._a.mp4", b"x"), ("d/.b.mp4", b"x"), ("c.MKV", b"c"))
    with tarfile.open(path, "a") as tar:
        folder = tarfile.TarInfo("folder.mp4")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    numbered, streamed = both(path)
    assert numbered == streamed == [(f"{path}/c.MKV", None, b"c")]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("0.mp4", b"x"), ("0.cls", b"dog")], r"a\.tar/0\.cls has the label 'dog'"),
        ([("0.mp4", b"x"), ("0.cls", b"-1")], "has the label '-1'"),
        ([("0.mp4", b"x"), ("0.cls", b"1"), ("1.mp4", b"x")], r"1\.mp4 .*has"),
    ],
)
def test_labels_that_are_no_numbers_or_missing_are_errors_unless_none_are_wanted(tmp_path, members, message):
    path = write_tar(tmp_path / "a.tar", *members)
    with pytest.raises(ValueError, match=message):
        TarSource(path)
    with pytest.raises(ValueError, match=message):
        list(TarShards(path).records(0, pass_number=0))
    numbered, streamed = both(path, with_labels=False)
    assert numbered == streamed


def test_compressed_shards_are_streamed_but_not_read_by_number(tmp_path):
    path = write_tar(tmp_path / "a.tar.gz", ("0.mp4", b"zero"), mode="w:gz")
    (record,) = TarShards(path).records(0, pass_number=0)
    assert record.content.read() == b"zero"
    with pytest.raises(ValueError, match=r"a\.tar\.gz is compressed"):
        TarSource(path)
    path.write_bytes(path.read_bytes()[:-30])
    assert len(list(TarShards(path).records(0, pass_number=0))) == TarShards(path).num_records(0, pass_number=0) == 1


def test_shards_without_videos_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no video in 1 shards .*looked for members that end in .*\.mp4"):
        TarSource(write_tar(tmp_path / "a.tar", ("a.jpg", b"x")))


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_shard_that_breaks_off_gives_what_is_before_and_one_that_cannot_be_read(tmp_path, place, caplog):
    whole = write_tar(tmp_path / "a.tar", *[(f"{number}.mp4", bytes([number]) * 3000) for number in range(3)])
    with tarfile.open(whole) as tar:
        second = tar.getmembers()[1]
    whole.write_bytes(whole.read_bytes()[: second.offset_data + int(place * second.size)])
    streamed = list(TarShards(whole).records(0, pass_number=0))
    source = TarSource(whole)
    assert [record.name for record in streamed] == [source.record(index).name for index in range(2)]
    assert isinstance(streamed[1].content, Unreadable)
    assert TarShards(whole).num_records(0, pass_number=0) == 2
    assert caplog.text.count("breaks off after 2 files") == 3
    with pytest.raises(VideoDecodingError, match="the shard is truncated: it holds"):
        source.record(1).content.read()


def test_shard_that_ends_between_two_videos_or_is_damaged_there_is_warned_of(tmp_path, caplog):
    whole = write_tar(tmp_path / "a.tar", *[(f"{number}.mp4", b"x" * 3000) for number in range(3)])
    list(TarShards(whole).records(0, pass_number=0))
    assert caplog.text == ""
    data = bytearray(whole.read_bytes())
    with tarfile.open(whole) as tar:
        third = tar.getmembers()[2].offset
    whole.write_bytes(data[:third])
    assert len(TarSource(whole)) == len(list(TarShards(whole).records(0, pass_number=0))) == 2
    assert caplog.text.count("has no end mark after 2 files") == 2


def names_and_causes(path):
    """Of the records by number and of those as a stream, which have to be as many as are counted: name and cause."""
    source, shards = TarSource(path), TarShards(path)
    numbered = [source.record(index) for index in range(len(source))]
    streamed = list(shards.records(0, pass_number=0))
    assert shards.num_records(0, pass_number=0) == len(streamed)
    return [
        [(record.name, getattr(record.content, "cause", None)) for record in part] for part in (numbered, streamed)
    ]


def test_videos_behind_a_damaged_header_are_read_and_the_damage_counts_as_a_video(tmp_path):
    path = write_tar(tmp_path / "a.tar", *[(f"{number}.mp4", b"x" * 3000) for number in range(4)])
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        second = tar.getmembers()[1].offset
    data[second : second + 512] = b"\xff" * 512
    path.write_bytes(data)
    numbered, streamed = names_and_causes(path)
    assert numbered == streamed
    assert [name for name, _ in numbered] == [
        f"{path}/0.mp4",
        f"{path} at byte {second}",
        f"{path}/2.mp4",
        f"{path}/3.mp4",
    ]
    assert [cause is None for _, cause in numbered] == [True, False, True, True]
    assert f"damaged at its byte {second}" in numbered[1][1]


def test_all_videos_of_joined_shards_are_read_each_with_its_own_label(tmp_path):
    first = write_tar(tmp_path / "a.tar", ("0.mp4", b"a"), ("0.cls", b"5"))
    second = write_tar(tmp_path / "b.tar", ("0.mp4", b"b"), ("0.cls", b"6"), ("1.mp4", b"c"), ("1.cls", b"7"))
    joined = tmp_path / "joined.tar"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    numbered, streamed = both(joined)
    assert numbered == streamed
    assert [(label, data) for _, label, data in numbered] == [(5, b"a"), (6, b"b"), (7, b"c")]


@pytest.mark.parametrize(
    ("members", "labels"),
    [
        ("x.a.mp4 x.b.mp4 x.cls=1 y.mp4 y.cls=2", [1, 1, 2]),
        ("x.cls=1 x.a.mp4 x.b.mp4 y.cls=2 y.mp4", [1, 1, 2]),
        ("x.1.cls=1 x.cls=9 x.1.mp4 x.2.cls=2 x.2.mp4 x.3.mp4", [1, 2, 9]),
    ],
)
def test_members_with_several_dots_are_labelled_alike_in_both_readers(tmp_path, members, labels):
    pairs = [member.partition("=")[::2] for member in members.split()]
    numbered, streamed = both(write_tar(tmp_path / "a.tar", *[(name, label.encode()) for name, label in pairs]))
    assert numbered == streamed
    assert [label for _, label, _ in numbered] == labels


def test_member_that_states_more_bytes_than_the_shard_has_is_its_own_failure(tmp_path):
    info, path = tarfile.TarInfo("huge.mp4"), write_tar(tmp_path / "a.tar", ("0.mp4", b"zero"))
    info.size = 2**40
    with path.open("r+b") as file:
        file.seek(1024)
        file.write(info.tobuf() + b"x" * 3000)
    source, shards = TarSource(path), TarShards(path)
    numbered = [source.record(index) for index in range(len(source))]
    for good, huge in (numbered, shards.records(0, pass_number=0)):
        assert good.content.read() == b"zero"
        with pytest.raises(VideoDecodingError, match=r"shard is truncated|bytes or more"), huge.open():
            pass


def test_video_larger_than_half_of_the_memory_is_not_read_from_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "machine_memory", lambda: 12_000)
    path = write_tar(tmp_path / "a.tar", ("0.mp4", b"x" * 7000), ("1.mp4", b"x" * 5000))
    source = TarSource(path)
    for large, small in ([source.record(0), source.record(1)], TarShards(path).records(0, pass_number=0)):
        with pytest.raises(VideoDecodingError, match="7,000 bytes or more"), large.open():
            pass
        assert len(small.content.read()) == 5000


def test_shard_that_is_no_tar_file_counts_as_a_video_that_cannot_be_read(tmp_path, caplog):
    good = write_tar(tmp_path / "b.tar", ("0.mp4", b"x"), ("0.cls", b"3"))
    (tmp_path / "a.tar").write_bytes(b"<html>" * 1000)
    source = TarSource([tmp_path / "a.tar", good])
    broken, readable = source.record(0), source.record(1)
    (streamed,) = TarShards(tmp_path / "a.tar").records(0, pass_number=0)
    assert TarShards(tmp_path / "a.tar").num_records(0, pass_number=0) == 1
    assert broken.name == streamed.name == str(tmp_path / "a.tar")
    assert readable.label == 3
    assert "videos may be missing" in caplog.text
    for record in (broken, streamed):
        with pytest.raises(VideoDecodingError, match="the shard is no tar file"), record.open():
            pass


def test_shard_that_went_missing_counts_as_a_video_that_cannot_be_read(tmp_path):
    shards = TarShards(write_tar(tmp_path / "a.tar", ("0.mp4", b"x")))
    (tmp_path / "a.tar").unlink()
    (record,) = shards.records(0, pass_number=0)
    assert shards.num_records(0, pass_number=0) == 1
    with pytest.raises(VideoDecodingError, match="FileNotFoundError"), record.open():
        pass
