import re

import pytest
from typer.testing import CliRunner

from vjepa_hub import VJEPAForVideoClassification
from vjepa_hub.cli import app

QUICK = ("--num-epochs", 1, "--frame-step", 2, "--num-workers", 0, "--num-classes", 8)


def run_finetune(folder, *arguments: object):
    sets = ["--train", folder / "train" / "motion.csv", "--val", folder / "test" / "motion.csv"]
    command = ["finetune", *map(str, [folder / "model", *sets, *QUICK, *arguments])]
    return CliRunner().invoke(app, command, env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_command_tunes_the_last_block_and_leaves_a_classifier(labelled_folder, tmp_path):
    result = run_finetune(labelled_folder, "--mode", "last-k", "--num-blocks", 1, "--output-dir", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "on 40 videos of 8 classes" in result.output
    assert re.search(r"40 clips of \d+ tokens: about .* of memory and .*, without decoding", result.output)
    assert "top-1 " in result.output
    assert VJEPAForVideoClassification.from_pretrained(tmp_path / "out").num_labels == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode", "half"], "half"),
        (["--mode", "last-k"], "num_blocks"),
        (["--set", "mixupp=0"], "mixup"),
        (["--argument", "fp61=true"], "fp61"),
    ],
)
def test_wrong_options_are_refused_with_the_remedy(labelled_folder, tmp_path, arguments, message):
    result = run_finetune(labelled_folder, *arguments, "--output-dir", tmp_path)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
