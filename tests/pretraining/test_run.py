import io
import os
import resource
import shutil
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModel, AutoVideoProcessor, TrainerCallback

from tests.other_run import HOST, at_work_in
from vjepa_hub import VJEPAForPreTraining
from vjepa_hub.core.checkpoints import CheckpointError
from vjepa_hub.core.files import WriteError
from vjepa_hub.core.folder_lock import FolderInUseError
from vjepa_hub.data.sources import open_source
from vjepa_hub.data.streaming import ClipStream
from vjepa_hub.data.synthetic import videos as made_videos
from vjepa_hub.pretraining import estimate, run, run_data
from vjepa_hub.pretraining.interruption import InterruptedRunError
from vjepa_hub.pretraining.metrics_log import read_metrics
from vjepa_hub.pretraining.recipe import Recipe, load_recipe
from vjepa_hub.pretraining.run import (
    build_model,
    clear_folder,
    describe_bfloat16,
    describe_momentum,
    describe_time,
    prepare_run,
    pretrain,
)

RECIPE = {
    "model": {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "patch_size": 8,
        "crop_size": 32,
        "frames_per_clip": 4,
        "pred_hidden_size": 24,
        "pred_num_hidden_layers": 2,
        "pred_num_attention_heads": 4,
    },
    "masks": [
        {"kind": "multi-block", "num_blocks": 2, "spatial_scale": [0.15, 0.15]},
        {"kind": "multi-block", "num_blocks": 1, "spatial_scale": [0.5, 0.5]},
    ],
    "clips": {"frame_step": 2},
    "synthetic": {"num_videos": 12, "size": 32, "num_frames": 8},
    "training": {
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "warmup_steps": 1,
        "learning_rate": 1e-3,
        "momentum": 0.5,
        "logging_steps": 1,
        "save_steps": 2,
        "health_steps": 2,
        "health_batch_size": 4,
        "probe_clips": 12,
    },
}


class Shown:
    """A console that keeps what it shows."""

    def __init__(self):
        self.file = io.StringIO()
        self.console = Console(file=self.file, width=200)

    @property
    def text(self) -> str:
        return self.file.getvalue()


class SignalAt(TrainerCallback):
    """Sends this process a signal at the end of a step."""

    def __init__(self, number: int, step: int):
        self.number, self.step = number, step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)


def with_videos_of(finished: Path, folder: Path) -> Path:
    """A new folder with the video that another run has made."""
    for name in ("videos", "test-videos"):
        shutil.copytree(finished / name, folder / name)
    return folder


