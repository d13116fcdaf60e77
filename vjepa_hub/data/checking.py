"""Is every file of a data set readable? Each is decoded fully, in child processes that may hang or crash.

A file on which the decoder hangs is told by the silence of its child, which is killed; one on which it crashes, by the
signal that the child died of. Both are results like any other, and the check goes on with a new child. Results are
appended to a report as they come, one line each, and the report is the memory: the next run takes from it what was
checked before and has not changed since.
"""

import json
import logging
import os
import pickle
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.files import require_replaceable, write_whole, writing
from ..core.progress import Progress, no_progress
from .items import ITEM_TIMEOUT
from .manifests import path_line, select_entries
from .records import LocalVideo, VideoRecord, is_address
from .video import require_backend

logger = logging.getLogger(__name__)

REPORT = "report.jsonl"
BAD_VIDEOS = "bad.jsonl"
GOOD_VIDEOS = "good.txt"

_START_SECONDS = 300.0
_KILL_SECONDS = 10.0
_LEAVE_OUT = "leave it out, or re-encode it (ffmpeg -i FILE -c:v libx264 NEW.mp4)"
# Imports what the child needs and not the package's __init__, which imports torch: a start takes half a second instead
# of six, and 30 MB instead of 770. The module path comes as arguments, since -c puts the current folder before it.
_START_CHILD = """
import sys
sys.path[:] = sys.argv[2:]
import types
package = types.ModuleType("vjepa_hub")
package.__path__ = [sys.argv[1]]
sys.modules["vjepa_hub"] = package
from vjepa_hub.data.checking_child import serve
serve()
"""


@dataclass(frozen=True, kw_only=True)
class CheckedVideo:
    """Findings about a video: a line of the report.

    Attributes:
        path: Absolute path.
        size: In bytes when the check of it began; None where there is no such file.
        mtime_ns: When it was changed last, in nanoseconds since 1970; None where there is no such file.
        backend: The decoder that was asked for; None: as `open_video` chooses, which is that of training.
        ok: Whether every frame was read.
        cause: Why not; None if ok.
        remedy: What to do about that; None if ok.
        warnings: What is unusual about a video that is ok.
        num_frames: Frames that were read.
        declared_frames: Frames that the header promises; None where it does not say.
        fps: Frames per second.
        height: Of a frame in pixels.
        width: Of a frame in pixels.
        duration: In seconds.
        seconds: How long the check of it took.
    """

    path: str
    size: int | None
    mtime_ns: int | None
    backend: str | None
    ok: bool
    cause: str | None = None
    remedy: str | None = None
    warnings: tuple[str, ...] = ()
    num_frames: int | None = None
    declared_frames: int | None = None
    fps: float | None = None
    height: int | None = None
    width: int | None = None
    duration: float | None = None
    seconds: float


@dataclass(frozen=True)
class CheckSummary:
    """The result of a check.

    Attributes:
        videos: One for each video, in the order in which they were given.
        num_done_before: How many of them an earlier run had checked.
    """

    videos: tuple[CheckedVideo, ...]
    num_done_before: int

    @property
    def good(self) -> list[CheckedVideo]:
        """Those of which every frame was read."""
        return [video for video in self.videos if video.ok]

    @property
    def bad(self) -> list[CheckedVideo]:
        """The others."""
        return [video for video in self.videos if not video.ok]

    def count_causes(self) -> Counter[str]:
        """Number of bad videos of each kind of cause, in the words of the first."""
        return _count_alike(video.cause or "" for video in self.bad)

    def count_warnings(self) -> Counter[str]:
        """Number of good videos with each kind of warning, in the words of the first."""
        return _count_alike(warning for video in self.good for warning in video.warnings)


