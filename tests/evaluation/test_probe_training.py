import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.evaluation.fake_tokens import FakeTokens
from vjepa_hub.evaluation.probe_training import CHECKPOINT, ProbeTraining, TrainingPlan, predict
from vjepa_hub.evaluation.protocols import Protocol
from vjepa_hub.heads.pooling import HeadSettings, build_head

PROTOCOL = Protocol(name="test", description="", num_segments=2, batch_size=8, num_epochs=4)
HEADS = [
    HeadSettings(pooling="attentive", learning_rate=1e-2, weight_decay=0.01),
    HeadSettings(pooling="average", learning_rate=3e-2, weight_decay=0.0),
]


def training(source=None, heads=HEADS, protocol=PROTOCOL, seed=0):
    source = source or FakeTokens()
    device = torch.device("cpu")
    return ProbeTraining(source, heads, protocol, hidden_size=24, num_attention_heads=4, seed=seed, device=device)


def weights(run, place=0):
    return {name: value.clone() for name, value in run.heads[place].head.state_dict().items()}


def require_same(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(ours[name], value), name


def test_heads_side_by_side_are_what_each_is_alone_on_one_pass_of_the_tokens(tmp_path):
    together = training()
    together.run(tmp_path / "together")
    assert together.source.num_asked == 24 * PROTOCOL.num_epochs  # not twice that
    for place, settings in enumerate(HEADS):
        alone = training(heads=[settings])
        alone.run(tmp_path / f"alone-{place}")
        require_same(weights(together, place), weights(alone))


def test_optimisation_is_the_one_written_out_here(tmp_path):
    """AdamW, cosines read one step ahead, no decay on biases and vectors, gradients clipped at 1."""
    source = FakeTokens()
    run = training(source, heads=HEADS[:1])
    run.run(tmp_path)
    head = build_head("attentive", hidden_size=24, num_attention_heads=4, num_classes=3, seed=0)
    groups = [[p for p in head.parameters() if p.ndim > 1], [p for p in head.parameters() if p.ndim <= 1]]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups])
    total = 3 * 4
    for step, requests in enumerate(batch for epoch in range(4) for batch in run.plan.batches(epoch)):
        curve = 0.5 * (1 + math.cos(math.pi * (step + 1) / total))
        for group, decay in zip(optimizer.param_groups, (1e-6 + (0.01 - 1e-6) * curve, 0.0), strict=True):
            group["lr"], group["weight_decay"] = 1e-2 * curve, decay
        indices = [request.index for request in requests]
        tokens = source.tokens[indices].half().float()[:, 0].flatten(1, 2)
        loss = F.cross_entropy(head(tokens), torch.from_numpy(source.labelled.labels[indices]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
    for name, value in head.state_dict().items():
        torch.testing.assert_close(run.heads[0].head.state_dict()[name], value, atol=2e-5, rtol=1e-4, msg=name)


def test_every_video_is_seen_once_in_an_epoch_in_another_order_each_time():
    plan = TrainingPlan(num_videos=10, batch_size=4, num_epochs=3, seed=0)
    assert (plan.steps_per_epoch, plan.total_steps) == (3, 9)
    batches = [batch for epoch in range(3) for batch in plan.batches(epoch)]
    epochs = [[request.index for batch in batches[3 * k : 3 * k + 3] for request in batch] for k in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert all(first != second for first, second in pairwise(epochs))
    assert [request.position for batch in batches for request in batch] == list(range(30))


def test_shares_of_the_processes_are_the_batch_of_one():
    plan = TrainingPlan(num_videos=9, batch_size=4, num_epochs=2, seed=0)
    shares = [plan.batches(1, rank=rank, num_processes=3) for rank in range(3)]
    for whole, *parts in zip(plan.batches(1), *shares, strict=True):
        assert sorted(request for part in parts for request in part) == sorted(whole)
    assert shares[1][2] == []  # one video is left for the last step of an epoch


def test_parts_that_fit_into_memory_change_nothing(tmp_path):
    whole, parts = training(), training()
    whole.videos_per_pass, parts.videos_per_pass = 100, 3
    whole.run(tmp_path / "whole")
    parts.run(tmp_path / "parts")
    tokens = FakeTokens().tokens[:, 0].flatten(1, 2)
    # Not the weights: the keys' bias has no gradient but rounding, which AdamW blows up
    with torch.no_grad():
        torch.testing.assert_close(parts.heads[0].head(tokens), whole.heads[0].head(tokens), atol=1e-3, rtol=1e-3)
    assert np.allclose(whole.losses, parts.losses, rtol=1e-4)


def test_interrupted_training_goes_on_as_if_nothing_had_been(tmp_path):
    whole = training()
    whole.run(tmp_path / "whole")
    stopped = training()

    def stop(what, done, total):
        if done == 8:  # in the third epoch, of which the first step is lost
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.run(tmp_path / "stopped", progress=stop)
    resumed = training()
    resumed.run(tmp_path / "stopped")
    assert resumed.losses == whole.losses
    for place in range(len(HEADS)):
        require_same(weights(resumed, place), weights(whole, place))


def test_checkpoint_of_other_settings_is_refused(tmp_path):
    training().run(tmp_path)
    with pytest.raises(ValueError, match="other settings"):
        training(seed=1).run(tmp_path)
    assert (tmp_path / CHECKPOINT).is_file()


def test_unreadable_videos_have_no_part_in_training_and_are_counted(tmp_path):
    lost = (3, 4)
    run = training(FakeTokens(unreadable=lost), heads=HEADS[:1])
    other = FakeTokens(unreadable=lost)
    other.tokens[list(lost)] = -50.0
    again = training(other, heads=HEADS[:1])
    run.run(tmp_path / "a")
    again.run(tmp_path / "b")
    require_same(weights(run), weights(again))
    assert run.num_unreadable == 2 * PROTOCOL.num_epochs
    assert all(math.isfinite(loss) for epoch in run.losses for loss in epoch)


def test_a_step_without_a_readable_video_teaches_nothing(tmp_path):
    run = training(FakeTokens(8, unreadable=tuple(range(8))), heads=HEADS[:1])
    before = weights(run)
    run.run(tmp_path)
    require_same(weights(run), before)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_head(tmp_path):
    source = FakeTokens()
    source.tokens[0] = math.nan
    with pytest.raises(FloatingPointError, match=r"attentive, learning rate 0\.01.*lower its learning rate"):
        training(source).run(tmp_path)


def test_probe_learns_what_the_tokens_tell(tmp_path):
    run = training(protocol=PROTOCOL.with_values(num_epochs=20))
    run.run(tmp_path)
    found = predict(FakeTokens(), [run.heads[0].head.eval()], PROTOCOL)
    assert (found.probabilities[0].argmax(1) == FakeTokens().labelled.labels).mean() > 0.9
    assert run.losses[-1][0] < 0.5 * run.losses[0][0]


@pytest.mark.parametrize("attends", [True, False])
def test_probabilities_are_means_over_views_and_unattended_segments(attends):
    source = FakeTokens(5, num_views=3, num_segments=2, unreadable=(1,))
    protocol = Protocol(name="t", description="", num_segments=2, num_views=3, attends_across_segments=attends)
    head = build_head("attentive", hidden_size=24, num_attention_heads=4, num_classes=3, seed=0).eval()
    found = predict(source, [head], protocol, batch_size=2)
    for video in range(5):
        views = source.tokens[video].half().float()
        parts = [view.flatten(0, 1) for view in views] if attends else list(views.flatten(0, 1))
        with torch.no_grad():
            expected = torch.stack([head(part[None])[0].softmax(-1) for part in parts]).mean(0)
        values = np.zeros(3) if video == 1 else expected.numpy()
        np.testing.assert_allclose(found.probabilities[0][video], values, atol=1e-6)
    assert found.is_readable.tolist() == [True, False, True, True, True]


def test_no_head_is_refused():
    with pytest.raises(ValueError, match="no head"):
        training(heads=[])
