"""The child process of `checking`: decodes one video file after another, every frame, and says what it found.

It speaks JSON, one object a line: requests come in by standard input, answers go out by standard output. What it dies
of is the concern of its parent. When its parent dies, it ends as well, in the middle of a file too.
"""

import faulthandler
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .video import (
    VideoDecodingError,
    VideoReader,
    _inspect_container,
    _open_with_pyav,
    open_video,
)

_BYTES_AT_ONCE = 1 << 24
_SECONDS_BETWEEN_SIGNS = 0.1


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What decoding all of a video has shown.

    Attributes:
        cause: Why it is bad, None if it is good.
        remedy: What to do about that.
        warnings: What is unusual about one that is read exactly nevertheless.
        readers: The backends that have read all of its frames.
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
    readers: tuple[str, ...] = ()
    num_frames: int | None = None
    declared_frames: int | None = None
    fps: float | None = None
    height: int | None = None
    width: int | None = None
    duration: float | None = None


def decode_fully(path: str, backends: Sequence[str], *, sign_of_life: Callable[[], None]) -> Findings:
    """Read every frame and every timestamp of a video, as training does; a second time with PyAV if that is allowed.

    decord and torchcodec do not notice damage that FFmpeg conceals. PyAV does, mostly.

    Args:
        path: The file.
        backends: The decoders that may be used: one, or those that `open_video` chooses from.
        sign_of_life: Called now and then as frames come in.
    """
    readers: list[str] = []
    try:
        with open_video(path, backend=backends[0] if len(backends) == 1 else None) as video:
            first = _read_all(video, sign_of_life)
        readers.append(video.backend)
        if "pyav" in backends and video.backend != "pyav":
            _read_again(path, first, video.backend, sign_of_life)
            readers.append("pyav")
        declared = _declared_frames(path) if "pyav" in backends else None
    except VideoDecodingError as error:
        return Findings(cause=error.cause, remedy=error.remedy, readers=tuple(readers))
    except OSError as error:
        cause = f"it cannot be read ({error.strerror or error})"
        return Findings(cause=cause, remedy="check the disk or the network", readers=tuple(readers))
    warnings = _warnings(first["num_frames"], declared)
    return Findings(warnings=warnings, readers=tuple(readers), declared_frames=declared, **first)


def _read_all(video: VideoReader, sign_of_life: Callable[[], None]) -> dict:
    """Read all frames, a few at once; the facts of a video that `Findings` hold."""
    sign_of_life()
    num_at_once = max(1, _BYTES_AT_ONCE // (3 * video.height * video.width))
    for start in range(0, video.num_frames, num_at_once):
        video.read_frames(range(start, min(start + num_at_once, video.num_frames)))
        sign_of_life()
    return {
        "num_frames": video.num_frames,
        "fps": video.average_fps,
        "height": video.height,
        "width": video.width,
        "duration": video.duration,
    }


def _read_again(path: str, first: dict, first_backend: str, sign_of_life: Callable[[], None]) -> None:
    try:
        with open_video(path, backend="pyav") as video:
            second = _read_all(video, sign_of_life)
    except VideoDecodingError as error:
        cause = f"{error.cause} (so says pyav; {first_backend} does not notice)"
        raise VideoDecodingError(path, cause, error.remedy) from error
    names = [name for name in ("num_frames", "height", "width") if first[name] != second[name]]
    if names:
        told = ", ".join(f"{name} {first[name]} and {second[name]}" for name in names)
        raise VideoDecodingError(path, f"{first_backend} and pyav disagree ({told})", "re-encode the file")


def _declared_frames(path: str) -> int | None:
    """Frames that the header says are shown: MP4's sample table less what its edit list hides, or another's count."""
    container = _inspect_container(Path(path))
    if container.samples is not None:
        return container.samples.num_shown if container.samples.num_edits <= 1 else None
    with _open_with_pyav(Path(path)) as opened:
        return opened.streams.video[0].frames or None


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
        findings = decode_fully(request["path"], request["backends"], sign_of_life=_Sign(answers))
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
