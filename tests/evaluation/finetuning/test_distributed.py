"""Two processes tune as one does, in every mode; a parameter without a gradient would stop them."""

import importlib.util
import json
from pathlib import Path

import pytest

from tests.evaluation.finetuning.finetuning_distributed import MODES, tune, tune_all
from tests.evaluation.finetuning_sets import save_features_model
from tests.forked import call_in_pair

IS_PEFT_THERE = importlib.util.find_spec("peft") is not None
TESTED = [mode for mode in MODES if mode != "lora" or IS_PEFT_THERE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The runs of two processes."""
    folder = tmp_path_factory.mktemp("distributed")
    save_features_model(folder / "features")
    assert call_in_pair(tune_all, folder, TESTED) == [0, 0]
    return folder


def _log(run: Path) -> dict[str, list[float]]:
    rows = json.loads((run / "metrics.json").read_text())
    names = ("loss", "grad_norm", "eval_top1", "eval_num_videos")
    return {name: [row[name] for row in rows if name in row] for name in names}


@pytest.mark.parametrize("mode", TESTED)
def test_two_processes_tune_as_one_does(folder, tmp_path, mode):
    found = _log(folder / mode)
    expected = _log(tune(tmp_path / mode, str(folder / "features"), mode, 1))
    assert len(found["loss"]) == 2
    assert found["eval_num_videos"] == [5]  # the padded sixth is left out again
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-3), name
