import numpy as np
import pytest
import torch

from vjepa_hub.evaluation.ava.boxes import KeyFrameBoxes, KeyFrameId, read_detections
from vjepa_hub.evaluation.ava.key_frames import KeyFrame
from vjepa_hub.evaluation.ava.protocol import LocalisationProtocol
from vjepa_hub.evaluation.ava.roi_features import BoxFeatures
from vjepa_hub.evaluation.ava.training import (
    RoIActionHead,
    detect_actions,
    evaluate_localisation,
    learning_rate_at,
    train_localisation,
)

NUM_FEATURES = 6
PROTOCOL = LocalisationProtocol(
    num_classes=3, batch_size=4, num_epochs=12, learning_rate=0.1, num_warmup_epochs=1, flip_probability=0.5
)


def make_key_frames(num: int = 16) -> list[KeyFrame]:
    """Key frames with 0, 1 or 2 boxes, of random actions."""
    generator = np.random.default_rng(0)
    frames = []
    for second in range(num):
        lefts = np.arange(second % 3)[:, None] * 0.5
        boxes = np.hstack([lefts, lefts * 0, lefts + 0.4, lefts * 0 + 1]).astype(np.float32)
        labels = generator.random((len(boxes), 3)) < 0.4
        frames.append(KeyFrame(KeyFrameId("v", second), boxes, labels))
    return frames


def make_features(key_frames: list[KeyFrame], *, failures: dict[int, str] | None = None) -> BoxFeatures:
    """Features that show the actions under noise."""
    labels = np.concatenate([frame.labels for frame in key_frames]).astype(np.float32)
    noise = np.random.default_rng(1).normal(0, 0.3, (len(labels), 2, NUM_FEATURES))
    signal = np.hstack([labels, 1 - labels])[:, None]
    first_boxes = np.cumsum([0, *(len(frame.boxes) for frame in key_frames)])
    return BoxFeatures((signal + noise).astype(np.float16), first_boxes, failures or {}, "made up")


def as_annotations(key_frames: list[KeyFrame]) -> KeyFrameBoxes:
    rows = [
        (place, box, action + 1)
        for place, frame in enumerate(key_frames)
        for box, actions in zip(frame.boxes, frame.labels, strict=True)
        for action in np.flatnonzero(actions)
    ]
    places, boxes, actions = zip(*rows, strict=True)
    ids = tuple(frame.id for frame in key_frames)
    return KeyFrameBoxes(ids, np.array(places), np.stack(boxes).astype(float), np.array(actions), np.ones(len(rows)))


@pytest.fixture(scope="module")
def key_frames() -> list[KeyFrame]:
    return make_key_frames()


@pytest.fixture(scope="module")
def features(key_frames) -> BoxFeatures:
    return make_features(key_frames)


def weights_of(head: RoIActionHead) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in head.parameters()])


def test_training_lowers_the_loss_and_lifts_the_average_precision(key_frames, features, tmp_path):
    trained = train_localisation(features, key_frames, PROTOCOL, output_dir=tmp_path)
    assert len(trained.losses) == 12
    assert trained.losses[-1] < 0.5 * trained.losses[0]
    untrained = RoIActionHead(NUM_FEATURES, 3, generator=torch.Generator().manual_seed(0))
    options = {"output_dir": tmp_path, "class_ids": (1, 2, 3)}
    before = evaluate_localisation(untrained, features, key_frames, as_annotations(key_frames), **options)
    after = evaluate_localisation(trained.head, features, key_frames, as_annotations(key_frames), **options)
    assert after.mean_average_precision > 0.95 > before.mean_average_precision + 0.1


