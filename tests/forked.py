"""Processes that call a function of the tests, forked from one that has imported torch and transformers.

A Python of its own takes seconds to import them: `child_process.run_python`, for what is decided at import.
"""

import multiprocessing
import os
from collections.abc import Callable, Mapping

import torch
from torch.distributed import TCPStore

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["vjepa_hub.pretraining.trainer", "vjepa_hub.cli"])
SECONDS = 240


def _call(function: Callable, arguments: tuple, environment: dict[str, str], start_method: str) -> None:
    multiprocessing.set_start_method(start_method, force=True)  # else its own children are forked from a server too
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*arguments)


def call_in_processes(function: Callable, *arguments: object, environments: list[Mapping[str, str]]) -> list[int]:
    """Call a function in a process for each environment, all at once.

    Args:
        function: One of a module.
        arguments: Sent to the processes.
        environments: What is added to the environment of this process, for each.

    Returns:
        Exit codes of the processes; minus the signal where one ended a process.
    """
    method = multiprocessing.get_start_method()
    calls = [(function, arguments, {**os.environ, **environment}, method) for environment in environments]
    processes = [CONTEXT.Process(target=_call, args=call) for call in calls]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(SECONDS)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()


def call_in_process(function: Callable, *arguments: object) -> int:
    """Call a function in a process of its own; its exit code."""
    return call_in_processes(function, *arguments, environments=[{}])[0]


def call_in_pair(function: Callable, *arguments: object) -> list[int]:
    """Call a function in two processes that find each other as those of torchrun do: by a store, hosted here."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    return call_in_processes(function, *arguments, environments=[shared | rank for rank in ranks])
