"""The recipe is the release's: its 15 recorded training steps, through the public Trainer."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import REFERENCE
from vjepa_hub.hub.conversion import convert_original_checkpoint
from vjepa_hub.pretraining.arguments import VJEPATrainingArguments
from vjepa_hub.pretraining.trainer import VJEPATrainer

TRAJECTORY = json.loads((REFERENCE / "train_trajectory.json").read_text())
STEPS = TRAJECTORY["steps"]
TOLERANCE = 2e-5


def _recorded_batches() -> list[dict]:
    """A batch for each step, masks included."""
    case = load_file(REFERENCE / "train_batches.safetensors")
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    batches = []
    for step in range(len(STEPS)):
        frames = case[f"step{step:02d}.frames_uint8"].permute(0, 2, 1, 3, 4)
        masks = {
            f"{part}_mask": [case[f"step{step:02d}.mask{kind}.{part}_indices"] for kind in (0, 1)]
            for part in ("context", "target")
        }
        batches.append({"pixel_values_videos": (frames.float() / 255 - mean) / std, **masks})
    return batches


@pytest.fixture(scope="module")
def trained(reference_config, tmp_path_factory):
    """The Trainer after the recorded steps."""
    settings = TRAJECTORY["optimization"]
    steps_per_epoch = settings["ipe"]
    model = convert_original_checkpoint(REFERENCE / "train_initial.pth.tar", reference_config)
    args = VJEPATrainingArguments(
        output_dir=str(tmp_path_factory.mktemp("trajectory")),
        use_cpu=True,
        max_steps=len(STEPS),
        steps_per_epoch=steps_per_epoch,
        per_device_train_batch_size=1,  # an item is a whole recorded batch
        train_sampling_strategy="sequential",
        start_learning_rate=settings["start_lr"],
        learning_rate=settings["lr"],
        final_learning_rate=settings["final_lr"],
        warmup_steps=settings["warmup"] * steps_per_epoch,
        weight_decay=settings["weight_decay"],
        final_weight_decay=settings["final_weight_decay"],
        momentum=settings["ema"][0],
        final_momentum=settings["ema"][1],
        schedule_stretch=settings["ipe_scale"],
        max_grad_norm=settings["clip_grad"],
        clip_after_steps=(settings["warmup"] + 1) * steps_per_epoch,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        health_steps=0,
    )
    trainer = VJEPATrainer(model, args, _recorded_batches(), data_collator=lambda items: items[0])
    trainer.train()
    return trainer


def _logged(trainer: VJEPATrainer, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


def test_losses_are_those_of_the_release(trained):
    assert _logged(trained, "loss") == pytest.approx([step["loss"] for step in STEPS], rel=TOLERANCE)


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "momentum"])
def test_schedules_are_those_of_the_release(trained, name):
    recorded = {"learning_rate": "lr", "weight_decay": "weight_decay", "momentum": "ema_momentum"}[name]
    assert _logged(trained, name) == pytest.approx([step[recorded] for step in STEPS], abs=1e-9)


@pytest.mark.parametrize("part", ["encoder", "predictor"])
def test_gradient_norms_before_clipping_are_those_of_the_release(trained, part):
    ours = _logged(trained, f"{part}_grad_norm")
    clipped = [step for step, row in enumerate(STEPS) if row[f"{part}_grad_norm_before_clipping"] > 0]
    assert clipped == list(range(6, 15))  # the release records them where it clips
    for step in clipped:
        assert math.isclose(ours[step], STEPS[step][f"{part}_grad_norm_before_clipping"], rel_tol=TOLERANCE), step


@pytest.mark.parametrize("part", ["encoder", "predictor", "target_encoder"])
def test_final_weights_are_those_of_the_release(trained, reference_config, part):
    released = convert_original_checkpoint(REFERENCE / "train_epoch5.pth.tar", reference_config)
    ours, expected = trained.model.get_submodule(part), released.get_submodule(part)
    for (name, parameter), other in zip(ours.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, atol=TOLERANCE, rtol=0, msg=name)
