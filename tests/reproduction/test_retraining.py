import io
import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from typer.testing import CliRunner

from tests.small_recipe import SMALL_RECIPE
from vjepa_hub.cli import app
from vjepa_hub.evaluation.label_efficiency import SplitSummary
from vjepa_hub.evaluation.made_tasks import MadeTaskSettings
from vjepa_hub.evaluation.probe_run import SummaryRow
from vjepa_hub.pretraining.recipe import Recipe, load_recipe
from vjepa_hub.publishing.records import read_record
from vjepa_hub.reproduction import retraining, training
from vjepa_hub.reproduction.comparison import compare_published
from vjepa_hub.reproduction.retraining import record_trainings, tasks_of, train_seeds, verify_training
from vjepa_hub.reproduction.training import digest_weights

RECIPE = {
    **SMALL_RECIPE,
    "training": {
        **{name: value for name, value in SMALL_RECIPE["training"].items() if name != "report"},
        "max_steps": 4,
        "save_steps": 10,
        "health_steps": 0,
    },
}
TASKS = MadeTaskSettings(num_train=80, num_test=80, size=32, num_frames=8, has_pictures=False, num_epochs=1)


def quiet():
    return Console(file=io.StringIO())


def accuracies_from_weights(encoders, videos, output_dir, settings, *, seeds, progress):
    """In place of a probe, which costs more than all the rest: a share that the weights alone decide."""
    share = int(digest_weights(encoders[0])[:4], 16) / 0xFFFF
    top1 = SplitSummary(mean=share, deviation=None, num_splits=1)
    row = SummaryRow(encoder=encoders[0], fraction=1.0, head="", is_selected=True, top1=top1, top5=top1)
    return {"appearance": [row], "motion": [row]}


@pytest.fixture(scope="module", autouse=True)
def _quick_probe():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retraining, "make_task_videos", lambda *arguments: None)
        patch.setattr(retraining, "probe_tasks", accuracies_from_weights)
        yield


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, _quick_probe):
    """The folder of trainings with two seeds."""
    folder = tmp_path_factory.mktemp("recorded")
    recipe = Recipe.from_tree({"name": "small", **RECIPE})
    record_trainings(recipe, folder, seeds=(0, 1), short_steps=2, tasks=TASKS, num_threads=1, console=quiet())
    return folder


def test_the_model_is_that_of_the_first_seed_with_a_record_of_all(recorded):
    record = read_record(recorded / "model")
    assert [sorted(one.losses) for one in record.seeds] == [[1, 2, 3, 4]] * 2
    assert [sorted(one.accuracies) for one in record.seeds] == [[2, 4]] * 2
    assert record.seeds[0].digests[4] == digest_weights(recorded / "model")
    assert len({digest for one in record.seeds for digest in one.digests.values()}) == 4
    assert "4 steps" in AutoModel.from_pretrained(recorded / "model").config.weights_origin
    assert str(recorded) not in json.dumps(record.recipe)


def test_a_training_cut_short_is_the_beginning_of_the_whole(recorded, tmp_path):
    """The same learning rates and momenta, the same clips and masks: equal to the bit."""
    checks = verify_training(recorded / "model", tmp_path, is_short=True, console=quiet())
    assert [(check.name, check.state) for check in checks] == [
        ("weights of the record", "passed"),
        ("weights after step 2", "passed"),
        ("loss to step 2", "passed"),
        ("appearance after step 2", "passed"),
        ("motion after step 2", "passed"),
    ]
    assert not (tmp_path / "seed-0" / "step-4").exists()


def test_a_training_goes_on_where_it_was_left(recorded, tmp_path):
    verify_training(recorded / "model", tmp_path, is_short=True, console=quiet())
    checks = verify_training(recorded / "model", tmp_path, console=quiet())
    assert [check.state for check in checks] == ["passed"] * 5
    assert digest_weights(tmp_path / "seed-0" / "step-4") == digest_weights(recorded / "model")


def test_weights_that_were_changed_are_seen(recorded, tmp_path):
    tensors = load_file(recorded / "model" / "model.safetensors")
    save_file(tensors, tmp_path / "model.safetensors")
    assert digest_weights(tmp_path) == digest_weights(recorded / "model")
    name = min(tensors)
    tensors[name] = torch.nextafter(tensors[name], torch.tensor(9.0))
    save_file(tensors, tmp_path / "model.safetensors")
    assert digest_weights(tmp_path) != digest_weights(recorded / "model")


