import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from vjepa_hub.data.items import read_item, sign_of_life
from vjepa_hub.data.records import VideoContent, VideoRecord
from vjepa_hub.data.video import VideoDecodingError


def raising(error):
    def read():
        raise error

    return read


@pytest.mark.parametrize("timeout", [60.0, None])
@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (KeyError("width"), "KeyError: 'width'"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (StopIteration(), "StopIteration"),
    ],
)
def test_whatever_an_item_raises_is_its_own_failure_and_logged_with_its_traceback(error, cause, timeout, caplog):
    with pytest.raises(VideoDecodingError) as failure:
        read_item("row 3", raising(error), timeout=timeout)
    assert (failure.value.path, failure.value.__cause__) == ("row 3", error)
    assert cause in failure.value.cause
    assert failure.value.remedy
    assert "row 3" in caplog.text
    assert "raise error" in caplog.text


@pytest.mark.parametrize("timeout", [60.0, None])
@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()])
def test_memory_and_interrupts_are_the_runs_own(error, timeout):
    with pytest.raises(type(error)) as raised:
        read_item("a", raising(error), timeout=timeout)
    assert raised.value is error


def test_silent_item_is_given_up_and_the_next_one_is_read():
    begin = time.monotonic()
    with pytest.raises(VideoDecodingError, match=r"no new frame for 0\.2 s.*--item-timeout"):
        read_item("a", lambda: time.sleep(600), timeout=0.2)
    assert read_item("b", lambda: 5, timeout=60) == 5
    assert time.monotonic() - begin < 10


def test_item_that_gives_signs_of_life_may_take_longer():
    def read():
        for _ in range(12):
            time.sleep(0.1)
            sign_of_life()
        return 5

    assert read_item("a", read, timeout=0.6) == 5


def test_process_ends_though_an_item_was_left_behind():
    code = (
        "import time\nfrom vjepa_hub.data.items import read_item\n"
        "try: read_item('a', lambda: time.sleep(600), timeout=0.2)\nexcept ValueError: print('given up')"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (child.returncode, child.stdout) == (0, "given up\n")


class Video(VideoContent):
    """Two frames; the second one comes when it is let go."""

    def __init__(self):
        self.go, self.is_closed, self.threads = threading.Event(), threading.Event(), set()
        self.num_frames, self.height, self.width, self.average_fps = 2, 3, 4, 25.0

    @contextmanager
    def open(self, *, backend):
        self.threads.add(threading.get_ident())
        try:
            yield self
        finally:
            self.threads.add(threading.get_ident())
            self.is_closed.set()

    def read_frames(self, indices, *, box=None):
        self.threads.add(threading.get_ident())
        if 1 in indices:
            self.go.wait(60)
        return np.zeros((len(indices), 3, 4, 3), np.uint8)


def test_video_is_opened_read_and_closed_by_one_thread_of_its_own():
    video = Video()
    with VideoRecord("a", video).open() as reader:
        assert (reader.num_frames, reader.height, reader.width, reader.average_fps) == (2, 3, 4, 25.0)
        assert reader.read_frames([0]).shape == (1, 3, 4, 3)
    assert video.is_closed.is_set()
    assert len(video.threads) == 1
    assert threading.get_ident() not in video.threads


def test_video_that_hangs_is_left_and_closed_when_it_comes_back():
    video = Video()
    with VideoRecord("a", video).open(item_timeout=0.2) as reader:
        reader.read_frames([0])
        with pytest.raises(VideoDecodingError, match=r"no new frame for 0\.2 s"):
            reader.read_frames([1])
    assert not video.is_closed.is_set()
    video.go.set()
    assert video.is_closed.wait(60)


def test_interrupt_while_an_item_is_read_does_not_wait_for_it():
    video = Video()
    # A process that was started in the background of a shell may ignore interrupts
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    begin = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt), VideoRecord("a", video).open() as reader:
            reader.read_frames([1])
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begin < 10
    video.go.set()


def test_forked_process_never_waits_for_the_thread_of_its_parent():
    with VideoRecord("a", Video()).open() as reader:
        reader.read_frames([0])
        child = os.fork()
        if child == 0:
            begin = time.monotonic()
            with contextlib.suppress(VideoDecodingError):
                reader.read_frames([0])
            os._exit(int(time.monotonic() - begin > 10))
        _, status = os.waitpid(child, 0)
    assert status == 0
