"""Health on models small enough to be trained in a test: healthy, collapsing and broken runs, by a plain loop."""

import logging
import math
from types import MethodType, SimpleNamespace

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from transformers import TrainerControl, TrainerState, TrainingArguments

from vjepa_hub import VJEPAConfig, VJEPAForPreTraining
from vjepa_hub.data.masking import LONG_RANGE, SHORT_RANGE, TokenGrid, sample_multi_block_masks
from vjepa_hub.model.modeling_vjepa import VJEPALayer, select_tokens
from vjepa_hub.pretraining.callbacks import HealthCallback
from vjepa_hub.pretraining.health import (
    HealthMeasurement,
    diagnose,
    effective_rank,
    measure_health,
    nearest_context,
)

GRID = TokenGrid(num_frames=4, height=32, width=32, patch_size=8)


def make_model(**changes) -> VJEPAForPreTraining:
    torch.manual_seed(0)
    settings = {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "patch_size": 8,
        "crop_size": 32,
        "frames_per_clip": 4,
        "pred_hidden_size": 32,
        "pred_num_hidden_layers": 2,
        "pred_num_attention_heads": 4,
    }
    return VJEPAForPreTraining(VJEPAConfig(**settings | changes)).train()


def moving_blobs(num_clips: int, generator: torch.Generator) -> torch.Tensor:
    """Three coloured blobs on a wavy ground, each with its own velocity: (num_clips, 4, 3, 32, 32)."""
    axis = torch.arange(32.0)
    waves, phase = (torch.rand(num_clips, 3, n, 1, 1, generator=generator) for n in (2, 1))
    ground = torch.sin(waves[:, :, 0] / 2 * axis[:, None] + waves[:, :, 1] / 2 * axis + 6.3 * phase[:, :, 0])
    clips = 0.4 * ground[:, None].repeat(1, 4, 1, 1, 1)
    for _ in range(3):
        start, velocity = (torch.rand(num_clips, 2, generator=generator) for _ in range(2))
        colour = torch.randn(num_clips, 1, 3, 1, 1, generator=generator)
        places = (32 * start[:, None] + 12 * (velocity[:, None] - 0.5) * torch.arange(4.0)[:, None]) % 32  # (B, T, 2)
        distance = (axis - places[..., None]).abs()
        profile = torch.exp(-torch.minimum(distance, 32 - distance).square() / 25)  # (B, T, 2, 32)
        clips += colour * (profile[:, :, 0, :, None] * profile[:, :, 1, None, :])[:, :, None]
    return clips


def draw_masks(num_clips: int, step: int, generator: torch.Generator) -> dict[str, list[torch.Tensor]]:
    pairs = [
        sample_multi_block_masks(kind, GRID, num_clips, step=step, generator=generator)
        for kind in (SHORT_RANGE, LONG_RANGE)
    ]
    return {
        "context_mask": [pair.context_mask for pair in pairs],
        "target_mask": [pair.target_mask for pair in pairs],
    }


def make_batch(num_clips: int = 16, seed: int = 99) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {"pixel_values_videos": moving_blobs(num_clips, generator), **draw_masks(num_clips, 0, generator)}


@pytest.fixture(scope="module")
def batch() -> dict:
    return make_batch()


