import logging

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import IntervalStrategy, TrainerCallback

from vjepa_hub import VJEPAConfig, VJEPAForPreTraining, VJEPAModel, VJEPAVideoProcessor
from vjepa_hub.data.clip_sampling import ClipSpec
from vjepa_hub.data.dataset import VideoClipDataset
from vjepa_hub.data.loader import pretraining_loader
from vjepa_hub.data.masking import TokenGrid
from vjepa_hub.data.samples import sample_clip_path
from vjepa_hub.data.sources import open_source
from vjepa_hub.pretraining.arguments import VJEPATrainingArguments
from vjepa_hub.pretraining.checkpoints import find_checkpoint
from vjepa_hub.pretraining.estimate import step_flops
from vjepa_hub.pretraining.finite import FiniteWatch, NonFiniteLossError
from vjepa_hub.pretraining.optimizer import parameter_groups
from vjepa_hub.pretraining.trainer import VJEPATrainer

OWN_NUMBERS = ("loss", "learning_rate", "weight_decay", "momentum", "encoder_grad_norm", "predictor_grad_norm")


def test_each_logged_step_has_the_numbers_of_the_recipe(make_trainer, blobs, logged):
    trainer = make_trainer(blobs())
    trainer.train()
    for name in OWN_NUMBERS:
        assert len(logged(trainer, name)) == 4, name


def test_target_encoder_moves_by_one_minus_momentum_of_the_way(make_trainer, blobs):
    trainer = make_trainer(blobs(), max_steps=1, momentum=0.75, final_momentum=0.75)
    before = [parameter.clone() for parameter in trainer.model.target_encoder.parameters()]
    trainer.train()
    model = trainer.model
    for old, target, source in zip(before, model.target_encoder.parameters(), model.encoder.parameters(), strict=True):
        torch.testing.assert_close(target, old + 0.25 * (source - old))


def test_target_encoder_moves_once_for_accumulated_batches(make_trainer, blobs):
    trainer = make_trainer(
        blobs(), max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=2, momentum=0.5
    )
    model = trainer.model
    before = model.target_encoder.layernorm.bias.clone()
    trainer.train()
    moved, way = model.target_encoder.layernorm.bias - before, model.encoder.layernorm.bias - before
    torch.testing.assert_close(moved, 0.5 * way)


def test_masks_of_a_run_depend_neither_on_workers_nor_on_the_batch_size(make_trainer, blobs):
    contexts = []
    for settings in (
        {"per_device_train_batch_size": 4},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "dataloader_num_workers": 2},
    ):
        loader = make_trainer(blobs(), **settings).get_train_dataloader()
        positions = [position for batch in loader for position in batch["positions"].tolist()]
        contexts.append((positions, [clip for batch in loader for clip in batch["pixel_values_videos"]]))
    assert contexts[0][0] == contexts[1][0] == list(range(32))
    assert all(torch.equal(ours, other) for ours, other in zip(contexts[0][1], contexts[1][1], strict=True))


def test_every_clip_is_seen_once_in_an_epoch_and_the_next_has_another_order(make_trainer, blobs):
    seen: list[int] = []

    class Watched(Dataset):
        clips = blobs(8)

        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> dict:
            seen.append(index)
            return self.clips[index]

    make_trainer(Watched(), max_steps=4).train()
    assert sorted(seen[:8]) == sorted(seen[8:]) == list(range(8))
    assert seen[:8] != seen[8:]


def test_loss_falls_on_moving_blobs(make_trainer, blobs, logged):
    trainer = make_trainer(blobs(), max_steps=30, momentum=0.99, learning_rate=2e-3)
    trainer.train()
    losses = logged(trainer, "loss")
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


class _ClipsWithNaN(Dataset):
    """Moving blobs, of which one is not a number."""

    def __init__(self, clips, bad: int):
        self.clips, self.bad = clips, bad

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict:
        clip = self.clips[index]["pixel_values_videos"]
        return {"pixel_values_videos": clip * float("nan") if index == self.bad else clip}


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(make_trainer, blobs, tmp_path):
    trainer = make_trainer(
        _ClipsWithNaN(blobs(16), bad=13),
        train_sampling_strategy="sequential",
        save_strategy="steps",
        save_steps=1,
        save_total_limit=None,
    )
    with pytest.raises(NonFiniteLossError, match=r"not finite at step 3 .*resume from .*checkpoint-3"):
        trainer.train()
    kept = VJEPAForPreTraining.from_pretrained(find_checkpoint(tmp_path / "run"))
    assert all(torch.isfinite(parameter).all() for parameter in kept.parameters())


def test_watch_names_the_first_bad_step():
    watch = FiniteWatch("cpu")
    for step, value in enumerate([1.0, float("inf"), 2.0, float("nan")]):
        assert (watch.first_step() < 0) == (step < 2)
        watch.watch(torch.tensor(value), step)
    assert watch.first_step().item() == 1


