"""The protocols by name: their values, where these come from, and how they are changed."""

import json
import math
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest

from vjepa_hub.data.records import ClipSource, VideoContent, VideoRecord
from vjepa_hub.evaluation.ava.protocol import LocalisationProtocol
from vjepa_hub.evaluation.clips import ClipFormat, EvaluationClips
from vjepa_hub.evaluation.labelled import LabelledSet, VideoSource
from vjepa_hub.evaluation.protocols import PROTOCOLS, Augmentation, Protocol, find_protocol
from vjepa_hub.hub.registry import MODELS

ROWS = json.loads((Path(__file__).parents[1] / "reference_cases" / "clip_indices.json").read_text())
CLASSIFICATION = [name for name, protocol in PROTOCOLS.items() if isinstance(protocol, Protocol)]
OF_VIDEOS = [name for name in CLASSIFICATION if find_protocol(name).media == "video"]
OF_IMAGES = [name for name in CLASSIFICATION if find_protocol(name).media == "image"]
PLAIN = find_protocol("plain")


# --- values ---


def test_the_protocols_of_the_paper_and_a_plain_one_are_there():
    assert set(PROTOCOLS) == {"k400", "ssv2", "in1k", "places205", "inat21", "ava", "plain", "plain-image"}
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


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_every_protocol_trains_as_the_release_does(name):
    protocol = find_protocol(name)
    assert (protocol.learning_rate, protocol.final_learning_rate) == (1e-3, 0.0)
    assert (protocol.num_epochs, protocol.max_grad_norm, protocol.final_weight_decay) == (20, 1.0, 1e-6)
    assert (protocol.frames_per_clip, protocol.attends_across_segments) == (16, True)
    assert (protocol.augmentation.scale, protocol.augmentation.ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))
    assert protocol.augmentation.erase_probability == 0.25


@pytest.mark.parametrize("name", OF_VIDEOS)
def test_videos_are_seen_every_fourth_frame_and_never_mirrored(name):
    protocol = find_protocol(name)
    assert (protocol.frame_step, protocol.clip_duration) == (4, None)
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
    values = [entry.name for entry in fields(protocol) if entry.name not in ("name", "description", "sources")]
    without = [value for value in values if not protocol.sources.get(value, protocol.sources.get("*"))]
    assert without == []


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_sources_are_given_for_fields_that_exist(name):
    known = {entry.name for entry in fields(Protocol)}
    assert set(find_protocol(name).sources) - {"*"} <= known


def test_released_probes_are_those_of_the_registry():
    released = {find_protocol(name).released_probe for name in CLASSIFICATION} - {None}
    assert released == set(MODELS["vjepa-vitl16"].probes)


def test_a_protocol_is_plain_values_for_a_file():
    found = json.loads(json.dumps(find_protocol("in1k").to_dict()))
    assert found["augmentation"]["auto_augment"] == "original"
    assert found["num_classes"] == 1000


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
    one_view = replace(protocol, num_views=1)
    wrong = [row for row in rows if frames_asked_for(one_view, row["num_video_frames"], row["fps"]) != row["indices"]]
    assert wrong == []


def test_a_duration_sets_the_length_of_a_clip_by_the_videos_own_rate():
    protocol = find_protocol("plain").with_values(clip_duration=16 * 2 / 30, num_segments=1)
    assert frames_asked_for(protocol, 500, 30.0)[0][-1] == 31
    assert frames_asked_for(protocol, 500, 60.0)[0][-1] == 63


# --- changes ---


def test_changed_values_are_marked_as_the_callers_and_others_stay():
    changed = find_protocol("ssv2").with_values(num_epochs=3, batch_size=8)
    assert (changed.num_epochs, changed.batch_size, changed.weight_decay) == (3, 8, 0.01)
    assert changed.sources["num_epochs"] == changed.sources["batch_size"] == "set by the caller"
    assert changed.sources["*"] == find_protocol("ssv2").sources["*"]
    assert find_protocol("ssv2").num_epochs == 20


@pytest.mark.parametrize("name", ["num_epoch", "sources"])
def test_a_name_that_is_no_field_is_refused(name):
    with pytest.raises(ValueError, match=f"no field '{name}'; the nearest is"):
        PLAIN.with_values(**{name: 1})