def _count_alike(sentences: Iterable[str]) -> Counter[str]:
    """Count sentences that differ in numbers and details alone, by the first of each kind."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for sentence in sentences:
        begin = re.split(r" *[(:]", sentence)[0]
        counts[first.setdefault(re.sub(r"\d+(\.\d+)?", "", begin), begin)] += 1
    return counts


def check_videos(
    videos: Sequence[str | Path | VideoRecord],
    report: str | Path,
    *,
    item_timeout: float = ITEM_TIMEOUT,
    processes: int | None = None,
    backend: str | None = None,
    again: bool = False,
    progress: Progress = no_progress,
) -> CheckSummary:
    """Decode every frame of every video, in parallel, and remember the results in a report.

    A video is read with the decoder that training takes for it, and is good if all of its frames are read. One whose
    header declares another number than there are is good too, with a warning.

    Args:
        videos: Video files, and videos of data sets. One that is given twice is checked once.
        report: JSON lines, see `CheckedVideo`; made if it is not there. Results are appended, and the last one of a
            video counts. A file whose size, time of change and backend are those in the report is not checked again.
        item_timeout: Seconds without a new frame after which the decoder hangs: its process is killed, and the file is
            bad.
        processes: Files that are decoded at the same time, one thread each. None: as many as there are processors.
        backend: The decoder, as for `open_video`.
        again: Whether to check also what the report knows.
        progress: Called with the videos that are checked, and all videos, at the beginning and after each; its words
            count the bad ones.

    Raises:
        ValueError: a number out of range, a backend that is not there, or a report that is something else.
        RuntimeError: no child process can be started.
        OSError: the report cannot be read or written.
    """
    _require_positive("item_timeout", item_timeout)
    processes = _num_processors() if processes is None else processes
    _require_positive("processes", processes)
    require_backend(backend)
    checked = _read_report(Path(report))
    tasks = {task.path: task for task in (_Task.of(video, backend) for video in videos)}
    done = {} if again else {path: checked[path] for path in tasks if tasks[path].is_done_by(checked.get(path))}
    num_done_before, num_bad = len(done), 0
    progress("checking", len(done), len(tasks))
    supervisor = _Supervisor([tasks[path] for path in tasks if path not in done], item_timeout, processes)
    with _ReportFile(Path(report)) as file:
        for video in supervisor.run():
            file.append(video)
            done[video.path] = video
            num_bad += not video.ok
            progress(f"checking, {num_bad} bad" if num_bad else "checking", len(done), len(tasks))
    return CheckSummary(tuple(done[path] for path in tasks), num_done_before)


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} is {value}, but has to be above 0")


def _num_processors() -> int:
    """Processors that this process may use: fewer than the machine has in many containers and batch systems."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- the report ---


def _read_report(report: Path) -> dict[str, CheckedVideo]:
    """The last result of each video, by its path."""
    if not report.exists():
        return {}
    lines = report.read_text(encoding="utf-8", errors="replace").split("\n")
    results = [_parse_line(line) for line in lines if line.strip()]
    found = {result.path: result for result in results if result is not None}
    if results and not found:
        raise ValueError(f"{report} is not the report of a check: name another file, or delete this one")
    num_broken = sum(result is None for result in results)
    if num_broken:
        logger.warning("%d lines of %s are no results (a run was killed?): passed over", num_broken, report)
    return found


def _parse_line(line: str) -> CheckedVideo | None:
    try:
        entry = json.loads(line)
        return CheckedVideo(**{name: _as_tuple(value) for name, value in entry.items()})
    except (ValueError, TypeError, AttributeError):
        return None


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class _ReportFile:
    """The report, open for appending. Each line is one write, so that several runs may share a report."""

    def __init__(self, path: Path):
        self._path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+", buffering=0)

    def __enter__(self) -> "_ReportFile":
        self._end_broken_line()
        return self

    def __exit__(self, *exception_info: object) -> None:
        self._file.close()

    def _end_broken_line(self) -> None:
        """A run that was killed may have left half a line: the next result begins on a new one."""
        if self._file.seek(0, os.SEEK_END):
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")

    def append(self, video: CheckedVideo) -> None:
        with writing(self._path):
            self._file.write(json.dumps(asdict(video)).encode() + b"\n")


# --- the child processes ---


@dataclass(frozen=True)
class _Task:
    """A file to check, and its state before."""

    path: str
    size: int | None
    mtime_ns: int | None
    backend: str | None
    record: VideoRecord

    @classmethod
    def of(cls, video: str | Path | VideoRecord, backend: str | None) -> "_Task":
        if not isinstance(video, VideoRecord):
            video = VideoRecord(os.path.abspath(video), LocalVideo(Path(os.path.abspath(video))))
        # Of one that is missing, or may not be seen, that is found out when its turn comes.
        size, mtime_ns = video.state or (None, None)
        return cls(video.name, size, mtime_ns, backend, video)

    @property
    def facts(self) -> dict[str, Any]:
        """Fields that a result repeats."""
        return {"path": self.path, "size": self.size, "mtime_ns": self.mtime_ns, "backend": self.backend}

    def is_done_by(self, video: CheckedVideo | None) -> bool:
        """Return whether a result is that of this file, unchanged."""
        return video is not None and all(getattr(video, name) == value for name, value in self.facts.items())

    def result(self, findings: dict, seconds: float) -> CheckedVideo:
        found = {name: _as_tuple(value) for name, value in findings.items()}
        return CheckedVideo(**self.facts, ok=found.get("cause") is None, seconds=round(seconds, 3), **found)


