"""Real files, real processes."""

import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import av
import pytest
from PIL import Image

from tests.data.odd_video import odd_record
from vjepa_hub.data.checking import check_videos, write_check_lists
from vjepa_hub.data.manifests import read_manifest_entries
from vjepa_hub.data.records import LocalVideo, VideoRecord
from vjepa_hub.data.sources import open_source
from vjepa_hub.data.synthetic.shapes import SyntheticVideoSettings, make_synthetic_videos
from vjepa_hub.data.video import available_backends


@pytest.fixture(scope="module")
def good_video(write_video):
    return write_video("good.mp4", num_frames=12, g="6", bf="2")


@pytest.fixture
def copies(good_video, tmp_path):
    """Four good videos."""
    return [Path(shutil.copy(good_video, tmp_path / f"{name}.mp4")) for name in "abcd"]


def children_of(process_id: int) -> list[int]:
    """The living child processes."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("child processes are listed by /proc, which this system does not have")
    states = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, _, rest = file.read_text().partition(" (")
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        states.append((int(number), *rest.rpartition(") ")[2].split()[:2]))
    return [number for number, state, parent in states if int(parent) == process_id and state != "Z"]


def wait_until(is_so, *, seconds=60.0):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it has not come to that"
        time.sleep(0.02)


# --- good files and bad ones ---


def lying_avi(write_video, folder: Path) -> Path:
    """An AVI whose two headers declare 90 frames; it has 60."""
    data = bytearray(write_video("honest.avi", codec="mpeg4").read_bytes())
    for box, offset in ((b"avih", 16), (b"strh", 32)):
        place = data.index(box) + 8 + offset
        assert struct.unpack_from("<I", data, place) == (60,)
        struct.pack_into("<I", data, place, 90)
    (folder / "lying.avi").write_bytes(data)
    return folder / "lying.avi"


def packet_spans(video: Path) -> list[tuple[int, int]]:
    """Place and length in bytes of each frame."""
    av = pytest.importorskip("av")
    with av.open(str(video)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def overwritten(video: Path, folder: Path) -> Path:
    """A copy with a frame's bytes set to zero."""
    position, size = packet_spans(video)[4]
    data = bytearray(video.read_bytes())
    data[position : position + size] = bytes(size)
    (folder / "overwritten.mp4").write_bytes(data)
    return folder / "overwritten.mp4"


@pytest.fixture(scope="module")
def checked(good_video, write_video, write_audio, tmp_path_factory):
    """The results of one check of files of all kinds, by their names."""
    folder = tmp_path_factory.mktemp("checked")
    files = [
        good_video,
        write_video("single.mp4", num_frames=1),
        lying_avi(write_video, folder),
        Path(shutil.copy(good_video, folder / "renamed.avi")),
        overwritten(good_video, folder),
        write_audio("silence.mp4"),
        folder / "missing.mp4",
        folder,
    ]
    for name, content in {
        "truncated.mp4": good_video.read_bytes()[:-400],
        "empty.mp4": b"",
        "text.mp4": b"not a video " * 100,
    }.items():
        (folder / name).write_bytes(content)
        files.append(folder / name)
    summary = check_videos(files, folder / "report.jsonl", processes=2)
    assert [video.path for video in summary.videos] == [str(file) for file in files]
    return {Path(video.path).name: video for video in summary.videos}


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("truncated.mp4", "the file is truncated"),
        ("empty.mp4", "the file is empty"),
        ("silence.mp4", "it has no video stream"),
        ("text.mp4", "cannot open it"),
        ("overwritten.mp4", ""),
        ("missing.mp4", "there is no such file"),
        ("checked0", "it is a directory, not a file"),
    ],
)
def test_a_bad_file_is_told_with_its_cause_and_a_remedy(checked, name, cause):
    video = checked[name]
    assert not video.ok
    assert cause in video.cause
    assert video.remedy
    assert video.num_frames is None


def test_a_good_file_is_told_with_what_it_holds(checked, good_video):
    video = checked["good.mp4"]
    assert (video.ok, video.cause, video.warnings) == (True, None, ())
    assert (video.num_frames, video.declared_frames, video.fps) == (12, 12, 25)
    assert (video.height, video.width, video.duration) == (64, 96, pytest.approx(12 / 25))
    assert (video.size, video.mtime_ns) == (good_video.stat().st_size, good_video.stat().st_mtime_ns)
    assert video.seconds > 0


def test_the_content_counts_and_not_the_ending(checked):
    assert checked["renamed.avi"].ok
    assert checked["renamed.avi"].num_frames == 12


