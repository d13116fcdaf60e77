"""Lists of videos: what a manifest file or a folder names, and the labels that stand beside the paths."""

import csv
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

logger = logging.getLogger(__name__)

_MPEG_ENDINGS = (
    ".264 .265 .3g2 .3gp .f4v .h264 .h265 .hevc .m1v .m2t .m2ts .m2v .m4v .mjpeg .mjpg .mov .mp4 .mpe .mpeg .mpg .mpv "
    ".mts .qt .ts .vob"
)
_OTHER_ENDINGS = (
    ".amv .apng .asf .avi .divx .dv .flv .gif .ivf .mkv .mxf .nut .ogm .ogv .rm .rmvb .webm .wmv .wtv .y4m"
)
VIDEO_ENDINGS = frozenset(f"{_MPEG_ENDINGS} {_OTHER_ENDINGS}".split())
MANIFEST_ENDINGS = (".txt", ".csv", ".jsonl")
_SPACES = " \t\r"  # not all that str.strip takes away, and str.splitlines breaks at: file names may have the rest


@dataclass(frozen=True)
class ManifestEntry:
    """A video as a manifest names it.

    Attributes:
        path: As it is written: absolute, relative to the manifest's folder, or an address.
        label: As it is written; None where there is none. `parse_label` makes a class number of it.
        line: Number of its first line in the manifest, from 1.
        text: Its lines in the manifest.
    """

    path: str
    label: object
    line: int
    text: str = field(default="", compare=False, repr=False)


def is_video_name(name: str) -> bool:
    """Return whether a file of this name is a video: by its ending, and it is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_ENDINGS


def videos_below(root: str | Path) -> list[Path]:
    """List the videos in a folder and all that is below it, in the order of names; those that begin with a dot not.

    Links to folders are not followed. The list may be empty; if not, a warning counts the other files by their
    endings; others name such links, and folders that cannot be listed.

    Args:
        root: The folder. The paths begin with it, as it is given.
    """
    videos, others = [], Counter[str]()
    for folder, names in walk_folders(root):
        videos += [Path(folder, name) for name in names if is_video_name(name)]
        visible = [name for name in names if not name.startswith(".") and not is_video_name(name)]
        others.update(os.path.splitext(name)[1].lower() or "no ending" for name in visible)
    if videos and others:
        counts = ", ".join(f"{count} {ending}" for ending, count in others.most_common())
        logger.warning("%s: %d videos; files that are not taken for videos: %s", root, len(videos), counts)
    return sorted(videos)


def walk_folders(root: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Yield `(folder, names of its files)` for a folder and all below it, without folders that begin with a dot.

    Links to folders are not followed. These, and folders that cannot be listed, are warned of.
    """

    def warn(error: OSError) -> None:
        logger.warning("the folder %s is left out: it cannot be listed (%s)", error.filename, error.strerror)

    for folder, folders, names in os.walk(root, onerror=warn):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        if links:
            logger.warning("%s: links to folders are not followed; left out: %s", folder, ", ".join(links))
        yield folder, names


def read_manifest_entries(manifest: str | Path) -> list[ManifestEntry]:
    """Read a list of videos from a text file.

    - `.txt`: a path on each line, or a path that ends as a video, a space and the number of a class;
    - `.csv`: a path and a label on each line, as in the release: the last space stands between them, so that paths
      may contain spaces; or a table with commas and a column `path`, perhaps `label`, in its first line;
    - `.jsonl`: an object on each line, with `path` or `video`, perhaps `label`.

    Lines end at a line feed and nowhere else. A path that holds one, or begins or ends with a space, stands in quotes:
    those of CSV in a table, those of JSON elsewhere.

    Args:
        manifest: The file, in UTF-8.

    Raises:
        ValueError: Another ending, no video in it, or a line that cannot be understood.
        OSError: The file cannot be read.
    """
    return _read(Path(manifest))[1]


def select_entries(manifest: str | Path, new_path: Callable[[str], str | None]) -> str:
    """Write a manifest anew with some of its entries, their labels and all else.

    Args:
        manifest: The file.
        new_path: For the path of an entry, the path to write in its place; None leaves the entry out.

    Returns:
        The text of the new manifest.

    Raises:
        ValueError: As `read_manifest_entries`.
    """
    header, entries = _read(Path(manifest))
    texts = [header]
    for entry in entries:
        path = new_path(entry.path)
        if path is not None:
            texts.append(entry.text if path == entry.path else _with_path(entry, path, Path(manifest), header))
    return "".join(text if text.endswith("\n") else f"{text}\n" for text in texts if text)


def path_line(path: str) -> str:
    """Return the line of a `.txt` manifest that names a path, whatever characters it has."""
    is_plain = path.isprintable() and path == path.strip(_SPACES) and _path_and_label(path) == (path, None)
    return path if is_plain else json.dumps(path)


