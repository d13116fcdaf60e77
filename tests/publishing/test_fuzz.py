import json
import random
from pathlib import Path

import pytest

from tests.damage import change_bytes, change_fields, fuzz
from vjepa_hub import VJEPAModel, VJEPAVideoProcessor
from vjepa_hub.core.run_files import DataFacts, RunFile, RunRecord
from vjepa_hub.publishing.publication import plan_publication
from vjepa_hub.publishing.verification import verify_folder

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
TEXTS = ["config.json", "video_preprocessor_config.json", "run.json", "recipe.yaml", "results.json", "README.md"]


@pytest.fixture
def run(small_config, tmp_path) -> Path:
    """A folder of a pretraining, with its records and its card."""
    VJEPAModel(small_config).save_pretrained(tmp_path)
    VJEPAVideoProcessor(crop_size=32).save_pretrained(tmp_path)
    masks = [{"kind": "multi-block", "num_blocks": 8, "spatial_scale": [0.15, 0.15], "max_temporal_keep": 1.0}]
    settings = {"name": "a", "training": {"learning_rate": 1e-3}, "masks": masks}
    data = (DataFacts(role="videos", source="videos", num_videos=3),)
    RunFile(tmp_path, RunRecord(kind="pretrain", command=("pretrain", "a"), settings=settings, data=data)).update()
    (tmp_path / "recipe.yaml").write_text("name: a\ninitial: null\n")
    (tmp_path / "results.json").write_text('{"format": 1, "heads": []}')
    (tmp_path / "README.md").write_text(plan_publication(tmp_path, "me/a").card)
    return tmp_path


@pytest.mark.parametrize("name", TEXTS)
def test_changed_file_of_a_publication(run, seeds, name):
    file = run / name
    good = file.read_bytes()

    def change(rng: random.Random) -> None:
        as_fields = name.endswith(".json") and rng.random() < 0.5
        text = change_fields(rng, json.loads(good)).encode() if as_fields else change_bytes(rng, good, len(good))
        file.write_bytes(text)

    def use() -> None:
        verify_folder(run)
        plan_publication(run, "me/a")

    fuzz(run, seeds(6), change, use, names=str(run), errors=(ValueError,))
