"""Files that are whole or not there, through kills, full disks and several writers."""

import errno
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vjepa_hub.core.files import (
    WriteError,
    describe_output_error,
    folder_written_whole,
    put_in_place,
    write_whole,
    writing,
    written_whole,
)

WRITES_AND_WAITS = """
import sys, time
from vjepa_hub.core.files import written_whole

with written_whole(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("now", flush=True)
    time.sleep(600)
"""


def start_writing(path: Path) -> subprocess.Popen:
    """A process that has written half of a file."""
    child = subprocess.Popen([sys.executable, "-c", WRITES_AND_WAITS, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "now\n"
    return child


def stop(child: subprocess.Popen) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def umask():
    """A function that sets the umask until the test ends."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("content", [b"\x00\xff", "a\nb\r\n", "caf\u00e9 \udcff"])
def test_content_is_written_as_it_is_and_nothing_else_is_left(tmp_path, content):
    file = tmp_path / "new" / "results.json"
    assert write_whole(file, content) == file
    assert file.read_bytes() == (content if isinstance(content, bytes) else os.fsencode(content))
    assert files_below(tmp_path) == ["new/results.json"]


@pytest.mark.parametrize(
    "name", ["video.mp4", "weights.pth.tar", "\u6620" * 80 + ".safetensors", ".hidden", "a\nb.csv"]
)
def test_file_has_its_own_name_while_it_is_written_and_is_not_there_yet(tmp_path, name):
    with written_whole(tmp_path / name) as temporary:
        temporary.write_text("new")
        assert temporary.name == name
        assert not (tmp_path / name).exists()
        assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    assert files_below(tmp_path) == [name]


def write_half(file: Path, error: BaseException) -> None:
    with written_whole(file) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize(
    "error", [ValueError("bad frame"), KeyboardInterrupt(), FileNotFoundError(2, "gone", "x.mp4")]
)
def test_failing_writer_leaves_the_old_file_and_its_own_error(tmp_path, error):
    file = write_whole(tmp_path / "clip.mp4", "old")
    with pytest.raises(type(error)) as caught:
        write_half(file, error)
    assert caught.value is error
    assert (file.read_text(), files_below(tmp_path)) == ("old", ["clip.mp4"])


def test_killed_writer_leaves_the_old_file_and_the_next_process_removes_its_leftovers(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("old")
    stop(start_writing(file))
    assert file.read_text() == "old"
    assert len(files_below(tmp_path)) == 2
    write_whole(tmp_path / "other.json", "{}")
    assert files_below(tmp_path) == ["metrics.csv", "other.json"]


def test_unfinished_file_of_a_living_process_is_left_alone(tmp_path):
    child = start_writing(tmp_path / "metrics.csv")
    try:
        write_whole(tmp_path / "metrics.csv", "ours")
        assert len(files_below(tmp_path)) == 2
    finally:
        stop(child)
    assert (tmp_path / "metrics.csv").read_text() == "ours"


@pytest.mark.parametrize(("days", "names"), [(0, 2), (2, 1)])
def test_leftover_of_another_machine_is_removed_after_a_day_of_rest(tmp_path, days, names):
    leftover = tmp_path / ".metrics.00000000-1-0.partial"
    leftover.mkdir()
    (leftover / "metrics.csv").write_text("half")
    for path in (leftover / "metrics.csv", leftover):
        seconds = path.stat().st_mtime - days * 86_400
        os.utime(path, (seconds, seconds))
    write_whole(tmp_path / "results.json", "{}")
    assert len(files_below(tmp_path)) == names


def test_hidden_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / ".cache.partial").mkdir()
    write_whole(tmp_path / ".cache.partial" / "theirs", "kept")
    write_whole(tmp_path / "results.json", "{}")
    assert files_below(tmp_path) == [".cache.partial/theirs", "results.json"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_mode_is_that_of_an_ordinary_new_file(tmp_path, umask, mask, mode):
    umask(mask)
    with written_whole(tmp_path / "weights") as temporary:
        temporary.touch(mode=0o600)  # as safetensors does
    with folder_written_whole(tmp_path / "model", tmp_path / "making") as folder:
        (folder / "weights").touch(mode=0o600)
    for file in (tmp_path / "weights", tmp_path / "model" / "weights"):
        assert stat.S_IMODE(file.stat().st_mode) == mode


def test_files_beside_the_written_one_come_along(tmp_path):
    with written_whole(tmp_path / "model.onnx") as temporary:
        temporary.write_text("refers to model.onnx.data")
        temporary.with_name("model.onnx.data").write_text("weights")
    assert files_below(tmp_path) == ["model.onnx", "model.onnx.data"]


def test_first_of_several_writers_wins_where_nothing_is_to_be_replaced(tmp_path):
    file = tmp_path / "tokens.npy"
    with written_whole(file, replace=False) as second:
        second.write_text("second")
        with written_whole(file, replace=False) as first:
            first.write_text("first")
    assert (file.read_text(), files_below(tmp_path)) == ("first", ["tokens.npy"])


def test_full_disk_is_named_with_the_path_and_a_remedy(tmp_path):
    file = write_whole(tmp_path / "results.json", "old")
    message = r"results\.json .*No space left.*make room"
    with (
        pytest.raises(WriteError, match=message) as caught,
        written_whole(file),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"new")
    assert caught.value.errno == errno.ENOSPC
    assert (file.read_text(), files_below(tmp_path)) == ("old", ["results.json"])


@pytest.fixture
def small_files():
    """Files of at most 64 kB, as a full disk, until the test ends."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "write",
    [
        lambda file: file.write_bytes(bytes(100_000)),
        lambda file: torch.save({"a": torch.zeros(100_000)}, file),
        lambda file: save_file({"a": torch.zeros(100_000)}, file),
        lambda file: shutil.copy(torch.__file__, file),
    ],
)
def test_error_of_any_library_that_writes_is_named_with_the_path_and_a_remedy(tmp_path, small_files, write):
    with pytest.raises(WriteError, match=r"weights .*File too large.*ulimit") as caught, writing(tmp_path / "weights"):
        write(tmp_path / "weights")
    assert caught.value.errno == errno.EFBIG
    assert describe_output_error(caught.value) == str(caught.value)


def test_disk_without_inodes_is_told_from_a_full_one(tmp_path, monkeypatch):
    class Full:
        f_files, f_favail = 1000, 0

    monkeypatch.setattr(os, "statvfs", lambda place: Full)
    error = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(WriteError, match=r"results.*inodes"), writing(tmp_path / "results"):
        raise error
    assert "inodes" in describe_output_error(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("size mismatch"), FileNotFoundError(2, "gone", "/x.mp4"), OSError("odd")]
)
def test_error_about_something_that_is_read_passes_as_it_is(tmp_path, error):
    with pytest.raises(type(error)) as caught, writing(tmp_path / "out"):
        raise error
    assert caught.value is error
    assert not isinstance(error, OSError) or describe_output_error(error) is None


