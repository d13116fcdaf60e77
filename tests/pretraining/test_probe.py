"""The online probe: what it reads, and that the run around it does not notice."""

import math

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import TrainerControl, TrainerState

from vjepa_hub import VJEPAConfig, VJEPAForPreTraining
from vjepa_hub.model.modeling_vjepa import VJEPALayer
from vjepa_hub.pretraining.callbacks import HealthCallback
from vjepa_hub.pretraining.probe import LabelledClips, OnlineProbe, OnlineProbeSettings

KINDS = ("knn", "average", "attentive")
QUICK = OnlineProbeSettings(num_epochs=20, batch_size=16, learning_rate=2e-2, num_neighbours=5)


def make_clips(num_clips: int, seed: int) -> LabelledClips:
    """Clips in one of three colours ("colour") that are bright in the first or in the second half ("half")."""
    generator = torch.Generator().manual_seed(seed)
    colour, half = (torch.randint(count, (num_clips,), generator=generator) for count in (3, 2))
    clips = 0.3 * torch.randn(num_clips, 4, 3, 32, 32, generator=generator)
    clips[torch.arange(num_clips), :, colour] += 1.5
    for clip, part in enumerate(half.tolist()):
        clips[clip, 2 * part : 2 * part + 2] *= 2
    return LabelledClips(pixel_values_videos=clips, labels={"colour": colour, "half": half})


@pytest.fixture(scope="module")
def train() -> LabelledClips:
    return make_clips(64, seed=0)


@pytest.fixture(scope="module")
def validation() -> LabelledClips:
    return make_clips(48, seed=1)


@pytest.fixture
def model(small_config) -> VJEPAForPreTraining:
    torch.manual_seed(0)
    small_config.drop_path_rate = 0.3
    return VJEPAForPreTraining(small_config).train()


@pytest.mark.parametrize("kind", KINDS)
def test_probe_reads_what_the_features_tell(kind, model, train, validation):
    accuracies = OnlineProbe(kind, train, validation, settings=QUICK).evaluate(model.target_encoder)
    assert accuracies.keys() == {"probe/colour_accuracy", "probe/half_accuracy"}
    assert accuracies["probe/colour_accuracy"] > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_probe_finds_nothing_in_labels_that_say_nothing(kind, model, train, validation):
    generator = torch.Generator().manual_seed(0)
    labels = [{"noise": torch.randint(4, (len(clips),), generator=generator)} for clips in (train, validation)]
    noisy = [
        LabelledClips(pixel_values_videos=clips.pixel_values_videos, labels=given)
        for clips, given in zip((train, validation), labels, strict=True)
    ]
    accuracies = OnlineProbe(kind, *noisy, settings=QUICK).evaluate(model.target_encoder)
    assert accuracies["probe/noise_accuracy"] < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_each_evaluation_starts_anew(kind, model, train, validation):
    probe = OnlineProbe(kind, train, validation, settings=QUICK)
    first = probe.evaluate(model.target_encoder)
    torch.rand(5)
    assert probe.evaluate(model.target_encoder) == first


@pytest.mark.parametrize("kind", KINDS)
def test_random_numbers_of_the_run_are_not_drawn(kind, model, train, validation):
    state = torch.get_rng_state()
    OnlineProbe(kind, train, validation, settings=QUICK).evaluate(model.target_encoder)
    assert torch.equal(torch.get_rng_state(), state)


