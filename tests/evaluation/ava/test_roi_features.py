import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

from vjepa_hub import VJEPAConfig, VJEPAModel
from vjepa_hub.core.distributed import Processes
from vjepa_hub.data.clip_order import ClipRequest
from vjepa_hub.evaluation.ava.boxes import KeyFrameId
from vjepa_hub.evaluation.ava.key_frames import KeyFrame, KeyFrameClip
from vjepa_hub.evaluation.ava.protocol import LocalisationProtocol
from vjepa_hub.evaluation.ava.roi_features import BoxFeatures, LayerFeatures, mirror_boxes, pool_boxes
from vjepa_hub.evaluation.tokens import EncodingSettings

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
    """Key frames with two boxes each; the clips are noise. `broken` cannot be read."""

    crop_size, mean, std, start_second, protocol = 32, (0.0,) * 3, (1.0,) * 3, 0.0, PROTOCOL

    def __init__(self, num: int = 5, *, broken: tuple[int, ...] = (), stop_at: int = -1):
        boxes = np.array([[0, 0, 0.5, 1], [0.25, 0.25, 1, 0.75]], dtype=np.float32)
        actions = np.eye(3, dtype=bool)[:2]
        self.key_frames = [KeyFrame(KeyFrameId("v", place), boxes, actions) for place in range(num)]
        self.broken, self.stop_at, self.read = broken, stop_at, []

    def __len__(self):
        return len(self.key_frames)

    def __getitem__(self, place):
        if place == self.stop_at:
            raise KeyboardInterrupt
        self.read.append(place)
        clip = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(place))
        return KeyFrameClip(place, clip, place not in self.broken)

    def stamp(self, video_id):
        return "unchanged"


def stored(features, dataset, folder, *, flip_probability=0.0, **encoding) -> BoxFeatures:
    settings, device = EncodingSettings(**{"clips_per_pass": 2, **encoding}), torch.device("cpu")
    return BoxFeatures(folder, features, dataset, settings, flip_probability=flip_probability, device=device)


def values_of(source, places, position=0) -> torch.Tensor:
    (batch,) = source.batches([[ClipRequest(position + number, place) for number, place in enumerate(places)]])
    return batch.tokens[:, 0, 0, 0].float()


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


def test_layers_of_each_generation_go_through_the_norms_of_their_levels(family_config, small_clip):
    torch.manual_seed(0)
    family_model = VJEPAModel(family_config).eval()
    for norm in family_model.encoder.level_norms:
        norm.weight.data += 0.5
    maps = LayerFeatures(family_model, (1, 2))(small_clip)
    with torch.no_grad():
        levels = family_model.encoder(small_clip, None, [0, 1]).feature_levels
    for found, level in zip(maps.split(48, dim=1), levels, strict=True):
        torch.testing.assert_close(found, level.unflatten(1, (2, 4, 4)).mean(dim=1).permute(0, 3, 1, 2))


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


@pytest.mark.parametrize(("probability", "is_mirrored"), [(0.0, False), (1.0, True)])
def test_stored_features_are_those_of_each_box_or_of_its_mirror_image(features, tmp_path, probability, is_mirrored):
    dataset = Clips()
    source = stored(features, dataset, tmp_path, flip_probability=probability)
    source.fill()
    (batch,) = source.batches([[ClipRequest(0, 3), ClipRequest(1, 1)]])
    assert batch.indices.tolist() == [6, 7, 2, 3]
    assert batch.labels.tolist() == [[True, False, False], [False, True, False]] * 2
    for number, place in enumerate((3, 1)):
        clip, boxes = dataset[place].pixel_values_videos[None], torch.from_numpy(dataset.key_frames[place].boxes)
        if is_mirrored:
            clip, boxes = clip.flip(-1), mirror_boxes(boxes)
        expected = pool_boxes(features(clip), [boxes], roi_size=3)
        got = batch.tokens[2 * number : 2 * number + 2, 0, 0, 0].float()
        torch.testing.assert_close(got, expected, atol=2e-3, rtol=1e-3)


