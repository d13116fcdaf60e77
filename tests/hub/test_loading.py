import shutil

import pytest
import torch

import vjepa_hub
from tests.conftest import REFERENCE
from vjepa_hub import VJEPAForPreTraining, VJEPAModel, VJEPAVideoProcessor
from vjepa_hub.hub.loading import open_model


def test_untrained_tiny_is_the_same_each_time_and_says_so(caplog):
    torch.manual_seed(1)
    first = open_model("vjepa-vit-tiny")
    torch.manual_seed(2)
    second = open_model("vjepa-vit-tiny")
    assert "untrained" in first.weights
    assert "untrained" in caplog.text
    assert not first.is_trained
    for one, other in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_opening_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    vjepa_hub.load("vjepa-vit-tiny")
    assert torch.equal(torch.rand(2), expected)


def test_released_file_opens_as_its_target_encoder(reference_config, forward_case, tmp_path):
    reference_config.save_pretrained(tmp_path)
    for config in (reference_config, tmp_path / "config.json", tmp_path):
        opened = open_model(REFERENCE / "official_tiny.pth.tar", config=config)
        features = opened.model.get_vision_features(forward_case["pixel_values_videos"])
        torch.testing.assert_close(features, forward_case["target_encoder.features"], rtol=0, atol=1e-5)
        assert opened.processor.crop_size["height"] == 64
        assert opened.is_trained
        assert "official_tiny.pth.tar" in opened.weights


def test_released_file_of_no_registered_architecture_asks_for_its_configuration():
    with pytest.raises(ValueError, match="none of the released architectures"):
        open_model(REFERENCE / "official_tiny.pth.tar")


def test_folder_opens_with_its_own_processor(small_config, tmp_path, caplog):
    VJEPAModel(small_config).save_pretrained(tmp_path)
    assert open_model(tmp_path).processor.size["shortest_edge"] == 36
    assert "has no video_preprocessor_config.json" in caplog.text
    VJEPAVideoProcessor(crop_size=32, size={"shortest_edge": 40}).save_pretrained(tmp_path)
    opened = open_model(str(tmp_path), dtype="bfloat16")
    assert opened.processor.size["shortest_edge"] == 40
    assert opened.model.dtype == torch.bfloat16
    assert not opened.model.training


def test_pretraining_folder_opens_as_its_target_encoder(small_config, tmp_path):
    model = VJEPAForPreTraining(small_config)
    model.target_encoder.layernorm.weight.data.fill_(2)
    model.save_pretrained(tmp_path)
    assert torch.equal(open_model(tmp_path).model.encoder.layernorm.weight, torch.full((48,), 2.0))


def test_bad_names_raise_with_what_there_is(small_config, tmp_path):
    with pytest.raises(KeyError, match=r"'vjepa-tiny' is neither.*vjepa-vit-tiny"):
        open_model("vjepa-tiny")
    with pytest.raises(ValueError, match=r"vitl16.pth.tar .*cc-by-nc"):
        open_model("vjepa-vitl16")
    with pytest.raises(ValueError, match="only a released file"):
        open_model("vjepa-vit-tiny", config=small_config)
    VJEPAModel(small_config).save_pretrained(tmp_path)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        open_model(tmp_path)
