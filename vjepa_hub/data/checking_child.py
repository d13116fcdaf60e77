"""The child process of `checking`: decodes one video file after another, every frame, and says what it found.

It speaks JSON, one object a line: requests come in by standard input, answers go out by standard output. What it dies
of is the concern of its parent. When its parent dies, it ends as well, in the middle of a file too.
"""

import faulthandler
import json
import os
import pickle
import queue
import sys
import threading
import time
from dataclasses import asdict, dataclass

from .items import noting_signs_of_life, sign_of_life
from .records import FrameReader, VideoRecord
from .video import VideoDecodingError

_BYTES_AT_ONCE = 1 << 24
_SECONDS_BETWEEN_SIGNS = 0.1


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Findings of decoding a whole video.

    Attributes:
        cause: Why it is bad, None if it is good.
        remedy: What to do about that.
        warnings: What is unusual about one that is read exactly nevertheless.
        num_frames: Frames that were read.
        declared_frames: Frames that the header promises to show; None where it does not say.
        fps: Frames per second, from the timestamps.
        height: Of a frame in pixels.
        width: Of a frame in pixels.
        duration: Length in seconds.
    """

    cause: str | None = None
    remedy: str | None = None
    warnings: tuple[str, ...] = ()
    num_frames: int | None = None
    declared_frames: int | None = None
    fps: float | None = None
    height: int | None = None
    width: int | None = None
    duration: float | None = None


def decode_fully(record: VideoRecord, backend: str | None) -> Findings:
    """Read every frame and every timestamp of a video, as training does.

    Args:
        record: The video.
        backend: The decoder, as for `open_video`.
    """
    try:
        with record.open(backend=backend, item_timeout=None) as video:  # the parent watches
            return _read_all(video)
    except VideoDecodingError as error:
        return Findings(cause=error.cause, remedy=error.remedy)


def _read_all(video: FrameReader) -> Findings:
    """Read all frames, a few at once."""
    num_at_once = max(1, _BYTES_AT_ONCE // (3 * video.height * video.width))
    for start in range(0, video.num_frames, num_at_once):
        video.read_frames(range(start, min(start + num_at_once, video.num_frames)))
        sign_of_life()
    declared = getattr(video, "declared_frames", None)  # a folder of frames declares none
    return Findings(
        warnings=_warnings(video.num_frames, declared),
        num_frames=video.num_frames,
        declared_frames=declared,
        fps=video.average_fps,
        height=video.height,
        width=video.width,
        duration=video.num_frames / video.average_fps if video.average_fps else None,
    )


def _warnings(num_frames: int, declared: int | None) -> tuple[str, ...]:
    found = []
    if declared is not None and declared != num_frames:
        found.append(f"the header declares {declared} frames, but there are {num_frames}")
    if num_frames == 1:
        found.append("it has a single frame: nothing moves in it")
    return tuple(found)


def serve() -> None:
    """Answer requests until standard input ends. What a library prints goes to standard error."""
    faulthandler.enable()
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    requests: queue.SimpleQueue[dict] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    _answer(answers, "ready", True)
    while True:
        request = requests.get()
        record = pickle.loads(bytes.fromhex(request["record"]))
        with noting_signs_of_life(_Sign(answers)):
            findings = decode_fully(record, request["backend"])
        _answer(answers, "findings", asdict(findings))


def _listen(requests: "queue.SimpleQueue[dict]") -> None:
    """Take in requests. Standard input ends with the parent: this process with it, even if its decoder hangs."""
    # Not sys.stdin: Python aborts if its end (after an error that nobody expected) finds a thread inside that.
    with open(sys.stdin.fileno(), "rb", closefd=False) as lines:
        for line in lines:
            requests.put(json.loads(line))
    os._exit(0)


class _Sign:
    """A sign of life for the parent, not more often than it can use."""

    def __init__(self, answers: int):
        self._answers, self._last = answers, -_SECONDS_BETWEEN_SIGNS

    def __call__(self) -> None:
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_SIGNS:
            self._last = time.monotonic()
            _answer(self._answers, "alive", True)


def _answer(answers: int, kind: str, content: object) -> None:
    os.write(answers, json.dumps({kind: content}).encode() + b"\n")
