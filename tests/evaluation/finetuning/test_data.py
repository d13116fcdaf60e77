"""Items, batches, loss and metrics of fine-tuning."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import EvalPrediction

from tests.evaluation.finetuning_sets import NUM_FRAMES, SIZE, UNCHANGED, labelled_set
from vjepa_hub.data.quarantine import NoReadableVideoError
from vjepa_hub.evaluation.clips import ClipFormat, EvaluationClips, TrainingClips
from vjepa_hub.evaluation.finetuning.data import (
    UNREADABLE,
    FineTuningClips,
    FineTuningCollator,
    MixingSettings,
    check_sets,
    classification_loss,
    classification_metrics,
)
from vjepa_hub.evaluation.protocols import Augmentation, Protocol

FORMAT = ClipFormat(crop_size=SIZE, frames_per_clip=NUM_FRAMES)
CROPPED = Augmentation(scale=(0.2, 0.6), auto_augment=None, erase_probability=0.0)


def _videos(num: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (NUM_FRAMES, SIZE, SIZE, 3), dtype=np.uint8) for _ in range(num)]


def _clips(labelled, *, is_training=True, augmentation=UNCHANGED, **fields) -> FineTuningClips:
    protocol = Protocol(name="test", description="", frame_step=1, augmentation=augmentation, **fields)
    made = TrainingClips(labelled, protocol, FORMAT) if is_training else EvaluationClips(labelled, protocol, FORMAT)
    return FineTuningClips(made)


def _items(pixels: torch.Tensor, labels, *, is_training=True) -> list[dict]:
    return [
        {"pixel_values_videos": clip, "labels": label, "is_training": is_training}
        for clip, label in zip(pixels, labels, strict=True)
    ]


# --- items ---


def test_a_video_looks_different_in_each_epoch_and_the_same_for_the_same_seed():
    clips = _clips(labelled_set(_videos(1), [0]), augmentation=CROPPED)
    torch.manual_seed(0)
    first, second = clips[0]["pixel_values_videos"], clips[0]["pixel_values_videos"]
    torch.manual_seed(0)
    again = clips[0]["pixel_values_videos"]
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize(("num_segments", "axes"), [(1, ()), (2, (2,))])
def test_a_single_segment_has_no_axis_of_its_own(is_training, num_segments, axes):
    clips = _clips(labelled_set(_videos(1), [1]), is_training=is_training, num_segments=num_segments)
    item = clips[0]
    assert item["pixel_values_videos"].shape == (*axes, NUM_FRAMES, 3, SIZE, SIZE)
    assert (item["labels"], item["is_training"]) == (1, is_training)


def test_an_unreadable_training_video_is_replaced_with_its_label():
    clips = _clips(labelled_set([None, *_videos(1)], [0, 1]))
    torch.manual_seed(0)
    assert [clips[0]["labels"] for _ in range(5)] == [1] * 5


def test_training_stops_where_nothing_can_be_read():
    with pytest.raises(NoReadableVideoError, match="none of the 10 training videos"):
        _clips(labelled_set([None, None], [0, 1]))[0]


def test_an_unreadable_validation_video_keeps_its_place():
    clips = _clips(labelled_set([None, *_videos(1)], [0, 1]), is_training=False)
    assert [clips[number]["labels"] for number in range(2)] == [UNREADABLE, 1]


def test_several_views_and_empty_sets_are_refused():
    with pytest.raises(ValueError, match="3 views"):
        _clips(labelled_set(_videos(1), [0]), is_training=False, num_views=3)
    with pytest.raises(ValueError, match="the training set has no videos"):
        _clips(labelled_set([], []))


# --- batches ---


def _constant_clips(values, num_segments: int = 0) -> torch.Tensor:
    shape = (num_segments,) * bool(num_segments) + (NUM_FRAMES, 3, SIZE, SIZE)
    return torch.stack([torch.full(shape, float(value)) for value in values])


@pytest.mark.parametrize("num_segments", [0, 2])
@pytest.mark.parametrize("num_clips", [1, 2, 5, 8])
def test_mixup_weighs_labels_as_it_weighs_pixels(num_clips, num_segments):
    np.random.seed(0)
    labels = list(range(num_clips))  # the clip of class i is the number i everywhere: pixels tell the mixture
    batch = FineTuningCollator(num_clips, MixingSettings(mixup=1.0))(
        _items(_constant_clips(labels, num_segments), labels)
    )
    assert batch["labels"].shape == (num_clips, num_clips)
    assert batch["pixel_values_videos"].shape == _constant_clips(labels, num_segments).shape
    expected = batch["labels"] @ torch.arange(float(num_clips))
    pixels = batch["pixel_values_videos"].flatten(1)
    torch.testing.assert_close(pixels, expected[:, None].expand_as(pixels), atol=1e-4, rtol=1e-4)
    if num_clips > 1:
        assert 0 < batch["labels"][0].max() < 1  # or nothing was mixed


@pytest.mark.parametrize("num_clips", [2, 5])
def test_cutmix_takes_the_same_box_in_all_frames(num_clips):
    np.random.seed(0)
    labels = list(range(num_clips))
    batch = FineTuningCollator(num_clips, MixingSettings(cutmix=1.0))(_items(_constant_clips(labels), labels))
    clips = batch["pixel_values_videos"]  # (B, T, 3, H, W)
    assert torch.equal(clips, clips[:, :1, :1].expand_as(clips))
    is_own = clips[0, 0, 0] == 0
    assert 0 < is_own.float().mean() < 1
    torch.testing.assert_close(is_own.float().mean(), batch["labels"][0, 0])


def test_smoothing_without_mixing_leaves_the_pixels():
    pixels = torch.randn(3, NUM_FRAMES, 3, SIZE, SIZE)
    batch = FineTuningCollator(4, MixingSettings(label_smoothing=0.2))(_items(pixels, [0, 1, 2]))
    assert torch.equal(batch["pixel_values_videos"], pixels)
    assert batch["labels"][0].tolist() == pytest.approx([0.85, 0.05, 0.05, 0.05])


def test_validation_is_never_mixed():
    pixels = torch.randn(4, NUM_FRAMES, 3, SIZE, SIZE)
    collate = FineTuningCollator(3, MixingSettings(mixup=1.0, cutmix=1.0, label_smoothing=0.1))
    batch = collate(_items(pixels, [0, 1, 2, UNREADABLE], is_training=False))
    assert torch.equal(batch["pixel_values_videos"], pixels)
    assert batch["labels"].tolist() == [0, 1, 2, UNREADABLE]


@pytest.mark.parametrize(
    ("name", "value"),
    [("mixup", -1), ("cutmix", -0.1), ("mix_probability", 1.1), ("switch_probability", -1), ("label_smoothing", 1.0)],
)
def test_impossible_mixing_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        MixingSettings(**{name: value})


# --- loss ---


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def test_soft_labels_have_the_cross_entropy_of_the_distribution(logits):
    soft = torch.rand(6, 4, generator=torch.Generator().manual_seed(1)).softmax(-1)
    expected = -(soft * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(classification_loss({"logits": logits}, soft), expected)


@pytest.mark.parametrize("is_soft", [True, False])
def test_accumulated_batches_add_up_to_the_mean_of_all(logits, is_soft):
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    expected = F.cross_entropy(logits, labels)
    labels = F.one_hot(labels, 4).float() if is_soft else labels
    num_items = labels.ne(-100).sum()  # as the Trainer counts
    parts = [classification_loss({"logits": logits[part]}, labels[part], num_items) for part in ([0, 1], [2, 3, 4, 5])]
    torch.testing.assert_close(sum(parts), expected)


def test_unreadable_videos_do_not_enter_the_loss(logits):
    labels = torch.tensor([0, UNREADABLE, 2, 3, UNREADABLE, 1])
    kept = labels != UNREADABLE
    expected = F.cross_entropy(logits[kept], labels[kept])
    torch.testing.assert_close(classification_loss({"logits": logits}, labels), expected)
    nothing = classification_loss({"logits": logits}, torch.full((6,), UNREADABLE))
    assert nothing.item() == 0.0


# --- metrics ---


def test_unreadable_videos_count_as_wrong(caplog):
    logits = np.eye(6)[[0, 1, 2, 0]]
    measured = classification_metrics(EvalPrediction(logits, np.array([0, 1, UNREADABLE, 3])))
    assert measured["top1"] == 0.5
    assert measured["top5"] == 0.5  # of the others' equal scores, five are at least as good as that of class 3
    assert (measured["num_videos"], measured["num_unreadable"]) == (4, 1)
    assert "1 of 4 validation videos cannot be read" in caplog.text


def test_large_logits_are_no_error():
    measured = classification_metrics(EvalPrediction(np.array([[900.0, -900.0], [0.0, 80.0]]), np.array([0, 1])))
    assert measured["top1"] == 1.0


# --- sets ---


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (labelled_set([0, 0], [0, 1]), labelled_set([0], [0], class_names=("left", "right")), "other names"),
        (labelled_set([0, 0], [0, 1]), labelled_set([], []), "the validation set has no videos"),
        (labelled_set([], []), labelled_set([0], [0]), "the training set has no videos"),
        (labelled_set([0, 0], [0, 2]), labelled_set([0], [0]), "'video 1' of the training set has the class 2"),
        (labelled_set([0, 0], [0, 1]), labelled_set([0], [-1]), "'video 0' of the validation set has the class -1"),
        (labelled_set([0, 0], [1, 1]), labelled_set([0], [1]), "1 of 2 classes have no training video: right"),
    ],
)
def test_unsuitable_sets_are_named(train, validation, message):
    with pytest.raises(ValueError, match=message):
        check_sets(train, validation)


def test_missing_classes_can_be_allowed():
    check_sets(labelled_set([0], [1]), labelled_set([0], [0]), allow_missing_classes=True)
