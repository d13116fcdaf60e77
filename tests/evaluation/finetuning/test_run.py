"""Whole runs of fine-tuning: what is learned, what is saved, what is resumed, what is refused."""

import json
import math
import stat

import numpy as np
import pytest
import torch
from transformers import AutoModelForVideoClassification, Trainer, TrainerCallback, pipeline

from tests.evaluation.finetuning_sets import (
    NUM_FRAMES,
    SIZE,
    drifting_stripes,
    labelled_set,
    plain_settings,
    save_features_model,
    tiny_config,
)
from tests.other_run import HOST, at_work_in
from vjepa_hub import VJEPAForVideoClassification, VJEPAModel, VJEPAVideoProcessor
from vjepa_hub.core.folder_lock import FolderInUseError
from vjepa_hub.core.settings import SettingsError
from vjepa_hub.data.synthetic.shapes import SyntheticVideoSettings, make_synthetic_videos
from vjepa_hub.evaluation.finetuning.run import (
    FineTuneSettings,
    build_arguments,
    build_classifier,
    build_finetuning_trainer,
    finetune,
    parse_arguments,
)
from vjepa_hub.evaluation.protocols import Augmentation
from vjepa_hub.hub.loading import open_model

# The Trainer's bar and prints, and a checkpoint after each epoch, are for people who wait
QUIET = {"disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
SAVING = {**QUIET, "save_strategy": "epoch"}
DRAWN = Augmentation(erase_probability=1.0, flip_probability=0.5)


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> str:
    return save_features_model(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def few_videos():
    return drifting_stripes(8, seed=0), drifting_stripes(4, seed=1)


def _logits(model, clip) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(pixel_values_videos=clip).logits


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    return torch.randn(2, 4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


# --- what is learned ---


def _top1(features, folder, mode, seed) -> float:
    settings = plain_settings(
        mode=mode, num_epochs=15, batch_size=16, learning_rate=3e-3, layer_decay=1.0, warmup_share=0.1, seed=seed
    )
    train, validation = drifting_stripes(256, seed=100), drifting_stripes(96, seed=200)
    # Validated once, after the last of the 15 x 16 steps
    arguments = {**QUIET, "eval_strategy": "steps", "eval_steps": 240, "logging_steps": 240}
    finetune(features, train, validation, folder, settings, training_arguments=arguments)
    log = json.loads((folder / "metrics.json").read_text())
    return next(row["eval_top1"] for row in log if "eval_top1" in row)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_tuning_learns_a_motion_that_a_head_on_random_features_does_not(tmp_path, seed):
    features = save_features_model(tmp_path / "features", seed=seed)
    assert _top1(features, tmp_path / "head", "head", seed) < 0.75
    assert _top1(features, tmp_path / "full", "full", seed) > 0.9


def test_folder_of_another_run_at_work_is_left_alone(features, few_videos, tmp_path):
    with at_work_in(tmp_path), pytest.raises(FolderInUseError, match=HOST):
        finetune(features, *few_videos, tmp_path, plain_settings(mode="head"), training_arguments=QUIET)


# --- what is saved ---


@pytest.fixture(scope="module")
def tuned(features, few_videos, tmp_path_factory):
    """A run of two segments a video, with all that draws."""
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    settings = FineTuneSettings(
        num_epochs=2, batch_size=3, num_workers=0, frame_step=1, num_segments=2, drop_path_rate=0.2
    )
    return finetune(features, *few_videos, folder, settings, training_arguments=SAVING)


def test_saved_classifier_loads_by_its_auto_class(tuned, features):
    model = AutoModelForVideoClassification.from_pretrained(tuned)
    assert type(model) is VJEPAForVideoClassification
    assert model.config.id2label == {0: "right", 1: "left"}
    assert model.config.label2id == {"right": 0, "left": 1}
    assert model.config.problem_type == "single_label_classification"
    assert model.config.weights_origin == f"fine-tuned (full) from: from the folder {features}"
    moved = VJEPAModel.from_pretrained(features).encoder.layer[0].mlp.fc1.weight
    assert not torch.equal(model.encoder.layer[0].mlp.fc1.weight, moved)


def test_saved_processor_takes_clips_as_the_tuning_did(tuned):
    processor = VJEPAVideoProcessor.from_pretrained(tuned)
    assert (processor.crop_size["height"], processor.num_frames) == (SIZE, NUM_FRAMES)
    assert (processor.num_segments, processor.frame_step) == (2, 1)


def test_saved_classifier_is_a_model_for_features_too(tuned):
    assert open_model(tuned).is_trained


def test_log_has_accuracies_of_every_epoch(tuned):
    log = json.loads((tuned / "metrics.json").read_text())
    measured = [row for row in log if "eval_top1" in row]
    assert [row["epoch"] for row in measured] == [1.0, 2.0]
    for row in measured:
        assert {"eval_top5", "eval_num_videos", "eval_num_unreadable", "eval_loss"} <= row.keys()
        assert row["eval_num_videos"] == 4


def test_video_files_are_tuned_on_and_then_classified_by_the_pipeline(features, tmp_path):
    pytest.importorskip("av", reason="the pipeline asks for PyAV (pip install av)")
    made = SyntheticVideoSettings(num_videos=10, size=32, num_frames=8)
    make_synthetic_videos(tmp_path / "videos", made)
    (tmp_path / "videos" / "video-00003.mp4").write_bytes(b"broken")
    manifest = tmp_path / "videos" / "motion.csv"
    settings = plain_settings(mode="head", batch_size=4, allow_missing_classes=True, augmentation=DRAWN)
    folder = finetune(features, manifest, manifest, tmp_path / "tuned", settings, training_arguments=QUIET)
    log = json.loads((folder / "metrics.json").read_text())
    assert next(row["eval_num_unreadable"] for row in log if "eval_top1" in row) == 1
    classify = pipeline("video-classification", model=str(folder))
    predictions = classify(str(tmp_path / "videos" / "video-00000.mp4"))
    assert {prediction["label"] for prediction in predictions} <= {f"LABEL_{number}" for number in range(8)}
    assert sum(prediction["score"] for prediction in predictions) <= 1 + 1e-5


@pytest.mark.parametrize(("mode", "is_moved"), [("head", False), ("lora", True), ("full", True)])
def test_the_encoder_moves_in_the_modes_that_say_so(features, few_videos, tmp_path, mode, is_moved):
    if mode == "lora":
        pytest.importorskip("peft", reason="LoRA asks for peft (pip install peft)")
    settings = plain_settings(mode=mode, learning_rate=1e-2)
    folder = finetune(features, *few_videos, tmp_path / "tuned", settings, training_arguments=QUIET)
    before = VJEPAModel.from_pretrained(features).encoder
    after = VJEPAForVideoClassification.from_pretrained(folder)
    qkv = after.encoder.layer[1].attention.qkv.weight
    assert torch.equal(qkv, before.layer[1].attention.qkv.weight) != is_moved
    first = build_classifier(features, few_videos[0], settings)[0]
    assert not torch.equal(after.classifier.weight, first.classifier.weight)
    assert not torch.equal(after.pooler.query_tokens, first.pooler.query_tokens)


def test_the_seed_alone_decides_on_the_adapters(features, few_videos, tmp_path):
    pytest.importorskip("peft", reason="LoRA asks for peft (pip install peft)")
    weights = []
    for number, (seed, generator) in enumerate([(0, 1), (0, 2), (1, 1)]):
        torch.manual_seed(generator)
        settings = plain_settings(mode="lora", learning_rate=1e-2, lora_dropout=0.1, seed=seed)
        folder = finetune(features, *few_videos, tmp_path / str(number), settings, training_arguments=QUIET)
        weights.append(VJEPAForVideoClassification.from_pretrained(folder).encoder.layer[0].attention.qkv.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("mode", ["lora", "last-k"])
def test_reentrant_checkpointing_trains_what_plain_training_does(features, few_videos, tmp_path, mode):
    if mode == "lora":
        pytest.importorskip("peft", reason="LoRA asks for peft (pip install peft)")
    settings = plain_settings(mode=mode, num_blocks=1 if mode == "last-k" else None, learning_rate=1e-2)
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    tuned = []
    for name, arguments in (("plain", QUIET), ("reentrant", {**QUIET, **reentrant})):
        finetune(features, *few_videos, tmp_path / name, settings, training_arguments=arguments)
        tuned.append(VJEPAForVideoClassification.from_pretrained(tmp_path / name).state_dict())
    torch.testing.assert_close(*tuned)


def test_kept_adapter_is_the_merged_model_on_its_base(features, few_videos, tmp_path, clip):
    peft = pytest.importorskip("peft", reason="LoRA asks for peft (pip install peft)")
    settings = plain_settings(mode="lora", learning_rate=1e-2, keep_adapter=True)
    folder = finetune(features, *few_videos, tmp_path / "tuned", settings, training_arguments=QUIET)
    assert peft.PeftConfig.from_pretrained(folder / "adapter").base_model_name_or_path == features
    modes = {stat.S_IMODE(file.stat().st_mode) for file in folder.rglob("*") if file.is_file()}
    assert modes == {stat.S_IMODE((folder / "run.json").stat().st_mode)}  # safetensors makes its files private
    base = VJEPAForVideoClassification.from_pretrained(features, num_labels=2)
    adapted = peft.PeftModel.from_pretrained(base, folder / "adapter")
    merged = VJEPAForVideoClassification.from_pretrained(folder)
    torch.testing.assert_close(_logits(adapted, clip), _logits(merged, clip), atol=1e-5, rtol=1e-4)
    start, _ = build_classifier(features, few_videos[0], settings)
    assert not torch.allclose(_logits(start, clip), _logits(merged, clip), atol=1e-3)


# --- how it is trained ---


def _trained(features, sets, folder, settings, **arguments) -> Trainer:
    model, processor = build_classifier(features, sets[0], settings)
    args = build_arguments(settings, folder, {**QUIET, "eval_strategy": "no", **arguments})
    trainer = build_finetuning_trainer(model, processor, *sets, settings=settings, args=args)
    trainer.train()
    return trainer


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_accumulated_batches_equal_one_large_batch(features, few_videos, tmp_path, label_smoothing):
    once = plain_settings(batch_size=8, num_epochs=2, label_smoothing=label_smoothing)
    twice = plain_settings(batch_size=4, num_epochs=2, label_smoothing=label_smoothing)
    whole = _trained(features, few_videos, tmp_path / "whole", once, logging_steps=1)
    parts = _trained(features, few_videos, tmp_path / "parts", twice, logging_steps=1, gradient_accumulation_steps=2)
    assert whole.state.global_step == parts.state.global_step == 2
    for name in ("loss", "grad_norm"):  # AdamW itself would not see a gradient of another scale
        found, expected = ([row[name] for row in run.state.log_history if name in row] for run in (parts, whole))
        assert found == pytest.approx(expected, rel=1e-3)
    assert whole.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=0.05)
    for found, expected in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


def test_scheduler_keeps_the_proportions_of_the_layers(features, few_videos, tmp_path):
    settings = plain_settings(batch_size=2, layer_decay=0.5, learning_rate=1e-3)
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
            seen.append([group["lr"] for group in optimizer.param_groups])

    model, processor = build_classifier(features, few_videos[0], settings)
    args = build_arguments(settings, tmp_path, {**QUIET, "eval_strategy": "no"})
    trainer = build_finetuning_trainer(model, processor, *few_videos, settings=settings, args=args)
    trainer.add_callback(Watch())
    trainer.train()
    rates = np.array(seen)
    assert len({row[0] for row in rates.tolist()}) == len(rates)
    np.testing.assert_allclose(rates.min(axis=1) / rates.max(axis=1), 0.125)


def test_a_new_head_starts_as_the_models_own_constructor_does(features, few_videos):
    model, _ = build_classifier(features, few_videos[0], plain_settings(seed=3))
    torch.manual_seed(3)
    expected = VJEPAForVideoClassification(tiny_config(num_labels=2))
    for part in ("pooler", "classifier"):
        found = model.get_submodule(part).state_dict()
        for name, tensor in expected.get_submodule(part).state_dict().items():
            assert torch.equal(found[name], tensor), name


# --- resuming ---


class StopAfterEpoch(TrainerCallback):
    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_resumed_run_equals_an_uninterrupted_one(features, few_videos, tmp_path, mode):
    if mode == "lora":
        pytest.importorskip("peft", reason="LoRA asks for peft (pip install peft)")
    settings = plain_settings(mode=mode, num_epochs=3, learning_rate=1e-2, mixup=0.8)
    run = {"training_arguments": SAVING}
    whole = finetune(features, *few_videos, tmp_path / "whole", settings, **run)
    folder = tmp_path / "parts"
    finetune(features, *few_videos, folder, settings, callbacks=[StopAfterEpoch()], **run)
    # Cloned: older transformers map the file, which the resumed run writes anew
    stopped = VJEPAForVideoClassification.from_pretrained(folder).classifier.weight.detach().clone()
    finetune(features, *few_videos, folder, settings, **run)
    expected = VJEPAForVideoClassification.from_pretrained(whole)
    resumed = VJEPAForVideoClassification.from_pretrained(folder)
    assert not torch.equal(stopped, expected.classifier.weight)
    for (name, found), tensor in zip(resumed.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, tensor, atol=1e-6, rtol=1e-4, msg=name)


def test_resuming_a_complete_run_trains_no_step(tuned, features, few_videos):
    settings = FineTuneSettings(
        num_epochs=2, batch_size=3, num_workers=0, frame_step=1, num_segments=2, drop_path_rate=0.2
    )
    before = VJEPAForVideoClassification.from_pretrained(tuned).state_dict()
    finetune(features, *few_videos, tuned, settings, training_arguments=SAVING)
    after = VJEPAForVideoClassification.from_pretrained(tuned).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_folder_with_another_model_or_run_is_left_as_it_is(tuned, features, few_videos):
    with pytest.raises(FileExistsError, match=r"config\.json. would be replaced.*another output folder"):
        finetune(features, *few_videos, features, plain_settings())
    with pytest.raises(ValueError, match=r"other settings, differing in .*num_epochs"):
        finetune(features, *few_videos, tuned, plain_settings())


# --- what is refused ---


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "half"}, "mode is 'half'"),
        ({"mode": "last-k"}, "num_blocks is None"),
        ({"num_blocks": 2}, "num_blocks is 2"),
        ({"keep_adapter": True}, "only lora has an adapter"),
        ({"layer_decay": 2.0}, "layer_decay is 2.0"),
        ({"mixup": -1.0}, "mixup is -1.0"),
    ],
)
def test_impossible_settings_are_named(values, message):
    with pytest.raises(SettingsError, match=message):
        FineTuneSettings(**values)