def test_a_header_that_lies_about_frames_that_are_all_read_is_a_warning(checked):
    video = checked["lying.avi"]
    assert video.ok
    assert (video.num_frames, video.declared_frames) == (60, 90)
    assert video.warnings == ("the header declares 90 frames, but there are 60",)


def test_a_single_frame_is_a_warning(checked):
    assert checked["single.mp4"].ok
    assert "a single frame" in checked["single.mp4"].warnings[0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("av1.mp4", {"codec": "libsvtav1"}),
        ("live.webm", {"codec": "libvpx-vp9", "container_options": {"live": "1"}}),
        ("theora.ogv", {"codec": "libtheora"}),
        ("long.mkv", {"times_ms": [0, 18_000_000, 36_000_000], "num_frames": 3}),
        ("one.mkv", {"num_frames": 1}),
        ("frames.gif", {}),
        ("8-pixels.mkv", {}),
    ],
)
def test_what_training_reads_is_good(write_video, tmp_path, name, options):
    if name in ("frames.gif", "8-pixels.mkv"):
        path = tmp_path / name
        frames = [Image.new("RGB", (8, 8), (60 * number,) * 3) for number in range(4)]
        if name.endswith("gif"):
            frames[0].save(path, save_all=True, append_images=frames[1:])
        else:
            with av.open(str(path), "w") as container:
                stream = container.add_stream("ffv1", rate=25)
                stream.width = stream.height = 8
                stream.pix_fmt = "bgr0"
                for frame in [*map(av.VideoFrame.from_image, frames), None]:
                    container.mux(stream.encode(frame))
    else:
        path = write_video(name, **{"num_frames": 12, **options})
    (found,) = check_videos([path], tmp_path / "report.jsonl", processes=1).videos
    assert found.ok, found.cause
    with VideoRecord(str(path), LocalVideo(path)).open() as reader:
        assert reader.num_frames == found.num_frames
        assert len(reader.read_frames(range(reader.num_frames))) == found.num_frames


def test_causes_are_counted_without_their_details(copies, tmp_path):
    for number, path in enumerate(copies[:2]):
        path.write_bytes(path.read_bytes()[: -300 - number])
    summary = check_videos(copies, tmp_path / "report.jsonl", processes=1)
    assert summary.bad[0].cause != summary.bad[1].cause
    ((cause, count),) = summary.count_causes().items()
    assert count == 2
    assert summary.bad[0].cause.startswith(cause)  # the numbers of the first, and no placeholder
    assert [video.path for video in summary.good] == [str(path) for path in copies[2:]]


def test_videos_of_tar_files_and_frame_folders_are_checked(good_video, tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    Image.new("RGB", (8, 8)).save(frames / "1.png")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(good_video, "x/good.mp4")
        tar.addfile(tarfile.TarInfo("x/empty.mp4"))
    sources = [open_source(tmp_path / "a.tar"), open_source(frames)]
    records = [source.record(index) for source in sources for index in range(len(source))]
    for num_before in (0, 3):
        summary = check_videos(records, tmp_path / "report.jsonl", processes=1)
        assert [(Path(video.path).name, video.ok) for video in summary.videos] == [
            ("good.mp4", True),
            ("empty.mp4", False),
            ("frames", True),
        ]
        assert summary.num_done_before == num_before


def test_frames_that_the_file_says_are_hidden_are_no_lie(write_video, tmp_path):
    data = bytearray(write_video("edited.mp4", g="12", bf="0").read_bytes())
    edit = data.index(b"elst") + 4
    assert struct.unpack_from(">I", data, edit + 4) == (1,)
    struct.pack_into(">I", data, edit + 8, 1200)  # milliseconds: the first 30 of 60 frames
    (tmp_path / "edited.mp4").write_bytes(data)
    (video,) = check_videos([tmp_path / "edited.mp4"], tmp_path / "report.jsonl").videos
    assert (video.num_frames, video.declared_frames, video.warnings) == (30, None, ())


def test_damage_that_decord_conceals_is_found_by_the_default_decoder(tmp_path):
    if "decord" not in available_backends():
        pytest.skip("decord, which does not notice it, is not installed")
    settings = SyntheticVideoSettings(num_videos=1)
    video = make_synthetic_videos(tmp_path, settings).with_name("video-00000.mp4")
    data = bytearray(video.read_bytes())
    position, size = packet_spans(video)[0]
    data[position + size // 2] ^= 0xFF
    (tmp_path / "damaged.mp4").write_bytes(data)
    (by_decord,) = check_videos([tmp_path / "damaged.mp4"], tmp_path / "decord.jsonl", backend="decord").videos
    (by_default,) = check_videos([tmp_path / "damaged.mp4"], tmp_path / "default.jsonl").videos
    assert (by_decord.ok, by_default.ok) == (True, False)


# --- decoders that hang or die ---


def test_a_file_on_which_the_decoder_hangs_is_bad_and_the_check_goes_on(copies, tmp_path):
    files, before = [copies[0], odd_record("time.sleep(600)"), *copies[1:]], children_of(os.getpid())
    summary = check_videos(files, tmp_path / "report.jsonl", item_timeout=3, processes=1)
    assert [video.ok for video in summary.videos] == [True, False, True, True, True]
    assert summary.bad[0].cause == "the decoder hangs (no new frame for 3 s)"
    assert 3 <= summary.bad[0].seconds < 30
    assert children_of(os.getpid()) == before


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("os.kill(os.getpid(), 11)", "the decoder crashed (SIGSEGV)"),
        ("os.kill(os.getpid(), 9)", "the decoder was killed (SIGKILL"),
        ("{}['it']", "it cannot be read (KeyError: 'it')"),
    ],
    ids=["crash", "kill", "error"],
)
def test_a_file_on_which_the_decoder_dies_is_bad_and_the_check_goes_on(copies, tmp_path, code, cause):
    files = [copies[0], odd_record(code), copies[1]]
    summary = check_videos(files, tmp_path / "report.jsonl", processes=1)
    assert [video.ok for video in summary.videos] == [True, False, True]
    assert summary.bad[0].cause.startswith(cause)


