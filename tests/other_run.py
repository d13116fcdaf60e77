"""A run of another machine, as far as its output folder shows it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vjepa_hub.core.folder_lock import FolderLock

HOST = "far-away"


def leave_lock(folder: Path, **values: object) -> Path:
    """Leave a lock as a killed run of this process would, with some values changed. Return its file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".keep").touch()
    with FolderLock(folder) as lock:
        holder = json.loads(lock.file.read_text())
    (folder / ".keep").unlink()
    lock.file.write_text(json.dumps({**holder, **values}))
    return lock.file


@contextmanager
def at_work_in(folder: Path) -> Iterator[None]:
    """A folder that a run of another machine holds within the block; nothing else may come into it meanwhile."""
    lock = leave_lock(folder, machine="00000000", host=HOST)
    before = sorted(folder.rglob("*"))
    yield
    assert sorted(folder.rglob("*")) == before
    lock.unlink()
