"""The model that the package carries: complete, small, what its records say, and opened without a download."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from typer.testing import CliRunner

from vjepa_hub import VJEPAConfig, VJEPAForPreTraining
from vjepa_hub.cli import app
from vjepa_hub.hub.loading import open_model
from vjepa_hub.hub.registry import MODELS
from vjepa_hub.pretraining.initial import open_initial
from vjepa_hub.pretraining.recipe import Recipe, load_recipe
from vjepa_hub.publishing.card import render_card
from vjepa_hub.publishing.records import read_record
from vjepa_hub.publishing.registry_cards import registered_facts
from vjepa_hub.publishing.verification import FAILED, PASSED, Check, verify_bundled
from vjepa_hub.reproduction.training import digest_weights

NAME = "vjepa-vit-tiny"
FOLDER = MODELS[NAME].bundled_folder
MAX_BYTES = 25_000_000


@pytest.fixture
def copy(tmp_path) -> Path:
    """The folder, to be damaged."""
    return Path(shutil.copytree(FOLDER, tmp_path / NAME))


def test_files_are_those_of_a_trained_model_without_code_and_small():
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {
        "config.json",
        "evaluation.json",
        "metrics.csv",
        "model.safetensors",
        "recipe.yaml",
        "reproduction.json",
        "video_preprocessor_config.json",
    }
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MAX_BYTES


def test_architecture_is_that_of_the_registry_and_of_the_recipe():
    entry, recipe = MODELS[NAME], load_recipe(MODELS[NAME].recipe)
    found = VJEPAConfig.from_pretrained(FOLDER)
    for name in VJEPAConfig.__annotations__:
        if name != "weights_origin":
            assert getattr(found, name) == getattr(entry.config(), name) == getattr(recipe.config(), name), name


def test_weights_and_recipe_are_those_of_the_record():
    record = read_record(FOLDER)
    assert digest_weights(FOLDER) == record.seeds[0].digests[record.num_steps]
    assert len(record.seeds) == 3
    recipe = Recipe.from_tree(record.recipe)
    assert recipe.to_tree() == load_recipe(MODELS[NAME].recipe).to_tree()


def test_features_are_those_of_the_target_encoder_and_training_goes_on_from_both():
    stored = load_file(FOLDER / "model.safetensors")
    name = "layer.0.attention.proj.weight"
    opened, initial = open_model(NAME), open_initial(NAME)
    assert opened.is_trained
    assert isinstance(initial, VJEPAForPreTraining)
    context, target = stored[f"encoder.{name}"], stored[f"target_encoder.{name}"]
    assert not torch.equal(context, target)
    assert torch.equal(opened.model.encoder.state_dict()[name], target)
    assert torch.equal(initial.encoder.state_dict()[name], context)
    assert torch.equal(initial.target_encoder.state_dict()[name], target)


def test_clips_are_those_of_the_training():
    recipe, processor = load_recipe(MODELS[NAME].recipe), open_model(NAME).processor
    assert processor.num_frames == recipe.config().frames_per_clip
    assert processor.frame_step == recipe.clips.frame_step
    assert processor.crop_size["height"] == recipe.config().crop_size


def test_verification_passes_and_finds_what_is_damaged(copy):
    assert {check.state for check in verify_bundled(NAME, copy).checks} == {PASSED}
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    states = {check.name: check.state for check in verify_bundled(NAME, copy).checks}
    assert states["weights"] == FAILED


def test_evaluation_states_the_accuracies_of_the_record():
    record, evaluation = read_record(FOLDER), json.loads((FOLDER / "evaluation.json").read_text())
    trained = next(row for row in evaluation["rows"] if row["name"] == "trained")
    for task in ("appearance", "motion"):
        assert trained["tasks"][task]["accuracies"] == record.accuracies(record.num_steps, task)


def test_command_trains_a_bundled_model_again_without_being_asked(monkeypatch, tmp_path):
    asked = {}

    def verify_training(folder, output_dir, *, is_short, seed):
        asked.update(folder=folder, output_dir=output_dir, is_short=is_short, seed=seed)
        return [Check(name="loss", state=FAILED, detail="another")]

    monkeypatch.setattr("vjepa_hub.reproduction.retraining.verify_training", verify_training)
    result = CliRunner().invoke(app, ["verify", NAME, "--short", "--output-dir", str(tmp_path)])
    assert asked == {"folder": FOLDER, "output_dir": tmp_path, "is_short": True, "seed": None}
    assert result.exit_code == 1
    assert f"{NAME}: 1 checks failed" in result.output


def test_command_refuses_a_revision_of_what_is_no_repository():
    result = CliRunner().invoke(app, ["verify", NAME, "--revision", "main"])
    assert result.exit_code == 2
    assert f"{NAME} has none: leave it out" in " ".join(result.output.replace("│", " ").split())


def test_card_states_what_the_evaluation_found():
    evaluation = json.loads((FOLDER / "evaluation.json").read_text())
    text = render_card(registered_facts(NAME))
    for row in evaluation["rows"]:
        cells = [f"{100 * found['mean']:.1f} ± {100 * found['std']:.1f}" for found in row["tasks"].values()]
        assert f"| {row['words']} | {' | '.join(cells)} |" in text
    trained = next(row for row in evaluation["rows"] if row["name"] == "trained")
    stated = [result.metric_value for result in ModelCard(text).data.eval_results]
    assert stated == [round(100 * found["mean"], 1) for found in trained["tasks"].values()]
    assert evaluation["command"] in text
