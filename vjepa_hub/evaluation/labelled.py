"""Videos or images with a class each: where they come from, and what must hold before anything is trained on them.

Videos are what `vjepa_hub.data.sources.open_source` takes, with labels; besides, a folder with a folder for each
class, whose names in alphabetical order are the classes (torchvision's ImageFolder). Images are such a folder, a
manifest with labels, or a Hugging Face data set with a column of images.

Where the data names its classes itself, by its folders or in a Hugging Face data set, and the caller names them too,
labels follow the caller's order: a validation set in which a class is missing is numbered as its training set.
"""

import hashlib
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..core.files import read_utf8
from ..core.run_files import DataFacts, without_credentials
from ..data.hugging_face import LABEL_COLUMNS as VIDEO_LABEL_COLUMNS
from ..data.hugging_face import import_datasets, read_parquet
from ..data.images import read_image
from ..data.items import ITEM_TIMEOUT
from ..data.manifests import (
    MANIFEST_ENDINGS,
    is_video_name,
    parse_label,
    read_manifest_entries,
    videos_below,
    walk_folders,
)
from ..data.records import ClipSource, TarMember, VideoBytes, VideoRecord, is_address, is_image_name
from ..data.sources import VideoFileSource, open_source
from ..data.video import VideoDecodingError
from .protocols import Media

# Names in a message; the rest is counted
MAX_NAMED = 10
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")


class MediaSource(ABC):
    """Videos or images by number."""

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Name that identifies an item in messages and lists: a path, or a row."""

    def stamp(self, index: int) -> str:
        """State of the file of that name: its size and time of change; empty where there is no file."""
        return _stamp_file(self.name(index))


def _stamp_file(path: str) -> str:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # the last for a null character
        return ""
    return f"{found.st_size}-{found.st_mtime_ns}"


def _stamp_bytes(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class VideoSource(MediaSource):
    """Videos of a `ClipSource`."""

    def __init__(self, source: ClipSource):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        """Implement `MediaSource`."""
        return self.source.record(index).name

    def stamp(self, index: int) -> str:
        """Implement `MediaSource`; of bytes a digest. A video at an address has none: it is not fetched for this."""
        record = self.source.record(index)
        if isinstance(record.content, VideoBytes):
            return _stamp_bytes(record.content.data)
        if isinstance(record.content, TarMember):
            return f"{_stamp_file(record.content.shard)}-{record.content.offset}-{record.content.size}"
        return _stamp_file(record.name)

    def record(self, index: int) -> VideoRecord:
        """One video."""
        return self.source.record(index)


class ImageSource(MediaSource):
    """Images, which come upright and as RGB."""

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """Read one image.

        Raises:
            VideoDecodingError: it cannot be read completely.
        """


class ImageFiles(ImageSource):
    """Image files."""

    def __init__(self, paths: Sequence[str | Path]):
        self.paths = [os.fspath(path) for path in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Implement `MediaSource`."""
        return self.paths[index]

    def read(self, index: int) -> Image.Image:
        """Implement `ImageSource`."""
        return read_image(self.paths[index])


