"""The protocols by name: their values, where these come from, and how they are changed."""

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from vjepa_hub.core.settings import SettingsError
from vjepa_hub.data.records import ClipSource, VideoContent, VideoRecord
from vjepa_hub.evaluation.ava.protocol import LocalisationProtocol
from vjepa_hub.evaluation.clips import ClipFormat, EvaluationClips
from vjepa_hub.evaluation.labelled import LabelledSet, VideoSource
from vjepa_hub.evaluation.protocols import PROTOCOLS, Augmentation, Protocol, find_protocol
from vjepa_hub.hub.registry import MODELS, find_model

ROWS = json.loads((Path(__file__).parents[1] / "reference_cases" / "clip_indices.json").read_text())
CLASSIFICATION = [name for name, protocol in PROTOCOLS.items() if isinstance(protocol, Protocol)]
OF_VIDEOS = [name for name in CLASSIFICATION if find_protocol(name).media == "video"]
OF_IMAGES = [name for name in CLASSIFICATION if find_protocol(name).media == "image"]
PLAIN = find_protocol("plain")
SETTINGS_2 = json.loads((Path(__file__).parents[1] / "reference_cases" / "v2" / "probe_settings.json").read_text())
OF_VJEPA_2 = {"coin", "diving48", "jester", "vjepa2-k400", "vjepa2-ssv2", "vjepa2-ssv2-64f", "vjepa2.1-ssv2-64f"}
OF_VJEPA_2 |= {"vjepa2-in1k", "vjepa2-in1k-18f"}
ENCODERS_2 = {"vitl": "vjepa2-vitl16", "vitg-384": "vjepa2-vitg16-384"}
ENCODERS_2_1 = {
    "vitb-384": "vjepa2.1-vitb16-384",
    "vitl-384": "vjepa2.1-vitl16-384",
    "vitg-384": "vjepa2.1-vitg16-384",
    "vitG-384": "vjepa2.1-vitgg16-384",
}


# --- values ---


def test_the_protocols_of_the_paper_and_a_plain_one_are_there():
    own = {"k400", "ssv2", "in1k", "places205", "inat21", "ava", "plain", "plain-image"}
    assert set(PROTOCOLS) == own | OF_VJEPA_2
    assert all(protocol.name == name for name, protocol in PROTOCOLS.items())


@pytest.mark.parametrize(
    ("name", "num_classes", "num_segments", "num_views", "batch_size", "weight_decay"),
    [
        ("k400", 400, 8, 3, 256, 0.01),
        ("ssv2", 174, 2, 3, 256, 0.01),
        ("in1k", 1000, 1, 1, 1024, 0.001),
        ("places205", 205, 1, 1, 1024, 0.001),
        ("inat21", 10_000, 1, 1, 1024, 0.001),
    ],
)
def test_released_protocols_have_the_released_values(
    name, num_classes, num_segments, num_views, batch_size, weight_decay
):
    protocol = find_protocol(name)
    assert protocol.num_classes == num_classes
    assert (protocol.num_segments, protocol.num_views) == (num_segments, num_views)
    assert (protocol.batch_size, protocol.weight_decay) == (batch_size, weight_decay)


@pytest.mark.parametrize("name", [name for name in CLASSIFICATION if name not in OF_VJEPA_2])
def test_every_protocol_trains_as_the_release_does(name):
    protocol = find_protocol(name)
    assert (protocol.learning_rate, protocol.final_learning_rate) == (1e-3, 0.0)
    assert (protocol.num_epochs, protocol.max_grad_norm, protocol.final_weight_decay) == (20, 1.0, 1e-6)
    assert protocol.attends_across_segments
    assert (protocol.augmentation.scale, protocol.augmentation.ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))
    assert protocol.augmentation.erase_probability == 0.25


def protocol_of_vjepa_2(configuration: str) -> Protocol:
    """The protocol that stands for a released configuration such as `eval_2_1/vitg-384/ssv2`."""
    release, encoder, dataset = configuration.split("/")
    is_large = encoder.lower() == "vitg-384"
    if dataset == "ssv2" and is_large:
        return find_protocol("vjepa2-ssv2-64f" if release == "eval" else "vjepa2.1-ssv2-64f")
    if dataset == "in1k" and is_large:
        return find_protocol("vjepa2-in1k-18f")
    return find_protocol(f"vjepa2-{dataset}" if f"vjepa2-{dataset}" in PROTOCOLS else dataset)


