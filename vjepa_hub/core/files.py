"""Files and folders that are whole or not there.

A file is written in a hidden folder beside its place, flushed to the disk, and moved there last. A kill at any moment
leaves the file that was there before, and a folder that the next process to write there recognises and removes.
"""

import errno
import functools
import hashlib
import itertools
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

_NUMBERS = itertools.count()
_OTHER_FOLDER = "name another output folder"
_TEMPORARY = re.compile(r"\..*\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-\d+\.partial", re.DOTALL)
_SECONDS_OF_A_DAY = 86_400
_OF_ANY_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_REMEDIES = {
    errno.EROFS: "name a folder of another file system",
    errno.EFBIG: "raise the limit of the size of files (`ulimit -f`), or name a folder of another file system",
    errno.EIO: "check the disk, or name a folder of another one",
}


class WriteError(OSError):
    """A file cannot be written. The message has the path, the cause and the remedy."""


def require_replaceable(
    outputs: Iterable[Path],
    *,
    inputs: Iterable[str | os.PathLike] = (),
    is_own: Callable[[Path], bool] = lambda path: True,
) -> None:
    """Refuse outputs that would replace an input, or what this package did not write. To be called before any work.

    Args:
        outputs: Files that will be written; those that are not there are passed over.
        inputs: Files that the same command reads.
        is_own: Returns whether this package wrote a file that is there.

    Raises:
        FileExistsError: With the first such file.
    """
    there = [path for path in outputs if os.path.lexists(path)]
    read = {_identity(path) for path in inputs} - {None} if there else set()
    for path in there:
        if _identity(path) in read:
            raise FileExistsError(f"'{path}' would be replaced, but is read by the same command; {_OTHER_FOLDER}")
        if not is_own(path):
            raise FileExistsError(
                f"'{path}' would be replaced, but vjepa_hub did not write it; move it, or {_OTHER_FOLDER}"
            )


def _identity(path: str | os.PathLike) -> tuple[int, int] | None:
    """Device and number of a file, whatever its path; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # the last for a null character
        return None
    return status.st_dev, status.st_ino


def write_whole(path: str | os.PathLike, content: bytes | str) -> Path:
    """Write a file, whole or not at all. Its folder is made.

    Args:
        path: The file; replaced if it exists.
        content: Bytes, or text: UTF-8, its line ends as they are, undecodable bytes of file names as they were.

    Returns:
        `path`.

    Raises:
        WriteError: The disk is full or read-only, or the folder cannot be made.
    """
    with written_whole(path) as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogateescape"))
    return Path(path)


def read_utf8(path: str | os.PathLike) -> str:
    """The text of a file, its line ends as they are.

    Raises:
        ValueError: It is not in UTF-8.
        OSError: It cannot be read.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}): save it as such, or write it anew") from error


