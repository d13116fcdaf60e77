import importlib
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch

from tests.small_recipe import SMALL_RECIPE
from vjepa_hub import VJEPAModel
from vjepa_hub.evaluation.label_efficiency import SplitSummary
from vjepa_hub.evaluation.made_tasks import TASKS
from vjepa_hub.evaluation.probe_run import SummaryRow
from vjepa_hub.pretraining.checkpoints import save_published
from vjepa_hub.pretraining.interruption import InterruptedRunError
from vjepa_hub.pretraining.recipe import Recipe
from vjepa_hub.pretraining.run import build_model, build_processor
from vjepa_hub.publishing.records import ReproductionRecord, SeedRecord, TrainingMachine, write_record
from vjepa_hub.reproduction.training import digest_weights

FOLDER = Path(__file__).parent.parent / "benchmarks"
RECIPE = {**SMALL_RECIPE, "synthetic": {**SMALL_RECIPE["synthetic"], "num_frames": 16}}
TASK_SETTINGS = {
    "num_train": 80,
    "num_test": 80,
    "size": 32,
    "num_frames": 16,
    "frame_step": 2,
    "num_epochs": 1,
    "has_pictures": False,
}
ACCURACIES = {3: {"appearance": 0.4, "motion": 0.6}, 5: {"appearance": 0.5, "motion": 0.9}}  # by seed
QUICK = ["--label-epochs", "2"]