@pytest.mark.parametrize("configuration", SETTINGS_2)
def test_protocols_of_vjepa_2_have_every_number_of_the_released_settings(configuration):
    released, protocol = SETTINGS_2[configuration], protocol_of_vjepa_2(configuration)
    data, optimization, wrapper = (released[part] for part in ("data", "optimization", "wrapper"))
    assert protocol.num_classes == data["num_classes"]
    assert protocol.num_segments == data.get("num_segments", 1)
    assert protocol.num_views == data.get("num_views_per_segment", 1)
    assert protocol.frames_per_clip == data.get("frames_per_clip", wrapper.get("img_as_video_nframes"))
    assert protocol.frame_step == data.get("frame_step", protocol.frame_step)
    assert protocol.media == ("video" if "dataset_type" in data else "image")
    assert protocol.batch_size == released["num_devices"] * optimization["batch_size"]
    assert protocol.num_epochs == optimization["num_epochs"]
    assert [list(pair) for pair in protocol.heads] == optimization["heads"]
    first = optimization["head_of_first"]
    assert (protocol.learning_rate, protocol.weight_decay) == (first["lr"], first["weight_decay"])
    assert (protocol.final_learning_rate, protocol.num_warmup_epochs) == (first["final_lr"], first["warmup"])
    final = protocol.final_weight_decay
    assert (protocol.weight_decay if final is None else final) == first["final_weight_decay"]
    assert protocol.num_pooler_layers == released["classifier"]["num_probe_blocks"]
    assert protocol.num_pooler_heads == released["classifier"]["num_heads"]
    assert protocol.decays_biases
    assert protocol.max_grad_norm is None
    release, encoder, _ = configuration.split("/")
    config = find_model((ENCODERS_2 if release == "eval" else ENCODERS_2_1)[encoder]).config()
    layers = protocol.choose_feature_layers(config.num_hidden_layers, config.feature_levels)
    assert layers == (tuple(wrapper["out_layers"]) if "out_layers" in wrapper else None)
    assert config.crop_size == data["resolution"]


def test_a_head_that_is_released_twice_is_trained_once():
    protocol = find_protocol("vjepa2-in1k")
    assert len(protocol.heads) == 21
    assert len(protocol.distinct_heads) == 20
    assert find_protocol("ssv2").distinct_heads == ((1e-3, 0.01),)


def test_blocks_to_join_are_asked_for_where_the_release_names_none():
    protocol = find_protocol("diving48")
    with pytest.raises(ValueError, match=r"this one has 32; .*pooler_feature_layers=2,5,8,11"):
        protocol.choose_feature_layers(32, None)
    chosen = protocol.with_overrides(["pooler_feature_layers=1,3"])
    assert chosen.choose_feature_layers(4, None) == (1, 3)
    assert chosen.changes == {"pooler_feature_layers": [1, 3]}
    assert protocol.with_overrides(["pooler_feature_layers=none"]).choose_feature_layers(4, [1, 3]) is None


def test_a_learning_rate_beside_the_heads_of_a_protocol_is_refused():
    with pytest.raises(SettingsError, match=r"learning_rate is 0.01 .*20 heads.*give --learning-rate"):
        find_protocol("vjepa2-ssv2").with_overrides(["learning_rate=0.01"])
    assert find_protocol("vjepa2-ssv2").with_overrides(["learning_rate=0.01", "heads=[]"]).heads == ()


@pytest.mark.parametrize("name", OF_VIDEOS)
def test_videos_are_augmented_as_released_and_never_mirrored(name):
    protocol = find_protocol(name)
    assert protocol.clip_duration is None
    assert protocol.frame_step == 4 or name in OF_VJEPA_2
    assert protocol.augmentation.flip_probability == 0
    assert protocol.augmentation.auto_augment == "rand-m7-n4-mstd0.5-inc1"


@pytest.mark.parametrize("name", OF_IMAGES)
def test_images_are_mirrored_and_augmented_by_the_original_policy(name):
    assert find_protocol(name).augmentation.flip_probability == 0.5
    assert find_protocol(name).augmentation.auto_augment == "original"


def test_a_training_step_sees_one_segment_where_the_probe_sees_each_by_itself():
    assert find_protocol("k400").num_training_segments == 8
    assert find_protocol("k400").with_values(attends_across_segments=False).num_training_segments == 1


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_every_value_says_where_it_comes_from(name):
    protocol = PROTOCOLS[name]
    values = type(protocol).model_fields.keys() - {"name", "description"}
    assert [value for value in values if not protocol.sources.get(value, protocol.sources.get("*"))] == []


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_sources_are_given_for_fields_that_exist(name):
    assert find_protocol(name).sources.keys() - {"*"} <= Protocol.model_fields.keys()


def test_released_probes_are_named_after_their_protocols():
    assert set(MODELS["vjepa-vitl16"].probes) == set(CLASSIFICATION) - {"plain", "plain-image"} - OF_VJEPA_2
    datasets = {find_protocol(name).dataset or name for name in OF_VJEPA_2}
    assert set(MODELS["vjepa2-vitl16"].probes) - {"ek100"} <= datasets


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(KeyError, match="unknown protocol 'k700'; available: k400, ssv2"):
        find_protocol("k700")


def test_the_protocol_of_localisation_is_no_classification():
    assert isinstance(PROTOCOLS["ava"], LocalisationProtocol)
    with pytest.raises(ValueError, match="'ava' is for action localisation"):
        find_protocol("ava")


# --- clips ---


