import json
import random
from dataclasses import fields

import numpy as np
import pytest
from transformers import AutoModel, AutoVideoProcessor

from tests.damage import VALUES, fuzz
from vjepa_hub import VJEPAConfig, VJEPAModel, VJEPAVideoProcessor

CLIP = np.zeros((10, 40, 30, 3), dtype=np.uint8)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_changed_fields_of_the_model_by_plain_auto_model(small_config, tmp_path, seeds):
    """RuntimeError: transformers' own, on weights of another size."""
    VJEPAModel(small_config).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    good = json.loads(file.read_text())
    names = sorted({field.name for field in fields(VJEPAConfig)} & good.keys())

    def change(rng: random.Random) -> None:
        file.write_text(json.dumps(good | {rng.choice(names): rng.choice(VALUES) for _ in range(rng.randrange(1, 3))}))

    def use() -> None:
        try:
            AutoModel.from_pretrained(tmp_path)
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise

    assert fuzz(tmp_path, seeds(60), change, use, names=str(tmp_path), errors=(ValueError,)) > 20


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 10**6),
        ("crop_size", 2**30),
        ("mlp_ratio", 1e308),
        ("pred_hidden_size", 10**400),
        ("num_labels", 10**12),
        ("to_dict", 3),
    ],
)
def test_absurd_configuration_is_refused_by_plain_auto_model_with_its_folder(small_config, tmp_path, field, value):
    VJEPAModel(small_config).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(ValueError, match=field) as caught:
        AutoModel.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_changed_settings_of_the_processor_are_refused_when_it_is_loaded(tmp_path, seeds):
    VJEPAVideoProcessor(crop_size=16, num_frames=4, frame_step=2).save_pretrained(tmp_path)
    file = tmp_path / "video_preprocessor_config.json"
    good = json.loads(file.read_text())
    names = sorted(good.keys() - {"auto_map", "video_processor_type"})

    def change(rng: random.Random) -> None:
        file.write_text(json.dumps(good | {rng.choice(names): rng.choice(VALUES) for _ in range(rng.randrange(1, 3))}))

    def use() -> None:
        processor = AutoVideoProcessor.from_pretrained(tmp_path)
        try:
            processor(CLIP, do_rescale=True)
        except Exception as error:
            raise AssertionError(f"refused at the first clip only: {error}") from error

    assert fuzz(tmp_path, seeds(80), change, use, errors=(ValueError, TypeError)) > 50
