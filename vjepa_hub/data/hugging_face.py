"""Videos of Hugging Face data sets, by number or as a stream. They come undecoded: our own decoder reads them."""

import hashlib
import importlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .items import read_item
from .manifests import parse_label
from .records import (
    ClipSource,
    LocalVideo,
    RecordShards,
    RemoteVideo,
    Unreadable,
    VideoBytes,
    VideoContent,
    VideoRecord,
    is_address,
)
from .video import VideoDecodingError

# Names that are taken for the video or the label if nothing is said; the endings are columns of WebDataset shards.
VIDEO_COLUMNS = ("video", "path", "file", "file_name", "bytes", "mp4", "webm", "avi", "mkv", "mov")
LABEL_COLUMNS = ("label", "cls")


def import_datasets() -> Any:
    """Import the `datasets` library.

    Raises:
        ImportError: it is not installed; the message says how to.
    """
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise ImportError(
            f"Hugging Face data sets and parquet files are read with the `datasets` library, which cannot be imported "
            f"({error}); pip install 'datasets>=4.2'"
        ) from error


def read_parquet(path: str | Path) -> Any:
    """Open a parquet file as a `datasets.Dataset`.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: The file is damaged, or no parquet.
        OSError: There is no room for the cache of the `datasets` library.
    """
    datasets = import_datasets()
    try:
        return datasets.Dataset.from_parquet(os.fspath(path))
    except (datasets.exceptions.DatasetsError, importlib.import_module("pyarrow").ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        cause = str(error.__cause__ or error).split("\n")[0]
        raise ValueError(f"{path} is damaged or no parquet file ({cause}): write it again") from error


class HuggingFaceSource(ClipSource):
    """The videos of a `datasets.Dataset`, by number.

    Args:
        dataset: One split. The videos stand in a column of the feature `Video`, or of paths, addresses, bytes, or
            dictionaries with `path` and `bytes`.
        video_column: Its name. None: the column of the feature `Video`, else the first of `VIDEO_COLUMNS`.
        label_column: The column of the labels. None: the first of `LABEL_COLUMNS`, if there is one.
        with_labels: Whether to read labels.
        name: Stands in the name of a video that has no path, with the number of its row. None: the names of the data
            set and of the split.
        root: Folder that relative paths count from. None: the current one.

    Raises:
        TypeError: Something else than one split of a data set that is read by number.
        ValueError: No column of videos, several of them, or labels that are no integers.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        video_column: str | None = None,
        label_column: str | None = None,
        with_labels: bool = True,
        name: str | None = None,
        root: str | Path | None = None,
    ):
        datasets = import_datasets()
        if not isinstance(dataset, datasets.Dataset):
            raise TypeError(_wrong_kind(dataset, "a datasets.Dataset"))
        self._columns = _Columns.of(dataset, video_column, label_column, with_labels)
        self._dataset = self._columns.undecoded(dataset)
        self.name = name or _name_of(dataset)
        self._root = os.path.abspath(root or "")

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._dataset)

    @property
    def has_labels(self) -> bool:
        """Implement `ClipSource`."""
        return self._columns.label is not None

    def labels(self) -> np.ndarray:
        """Implement `ClipSource`."""
        if self._columns.label is None:
            return super().labels()
        rows = enumerate(self._dataset.select_columns([self._columns.label])[self._columns.label])
        return np.array([parse_label(label, f"row {row} of {self.name}") for row, label in rows], dtype=np.int64)

    def record(self, index: int) -> VideoRecord:
        """Implement `ClipSource`."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside 0 to {len(self) - 1}")
        name = f"row {index} of {self.name}"
        try:
            row = read_item(name, lambda: self._dataset[int(index)], timeout=None)
        except VideoDecodingError as error:
            return VideoRecord(name, Unreadable(error.cause, error.remedy))
        return self._columns.record(row, name, self._root)