class _Child:
    """A child process that decodes one file after another (`checking_child`).

    Attributes:
        task: The file that it is at, None while it starts or waits.
        is_ready: Whether it has started.
        started: When it was given its task, on the monotonic clock as the deadline.
        deadline: When it is to be given up, unless it gives a sign of life before.
    """

    def __init__(self, answers: "queue.SimpleQueue[tuple[_Child, dict | None]]"):
        self.task: _Task | None = None
        self.is_ready = False
        self.started = 0.0
        self.deadline = time.monotonic() + _START_SECONDS
        self._errors = tempfile.TemporaryFile("a+b")  # noqa: SIM115 (closed with the process)
        package = Path(__file__).parents[1]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START_CHILD, str(package), *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # Ctrl-C is for the parent, which then ends its children
        )
        threading.Thread(target=self._listen, args=(answers,), daemon=True).start()

    def _listen(self, answers: "queue.SimpleQueue[tuple[_Child, dict | None]]") -> None:
        """Pass on what the child says, and None when it has died."""
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                # Not what a library prints while the child starts, nor what it was at when it died.
                if line.startswith(b"{") and line.endswith(b"}\n"):
                    answers.put((self, json.loads(line)))
        answers.put((self, None))

    def give(self, task: _Task, timeout: float) -> None:
        self.task, self.started = task, time.monotonic()
        self.deadline = self.started + timeout
        self._errors.truncate(0)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died: the news is on its way
            request = {"record": pickle.dumps(task.record).hex(), "backend": task.backend}
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def take_result(self, findings: dict) -> CheckedVideo:
        """The result of its task, which is then done."""
        assert self.task is not None
        task, self.task = self.task, None
        return task.result(findings, time.monotonic() - self.started)

    def kill(self) -> None:
        """End it, whatever it is at."""
        self._process.kill()
        try:
            self._process.wait(_KILL_SECONDS)
        except subprocess.TimeoutExpired:
            logger.warning(
                "process %d, which decodes videos, cannot be killed (it waits for a disk or a network?): left behind",
                self._process.pid,
            )
        with suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._errors.close()

    def describe_end(self) -> str:
        """Say what a child died of, which nobody has killed."""
        code = self._process.wait()
        name = {-number.value: number.name for number in signal.Signals}.get(code, f"signal {-code}")
        if name == "SIGKILL":
            return "the decoder was killed (SIGKILL, not by this check: out of memory?)"
        if code < 0:
            return f"the decoder crashed ({name})"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"the decoder ended with exit code {code} ({lines[-1] if lines else 'without a word'})"


class _Supervisor:
    """Hands files out to children, takes in their results, and replaces those that hang or die."""

    def __init__(self, tasks: Sequence[_Task], timeout: float, processes: int):
        self._tasks = deque(tasks)
        self._timeout, self._processes = timeout, processes
        self._children: list[_Child] = []
        self._answers: queue.SimpleQueue[tuple[_Child, dict | None]] = queue.SimpleQueue()

    def run(self) -> Iterator[CheckedVideo]:
        """Yield results as they come."""
        try:
            while self._tasks or any(child.task for child in self._children):
                self._start_children()
                yield from self._next_results()
        finally:
            for child in self._children:
                child.kill()

    def _start_children(self) -> None:
        num_busy = sum(child.task is not None for child in self._children)
        while len(self._children) < min(self._processes, num_busy + len(self._tasks)):
            self._children.append(_Child(self._answers))

    def _next_results(self) -> Iterator[CheckedVideo]:
        deadline = min(child.deadline for child in self._children)
        try:
            child, answer = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            yield from self._give_up_overdue()
            return
        if child in self._children:  # else it was given up
            yield from self._take(child, answer)
        yield from self._give_up_overdue()

    def _take(self, child: _Child, answer: dict | None) -> Iterator[CheckedVideo]:
        if answer is None:
            yield from self._bury(child)
            return
        child.is_ready = True
        child.deadline = time.monotonic() + self._timeout
        results = [child.take_result(answer["findings"])] if "findings" in answer else []
        if child.task is None:
            self._occupy(child)
        yield from results

    def _occupy(self, child: _Child) -> None:
        """Give a child the next file; if there is none, it waits for the end."""
        child.deadline = float("inf")
        if self._tasks:
            child.give(self._tasks.popleft(), self._timeout)

    def _bury(self, child: _Child) -> Iterator[CheckedVideo]:
        """Take leave of a child that has died; if it was at a file, this is the result of the file."""
        cause = child.describe_end()
        self._dismiss(child)
        if not child.is_ready:
            raise RuntimeError(f"no process for decoding can be started: {cause}")
        if child.task is not None:
            yield child.take_result({"cause": cause, "remedy": _LEAVE_OUT})

    def _give_up_overdue(self) -> Iterator[CheckedVideo]:
        now = time.monotonic()
        for child in [child for child in self._children if child.deadline <= now]:
            self._dismiss(child)
            if not child.is_ready:
                raise RuntimeError(f"a process for decoding has not started within {_START_SECONDS:g} s")
            cause = f"the decoder hangs (no new frame for {self._timeout:g} s)"
            yield child.take_result({"cause": cause, "remedy": _LEAVE_OUT})

    def _dismiss(self, child: _Child) -> None:
        self._children.remove(child)
        child.kill()