def test_a_child_that_cannot_start_is_an_error_and_no_verdict_on_files(copies, tmp_path, monkeypatch):
    (tmp_path / "python").write_text("#!/bin/sh\necho no such module >&2\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(RuntimeError, match=r"exit code 1 \(no such module\)"):
        check_videos(copies, tmp_path / "report.jsonl")
    assert (tmp_path / "report.jsonl").read_text() == ""


def test_children_import_neither_torch_nor_transformers(tmp_path):
    record = odd_record("raise VideoDecodingError('', str({'torch', 'transformers', 'numpy'} & set(sys.modules)), '')")
    (video,) = check_videos([record], tmp_path / "report.jsonl").videos
    assert video.cause == "{'numpy'}"


def test_children_end_with_a_parent_that_is_killed_even_if_they_hang(tmp_path):
    record = odd_record(f"Path({str(tmp_path / 'opened')!r}).touch(); time.sleep(600)")
    code = (
        "from vjepa_hub.data.checking import check_videos\nfrom vjepa_hub.data.records import VideoRecord\n"
        f"from tests.data.odd_video import OddVideo\ncheck_videos([{record!r}], 'report.jsonl', item_timeout=600)"
    )
    path = os.pathsep.join(sys.path)
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path})
    wait_until(lambda: (tmp_path / "opened").exists())
    (child,) = children_of(parent.pid)
    parent.kill()
    parent.wait()
    wait_until(lambda: not Path(f"/proc/{child}").exists())


# --- the report ---


def paths_of(report: Path) -> list[str]:
    return [json.loads(line)["path"] for line in report.read_text().splitlines()]


def test_a_second_run_checks_only_what_is_new_or_has_changed(copies, tmp_path):
    report, calls = tmp_path / "report.jsonl", []
    first = check_videos(copies[:3], report)
    assert (first.num_done_before, len(paths_of(report))) == (0, 3)
    with copies[1].open("ab") as file:  # another size
        file.write(bytes(8))
    os.utime(copies[1], ns=(0, first.videos[1].mtime_ns))
    os.utime(copies[2], ns=(0, 0))  # another time of change
    copies[3].write_bytes(b"no video")
    second = check_videos(copies, report, processes=1, progress=lambda *shown: calls.append(shown))
    assert second.num_done_before == 1
    assert paths_of(report)[3:] == [str(path) for path in copies[1:]]
    assert calls == [*(("checking", done, 4) for done in (1, 2, 3)), ("checking, 1 bad", 4, 4)]
    assert second.videos[0] == first.videos[0]
    assert check_videos(copies, report).num_done_before == 4


def test_results_with_other_backends_are_not_taken_over_and_again_checks_all(copies, tmp_path):
    report = tmp_path / "report.jsonl"
    check_videos(copies[:1], report, backend="pyav")
    assert check_videos(copies[:1], report).num_done_before == 0
    again = check_videos(copies[:1], report, again=True)
    assert again.num_done_before == 0