def test_bfloat16_autocast_keeps_the_weights_and_the_average_in_float32(make_trainer, blobs, logged):
    trainer = make_trainer(blobs(), bf16=True, momentum=0.9999, final_momentum=0.9999, max_steps=2)
    before = trainer.model.target_encoder.layernorm.bias.clone()
    trainer.train()
    model = trainer.model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    moved = (model.target_encoder.layernorm.bias - before).abs().max().item()
    assert 0 < moved < 1e-5  # in bfloat16 a step of 1e-4 of the way is lost
    assert all(torch.isfinite(torch.tensor(logged(trainer, "loss"))))


@pytest.mark.parametrize("objective", ["l2", "smooth_l1"])
def test_other_objectives_train_and_differ_from_the_papers(make_trainer, blobs, logged, objective):
    losses = []
    for name in ("l1", objective):
        trainer = make_trainer(blobs(), objective=name, max_steps=1)
        trainer.train()
        losses += logged(trainer, "loss")
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_clips_resized_on_the_device_are_those_that_a_worker_rounds(make_trainer, logged):
    clips = VideoClipDataset(open_source([sample_clip_path()] * 8), ClipSpec(frames_per_clip=4))
    losses = []
    for place in ("device", "worker"):
        trainer = make_trainer(clips, resize=place, max_steps=1)
        trainer.train()
        losses += logged(trainer, "loss")
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert losses[0] != losses[1]


def test_flops_of_a_run_are_those_of_the_estimate(make_trainer, blobs, small_config):
    trainer = make_trainer(blobs(), max_steps=2)
    trainer.train()
    batches = list(trainer.get_train_dataloader())[:2]
    masks = [zip(batch["context_mask"], batch["target_mask"], strict=True) for batch in batches]
    counts = [[(context.shape[1], targets.shape[1]) for context, targets in pairs] for pairs in masks]
    assert trainer.state.total_flos == sum(int(4 * step_flops(small_config, count).total) for count in counts)


def test_gradient_checkpointing_changes_no_number(make_trainer, blobs, logged):
    from vjepa_hub.pretraining.arguments import CHECKPOINTING

    losses = []
    for settings in ({}, {CHECKPOINTING: True}):
        trainer = make_trainer(blobs(), **settings)
        trainer.train()
        losses.append(logged(trainer, "loss"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_evaluation_gives_a_loss_that_is_the_same_each_time(make_trainer, blobs):
    trainer = make_trainer(blobs())
    first, second = (trainer.evaluate(blobs(6))["eval_loss"] for _ in range(2))
    assert first == second > 0


def test_each_of_several_evaluation_sets_has_its_loss(make_trainer, blobs, logged):
    plain, sets = make_trainer(blobs()), {"few": blobs(3), "more": blobs(6)}
    plain.args.eval_strategy, plain.args.eval_steps = IntervalStrategy.STEPS, 2
    trainer = VJEPATrainer(
        plain.model, plain.args, plain.train_dataset, mask_kinds=plain.mask_kinds, eval_dataset=sets
    )
    trainer.train()
    assert len(logged(trainer, "eval_few_loss")) == len(logged(trainer, "eval_more_loss")) == 2
    assert logged(trainer, "eval_more_loss")[-1] == pytest.approx(trainer.evaluate(blobs(6))["eval_loss"])


class EndlessClips(IterableDataset):
    def __iter__(self):
        return iter(())


def test_evaluation_and_prediction_that_cannot_be_meant_are_refused(make_trainer, blobs):
    trainer = make_trainer(blobs())
    with pytest.raises(ValueError, match="no end"):
        trainer.evaluate(EndlessClips())
    with pytest.raises(NotImplementedError, match=r"evaluate.*extract_features"):
        trainer.predict(blobs())


def _own(trainer, optimizer, scheduler=None) -> VJEPATrainer:
    """The trainer again, with an optimiser and a scheduler of its own."""
    optimizers = (optimizer, scheduler)
    return VJEPATrainer(
        trainer.model, trainer.args, trainer.train_dataset, mask_kinds=trainer.mask_kinds, optimizers=optimizers
    )


def test_own_optimizer_over_the_recipes_groups_follows_its_schedules(make_trainer, blobs, logged):
    trainer = make_trainer(blobs())
    own = _own(trainer, torch.optim.SGD(parameter_groups(trainer.model), lr=123.0))
    own.train()
    assert logged(own, "learning_rate") == pytest.approx([own.schedules.learning_rate_at(s) for s in range(4)])


def test_own_scheduler_takes_the_place_of_the_recipes(make_trainer, blobs, logged):
    trainer = make_trainer(blobs())
    optimizer = torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad], lr=1e-3)
    with pytest.raises(ValueError, match=r"parameter_groups.*scheduler"):
        _own(trainer, optimizer).train()
    before = trainer.model.target_encoder.layernorm.bias.clone()
    own = _own(trainer, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.5, total_iters=100))
    own.train()
    assert logged(own, "learning_rate") == [5e-4] * 4
    assert not logged(own, "weight_decay")  # the optimiser's own
    assert not torch.equal(own.model.target_encoder.layernorm.bias, before)


