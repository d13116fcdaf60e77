import pytest
import torch

from vjepa_hub.pretraining.arguments import VJEPATrainingArguments


def _arguments(tmp_path, **given) -> VJEPATrainingArguments:
    return VJEPATrainingArguments(**{"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"} | given)


def test_defaults_of_transformers_that_fight_the_recipe_are_off(tmp_path):
    args = _arguments(tmp_path)
    assert not args.remove_unused_columns
    assert not args.logging_nan_inf_filter
    assert args.max_grad_norm == 10.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objective": "cosine"}, "objective is 'cosine', but must be 'l1', 'l2' or 'smooth_l1'"),
        ({"lr_decay": "constant"}, "lr_decay is 'constant'"),
        ({"context_loss_weight": -0.5}, "context_loss_weight is -0.5"),
        ({"context_loss_warmup_start": 4, "context_loss_warmup_end": 3}, "context_loss_warmup_start is 4.*_end is 3"),
        ({"targets": "edges"}, "targets is 'edges'"),
        ({"probe": "linear"}, "probe is 'linear'"),
        ({"momentum": 1.5}, "momentum is 1.5"),
        ({"max_bad_share": -0.1}, "max_bad_share is -0.1"),
        ({"steps_per_epoch": 0}, "steps_per_epoch is 0"),
        ({"health_batch_size": 1}, "health_batch_size is 1"),
        ({"final_learning_rate": -1.0}, "final_learning_rate is -1.0"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"deepspeed": {"zero_optimization": {"stage": 1}}}, "DeepSpeed was asked for"),
    ],
)
def test_values_that_cannot_be_meant_raise(tmp_path, given, message):
    with pytest.raises((ValueError, ImportError), match=message):
        _arguments(tmp_path, **given)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"lr_scheduler_type": "constant"}, "lr_scheduler_type is 'constant'.*final_"),
        ({"lr_scheduler_type": "linear"}, "lr_scheduler_type is 'linear'"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is '0.1'.*no labels"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha is '5.0'"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy is 'group_by_length'.*random"),
    ],
)
def test_arguments_that_would_be_ignored_are_refused(tmp_path, given, reason):
    _arguments(tmp_path, lr_scheduler_type="cosine", label_smoothing_factor=0.0)
    with pytest.raises(ValueError, match=reason):
        _arguments(tmp_path, **given)


def test_choosing_a_checkpoint_by_its_loss_is_refused(tmp_path):
    with pytest.raises(ValueError, match="load_best_model_at_end"):
        _arguments(
            tmp_path,
            load_best_model_at_end=True,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
        )


def test_sharding_on_a_cpu_is_refused_rather_than_turned_into_something_else(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP was asked for on the CPU"):
        _arguments(tmp_path)


def test_clipping_begins_an_epoch_after_the_warmup(tmp_path):
    args = _arguments(tmp_path, warmup_steps=40 * 300)
    assert args.first_clipped_step(90_000, steps_per_epoch=300) == 41 * 300
    assert _arguments(tmp_path, clip_after_steps=7).first_clipped_step(90_000, 300) == 7


def test_clips_of_a_step_count_accumulated_batches(tmp_path):
    args = _arguments(tmp_path, per_device_train_batch_size=6, gradient_accumulation_steps=4)
    assert args.clips_per_step == 24


@pytest.mark.skipif(torch.accelerator.is_available(), reason="bfloat16 then is the accelerator's")
def test_bfloat16_needs_no_word_about_the_cpu(tmp_path):
    args = VJEPATrainingArguments(output_dir=str(tmp_path), report_to="none", bf16=True)
    assert args.use_cpu
    assert args.device.type == "cpu"
