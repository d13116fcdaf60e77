"""One item of many, a video or an image: the place where anything that goes wrong in reading it becomes its failure.

An item is read in a thread of its own. One that is silent for too long is given up: its thread is left behind, which
keeps neither the run from going on nor the process from ending.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from .video_errors import CHECK_FILE, VideoDecodingError, first_line

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

ITEM_TIMEOUT = 120.0
"""Seconds without a new frame after which an item is given up, unless a setting says otherwise."""
_RAISE_TIMEOUT = "leave it out, or raise item_timeout (--item-timeout) if its disk or network is slow"
_SECONDS_TO_INTERRUPT = 1.0  # a signal that another thread takes in does not wake this one
_signs = threading.local()


def sign_of_life() -> None:
    """Note that a frame, or the packet of one, has come in: called by readers as they go on."""
    note = getattr(_signs, "note", None)
    if note is not None:
        note()


@contextmanager
def noting_signs_of_life(note: Callable[[], None]) -> Iterator[None]:
    """Have a function called at each sign of life of what this thread reads in the block."""
    _signs.note = note
    try:
        yield
    finally:
        del _signs.note


class Item:
    """Item that is being read, a call after the other; to be closed at the end.

    Args:
        name: Stands in its errors.
        timeout: Seconds of silence after which it is given up; None: it is read in this thread, and never given up.
    """

    def __init__(self, name: str, timeout: float | None):
        self._name, self._timeout, self._is_behind = name, timeout, False
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=f"reading {name}", daemon=True)
        if timeout is not None:
            self._thread.start()

    def call(self, read: Callable[[], Result]) -> Result:
        """Call a function that reads from the item.

        Raises:
            VideoDecodingError: It failed in any way, or was silent for too long.
            MemoryError: The process has no memory left; what an item itself asks for is checked where it is read.
        """
        result, error = self._try(read) if self._timeout is None else self._wait_for(read, self._timeout)
        if error is not None:
            raise error
        return result

    def close(self, release: Callable[[], object] = lambda: None) -> None:
        """Release the item where it was read; of one that was given up, when it comes back, if ever."""
        if self._timeout is None or not self._is_lost:
            self.call(release)
        else:
            self._calls.put(release)
        self._calls.put(None)

    @property
    def _is_lost(self) -> bool:
        """True for an item that was given up, and in a process that was forked, which has none of the threads."""
        return self._is_behind or not self._thread.is_alive()

    def _wait_for(self, read: Callable[[], Any], timeout: float) -> tuple[Any, BaseException | None]:
        self._last_sign = -timeout if self._is_lost else time.monotonic()
        self._is_behind = True  # until the outcome is here: an interrupt leaves it so
        self._calls.put(read)
        while (left := self._last_sign + timeout - time.monotonic()) > 0:
            try:
                outcome = self._outcomes.get(timeout=min(left, _SECONDS_TO_INTERRUPT))
            except queue.Empty:
                continue
            self._is_behind = False
            return outcome
        return None, VideoDecodingError(self._name, f"no new frame for {timeout:g} s: given up", _RAISE_TIMEOUT)

    def _serve(self) -> None:
        with noting_signs_of_life(self._note_sign):
            while (read := self._calls.get()) is not None:
                self._outcomes.put(self._try(read))

    def _note_sign(self) -> None:
        self._last_sign = time.monotonic()

    def _try(self, read: Callable[[], Any]) -> tuple[Any, BaseException | None]:
        try:
            return read(), None
        except VideoDecodingError as error:
            # Decoders name the file in their own words too; that of bytes in memory means nothing to anybody.
            cause = error.cause.replace(error.path, self._name) if error.path else error.cause
            renamed = type(error)(self._name, cause, error.remedy)
            renamed.__cause__ = error
            return None, renamed
        except (MemoryError, KeyboardInterrupt, SystemExit) as error:  # of the run, not of the item
            return None, error
        except Exception as error:  # the one place where an item may fail in any way
            logger.warning("reading %s failed", self._name, exc_info=True)
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {first_line(error)}"
            failure = VideoDecodingError(self._name, f"it cannot be read ({reason})", CHECK_FILE)
            failure.__cause__ = error
            return None, failure


def read_item(name: str, read: Callable[[], Result], *, timeout: float | None = ITEM_TIMEOUT) -> Result:
    """Read an item by one call.

    Args:
        name: Stands in its errors.
        read: Reads it.
        timeout: As for `Item`.

    Raises:
        VideoDecodingError: As `Item.call`.
    """
    item = Item(name, timeout)
    try:
        return item.call(read)
    finally:
        item.close()