def test_accelerators_are_not_seeded(model, train, validation, monkeypatch):
    """torch.manual_seed would seed them, inside `fork_rng` of the CPU too."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded the accelerators"))
    OnlineProbe("attentive", train, validation, settings=QUICK).evaluate(model.target_encoder)


@pytest.mark.parametrize("kind", KINDS)
def test_training_gives_the_same_weights_with_and_without_probe(
    kind, model, small_config, small_clip, small_masks, train, validation
):
    probe = OnlineProbe(kind, train, validation, settings=QUICK)
    weights = []
    for given in (None, probe):
        torch.manual_seed(0)
        model = VJEPAForPreTraining(small_config).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        for _ in range(2):
            model(small_clip, *small_masks).loss.backward()  # draws random numbers: stochastic depth
            optimizer.step()
            optimizer.zero_grad()
            model.update_target_encoder(0.9)
            if given is not None:
                given.evaluate(model.target_encoder)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(*weights)


def test_encoder_is_left_as_it_was(model, train, validation):
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    OnlineProbe("attentive", train, validation, settings=QUICK).evaluate(model.encoder)
    assert all(module.training for module in model.encoder.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.encoder.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.encoder.parameters())


def test_probe_trains_inside_no_grad_and_autocast_too(model, train, validation):
    probe = OnlineProbe("attentive", train, validation, settings=QUICK)
    expected = probe.evaluate(model.target_encoder)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert probe.evaluate(model.target_encoder) == expected


def test_unreadable_clips_teach_nothing_and_count_as_wrong(model, train, validation):
    unreadable, labels = torch.arange(48) < 12, validation.labels
    pixels = validation.pixel_values_videos.clone()
    pixels[unreadable] = 0
    lost = LabelledClips(pixel_values_videos=pixels, labels=labels, is_readable=~unreadable)
    left = LabelledClips(
        pixel_values_videos=pixels[~unreadable], labels={task: values[~unreadable] for task, values in labels.items()}
    )
    among_all, among_left = (
        OnlineProbe("knn", train, given, settings=QUICK).evaluate(model.target_encoder)["probe/colour_accuracy"]
        for given in (lost, left)
    )
    assert among_all == pytest.approx(among_left * 36 / 48)


def test_features_that_are_not_finite_have_no_accuracy(model, train, validation):
    with torch.no_grad():
        model.encoder.layernorm.weight.fill_(float("nan"))
    accuracies = OnlineProbe("attentive", train, validation, settings=QUICK).evaluate(model.encoder)
    assert all(math.isnan(value) for value in accuracies.values())


def test_attentive_probe_sees_what_averaging_loses():
    """A clip's label is which of its tokens stands out, not what they are on average."""

    class Tokens(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.config, self.unused = config, nn.Parameter(torch.zeros(1))

        def forward(self, clips, return_dict):
            class Output:
                last_hidden_state = clips.flatten(2).flatten(1).unflatten(1, (8, 48))

            return Output

    generator = torch.Generator().manual_seed(0)
    places, marks = torch.eye(8, 24), torch.randn(1, 24, generator=generator)

    def clips(num_clips: int) -> LabelledClips:
        labels = torch.randint(2, (num_clips,), generator=generator)
        tokens = torch.zeros(num_clips, 8, 48)
        tokens[:, :, :24] = 4 * places
        first = torch.randint(4, (num_clips,), generator=generator)
        tokens[torch.arange(num_clips), first + 4 * labels, 24:] = marks
        return LabelledClips(pixel_values_videos=tokens.view(num_clips, 1, 1, 8, 48), labels={"place": labels})

    encoder = Tokens(VJEPAConfig(hidden_size=48, num_attention_heads=4))
    train, validation = clips(128), clips(64)
    settings = OnlineProbeSettings(num_epochs=25, learning_rate=5e-3)
    average, attentive = (
        OnlineProbe(kind, train, validation, settings=settings).evaluate(encoder)["probe/place_accuracy"]
        for kind in ("average", "attentive")
    )
    assert average < 0.7
    assert attentive > 0.9


# ------------------------------------------------------------------------------------------------ in a run


class Arguments:
    @staticmethod
    def get_warmup_steps(num_steps: int) -> int:
        return 0


def send_first_step(callback: HealthCallback, model: VJEPAForPreTraining) -> None:
    callback.on_train_begin(Arguments(), TrainerState(max_steps=4), TrainerControl(), model=model)


def test_callback_logs_the_probe_of_the_target_encoder(model, small_clip, small_masks, train, validation):
    probe, logs = OnlineProbe("knn", train, validation, settings=QUICK), []
    batch = {"pixel_values_videos": small_clip, "context_mask": small_masks[0], "target_mask": small_masks[1]}
    expected = probe.evaluate(model.target_encoder)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.zero_()
    send_first_step(HealthCallback(batch, every=2, log=logs.append, probe=probe), model)
    assert expected.items() <= logs[0].items()
    assert "health/target_std" in logs[0]


@pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="torch before 2.7: no FSDP2 on a CPU")
def test_sharded_encoder_is_probed_like_a_whole_one(model, small_clip, small_masks, train, validation, tmp_path):
    probe, logs = OnlineProbe("knn", train, validation, settings=QUICK), []
    batch = {"pixel_values_videos": small_clip, "context_mask": small_masks[0], "target_mask": small_masks[1]}
    expected = probe.evaluate(model.target_encoder)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for module in [module for module in model.modules() if isinstance(module, VJEPALayer)] + [model]:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        send_first_step(HealthCallback(batch, every=2, log=logs.append, probe=probe), model)
        with torch.no_grad():
            assert model(small_clip, *small_masks).loss.isfinite()  # the run goes on
    finally:
        distributed.destroy_process_group()
    assert expected.items() <= logs[0].items()


# ------------------------------------------------------------------------------------------------ errors


def test_wrong_settings_say_what_is_wrong(train, validation):
    other = LabelledClips(
        pixel_values_videos=validation.pixel_values_videos, labels={"colour": validation.labels["half"]}
    )
    for make, message in (
        (lambda: OnlineProbe("linear", train, validation), "'linear'; available: knn, attentive, average"),
        (lambda: OnlineProbe("knn", train, other), "colour, half and the validation clips for colour;"),
        (lambda: OnlineProbe("knn", train, validation, settings=OnlineProbeSettings(num_neighbours=99)), "only 64"),
        (lambda: OnlineProbeSettings(temperature=0), "temperature is 0"),
        (lambda: OnlineProbeSettings(weight_decay=-1), "weight_decay is -1"),
        (lambda: LabelledClips(pixel_values_videos=torch.zeros(0, 4, 3, 8, 8), labels={}), "at least one clip"),
        (lambda: LabelledClips(pixel_values_videos=torch.zeros(2, 4, 3, 8, 8), labels={}), "labels is empty"),
        (lambda: clips_with(torch.zeros(2)), "must be an integer for each of 2 clips"),
        (lambda: clips_with(torch.tensor([0])), "must be an integer for each of 2 clips"),
        (lambda: clips_with(torch.tensor([0, -1])), "holds -1"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def clips_with(labels: torch.Tensor) -> LabelledClips:
    return LabelledClips(pixel_values_videos=torch.zeros(2, 4, 3, 8, 8), labels={"task": labels})
