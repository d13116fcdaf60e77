"""This process among those that `torchrun` or `accelerate launch` started beside it."""

import os

import torch
from accelerate import PartialState


def join_processes() -> PartialState:
    """What accelerate knows of the processes; at the first call they are joined.

    On machines without an accelerator it has to be told so: otherwise it takes several processes for one each, without
    a word, and each would do all of the work.

    Raises:
        RuntimeError: `WORLD_SIZE` says that there are several, but they could not be joined.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    state = PartialState(cpu=True) if count > 1 and not torch.cuda.is_available() else PartialState()
    if state.num_processes != count and "LOCAL_RANK" in os.environ:
        raise RuntimeError(
            f"WORLD_SIZE is {count}, but accelerate has joined {state.num_processes} processes; start with torchrun "
            "or accelerate launch, before anything else uses accelerate, or unset WORLD_SIZE and LOCAL_RANK"
        )
    return state
