import re
import shutil

import pytest
from typer.testing import CliRunner

from vjepa_hub.cli import app
from vjepa_hub.evaluation.results import read_results

QUICK = ("--num-epochs", 1, "--batch-size", 16, "--set", "frame_step=2", "--num-workers", 0, "--num-classes", 8)


def run_probe(folder, *arguments: object, with_train=True):
    sets = ["--val", folder / "test" / "motion.csv"]
    sets += ["--train", folder / "train" / "motion.csv"] if with_train else []
    command = ["probe", *map(str, [*arguments, *sets, *QUICK])]
    return CliRunner().invoke(app, command, env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_values_in_a_row_train_side_by_side_and_end_in_one_table(labelled_folder, tmp_path):
    model = labelled_folder / "model"
    grid = ["--learning-rate", "1e-3", "3e-3", "--pooling", "attentive", "average", "--no-augmentation"]
    result = run_probe(labelled_folder, model, *grid, "--cache", tmp_path / "cache", "--output-dir", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "average, learning rate 0.003, weight decay 0.01" in result.output
    assert "in bold the best head, chosen on the validation set itself" in result.output
    assert re.search(r"clips of \d+ tokens: about .* of memory and .*, without decoding", result.output)
    results = read_results(tmp_path / "out")
    assert len(results.heads) == 4
    assert results.protocol["augmentation"] is None


def test_shares_of_the_labels_are_reported_with_their_deviation(labelled_folder, tmp_path):
    shares = ["--label-fraction", "0.4", "1", "--splits", "2", "--no-augmentation", "--cache", tmp_path / "cache"]
    result = run_probe(labelled_folder, labelled_folder / "model", *shares, "--output-dir", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "40 %" in result.output
    assert "mean ± standard deviation over 2 runs" in result.output
    assert (tmp_path / "out" / "splits" / "labels-0.4-split-1.json").is_file()


def test_trained_classifier_is_evaluated_as_it_is_and_unreadable_videos_are_told(labelled_folder, tmp_path):
    out = tmp_path / "out"
    assert run_probe(labelled_folder, labelled_folder / "model", "--output-dir", out).exit_code == 0
    shutil.copytree(labelled_folder / "test", tmp_path / "test")
    next((tmp_path / "test").rglob("*.mp4")).write_bytes(b"")
    (tmp_path / "again").mkdir()
    evaluation = ["--eval-only", "--output-dir", tmp_path / "again"]
    result = run_probe(tmp_path, out / "classifier", *evaluation, with_train=False)
    assert result.exit_code == 1, result.output
    assert "top-1 " in result.output
    assert "1 video could not be read: they count as wrong" in result.output
    assert read_results(tmp_path / "again").num_unreadable == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "--protocol", "k600"], "unknown protocol 'k600'; available: k400"),
        (["MODEL", "--protocol", "ava"], "vjepa-hub localise"),
        (["MODEL", "--set", "epochs=3"], "the nearest is 'num_epochs'"),
        (["MODEL", "--dtype", "int8"], "dtype is 'int8'"),
        (["MODEL", "MODEL"], "twice; name each once"),
        (["missing-model"], "neither a folder, nor a file"),
        (["MODEL", "--label-fraction", "1.5"], "label_fractions.0 is 1.5"),
        (["MODEL", "--class-names", "names.txt"], "names.txt"),
    ],
)
def test_wrong_options_are_refused_with_the_remedy(labelled_folder, tmp_path, arguments, message):
    given = [labelled_folder / "model" if argument == "MODEL" else argument for argument in arguments]
    result = run_probe(labelled_folder, *given, "--output-dir", tmp_path / "out")
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_a_missing_training_set_is_asked_for(labelled_folder, tmp_path):
    result = run_probe(labelled_folder, labelled_folder / "model", "--output-dir", tmp_path, with_train=False)
    assert result.exit_code == 2
    assert "--train is missing" in result.output