def train(
    num_steps: int, *, learning_rate: float, momentum: float | None, has_stop_gradient: bool = True, every: int = 10
) -> list[dict]:
    """History of a run; without momentum the target encoder is never moved."""
    model, fixed = make_model(), make_batch()
    generator = torch.Generator().manual_seed(1)
    pool = moving_blobs(128, generator)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    history = []
    for step in range(num_steps + 1):
        if step % every == 0:
            history.append({"step": step} | measure_health(model, fixed).to_logs())
        clips = pool[torch.randint(len(pool), (16,), generator=generator)]
        masks = draw_masks(16, step, generator)
        loss = model(clips, **masks).loss if has_stop_gradient else loss_without_stop_gradient(model, clips, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if momentum is not None:
            model.update_target_encoder(momentum)
    return history


def loss_without_stop_gradient(model, clips, masks) -> torch.Tensor:
    """The objective whose target is the encoder itself, with its gradient."""
    features = model.encoder(clips, return_dict=True).last_hidden_state
    features = F.layer_norm(features, features.shape[-1:])
    losses = []
    for kind, (context, target) in enumerate(zip(masks["context_mask"], masks["target_mask"], strict=True)):
        losses.append(F.l1_loss(model.predict(clips, context, target, kind), select_tokens(features, target)))
    return torch.stack(losses).mean()


def names_of(history: list[dict], **settings) -> set[str]:
    return {warning.name for warning in diagnose(history, **settings)}


def measured(history: list[dict], name: str) -> list[float]:
    return [row[f"health/{name}"] for row in history]


# ------------------------------------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def healthy_run() -> list[dict]:
    return train(80, learning_rate=2e-3, momentum=0.998, every=20)


def test_healthy_run_learns_and_has_no_warning(healthy_run):
    assert diagnose(healthy_run, warmup_steps=16) == []
    assert healthy_run[-1]["health/fixed_loss_over_mean_target"] < 0.95


def test_run_at_momentum_zero_collapses_and_is_named():
    # So fast that the rank stays below a quarter with any version's rounding; 6e-3 only passes through it
    history = train(60, learning_rate=1e-2, momentum=0.0, every=5)
    assert "collapsed-targets" in names_of(history)
    assert measured(history, "encoder_target_distance") == [0.0] * len(history)


def test_run_without_stop_gradient_collapses_while_its_loss_falls():
    history = train(30, learning_rate=3e-3, momentum=0.0, has_stop_gradient=False, every=5)
    assert {"collapsed-targets", "dying-variance"} <= names_of(history)
    assert history[-1]["health/fixed_loss"] < history[0]["health/fixed_loss"] / 2


@pytest.mark.filterwarnings("ignore:a step has trained the encoder")
def test_target_encoder_that_is_never_moved_is_named():
    history = train(8, learning_rate=1e-3, momentum=None, every=2)
    assert "frozen-target" in names_of(history, warmup_steps=8)


def test_encoder_that_does_not_learn_is_named():
    history = train(8, learning_rate=0.0, momentum=0.99, every=2)
    assert names_of(history) == {"trivial-prediction"}


# ------------------------------------------------------------------------------------------------ rules


def measurement(step: int, **changes: float) -> dict[str, float]:
    values = {
        "target_std": 0.4 + step / 1e6,
        "target_content_std": 0.3,
        "target_effective_rank": 40.0,
        "token_cosine": 0.7,
        "prediction_norm_ratio": 0.9,
        "encoder_target_distance": 0.1 + step / 1e6,
        "fixed_loss": 0.4,
        "fixed_loss_over_mean_target": 0.8,
        "fixed_loss_over_nearest_token": 1.1,
    }
    return {"step": step} | HealthMeasurement(**values | changes).to_logs()


STEADY = [measurement(step) for step in range(0, 600, 100)]


def with_last(*changes: dict[str, float]) -> list[dict]:
    """A steady history with changes at its last measurements."""
    steps = range(600, 600 + 100 * len(changes), 100)
    return STEADY + [measurement(step, **change) for step, change in zip(steps, changes, strict=True)]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("collapsed-targets", {"target_effective_rank": 9.9}),
        ("collapsed-targets", {"token_cosine": 0.991}),
        ("shrinking-rank", {"target_effective_rank": 15.9}),
        ("dying-variance", {"target_std": 0.13, "target_content_std": 0.1}),
        ("content-blind-targets", {"target_content_std": 0.09}),
        ("trivial-prediction", {"fixed_loss_over_mean_target": 1.0}),
    ],
)
def test_rule_holds_from_its_threshold_on_and_not_for_a_passing_dip(name, change):
    assert name in names_of(with_last(change, change))
    assert names_of(with_last(change)) == set()
    assert names_of(with_last(change, {}, change)) == set()


def test_the_pilots_runs_are_ordered_by_the_rank():
    collapsing, healthy, mediocre = (
        [measurement(0, target_effective_rank=42.0, target_std=0.38)]
        + [measurement(s, target_effective_rank=rank, target_std=std) for s in (1000, 1500)]
        for rank, std in ((9.0, 0.2), (48.0, 0.49), (15.0, 0.3))
    )
    assert "collapsed-targets" in names_of(collapsing)
    assert names_of(healthy) == set()
    assert names_of(mediocre) == {"shrinking-rank"}


def test_loss_above_the_trivial_one_is_no_finding_while_it_falls_or_warms_up():
    falling = [measurement(step, fixed_loss_over_mean_target=2 / (1 + step / 500)) for step in range(0, 500, 50)]
    standing = with_last(*[{"fixed_loss_over_mean_target": 1.2}] * 3)
    assert names_of(falling) == set()
    assert names_of(standing, warmup_steps=800) == set()
    assert names_of(standing, warmup_steps=500) == {"trivial-prediction"}


def test_number_that_is_not_finite_is_named_at_once():
    (warning,) = diagnose(with_last({"target_effective_rank": math.nan}))
    assert (warning.name, warning.step) == ("not-finite", 600)


