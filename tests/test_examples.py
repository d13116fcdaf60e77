"""The scripts in examples/ run on what the package carries."""

import contextlib
import os
import runpy
import sys
from pathlib import Path

import pytest

from tests.forked import call_in_process

ROOT = Path(__file__).parents[1]
# Examples of half a minute: what shortens them, and a text that they print
EXAMPLES = {
    "evaluate.py": (["--num-train", "48", "--num-test", "16", "--num-epochs", "1", "--seed", "0"], "motion, vjepa"),
    "finetune.py": ([], "eval_top1"),
    "nearest_neighbours.py": (["--num-gallery", "8", "--num-queries", "4"], "untrained"),
    "surprise.py": (["--num-clips", "2"], "untrained"),
}
# Others, of seconds
SHORT_EXAMPLES = {
    "extract_features.py": "pretrained by vjepa_hub",
    "predict_the_future.py": "pretrained by vjepa_hub",
    "pretrain.py": "health/target_effective_rank",
}


SCRIPTS = [
    pytest.param(path, id=path.name, marks=[pytest.mark.slow] if path.name in EXAMPLES else [])
    for path in sorted((ROOT / "examples").glob("*.py"))
]


def run_script(command: list[str], folder: Path) -> None:
    """Run a script in a folder, as Python does; what it prints comes into the folder's `printed.txt`."""
    os.chdir(folder)
    sys.argv = command
    with open("printed.txt", "w") as printed, contextlib.redirect_stdout(printed):
        runpy.run_path(command[0], run_name="__main__")


@pytest.mark.parametrize("script", SCRIPTS)
def test_example_runs_on_what_the_package_has(script, tmp_path):
    arguments, expected = EXAMPLES.get(script.name, ([], SHORT_EXAMPLES.get(script.name)))
    assert call_in_process(run_script, [str(script), *arguments], tmp_path) == 0
    assert expected in (tmp_path / "printed.txt").read_text()
