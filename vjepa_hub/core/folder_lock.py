"""One run at a time in an output folder: a lock file there, which names its holder.

The file is made with O_EXCL, which network file systems honour too, and its holder renews its time as long as the run
lasts. A lock is stale once its process has ended on this machine, and on another machine after ten minutes without a
sign of life; the next run takes a stale lock away.
"""

import atexit
import logging
import os
import shlex
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

from pydantic import Field, ValidationError

from .files import machine_id, remove_leftovers, writing
from .invocation import invocation
from .run_files import Record

logger = logging.getLogger(__name__)

LOCK_FILE = ".vjepa_hub.lock"
SECONDS_BETWEEN_SIGNS, SECONDS_UNTIL_STALE = 30.0, 600.0
# A process that has made the file, but has not written into it yet, is given this long
_SECONDS_TO_WRITE = 1.0
# Clock adjustments move the start of a process by this much
_SECONDS_OF_ADJUSTMENT = 5.0
_MAX_LETTERS = 300

_held: dict[Path, "FolderLock"] = {}


class FolderInUseError(OSError):
    """Another run writes into the folder. The message has its host, process, command and start."""


class Holder(Record):
    """Contents of a lock file.

    Attributes:
        host: Name of the machine.
        machine: Identity of the machine and its process numbers.
        process: Number of the process.
        began: Start of the process in seconds; numbers of processes are used again.
        command: Of the run.
        started: Of the run.
    """

    host: str = Field(default_factory=socket.gethostname)
    machine: str = Field(default_factory=machine_id)
    process: int = Field(default_factory=os.getpid)
    began: float = Field(default_factory=lambda: _start_of(os.getpid()) or 0.0)
    command: str = Field(default_factory=lambda: _command())
    started: datetime = Field(default_factory=lambda: datetime.now(timezone.utc).replace(microsecond=0))

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, started {self.started:%Y-%m-%d %H:%M:%S} UTC: {self.command}"


class FolderLock:
    """The only run that writes into a folder, within a `with` block.

    Locks of one process on one folder nest: a run may call others that write there.

    Args:
        folder: Made if it is not there, and removed at the end if it is empty then.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder).absolute()
        self.file = self.folder / LOCK_FILE
        self._depth, self._made_folder, self._released = 0, False, threading.Event()
        self._holder: Holder | None = None

    def acquire(self) -> None:
        """Lock the folder.

        Raises:
            FolderInUseError: Another run has it.
            WriteError: Nothing can be written there.
        """
        outer = _held.get(self.folder, self)
        if not outer._depth:
            self._make_file()
            _held[self.folder] = self
            atexit.register(self._give_back)  # of a run that was prepared, and never begun
            threading.Thread(target=self._give_signs, name="folder lock", daemon=True).start()
            remove_leftovers(self.folder)
        outer._depth += 1

    def release(self) -> None:
        """Unlock the folder, once the outermost block of this process ends; does nothing where it was not locked."""
        outer = _held.get(self.folder)
        if outer is None:
            return
        outer._depth -= 1
        if not outer._depth:
            outer._give_back()

    def __enter__(self) -> "FolderLock":
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _make_file(self) -> None:
        self._holder, self._made_folder = Holder(), not self.folder.exists()
        with writing(self.file):
            self.folder.mkdir(parents=True, exist_ok=True)
            while True:
                try:
                    file = self.file.open("x", encoding="utf-8")
                except FileExistsError:
                    _take_stale_away(self.file)
                    continue
                try:
                    with file:
                        file.write(self._holder.model_dump_json())
                except OSError:  # half a lock would be taken for another run's
                    self.file.unlink()
                    raise
                return

    def _give_signs(self) -> None:
        while not self._released.wait(SECONDS_BETWEEN_SIGNS):
            if _read_holder(self.file) != self._holder:
                logger.error("%s is no longer this run's: another one may write there too; stop one", self.file)
                return
            with suppress(OSError):  # the writing of the run itself tells what is wrong
                os.utime(self.file)

    def _give_back(self) -> None:
        if self._released.is_set() or self._holder is None or self._holder.process != os.getpid():  # as after a fork
            return
        _held.pop(self.folder, None)
        self._released.set()
        atexit.unregister(self._give_back)
        with suppress(OSError):  # the folder may be gone, or the disk: a stale lock is recognised
            if _read_holder(self.file) == self._holder:
                self.file.unlink()
            if self._made_folder:
                self.folder.rmdir()


def require_unlocked(folder: str | os.PathLike) -> None:
    """Refuse a folder in which another run is at work, without locking it.

    Raises:
        FolderInUseError: With its holder.
    """
    folder = Path(folder).absolute()
    if folder not in _held and (folder / LOCK_FILE).exists():
        _refuse_unless_stale(folder / LOCK_FILE)


def _take_stale_away(file: Path) -> None:
    """Remove a stale lock; renamed first, so that of several processes one removes it, and no newer one is lost."""
    holder = _refuse_unless_stale(file)
    taken = file.with_name(f"{file.name}.{machine_id()}-{os.getpid()}")
    with suppress(FileNotFoundError):
        os.rename(file, taken)
        if _read_holder(taken) != holder:  # another process has locked the folder in between
            os.link(taken, file)
        taken.unlink()


def _refuse_unless_stale(file: Path) -> Holder | None:
    """The holder of a stale lock."""
    until = time.monotonic() + _SECONDS_TO_WRITE
    while (holder := _read_holder(file)) is None and file.exists() and time.monotonic() < until:
        time.sleep(0.05)
    if file.exists() and not _is_stale(file, holder):
        raise FolderInUseError(
            f"another run writes into {file.parent} ({holder or 'it does not say which'}): wait for it or stop it, or "
            "name another output folder"
        )
    return holder


def _read_holder(file: Path) -> Holder | None:
    """Contents of a lock file; None where there is none, or not yet."""
    try:
        return Holder.model_validate_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def _is_stale(file: Path, holder: Holder | None) -> bool:
    if holder is not None and holder.machine == machine_id():
        began = _start_of(holder.process)
        return began is None or abs(began - holder.began) > _SECONDS_OF_ADJUSTMENT
    try:
        with tempfile.TemporaryFile(dir=file.parent) as now:  # by the clock of the file system, as the other's time
            return os.fstat(now.fileno()).st_mtime - file.stat().st_mtime > SECONDS_UNTIL_STALE
    except FileNotFoundError:
        return True


def _start_of(process: int) -> float | None:
    """Start of a process of this machine in seconds; None of one that has ended."""
    import psutil

    try:
        found = psutil.Process(process)
        return None if found.status() == psutil.STATUS_ZOMBIE else found.create_time()
    except psutil.NoSuchProcess:
        return None


def _command() -> str:
    words = ["vjepa-hub", *invocation()] if invocation() else sys.orig_argv
    command = shlex.join(words)
    return command if len(command) <= _MAX_LETTERS else f"{command[:_MAX_LETTERS]} ..."