def test_resumed_training_equals_an_uninterrupted_one(key_frames, features, tmp_path):
    whole = train_localisation(features, key_frames, PROTOCOL, output_dir=tmp_path / "whole")

    def stop(stage, done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_localisation(features, key_frames, PROTOCOL, output_dir=tmp_path / "stopped", progress=stop)
    epochs = []
    resumed = train_localisation(
        features,
        key_frames,
        PROTOCOL,
        output_dir=tmp_path / "stopped",
        progress=lambda stage, done, total: epochs.append(done),
    )
    assert epochs == list(range(6, 13))
    assert resumed.losses == whole.losses
    assert torch.equal(weights_of(resumed.head), weights_of(whole.head))


def test_finished_training_is_not_repeated(key_frames, features, tmp_path):
    first = train_localisation(features, key_frames, PROTOCOL, output_dir=tmp_path)
    again = train_localisation(features, key_frames, PROTOCOL, output_dir=tmp_path, progress=pytest.fail)
    assert torch.equal(weights_of(first.head), weights_of(again.head))


def test_seed_decides_the_head(key_frames, features, tmp_path):
    heads = [
        train_localisation(features, key_frames, PROTOCOL, output_dir=tmp_path / str(place), seed=seed).head
        for place, seed in enumerate((3, 3, 4))
    ]
    assert torch.equal(weights_of(heads[0]), weights_of(heads[1]))
    assert not torch.equal(weights_of(heads[0]), weights_of(heads[2]))


def test_head_of_other_settings_labels_or_features_is_not_gone_on_with(key_frames, features, tmp_path):
    train_localisation(features, key_frames, PROTOCOL, output_dir=tmp_path)
    faster = PROTOCOL.with_values(learning_rate=0.2)
    relabelled = [KeyFrame(frame.id, frame.boxes, ~frame.labels) for frame in key_frames]
    others = BoxFeatures(features.values, features.first_boxes, {}, "others")
    with pytest.raises(ValueError, match=r"learning_rate is 0\.1 there and 0\.2 now"):
        train_localisation(features, key_frames, faster, output_dir=tmp_path)
    with pytest.raises(ValueError, match="labels is"):
        train_localisation(features, relabelled, PROTOCOL, output_dir=tmp_path)
    with pytest.raises(ValueError, match="features is"):
        train_localisation(others, key_frames, PROTOCOL, output_dir=tmp_path)


@pytest.mark.parametrize(("probability", "view"), [(0.0, 0), (1.0, 1)])
def test_mirrored_view_is_trained_on_as_often_as_the_protocol_says(key_frames, features, tmp_path, probability, view):
    only = features.values.copy()
    only[:, 1 - view] = np.nan  # would make the loss NaN
    masked = BoxFeatures(only, features.first_boxes, {}, "masked")
    protocol = PROTOCOL.with_values(flip_probability=probability, num_epochs=1)
    assert np.isfinite(train_localisation(masked, key_frames, protocol, output_dir=tmp_path).losses).all()


def test_each_epoch_sees_all_key_frames_in_another_order(key_frames, features, tmp_path, monkeypatch):
    seen, read = [], BoxFeatures.read
    monkeypatch.setattr(
        BoxFeatures, "read", lambda self, places, views: seen.extend(places) or read(self, places, views)
    )
    protocol = PROTOCOL.with_values(num_epochs=2)
    train_localisation(features, key_frames, protocol, output_dir=tmp_path)
    usable = features.usable_key_frames().tolist()
    first, second = seen[: len(usable)], seen[len(usable) :]
    assert sorted(first) == sorted(second) == usable
    assert first != second
    assert first != usable


def test_unreadable_key_frames_are_not_trained_on(key_frames, tmp_path):
    features = make_features(key_frames, failures={4: "broken"})
    features.values[features.first_boxes[4] : features.first_boxes[5]] = np.nan
    assert np.isfinite(train_localisation(features, key_frames, PROTOCOL, output_dir=tmp_path).losses).all()


def test_loss_that_is_not_finite_stops_the_training(key_frames, features, tmp_path):
    broken = BoxFeatures(np.full_like(features.values, np.inf), features.first_boxes, {}, "broken")
    with pytest.raises(ValueError, match="in step 0; lower learning_rate"):
        train_localisation(broken, key_frames, PROTOCOL, output_dir=tmp_path)
    assert not (tmp_path / "head.pt").exists()


def test_nothing_to_train_on_is_refused(key_frames, tmp_path):
    without_boxes = [frame for frame in key_frames if not len(frame.boxes)]
    with pytest.raises(ValueError, match="none of the 6 training key frames has boxes"):
        train_localisation(make_features(without_boxes), without_boxes, PROTOCOL, output_dir=tmp_path)


def test_learning_rate_warms_up_linearly_and_falls_along_a_cosine():
    protocol = LocalisationProtocol()
    rates = [learning_rate_at(step, steps_per_epoch=10, protocol=protocol) for step in range(300)]
    assert rates[0] == protocol.warmup_learning_rate
    assert rates[10] == pytest.approx((1e-6 + 1e-4) / 2)
    assert rates[20] == max(rates) == 1e-4
    assert rates[-1] == pytest.approx(1e-6)
    middle = (20 + 299) / 2
    assert (rates[int(middle)] + rates[int(middle) + 1]) / 2 == pytest.approx((1e-4 + 1e-6) / 2)


def test_detections_are_the_highest_scores_of_each_key_frame(key_frames, features):
    head = RoIActionHead(NUM_FEATURES, 3, generator=torch.Generator().manual_seed(0))
    found = detect_actions(head, features, key_frames, class_ids=(1, 3), max_detections=3, batch_size=3)
    everything = detect_actions(head, features, key_frames, class_ids=(1, 3))
    assert set(found.class_ids) == {1, 3}
    for place, frame in enumerate(key_frames):
        scores = np.sort(everything.scores[everything.frame_indices == place])[::-1]
        assert len(scores) == 2 * len(frame.boxes)
        kept = np.sort(found.scores[found.frame_indices == place])[::-1]
        np.testing.assert_allclose(kept, scores[:3], rtol=1e-6)  # batches of other sizes may round otherwise


def test_scores_belong_to_their_boxes_and_actions(key_frames, features):
    head = RoIActionHead(NUM_FEATURES, 3, generator=torch.Generator().manual_seed(0))
    found = detect_actions(head, features, key_frames, class_ids=(2, 3))
    place = 5
    values, _ = features.read(np.array([place]), np.array([0]))
    scores = head(values).sigmoid().detach()
    rows = np.flatnonzero(found.frame_indices == place)
    assert len(rows) == 4
    for row in rows:
        (box,) = np.flatnonzero((key_frames[place].boxes == found.boxes[row].astype(np.float32)).all(axis=1))
        assert found.scores[row] == pytest.approx(scores[box, found.class_ids[row] - 1].item())


def test_unreadable_key_frames_stay_in_the_denominator(key_frames, tmp_path):
    annotations = as_annotations(key_frames)
    head = train_localisation(make_features(key_frames), key_frames, PROTOCOL, output_dir=tmp_path).head
    results = [
        evaluate_localisation(
            head,
            make_features(key_frames, failures=failures),
            key_frames,
            annotations,
            output_dir=tmp_path,
            class_ids=(1, 2, 3),
        )
        for failures in ({}, dict.fromkeys(range(8), "broken"))
    ]
    assert results[0].num_ground_truths == results[1].num_ground_truths
    assert results[1].mean_average_precision < 0.75 * results[0].mean_average_precision


def test_nothing_detected_is_a_result_of_zero(key_frames, tmp_path):
    features = make_features(key_frames, failures=dict.fromkeys(range(16), "broken"))
    head = RoIActionHead(NUM_FEATURES, 3)
    result = evaluate_localisation(
        head, features, key_frames, as_annotations(key_frames), output_dir=tmp_path, class_ids=(1, 2, 3)
    )
    assert result.mean_average_precision == 0
    assert len(read_detections(tmp_path / "detections.csv")) == 0
