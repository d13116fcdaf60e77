"""The batches of one process, taken from the global order of the run, and the loader of them for any training loop.

loader = pretraining_loader(dataset, TokenGrid.from_config(model.config), batch_size=8)
for batch in loader:
    loss = model(**batch).loss
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from torch.utils.data.distributed import DistributedSampler

from ..core.distributed import current_process
from .clip_order import ClipOrder, ClipRequest
from .collation import MaskCollator, Sample, model_inputs
from .dataset import VideoClipDataset
from .masking import LONG_RANGE, SHORT_RANGE, MaskKind, TokenGrid


class ProcessBatches(Sampler[list[ClipRequest]]):
    """Every `num_processes`-th batch of the order: together the processes take each step's clips once.

    Args:
        order: The global order.
        batch_size: Clips of one batch on one process.
        rank: Number of this process, from 0.
        num_processes: Processes that share the order.

    Raises:
        ValueError: The clips of a step are no multiple of the batches of all processes.
    """

    def __init__(self, order: ClipOrder, *, batch_size: int, rank: int = 0, num_processes: int = 1):
        super().__init__()
        if order.clips_per_step % (batch_size * num_processes):
            raise ValueError(
                f"clips_per_step is {order.clips_per_step}, but must be a multiple of batch size x processes = "
                f"{batch_size} x {num_processes}; set it to their product, times the accumulated batches"
            )
        self.order, self.batch_size = order, batch_size
        self.rank, self.num_processes = rank, num_processes

    def __iter__(self) -> Iterator[list[ClipRequest]]:
        """Yields the requests of one batch after the other."""
        requests = iter(self.order)
        for number in range(len(self) * self.num_processes):
            batch = list(islice(requests, self.batch_size))
            if number % self.num_processes == self.rank:
                yield batch

    def __len__(self) -> int:
        """Batches of this process in an epoch."""
        return len(self.order) // (self.batch_size * self.num_processes)


class PositionedDataset(Dataset):
    """A data set of anybody's, asked by `ClipRequest`: its items get their position in the global order.

    Args:
        dataset: Map-style; items that are no mappings go through as they are.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, request: ClipRequest) -> Any:
        sample = self.dataset[request.index]
        return {**sample, "position": request.position} if isinstance(sample, Mapping) else sample


def with_positions(dataset: Dataset) -> Dataset:
    """The data set itself where it understands a `ClipRequest`, else one that does."""
    return dataset if isinstance(dataset, VideoClipDataset) else PositionedDataset(dataset)


def require_place(stream: IterableDataset, **needed: int) -> None:
    """Make sure that a stream counts its positions for this process.

    Args:
        stream: A `ClipStream`, or any other.
        needed: Its `batch_size`, `rank` and `num_processes`.

    Raises:
        ValueError: It was made for another batch size, rank or number of processes.
    """
    for name, value in needed.items():
        if getattr(stream, name, value) != value:
            raise ValueError(
                f"the stream was made with {name}={getattr(stream, name)}, but the run has {value}: pass that, "
                "since positions, and so masks, are counted by it"
            )


class EpochBatches(DistributedSampler):
    """One epoch of a process's batches after the other: each iteration goes on where the last one ended.

    It is a `DistributedSampler` by type alone, since Lightning replaces any other sampler of several processes.

    Args:
        batches: Those of this process.
    """

    def __init__(self, batches: ProcessBatches):
        self.batches, self.epoch = batches, 0

    def __iter__(self) -> Iterator[list[ClipRequest]]:
        """Yield the batches of the next epoch."""
        self.batches.order.set_epoch(self.epoch)
        self.epoch += 1
        return iter(self.batches)

    def __len__(self) -> int:
        """Batches of this process in an epoch."""
        return len(self.batches)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields, from 0, as to go on with a stopped run."""
        self.epoch = epoch


class _Batches(Dataset):
    """Whole batches, asked for by the requests of their clips."""

    def __init__(self, dataset: Dataset, collator: MaskCollator):
        self.dataset, self.collator = dataset, collator

    def __getitem__(self, requests: Sequence[ClipRequest]) -> dict[str, Any]:
        return _finish([self.dataset[request] for request in requests], self.collator)


def _finish(samples: Sequence[Sample], collator: MaskCollator) -> dict[str, Any]:
    return model_inputs(collator(samples), crop_size=collator.grid.height)


def pretraining_loader(
    dataset: Dataset,
    grid: TokenGrid,
    *,
    batch_size: int,
    mask_kinds: Sequence[MaskKind] = (SHORT_RANGE, LONG_RANGE),
    accumulated_batches: int = 1,
    steps_per_epoch: int | None = None,
    seed: int = 0,
    num_workers: int = 0,
) -> DataLoader:
    """The batches of this process for any training loop: `model(**batch)` takes them as they are.

    Clips, crops and masks are those of `VJEPATrainer` with the same seed and numbers. The processes of torch's process
    group, or of `torchrun`, take each step's clips once: so the loader is made after they have been joined (with
    Lightning in `train_dataloader`), and is not given to accelerate's `prepare`, which would share it out again.

    Args:
        dataset: A `VideoClipDataset`, a `ClipStream`, which never ends, or any map-style data set whose items have
            `pixel_values_videos` (num_frames, channels, height, width), normalised.
        grid: The tokens of a clip, `TokenGrid.from_config(model.config)`.
        batch_size: Clips of a batch of one process.
        mask_kinds: The kinds of masks, one for each mask token of the predictor.
        accumulated_batches: Batches of a process in one optimiser step.
        steps_per_epoch: Optimiser steps of an epoch. None: one pass over the data.
        seed: Of order and masks; crops and frames follow the data set's.
        num_workers: Processes that load clips; 0: this one does.

    Returns:
        A loader of `pixel_values_videos` float32 `(batch_size, num_frames, channels, height, width)`, `context_mask`
        and `target_mask`, lists of int64 `(batch_size, num_kept)`, one for each kind. Each iteration is the next
        epoch; `loader.sampler.set_epoch(epoch)` chooses one.

    Raises:
        ValueError: The masks do not fit the grid, or a stream was made for other batches, or is to have epochs.
    """
    process = current_process()
    clips_per_step = batch_size * process.count * accumulated_batches
    collator = MaskCollator(grid, mask_kinds, seed=seed, clips_per_step=clips_per_step)
    workers: dict[str, Any] = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
    if isinstance(dataset, IterableDataset):
        if steps_per_epoch is not None:
            raise ValueError(
                f"steps_per_epoch is {steps_per_epoch}, but a stream has no epochs; leave it out, and count the steps"
            )
        require_place(dataset, batch_size=batch_size, rank=process.rank, num_processes=process.count)
        return DataLoader(dataset, batch_size=batch_size, collate_fn=partial(_finish, collator=collator), **workers)
    order = ClipOrder(
        len(dataset),  # type: ignore[arg-type]
        clips_per_step=clips_per_step,
        steps_per_epoch=steps_per_epoch,
        seed=seed,
        weights=getattr(dataset, "weights", None),
    )
    batches = ProcessBatches(order, batch_size=batch_size, rank=process.rank, num_processes=process.count)
    return DataLoader(
        _Batches(with_positions(dataset), collator), batch_size=None, sampler=EpochBatches(batches), **workers
    )