def test_mirroring_depends_on_the_position_in_the_run_alone(features, tmp_path):
    source = stored(features, Clips(1), tmp_path, flip_probability=0.5)
    source.fill()
    seen = [values_of(source, [0], position) for position in range(20)]
    assert all(torch.equal(values_of(source, [0], position), seen[position]) for position in range(20))
    assert 4 < sum(torch.equal(values, seen[0]) for values in seen) < 16


def test_resumed_filling_equals_an_uninterrupted_one(features, tmp_path):
    whole = stored(features, Clips(broken=(1,)), tmp_path / "whole", flip_probability=0.5)
    whole.fill()
    with pytest.raises(KeyboardInterrupt):
        stored(features, Clips(broken=(1,), stop_at=4), tmp_path / "stopped", flip_probability=0.5).fill()
    dataset = Clips(broken=(1,))
    resumed = stored(features, dataset, tmp_path / "stopped", flip_probability=0.5)
    resumed.fill()
    assert dataset.read == [1, 4]  # what could not be read is tried again
    assert torch.equal(values_of(resumed, [0, 2, 3, 4]), values_of(whole, [0, 2, 3, 4]))
    assert resumed.is_readable.tolist() == whole.is_readable.tolist() == [True, False, True, True, True]


def test_boxes_of_unreadable_key_frames_are_marked(features, tmp_path):
    source = stored(features, Clips(broken=(0,)), tmp_path)
    source.fill()
    (batch,) = source.batches([[ClipRequest(0, 0), ClipRequest(1, 1)]])
    assert batch.is_readable.tolist() == [False, False, True, True]


def test_features_of_other_settings_boxes_or_weights_are_not_taken_for_these(features, model, tmp_path):
    others = [Clips(), Clips(4), Clips()]
    others[0].protocol = PROTOCOL.with_values(frame_step=2)
    others[2].stamp = lambda video_id: "changed"
    sources = [stored(features, clips, tmp_path) for clips in (Clips(), *others)]
    sources += [stored(LayerFeatures(model, (3, 4)), Clips(), tmp_path)]
    sources += [stored(LayerFeatures(VJEPAModel(model.config).eval(), (2, 4)), Clips(), tmp_path)]
    rotary = VJEPAModel(VJEPAConfig(**{**model.config.to_diff_dict(), "position_embedding": "rotary"})).eval()
    sources += [stored(LayerFeatures(rotary, (2, 4)), Clips(), tmp_path)]
    tiled = VJEPAModel(VJEPAConfig(**{**model.config.to_diff_dict(), "position_embedding": "rotary_tiled"})).eval()
    tiled.load_state_dict(rotary.state_dict())
    sources += [stored(LayerFeatures(tiled, (2, 4)), Clips(), tmp_path)]
    sources += [stored(features, Clips(), tmp_path, flip_probability=0.5)]
    sources += [stored(features, Clips(), tmp_path, dtype="bfloat16")]
    assert len({source.store.folder for source in sources}) == len(sources)
    assert stored(features, Clips(), tmp_path, clips_per_pass=5).store.folder == sources[0].store.folder


def test_nothing_readable_and_nothing_with_boxes_are_refused(features, tmp_path):
    with pytest.raises(ValueError, match="none of 2 key frames can be read"):
        stored(features, Clips(2, broken=(0, 1)), tmp_path).fill()
    with pytest.raises(ValueError, match="no key frame has boxes"):
        stored(features, Clips(0), tmp_path)


def test_features_that_are_not_finite_stop_the_run(model, tmp_path):
    broken = VJEPAModel(model.config).eval()
    torch.nn.init.constant_(broken.encoder.layernorm.weight, float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        stored(LayerFeatures(broken, (4,)), Clips(), tmp_path).fill()


def test_workers_and_processes_give_the_same_features(features, tmp_path):
    class Second(Processes):
        def wait(self) -> None:
            pass

    class First(Processes):
        def wait(self) -> None:
            stored(features, Clips(), tmp_path / "two").fill(processes=Second(1, 2))

    one, two = stored(features, Clips(), tmp_path / "one"), stored(features, Clips(), tmp_path / "two", num_workers=2)
    one.fill()
    two.fill(processes=First(0, 2))
    assert torch.equal(values_of(one, range(5)), values_of(two, range(5)))


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
