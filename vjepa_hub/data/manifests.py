"""Lists of videos: what a manifest file or a folder names, and the labels that stand beside the paths."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_MPEG_ENDINGS = {".3gp", ".m2ts", ".m4v", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts"}
VIDEO_ENDINGS = frozenset(_MPEG_ENDINGS | {".avi", ".flv", ".mkv", ".ogv", ".webm", ".wmv"})
MANIFEST_ENDINGS = (".txt", ".csv", ".jsonl")


class ManifestEntry(NamedTuple):
    """A video as a manifest names it.

    Attributes:
        path: As it is written: absolute, relative to the manifest's folder, or an address.
        label: As it is written; None where there is none. `parse_label` makes a class number of it.
        line: Number of its line in the manifest, from 1.
    """

    path: str
    label: object
    line: int


def is_video_name(name: str) -> bool:
    """Whether a file of this name is a video: by its ending, and it is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_ENDINGS


def videos_below(root: str | Path) -> list[Path]:
    """List the videos in a folder and all that is below it, in the order of names; those that begin with a dot not.

    Links to folders are not followed. The list may be empty.

    Args:
        root: The folder. The paths begin with it, as it is given.
    """
    return sorted(Path(folder, name) for folder, names in walk_folders(root) for name in names if is_video_name(name))


def walk_folders(root: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Yield `(folder, names of its files)` for a folder and all below it, without folders that begin with a dot."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield folder, names


def read_manifest_entries(manifest: str | Path) -> list[ManifestEntry]:
    """Read a list of videos from a text file.

    - `.txt`: a path on each line;
    - `.csv`: a path and a label on each line, as in the release: the last space stands between them, so that paths
      may contain spaces; or a table with commas and a column `path`, perhaps `label`, in its first line;
    - `.jsonl`: an object on each line, with `path` or `video`, perhaps `label`.

    Args:
        manifest: The file, in UTF-8.

    Raises:
        ValueError: another ending, no video in it, or a line that cannot be understood.
        OSError: the file cannot be read.
    """
    manifest = Path(manifest)
    readers = {".txt": _text_entries, ".csv": _csv_entries, ".jsonl": _jsonl_entries}
    if manifest.suffix.lower() not in readers:
        raise ValueError(
            f"the manifest {manifest} ends in '{manifest.suffix}'; known are {', '.join(MANIFEST_ENDINGS)}"
        )
    try:
        lines = manifest.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"the manifest {manifest} is not text in UTF-8 ({error}): save it as such") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"the manifest {manifest} names no video: it is empty")
    return readers[manifest.suffix.lower()](numbered, manifest)


def parse_label(label: object, where: str) -> int:
    """Read a label as the number of a class.

    Args:
        label: An integer, or text that is one.
        where: Where it stands, for the error.

    Raises:
        ValueError: it is no integer, or a negative one.
    """
    is_integer = isinstance(label, int) and not isinstance(label, bool)
    text = str(label).strip() if is_integer or isinstance(label, str) else ""
    if not (text.isascii() and text.isdigit()):
        found = "no label" if label is None else f"the label {label!r}"
        raise ValueError(
            f"{where} has {found}, but a label is the number of a class, an integer from 0; number the classes, or "
            "read without labels (with_labels=False)"
        )
    return int(text)


NumberedLines = list[tuple[int, str]]


def _text_entries(lines: NumberedLines, manifest: Path) -> list[ManifestEntry]:
    return [ManifestEntry(line, None, number) for number, line in lines]


def _csv_entries(lines: NumberedLines, manifest: Path) -> list[ManifestEntry]:
    header = [name.strip() for name in next(csv.reader([lines[0][1]]))]
    if "path" in header:
        return _table_entries(lines[1:], header, manifest)
    entries = []
    for number, line in lines:
        path, _, label = line.rpartition(" ")
        if not path or is_video_name(os.path.basename(label)):
            raise ValueError(
                f"line {number} of the manifest {manifest} is '{line}', without a label after the path: write "
                "'path label', or 'path' in the first line of a table with commas, or a .txt with a path on each line"
            )
        entries.append(ManifestEntry(path.rstrip().strip('"'), label, number))
    return entries


def _table_entries(lines: NumberedLines, header: list[str], manifest: Path) -> list[ManifestEntry]:
    path_column = header.index("path")
    label_column = header.index("label") if "label" in header else None
    entries = []
    for number, line in lines:
        row = [cell.strip() for cell in next(csv.reader([line]))]
        if len(row) <= path_column or not row[path_column]:
            raise ValueError(
                f"line {number} of the manifest {manifest} is '{line}', with nothing in its column 'path'"
            )
        label = row[label_column] if label_column is not None and label_column < len(row) else None
        entries.append(ManifestEntry(row[path_column], label or None, number))
    if not entries:
        raise ValueError(f"the manifest {manifest} names no video: there is nothing below its first line")
    return entries


def _jsonl_entries(lines: NumberedLines, manifest: Path) -> list[ManifestEntry]:
    entries = []
    for number, line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} of the manifest {manifest} is no JSON ({error})") from error
        path = (entry.get("path") or entry.get("video")) if isinstance(entry, dict) else None
        if not isinstance(path, str):
            raise ValueError(
                f"line {number} of the manifest {manifest} is '{line}', not an object with the text 'path' or 'video'"
            )
        entries.append(ManifestEntry(path, entry.get("label"), number))
    return entries
