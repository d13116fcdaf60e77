"""What each mode moves, and at which rate."""

import sys

import pytest
import torch

from tests.conftest import GENERATIONS
from vjepa_hub import VJEPAConfig, VJEPAForVideoClassification, VJEPAModel
from vjepa_hub.evaluation.finetuning.modes import (
    add_lora,
    layerwise_parameter_groups,
    set_trainable,
)

MODES = {"full": {}, "last-k": {"num_blocks": 1}, "head": {}, "lora": {}}


@pytest.fixture
def classifier(small_config):
    torch.manual_seed(0)
    small_config.drop_path_rate = 0.2
    return VJEPAForVideoClassification(small_config)


def _tuned(classifier, mode):
    if mode == "lora":
        pytest.importorskip("peft", reason="LoRA asks for peft (pip install peft)")
        return add_lora(classifier, rank=4)
    set_trainable(classifier, mode, **MODES[mode])
    return classifier


def _trained_parts(model) -> set[str]:
    names = [name.replace("base_model.model.", "") for name, p in model.named_parameters() if p.requires_grad]
    return {
        ".".join(name.split(".")[:3]) if name.startswith("encoder.layer.") else name.split(".")[0] for name in names
    }


@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}, {"use_reentrant": True}])
@pytest.mark.parametrize("mode", MODES)
def test_every_trained_parameter_gets_a_gradient_and_no_other(classifier, small_clip, mode, checkpointing):
    model = _tuned(classifier, mode)
    for layer in classifier.encoder.layer:
        layer.drop_path.probability = 0.0  # or a block might be left out by chance
    if checkpointing:
        classifier.gradient_checkpointing_enable(checkpointing)
    model.train()
    logits = model(pixel_values_videos=small_clip).logits
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert with_gradient


def test_modes_train_what_they_say(classifier):
    everything = {"encoder", "encoder.layer.0", "encoder.layer.1", "pooler", "classifier"}
    set_trainable(classifier, "full")
    assert _trained_parts(classifier) == everything
    set_trainable(classifier, "last-k", num_blocks=1)
    assert _trained_parts(classifier) == everything - {"encoder.layer.0"}
    assert not any(p.requires_grad for p in classifier.encoder.embeddings.parameters())
    set_trainable(classifier, "head")
    assert _trained_parts(classifier) == {"pooler", "classifier"}


@pytest.mark.parametrize(("num_blocks", "trained"), [(1, {"layernorm"}), (2, {"layernorm", "level_norms.0"})])
def test_last_blocks_are_trained_with_the_norms_of_their_levels(small_config, num_blocks, trained):
    config = VJEPAConfig(**{**small_config.to_diff_dict(), **GENERATIONS["2.1"]})
    model = VJEPAForVideoClassification(config)
    set_trainable(model, "last-k", num_blocks=num_blocks)
    names = {
        name.rpartition(".")[0] for name, parameter in model.encoder.named_parameters() if parameter.requires_grad
    }
    assert {name for name in names if not name.startswith("layer.")} == trained


def test_lora_trains_adapters_of_every_block_and_the_whole_head(classifier):
    set_trainable(classifier, "head")
    head = classifier.num_parameters(only_trainable=True)
    model = _tuned(classifier, "lora")
    width, rank = 48, 4
    adapters = 2 * (rank * (width + 3 * width) + rank * (width + width))  # two blocks, each qkv and proj
    assert model.num_parameters(only_trainable=True) == head + adapters
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name or ".modules_to_save." in name for name in names)


