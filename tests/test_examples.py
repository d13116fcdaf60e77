"""The scripts in examples/ run on what the package carries."""

import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("script", SCRIPTS)
def test_example_runs_on_what_the_package_has(script, tmp_path):
    arguments, expected = EXAMPLES.get(script.name, ([], SHORT_EXAMPLES.get(script.name)))
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
