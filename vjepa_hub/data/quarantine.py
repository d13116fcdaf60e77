"""Videos that cannot be read: listed with their cause, and counted, so that a run stops when they are too many."""

import errno
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..core.files import writing

logger = logging.getLogger(__name__)


class NoReadableVideoError(RuntimeError):
    """None of the videos that were tried for a clip can be read."""


class TooManyBadVideosError(RuntimeError):
    """More videos cannot be read than a run puts up with."""


class KilledWorkerError(RuntimeError):
    """A process that decodes died. The message says what to do."""


class QuarantinedVideo(NamedTuple):
    """A video that could not be read.

    Attributes:
        video: Its name, see `VideoRecord`.
        cause: What was found, in words.
        position: Place in the global order of the clip that it was first tried for.
    """

    video: str
    cause: str
    position: int


class Quarantine:
    """The videos that could not be read, in a file of JSON lines to which many processes may append.

    A video is written once by each process that meets it; `read` gives each once. Those in the file are not decoded
    again by a run that begins, or goes on, with it: take a video's lines out, or delete the file, to have it tried
    again. On file systems of a network, lines that two machines write at the same moment can get lost; such a video is
    found and written again.

    Args:
        path: The file, made when the first video is written. None: kept in the memory of this process.
    """

    def __init__(self, path: str | Path | None = None):
        self.path = None if path is None else Path(os.path.abspath(path))
        self._videos: dict[str, QuarantinedVideo] = {}
        self._videos = {entry.video: entry for entry in self.read()}

    def __len__(self) -> int:
        """Number of videos that this process knows of."""
        return len(self._videos)

    def __contains__(self, video: str) -> bool:
        return video in self._videos

    def cause(self, video: str) -> str:
        """Cause for a video that this process knows to be unreadable.

        Raises:
            KeyError: it is not in quarantine.
        """
        return self._videos[video].cause

    @property
    def reminder(self) -> str:
        """Remedy after a repair, as the end of a sentence; empty without a file."""
        return "" if self.path is None else f"; after a repair delete {self.path}, or they are passed over again"

    def add(self, video: str, *, cause: str, position: int) -> None:
        """List a video, and log it; one that this process knows of already is passed over.

        Args:
            video: Its name.
            cause: What was found, in words.
            position: Place of the clip in the global order.

        Raises:
            OSError: the file cannot be written.
        """
        if video in self._videos:
            return
        logger.warning("cannot read %s: %s; another video takes its place", video, cause)
        self._videos[video] = QuarantinedVideo(video, cause, position)
        if self.path is not None:
            _append(self.path, json.dumps(self._videos[video]._asdict()))

    def read(self) -> list[QuarantinedVideo]:
        """Return what all processes have listed so far, each video once, as it was met first.

        Lines that are cut off or mixed up are passed over with a warning.

        Raises:
            OSError: the file is there, but cannot be read.
        """
        if self.path is None:
            return list(self._videos.values())
        if not self.path.exists():
            return []
        entries: dict[str, QuarantinedVideo] = {}
        for number, line in enumerate(
            self.path.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n"), 1
        ):
            try:
                entry = QuarantinedVideo(**json.loads(line))
                entries.setdefault(entry.video, entry)
            except (ValueError, TypeError, RecursionError):
                logger.warning("line %d of %s is no entry, and passed over: %s", number, self.path, line[:200])
        return list(entries.values())


def _append(path: Path, line: str) -> None:
    """Add a line in one call of the system, so that the lines of several processes do not mix."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        data = f"{line}\n".encode()
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if os.write(descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        finally:
            os.close(descriptor)


class FailureShare:
    """Counts the videos that could not be read, over a run, and stops it when they are too many.

    Args:
        max_share: The largest part of the videos tried that may fail, from 0 to 1.
        min_tries: Videos that have to be tried before the share counts.
        quarantine: Where they are listed, for the error.

    Attributes:
        num_clips: Clips read so far.
        num_failures: Videos that failed on the way to them; one that fails for two clips counts twice.

    Raises:
        ValueError: If `max_share` is not between 0 and 1, or `min_tries` is below 1.
    """

    def __init__(self, max_share: float, *, min_tries: int = 20, quarantine: Quarantine | None = None):
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_share is {max_share}, but is a part of all videos tried; give a number from 0 to 1")
        if min_tries < 1:
            raise ValueError(f"min_tries is {min_tries}, but must be at least 1")
        self.max_share, self.min_tries, self.quarantine = max_share, min_tries, quarantine
        self.num_clips = self.num_failures = 0

    @property
    def num_tries(self) -> int:
        """Videos tried: each clip took one that could be read, after those that failed."""
        return self.num_clips + self.num_failures

    @property
    def share(self) -> float:
        """Part of the videos tried that failed; 0 before the first."""
        return self.num_failures / max(self.num_tries, 1)

    def add(self, num_failures: torch.Tensor | Sequence[int]) -> None:
        """Count a batch.

        Args:
            num_failures: For each clip of the batch the videos that failed before it could be read, `(batch_size,)`.

        Raises:
            TooManyBadVideosError: the share is above `max_share` now.
        """
        counts = torch.as_tensor(num_failures).tolist()
        self.num_clips += len(counts)
        self.num_failures += sum(counts)
        if self.num_tries >= self.min_tries and self.share > self.max_share:
            raise TooManyBadVideosError(self._complaint())

    def _complaint(self) -> str:
        path = None if self.quarantine is None else self.quarantine.path
        return (
            f"{self.num_failures} of the {self.num_tries} videos tried so far cannot be read ({self.share:.1%}), more "
            f"than the {self.max_share:.1%} that is allowed; {path or 'the log'} names them with their causes; check "
            "all videos with `vjepa-hub check-data`, and repair them, leave them out or allow a larger share"
            f"{'' if self.quarantine is None else self.quarantine.reminder}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, for a checkpoint."""
        return {"num_clips": self.num_clips, "num_failures": self.num_failures}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the counts of a checkpoint."""
        self.num_clips, self.num_failures = int(state["num_clips"]), int(state["num_failures"])