def test_settings_can_be_written_as_on_a_command_line():
    found = FineTuneSettings().with_overrides(["mixup=0", "augmentation.scale=0.5,1", "mode=head", "layer_decay=none"])
    assert (found.mixup, found.augmentation.scale, found.mode, found.layer_decay) == (0, (0.5, 1), "head", None)


def test_arguments_of_the_trainer_are_typed_by_its_own_fields():
    given = ["save_total_limit=1", "report_to=none", "bf16=no", "eval_strategy=no", "lr_scheduler_kwargs=none"]
    assert parse_arguments(given) == {
        "save_total_limit": 1,
        "report_to": ["none"],
        "bf16": False,
        "eval_strategy": "no",
        "lr_scheduler_kwargs": None,
    }
    with pytest.raises(SettingsError, match="'save_limit'; the nearest is 'save_total_limit'"):
        parse_arguments(["save_limit=1"])
    with pytest.raises(SettingsError, match="save_total_limit is 'two'"):
        parse_arguments(["save_total_limit=two"])


@pytest.mark.parametrize("name", ["learning_rate", "label_smoothing_factor", "dataloader_drop_last"])
def test_arguments_that_are_set_elsewhere_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"training argument {name} was given"):
        build_arguments(plain_settings(), tmp_path, {name: 0.1})


