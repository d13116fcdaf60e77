import json

import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

from vjepa_hub import VJEPAConfig, VJEPAModel
from vjepa_hub.evaluation.ava.boxes import KeyFrameId
from vjepa_hub.evaluation.ava.key_frames import KeyFrame, KeyFrameItem
from vjepa_hub.evaluation.ava.protocol import LocalisationProtocol
from vjepa_hub.evaluation.ava.roi_features import LayerFeatures, extract_box_features, mirror_boxes, pool_boxes

PROTOCOL = LocalisationProtocol(frames_per_clip=4, roi_size=3)


@pytest.fixture(scope="module")
def model() -> VJEPAModel:
    config = VJEPAConfig(
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        patch_size=8,
        crop_size=32,
        frames_per_clip=4,
        pred_hidden_size=24,
        pred_num_hidden_layers=1,
        pred_num_attention_heads=2,
    )
    torch.manual_seed(0)
    return VJEPAModel(config).eval()


class Clips(torch.utils.data.Dataset):
    """Key frames with two boxes each; the clips are noise. `broken` cannot be read, `empty` has no boxes."""

    crop_size, mean, std, start_second, protocol = 32, (0.0,) * 3, (1.0,) * 3, 0.0, PROTOCOL

    def __init__(self, num: int = 5, *, broken: tuple[int, ...] = (), empty: tuple[int, ...] = (), stop_at: int = -1):
        boxes = np.array([[0, 0, 0.5, 1], [0.25, 0.25, 1, 0.75]], dtype=np.float32)
        self.key_frames = [
            KeyFrame(KeyFrameId("v", place), boxes[: 0 if place in empty else 2], np.zeros((2, 3), dtype=bool))
            for place in range(num)
        ]
        self.broken, self.stop_at, self.read = broken, stop_at, []

    def __len__(self):
        return len(self.key_frames)

    def __getitem__(self, place):
        if place == self.stop_at:
            raise KeyboardInterrupt
        self.read.append(place)
        frame = self.key_frames[place]
        clip = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(place))
        cause = "it is broken" if place in self.broken else None
        boxes, labels = torch.from_numpy(frame.boxes), torch.from_numpy(frame.labels)
        return KeyFrameItem(place, None if cause else clip, boxes, labels, cause)


@pytest.fixture
def features(model) -> LayerFeatures:
    return LayerFeatures(model, (2, 4))


def test_last_layer_is_the_encoders_output_and_the_others_lie_before_it(model):
    clips = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    maps = LayerFeatures(model, (2, 4))(clips)
    assert maps.shape == (2, 48, 4, 4)
    with torch.no_grad():
        tokens = model.get_vision_features(clips).unflatten(1, (2, 4, 4))
        hidden = model.encoder.embeddings(clips, None, torch.float32)
        for layer in model.encoder.layer[:2]:
            hidden = layer(hidden)
        second = model.encoder.layernorm(hidden).unflatten(1, (2, 4, 4))
    torch.testing.assert_close(maps[:, 24:], tokens.mean(dim=1).permute(0, 3, 1, 2))
    torch.testing.assert_close(maps[:, :24], second.mean(dim=1).permute(0, 3, 1, 2))


def test_encoder_gets_no_gradients(features):
    maps = features(torch.randn(1, 4, 3, 32, 32))
    assert not maps.requires_grad
    assert not any(parameter.requires_grad for parameter in features.parameters())


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 5), (3, 1), (5, 7)])
def test_box_of_a_token_takes_that_token_and_boxes_elsewhere_do_not(row, column):
    maps = torch.zeros(1, 1, 6, 8)
    maps[0, 0, row, column] = 1
    x, y = torch.meshgrid(torch.arange(8), torch.arange(6), indexing="xy")
    boxes = torch.stack([x / 8, y / 6, (x + 1) / 8, (y + 1) / 6], dim=-1).flatten(0, 1)
    pooled = pool_boxes(maps, [boxes], roi_size=1).view(6, 8)
    assert pooled.argmax() == row * 8 + column
    assert pooled[row, column] == 1
    is_near = (y - row).abs() + (x - column).abs() <= 2
    assert (pooled[~is_near] == 0).all()


def test_box_takes_the_maximum_over_its_tokens():
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    pooled = pool_boxes(maps, [torch.tensor([[0, 0, 0.5, 0.5], [0, 0, 1, 1]])], roi_size=4)
    assert pooled[0] < pooled[1] == 15


def test_boxes_belong_to_their_maps():
    maps = torch.stack([torch.full((1, 4, 4), value) for value in (1.0, 2.0, 3.0)])
    whole = torch.tensor([[0.0, 0, 1, 1]])
    pooled = pool_boxes(maps, [whole, whole[:0], whole.expand(2, -1)], roi_size=2)
    assert pooled[:, 0].tolist() == [1, 3, 3]


def test_boxes_over_the_edge_are_cut_off():
    maps = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    over, cut = torch.tensor([[-0.5, 0.2, 0.5, 1.3]]), torch.tensor([[0, 0.2, 0.5, 1]])
    assert torch.equal(pool_boxes(maps, [over], roi_size=3), pool_boxes(maps, [cut], roi_size=3))


def test_mean_over_time_may_be_taken_before_aligning():
    steps = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))  # two time steps of a clip
    box = torch.tensor([[0.1, 0.2, 0.8, 0.9]])
    aligned = roi_align(steps, [box * 4, box * 4], output_size=3, aligned=True)
    expected = aligned.mean(dim=0).amax(dim=(-2, -1))
    torch.testing.assert_close(pool_boxes(steps.mean(dim=0, keepdim=True), [box], roi_size=3)[0], expected)


