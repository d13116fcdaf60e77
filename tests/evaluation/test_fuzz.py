import numpy as np
import pytest

from tests.damage import change_bytes, fuzz
from tests.evaluation.test_results import some_results
from vjepa_hub.evaluation.feature_store import FeatureStore
from vjepa_hub.evaluation.labelled import read_class_names
from vjepa_hub.evaluation.results import read_results, write_results

NAMES = {"classes.json": '{"0": "Approaching", "1": "Turning", "2": "Leaving"}', "classes.txt": "Jump\nRun\nTürn\n"}


@pytest.mark.parametrize("name", NAMES)
def test_changed_class_names(tmp_path, seeds, name):
    file, good = tmp_path / name, NAMES[name].encode()

    def change(rng) -> None:
        file.write_bytes(change_bytes(rng, good, len(good)))

    assert fuzz(tmp_path, seeds(100), change, lambda: read_class_names(file), names=str(file)) > 20


def test_changed_results(tmp_path, seeds):
    file = write_results(tmp_path, some_results())
    good = file.read_bytes()

    def change(rng) -> None:
        file.write_bytes(change_bytes(rng, good, len(good)))

    assert (
        fuzz(tmp_path, seeds(100), change, lambda: read_results(tmp_path), names=str(file), errors=(ValueError,)) > 40
    )


@pytest.mark.parametrize("name", ["key.json", "features.npy", "state.npy"])
def test_changed_cache_of_features_is_refused_with_its_folder(tmp_path, seeds, name):
    store = FeatureStore(tmp_path, {"encoder": "a"}, np.array([2, 1, 3]), "a set")
    store.write(np.arange(3), np.zeros((6, 4), dtype=np.float16), np.array([True, True, True]))
    file = store.folder / name
    good = file.read_bytes()

    def change(rng) -> None:
        file.write_bytes(change_bytes(rng, good, min(len(good), 128)))

    def use() -> None:
        assert store.is_readable(np.arange(3)).dtype == bool
        assert store.read(store.rows(np.arange(3))).shape == (6, 4)

    assert fuzz(tmp_path, seeds(100), change, use, names=str(store.folder), errors=(ValueError,)) > 40