def test_a_classifier_of_other_classes_keeps_its_head_only_if_told_to_replace_it(tuned, few_videos, tmp_path):
    three = labelled_set([None] * 3, [0, 1, 2], num_classes=3, class_names=None)
    swapped = labelled_set([None] * 2, [0, 1], class_names=("left", "right"))
    with pytest.raises(ValueError, match="a classifier of 2 classes, but the videos have 3"):
        build_classifier(tuned, three, plain_settings())
    with pytest.raises(ValueError, match="class 0 is 'right', but that of the videos is 'left'"):
        build_classifier(tuned, swapped, plain_settings())
    model, _ = build_classifier(tuned, three, plain_settings(new_head=True))
    assert model.classifier.out_features == 3


def test_a_classifier_of_the_same_classes_goes_on_with_its_head(tuned, few_videos, clip):
    model, _ = build_classifier(tuned, few_videos[0], plain_settings())
    expected = VJEPAForVideoClassification.from_pretrained(tuned)
    assert torch.equal(_logits(model, clip), _logits(expected, clip))


def test_training_from_scratch_takes_the_architecture_and_nothing_of_the_weights(tuned, few_videos, monkeypatch):
    """Even of a classifier of the same classes, whose head would be taken otherwise."""
    settings = FineTuneSettings(seed=3)
    scratch, processor = build_classifier(f"untrained:{tuned}", few_videos[0], settings)
    again, _ = build_classifier(f"untrained:{tuned}", few_videos[0], settings)
    given, _ = build_classifier(tuned, few_videos[0], settings)
    assert scratch.config.hidden_size == given.config.hidden_size
    assert processor.num_frames == scratch.config.frames_per_clip
    assert scratch.config.weights_origin == "fine-tuned (full) from: untrained, random weights of seed 3"
    for name, weight in scratch.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
        if name.endswith(("qkv.weight", "mlp.fc1.weight", "classifier.weight")):
            assert not torch.allclose(weight, given.state_dict()[name])


def test_a_failed_start_leaves_the_folder_free_and_resuming_it_begins(features, few_videos, tmp_path):
    with pytest.raises(KeyError, match="no-such-model"):
        finetune("no-such-model", *few_videos, tmp_path / "run", plain_settings())
    assert not (tmp_path / "run").exists()
    finetune(features, *few_videos, tmp_path / "run", plain_settings(), training_arguments=QUIET)
