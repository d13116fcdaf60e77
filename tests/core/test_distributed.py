import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.other_run import HOST, leave_lock
from vjepa_hub.core.distributed import Processes, join_processes, share_out
from vjepa_hub.core.folder_lock import LOCK_FILE, FolderInUseError
from vjepa_hub.core.progress import is_first_process

ROOT = Path(__file__).parents[2]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]


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
    processes = join_processes()
    with processes.first_goes_first():
        assert processes == Processes(0, 1, 0)
        assert processes.from_first(lambda: "plan") == "plan"
        assert processes.gather([1, 2]) == [1, 2]


def test_incomplete_environment_is_an_error_that_names_what_is_missing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="MASTER_ADDR, MASTER_PORT is not set"):
        join_processes()


def fail() -> None:
    raise ValueError("no plan")


def meet(folder: Path) -> None:
    """Work of each of two processes, which write down what they see."""
    processes = join_processes()
    assert join_processes() == processes  # joined once, found again
    rank = processes.rank
    assert (processes.is_first, processes.count) == (is_first_process(), 2)
    plan = processes.from_first(lambda: [f"made by {rank}", "b", "c"])
    with pytest.raises(ValueError, match="no plan"):
        processes.from_first(fail)
    with processes.first_goes_first(), (folder / "order").open("a") as order:
        order.write(str(rank))
    with pytest.raises(KeyError), processes.first_goes_first():
        raise KeyError
    with processes.locking(folder / "own"):  # one run, one lock
        processes.wait()
        assert (folder / "own" / LOCK_FILE).exists()
        processes.wait()
    with pytest.raises(FolderInUseError, match=HOST), processes.locking(folder / "busy"):
        raise AssertionError("another run is at work there")
    total = torch.tensor([rank + 1.0, 10.0])
    processes.add_up(total)
    seen = [processes.gather([f"{rank} {item}" for item in plan[rank:]]), total.tolist()]
    (folder / f"{rank}.json").write_text(json.dumps(seen))
    processes.wait()


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_share_plan_errors_lock_and_results_and_the_first_goes_first(tmp_path, launcher):
    leave_lock(tmp_path / "busy", machine="00000000", host=HOST)
    script = tmp_path / "meet.py"
    script.write_text(f"from pathlib import Path\nfrom {__name__} import meet\nmeet(Path({str(tmp_path)!r}))\n")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own_port = ["--main_process_port", str(port)] if launcher is ACCELERATE else []
    command = [sys.executable, "-m", *launcher, *own_port, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert seen == [[["0 made by 0", "0 b", "0 c", "1 b", "1 c"], [3.0, 20.0]]] * 2
    assert (tmp_path / "order").read_text() == "01"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="has an accelerator")
def test_device_is_the_cpu_where_there_is_no_accelerator_and_others_are_refused():
    assert Processes().choose_device() == Processes(1, 2, 1).choose_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="'cuda:1'; this machine has: cpu"):
        Processes().choose_device("cuda:1")
