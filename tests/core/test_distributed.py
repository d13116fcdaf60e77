import json
import multiprocessing
import os
import random
import socket
from pathlib import Path

import pytest

from vjepa_hub.core.distributed import Processes, join_processes, share_out


def test_every_piece_has_one_owner_and_shares_are_ascending():
    draw = random.Random(0)
    for _ in range(100):
        sizes = [draw.choice([0, 0, 1, 5, 1000, draw.randint(0, 10**9)]) for _ in range(draw.randint(0, 40))]
        shares = share_out(sizes, draw.randint(1, 9))
        assert sorted(piece for share in shares for piece in share) == list(range(len(sizes)))
        assert all(share == sorted(share) for share in shares)


def test_no_share_is_larger_than_another_by_more_than_one_piece():
    draw = random.Random(1)
    sizes = [draw.randint(1, 1000) for _ in range(50)]
    loads = [sum(sizes[piece] for piece in share) for share in share_out(sizes, 4)]
    assert max(loads) - min(loads) <= max(sizes)
    assert [len(share) for share in share_out([0] * 10, 4)] == [3, 3, 2, 2]


def test_one_process_alone_needs_no_environment(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_processes() as processes, processes.first_goes_first():
        assert processes == Processes(0, 1, 0)
        assert processes.from_first(lambda: "plan") == "plan"
        assert processes.gather([1, 2]) == [1, 2]


def test_incomplete_environment_is_an_error_that_names_what_is_missing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="MASTER_ADDR, MASTER_PORT is not set"), join_processes():
        pass


def fail() -> None:
    raise ValueError("no plan")


def meet(rank: int, folder: Path) -> None:
    """What each of two processes does; what it sees is written down."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    with join_processes() as processes:
        plan = processes.from_first(lambda: [f"made by {rank}", "b", "c"])
        with pytest.raises(ValueError, match="no plan"):
            processes.from_first(fail)
        with processes.first_goes_first(), (folder / "order").open("a") as order:
            order.write(str(rank))
        with pytest.raises(KeyError), processes.first_goes_first():
            raise KeyError
        (folder / f"{rank}.json").write_text(json.dumps(processes.gather([f"{rank} {item}" for item in plan[rank:]])))
        processes.wait()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="starts processes by fork")
def test_two_processes_share_plan_errors_and_results_and_the_first_goes_first(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=meet, args=(rank, tmp_path)) for rank in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join(timeout=120)
    assert [process.exitcode for process in running] == [0, 0]
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert seen == [["0 made by 0", "0 b", "0 c", "1 b", "1 c"]] * 2
    assert (tmp_path / "order").read_text() == "01"