def test_weights_that_are_not_those_of_the_record_beside_them_fail(recorded):
    record = read_record(recorded / "model")
    assert compare_published(record, record.seeds[0].digests[4]).passed
    assert not compare_published(record, record.seeds[0].digests[2]).passed


def test_steps_that_do_not_fit_are_an_error(tmp_path):
    recipe = Recipe.from_tree({"name": "small", **RECIPE})
    with pytest.raises(ValueError, match=r"short_steps is 4, but must be at least 1 and below .* max_steps, 4"):
        record_trainings(recipe, tmp_path, short_steps=4, console=quiet())


@pytest.mark.parametrize("seeds", [(0,), (1, 1)])
def test_a_record_of_one_seed_is_refused_before_anything_is_trained(tmp_path, seeds):
    recipe = Recipe.from_tree({"name": "small", **RECIPE})
    with pytest.raises(ValueError, match=r"the seeds are .*, but a record needs at least two"):
        record_trainings(recipe, tmp_path / "out", seeds=seeds, short_steps=2, tasks=TASKS, console=quiet())
    assert not (tmp_path / "out").exists()


def test_seeds_that_were_only_trained_are_collected_and_not_trained_again(recorded, tmp_path, monkeypatch):
    recipe = Recipe.from_tree({"name": "small", **RECIPE})
    for seed in (1, 0):
        train_seeds(recipe, tmp_path, seeds=(seed,), short_steps=2, tasks=TASKS, num_threads=1, console=quiet())
    assert not (tmp_path / "model").exists()
    monkeypatch.setattr(training, "pretrain", lambda *arguments, **values: pytest.fail("trained again"))
    model = record_trainings(
        recipe, tmp_path, seeds=(0, 1), short_steps=2, tasks=TASKS, num_threads=1, console=quiet()
    )
    found, expected = read_record(model), read_record(recorded / "model")
    assert [one.model_copy(update={"minutes": 0}) for one in found.seeds] == [
        one.model_copy(update={"minutes": 0}) for one in expected.seeds
    ]


def run_reproduction(monkeypatch, *arguments):
    """The command, and which function it calls with which seeds."""
    called = []
    for name in ("train_seeds", "record_trainings"):
        monkeypatch.setattr(retraining, name, lambda *_, name=name, seeds, **__: called.append((name, seeds)))
    result = CliRunner().invoke(app, ["reproduce", "tiny", "--short-steps", "2", "--output-dir", "out", *arguments])
    assert result.exit_code == 0, result.output
    return called


def test_the_command_writes_a_record_unless_it_is_told_only_to_train(monkeypatch):
    assert run_reproduction(monkeypatch) == [("record_trainings", (0, 1, 2))]
    assert run_reproduction(monkeypatch, "--train-only", "--seed", "4") == [("train_seeds", [4])]


def run_verify(*arguments):
    result = CliRunner().invoke(app, ["verify", *map(str, arguments)], env={"COLUMNS": "220", "NO_COLOR": "1"})
    return result.exit_code, " ".join(result.output.split())


def test_the_command_trains_again_and_gives_a_verdict(recorded, tmp_path):
    model = recorded / "model"
    code, output = run_verify(model, "--retrain", "--short", "--output-dir", tmp_path)
    assert "weights after step 2 passed equal to the record's to the bit" in output
    assert "what it says of itself holds" in output
    assert code == 0
    code, output = run_verify(model, "--short")
    assert code != 0
    assert "give --retrain too" in output


def test_frozen_encoders_are_judged_on_the_recipe_s_own_kind_of_video():
    recipe = Recipe.from_tree({"name": "small", **RECIPE})
    tasks = tasks_of(recipe, num_train=5)
    assert (tasks.num_train, tasks.size, tasks.num_frames, tasks.frame_step) == (5, 32, 8, 2)
    assert not tasks.has_pictures
    pictures = recipe.with_overrides(["synthetic.kind=fashion-mnist", "synthetic.scene=grainy"])
    assert tasks_of(pictures).videos("test", 3) == pictures.synthetic.with_values(split="test", num_videos=3, fps=8)
    with pytest.raises(ValueError, match=r"the recipe vitl16 has no `synthetic` video"):
        tasks_of(load_recipe("vitl16"))