def test_an_interrupted_run_goes_on_where_it_stopped(copies, tmp_path):
    report, before = tmp_path / "report.jsonl", children_of(os.getpid())

    def interrupt(what, done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_videos(copies, report, processes=2, progress=interrupt)
    assert children_of(os.getpid()) == before
    with report.open("a") as file:
        file.write('{"path": "half a li')
    summary = check_videos(copies, report)
    assert summary.num_done_before == 2
    assert len(summary.good) == 4
    assert check_videos(copies, report).num_done_before == 4


def test_a_video_that_is_given_twice_is_checked_once(copies, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    summary = check_videos(["a.mp4", copies[0], "./b.mp4"], tmp_path / "report.jsonl")
    assert [video.path for video in summary.videos] == [str(path) for path in copies[:2]]


def test_a_file_that_is_no_report_is_never_appended_to(copies, good_video, tmp_path):
    with pytest.raises(ValueError, match="is not the report of a check"):
        check_videos(copies, copies[3], again=True)
    assert copies[3].read_bytes() == good_video.read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"item_timeout": 0}, "item_timeout is 0, but has to be above 0"),
        ({"processes": 0}, "processes is 0"),
        ({"backend": "decorb"}, "'decorb' cannot be used"),
    ],
)
def test_options_out_of_range_are_refused(copies, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        check_videos(copies, tmp_path / "report.jsonl", **options)


# --- the lists ---

MANIFESTS = {
    "plain.txt": "{a}\n\n{b}\n{c d}\n",
    "release.csv": "{a} 3\n{b} 1\n{c d} 2\n",
    "table.csv": 'label,path,note\n3,{a},"x, y"\n1,{b},\n2,{c d},z\n',
    "lines.jsonl": '{"path": "{a}", "label": 3}\n{"path": "{b}", "label": 1}\n{"video": "{c d}", "label": 2}\n',
}


@pytest.fixture(scope="module")
def verdicts(good_video, tmp_path_factory):
    """A folder with the good videos `a.mp4` and `c d.mp4` and the bad `b.mp4`, and the summary of their check."""
    data = tmp_path_factory.mktemp("data")
    for name in ("a", "c d"):
        shutil.copy(good_video, data / f"{name}.mp4")
    (data / "b.mp4").write_bytes(b"")
    files = [data / f"{name}.mp4" for name in ("a", "b", "c d")]
    return data, check_videos(files, data / "report.jsonl")


def filled(name: str, folder: str = "") -> str:
    text = MANIFESTS[name]
    for stem in ("a", "b", "c d"):
        text = text.replace(f"{{{stem}}}", f"{folder}{stem}.mp4")
    return text


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize("is_absolute", [False, True])
def test_a_list_of_good_videos_has_the_form_and_labels_of_its_manifest(verdicts, tmp_path, name, is_absolute):
    data, summary = verdicts
    (data / name).write_text(filled(name, f"{data}/" if is_absolute else ""))
    good, _ = write_check_lists(summary, tmp_path / "lists", manifests=[data / name])
    assert good == tmp_path / "lists" / f"good-{name}"
    kept = [entry for entry in read_manifest_entries(data / name) if "b.mp4" not in entry.path]
    found = read_manifest_entries(good)
    assert [entry.label for entry in found] == [entry.label for entry in kept]
    assert [entry.path for entry in found] == [f"{data}/a.mp4", f"{data}/c d.mp4"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_beside_its_manifest_the_lines_of_a_list_are_unchanged(verdicts, name):
    data, summary = verdicts
    (data / name).write_text(filled(name))
    good, _ = write_check_lists(summary, data, manifests=[data / name])
    expected = [line for line in filled(name).splitlines() if line and "b.mp4" not in line]
    assert good.read_text().splitlines() == expected


def test_other_videos_and_bad_ones_have_lists_that_are_manifests(verdicts, tmp_path):
    data, summary = verdicts
    good, bad = write_check_lists(summary, tmp_path / "lists", others=[data / "a.mp4", data / "b.mp4"])
    assert [entry.path for entry in read_manifest_entries(good)] == [f"{data}/a.mp4"]
    assert [entry.path for entry in read_manifest_entries(bad)] == [f"{data}/b.mp4"]
    assert json.loads(bad.read_text())["cause"] == "the file is empty (0 bytes)"


def test_manifests_of_one_name_are_refused(verdicts, tmp_path):
    _, summary = verdicts
    with pytest.raises(ValueError, match=r"2 manifests are called train\.csv"):
        write_check_lists(summary, tmp_path, manifests=["x/train.csv", "y/train.csv"])
