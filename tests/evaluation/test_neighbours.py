import numpy as np
import pytest

from tests.evaluation.finetuning_sets import NUM_FRAMES, SIZE, labelled_set, save_features_model
from vjepa_hub.evaluation.encoders.opening import open_encoder
from vjepa_hub.evaluation.neighbours import count_times, describe_set
from vjepa_hub.evaluation.protocols import find_protocol
from vjepa_hub.heads.neighbours import search


def test_a_video_is_nearest_to_itself_through_a_frozen_encoder(tmp_path):
    videos = np.random.default_rng(0).integers(0, 256, (6, NUM_FRAMES, SIZE, SIZE, 3), np.uint8)
    labelled = labelled_set([*videos[:3], None, *videos[3:]], [0, 1, 0, 1, 0, 1, 0])
    encoder = open_encoder(save_features_model(tmp_path / "model"))
    protocol = find_protocol("plain").with_values(num_segments=1, frame_step=1, augmentation=None)
    assert count_times(encoder) == NUM_FRAMES // 2
    for descriptor in ("mean", "mean-std", "temporal"):
        described = describe_set(encoder, labelled, protocol, descriptor)
        assert described.indices.tolist() == [0, 1, 2, 4, 5, 6]
        neighbours = search(described.features, described.features, 2)
        assert neighbours.places[:, 0].tolist() == list(range(6))
        assert np.allclose(neighbours.similarities[:, 0], 1)


def test_temporal_descriptor_of_several_segments_is_refused(tmp_path):
    encoder = open_encoder(save_features_model(tmp_path / "model"))
    videos = np.zeros((1, NUM_FRAMES, SIZE, SIZE, 3), np.uint8)
    with pytest.raises(ValueError, match="2 segments x 1 views of a video; take 'mean'"):
        describe_set(encoder, labelled_set(videos, [0]), find_protocol("plain"), "temporal")