@pytest.fixture
def small_recipe():
    return Recipe.from_tree({"name": "small-run", **RECIPE})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run to the end, with a probe: its folder, its trainer, and what it showed."""
    folder, shown = tmp_path_factory.mktemp("run") / "out", Shown()
    recipe = Recipe.from_tree({"name": "small-run", **RECIPE}).with_overrides({"probe": "knn"})
    trainer = pretrain(recipe, output_dir=folder, console=shown.console)
    return folder, trainer, shown.text


def test_a_run_leaves_its_recipe_which_repeats_it(finished, tmp_path):
    folder, _, _ = finished
    again = with_videos_of(folder, tmp_path / "again")
    pretrain(load_recipe(folder / "recipe.yaml"), output_dir=again, console=Shown().console)
    assert load_recipe(again / "recipe.yaml") == load_recipe(folder / "recipe.yaml")
    first, second = (load_file(path / "model.safetensors") for path in (folder, again))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_published_model_is_the_target_encoder(finished):
    folder, trainer, _ = finished
    model = AutoModel.from_pretrained(folder)
    for key, value in trainer.model.target_encoder.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[key], value)
    assert "4 steps" in model.config.weights_origin


def test_the_published_processor_takes_clips_as_the_training_did(finished):
    processor = AutoVideoProcessor.from_pretrained(finished[0])
    pixels = processor(str(finished[0] / "videos" / "video-00000.mp4"), return_tensors="pt")["pixel_values_videos"]
    assert pixels.shape == (1, 4, 3, 32, 32)
    assert processor.frame_step == 2


def test_a_run_logs_each_step_its_health_and_its_probe(finished):
    folder, _, text = finished
    rows = read_metrics(folder / "metrics.csv")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    measured = [row for row in rows if "health/target_effective_rank" in row]
    assert [row["step"] for row in measured] == [0, 2, 4]
    assert {"probe/appearance_accuracy", "probe/motion_accuracy"} <= measured[0].keys()
    assert "step 4/4  loss " in text
    assert "step 2/4  health  rank " in text
    assert "{" not in text


def test_a_run_ends_with_plots_and_a_card(finished):
    folder, _, _ = finished
    for name in ("report.html", "report.png", "README.md"):
        assert (folder / name).stat().st_size > 500
    assert "Too short to tell" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_run_says_beforehand_what_it_is(finished):
    text = finished[2]
    assert "small-run: trains encoder (" in text
    assert "12 videos that vjepa_hub made itself" in text
    assert "2 x 4 x 4 = 32 tokens; 2 kinds of masks" in text
    assert "4 steps of 4 clips" in text
    assert "half-life is 1 steps, 4 clips, 25.0% of the run" in text


def test_a_half_life_beyond_a_third_of_the_run_is_warned_about(small_recipe, tmp_path):
    args = small_recipe.with_overrides({"momentum": 0.99}).arguments(tmp_path)
    assert [fact.is_warning for fact in describe_momentum(args, 300)] == [False]
    facts = describe_momentum(args, 200)
    assert [fact.is_warning for fact in facts] == [False, True]
    assert "69 steps, 276 clips" in facts[0].text
    assert "longer than a third of the run" in facts[1].text
    prepared = prepare_run(small_recipe.with_overrides({"momentum": 0.99}), output_dir=tmp_path)
    assert any("longer than a third of the run" in warning for warning in prepared.start_warnings)


def test_time_is_told_and_more_than_a_day_is_warned_of_with_a_remedy(small_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "measure_matrix_flops", lambda device, dtype: 1e9)
    args = small_recipe.arguments(tmp_path)
    (fact,) = describe_time(small_recipe, args, 4)
    assert "seconds" in fact.text
    fact, warning = describe_time(small_recipe, args, 10**9)
    assert "days" in fact.text
    assert warning.is_warning
    assert "`tiny`" in warning.text
    assert "--max-steps" in warning.text


@pytest.mark.parametrize(("bfloat16_rate", "warnings"), [(0.5e9, 1), (2e9, 0)])
def test_bfloat16_is_warned_about_where_it_is_slower(bfloat16_rate, warnings, small_recipe, tmp_path, monkeypatch):
    rates = {torch.bfloat16: bfloat16_rate, torch.float32: 1e9}
    monkeypatch.setattr(run, "measure_matrix_flops", lambda device, dtype: rates[dtype])
    assert describe_bfloat16(small_recipe.arguments(tmp_path)) == []
    facts = describe_bfloat16(small_recipe.with_overrides(["bf16=true"]).arguments(tmp_path))
    assert [fact.is_warning for fact in facts] == [True] * warnings
    assert all("0.50 times the rate of float32" in fact.text and "bf16=false" in fact.text for fact in facts)


def test_a_run_of_another_recipe_is_left_and_what_differs_named(finished):
    changed = load_recipe(finished[0] / "recipe.yaml").with_overrides({"momentum": 0.9, "masks.0.num_blocks": 3})
    with pytest.raises(ValueError, match=r"differing in masks.0.num_blocks, training.momentum: .*--overwrite"):
        clear_folder(finished[0], changed)


def test_stored_recipe_has_no_credentials_and_the_same_run_is_gone_on_with(small_recipe, tmp_path, monkeypatch):
    manifest = tmp_path / "videos.csv"
    (tmp_path / "a.mp4").touch()
    manifest.write_text("a.mp4 0\n")
    monkeypatch.setattr(run_data, "open_source", lambda *args, **kwargs: open_source(manifest))
    recipe = small_recipe.with_inputs(data="https://me:secret@host/a.mp4?key=1").with_overrides({"probe": "none"})
    quiet = {"console": Console(quiet=True), "output_dir": tmp_path / "run"}
    prepared = prepare_run(recipe, **quiet)
    stored = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "https://host/a.mp4" in stored
    assert "secret" not in stored + prepared.trainer.data_description
    assert "key=1" not in stored + prepared.trainer.data_description
    prepare_run(recipe, **quiet)


def test_recipe_that_cannot_be_written_leaves_the_one_that_is_there(finished, small_recipe, tmp_path):
    recipe = small_recipe.with_inputs(data=finished[0] / "videos")
    prepared = prepare_run(recipe, output_dir=tmp_path, console=Shown().console)
    stored, before = (tmp_path / "recipe.yaml").read_text(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(WriteError, match=r"recipe\.yaml.*File too large"):
            prepare_run(recipe, output_dir=tmp_path, console=Shown().console)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (prepared.folder / "recipe.yaml").read_text() == stored


def test_checkpoints_without_their_recipe_are_left(small_recipe, tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(FileExistsError, match=r"no recipe.yaml: .*--overwrite"):
        clear_folder(tmp_path, small_recipe)


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_of_another_run_at_work_is_left_alone(small_recipe, tmp_path, overwrite):
    with at_work_in(tmp_path), pytest.raises(FolderInUseError, match=HOST):
        pretrain(small_recipe, output_dir=tmp_path, overwrite=overwrite, console=Shown().console)


def test_overwriting_removes_the_run_and_keeps_what_is_not_of_it(small_recipe, tmp_path):
    for name in ("videos", "checkpoint-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    for name in ("recipe.yaml", "metrics.csv", "model.safetensors", "notes.txt"):
        (tmp_path / name).write_text("x")
    clear_folder(tmp_path, small_recipe, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "videos"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_saves_its_step_and_goes_on_to_the_same_weights(number, finished, tmp_path):
    recipe = load_recipe(finished[0] / "recipe.yaml").with_overrides({"report": False})
    folder = with_videos_of(finished[0], tmp_path / "out")
    handler = signal.getsignal(number)
    with pytest.raises(InterruptedRunError, match=r"after step 1 of 4.*recipe.yaml --output-dir ") as caught:
        pretrain(recipe, output_dir=folder, console=Shown().console, callbacks=[SignalAt(number, step=1)])
    assert caught.value.signal_number == number
    assert signal.getsignal(number) is handler
    assert (folder / "checkpoint-1").is_dir()
    assert not (folder / "model.safetensors").exists()
    pretrain(load_recipe(folder / "recipe.yaml"), output_dir=folder, console=Shown().console)
    resumed, uninterrupted = (load_file(path / "model.safetensors") for path in (folder, finished[0]))
    assert all(torch.equal(resumed[key], uninterrupted[key]) for key in uninterrupted)
    rows = [row["step"] for row in read_metrics(folder / "metrics.csv") if "loss" in row]
    assert rows == [1, 2, 3, 4]


def test_resuming_a_finished_run_changes_nothing(finished, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(finished[0], folder)
    recipe = load_recipe(folder / "recipe.yaml").with_overrides({"report": False})
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    pretrain(recipe, output_dir=folder, console=Shown().console)
    first, second = (load_file(path / "model.safetensors") for path in (finished[0], folder))
    assert all(torch.equal(first[key], second[key]) for key in first)
    rows = [row["step"] for row in read_metrics(folder / "metrics.csv") if "loss" in row]
    assert rows == [1, 2, 3, 4]


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"")])
def test_checkpoint_with_a_missing_or_damaged_part_is_refused_and_the_older_one_gone_on_with(
    finished, tmp_path, damage
):
    folder = tmp_path / "out"
    shutil.copytree(finished[0], folder)
    recipe = load_recipe(folder / "recipe.yaml")
    damage(folder / "checkpoint-4" / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"optimizer\.pt.*delete .*checkpoint-4.*checkpoint-2"):
        pretrain(recipe, output_dir=folder, console=Shown().console)
    shutil.rmtree(folder / "checkpoint-4")
    pretrain(recipe, output_dir=folder, console=Shown().console)
    first, second = (load_file(path / "model.safetensors") for path in (finished[0], folder))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(small_recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(small_recipe.to_yaml())
    assert prepare_run(small_recipe, output_dir=tmp_path, console=Shown().console).checkpoint is None


@pytest.mark.parametrize(
    "alternative",
    [
        "objective=l2",
        "masks=random-tube",
        "masks=causal",
        "probe=attentive",
        "targets=pixels",
        "gradient_checkpointing=true",
        "gradient_accumulation_steps=2",
        "clip_duration=0.4",
        "resize=device",
    ],
)
def test_an_alternative_of_the_paper_trains(alternative, finished, small_recipe, tmp_path):
    short = {"max_steps": 1, "report": False, "health_steps": 1}
    recipe = small_recipe.with_overrides(short).with_overrides([alternative])
    folder = with_videos_of(finished[0], tmp_path / "out")
    trainer = pretrain(recipe, output_dir=folder, console=Shown().console)
    measured = [row for row in trainer.state.log_history if "health/fixed_loss" in row]
    assert measured[0]["health/fixed_loss"] != measured[-1]["health/fixed_loss"]


def test_tar_files_are_trained_on_as_a_stream(finished, small_recipe, tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for video in sorted((finished[0] / "videos").glob("*.mp4")):
            shard.add(video, video.name)
    recipe = small_recipe.with_overrides({"stream": True, "max_steps": 2, "report": False})
    trainer = pretrain(recipe, data=tmp_path / "shard.tar", output_dir=tmp_path / "out", console=Shown().console)
    assert isinstance(trainer.train_dataset, ClipStream)
    assert trainer.data_description == "a stream of shard.tar"
    assert trainer.state.global_step == 2


def test_a_recipe_without_data_asks_for_it(small_recipe, tmp_path):
    with pytest.raises(ValueError, match=r"the recipe 'small-run' makes no video of its own; pass --data"):
        pretrain(small_recipe.with_overrides({"synthetic": None}), output_dir=tmp_path, console=Shown().console)


def test_labels_of_the_data_are_probed(finished, small_recipe, tmp_path):
    """The made videos again, given as a list with labels; half of them teach the probe, half judge it."""
    recipe = small_recipe.with_overrides({"probe": "average", "max_steps": 1, "report": False})
    manifest = finished[0] / "videos" / "appearance.csv"
    trainer = pretrain(recipe, data=manifest, output_dir=tmp_path / "out", console=Shown().console)
    assert (len(trainer.probe.train), len(trainer.probe.validation)) == (6, 6)
    assert "probe/label_accuracy" in trainer.state.log_history[0]
    assert trainer.data_description == "12 videos of appearance.csv"
    assert load_recipe(tmp_path / "out" / "recipe.yaml").data[0].path == str(manifest)
    assert not (tmp_path / "out" / "videos").exists()


def test_weights_of_several_sources_reach_the_order_of_clips(finished, small_recipe, tmp_path):
    entry = {"path": str(finished[0] / "videos" / "videos.csv")}
    recipe = small_recipe.with_overrides({"data": [entry | {"weight": 3}, entry | {"weight": 1}]})
    trainer = prepare_run(recipe, output_dir=tmp_path / "out", console=Shown().console).trainer
    trainer.get_train_dataloader()
    drawn = torch.tensor([trainer._order.index_at(position) for position in range(4000)])
    assert (drawn < 12).double().mean().item() == pytest.approx(0.75, abs=0.03)


def test_a_run_starts_from_given_weights(finished):
    folder, _, _ = finished
    model = build_model(load_recipe(folder / "recipe.yaml").with_overrides({"initial": str(folder)}))
    published = load_file(folder / "model.safetensors")
    for part in ("encoder", "target_encoder", "predictor"):
        for key, value in model.get_submodule(part).state_dict().items():
            assert torch.equal(value, published[f"{part.removeprefix('target_')}.{key}"])
    assert model.config.weights_origin == f"initialised from {folder}"


def test_weights_of_another_architecture_are_refused_by_the_field(finished, small_recipe):
    folder, _, _ = finished
    changed = small_recipe.with_overrides({"initial": str(folder), "hidden_size": 96, "tubelet_size": 1})
    with pytest.raises(ValueError, match="tubelet_size is 2 there and 1 here; hidden_size is 48 there and 96 here"):
        build_model(changed)


def test_the_first_weights_follow_from_the_seed(small_recipe):
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    first, second = build_model(small_recipe), build_model(small_recipe)
    other = build_model(small_recipe.with_overrides({"training.seed": 1}))
    assert torch.equal(state, torch.random.get_rng_state())
    weights = [model.encoder.layer[0].mlp.fc1.weight for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert isinstance(first, VJEPAForPreTraining)


def test_a_run_on_pictures_shows_each_split_its_own(small_recipe, tmp_path, monkeypatch):
    asked = []

    def read_pictures(split, folder):
        asked.append(split)
        shown = np.full((10, 28, 28), 255, np.uint8)
        return {"pictures": shown, "labels": np.arange(10), "class_names": [f"thing-{n}" for n in range(10)]}

    monkeypatch.setattr(made_videos, "read_fashion_mnist", read_pictures)
    recipe = small_recipe.with_overrides(["synthetic.kind=fashion-mnist", "probe=knn"])
    run = prepare_run(recipe, output_dir=tmp_path, console=Shown().console)
    assert asked == ["train", "test"]
    assert "moving pictures of Fashion-MNIST, MIT licence" in run.trainer.data_description
    for name in ("videos", "test-videos"):
        assert "thing-" in (tmp_path / name / "videos.csv").read_text()
        assert (tmp_path / name / "moving_pictures.json").exists()
