"""Several processes on one list of work, as `torchrun` and `accelerate launch` start them.

They meet before the work, when the first one says what there is to do, and after it, when all learn what became of it.
In between none waits for another. They talk over the CPU (gloo) whatever they compute on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from torch import distributed

Item = TypeVar("Item")
# One process may have hours of work left when another is through.
LONGEST_WAIT = timedelta(days=30)


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work; one alone by default.

    Attributes:
        rank: Number of this process, from 0.
        count: Number of processes.
        local_rank: Number of this process on its machine, from 0; chooses the accelerator.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that plans and reports."""
        return self.rank == 0

    def from_first(self, make: Callable[[], Item]) -> Item:
        """What `make` returns in the first process, in all of them. Only the first one calls it.

        Args:
            make: Its result, and a ValueError or OSError that it raises, go to all processes.
        """
        if self.count == 1:
            return make()
        result: list = [None, None]
        if self.is_first:
            try:
                result[0] = make()
            except (ValueError, OSError) as error:
                result[1] = error
        distributed.broadcast_object_list(result, src=0)
        if result[1] is not None:
            raise result[1]
        return result[0]

    def gather(self, items: Sequence[Item]) -> list[Item]:
        """The items of all processes, in all of them, process by process. Waits until each has come here."""
        if self.count == 1:
            return list(items)
        gathered: list[list[Item]] = [[] for _ in range(self.count)]
        distributed.all_gather_object(gathered, list(items))
        return [item for of_one in gathered for item in of_one]

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.count > 1:
            distributed.barrier()

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """Let the first process through the block before the others: what it downloads, they find."""
        if not self.is_first:
            self.wait()
        try:
            yield
        finally:  # after an error too: the others come to the same one, and say so themselves
            if self.is_first:
                self.wait()


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Join the processes that `torchrun` or `accelerate launch` started beside this one, told by the environment.

    Raises:
        ValueError: an environment that names several processes, but not where they meet.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {count}, but {', '.join(missing)} is not set: start with torchrun or accelerate launch, "
            "or unset WORLD_SIZE"
        )
    rank = int(os.environ["RANK"])
    distributed.init_process_group("gloo", rank=rank, world_size=count, timeout=LONGEST_WAIT)
    try:
        yield Processes(rank, count, int(os.environ.get("LOCAL_RANK", rank)))
    finally:
        distributed.destroy_process_group()


def share_out(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Share work out evenly: the largest piece first, each to the process that has least so far.

    Args:
        sizes: Size of each piece, in any unit.
        count: Number of processes.

    Returns:
        For each process the pieces that are its own, ascending. The same for the same sizes.
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for piece in sorted(range(len(sizes)), key=lambda piece: (-sizes[piece], piece)):
        lightest = min(range(count), key=lambda process: (loads[process], len(shares[process]), process))
        shares[lightest].append(piece)
        loads[lightest] += sizes[piece]
    return [sorted(share) for share in shares]
