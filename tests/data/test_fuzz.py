import random
from pathlib import Path

import pytest

from tests.damage import change_bytes, fuzz
from vjepa_hub.data.sources import open_source

LISTS = {
    "list.csv": 'path,label\n"a b.mp4",3\nc.mp4,4\n',
    "released.csv": "a b.mp4 3\nc.mp4 4\n",
    "list.txt": "a.mp4 1\nc.mp4 2\n",
    "list.jsonl": '{"path": "a.mp4", "label": 3}\n{"video": "b.mp4", "label": 4}\n',
}


def _change(file: Path, rng: random.Random, good: bytes) -> None:
    file.write_bytes(change_bytes(rng, good, len(good)))


@pytest.mark.parametrize("name", LISTS)
def test_changed_list_of_videos(tmp_path, seeds, name):
    file, good, cases = tmp_path / name, LISTS[name].encode(), seeds(100)

    def change(rng) -> None:
        _change(file, rng, good)

    assert fuzz(tmp_path, cases, change, lambda: open_source(file), names=str(file), errors=(ValueError,)) > 20


def test_changed_parquet(tmp_path, seeds, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / "list.parquet"
    datasets.Dataset.from_dict({"path": ["a.mp4", "b.mp4"], "label": [0, 1]}).to_parquet(file)
    good = file.read_bytes()

    def change(rng) -> None:
        _change(file, rng, good)

    assert fuzz(tmp_path, seeds(16), change, lambda: open_source(file), names=str(file), errors=(ValueError,)) > 8