# --- what is left: lists of good and bad videos ---


def write_check_lists(
    summary: CheckSummary,
    folder: str | Path,
    *,
    manifests: Sequence[str | Path] = (),
    others: Sequence[str | Path] = (),
) -> list[Path]:
    """Write lists of the good videos, for training, and of the bad ones.

    - `good-NAME` for each manifest: its lines whose videos are good, with their labels and all else; paths are made
      absolute where they would not hold in the new folder;
    - `good.txt`: those of the other videos that are good, a path on each line;
    - `bad.jsonl`: path, cause and remedy of each bad one. It is a manifest too, of those to look at again.

    Args:
        summary: Of the check of all these videos.
        folder: For the lists; those that are there are replaced.
        manifests: Lists of videos that were checked.
        others: Videos that were checked without being in one, as files or in folders.

    Returns:
        The files that were written, `bad.jsonl` last.

    Raises:
        ValueError: two manifests of one name, or one that has changed so that it cannot be read any more.
    """
    folder = Path(folder)
    _require_own_names(manifests)
    folder.mkdir(parents=True, exist_ok=True)
    good = {video.path for video in summary.good}
    written = [
        write_whole(folder / f"good-{Path(one).name}", _good_entries(Path(one), folder, good)) for one in manifests
    ]
    if others:
        paths = [path for path in dict.fromkeys(map(os.path.abspath, others)) if path in good]
        written.append(_write_lines(folder / GOOD_VIDEOS, map(path_line, paths)))
    bad = [{"path": video.path, "cause": video.cause, "remedy": video.remedy} for video in summary.bad]
    return [*written, _write_lines(folder / BAD_VIDEOS, [json.dumps(entry) for entry in bad])]


def require_own_lists(folder: str | Path, *, manifests: Sequence[str | Path] = (), has_others: bool = False) -> None:
    """Refuse lists that would replace each other, one that is read, or one that no check has written.

    Args:
        folder: For the report and the lists.
        manifests: Lists of videos to check.
        has_others: Whether there are videos to check besides.

    Raises:
        ValueError: Two manifests have one name, and so would their lists of good videos.
        FileExistsError: A file of a list's name is read, or stands in the folder without a report.
    """
    _require_own_names(manifests)
    folder = Path(folder)
    names = [f"good-{Path(manifest).name}" for manifest in manifests] + [GOOD_VIDEOS] * has_others + [BAD_VIDEOS]
    has_report = (folder / REPORT).exists()
    require_replaceable([folder / REPORT], inputs=manifests)
    require_replaceable([folder / name for name in names], inputs=manifests, is_own=lambda _: has_report)


def _require_own_names(manifests: Sequence[str | Path]) -> None:
    """Raise ValueError if two manifests have one name, so that their lists of good videos would be one file."""
    for name, count in Counter(Path(manifest).name for manifest in manifests).items():
        if count > 1:
            raise ValueError(
                f"{count} manifests are called {name}, and so would be their lists of good videos: "
                "check them one after the other, with a folder for each"
            )


def _good_entries(manifest: Path, folder: Path, good: Collection[str]) -> str:
    """The text of a manifest whose videos are good, for another folder."""
    is_at_home = os.path.abspath(manifest.parent) == os.path.abspath(folder)

    def new_path(path: str) -> str | None:
        absolute = path if is_address(path) else os.path.abspath(manifest.parent / path)
        return None if absolute not in good else path if is_at_home else absolute

    return select_entries(manifest, new_path)


def _write_lines(path: Path, lines: Iterable[str]) -> Path:
    return write_whole(path, "".join(f"{line}\n" for line in lines))