@pytest.mark.parametrize(
    ("assignment", "field", "value"),
    [
        ("num_epochs=5", "num_epochs", 5),
        ("learning_rate=3e-4", "learning_rate", 3e-4),
        ("attends_across_segments=false", "attends_across_segments", False),
        ("augmentation=none", "augmentation", None),
        ("max_grad_norm=inf", "max_grad_norm", math.inf),
        (" num_epochs = 5", "num_epochs", 5),
        ("description=mine", "description", "mine"),
    ],
)
def test_values_are_read_as_they_are_written_on_a_command_line(assignment, field, value):
    changed = PLAIN.with_overrides([assignment])
    assert getattr(changed, field) == value
    assert type(getattr(changed, field)) is type(value)
    assert changed.sources[field] == "set by the caller"


def test_parts_of_the_augmentation_are_changed_one_by_one():
    changed = PLAIN.with_overrides(
        ["augmentation.scale=0.5,1", "augmentation.auto_augment=none", "augmentation.flip_probability=0.5"]
    )
    assert changed.augmentation == Augmentation(scale=(0.5, 1), auto_augment=None, flip_probability=0.5)
    assert changed.sources["augmentation"] == "set by the caller"


def test_values_that_are_only_possible_together_can_be_set_in_any_order():
    changed = PLAIN.with_overrides(["frame_step=none", "media=image", "num_segments=1"])
    assert (changed.media, changed.num_segments) == ("image", 1)
    assert PLAIN.with_overrides(["frame_step=none", "clip_duration=2"]).clip_duration == 2


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["num_epochs"], "'num_epochs' sets nothing; write KEY=VALUE"),
        (["=5"], "'=5' sets nothing; write KEY=VALUE"),
        (["epochs=3"], "no field 'epochs'; the nearest is 'num_epochs'"),
        (["augmentation.flip=1"], "no field 'augmentation.flip'.*augmentation.flip_probability"),
        (["num_epochs.scale=1"], "no field 'num_epochs.scale'"),
        (["augmentation=none", "augmentation.scale=0.5,1"], "the augmentation is None"),
        (["augmentation=5"], "augmentation is 5"),
        (["num_epochs=1.5"], "num_epochs is 1.5, but must be an integer of at least 1"),
        (["num_epochs=true"], "num_epochs is True"),
        (["batch_size=0"], "batch_size is 0"),
        (["num_views=2"], "num_views is 2, but must be 1 .* or 3"),
        (["num_classes=0"], "num_classes is 0"),
        (["frame_step=0"], "frame_step is 0"),
        (["frame_step=none"], "frame_step and clip_duration are both None"),
        (["clip_duration=-1"], "clip_duration is -1"),
        (["media=audio"], "media is 'audio', but must be one of video, image"),
        (["media=image"], "num_segments is 2 .*an image has one of each"),
        (["learning_rate=0"], "learning_rate is 0, but must be a number above 0"),
        (["learning_rate=nan"], "learning_rate is nan"),
        (["learning_rate=fast"], "learning_rate is 'fast'"),
        (["final_learning_rate=-1"], "final_learning_rate is -1"),
        (["weight_decay=nan"], "weight_decay is nan"),
        (["final_weight_decay=-0.1"], "final_weight_decay is -0.1"),
        (["max_grad_norm=0"], "max_grad_norm is 0"),
        (["attends_across_segments=1"], "attends_across_segments is 1"),
        (["augmentation.scale=0.5"], "scale is 0.5, but must be a smallest and a largest number"),
        (["augmentation.scale=0.5,x"], r"scale is \(0.5, 'x'\)"),
        (["augmentation.scale=0.5,2"], "scale is .*at most the whole area"),
        (["augmentation.ratio=1,inf"], r"ratio is \(1, inf\)"),
        (["augmentation.flip_probability=2"], "flip_probability is 2, but must lie between 0 and 1"),
        (["augmentation.erase_probability=nan"], "erase_probability is nan"),
        (["augmentation.auto_augment=7"], "auto_augment is 7"),
    ],
)
def test_values_that_cannot_be_are_named(assignments, message):
    with pytest.raises(ValueError, match=message):
        PLAIN.with_overrides(assignments)