@pytest.fixture(scope="module")
def baselines():
    """The script as a module, with heads replaced, which cost more than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        module = importlib.import_module("baselines")
        patch.setattr(module, "probe_tasks", accuracies_from_weights)
        yield module
    for name in ("baselines", "claims"):
        del sys.modules[name]


def accuracies_from_weights(encoders, videos, output_dir, settings, *, seeds, progress):
    (output_dir / "features").mkdir(parents=True)
    is_pixels = encoders[0].startswith("pixels:")
    share = 0.1 + seeds[0] / 100 if is_pixels else int(digest_weights(encoders[0])[:4], 16) / 0xFFFF
    rows = []
    for mean, is_selected in ((0.0, False), (share, True)):
        top1 = SplitSummary(mean=mean, deviation=None, num_splits=1)
        rows.append(
            SummaryRow(encoder=encoders[0], fraction=1.0, head="", is_selected=is_selected, top1=top1, top5=top1)
        )
    return dict.fromkeys(TASKS, rows)


def make_reproduction(folder):
    """What `vjepa-hub reproduce` leaves, as far as it is read."""
    recipe = Recipe.from_tree({"name": "small", **RECIPE})
    model = build_model(recipe)
    build_processor(recipe).save_pretrained(folder / "model")
    save_published(folder / "model", model.config, model.state_dict())
    trainings = [
        SeedRecord(
            seed=seed,
            losses={},
            digests={1: "", 3: ""},
            accuracies={1: dict.fromkeys(TASKS, 0.0), 3: accuracies},
            minutes=1.0,
        )
        for seed, accuracies in ACCURACIES.items()
    ]
    machine = TrainingMachine(processor="a processor", torch="2", num_threads=1)
    record = ReproductionRecord(
        recipe=recipe.to_tree(), short_steps=1, num_steps=3, tasks=TASK_SETTINGS, machine=machine, seeds=trainings
    )
    write_record(folder / "model", record)
    return folder


def make(baselines, folder, *options):
    return baselines.plan(baselines.parse_arguments([str(folder), *QUICK, *options]))


@pytest.fixture(scope="module")
def measured(baselines, tmp_path_factory):
    """A folder with all rows, and its evaluation."""
    folder = make_reproduction(tmp_path_factory.mktemp("measured"))
    baselines.main([str(folder), *QUICK])
    return folder, json.loads((folder / "model" / "evaluation.json").read_text())


def test_the_evaluation_has_every_row_with_an_accuracy_of_each_seed(baselines, measured):
    _, found = measured
    assert [row["name"] for row in found["rows"]] == list(baselines.ROWS)
    for row in found["rows"]:
        assert row["words"]
        assert set(row["tasks"]) == set(TASKS)
        for numbers in row["tasks"].values():
            assert len(numbers["accuracies"]) == len(found["seeds"]) == 2
            assert all(0 <= accuracy <= 1 for accuracy in numbers["accuracies"])
            assert numbers["mean"] == pytest.approx(fmean(numbers["accuracies"]))
            assert numbers["std"] == pytest.approx(stdev(numbers["accuracies"]))


def test_the_evaluation_says_what_made_it_without_paths_of_the_machine(measured):
    folder, found = measured
    assert found["command"] == f"python benchmarks/baselines.py {folder.name} --label-epochs 2"
    assert str(folder.parent) not in json.dumps(found)
    facts = {name: found[name] for name in ("format", "recipe", "num_steps", "seeds", "num_train", "num_test")}
    assert facts == {
        "format": 1,
        "recipe": "small",
        "num_steps": 3,
        "seeds": [3, 5],
        "num_train": 80,
        "num_test": 80,
    }
    assert found["machine"]["num_threads"] == 1


def test_the_trained_row_is_that_of_the_record_and_raw_pixels_differ_by_the_heads_seed(measured):
    rows = {row["name"]: row["tasks"] for row in measured[1]["rows"]}
    assert rows["trained"]["motion"]["accuracies"] == [0.6, 0.9]
    assert rows["trained"]["appearance"]["accuracies"] == [0.4, 0.5]
    assert rows["raw-pixels"]["motion"]["accuracies"] == pytest.approx([0.13, 0.15])


def test_untrained_weights_are_those_that_the_training_starts_from(measured):
    for seed in ACCURACIES:
        start = build_model(
            Recipe.from_tree({"name": "small", **RECIPE}).with_overrides({"training.seed": seed})
        ).encoder
        found = VJEPAModel.from_pretrained(measured[0] / "untrained" / f"seed-{seed}").encoder
        assert all(torch.equal(value, start.state_dict()[name]) for name, value in found.state_dict().items())


def test_pixels_are_predicted_at_equal_compute(baselines, measured):
    study = make(baselines, measured[0])
    steps = study.pixel_recipe.training.max_steps
    assert study.pixel_recipe.training.targets == "pixels"
    costs = [sys.modules["claims"].measure_cost(recipe).flops for recipe in (study.recipe, study.pixel_recipe)]
    assert steps * costs[1] == pytest.approx(3 * costs[0], rel=0.5 / steps)
    for seed in ACCURACIES:
        run = measured[0] / "pixel-prediction" / f"seed-{seed}"
        assert json.loads((run / "finished.json").read_text())["steps"] == steps
        assert (run / "videos").resolve() == (measured[0] / "videos").resolve()


def test_labels_train_all_weights_from_random_ones_on_crops_alone(measured):
    file = measured[0] / "labels" / "seed-5" / "motion" / "run.json"
    found = json.loads(file.read_text())
    assert found["model"]["name"].startswith("untrained:")
    settings = found["settings"]
    wanted = {"mode": "full", "seed": 5, "num_epochs": 2, "learning_rate": 1e-3, "layer_decay": 1.0, "mixup": 0.0}
    assert {name: settings[name] for name in wanted} == wanted
    assert settings["augmentation"]["flip_probability"] == 0.0  # it would turn right into left


def test_test_videos_are_read_after_the_last_epoch_only(measured):
    history = json.loads((measured[0] / "labels" / "seed-3" / "motion" / "metrics.json").read_text())
    assert [row["epoch"] for row in history if "loss" in row] == [1.0, 2.0]
    assert not [row for row in history if "eval_top1" in row]


def test_neither_features_nor_checkpoints_with_labels_are_left(measured):
    assert not list(measured[0].rglob("features"))
    assert not list((measured[0] / "labels").rglob("checkpoint-*"))


def test_the_same_command_measures_nothing_again(baselines, measured, monkeypatch):
    folder, found = measured
    monkeypatch.setattr(baselines.Baselines, "_measure", lambda *arguments: pytest.fail("it is measured again"))
    (folder / "model" / "evaluation.json").unlink()
    baselines.main([str(folder), *QUICK, "--rows", "raw-pixels"])
    assert json.loads((folder / "model" / "evaluation.json").read_text()) == found


def test_other_settings_of_the_labels_are_refused_and_do_not_touch_other_rows(baselines, measured):
    study = make(baselines, measured[0], "--label-epochs", "3")
    assert study.read("untrained", 3) is not None
    with pytest.raises(ValueError, match=r"labels-seed-3\.json was measured with another value of label_epochs"):
        study.read("labels", 3)


def test_a_part_says_what_is_missing(baselines, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(baselines, "make_task_videos", lambda *arguments: None)
    folder = make_reproduction(tmp_path)
    baselines.main([str(folder), *QUICK, "--rows", "trained", "raw-pixels", "--seeds", "5"])
    output = capsys.readouterr().out
    assert "1 of 1: raw pixels of frames of 32 x 32, no encoder, seed 5" in output
    assert "labels with seed 5" in output
    assert "raw-pixels with seed 3" in output
    assert "raw-pixels with seed 5" not in output
    assert not (folder / "model" / "evaluation.json").exists()


def test_training_with_labels_goes_on_and_ends_as_the_whole(baselines, measured, tmp_path, monkeypatch):
    class StopAfterFirstEpoch(baselines.PretrainingConsoleCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.epoch >= 1:
                raise KeyboardInterrupt

    folder = make_reproduction(tmp_path)
    (folder / "tasks").symlink_to(measured[0] / "tasks")
    study = make(baselines, folder)
    run = folder / "labels" / "seed-3" / "motion"
    with baselines.computing_with(1):  # as the whole one does
        with monkeypatch.context() as patch:
            patch.setattr(baselines, "PretrainingConsoleCallback", StopAfterFirstEpoch)
            with pytest.raises(KeyboardInterrupt):
                study._train_with_labels("motion", 3)
        assert [place.name for place in run.glob("checkpoint-*")] == ["checkpoint-3"]
        accuracy = study._train_with_labels("motion", 3)
    whole = measured[0] / "labels" / "seed-3" / "motion"
    assert digest_weights(run) == digest_weights(whole)
    assert accuracy == make(baselines, measured[0]).read("labels", 3)["motion"]


def test_an_interrupted_pretraining_tells_that_the_same_command_goes_on(baselines, tmp_path, monkeypatch, capsys):
    def stop(*arguments, **keywords):
        raise InterruptedRunError("the same command goes on", signal_number=15)

    monkeypatch.setattr(baselines, "make_task_videos", lambda *arguments: None)
    monkeypatch.setattr(baselines, "train", stop)
    folder = make_reproduction(tmp_path)
    with pytest.raises(SystemExit) as exit_status:
        baselines.main([str(folder), "--rows", "pixel-prediction"])
    assert exit_status.value.code == 128 + 15
    assert "the same command goes on" in capsys.readouterr().out


def test_a_folder_without_record_and_an_unknown_seed_are_errors(baselines, measured, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no reproduction\.json"):
        make(baselines, tmp_path)
    with pytest.raises(ValueError, match=r"has the seeds \[4\], which were asked for; choose of \[3, 5\]"):
        make(baselines, measured[0], "--seeds", "3", "4")


def test_the_command_names_the_folder_as_given_and_no_parts(baselines):
    given = ["runs/vit-tiny", "--rows", "labels", "--seeds", "3", "--num-threads", "2"]
    command = baselines.describe_command(baselines.parse_arguments(given))
    assert command == "python benchmarks/baselines.py runs/vit-tiny --num-threads 2"


@pytest.mark.slow
def test_the_command_measures_with_real_heads(tmp_path):
    folder = make_reproduction(tmp_path)
    command = [sys.executable, str(FOLDER / "baselines.py"), str(folder), "--label-epochs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "8 of 8: raw pixels, no encoder, seed 5" in done.stdout
    rows = json.loads((folder / "model" / "evaluation.json").read_text())["rows"]
    assert len(rows) == 5
