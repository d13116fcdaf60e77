"""Features on disk that a frozen encoder computes once: rows of an array for each item, and what is known of it.

A store lies in a folder of its own, named after everything that its features depend on, so that one is used only if
all of it matches. What is complete in it stays so if the filling is interrupted, and several processes fill one store.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from ..core.files import remove_leftovers, write_whole, writing, written_whole

_KEY_FILE, _FEATURE_FILE, _STATE_FILE = "key.json", "features.npy", "state.npy"
_MISSING, _READABLE, _UNREADABLE = 0, 1, 2


class FeatureStore:
    """Features of items, float16, each with one row or several.

    Args:
        folder: Folder of all stores.
        key: Plain values of all that the features depend on.
        rows_per_item: `(num_items,)` integers.
        description: Of the set, for errors.
    """

    def __init__(self, folder: str | Path, key: Mapping[str, Any], rows_per_item: np.ndarray, description: str):
        self.key, self.description = dict(key), description
        self._first_rows = np.concatenate([[0], np.cumsum(rows_per_item)])
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()
        self.folder = Path(folder, digest[:16])

    def __len__(self) -> int:
        return len(self._first_rows) - 1

    def rows(self, items: np.ndarray) -> np.ndarray:
        """The rows of some items, one item after the other, `(num_rows,)`."""
        counts = self._first_rows[items + 1] - self._first_rows[items]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(self._first_rows[items], counts) + within

    def to_compute(self, items: Sequence[int]) -> list[int]:
        """Items without features. Those that could not be read count: a disk or a network may have been the cause.

        Raises:
            ValueError: The folder holds something else.
        """
        remove_leftovers(self.folder.absolute())
        state = self._state()
        return [item for item in items if state is None or state[item] != _READABLE]

    def is_readable(self, items: np.ndarray) -> np.ndarray:
        """Items that could be decoded, `(num_items,)` bool.

        Raises:
            RuntimeError: The features of one of them were not computed.
            ValueError: The folder holds something else.
        """
        state = self._state()
        if state is None or (state[items] == _MISSING).any():
            missing = "is empty" if state is None else "is not complete"
            raise RuntimeError(f"the cache {self.folder} {missing}; fill it first")
        return state[items] == _READABLE

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Features of some rows, `(num_rows, ...)`; of items that could not be read they mean nothing.

        Raises:
            ValueError: They are damaged.
        """
        features = self._load(_FEATURE_FILE)[rows]
        if not np.isfinite(features).all():
            raise self._damaged(_FEATURE_FILE, "numbers in it are not finite")
        return features

    def write(self, items: np.ndarray, features: np.ndarray, is_readable: np.ndarray) -> None:
        """Write the features of some items, all their rows.

        Args:
            items: `(num_items,)`.
            features: `(num_rows, ...)` float16, one item after the other.
            is_readable: `(num_items,)` bool.

        Raises:
            OSError: There is no room for the store.
            ValueError: The features have another shape than those that are there.
        """
        self._create(features.shape[1:])
        # Features first, so that an item is only marked as there when it is
        self._write_rows(_FEATURE_FILE, self.rows(items), features)
        self._write_rows(_STATE_FILE, items, np.where(is_readable, _READABLE, _UNREADABLE).astype(np.uint8))

    def _create(self, shape: Sequence[int]) -> None:
        """Make the files if they are not there; several processes may come here at once."""
        if (self.folder / _KEY_FILE).exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        num_rows = int(self._first_rows[-1])
        self._require_room(2 * num_rows * math.prod(shape))
        for name, dtype, whole in (
            (_FEATURE_FILE, np.float16, (num_rows, *shape)),
            (_STATE_FILE, np.uint8, (len(self),)),
        ):
            if not (self.folder / name).exists():  # the first of several processes wins: others may have rows in it
                with written_whole(self.folder / name, replace=False) as file:
                    np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=whole)
        write_whole(self.folder / _KEY_FILE, json.dumps(self.key, indent=1, sort_keys=True))

    def _require_room(self, num_bytes: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if num_bytes > free:
            raise OSError(
                f"the features of {self.description or 'the set'} take {num_bytes / 1e9:.1f} GB, but "
                f"{self.folder.parent} has {free / 1e9:.1f} GB free; name a folder with more room, or keep no features"
            )

    def _state(self) -> np.ndarray | None:
        """State of each item; None if nothing is there yet."""
        file = self.folder / _KEY_FILE
        if not file.exists():
            return None
        try:
            key = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is damaged ({error}); delete {self.folder}, which is filled again") from error
        if key != self.key:
            raise ValueError(f"the cache {self.folder} belongs to something else than its name says; delete it")
        return self._load(_STATE_FILE)

    def _load(self, name: str) -> np.memmap:
        """A `.npy` file of the store, mapped."""
        dtype, num_rows = (np.uint8, len(self)) if name == _STATE_FILE else (np.float16, int(self._first_rows[-1]))
        try:
            stored = np.load(self.folder / name, mmap_mode="r")
        except (ValueError, TypeError, EOFError, OverflowError, SyntaxError, TokenError, OSError) as error:
            raise self._damaged(name, str(error)) from error
        if stored.dtype != dtype or stored.shape[:1] != (num_rows,):
            raise self._damaged(name, f"{stored.dtype} of shape {stored.shape}")
        return stored

    def _damaged(self, name: str, cause: str) -> ValueError:
        return ValueError(
            f"{self.folder / name} is damaged ({cause}); delete {self.folder}, which is filled again from the videos"
        )

    def _write_rows(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        """Write some rows of a `.npy` file, and nothing else.

        Not by mapping it into memory: a map writes whole pages, in which other machines may have rows of their own,
        and a full disk ends the process without a word.
        """
        file, stored = self.folder / name, self._load(name)
        if stored.shape[1:] != values.shape[1:] or stored.dtype != values.dtype:
            raise ValueError(
                f"{file} holds {stored.dtype} of shape {stored.shape[1:]} for each row, but {values.dtype} of shape "
                f"{values.shape[1:]} are to be kept in it; delete {file.parent}"
            )
        with writing(file), open(file, "r+b") as opened:
            for row, value in zip(rows.tolist(), values, strict=True):
                opened.seek(stored.offset + row * stored.strides[0])
                opened.write(value.tobytes())
            opened.flush()
            os.fsync(opened.fileno())
