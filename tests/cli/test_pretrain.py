import runpy
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tests.pretraining.test_run import RECIPE
from vjepa_hub.cli import app
from vjepa_hub.model import modeling_vjepa
from vjepa_hub.pretraining import recipe as recipe_module
from vjepa_hub.pretraining.recipe import load_recipe

LAUNCH = Path(recipe_module.__file__).with_name("launch")


def run_pretrain(*arguments: object):
    return CliRunner().invoke(app, ["pretrain", *map(str, arguments)], env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture
def recipe_file(tmp_path):
    file = tmp_path / "small-run.yaml"
    file.write_text(yaml.safe_dump(RECIPE))
    return file


def test_a_run_shows_its_progress_and_ends_with_a_model_and_plots(recipe_file, tmp_path):
    result = run_pretrain(recipe_file, "--output-dir", tmp_path / "out", "--max-steps", 2, "--set", "momentum=0.25")
    assert result.exit_code == 0, result.output
    assert "step 2/2  loss " in result.output
    assert "health  rank " in result.output
    for name in ("model.safetensors", "report.html", "README.md", "metrics.csv", "recipe.yaml"):
        assert (tmp_path / "out" / name).is_file()
    stored = load_recipe(tmp_path / "out" / "recipe.yaml")
    assert (stored.training.max_steps, stored.training.momentum) == (2, 0.25)


def test_a_folder_with_another_run_is_left_as_it_is(recipe_file, tmp_path):
    stored = load_recipe(recipe_file).with_overrides(["momentum=0.3"]).to_yaml()
    (tmp_path / "recipe.yaml").write_text(stored)
    result = run_pretrain(recipe_file, "--output-dir", tmp_path)
    assert result.exit_code == 2
    assert "differing in training.momentum" in result.output
    assert (tmp_path / "recipe.yaml").read_text() == stored


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "learning_rat=1"], "the nearest is 'learning_rate'"),
        (["--set", "learning_rate=fast"], "must be a number"),
        (["--set", "warmup_steps=100"], "warmup_steps is 100"),
        (["--set", "global_batch_size=6"], "global_batch_size=8"),
    ],
)
def test_wrong_options_are_refused_with_the_remedy(recipe_file, tmp_path, options, message):
    result = run_pretrain(recipe_file, "--output-dir", tmp_path / "out", *options)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out" / "recipe.yaml").exists()  # so that the corrected command finds no run in its way


def test_a_released_recipe_asks_for_data(tmp_path):
    result = run_pretrain("vitl16", "--output-dir", tmp_path, "--set", "bf16=false", "--set", "use_cpu=true")
    assert result.exit_code == 2
    assert "pass --data" in result.output


def test_an_estimate_starts_nothing(tmp_path):
    result = run_pretrain("vitl16", "--output-dir", tmp_path / "out", "--estimate", "--num-processes", 128)
    assert result.exit_code == 0, result.output
    for word in ("tokens of a clip", "FLOPs of a clip", "memory of a process", "time of the run", "assumed to reach"):
        assert word in result.output
    assert "128 x" in result.output
    assert not (tmp_path / "out").exists()


def test_launchers_start_the_same_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["-m", "pretrain", "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("vjepa_hub", run_name="__main__")
    shown = capsys.readouterr().out
    for option in ("--data", "--set", "--overwrite", "--estimate", "torchrun --nproc-per-node"):
        assert option in shown


def test_accelerate_understands_the_launch_files():
    from accelerate.commands.config.config_args import load_config_from_file

    ddp, fsdp = (load_config_from_file(str(LAUNCH / f"{name}.yaml")) for name in ("ddp", "fsdp2"))
    assert (ddp.distributed_type, ddp.num_processes) == ("MULTI_GPU", 8)
    assert (fsdp.distributed_type, fsdp.fsdp_config["fsdp_version"]) == ("FSDP", 2)
    for name in fsdp.fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(","):
        assert hasattr(modeling_vjepa, name)
