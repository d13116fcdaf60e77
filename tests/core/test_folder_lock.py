"""One run at a time in an output folder: others are refused, locks of killed runs are taken away."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.other_run import leave_lock
from vjepa_hub.core.files import WriteError
from vjepa_hub.core.folder_lock import LOCK_FILE, SECONDS_UNTIL_STALE, FolderInUseError, FolderLock, require_unlocked

HOLDS = """
import sys, time
from vjepa_hub.core.folder_lock import FolderLock
from vjepa_hub.core.invocation import invoked_by

with invoked_by(["features", "https://me:secret@host/v.mp4", "--output-dir", sys.argv[1]]), FolderLock(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def run_of_another_process(tmp_path):
    """A folder in which another process is at work, and that process."""
    folder = tmp_path / "out"
    child = subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "locked\n"
    yield folder, child
    child.kill()
    child.wait()
    child.stdout.close()


@pytest.mark.parametrize("refuse", [require_unlocked, lambda folder: FolderLock(folder).acquire()])
def test_second_run_is_refused_with_host_process_command_and_start_of_the_first(run_of_another_process, refuse):
    folder, child = run_of_another_process
    with pytest.raises(FolderInUseError) as caught:
        refuse(folder)
    message, year = str(caught.value), time.strftime("%Y-", time.gmtime())
    for told in (
        str(folder),
        socket.gethostname(),
        f"process {child.pid}",
        "vjepa-hub features",
        year,
        "another output",
    ):
        assert told in message
    assert "secret" not in message
    assert child.poll() is None


def test_lock_of_a_killed_run_is_taken_over(run_of_another_process):
    folder, child = run_of_another_process
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert (folder / LOCK_FILE).exists()
    require_unlocked(folder)
    with FolderLock(folder):
        assert json.loads((folder / LOCK_FILE).read_text())["process"] == os.getpid()
    assert not folder.exists() or list(folder.iterdir()) == []


def test_stopped_run_still_holds_its_lock(run_of_another_process):
    folder, child = run_of_another_process
    child.send_signal(signal.SIGSTOP)
    with pytest.raises(FolderInUseError, match=str(child.pid)):
        FolderLock(folder).acquire()


def test_number_of_a_process_that_is_used_again_does_not_hold_a_lock(tmp_path):
    leave_lock(tmp_path / "out", began=1.0)
    with FolderLock(tmp_path / "out"):
        pass


@pytest.mark.parametrize(("age", "is_stale"), [(0, False), (SECONDS_UNTIL_STALE + 60, True)])
def test_lock_of_another_machine_is_stale_without_a_sign_of_life(tmp_path, age, is_stale):
    folder = tmp_path / "out"
    leave_lock(folder, machine="00000000", host="far-away")
    seconds = time.time() - age
    os.utime(folder / LOCK_FILE, (seconds, seconds))
    if is_stale:
        with FolderLock(folder):
            assert "far-away" not in (folder / LOCK_FILE).read_text()
    else:
        with pytest.raises(FolderInUseError, match="far-away"):
            FolderLock(folder).acquire()
        assert "far-away" in (folder / LOCK_FILE).read_text()


def test_holder_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr("vjepa_hub.core.folder_lock.SECONDS_BETWEEN_SIGNS", 0.01)
    with FolderLock(tmp_path):
        os.utime(tmp_path / LOCK_FILE, (0, 0))
        until = time.monotonic() + 20
        while (tmp_path / LOCK_FILE).stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert time.time() - (tmp_path / LOCK_FILE).stat().st_mtime < 60


def test_half_a_lock_is_not_taken_for_a_stale_one(tmp_path):
    (tmp_path / LOCK_FILE).write_text('{"host": "fa')
    with pytest.raises(FolderInUseError):
        FolderLock(tmp_path).acquire()


def test_lock_that_cannot_be_written_is_not_left_by_half(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(WriteError, match=str(tmp_path)):
            FolderLock(tmp_path / "out").acquire()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with FolderLock(tmp_path / "out"):
        pass


def test_locks_of_one_process_nest(tmp_path):
    with FolderLock(tmp_path):
        with FolderLock(tmp_path):
            require_unlocked(tmp_path)
        assert (tmp_path / LOCK_FILE).exists()
    assert list(tmp_path.iterdir()) == []


def test_failed_run_leaves_neither_a_lock_nor_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="bad"), FolderLock(tmp_path / "out"):
        raise ValueError("bad")
    assert list(tmp_path.iterdir()) == []
    with FolderLock(tmp_path / "kept"):
        (tmp_path / "kept" / "result").touch()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["result"]


def test_folder_that_goes_away_ends_no_run(tmp_path):
    with FolderLock(tmp_path / "out") as lock:
        lock.file.unlink()
        lock.folder.rmdir()


TAKES_OVER = """
import sys, time
from vjepa_hub.core.folder_lock import FolderInUseError, FolderLock

print("ready", flush=True)
sys.stdin.readline()
try:
    with FolderLock(sys.argv[1]):
        print("locked", flush=True)
        sys.stdin.readline()
except FolderInUseError:
    print("refused", flush=True)
"""


def test_one_of_several_takes_a_stale_lock_over(tmp_path):
    leave_lock(tmp_path / "out", began=1.0)
    command = [sys.executable, "-c", TAKES_OVER, str(tmp_path / "out")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, **pipes) for _ in range(4)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    assert sorted(child.stdout.readline() for child in children) == ["locked\n"] + 3 * ["refused\n"]
    for child in children:
        child.communicate("end\n")