def labelled_line(path: str, label: object) -> str:
    """Return the line 'path label' of a `.csv` or `.txt` manifest, whatever characters the path has."""
    is_header = "path" in (column.strip() for column in path.split(",")[:-1])  # of a table with commas
    is_plain = path.isprintable() and path == path.strip(_SPACES).strip('"') and not is_header
    quoted = json.dumps(path).replace(",", r"\u002c")
    return f"{path if is_plain else quoted} {label}"


def _read(manifest: Path) -> tuple[str, list[ManifestEntry]]:
    """Read the header of a table, empty elsewhere, and the entries."""
    readers = {".txt": _text_entries, ".csv": _csv_entries, ".jsonl": _jsonl_entries}
    ending = manifest.suffix.lower()
    if ending not in readers:
        raise ValueError(
            f"the manifest {manifest} ends in '{manifest.suffix}'; known are {', '.join(MANIFEST_ENDINGS)}"
        )
    try:
        text = manifest.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the manifest {manifest} is not text in UTF-8 ({error}): save it as such") from error
    lines = text.split("\n")
    if not text.strip():
        raise ValueError(f"the manifest {manifest} names no video: it is empty")
    columns = [name.strip() for name in next(csv.reader([lines[0]]), [])]
    if ending == ".csv" and "path" in columns:
        try:
            return lines[0], _table_entries(text, columns, manifest)
        except csv.Error as error:
            raise ValueError(f"the manifest {manifest} is no table with commas ({error})") from error
    numbered = [(number, line.strip(_SPACES)) for number, line in enumerate(lines, 1) if line.strip(_SPACES)]
    return "", readers[ending](numbered, manifest)


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
    return [ManifestEntry(*_path_and_label(line), number, line) for number, line in lines]


def _path_and_label(line: str) -> tuple[str, str | None]:
    """Take a line of a `.txt` manifest apart."""
    quoted = _split_quoted(line)
    if quoted is not None:
        return quoted[0], quoted[1] or None
    path, _, label = line.rpartition(" ")
    path = path.rstrip(_SPACES)
    has_label = label.isascii() and label.isdigit() and is_video_name(os.path.basename(path))
    return (path, label) if has_label else (line, None)


def _split_quoted(line: str) -> tuple[str, str] | None:
    """Return a path in the quotes of JSON, and the rest; None where there is none."""
    try:
        path, end = json.JSONDecoder().raw_decode(line)
    except json.JSONDecodeError:
        return None
    return (path, line[end:].strip(_SPACES)) if isinstance(path, str) else None


def _csv_entries(lines: NumberedLines, manifest: Path) -> list[ManifestEntry]:
    entries = []
    for number, line in lines:
        path, _, label = line.rpartition(" ")
        path, label = _split_quoted(line) or (path.rstrip(_SPACES).strip('"'), label)
        if not path or not label or is_video_name(os.path.basename(label)):
            raise ValueError(
                f"line {number} of the manifest {manifest} is '{line}', without a label after the path: write "
                "'path label', or 'path' in the first line of a table with commas, or a .txt with a path on each line"
            )
        entries.append(ManifestEntry(path, label, number, line))
    return entries


def _table_entries(text: str, header: list[str], manifest: Path) -> list[ManifestEntry]:
    path_column = header.index("path")
    label_column = header.index("label") if "label" in header else None
    lines = [f"{line}\n" for line in text.split("\n")]
    rows, start, entries = csv.reader(lines, skipinitialspace=True), 0, []
    for row in rows:
        number, start = start + 1, rows.line_num
        if number == 1 or not any(row):
            continue
        own = "".join(lines[number - 1 : start])
        if len(row) <= path_column or not row[path_column]:
            raise ValueError(
                f"line {number} of the manifest {manifest} is '{own.strip()}', with nothing in its column 'path'"
            )
        label = row[label_column].strip() if label_column is not None and label_column < len(row) else None
        entries.append(ManifestEntry(row[path_column], label or None, number, own))
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
        entries.append(ManifestEntry(path, entry.get("label"), number, line))
    return entries


def _with_path(entry: ManifestEntry, path: str, manifest: Path, header: str) -> str:
    """Return the lines of an entry with another path in the place of its own."""
    ending = manifest.suffix.lower()
    if ending == ".jsonl":
        fields = json.loads(entry.text)
        return json.dumps({**fields, "path" if fields.get("path") else "video": path})
    if header:
        row = next(csv.reader(io.StringIO(entry.text, newline=""), skipinitialspace=True))
        row[[name.strip() for name in next(csv.reader([header]))].index("path")] = path
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerow(row)  # a carriage return, too
        return text.getvalue()
    return path_line(path) if entry.label is None else labelled_line(path, entry.label)