def test_warning_says_when_it_held_and_when_it_was_over():
    low = {"target_effective_rank": 12.0}
    (warning,) = diagnose(with_last(low, low, low, {}))
    assert (warning.step, warning.last_step, warning.value) == (700, 800, 12.0)
    assert "12.0" in warning.message
    assert "momentum" in warning.message
    assert "0.4 of its first value" in warning.rule


def test_rows_of_the_training_loss_do_not_matter():
    history = [{"step": 1, "loss": 3.0}, *with_last(*[{"token_cosine": 0.999}] * 2), {"step": 800, "loss": math.nan}]
    assert names_of(history) == {"collapsed-targets"}


# ------------------------------------------------------------------------------------------------ measures


def test_effective_rank_counts_equal_directions():
    directions = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0))).Q[:5]
    assert effective_rank(directions.repeat(20, 1)) == pytest.approx(5)
    assert effective_rank(torch.ones(50, 8)) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.zeros(50, 8)) == 1


@pytest.mark.parametrize("shape", [(200, 16), (10, 40)])
def test_effective_rank_is_that_of_the_paper(shape):
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -3, shape[1])
    shares = torch.linalg.svdvals(features.double())
    shares = shares / shares.sum()
    assert effective_rank(features) == pytest.approx(math.exp(-(shares * shares.log()).sum()), rel=1e-6)


def test_constant_features_with_small_noise_have_rank_near_one():
    noise = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    assert effective_rank(torch.ones(64) + 1e-4 * noise) < 1.1


