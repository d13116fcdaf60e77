import os
import shutil

import numpy as np
import pytest

from vjepa_hub.core.files import written_whole
from vjepa_hub.evaluation.feature_store import FeatureStore

ROWS = np.array([2, 1, 3])


def features_of(*items: int) -> np.ndarray:
    """Rows of width 4 that tell their item."""
    return np.repeat(np.array(items, dtype=np.float16), ROWS[list(items)])[:, None].repeat(4, axis=1)


def test_items_have_their_own_rows_in_whatever_order_they_come(tmp_path):
    store = FeatureStore(tmp_path, {"encoder": "a"}, ROWS, "a set")
    store.write(np.array([2, 0]), features_of(2, 0), np.array([True, True]))
    assert store.to_compute(range(3)) == [1]
    store.write(np.array([1]), features_of(1), np.array([False]))
    rows = store.rows(np.array([2, 1, 0]))
    assert rows.tolist() == [3, 4, 5, 2, 0, 1]
    assert store.read(rows)[:, 0].tolist() == [2, 2, 2, 1, 0, 0]
    assert store.is_readable(np.arange(3)).tolist() == [True, False, True]
    assert store.to_compute(range(3)) == [1]  # it is tried again


def test_each_key_has_a_folder_of_its_own_and_none_is_read_before_it_is_filled(tmp_path):
    first, second = (FeatureStore(tmp_path, {"encoder": name}, ROWS, "a set") for name in "ab")
    first.write(np.array([0]), features_of(0), np.array([True]))
    assert first.folder != second.folder
    with pytest.raises(RuntimeError, match="is empty; fill it first"):
        second.is_readable(np.array([0]))
    with pytest.raises(RuntimeError, match="is not complete; fill it first"):
        first.is_readable(np.array([0, 1]))


def test_features_that_are_not_finite_are_refused_with_what_to_delete(tmp_path):
    store = FeatureStore(tmp_path, {"encoder": "a"}, ROWS, "a set")
    store.write(np.array([0]), features_of(0), np.array([True]))
    file = store.folder / "features.npy"
    file.write_bytes(file.read_bytes()[:-48] + b"\xff" * 48)  # all rows of the items are NaN
    with pytest.raises(ValueError, match=f"features.npy is damaged.*delete {store.folder}"):
        store.read(np.arange(6))


def test_features_of_another_shape_are_refused(tmp_path):
    store = FeatureStore(tmp_path, {}, ROWS, "a set")
    store.write(np.array([0]), features_of(0), np.array([True]))
    with pytest.raises(ValueError, match=r"shape \(4,\) for each row, but float16 of shape \(2,\)"):
        store.write(np.array([1]), features_of(1)[:, :2], np.array([True]))


def test_leftovers_of_a_killed_run_are_gone_once_the_same_one_has_run_again(tmp_path):
    store = FeatureStore(tmp_path / "killed", {"encoder": "a"}, ROWS, "a set")
    store.write(np.arange(3), features_of(0, 1, 2), np.ones(3, dtype=bool))
    with written_whole(tmp_path / "key.json") as temporary:
        temporary.touch()
        leftover = temporary.parent.name.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-")  # no process has that number
    (store.folder / leftover).mkdir()
    shutil.copytree(tmp_path / "killed", tmp_path / "again")  # another process looks into it, as it were
    again = FeatureStore(tmp_path / "again", {"encoder": "a"}, ROWS, "a set")
    assert again.to_compute(range(3)) == []
    assert sorted(path.name for path in again.folder.iterdir()) == ["features.npy", "key.json", "state.npy"]
