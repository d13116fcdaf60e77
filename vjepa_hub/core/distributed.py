"""Several processes on one list of work, as `torchrun` and `accelerate launch` start them.

They meet before the work, when the first one says what there is to do, and after it, when all learn what became of it.
In between none waits for another.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
from torch import distributed

from .folder_lock import FolderLock

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
        """Return whether this is the process that plans and reports."""
        return self.rank == 0

    def from_first(self, make: Callable[[], Item]) -> Item:
        """Call a function in the first process alone, and return its result in all of them.

        Args:
            make: The function. A ValueError or OSError that it raises goes to all processes too.
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

    def add_up(self, tensor: torch.Tensor) -> None:
        """Put the sum over all processes into a tensor, in place in each of them."""
        if self.count > 1:
            distributed.all_reduce(tensor)

    def choose_device(self, name: str | None = None) -> str:
        """The device of this process: the one that is named, or this machine's accelerator, or the CPU.

        Args:
            name: "cpu", "cuda", "cuda:1", "mps", ...; None to choose. Each of several processes gets an accelerator
                of its own where no number is named; where there are more processes than accelerators, they take turns.

        Raises:
            ValueError: This machine does not have the device.
        """
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        here = ["cpu", accelerator.type] if accelerator is not None else ["cpu"]
        if name is not None and name.split(":")[0] not in here:
            raise ValueError(f"device is '{name}'; this machine has: {', '.join(here)}")
        chosen = here[-1] if name is None else name
        if self.count == 1 or chosen == "cpu" or ":" in chosen:
            return chosen
        return f"{chosen}:{self.local_rank % torch.accelerator.device_count()}"

    @contextmanager
    def locking(self, folder: str | os.PathLike) -> Iterator[None]:
        """Keep other runs out of an output folder within the block: the first process holds the lock for all.

        Args:
            folder: Made if it is not there.

        Raises:
            FolderInUseError: Another run has it; in all processes.
            WriteError: Nothing can be written there.
        """
        lock = FolderLock(folder)
        self.from_first(lock.acquire)
        try:
            yield
        finally:
            lock.release()

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


ALONE = Processes()
"""Default of functions that share work out: this process does all."""


def join_processes() -> Processes:
    """This process among those that `torchrun` or `accelerate launch` started; at the first call they are joined.

    Processes that are joined already, by the Trainer or by a program that calls this package, are taken as they are.

    Raises:
        ValueError: The environment names several processes, but not where they meet.
    """
    process = current_process()
    if process.count > 1 and not distributed.is_initialized():
        distributed.init_process_group(_choose_backend(), timeout=LONGEST_WAIT)
        atexit.register(_leave_processes)
    return process


def current_process() -> Processes:
    """This process among those that have been joined, or else that were started together; none is joined here.

    Raises:
        ValueError: The environment names several processes, but not where they meet.
    """
    if distributed.is_initialized():
        rank = distributed.get_rank()
        return Processes(rank, distributed.get_world_size(), int(os.environ.get("LOCAL_RANK", rank)))
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {count}, but {', '.join(missing)} is not set: start with torchrun or accelerate "
            "launch, or unset WORLD_SIZE"
        )
    rank = int(os.environ["RANK"])
    return Processes(rank, count, int(os.environ.get("LOCAL_RANK", rank)))


def _choose_backend() -> str:
    """Gloo for objects and tensors on the CPU, and beside it what the accelerator has for its own tensors."""
    if not torch.accelerator.is_available():
        return "gloo"
    accelerator = cast(torch.device, torch.accelerator.current_accelerator()).type
    return f"cpu:gloo,{accelerator}:{distributed.Backend.default_device_backend_map.get(accelerator, 'gloo')}"


def _leave_processes() -> None:
    if distributed.is_initialized():
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