class ImageRows(ImageSource):
    """The images of a `datasets.Dataset`, undecoded."""

    def __init__(self, dataset: Any, column: str, name: str):
        self.dataset, self.column, self._name = dataset, column, name

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        """Implement `MediaSource`."""
        return f"row {index} of {self._name}"

    def read(self, index: int) -> Image.Image:
        """Implement `ImageSource`."""
        data, path = self._content(index)
        if data is None and not path:
            raise VideoDecodingError(self.name(index), "the row holds no image", "leave the row out")
        return read_image(path if data is None else io.BytesIO(data), name=self.name(index))

    def stamp(self, index: int) -> str:
        """Implement `MediaSource`; of bytes a digest."""
        data, path = self._content(index)
        return _stamp_file(path) if data is None else _stamp_bytes(data)

    def _content(self, index: int) -> tuple[bytes | None, str]:
        """The bytes of an image, or the path of its file."""
        value = self.dataset[int(index)][self.column] or {}
        return value.get("bytes"), value.get("path") or ""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledSet:
    """Videos or images with a class each.

    Attributes:
        source: The videos or images.
        indices: Which of them, `(num_videos,)` int64.
        labels: The class of each, `(num_videos,)` int64, in `[0, num_classes)`.
        num_classes: Number of classes.
        class_names: Name of each class; None where nothing says so.
        description: Where they come from, without the machine's folders.
        given: Path or address that it was opened by; empty for a data set that was open.
        item_timeout: Seconds without a new frame after which an item is given up.
    """

    source: MediaSource
    indices: np.ndarray
    labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...] | None = None
    description: str = ""
    given: str = ""
    item_timeout: float = ITEM_TIMEOUT

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def names(self) -> list[str]:
        """Names that identify the items."""
        return [self.source.name(int(index)) for index in self.indices]

    def subset(self, positions: np.ndarray, description: str) -> "LabelledSet":
        """Some of them, with the same classes.

        Args:
            positions: Places in this set, from 0.
            description: What they are, behind the description of this set.
        """
        return replace(
            self,
            indices=self.indices[positions],
            labels=self.labels[positions],
            description=f"{self.description}, {description}",
        )

    def facts(self, role: str, **more: Any) -> DataFacts:
        """Facts for the record of a run, with a fingerprint of names and labels.

        Args:
            role: "train" or "validation".
            more: Further fields of `DataFacts`.
        """
        digest = hashlib.sha256()
        for name, label in zip(self.names, self.labels, strict=True):
            digest.update(f"{name}\0{label}\0".encode(errors="surrogateescape"))
        return DataFacts.of(
            role,
            self.given or None,
            description=self.description,
            num_videos=len(self),
            num_classes=self.num_classes,
            sha256=digest.hexdigest(),
            **more,
        )


def open_labelled(
    spec: Any,
    *,
    media: Media = "video",
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    item_timeout: float = ITEM_TIMEOUT,
) -> LabelledSet:
    """Open videos or images with a class each.

    Args:
        spec: A path or a data set, see above.
        media: What they are.
        num_classes: Classes of the data set; None: those that `class_names` or the data names, else as many as the
            largest label asks for.
        class_names: Name of each class; None: what the data says. Where the data names classes too, those of the same
            name belong together; if no name is the same and there are equally many, they are told by their order.
        item_timeout: Seconds without a new frame after which an item is given up.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: Nothing in it, no labels, a label outside the classes, or class names that do not fit; the message
            names the first ones.
    """
    source, labels, found = _open_images(spec) if media == "image" else _open_videos(spec)
    description = _describe(spec)
    if not len(labels):
        raise ValueError(f"{description} is empty, but an evaluation needs at least one {media}; check the split")
    if class_names and found:
        _require_classes(source, labels, len(found), description)
        labels = _renumbered(labels, found, class_names, description)
    names = tuple(class_names or found or ()) or None
    if num_classes is None:
        num_classes = len(names) if names else int(labels.max(initial=-1)) + 1
    if names and len(names) != num_classes:
        raise ValueError(
            f"{description} has {len(names)} class names for {num_classes} classes; name each class once, in the "
            "order of the labels (--class-names), or set the number of classes (--num-classes)"
        )
    _require_classes(source, labels, num_classes, description)
    return LabelledSet(
        source=source,
        indices=np.arange(len(labels)),
        labels=labels,
        num_classes=num_classes,
        class_names=names,
        description=description,
        given=os.fspath(spec) if isinstance(spec, str | os.PathLike) else "",
        item_timeout=item_timeout,
    )


def _renumbered(labels: np.ndarray, found: Sequence[str], class_names: Sequence[str], description: str) -> np.ndarray:
    """Labels that count classes as the data names them, as numbers of the caller's classes."""
    numbers = {name: number for number, name in enumerate(class_names)}
    unknown = [name for name in found if name not in numbers]
    if not unknown:
        return np.array([numbers[name] for name in found], dtype=np.int64)[labels]
    if len(unknown) == len(found) == len(class_names):
        return labels  # other words for the same classes, such as those of WordNet ids
    raise ValueError(
        f"{description} has classes that are not among the {len(class_names)} class names: "
        f"{', '.join(map(repr, unknown[:MAX_NAMED]))}{', ...' if len(unknown) > MAX_NAMED else ''}; name them as the "
        "data does, or name each of its classes in their order"
    )


