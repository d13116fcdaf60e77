import pytest

from vjepa_hub import load_processor
from vjepa_hub.hub.default_processor import default_processor
from vjepa_hub.hub.registry import find_model


@pytest.mark.parametrize(
    ("name", "expected"),  # crop, resized short side, frames, step, rate
    [
        ("vjepa-vitl16", (224, 256, 16, 4, None)),
        ("vjepa2-vitl16", (256, 292, 64, None, 4)),
        ("vjepa2.1-vitgg16-384", (384, 438, 64, None, 4)),
    ],
)
def test_processor_of_a_registered_model_samples_as_its_training_did(name, expected):
    found = load_processor(name)
    values = (found.crop_size["height"], found.size["shortest_edge"], found.num_frames, found.frame_step, found.fps)
    assert values == expected


@pytest.mark.parametrize(
    ("name", "dataset", "clip"),
    [
        ("vjepa-vitl16", "k400", (16, 4)),
        ("vjepa2-vitl16", "ssv2", (16, 4)),
        ("vjepa2-vitl16", "diving48", (32, 2)),
        ("vjepa2-vitg16-384", "ssv2", (64, 2)),
    ],
)
def test_processor_of_a_released_probe_samples_as_its_evaluation_did(name, dataset, clip):
    found = default_processor(find_model(name).config(dataset), is_classifier=True)
    assert (found.num_frames, found.frame_step) == clip
    assert found.fps is None