def test_mirrored_box_holds_the_mirrored_object():
    picture = torch.zeros(10, 20)
    picture[2:5, 3:9] = 1
    box = torch.tensor([3 / 20, 2 / 10, 9 / 20, 5 / 10])
    x1, y1, x2, y2 = (mirror_boxes(box) * torch.tensor([20, 10, 20, 10])).round().int().tolist()
    assert x1 < x2
    assert picture.flip(-1)[y1:y2, x1:x2].all()
    assert picture.flip(-1).sum() == (y2 - y1) * (x2 - x1)
    torch.testing.assert_close(mirror_boxes(mirror_boxes(box)), box)


def test_stored_features_are_those_of_each_box_and_its_mirror_image(features, tmp_path):
    dataset = Clips()
    stored = extract_box_features(features, dataset, tmp_path, has_mirrored=True, batch_size=2)
    values, rows = stored.read(np.array([3, 1]), np.array([0, 1]))
    assert rows.tolist() == [6, 7, 2, 3]
    for place, view, got in ((3, 0, values[:2]), (1, 1, values[2:])):
        clip, boxes = dataset[place].pixel_values_videos[None], dataset[place].boxes
        if view:
            clip, boxes = clip.flip(-1), mirror_boxes(boxes)
        torch.testing.assert_close(got, pool_boxes(features(clip), [boxes], roi_size=3), atol=2e-3, rtol=1e-3)


def test_stopped_extraction_goes_on_and_equals_an_uninterrupted_one(features, tmp_path, monkeypatch):
    monkeypatch.setattr("vjepa_hub.evaluation.ava.roi_features.SAVED_AT_ONCE", 1)
    options = {"has_mirrored": True, "batch_size": 2}
    expected = extract_box_features(features, Clips(broken=(1,)), tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        extract_box_features(features, Clips(broken=(1,), stop_at=4), tmp_path / "stopped", **options)
    resumed_dataset = Clips(broken=(1,))
    resumed = extract_box_features(features, resumed_dataset, tmp_path / "stopped", **options)
    assert resumed_dataset.read == [4]
    np.testing.assert_array_equal(resumed.values, expected.values)
    assert (resumed.failures, resumed.fingerprint) == (expected.failures, expected.fingerprint)


def test_features_of_other_settings_are_not_taken_for_these(features, model, tmp_path):
    extract_box_features(features, Clips(), tmp_path)
    other = Clips()
    other.protocol = PROTOCOL.with_values(frame_step=2)
    with pytest.raises(ValueError, match="frame_step is 4 there and 2 now"):
        extract_box_features(features, other, tmp_path)
    with pytest.raises(ValueError, match="layers is"):
        extract_box_features(LayerFeatures(model, (3, 4)), Clips(), tmp_path)
    with pytest.raises(ValueError, match="key frames and boxes is"):
        extract_box_features(features, Clips(4), tmp_path)


def test_features_of_other_weights_are_not_taken_for_these(features, model, tmp_path):
    extract_box_features(features, Clips(), tmp_path)
    changed = VJEPAModel(model.config).eval()
    with pytest.raises(ValueError, match="encoder is"):
        extract_box_features(LayerFeatures(changed, (2, 4)), Clips(), tmp_path)


def test_unreadable_key_frames_and_those_without_boxes_are_not_usable(features, tmp_path):
    dataset = Clips(broken=(0, 3), empty=(2,))
    stored = extract_box_features(features, dataset, tmp_path)
    assert stored.usable_key_frames().tolist() == [1, 4]
    assert stored.failures == {0: "it is broken", 3: "it is broken"}
    assert 2 not in dataset.read
    assert json.loads((tmp_path / "state.json").read_text())["num_done"] == 5


def test_nothing_readable_is_an_error_that_gives_the_first_cause(features, tmp_path):
    with pytest.raises(ValueError, match="none of the 2 key frames can be read, the first because: it is broken"):
        extract_box_features(features, Clips(2, broken=(0, 1)), tmp_path)


def test_features_that_are_not_finite_stop_the_run(model, tmp_path):
    broken = VJEPAModel(model.config).eval()
    torch.nn.init.constant_(broken.encoder.layernorm.weight, float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        extract_box_features(LayerFeatures(broken, (4,)), Clips(), tmp_path)


def test_half_precision_is_near_to_single(features, tmp_path):
    single = extract_box_features(features, Clips(), tmp_path / "single")
    half = extract_box_features(features, Clips(), tmp_path / "half", compute_dtype=torch.bfloat16)
    assert np.abs(single.values.astype(float) - half.values.astype(float)).max() < 0.1
    assert not np.array_equal(single.values, half.values)


def test_workers_give_the_same_features(features, tmp_path):
    one = extract_box_features(features, Clips(), tmp_path / "one", batch_size=2)
    two = extract_box_features(features, Clips(), tmp_path / "two", batch_size=2, num_workers=2)
    np.testing.assert_array_equal(one.values, two.values)


@pytest.mark.parametrize(
    ("num_hidden_layers", "layers"),
    [(24, (18, 20, 22, 24)), (32, (26, 28, 30, 32)), (2, (2,)), (12, (6, 8, 10, 12)), (5, (1, 3, 5))],
)
def test_layers_are_those_of_the_paper(num_hidden_layers, layers):
    assert LocalisationProtocol().choose_layers(num_hidden_layers) == layers


def test_layers_that_the_encoder_has_not_are_refused():
    assert LocalisationProtocol(layers=(4, 2)).choose_layers(4) == (2, 4)
    with pytest.raises(ValueError, match="from 1 to 4"):
        LocalisationProtocol(layers=(1, 5)).choose_layers(4)
