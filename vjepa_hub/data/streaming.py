"""An endless stream of clips, from shards that are read from beginning to end: tar files, Hugging Face streams.

For data that is too large, or too far away, to be read by number.
"""

import os
from collections import deque
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from .clip_order import ClipOrder
from .clip_sampling import ClipSpec
from .crop_spec import CropSpec
from .dataset import Clip, ClipReader
from .hugging_face import HuggingFaceShards
from .items import ITEM_TIMEOUT
from .quarantine import Quarantine
from .records import RecordShards, VideoRecord
from .shards import SHARD_ENDINGS, TarShards, is_shard_name, shards_in


class ClipStream(IterableDataset[Clip]):
    """One random clip of each video of a source's shards, over and over.

    Each clip has a position in the global order of the run: clip `i` of batch `j` of process `r` has the position
    `(j * num_processes + r) * batch_size + i`, when a `DataLoader` with this batch size and any number of workers
    makes the batches. Which frames, box and masks a clip gets depends on the seed and this position alone. Which
    *video* stands there depends on the number of processes and workers too, among which the shards are shared out:

    - the passes over all shards, each in an order of its own that is sampled from (seed, pass), follow each other
      without end, and the shards of this row are dealt to the readers (workers of all processes) in turn;
    - with fewer shards than readers, each reader reads all of them, and keeps every `num_readers`-th video.

    A video that cannot be read is replaced by the one that its reader comes to next, which then shows twice: so the
    videos at all later positions stay where they are, whatever fails.

    Args:
        source: The shards, such as `TarShards` or `HuggingFaceShards`; `open_shards` makes them.
        clips: Frames of a clip; of several `num_segments` the first is read.
        batch_size: Clips in a batch of one process.
        rank: Number of this process, from 0.
        num_processes: Processes of the run.
        crop: Random-resized-crop and flip; None: whole frames, not flipped.
        seed: Seed of the run.
        quarantine: Where videos that cannot be read are listed. None: in the memory of each process.
        max_tries: Videos that are tried for one clip.
        backend: The decoder, see `open_video`.
        item_timeout: Seconds without a new frame after which a video is given up.
        start_position: See the attribute.

    Attributes:
        start_position: Position of the first clip, a multiple of `batch_size * num_processes`. To be set before the
            iteration begins, to go on where a run stopped: what was shown before is passed over without decoding it
            (and, once each shard's videos have been counted, without reading it). With the same number of processes
            and workers, the clips are those of a run that did not stop.

    Raises:
        ValueError: If a count is not positive, the rank is not below `num_processes`, or the start lies inside a
            batch.
    """

    def __init__(
        self,
        source: RecordShards,
        clips: ClipSpec = ClipSpec(),  # noqa: B008 (it is frozen)
        *,
        batch_size: int,
        rank: int = 0,
        num_processes: int = 1,
        crop: CropSpec | None = CropSpec(),  # noqa: B008
        seed: int = 0,
        quarantine: Quarantine | None = None,
        max_tries: int = 10,
        backend: str | None = None,
        item_timeout: float = ITEM_TIMEOUT,
        start_position: int = 0,
    ):
        if batch_size < 1 or num_processes < 1 or not 0 <= rank < num_processes:
            raise ValueError(
                f"batch_size is {batch_size}, num_processes {num_processes} and rank {rank}, but the first two must "
                "be at least 1, and the rank one of 0 to num_processes - 1"
            )
        self.source, self.batch_size, self.rank, self.num_processes = source, batch_size, rank, num_processes
        self.reader = ClipReader(
            clips,
            crop=crop,
            seed=seed,
            quarantine=quarantine,
            max_tries=max_tries,
            backend=backend,
            item_timeout=item_timeout,
        )
        self.start_position = start_position

    @property
    def start_position(self) -> int:
        """Position of the first clip."""
        return self._start_position

    @start_position.setter
    def start_position(self, position: int) -> None:
        clips_at_once = self.batch_size * self.num_processes
        if position < 0 or position % clips_at_once:
            raise ValueError(
                f"start_position is {position}, but a stream begins with a batch in all processes; give a multiple of "
                f"batch_size x num_processes, {clips_at_once}"
            )
        self._start_position = position

    def __iter__(self) -> Iterator[Clip]:
        """Yield the clips of this process; in a worker of a DataLoader, those of the batches that it makes."""
        worker = get_worker_info()
        number, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        first_batch = self.start_position // (self.batch_size * self.num_processes)
        # A DataLoader takes its first batch from worker 0. Of a run that goes on, that may be another worker's batch.
        reader = (first_batch + number) % num_workers
        num_batches_before = len(range(reader, first_batch, num_workers))
        records = self._records(reader, num_workers, num_batches_before * self.batch_size)
        coming: deque[VideoRecord] = deque()
        for batch in count(first_batch + number, num_workers):
            first_position = (batch * self.num_processes + self.rank) * self.batch_size
            for position in range(first_position, first_position + self.batch_size):
                yield self.reader.read_first(_look_ahead(coming, records), position=position)
                coming.popleft()

    def _records(self, worker: int, num_workers: int, num_before: int) -> Iterator[VideoRecord]:
        """Yield the videos of one reader without end, after the first `num_before` of them."""
        reader, num_readers = self.rank * num_workers + worker, self.num_processes * num_workers
        if self.source.num_shards >= num_readers:
            return _ShardRow(self.source, self.reader.seed, first=reader, step=num_readers).records(num_before)
        row = _ShardRow(self.source, self.reader.seed, first=0, step=1)
        return islice(row.records(reader + num_before * num_readers), 0, None, num_readers)