class HuggingFaceShards(RecordShards):
    """The videos of a `datasets.IterableDataset`, read from beginning to end.

    Its own shuffling, if it has any, is done anew for each pass.

    Args:
        dataset: One split. What stands in it is as in `HuggingFaceSource`.
        video_column: Name of the column of the videos. None: the column of the feature `Video`, else the first of
            `VIDEO_COLUMNS`. To be given where the data set does not know its columns before it is read.
        label_column: The column of the labels. None: the first of `LABEL_COLUMNS`, if there is one.
        with_labels: Whether to read labels.
        name: Stands in the name of a video that has no path, with a digest of its bytes. None: the names of the data
            set and of the split.

    Raises:
        TypeError: Something else than one split of a data set that is streamed.
        ValueError: One that is split among processes already, no column of videos, several of them, or labels that
            are no integers.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        video_column: str | None = None,
        label_column: str | None = None,
        with_labels: bool = True,
        name: str | None = None,
    ):
        datasets = import_datasets()
        if not isinstance(dataset, datasets.IterableDataset):
            raise TypeError(_wrong_kind(dataset, "a datasets.IterableDataset"))
        if getattr(dataset, "_distributed", None) is not None:
            raise ValueError(
                "the data set is split among processes already (split_dataset_by_node), but each process is to give "
                "the whole of it, and its rank: the stream shares the videos out itself; leave the split out"
            )
        self._columns = _Columns.of(dataset, video_column, label_column, with_labels)
        self._dataset = self._columns.undecoded(dataset)
        self.name = name or _name_of(dataset)

    @property
    def num_shards(self) -> int:
        """Implement `RecordShards`."""
        return self._dataset.num_shards

    def records(self, shard: int, *, pass_number: int) -> Iterator[VideoRecord]:
        """Implement `RecordShards`."""
        part = self._dataset.shard(num_shards=self.num_shards, index=shard)
        part.set_epoch(pass_number)
        # Not `iter(part)`: in a worker of a DataLoader that shares the part out once more, so that all workers but
        # the first find nothing in it.
        for batch in part.iter(batch_size=1):
            row = {column: values[0] for column, values in batch.items()}
            record = self._columns.record(row, f"a row of shard {shard} of {self.name}", os.getcwd())
            yield _named_by_content(record)


class _Columns:
    """The columns that are read, by name."""

    def __init__(self, video: str, label: str | None):
        self.video, self.label = video, label

    @classmethod
    def of(cls, dataset: Any, video: str | None, label: str | None, with_labels: bool) -> "_Columns":
        known = list(dataset.features or dataset.column_names or [])
        for column in (video, label):
            if column is not None and known and column not in known:
                raise ValueError(f"the data set has no column '{column}'; it has {', '.join(known)}")
        video = video or _find_video_column(dataset, known)
        if not with_labels:
            return cls(video, None)
        label = label or next((column for column in LABEL_COLUMNS if column in known), None)
        _require_integers(dataset, label)
        return cls(video, label)

    def undecoded(self, dataset: Any) -> Any:
        """Return the data set with these columns alone, as they are stored."""
        datasets = import_datasets()
        dataset = dataset.with_format(None)
        if not dataset.features:
            return dataset
        dataset = dataset.select_columns([self.video] + ([self.label] if self.label else []))
        if not _is_video_feature(dataset.features[self.video]):
            return dataset
        if isinstance(dataset, datasets.IterableDataset) and hasattr(dataset, "decode"):
            return dataset.decode(False)  # takes back a decoding that was set up when the stream was opened
        return dataset.cast_column(self.video, datasets.Video(decode=False))

    def record(self, row: Mapping[str, Any], row_name: str, root: str) -> VideoRecord:
        label = None if self.label is None else parse_label(_as_plain(row[self.label]), row_name)
        if self.video not in row:
            raise ValueError(f"{row_name} has no column '{self.video}'; it has {', '.join(row)}")
        name, content = _content_of(row[self.video], row_name, root)
        return VideoRecord(name, content, label)


def _content_of(value: Any, row_name: str, root: str) -> tuple[str, VideoContent]:
    """Return the name and the place of a video, from what stands in its column."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (None, value)
    if isinstance(path, bytes | bytearray):
        data, path = bytes(path), None
    if data is not None:
        return f"{row_name} ({path})" if path else row_name, VideoBytes(data)
    if not path:
        return row_name, Unreadable("the row holds no video", "leave the row out")
    if not isinstance(path, str):
        found = type(path).__name__
        raise ValueError(
            f"{row_name} holds a {found}, but a video is a path, an address, bytes, or a dictionary with path and "
            "bytes; name the right column with video_column"
        )
    if is_address(path):
        return path, RemoteVideo(path)
    absolute = os.path.join(root, path)
    return absolute, LocalVideo(Path(absolute))


def _named_by_content(record: VideoRecord) -> VideoRecord:
    """Give a video without a path a name that is its own wherever it stands: rows move when the stream is shuffled."""
    if not isinstance(record.content, VideoBytes):
        return record
    digest = hashlib.blake2b(record.content.data, digest_size=8).hexdigest()
    return replace(record, name=f"{record.name} with blake2b {digest}")


def _find_video_column(dataset: Any, known: list[str]) -> str:
    by_feature = [name for name, feature in (dataset.features or {}).items() if _is_video_feature(feature)]
    if len(by_feature) > 1:
        raise ValueError(f"the data set has videos in {', '.join(by_feature)}; name one of them with video_column")
    by_name = [column for column in VIDEO_COLUMNS if column in known]
    if not by_feature and not by_name:
        raise ValueError(
            f"no column of videos: the data set has {', '.join(known) or 'columns that are not known yet'}, and known "
            f"names are {', '.join(VIDEO_COLUMNS)}; name the column with video_column"
        )
    return (by_feature or by_name)[0]


def _is_video_feature(feature: Any) -> bool:
    return type(feature).__name__ == "Video"


def _require_integers(dataset: Any, column: str | None) -> None:
    dtype = getattr((dataset.features or {}).get(column), "dtype", None) if column else None
    if dtype is not None and "int" not in dtype:
        raise ValueError(
            f"the column '{column}' holds {dtype}, but a label is the number of a class, an integer from 0; number "
            "the classes (class_encode_column), or read without labels (with_labels=False)"
        )


def _as_plain(value: Any) -> Any:
    """Return a numpy or torch scalar as a number of Python."""
    return value.item() if hasattr(value, "item") else value


def _name_of(dataset: Any) -> str:
    parts = (dataset.info.dataset_name or dataset.info.builder_name, dataset.split)
    return "/".join(str(part) for part in parts if part) or "the data set"


def _wrong_kind(found: Any, wanted: str) -> str:
    datasets = import_datasets()
    if isinstance(found, dict):
        return f"the data set has the splits {', '.join(map(str, found))}; give one of them, such as dataset['train']"
    if isinstance(found, datasets.IterableDataset):
        return "a datasets.IterableDataset is read from beginning to end, not by number; give it to a ClipStream"
    if isinstance(found, datasets.Dataset):
        return "a datasets.Dataset is read by number; give it to open_source, or stream it (to_iterable_dataset)"
    return f"found a {type(found).__name__}, but this takes {wanted}"