def test_read_only_file_system_is_named_with_a_remedy(tmp_path):
    with pytest.raises(WriteError, match=r"out/b\.csv .*Read-only.*another file system"), writing(tmp_path / "out"):
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "out" / "b.csv"))


def test_folder_that_is_a_file_is_named_with_a_remedy(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"file/results\.json .*name a folder"):
        write_whole(tmp_path / "file" / "results.json", "{}")


def test_folder_that_goes_away_meanwhile_is_named_with_a_remedy(tmp_path):
    output = tmp_path / "output"
    with pytest.raises(WriteError, match=r"results\.json .*name a folder"), written_whole(output / "results.json"):
        shutil.rmtree(output)


def write_folder(folder: Path, text: str, *, fails: bool = False) -> None:
    with folder_written_whole(folder, folder.with_name("making")) as temporary:
        (temporary / "weights").write_text(text)
        assert not (folder / "weights").exists() or (folder / "weights").read_text() != text
        if fails:
            raise KeyboardInterrupt


def test_folder_appears_whole_and_replaces_the_old_one(tmp_path):
    (tmp_path / "making" / "killed").mkdir(parents=True)
    write_folder(tmp_path / "checkpoint-5", "old")
    assert files_below(tmp_path) == ["checkpoint-5/weights"]
    write_folder(tmp_path / "checkpoint-5", "new")
    assert (tmp_path / "checkpoint-5" / "weights").read_text() == "new"
    assert not (tmp_path / "making").exists()


def test_interrupted_folder_leaves_the_old_one(tmp_path):
    write_folder(tmp_path / "checkpoint-5", "old")
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "checkpoint-5", "broken", fails=True)
    assert (tmp_path / "checkpoint-5" / "weights").read_text() == "old"


def test_only_the_writer_of_several_processes_renames(tmp_path):
    waits: list[bool] = []
    with folder_written_whole(
        tmp_path / "model", tmp_path / "making", is_writer=False, wait=lambda: waits.append(True)
    ) as temporary:
        assert temporary == tmp_path / "making" / "model"
    assert (len(waits), list(tmp_path.iterdir())) == (3, [])


def test_finished_file_is_moved_to_its_place(tmp_path):
    incomplete = write_whole(tmp_path / "weights.incomplete", "all")
    put_in_place(incomplete, tmp_path / "weights")
    assert files_below(tmp_path) == ["weights"]
