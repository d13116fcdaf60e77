from collections.abc import Callable
from pathlib import Path

import pytest

from tests.damage import change_bytes, fuzz
from vjepa_hub.pretraining.metrics_log import read_metrics
from vjepa_hub.pretraining.recipe import load_recipe

LOG = 'step,epoch,loss\n1,0.1,3.0\n2,0.2,"a,b"\n3,,nan\n' * 5
READERS = {"recipe.yaml": (load_recipe, load_recipe("tiny").to_yaml()), "metrics.csv": (read_metrics, LOG)}


@pytest.mark.parametrize("name", READERS)
def test_changed_file(tmp_path, seeds, name):
    file: Path = tmp_path / name
    read: Callable[[Path], object] = READERS[name][0]
    good = READERS[name][1].encode()
    cases = seeds(60)

    def change(rng) -> None:
        file.write_bytes(change_bytes(rng, good, len(good)))

    assert fuzz(tmp_path, cases, change, lambda: read(file), names=str(file), errors=(ValueError,)) > len(cases) // 3
