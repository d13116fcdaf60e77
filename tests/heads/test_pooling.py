import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.conftest import REFERENCE
from vjepa_hub import VJEPAForVideoClassification, VJEPAModel
from vjepa_hub.heads.pooling import AttentiveHead, AverageHead, HeadSettings, attach_head, build_head
from vjepa_hub.hub.conversion import convert_original_probe


def head(pooling="attentive", seed=0, hidden_size=256):
    return build_head(pooling, hidden_size=hidden_size, num_attention_heads=4, num_classes=5, seed=seed)


def test_probe_starts_as_the_released_one_does():
    """Truncated normal 0.02 everywhere, the MLP's output divided by the square root of 2, biases zero, norms one."""
    pooler = head().pooler
    layer = pooler.cross_attention
    assert layer.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert layer.mlp.fc2.weight.std().item() == pytest.approx(0.02 / 2**0.5, rel=0.03)
    assert pooler.query_tokens.std().item() == pytest.approx(0.02, rel=0.15)
    assert head().classifier.weight.std().item() == pytest.approx(0.02, rel=0.1)
    for module in head().modules():
        if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
            assert not module.bias.any()
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert module.eps == 1e-5


def test_probe_of_depth_4_attends_over_the_tokens_with_its_own_number_of_heads(small_config):
    """The released one of V-JEPA 2: its blocks' outputs start divided by the square root of twice their number."""
    probe = build_head(
        "attentive", hidden_size=256, num_attention_heads=16, num_pooler_layers=4, num_classes=5, seed=0
    )
    assert [layer.attention.num_heads for layer in probe.pooler.layer] == [16] * 3
    for number, layer in enumerate(probe.pooler.layer, 1):
        assert layer.mlp.fc2.weight.std().item() == pytest.approx(0.02 / (2 * number) ** 0.5, rel=0.05)
        assert layer.norm1.eps == 1e-5
    small = build_head("attentive", hidden_size=48, num_attention_heads=16, num_pooler_layers=4, num_classes=3, seed=0)
    model = attach_head(small, VJEPAModel(small_config).encoder, small_config, None)
    assert (model.config.num_pooler_layers, model.config.num_pooler_heads) == (4, 16)


@pytest.mark.parametrize("pooling", ["attentive", "average"])
def test_first_weights_depend_on_the_seed_alone(pooling):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = head(pooling), head(pooling), head(pooling, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_probe_of_a_converted_classifier_gives_the_recorded_logits(reference_config):
    files = REFERENCE / "official_tiny.pth.tar", REFERENCE / "official_tiny_probe.pth.tar"
    model = convert_original_probe(*files, reference_config).eval()
    tokens = load_file(REFERENCE / "forward.safetensors")["target_encoder.features"]
    expected = load_file(REFERENCE / "probe.safetensors")["logits"]
    with torch.no_grad():
        logits = AttentiveHead.of_classifier(model)(tokens)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_average_head_reads_the_mean_of_all_tokens():
    average = head("average", hidden_size=24)
    assert isinstance(average, AverageHead)
    tokens = torch.randn(2, 6, 24)
    torch.testing.assert_close(average(tokens), average.classifier(tokens.mean(1)))


def test_attached_probe_is_a_classifier_that_saves_and_loads(small_config, small_clip, tmp_path):
    encoder = VJEPAModel(small_config).encoder
    probe = build_head("attentive", hidden_size=48, num_attention_heads=4, num_classes=3, seed=0)
    model = attach_head(probe, encoder, small_config, ("a", "b", "c"))
    model.save_pretrained(tmp_path)
    loaded = VJEPAForVideoClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        tokens = encoder.eval()(small_clip, return_dict=True).last_hidden_state
        torch.testing.assert_close(loaded(small_clip).logits, probe.eval()(tokens))
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert small_config.id2label != loaded.config.id2label  # the encoder's own configuration stays


def test_probe_for_another_width_is_refused(small_config):
    with pytest.raises(ValueError, match="width 256, but the encoder's have 48"):
        attach_head(head(), VJEPAModel(small_config).encoder, small_config, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pooling": "max"}, "pooling is 'max', but must be 'attentive' or 'average'"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
    ],
)
def test_impossible_heads_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        HeadSettings(**{"pooling": "attentive", "learning_rate": 1e-3, "weight_decay": 0.01, **values})
