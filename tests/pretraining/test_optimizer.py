import pytest
import torch

from vjepa_hub import VJEPAForPreTraining
from vjepa_hub.pretraining.optimizer import RecipeScheduler, clip_by_part, parameter_groups, trained_parameters
from vjepa_hub.pretraining.schedules import Schedules


@pytest.fixture
def model(small_config) -> VJEPAForPreTraining:
    torch.manual_seed(0)
    return VJEPAForPreTraining(small_config)


@pytest.fixture
def schedules() -> Schedules:
    return Schedules(
        total_steps=10,
        warmup_steps=2,
        start_learning_rate=1e-4,
        learning_rate=1e-3,
        final_learning_rate=1e-6,
        weight_decay=0.04,
        final_weight_decay=0.4,
        momentum=0.9,
        final_momentum=1.0,
    )


def _gradients(model, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


def test_every_trained_parameter_is_in_one_group_and_the_target_encoder_in_none(model):
    grouped = [id(parameter) for group in parameter_groups(model) for parameter in group["params"]]
    trained = [*model.encoder.parameters(), *model.predictor.parameters()]
    assert sorted(grouped) == sorted(map(id, trained))


def test_mask_tokens_are_decayed_and_biases_and_norms_are_not(model):
    decayed = {id(p) for group in parameter_groups(model) if group["is_decayed"] for p in group["params"]}
    assert id(model.predictor.mask_tokens) in decayed
    assert id(model.encoder.layer[0].mlp.fc1.weight) in decayed
    assert id(model.encoder.layer[0].mlp.fc1.bias) not in decayed
    assert id(model.encoder.layernorm.weight) not in decayed


def test_scheduler_sets_the_first_step_when_it_is_built(model, schedules):
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=123.0)
    RecipeScheduler(optimizer, schedules)
    decayed, plain = optimizer.param_groups[0], optimizer.param_groups[2]
    assert decayed["lr"] == plain["lr"] == schedules.learning_rate_at(0)
    assert decayed["weight_decay"] == schedules.weight_decay_at(0)
    assert plain["weight_decay"] == 0


def test_scheduler_goes_on_where_its_state_was_saved(model, schedules):
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=1.0)
    scheduler = RecipeScheduler(optimizer, schedules)
    for _ in range(4):
        scheduler.step()
    resumed = RecipeScheduler(torch.optim.AdamW(parameter_groups(model), lr=1.0), schedules)
    resumed.load_state_dict(scheduler.state_dict())
    assert resumed.get_last_lr() == scheduler.get_last_lr() == [schedules.learning_rate_at(4)] * 4
    assert resumed.optimizer.param_groups[1]["weight_decay"] == schedules.weight_decay_at(4)


def test_encoder_and_predictor_are_clipped_each_by_its_own_norm(model):
    _gradients(model, 1.0)
    for parameter in model.predictor.parameters():
        parameter.grad *= 1e-3
    before = [parameter.grad.clone() for parameter in model.predictor.parameters()]
    norms = clip_by_part(model, 1.0)
    encoder = torch.cat([p.grad.flatten() for p in trained_parameters(model, "encoder")])
    assert norms["encoder"] > 1
    assert norms["predictor"] < 1
    assert encoder.norm().item() == pytest.approx(1.0, rel=1e-5)
    for parameter, gradient in zip(model.predictor.parameters(), before, strict=True):
        assert torch.equal(parameter.grad, gradient)  # one norm over both would have shrunk them


def test_infinite_limit_measures_and_changes_nothing(model):
    _gradients(model, 1.0)
    before = [parameter.grad.clone() for parameter in model.encoder.parameters()]
    norms = clip_by_part(model, float("inf"))
    assert norms["encoder"].item() == pytest.approx(torch.cat([g.flatten() for g in before]).norm().item(), rel=1e-5)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.encoder.parameters(), before, strict=True))