@contextmanager
def written_whole(path: str | os.PathLike, *, replace: bool = True) -> Iterator[Path]:
    """A file to write to, which replaces the one at `path` when the block ends without an error.

    It has the same name, in a hidden folder of its own: encoders choose the container by the ending. Files that a
    writer puts beside it (weights of a large ONNX file) are moved along.

    Args:
        path: The file. Its folder is made.
        replace: Whether a file that has appeared at `path` meanwhile is replaced. Otherwise the first of several
            processes wins.

    Yields:
        The path to write to.

    Raises:
        WriteError: The disk is full or read-only, or the folder cannot be made.
    """
    path = Path(path)
    folder = path.with_name(f".{_shortened(path.stem)}.{machine_id()}-{os.getpid()}-{next(_NUMBERS)}.partial")
    try:
        with writing(path, workplace=folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent.absolute())
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            yield folder / path.name
            companions = {part.name for part in folder.iterdir()} - {path.name}
            for name in (*companions, path.name):  # the file itself comes last: it refers to the others
                _set_ordinary_mode(folder / name, folder)
                (put_in_place if replace else _link_once)(folder / name, path.with_name(name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def folder_written_whole(
    folder: Path, workplace: Path, *, is_writer: bool = True, wait: Callable[[], object] = lambda: None
) -> Iterator[Path]:
    """A folder to write into, which gets its name when all processes have written.

    Args:
        folder: Its place. A folder that is there already is replaced.
        workplace: A folder on the same file system for what is unfinished, of this writer alone. It is removed at the
            end, and at the start where a kill has left it.
        is_writer: Whether this process cleans up and renames: one process on each file system.
        wait: Returns when every process has called it.

    Yields:
        The folder to write in, of the same name.

    Raises:
        WriteError: The disk is full or read-only.
    """
    temporary = workplace / folder.name
    try:
        with writing(folder, workplace=workplace):
            if is_writer:
                shutil.rmtree(workplace, ignore_errors=True)
                temporary.mkdir(parents=True)
            wait()
            yield temporary
            wait()
            if is_writer:
                for path in [*temporary.rglob("*"), temporary]:
                    if path.is_file():
                        _set_ordinary_mode(path, temporary)
                    _flush(path)
                folder.parent.mkdir(parents=True, exist_ok=True)
                if folder.exists():
                    os.replace(folder, workplace / "replaced")
                os.replace(temporary, folder)
    finally:
        if is_writer:
            shutil.rmtree(workplace, ignore_errors=True)
    wait()


def put_in_place(finished: Path, path: Path) -> None:
    """Give a finished file its name, once the disk has its content.

    Args:
        finished: The file, on the file system of `path`.
        path: Its place; a file that is there is replaced.
    """
    _flush(finished)
    os.replace(finished, path)


def _link_once(finished: Path, path: Path) -> None:
    """Give a finished file its name unless another process was first."""
    _flush(finished)
    with suppress(FileExistsError):
        os.link(finished, path)


def _flush(path: Path) -> None:
    """Have the system write a file or folder, so that its name never stands for less than its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _set_ordinary_mode(file: Path, folder: Path) -> None:
    """The mode that the umask gives a new file, as the new folder has it; some writers make files private."""
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    if stat.S_IMODE(file.stat().st_mode) != mode:
        file.chmod(mode)


# ------------------------------------------------------------------------------------------- leftovers of killed runs


def _shortened(stem: str) -> str:
    """At most 100 bytes of a name, for a longer one that stays below the 255 of a file system."""
    return os.fsencode(stem)[:100].decode(errors="ignore")


@functools.cache
def machine_id() -> str:
    """Identity of this machine and its space of process numbers, since containers may share a host's name."""
    space = Path("/proc/self/ns/pid")
    identity = f"{socket.gethostname()} {space.stat().st_ino if space.exists() else ''}"
    return hashlib.sha256(identity.encode()).hexdigest()[:8]


@functools.lru_cache(maxsize=1024)
def remove_leftovers(folder: Path) -> None:
    """Remove from a folder what killed processes have left, once in each process that writes there.

    Args:
        folder: An absolute path.
    """
    for place in folder.glob(".*.partial"):
        name = _TEMPORARY.fullmatch(place.name)
        if name and _is_abandoned(place, name["machine"], int(name["process"])):
            shutil.rmtree(place, ignore_errors=True)


def _is_abandoned(place: Path, machine: str, process: int) -> bool:
    """Return whether the process of a folder has ended; of another machine's, after a day of rest."""
    import psutil

    if machine == machine_id() and not psutil.pid_exists(process):
        return True
    times = [path.stat().st_mtime for path in (place, *place.glob("*")) if path.exists()]
    return bool(times) and time.time() - max(times) > _SECONDS_OF_A_DAY


# ------------------------------------------------------------------------------------------------------------- errors


@contextmanager
def writing(path: str | os.PathLike, *, workplace: Path | None = None) -> Iterator[None]:
    """Name path, cause and remedy where a file or folder cannot be written within the block, by any library.

    Errors about what its writer reads pass as they are.

    Args:
        path: What is written.
        workplace: A folder where it lies meanwhile.

    Raises:
        WriteError: The disk is full or read-only, or the folder is not there or not to be written to.
    """
    path = Path(path)
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        named = _named_file(error)
        if error.errno in _OF_ANY_OUTPUT or (error.errno and named and _is_about(named, path, workplace)):
            raise _write_error(error.errno, path if named is None or workplace else named) from error
        raise
    except (RuntimeError, SafetensorError) as error:  # of libraries that write files by themselves
        number = _number_in(error, path)
        if number is None or number not in _OF_ANY_OUTPUT:
            raise
        raise _write_error(number, path) from error


def describe_output_error(error: OSError) -> str | None:
    """Path, cause and remedy of an error of a full or read-only disk; None for another error."""
    if isinstance(error, WriteError):
        return str(error).rpartition(f"{WriteError.__name__}: ")[2]  # of a worker it comes with a traceback
    if error.errno not in _OF_ANY_OUTPUT:
        return None
    return str(_write_error(error.errno, _named_file(error)))


def _named_file(error: OSError) -> Path | None:
    """The file that an error names; of a copy or a move, its destination."""
    name = error.filename if error.filename2 is None else error.filename2
    return None if name is None else Path(os.fsdecode(name))


def _number_in(error: Exception, path: Path) -> int | None:
    """Number of the system's error behind that of safetensors or torch."""
    if found := re.search(r"\(os error (\d+)\)|\bOs \{ code: (\d+)", str(error)):
        return int(found[1] or found[2])
    if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
        return None
    try:  # torch does not tell the cause
        with tempfile.TemporaryFile(dir=next(place for place in path.absolute().parents if place.is_dir())) as file:
            file.write(bytes(1 << 20))
    except OSError as cause:
        return cause.errno
    return None


def _is_about(named: Path, path: Path, workplace: Path | None) -> bool:
    """Return whether a path is that of an output, lies in it, or is a folder that it lies in."""
    named, places = named.absolute(), [place.absolute() for place in (path, workplace) if place is not None]
    return any(named == place or place in named.parents or named in place.parents for place in places)


def _write_error(number: int, path: Path | None) -> WriteError:
    remedy = _REMEDIES.get(number, "name a folder that is there and that you may write to")
    if number in (errno.ENOSPC, errno.EDQUOT):
        remedy = "delete files there: it has no inodes left" if _has_no_inodes(path) else "make room there"
    cause = os.strerror(number)
    explained = WriteError(f"{path or 'an output'} could not be written: {cause}; {remedy}, and run again")
    explained.errno = number
    return explained


def _has_no_inodes(path: Path | None) -> bool:
    folder = next((place for place in (path or Path()).absolute().parents if place.is_dir()), Path("/"))
    system = os.statvfs(folder)
    return system.f_files > 0 and system.f_favail == 0