@dataclass
class ReaderWithoutPixels:
    """Says which frames it was asked for."""

    num_frames: int
    average_fps: float
    asked: list[np.ndarray]
    height: int = 16
    width: int = 16

    def read_frames(self, indices, *, box=None) -> np.ndarray:
        self.asked.append(np.asarray(indices))
        return np.zeros((len(indices), self.height, self.width, 3), dtype=np.uint8)


class ContentWithoutPixels(VideoContent):
    def __init__(self, num_frames: int, fps: float):
        self.num_frames, self.fps, self.asked = num_frames, fps, []

    @contextmanager
    def open(self, *, backend):
        yield ReaderWithoutPixels(self.num_frames, self.fps, self.asked)


class SourceOfOne(ClipSource):
    has_labels = True

    def __init__(self, content: VideoContent):
        self.content = content

    def __len__(self) -> int:
        return 1

    def record(self, index: int) -> VideoRecord:
        return VideoRecord("a video", self.content, 0)


def frames_asked_for(protocol: Protocol, num_frames: int, fps: float) -> list[list[int]]:
    content = ContentWithoutPixels(num_frames, fps)
    one = np.zeros(1, dtype=np.int64)
    labelled = LabelledSet(source=VideoSource(SourceOfOne(content)), indices=one, labels=one, num_classes=1)
    assert EvaluationClips(labelled, protocol, ClipFormat(crop_size=16))[0]["is_readable"]
    return np.concatenate(content.asked).reshape(protocol.num_segments, -1).tolist()


@pytest.mark.parametrize("name", ["k400", "ssv2"])
def test_validation_reads_the_frames_that_the_released_code_reads(name):
    protocol = find_protocol(name)
    wanted = {
        "frames_per_clip": 16,
        "frame_step": 4,
        "num_clips": protocol.num_segments,
        "allow_clip_overlap": True,
        "clip_duration_seconds": None,
        "reference_error": None,
    }
    rows = [row for row in ROWS if all(row[key] == value for key, value in wanted.items())]
    assert len(rows) == 32
    one_view = protocol.with_values(num_views=1)
    wrong = [row for row in rows if frames_asked_for(one_view, row["num_video_frames"], row["fps"]) != row["indices"]]
    assert wrong == []


def test_a_duration_sets_the_length_of_a_clip_by_the_videos_own_rate():
    protocol = find_protocol("plain").with_values(clip_duration=16 * 2 / 30, num_segments=1)
    assert frames_asked_for(protocol, 500, 30.0)[0][-1] == 31
    assert frames_asked_for(protocol, 500, 60.0)[0][-1] == 63


# --- changes ---


def test_changed_values_are_marked_as_the_callers_and_others_stay():
    changed = find_protocol("ssv2").with_values(num_epochs=3, batch_size=8, weight_decay=0.01)
    assert changed.changes == {"num_epochs": 3, "batch_size": 8}
    assert changed.sources["num_epochs"] == changed.sources["batch_size"] == "set by the caller"
    assert changed.sources["*"] == find_protocol("ssv2").sources["*"]
    assert find_protocol("ssv2").num_epochs == 20


def test_values_are_read_as_they_are_written_on_a_command_line():
    changed = PLAIN.with_overrides(["max_grad_norm=none", "num_views=3", "scale=0.5,1", "auto_augment=none"])
    assert changed.changes == {
        "max_grad_norm": None,
        "num_views": 3,
        "augmentation.scale": [0.5, 1.0],
        "augmentation.auto_augment": None,
    }
    assert changed.augmentation == Augmentation(scale=(0.5, 1), auto_augment=None)
    assert PLAIN.with_overrides(["augmentation=none"]).changes == {"augmentation": None}


def test_values_that_are_only_possible_together_can_be_set_in_any_order():
    changed = PLAIN.with_overrides(["media=image", "num_segments=1"])
    assert (changed.media, changed.num_segments) == ("image", 1)
    assert PLAIN.with_overrides(["frame_step=none", "clip_duration=2"]).clip_duration == 2


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("epochs=3", "no 'epochs'; the nearest is 'num_epochs'"),
        ("sources=1", "no 'sources'"),
        ("num_views=2", "num_views is '2', but must be 1 or 3"),
        ("frame_step=none", "frame_step, clip_duration and fps are all None"),
        ("media=image", "num_segments is 2 .*an image has one of each"),
        ("learning_rate=nan", "learning_rate is 'nan'"),
        ("augmentation.scale=1,0.5", "augmentation.scale .*smaller number first"),
        ("erase_probability=2", "augmentation.erase_probability is '2'"),
    ],
)
def test_invalid_values_are_named(assignment, message):
    with pytest.raises(SettingsError, match=message):
        PLAIN.with_overrides([assignment])


def test_a_warmup_of_localisation_longer_than_the_run_is_refused():
    with pytest.raises(SettingsError, match=r"num_warmup_epochs is 2.* num_epochs = 1"):
        LocalisationProtocol(num_epochs=1)
