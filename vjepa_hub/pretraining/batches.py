"""The batches of one process, drawn from the global order of the run."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from torch.utils.data import Dataset, Sampler

from ..data.clip_order import ClipOrder, ClipRequest
from ..data.dataset import VideoClipDataset


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
