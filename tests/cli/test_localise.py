import pytest
from typer.testing import CliRunner

from tests.evaluation.ava.test_run import folder  # noqa: F401  (a fixture)
from vjepa_hub.cli import app

QUICK = (
    *("--set", "num_classes=3", "--set", "clip_fps=8.0", "--set", "frames_per_clip=4", "--set", "frame_step=1"),
    *("--set", "roi_size=3", "--set", "batch_size=4", "--set", "num_epochs=2", "--set", "num_warmup_epochs=1"),
    *("--start-second", "900", "--num-workers", "0", "--device", "cpu"),
)


def run_localise(folder, *arguments: object):  # noqa: F811
    sets = ["--train", folder / "train.csv", "--val", folder / "val.csv", "--videos", folder / "videos"]
    command = ["localise", *map(str, [folder / "model", *sets, *QUICK, *arguments])]
    return CliRunner().invoke(app, command, env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_command_trains_and_tells_the_mean_average_precision(folder, tmp_path):  # noqa: F811
    boxes = ["--val-proposals", folder / "proposals.csv", "--label-map", folder / "map.pbtxt"]
    result = run_localise(folder, *boxes, "--output-dir", tmp_path)
    assert result.exit_code == 0, result.output
    assert "mean average precision 0." in result.output
    assert (tmp_path / "detections.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--set", "epochs=3"], "num_epochs"), (["--val-proposals", "missing.csv"], "missing.csv")],
)
def test_wrong_options_are_refused_with_the_remedy(folder, tmp_path, arguments, message):  # noqa: F811
    actions = ["--label-map", folder / "map.pbtxt"]
    result = run_localise(folder, *actions, *arguments, "--output-dir", tmp_path)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
