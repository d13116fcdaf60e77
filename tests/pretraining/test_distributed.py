"""Two processes equal one: DDP through the Trainer and accelerate, FSDP2 through torch, accumulated batches."""

import json
from pathlib import Path

import pytest
import torch

from tests.forked import call_in_pair
from tests.pretraining.distributed_run import RUNS, build_model, run_in_group


def _run(mode: str, folder: Path, num_processes: int) -> dict:
    if num_processes == 1:
        RUNS[mode](folder, 1)
    else:
        assert call_in_pair(run_in_group, mode, folder) == [0, 0]
    weights = torch.load(folder / "weights.pt", weights_only=True)
    return {"weights": weights, "log": json.loads((folder / "log.json").read_text())}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Each run once: `runs(mode, num_processes)`."""
    made: dict = {}

    def run(mode: str, num_processes: int) -> dict:
        key = (mode, num_processes)
        if key not in made:
            made[key] = _run(mode, tmp_path_factory.mktemp(mode), num_processes)
        return made[key]

    return run


def _require_equal(ours: dict, expected: dict) -> None:
    assert ours["weights"].keys() == expected["weights"].keys()
    for name, tensor in expected["weights"].items():
        torch.testing.assert_close(ours["weights"][name], tensor, atol=2e-6, rtol=1e-5, msg=name)


def _require_equal_logs(ours: dict, expected: dict, names: tuple[str, ...]) -> None:
    for name in names:
        values = [[row[name] for row in run["log"] if name in row] for run in (ours, expected)]
        assert len(values[1]) == 4
        assert values[0] == pytest.approx(values[1], rel=1e-5), name


def test_training_moves_every_part(runs):
    before = build_model().state_dict()
    after = runs("plain", 1)["weights"]
    for part in ("encoder.layer.0.mlp.fc1.weight", "predictor.proj.weight", "target_encoder.layer.0.mlp.fc1.weight"):
        assert (after[part] - before[part]).abs().max() > 1e-4, part


def test_two_processes_equal_one(runs):
    ours, expected = runs("plain", 2), runs("plain", 1)
    _require_equal(ours, expected)
    _require_equal_logs(ours, expected, ("loss", "encoder_grad_norm", "predictor_grad_norm", "momentum"))


def test_accumulated_batches_equal_one_batch(runs):
    ours, expected = runs("accumulated", 1), runs("plain", 1)
    _require_equal(ours, expected)
    _require_equal_logs(ours, expected, ("loss", "encoder_grad_norm", "predictor_grad_norm", "momentum"))


@pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="torch before 2.7: no FSDP2 on a CPU")
def test_fully_sharded_training_equals_one_process(runs):
    ours, expected = runs("sharded", 2), runs("sharded", 1)
    _require_equal(ours, expected)
    _require_equal_logs(ours, expected, ("encoder_grad_norm", "predictor_grad_norm"))
