import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.heads.fake_tokens import FakeBoxes, FakeTokens
from vjepa_hub.core.settings import SettingsError
from vjepa_hub.heads.optimisation import HeadOptimisation
from vjepa_hub.heads.pooling import HeadSettings, build_head
from vjepa_hub.heads.training import (
    CHECKPOINT,
    SideBySideTraining,
    TrainingPlan,
    learning_rate_at,
)

OPTIMISATION = HeadOptimisation(batch_size=8, num_epochs=4)
HEADS = [
    HeadSettings(pooling="attentive", learning_rate=1e-2, weight_decay=0.01),
    HeadSettings(pooling="average", learning_rate=3e-2, weight_decay=0.0),
]


def training(source=None, heads=HEADS, optimisation=OPTIMISATION, seed=0):
    source, width = source or FakeTokens(), {"hidden_size": 24, "num_attention_heads": 4}
    return SideBySideTraining(source, heads, optimisation, **width, seed=seed, device=torch.device("cpu"))


def weights(run, place=0):
    return {name: value.clone() for name, value in run.heads[place].head.state_dict().items()}


def require_same(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(ours[name], value), name


def test_heads_side_by_side_are_what_each_is_alone_on_one_pass_of_the_tokens(tmp_path):
    together = training()
    together.run(tmp_path / "together")
    assert together.source.num_asked == 24 * OPTIMISATION.num_epochs  # not twice that
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
        loss = F.cross_entropy(head(tokens), torch.from_numpy(source.labels[indices]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
    for name, value in head.state_dict().items():
        torch.testing.assert_close(run.heads[0].head.state_dict()[name], value, atol=2e-5, rtol=1e-4, msg=name)


def test_every_video_is_seen_once_in_an_epoch_in_another_order_each_time():
    plan = TrainingPlan(num_items=10, batch_size=4, num_epochs=3, seed=0)
    assert (plan.steps_per_epoch, plan.total_steps) == (3, 9)
    batches = [batch for epoch in range(3) for batch in plan.batches(epoch)]
    epochs = [[request.index for batch in batches[3 * k : 3 * k + 3] for request in batch] for k in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert all(first != second for first, second in pairwise(epochs))
    assert [request.position for batch in batches for request in batch] == list(range(30))


def test_shares_of_the_processes_are_the_batch_of_one():
    plan = TrainingPlan(num_items=9, batch_size=4, num_epochs=2, seed=0)
    shares = [plan.batches(1, rank=rank, num_processes=3) for rank in range(3)]
    for whole, *parts in zip(plan.batches(1), *shares, strict=True):
        assert sorted(request for part in parts for request in part) == sorted(whole)
    assert shares[1][2] == []  # one video is left for the last step of an epoch


def test_parts_that_fit_into_memory_change_nothing(tmp_path):
    whole, parts = training(), training()
    whole.items_per_pass, parts.items_per_pass = 100, 3
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
    assert run.num_unreadable == 2 * OPTIMISATION.num_epochs
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


def test_heads_learn_what_the_tokens_tell():
    run = training(optimisation=OPTIMISATION.with_values(num_epochs=20))
    tokens, labels = FakeTokens().tokens[:, 0].flatten(1, 2), torch.from_numpy(FakeTokens().labels)
    for head in run.run():
        with torch.no_grad():
            assert (head(tokens).argmax(1) == labels).float().mean() > 0.9
    assert run.losses[-1][0] < 0.5 * run.losses[0][0]


def test_several_labels_of_an_item_are_trained_by_their_binary_cross_entropies():
    source = FakeBoxes(num_segments=1)
    settings = HeadSettings(pooling="average", learning_rate=0.05, weight_decay=0.0)
    run = training(source, heads=[settings], optimisation=OPTIMISATION.with_values(batch_size=24, num_epochs=60))
    (head,) = run.run()
    labels = source.labels_of(torch.arange(24)).float()
    first = build_head("average", hidden_size=24, num_attention_heads=4, num_classes=3, seed=0)
    with torch.no_grad():
        tokens = source.tokens[:, 0, 0].half().float()
        assert run.losses[0] == [pytest.approx(F.binary_cross_entropy_with_logits(first(tokens), labels).item())]
        assert ((head(tokens) > 0) == labels.bool()).float().mean() > 0.9


def test_learning_rate_warms_up_linearly_and_falls_along_a_cosine():
    optimisation = HeadOptimisation(warmup_learning_rate=1e-6, final_learning_rate=1e-6)
    rates = [
        learning_rate_at(step, 300, num_warmup_steps=20, peak=1e-4, optimisation=optimisation) for step in range(300)
    ]
    assert rates[9] == pytest.approx((1e-6 + 1e-4) / 2)
    assert rates[19] == max(rates) == 1e-4
    assert rates[159] == pytest.approx((1e-4 + 1e-6) / 2)
    assert rates[-1] == pytest.approx(1e-6)


def test_weight_decay_without_a_final_value_is_constant():
    run = training(heads=HEADS[:1], optimisation=OPTIMISATION.with_values(final_weight_decay=None))
    run.run()
    assert [group["weight_decay"] for group in run.heads[0].optimizer.param_groups] == [0.01, 0.0]


def test_biases_are_decayed_where_the_evaluation_decays_them():
    run = training(heads=HEADS[:1], optimisation=OPTIMISATION.with_values(decays_biases=True))
    decayed, others = run.heads[0].optimizer.param_groups
    assert len(decayed["params"]) == len(list(run.heads[0].head.parameters()))
    assert others["params"] == []


def test_a_warm_up_beyond_the_run_is_refused():
    with pytest.raises(SettingsError, match=r"num_warmup_epochs is 5.*num_epochs = 4"):
        OPTIMISATION.with_values(num_warmup_epochs=5)


def test_no_head_is_refused():
    with pytest.raises(ValueError, match="no head"):
        training(heads=[])