def read_class_names(file: str | Path) -> list[str]:
    """Read the names of classes in the order of their numbers.

    Args:
        file: A text file with a name on each line, or JSON: a list of names, or an object of numbers and names in
            either order, as data sets publish them (`{"0": "Approaching"}`, `{"Approaching": "0"}`).

    Raises:
        ValueError: Nothing in it, no such JSON, numbers are missing, or a name stands twice.
    """
    text = read_utf8(file)
    if Path(file).suffix.lower() == ".json":
        names = _names_of_json(text, file)
    else:
        names = [line.strip() for line in text.split("\n") if line.strip()]
    if not names:
        raise ValueError(f"{file} names no class; write a name on each line")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{file} names the class '{twice}' twice; give each class a name of its own")
    return names


def _names_of_json(text: str, file: str | Path) -> list[str]:
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} is no JSON ({error}); write a list of names, or a .txt with one on each line"
        ) from error
    values = list(loaded.values()) if isinstance(loaded, dict) else loaded
    kinds = str if isinstance(loaded, list) else str | int
    if not isinstance(values, list) or not all(isinstance(value, kinds) for value in values):
        raise ValueError(f"{file} holds neither a list of names nor an object of names and numbers; write one of them")
    return _names_by_number(loaded, file) if isinstance(loaded, dict) else values


def check_training_classes(train: LabelledSet, validation: LabelledSet) -> None:
    """Require that a probe can know every class that it is judged on.

    Raises:
        ValueError: Classes of the validation set have no training video; or the two sets differ in their classes.
    """
    if (train.num_classes, train.class_names) != (validation.num_classes, validation.class_names):
        raise ValueError(
            f"the training set has {train.num_classes} classes and the validation set {validation.num_classes}, or "
            "they have other names; give both the same classes (--num-classes, --class-names)"
        )
    missing = sorted(set(validation.labels.tolist()) - set(train.labels.tolist()))
    if missing:
        named = ", ".join(_class_name(train, label) for label in missing[:MAX_NAMED])
        raise ValueError(
            f"{len(missing)} classes of the validation set have no training video: {named}"
            f"{', ...' if len(missing) > MAX_NAMED else ''}; add some, or leave these classes out of both"
        )


def _class_name(labelled: LabelledSet, label: int) -> str:
    return f"{label} ({labelled.class_names[label]})" if labelled.class_names else str(label)


def _names_by_number(loaded: dict, file: str | Path) -> list[str]:
    pairs = {str(key): str(value) for key, value in loaded.items()}
    by_number = pairs if all(key.isdigit() for key in pairs) else {value: key for key, value in pairs.items()}
    wanted = [str(number) for number in range(len(pairs))]
    if sorted(by_number) != sorted(wanted):
        raise ValueError(f"{file} does not number its {len(pairs)} classes from 0 to {len(pairs) - 1}; number them so")
    return [by_number[number] for number in wanted]


def _require_classes(source: MediaSource, labels: np.ndarray, num_classes: int, description: str) -> None:
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        first = ", ".join(f"{labels[index]} ({source.name(int(index))})" for index in outside[:3])
        raise ValueError(
            f"{len(outside)} labels of {description} are outside 0 to {num_classes - 1}: {first}"
            f"{', ...' if len(outside) > 3 else ''}; correct them, or set the number of classes (--num-classes)"
        )


def _describe(spec: Any) -> str:
    if isinstance(spec, str | Path):
        path = without_credentials(os.fspath(spec))
        return os.path.basename(path.rstrip("/")) or path
    return f"a {type(spec).__name__}"


Opened = tuple[Any, np.ndarray, list[str] | None]