@pytest.mark.parametrize("name", ["model_init", "compute_loss_func", "compute_metrics"])
def test_arguments_of_no_use_to_a_pretraining_are_refused(small_config, tmp_path, name):
    args = VJEPATrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match=f"{name} was given"):
        VJEPATrainer(None, args, **{name: lambda *_: VJEPAForPreTraining(small_config)})


def test_loader_for_own_loops_gives_the_batches_of_the_trainer(make_trainer, blobs, small_config):
    trainer = make_trainer(blobs(), gradient_accumulation_steps=2, seed=5)
    expected = list(trainer.get_train_dataloader())
    loader = pretraining_loader(
        blobs(),
        TokenGrid.from_config(small_config),
        batch_size=4,
        mask_kinds=trainer.mask_kinds,
        accumulated_batches=2,
        seed=5,
    )
    for batch, ours in zip(loader, expected, strict=True):
        assert torch.equal(batch["pixel_values_videos"], ours["pixel_values_videos"])
        for name in ("context_mask", "target_mask"):
            assert all(torch.equal(*masks) for masks in zip(batch[name], ours[name], strict=True))


def test_saved_model_is_the_published_form_with_its_processor(make_trainer, blobs, tmp_path):
    trainer = make_trainer(blobs())
    trainer.train()
    trainer.save_model()
    published = VJEPAModel.from_pretrained(tmp_path / "run")
    clip = blobs()[0]["pixel_values_videos"][None]
    expected = trainer.model.eval().target_encoder(clip).last_hidden_state
    torch.testing.assert_close(published.get_vision_features(clip), expected)
    assert published.config.weights_origin == "pretrained by vjepa_hub, 4 steps"
    processor = VJEPAVideoProcessor.from_pretrained(tmp_path / "run")
    assert processor.crop_size["height"] == trainer.model.config.crop_size


def test_checkpoint_holds_all_that_training_needs(make_trainer, blobs, tmp_path):
    make_trainer(blobs(), save_strategy="steps", save_steps=2).train()
    folder = find_checkpoint(tmp_path / "run")
    assert folder.name == "checkpoint-4"
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= names
    model = VJEPAForPreTraining.from_pretrained(folder)
    differs = [
        not torch.equal(ours, target)
        for ours, target in zip(model.encoder.parameters(), model.target_encoder.parameters(), strict=True)
    ]
    assert any(differs)


def test_old_checkpoints_are_removed(make_trainer, blobs, tmp_path):
    make_trainer(blobs(), save_strategy="steps", save_steps=1, save_total_limit=2).train()
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_optimizer_keeps_its_settings_through_a_checkpoint(make_trainer, blobs, tmp_path, logged):
    make_trainer(blobs(), max_steps=8, save_strategy="steps", save_steps=3, save_total_limit=None).train()
    resumed = make_trainer(blobs(), max_steps=8)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert logged(resumed, "weight_decay") == [resumed.schedules.weight_decay_at(step) for step in range(8)]


def test_resuming_without_a_checkpoint_is_an_error(make_trainer, blobs):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        make_trainer(blobs()).train(resume_from_checkpoint=True)


def test_batch_without_masks_is_an_error(small_config, tmp_path, make_trainer, blobs):
    trainer = make_trainer(blobs())
    with pytest.raises(ValueError, match="needs context_mask, target_mask too"):
        trainer._prepare_inputs({"pixel_values_videos": torch.zeros(1)})


def test_plain_training_arguments_are_refused(small_config):
    from transformers import TrainingArguments

    with pytest.raises(TypeError, match="VJEPATrainingArguments"):
        VJEPATrainer(VJEPAForPreTraining(small_config), TrainingArguments(use_cpu=True))


def test_run_begins_with_a_checkpoint_and_its_schedules_anew(make_trainer, blobs, tmp_path, logged):
    make_trainer(blobs(), folder=tmp_path / "first", save_strategy="steps", save_steps=4).train()
    begun = make_trainer(blobs(), initial_checkpoint=str(tmp_path / "first" / "checkpoint-4"), adam_beta2=0.99)
    begun.train()
    assert begun.state.global_step == 4
    assert logged(begun, "learning_rate") == [begun.args.schedules(4).learning_rate_at(step) for step in range(4)]
    assert {group["betas"] for group in begun.optimizer.param_groups} == {(0.9, 0.99)}
    assert {state["step"].item() for state in begun.optimizer.state.values()} == {8}