def test_merged_lora_is_an_ordinary_classifier_of_the_same_function(classifier, small_clip):
    model = _tuned(classifier, "lora").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        expected = model(pixel_values_videos=small_clip).logits
        merged = model.merge_and_unload()
        found = merged(pixel_values_videos=small_clip).logits
    assert type(merged) is VJEPAForVideoClassification
    assert list(merged.state_dict()) == list(VJEPAForVideoClassification(merged.config).state_dict())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_frozen_blocks_drop_no_paths(classifier):
    set_trainable(classifier, "last-k", num_blocks=1)
    assert [layer.drop_path.probability for layer in classifier.encoder.layer] == [0.0, 0.2]
    set_trainable(classifier, "head")
    assert [layer.drop_path.probability for layer in classifier.encoder.layer] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("mode", "num_blocks", "message"),
    [
        ("half", None, "mode is 'half'"),
        ("lora", None, "add_lora"),
        ("last-k", None, "num_blocks is None"),
        ("full", 2, "num_blocks is 2"),
        ("last-k", 3, "the encoder's 2 at most"),
        ("last-k", 0, "at least 1"),
    ],
)
def test_wrong_modes_are_named(classifier, mode, num_blocks, message):
    with pytest.raises(ValueError, match=message):
        set_trainable(classifier, mode, num_blocks=num_blocks)


@pytest.mark.parametrize("task", ["SEQ_CLS", "FEATURE_EXTRACTION"])
def test_task_types_of_peft_give_what_the_model_gives(classifier, small_config, small_clip, task):
    peft = pytest.importorskip("peft", reason="LoRA asks for peft (pip install peft)")
    model = (classifier if task == "SEQ_CLS" else VJEPAModel(small_config)).eval()
    expected = model(small_clip)[0].detach()
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type=task, target_modules=["qkv"])).eval()
    torch.testing.assert_close(adapted(pixel_values_videos=small_clip)[0], expected)  # fresh adapters add nothing


def test_missing_peft_is_named_with_its_extra(classifier, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'vjepa-hub\[lora\]'"):
        add_lora(classifier)


# --- rates ---


def _rate_of(model, groups) -> dict[str, dict]:
    by_parameter = {id(parameter): group for group in groups for parameter in group["params"]}
    return {name: by_parameter[id(p)] for name, p in model.named_parameters() if p.requires_grad}


def test_rates_fall_from_the_head_to_the_patch_embedding(classifier):
    groups = layerwise_parameter_groups(classifier, learning_rate=1.0, weight_decay=0.1, decay=0.5)
    rates = {name: group["lr"] for name, group in _rate_of(classifier, groups).items()}
    for name, rate in (
        ("classifier.weight", 1.0),
        ("pooler.query_tokens", 1.0),
        ("encoder.layernorm.weight", 1.0),
        ("encoder.layer.1.mlp.fc1.weight", 0.5),
        ("encoder.layer.0.norm1.bias", 0.25),
        ("encoder.embeddings.patch_embeddings.projection.weight", 0.125),
    ):
        assert rates[name] == rate, name
    assert groups[0]["lr"] == 1.0  # which the Trainer logs


@pytest.mark.parametrize("mode", MODES)
def test_every_trained_parameter_is_in_one_group(classifier, mode):
    model = _tuned(classifier, mode)
    groups = layerwise_parameter_groups(model, learning_rate=1.0, weight_decay=0.1, decay=0.5)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == trained


def test_adapters_have_the_rate_of_their_block(classifier):
    model = _tuned(classifier, "lora")
    groups = layerwise_parameter_groups(model, learning_rate=1.0, weight_decay=0.1, decay=0.5)
    rates = {name: group["lr"] for name, group in _rate_of(model, groups).items()}
    adapters = {name: rate for name, rate in rates.items() if "lora_" in name}
    assert {rate for name, rate in adapters.items() if "layer.0." in name} == {0.25}
    assert {rate for name, rate in adapters.items() if "layer.1." in name} == {0.5}
    assert {rate for name, rate in rates.items() if "lora_" not in name} == {1.0}


def test_biases_and_norms_have_no_weight_decay(classifier):
    groups = layerwise_parameter_groups(classifier, learning_rate=1.0, weight_decay=0.1)
    for name, group in _rate_of(classifier, groups).items():
        is_vector = name.endswith("bias") or "norm" in name
        assert group["weight_decay"] == (0.0 if is_vector else 0.1), name


def test_nothing_to_train_and_impossible_decays_are_errors(classifier):
    with pytest.raises(ValueError, match=r"decay is 1\.5"):
        layerwise_parameter_groups(classifier, learning_rate=1.0, weight_decay=0.1, decay=1.5)
    classifier.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        layerwise_parameter_groups(classifier, learning_rate=1.0, weight_decay=0.1)