def _open_videos(spec: Any) -> Opened:
    if isinstance(spec, str | Path) and os.path.isdir(spec):
        classes = _class_folders(Path(spec))
        files = [(path, number) for number, folder in enumerate(classes) for path in videos_below(folder)]
        if files:
            _require_no_loose(Path(spec), is_video_name)
            paths, labels = [path for path, _ in files], [label for _, label in files]
            source = VideoSource(VideoFileSource(paths, labels=labels))
            return source, np.array(labels, dtype=np.int64), [folder.name for folder in classes]
    clips = open_source(spec)
    if not clips.has_labels:
        raise ValueError(
            f"the videos of {_describe(spec)} have no labels; write 'path label' on each line, or a folder of videos "
            "for each class"
        )
    return VideoSource(clips), clips.labels(), _names_of_feature(spec, VIDEO_LABEL_COLUMNS)


def _class_folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _require_no_loose(folder: Path, is_wanted: Callable[[str], bool]) -> None:
    loose = sorted(entry.name for entry in folder.iterdir() if is_wanted(entry.name) and entry.is_file())
    if loose:
        raise ValueError(
            f"{folder} has a folder for each class, but {len(loose)} files are in none of them, such as {loose[0]}; "
            "move them into one, or take them out"
        )


def _open_images(spec: Any) -> Opened:
    if not isinstance(spec, str | Path):
        return _open_image_rows(spec)
    path = Path(spec)
    if path.is_dir():
        return _open_image_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}; check the path")
    if path.suffix.lower() == ".parquet":
        return _open_image_rows(read_parquet(path))
    if path.suffix.lower() not in MANIFEST_ENDINGS:
        raise ValueError(
            f"{path} ends in '{path.suffix}', but images come from a folder with a folder for each class, a manifest "
            f"({', '.join(MANIFEST_ENDINGS)}), a .parquet file or a Hugging Face data set"
        )
    entries = read_manifest_entries(path)
    labels = [parse_label(entry.label, f"line {entry.line} of {path}") for entry in entries]
    remote = next((entry for entry in entries if is_address(entry.path)), None)
    if remote is not None:
        raise ValueError(
            f"line {remote.line} of {path} names the address {remote.path}, but images are read from files; fetch them"
        )
    files = ImageFiles([os.path.join(os.path.abspath(path.parent), entry.path) for entry in entries])
    return files, np.array(labels, dtype=np.int64), None


def _open_image_folder(folder: Path) -> Opened:
    classes = _class_folders(folder)
    files = [(path, number) for number, entry in enumerate(classes) for path in _images_below(entry)]
    if not files:
        kind = "videos, but no image," if videos_below(folder) else "no image"
        raise ValueError(
            f"found {kind} in the folders below {folder}; images stand in a folder for each class, videos need a "
            "protocol for videos"
        )
    _require_no_loose(folder, is_image_name)
    labels = np.array([label for _, label in files], dtype=np.int64)
    return ImageFiles([path for path, _ in files]), labels, [entry.name for entry in classes]


def _images_below(folder: Path) -> list[Path]:
    return sorted(Path(place, name) for place, names in walk_folders(folder) for name in names if is_image_name(name))


def _open_image_rows(dataset: Any) -> Opened:
    datasets = import_datasets()
    if not isinstance(dataset, datasets.Dataset):
        raise TypeError(f"found a {type(dataset).__name__}, but images come from a path or one split of a data set")
    image = next((column for column in IMAGE_COLUMNS if column in dataset.column_names), None)
    label = next((column for column in LABEL_COLUMNS if column in dataset.column_names), None)
    if image is None or label is None:
        raise ValueError(
            f"the data set has the columns {', '.join(dataset.column_names)}, but images stand in one of "
            f"{', '.join(IMAGE_COLUMNS)} and their classes in one of {', '.join(LABEL_COLUMNS)}; rename the columns"
        )
    rows = dataset.with_format(None).cast_column(image, datasets.Image(decode=False))
    labels = [parse_label(value, f"row {row}") for row, value in enumerate(rows.select_columns([label])[label])]
    source = ImageRows(rows, image, str(dataset.split or "the data set"))
    return source, np.array(labels, dtype=np.int64), _names_of_feature(dataset, [label])


def _names_of_feature(dataset: Any, columns: Sequence[str]) -> list[str] | None:
    features = getattr(dataset, "features", None) or {}
    label = next((column for column in columns if column in features), None)
    return list(getattr(features.get(label), "names", None) or []) or None