def test_run_begins_with_weights_of_another_clip_length_and_size(make_trainer, blobs, small_config, tmp_path):
    make_trainer(blobs(), folder=tmp_path / "first", max_steps=1, save_strategy="steps", save_steps=1).train()
    checkpoint = tmp_path / "first" / "checkpoint-1"
    clips = {"frames_per_clip": 2 * small_config.frames_per_clip, "crop_size": 2 * small_config.crop_size}
    config = VJEPAConfig(**{**small_config.to_diff_dict(), **clips})
    model = VJEPAForPreTraining(config)
    tables = {name: table.clone() for name, table in model.named_buffers()}
    still = {"max_steps": 1, "start_learning_rate": 0, "learning_rate": 0, "final_learning_rate": 0, "momentum": 1}
    dataset = [{"pixel_values_videos": torch.randn(config.frames_per_clip, 3, config.crop_size, config.crop_size)}] * 4
    make_trainer(dataset, model=model, initial_checkpoint=str(checkpoint), **still).train()
    weights = VJEPAForPreTraining.from_pretrained(checkpoint)
    for (name, ours), expected in zip(model.named_parameters(), weights.parameters(), strict=True):
        assert torch.equal(ours, expected), name
    for name, table in model.named_buffers():
        assert torch.equal(table, tables[name]), name


def test_loss_at_context_tokens_is_refused_where_there_is_none(make_trainer, blobs):
    with pytest.raises(ValueError, match=r"context_loss_weight is 0\.5.*pred_predicts_context=True"):
        make_trainer(blobs(), context_loss_weight=0.5)
    model = VJEPAForPreTraining(VJEPAConfig(**{**blobs().config.to_diff_dict(), "pred_predicts_context": True}))
    with pytest.raises(ValueError, match=r"objective is 'l2'.*l1"):
        make_trainer(blobs(), model=model, objective="l2")


def test_trainer_without_data_says_so(make_trainer):
    with pytest.raises(ValueError, match="no train_dataset"):
        make_trainer(None).train()


def test_health_is_logged_and_a_healthy_run_warns_of_nothing(make_trainer, blobs, logged, caplog):
    trainer = make_trainer(blobs(), health_steps=2, health_batch_size=6)
    with caplog.at_level(logging.WARNING, "vjepa_hub"):
        trainer.train()
    assert len(logged(trainer, "health/target_effective_rank")) == 3  # steps 0, 2 and 4
    assert trainer.health.warnings == []
    assert not caplog.records


def test_health_is_measured_on_a_data_set_of_one_video(make_trainer, blobs, logged):
    trainer = make_trainer(blobs(1), max_steps=1, health_steps=1, health_batch_size=3)
    trainer.train()
    assert len(logged(trainer, "health/target_effective_rank")) == 2


def test_health_disturbs_no_number_of_the_run(make_trainer, blobs, logged, small_config):
    small_config.drop_path_rate = 0.1
    losses = []
    for steps in (0, 1):
        torch.manual_seed(0)
        model = VJEPAForPreTraining(VJEPAConfig.from_dict(small_config.to_dict()))
        trainer = make_trainer(blobs(), model=model, health_steps=steps)
        trainer.train()
        losses.append(logged(trainer, "loss"))
    assert losses[0] == losses[1]


def test_finished_run_is_not_trained_on(make_trainer, blobs, tmp_path):
    make_trainer(blobs(), save_strategy="steps", save_steps=4).train()
    with pytest.raises(ValueError, match=r"checkpoint-4 is at step 4 of 4: there is nothing left to train"):
        make_trainer(blobs()).train(resume_from_checkpoint=True)


class _EnoughError(Exception):
    pass


class _StopAfter(TrainerCallback):
    """Ends a training from within, before transformers reads what came of it."""

    def __init__(self, num_steps: int):
        self.num_steps = num_steps

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.num_steps:
            raise _EnoughError


@pytest.mark.skipif(torch.accelerator.is_available(), reason="transformers would take the accelerator")
def test_nothing_of_a_step_is_read_by_the_host(make_trainer, monkeypatch):
    """A meta tensor has no values: whatever asks for one, as it would wait for a GPU, raises."""
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")
    clips = VideoClipDataset(open_source([sample_clip_path()] * 8), ClipSpec(frames_per_clip=4))
    trainer = make_trainer(clips, use_cpu=False, optim="adamw_torch", clip_after_steps=0, logging_steps=100)
    trainer.add_callback(_StopAfter(3))
    with pytest.raises(_EnoughError):
        trainer.train()
    assert next(trainer.model.parameters()).device.type == "meta"