def test_effective_rank_of_many_tokens_is_that_of_the_same_few_each_time():
    features = torch.randn(20000, 16, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    assert effective_rank(features) == effective_rank(features) == pytest.approx(16, rel=0.01)
    assert torch.equal(state, torch.get_rng_state())


def test_effective_rank_of_broken_features_is_no_number():
    assert math.isnan(effective_rank(torch.tensor([[1.0, math.nan], [0.0, 1.0]])))


def test_measures_are_those_of_their_definitions(batch):
    model = make_model().eval()
    found = measure_health(model, batch)
    with torch.no_grad():
        outputs = model(**batch)
        targets = F.layer_norm(model.target_encoder(batch["pixel_values_videos"]).last_hidden_state, (64,))
    cosines = F.cosine_similarity(targets[:, :, None], targets[:, None], dim=-1)  # (B, N, N)
    other = ~torch.eye(32, dtype=torch.bool)
    lengths = [sum(t.norm(dim=-1).mean() for t in kinds) for kinds in (outputs.predictions, outputs.targets)]
    mean_losses = [(kind - kind.flatten(0, 1).mean(0)).abs().mean() for kind in outputs.targets]
    assert found.fixed_loss == outputs.loss.item()
    assert found.target_std == pytest.approx(targets.flatten(0, 1).std(0, correction=0).mean().item())
    assert found.target_content_std == pytest.approx(targets.var(0).mean().sqrt().item())
    assert found.token_cosine == pytest.approx(cosines[:, other].mean().item(), rel=1e-5)
    assert found.target_effective_rank == pytest.approx(effective_rank(targets.flatten(0, 1)))
    assert found.prediction_norm_ratio == pytest.approx((lengths[0] / lengths[1]).item())
    assert found.fixed_loss_over_mean_target == pytest.approx((outputs.loss / (sum(mean_losses) / 2)).item())


def test_nearest_token_loss_is_that_of_copying_by_hand(batch):
    model = make_model().eval()
    found = measure_health(model, batch)
    with torch.no_grad():
        outputs = model(**batch)
        targets = F.layer_norm(model.target_encoder(batch["pixel_values_videos"]).last_hidden_state, (64,))
    losses = []
    for context, target in zip(batch["context_mask"], batch["target_mask"], strict=True):
        errors = []
        for clip in range(len(context)):
            for token in target[clip].tolist():
                nearest = min(context[clip].tolist(), key=lambda other: squared_distance(other, token))
                errors.append((targets[clip, nearest] - targets[clip, token]).abs().mean())
        losses.append(torch.stack(errors).mean())
    expected = outputs.loss / torch.stack(losses).mean()
    assert found.fixed_loss_over_nearest_token == pytest.approx(expected.item(), rel=1e-5)


def squared_distance(first: int, second: int) -> int:
    return sum((a - b) ** 2 for a, b in zip(place_of(first), place_of(second), strict=True))


def place_of(token: int) -> tuple[int, int, int]:
    return token // 16, token // 4 % 4, token % 4


def test_of_equally_near_context_tokens_the_first_is_taken():
    line = torch.tensor([[0.0, 0.0, float(column)] for column in range(5)])
    assert nearest_context(line, torch.tensor([[0, 2, 4]]), torch.tensor([[1, 3]])).tolist() == [[0, 2]]
    assert nearest_context(line, torch.tensor([[4, 2, 0]]), torch.tensor([[1, 3]])).tolist() == [[2, 4]]


def test_distance_of_the_encoders_is_relative(batch):
    model = make_model()
    assert measure_health(model, batch).encoder_target_distance == 0.0
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.mul_(1.25)
    assert measure_health(model, batch).encoder_target_distance == pytest.approx(0.25)


def test_masks_of_one_row_serve_every_clip(batch):
    model = make_model()
    single = {name: [mask[:1] for mask in batch[name]] for name in ("context_mask", "target_mask")}
    repeated = {name: [mask.repeat(16, 1) for mask in masks] for name, masks in single.items()}
    first, second = (measure_health(model, batch | masks).to_logs() for masks in (single, repeated))
    assert first == pytest.approx(second)


def test_single_mask_kind_can_be_a_tensor(batch):
    model = make_model()
    tensor = {name: batch[name][0] for name in ("context_mask", "target_mask")}
    entry = {name: batch[name][:1] for name in tensor}
    assert measure_health(model, batch | tensor) == measure_health(model, batch | entry)


def test_measuring_twice_gives_the_same_numbers_whatever_the_mode(batch):
    model = make_model(drop_path_rate=0.5, attention_probs_dropout_prob=0.5)
    first = measure_health(model, batch)
    assert first == measure_health(model, batch)
    assert first == measure_health(model.eval(), batch)


def test_measuring_leaves_model_and_random_numbers_as_they_were(batch):
    model = make_model(drop_path_rate=0.5)
    model.predictor.eval()
    model.encoder.embeddings.requires_grad_(False)
    model(**batch).loss.backward()
    modes = [module.training for module in model.modules()]
    frozen = [parameter.requires_grad for parameter in model.parameters()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    measure_health(model, batch)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == frozen
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.target_encoder._forward_hooks
    for before, parameter in zip(gradients, model.parameters(), strict=True):
        assert (before is None and parameter.grad is None) or torch.equal(before, parameter.grad)


def test_modes_come_back_after_an_error(batch):
    model = make_model()
    with pytest.raises(ValueError, match="target_mask"):
        measure_health(model, batch | {"target_mask": [mask + 100 for mask in batch["target_mask"]]})
    assert model.training
    assert not model.target_encoder._forward_hooks


def test_target_encoder_runs_once(batch):
    model, calls = make_model(), []
    model.target_encoder.register_forward_hook(lambda *_: calls.append(1))
    measure_health(model, batch)
    assert len(calls) == 1


def test_measures_are_float32_under_a_trainers_autocast(batch):
    model = make_model()
    plain = measure_health(model, batch)
    half = torch.autocast("cpu", dtype=torch.bfloat16)(type(model).forward)
    model.forward = MethodType(half, model)  # as accelerate wraps the model
    assert model(**batch).loss.item() != plain.fixed_loss
    assert measure_health(model, batch) == plain


def test_one_clip_is_refused(batch):
    with pytest.raises(ValueError, match=r"1 clip.*needs 2"):
        measure_health(make_model(), make_batch(num_clips=1))


def test_other_models_are_refused(batch):
    with pytest.raises(TypeError, match=r"Linear.*VJEPAForPreTraining"):
        measure_health(torch.nn.Linear(2, 2), batch)


# ------------------------------------------------------------------------------------------------ callback


class Run:
    """Sends a callback the Trainer's events; `log` appends to the history as the Trainer's does."""

    def __init__(self, batch, *, every: int = 2, model=None, history=(), step: int = 0, is_first: bool = True, **more):
        self.model = make_model(num_hidden_layers=1) if model is None else model
        self.state = TrainerState(global_step=step, max_steps=10, log_history=list(history))
        self.state.is_world_process_zero = is_first
        self.args = SimpleNamespace(get_warmup_steps=lambda num_steps: 2)
        self.callback = HealthCallback(batch, every=every, log=self.log, **more)

    def log(self, logs: dict) -> None:
        self.state.log_history.append({**logs, "step": self.state.global_step})

    def send(self, event: str) -> None:
        getattr(self.callback, event)(self.args, self.state, TrainerControl(), model=self.model)

    def go_to(self, last_step: int) -> list[int]:
        """Run to a step, end there; returns the steps that were measured since the beginning."""
        self.send("on_train_begin")
        while self.state.global_step < last_step:
            self.state.global_step += 1
            self.send("on_step_end")
        self.send("on_train_end")
        return [row["step"] for row in self.state.log_history]


def test_callback_measures_first_each_so_many_steps_and_last(batch):
    assert Run(batch, every=2).go_to(5) == [0, 2, 4, 5]


def test_callback_measures_no_step_twice(batch):
    assert Run(batch, every=2).go_to(4) == [0, 2, 4]


@pytest.mark.parametrize("step", [2, 3])
def test_resumed_run_is_measured_where_an_uninterrupted_one_is(batch, step):
    uninterrupted = Run(batch, every=2)
    assert uninterrupted.go_to(4) == [0, 2, 4]
    before = [row for row in uninterrupted.state.log_history if row["step"] <= step]
    assert Run(batch, every=2, history=before, step=step).go_to(4) == [0, 2, 4]


def test_finished_run_that_is_resumed_keeps_its_warnings_and_measures_nothing(batch):
    history = with_last(*[{"token_cosine": 0.999}] * 2)
    run = Run(batch, history=history, step=700)
    assert run.go_to(700) == [row["step"] for row in history]
    assert [warning.name for warning in run.callback.warnings] == ["collapsed-targets"]


def test_same_callback_measures_a_second_training_too(batch):
    run = Run(batch, every=2)
    run.go_to(2)
    run.state = TrainerState(global_step=0, max_steps=10)
    assert run.go_to(2) == [0, 2]


def test_each_warning_is_logged_once(batch, caplog):
    run = Run(batch, every=1)
    collapsed = measurement(0, target_effective_rank=1e6)  # next to which every rank is a collapse
    run.state.log_history.append(collapsed | {"step": -1})
    with caplog.at_level(logging.WARNING, "vjepa_hub.pretraining.health"):
        run.go_to(4)
    lines = [record.message for record in caplog.records if record.message.startswith("collapsed-targets")]
    assert len(lines) == 1
    assert "a quarter of its first value" in lines[0]
    assert run.callback.warnings[0].last_step == 4


def test_batch_is_made_once_and_only_when_needed(batch):
    calls = []
    run = Run(lambda: calls.append(1) or batch, every=2)
    assert calls == []
    run.go_to(4)
    assert calls == [1]


def test_other_processes_neither_measure_nor_log(batch):
    run = Run(lambda: pytest.fail("no batch is needed here"), is_first=False)
    assert run.go_to(4) == []


def test_other_processes_say_nothing_after_a_resume(batch, caplog):
    history = with_last(*[{"token_cosine": 0.999}] * 2)
    Run(batch, history=history, step=700, is_first=False).go_to(700)
    assert not caplog.records


def test_targets_without_any_spread_are_measured(batch):
    model = make_model(num_hidden_layers=1)
    torch.nn.init.zeros_(model.target_encoder.layernorm.weight)
    found = measure_health(model, batch)
    assert all(math.isfinite(value) for value in found.to_logs().values())
    assert (found.target_std, found.target_effective_rank) == (0, 1)


def test_wrapped_model_is_measured(batch):
    run = Run(batch)
    run.model = torch.nn.DataParallel(run.model)
    assert run.go_to(2) == [0, 2]


def test_every_below_one_step_is_refused(batch):
    with pytest.raises(ValueError, match="every is 0"):
        HealthCallback(batch, every=0, log=dict)


def test_warm_up_is_that_of_real_arguments(tmp_path):
    """Holds the one method of the arguments that the callback calls."""
    arguments = TrainingArguments(output_dir=str(tmp_path), warmup_steps=7, use_cpu=True, report_to="none")
    assert arguments.get_warmup_steps(100) == 7


# ------------------------------------------------------------------------------------------------ sharded parameters


@pytest.fixture
def mesh(tmp_path):
    if not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("torch before 2.7: no FSDP2 on a CPU")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def shard_as_accelerate_does(model: VJEPAForPreTraining, mesh) -> None:
    """Blocks are units of their own, and the whole model holds the rest: norms, embeddings."""
    for module in model.modules():
        if isinstance(module, VJEPALayer):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def test_sharded_model_has_the_same_health(batch, mesh):
    model = make_model(num_hidden_layers=2)
    expected = measure_health(model, batch).to_logs()
    shard_as_accelerate_does(model, mesh)
    assert measure_health(model, batch).to_logs() == pytest.approx(expected)


def test_every_process_takes_part_where_parameters_are_sharded(batch, mesh):
    calls = []
    run = Run(lambda: calls.append(1) or batch, model=make_model(num_hidden_layers=1), is_first=False)
    shard_as_accelerate_does(run.model, mesh)
    assert run.go_to(2) == []
    assert calls == [1]
