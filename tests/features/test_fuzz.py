import torch

from tests.damage import change_bytes, fuzz
from vjepa_hub.features import load_features
from vjepa_hub.features.extraction import VideoFeatures, save_features


def test_changed_file_of_features(tmp_path, seeds):
    indices = torch.arange(8).view(2, 4)
    file = tmp_path / "a.safetensors"
    save_features(VideoFeatures(torch.ones(2, 4), None, indices, indices.double(), metadata={"model": "a"}), file)
    good = file.read_bytes()
    end = 8 + int.from_bytes(good[:8], "little")

    def change(rng) -> None:
        file.write_bytes(change_bytes(rng, good, end))

    assert fuzz(tmp_path, seeds(100), change, lambda: load_features(file), names=str(file), errors=(ValueError,)) > 60
