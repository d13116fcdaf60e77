import pytest
import torch

from vjepa_hub import VJEPAConfig
from vjepa_hub.hub.cost import encoder_flops, encoding_cost
from vjepa_hub.hub.registry import find_model

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "crop_size": 32, "frames_per_clip": 4}


def test_largest_model_at_its_own_size_is_told_with_its_tokens_weights_and_time():
    config = find_model("vjepa2.1-vitgg16-384").config()
    cost = encoding_cost(config, crop=(384, 384), num_frames=64, num_clips=10, matrix_flops=1e12)
    assert cost.num_tokens == 18_432
    assert cost.memory > 4 * 1.84e9
    assert cost.seconds == pytest.approx(10 * encoder_flops(config) / (0.4 * 1e12))
    assert "10 clips of 18,432 tokens" in cost.describe()
    (warning,) = [warning for warning in cost.warnings if "hour" in warning]
    for remedy in ("fewer frames", "smaller crop", "bfloat16"):
        assert remedy in warning


def test_half_the_frames_and_two_bytes_cost_less_and_training_costs_more():
    config, common = VJEPAConfig(**SMALL), {"num_clips": 1, "matrix_flops": 1e9}
    whole = encoding_cost(config, crop=(32, 32), num_frames=4, **common)
    short = encoding_cost(config, crop=(32, 32), num_frames=2, dtype=torch.bfloat16, **common)
    trained = encoding_cost(config, crop=(32, 32), num_frames=4, is_trained=True, **common)
    assert (whole.num_tokens, short.num_tokens) == (8, 4)
    assert short.memory < 0.6 * whole.memory
    assert short.seconds < 0.5 * whole.seconds
    assert trained.memory > 3 * whole.memory
    assert trained.seconds == pytest.approx(3 * whole.seconds)
    assert whole.warnings == []


def test_more_than_the_free_memory_is_warned_about(monkeypatch):
    monkeypatch.setattr("vjepa_hub.hub.cost.available_memory", lambda: 1e5)
    cost = encoding_cost(VJEPAConfig(**SMALL), crop=(32, 32), num_frames=4, num_clips=1, matrix_flops=1e12)
    (warning,) = cost.warnings
    assert "0.00 GB of memory that are free" in warning
    assert "fewer clips at once" in warning
