"""The recipes of V-JEPA 2 and 2.1 are the release's: their recorded runs, through the public Trainer."""

import json

import pytest
import torch

from tests.forked import call_in_pair
from tests.pretraining.recorded_family import (
    RecordingTrainer,
    recorded_batches,
    recorded_model,
    train_mixed,
    train_mixed_in_pair,
    train_recorded,
    trajectory,
)
from vjepa_hub import VJEPAForPreTraining
from vjepa_hub.pretraining.optimizer import parameter_groups

TOLERANCE, SCHEDULE_TOLERANCE, MIXED_LOSS_TOLERANCE = 5e-5, 1e-9, 1e-4
# Gradients of these are sums of signs that nearly cancel between images and video
CANCELLING, CANCELLING_TOLERANCE = ("predictor.proj.bias", "predictor.context_proj.bias"), 2e-3


@pytest.fixture(scope="module", params=["v2", "v2.1"])
def generation(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def first_phase(generation, tmp_path_factory) -> RecordingTrainer:
    record = trajectory(generation)
    context_loss = {}
    if loss := record.get("loss"):
        context_loss = {
            "context_loss_weight": loss["context_weight"],
            "context_loss_warmup_start": loss["context_warmup_start"],
            "context_loss_warmup_end": loss["context_warmup_end"],
            "context_loss_by_distance": loss["weighted_by_distance"],
        }
    batches = recorded_batches(generation, "", len(record["steps"]))
    folder = tmp_path_factory.mktemp("first")
    return train_recorded(folder, recorded_model(generation), batches, record["optimization"], **context_loss)


@pytest.fixture(scope="module")
def cooldown(generation, first_phase, tmp_path_factory) -> RecordingTrainer:
    """Begins with the last checkpoint of the first phase."""
    record = trajectory(generation)
    context_loss = {}
    if loss := record.get("cooldown_loss"):
        context_loss = {
            "context_loss_weight": loss["context_weight"],
            "context_loss_by_distance": loss["weighted_by_distance"],
        }
    batches = recorded_batches(generation, "cooldown.", len(record["cooldown_steps"]))
    folder, checkpoint = tmp_path_factory.mktemp("cooldown"), first_phase.output_dir / "checkpoint-12"
    model = recorded_model(generation)  # other weights than the checkpoint's
    return train_recorded(
        folder, model, batches, record["cooldown"], initial_checkpoint=str(checkpoint), **context_loss
    )


def _logged(trainer: RecordingTrainer, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


def _assert_curves(trainer: RecordingTrainer, steps: list[dict]) -> None:
    for ours, recorded in (("learning_rate", "lr"), ("weight_decay", "weight_decay"), ("momentum", "ema_momentum")):
        expected = [step[recorded] for step in steps]
        assert _logged(trainer, ours) == pytest.approx(expected, rel=0, abs=SCHEDULE_TOLERANCE), ours


def _assert_run(trainer: RecordingTrainer, generation: str, steps: list[dict], end: str) -> None:
    assert trainer.losses == pytest.approx([step["loss"] for step in steps], rel=0, abs=TOLERANCE)
    _assert_curves(trainer, steps)
    _assert_weights(trainer.model, recorded_model(generation, end))


def _assert_weights(model: VJEPAForPreTraining, expected: VJEPAForPreTraining, **tolerances: float) -> None:
    parameters = dict(model.named_parameters())
    for name, recorded in expected.named_parameters():
        tolerance = tolerances.get(name, TOLERANCE)
        torch.testing.assert_close(
            parameters[name], recorded, atol=tolerance, rtol=0, msg=lambda text, name=name: name + text
        )


def test_first_phase_is_that_of_the_release(generation, first_phase):
    _assert_run(first_phase, generation, trajectory(generation)["steps"], "train_end.pt")


def test_cooldown_from_the_first_phase_is_that_of_the_release(generation, cooldown):
    _assert_run(cooldown, generation, trajectory(generation)["cooldown_steps"], "cooldown_end.pt")


def test_parameter_groups_are_those_of_the_release():
    sizes = [len(group["params"]) for group in parameter_groups(recorded_model("v2"))]
    assert sizes == [13, 12 - 1, 27, 20]  # the mask tokens, two tensors there, are one here


def test_video_alone_leaves_the_weights_for_images_as_they_were(first_phase, generation):
    initial = recorded_model(generation)
    names = [name for name, _ in initial.named_parameters() if "image" in name]
    assert bool(names) == (generation == "v2.1")
    trained = dict(first_phase.model.named_parameters())
    for name, parameter in initial.named_parameters():
        if name in names:
            assert torch.equal(trained[name], parameter), name


def test_both_parts_of_the_loss_are_logged_with_the_weight_of_the_step(first_phase, generation):
    weights = _logged(first_phase, "context_loss_weight")
    if generation == "v2":
        assert not weights
        return
    assert weights == pytest.approx([0.0] * 4 + [0.5 * share / 6 for share in range(1, 7)] + [0.5] * 2)
    parts = zip(_logged(first_phase, "target_loss"), _logged(first_phase, "context_loss"), weights, strict=True)
    assert [target + weight * context for target, context, weight in parts] == pytest.approx(first_phase.losses)


# --- Images and video ---


def _assert_mixed(losses: list[list[float]], model: VJEPAForPreTraining) -> None:
    record = trajectory("v2.1")["mixed"]
    for ours, kind in zip(losses, ("image", "video"), strict=True):
        expected = [step["loss"] for step in record[f"{kind}_steps"]]
        assert ours == pytest.approx(expected, rel=0, abs=MIXED_LOSS_TOLERANCE), kind
    tolerances = dict.fromkeys(CANCELLING, CANCELLING_TOLERANCE)
    _assert_weights(model, recorded_model("v2.1", "mixed_end.pt"), **tolerances)


def test_images_and_video_in_turn_equal_the_two_processes_of_the_release(tmp_path):
    trainer = train_mixed(tmp_path, gradient_accumulation_steps=2)
    _assert_mixed([trainer.losses[0::2], trainer.losses[1::2]], trainer.model)
    _assert_curves(trainer, trajectory("v2.1")["mixed"]["image_steps"])
    assert _logged(trainer, "image_context_loss_weight")[-1] == 0.7


def test_images_on_one_process_and_video_on_the_other_equal_the_release(tmp_path):
    assert call_in_pair(train_mixed_in_pair, tmp_path) == [0, 0]
    losses = [json.loads((tmp_path / f"losses-{rank}.json").read_text()) for rank in (0, 1)]
    _assert_mixed(losses, VJEPAForPreTraining.from_pretrained(tmp_path / "model"))