class _ShardRow:
    """Every `step`-th shard, from the `first` on, of an endless row of passes over all shards."""

    def __init__(self, source: RecordShards, seed: int, *, first: int, step: int):
        self._source, self._first, self._step = source, first, step
        self._order = ClipOrder(source.num_shards, clips_per_step=1, seed=seed)
        self._sizes: dict[int, int] = {}  # videos in each shard that was read to its end

    def records(self, num_before: int) -> Iterator[VideoRecord]:
        """Yield the videos without end, after the first `num_before` of them."""
        start, num_before = self._find(num_before)
        for place in count(start, self._step):
            pass_number, shard = self._at(place)
            num_videos = 0
            for num_videos, record in enumerate(self._source.records(shard, pass_number=pass_number), 1):
                if num_videos > num_before:
                    yield record
            num_before = 0
            self._note_size(shard, num_videos)

    def _find(self, num_before: int) -> tuple[int, int]:
        """Find the shard that the videos go on in: its place in the row, and how many of its videos come before."""
        place = self._first
        while num_before:
            pass_number, shard = self._at(place)
            if shard not in self._sizes:
                self._note_size(shard, self._source.num_records(shard, pass_number=pass_number))
            if self._sizes[shard] > num_before:
                break
            num_before -= self._sizes[shard]
            place += self._step
        return place, num_before

    def _at(self, place: int) -> tuple[int, int]:
        """Return the pass and the shard at a place of the row."""
        return place // self._source.num_shards, self._order.index_at(place)

    def _note_size(self, shard: int, num_videos: int) -> None:
        self._sizes[shard] = num_videos
        if len(self._sizes) == self._source.num_shards and not any(self._sizes.values()):
            raise ValueError(f"no video in any of the {self._source.num_shards} shards; check what they hold")


def _look_ahead(coming: deque[VideoRecord], records: Iterator[VideoRecord]) -> Iterator[VideoRecord]:
    """Yield the coming videos, and keep them for their own turn."""
    for place in count():
        if place == len(coming):
            coming.append(next(records))
        yield coming[place]


def open_shards(
    spec: Any, *, with_labels: bool = True, video_column: str | None = None, label_column: str | None = None
) -> RecordShards:
    """Open what a `ClipStream` reads.

    Args:
        spec: Tar files (a path, a folder of them, an fsspec address, a pattern such as `shard-{000..010}.tar`, or a
            list of these), or a `datasets.IterableDataset`.
        with_labels: Read labels, where there are any.
        video_column: Column of the videos in a Hugging Face data set, if its name does not say so.
        label_column: Column of the labels there.

    Raises:
        FileNotFoundError: a shard is not there.
        TypeError: an object that is no stream of videos.
        ValueError: a path that names no tar file.
    """
    if isinstance(spec, RecordShards):
        return spec
    if not isinstance(spec, str | Path | list | tuple):
        return HuggingFaceShards(spec, video_column=video_column, label_column=label_column, with_labels=with_labels)
    names = [os.fspath(name) for name in (spec if isinstance(spec, list | tuple) else [spec])]
    paths = [path for name in names for path in (shards_in(name) if os.path.isdir(name) else [name])]
    for path in paths:
        if not is_shard_name(path):
            raise ValueError(
                f"{path} is not read as a stream: that takes tar files ({', '.join(SHARD_ENDINGS)}) or a "
                "datasets.IterableDataset; open_source and VideoClipDataset take other kinds"
            )
    return TarShards(paths, with_labels=with_labels)
