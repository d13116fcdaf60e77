import numpy as np
import pytest
import torch

from tests.heads.fake_tokens import FakeTokens
from vjepa_hub.heads.pooling import build_head
from vjepa_hub.heads.prediction import predict


@pytest.mark.parametrize("attends", [True, False])
def test_probabilities_are_means_over_views_and_unattended_segments(attends):
    source = FakeTokens(5, num_views=3, num_segments=2, unreadable=(1,))
    head = build_head("attentive", hidden_size=24, num_attention_heads=4, num_classes=3, seed=0).eval()
    found = predict(source, [head], attends_across_segments=attends, batch_size=2)
    for video in range(5):
        views = source.tokens[video].half().float()
        parts = [view.flatten(0, 1) for view in views] if attends else list(views.flatten(0, 1))
        with torch.no_grad():
            expected = torch.stack([head(part[None])[0].softmax(-1) for part in parts]).mean(0)
        values = np.zeros(3) if video == 1 else expected.numpy()
        np.testing.assert_allclose(found.probabilities[0][video], values, atol=1e-6)
    assert found.is_readable.tolist() == [True, False, True, True, True]
