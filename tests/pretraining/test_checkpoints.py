import pytest
import torch

from vjepa_hub import VJEPAForPreTraining, VJEPAModel
from vjepa_hub.pretraining.checkpoints import find_checkpoint, save_published


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_no_checkpoint_is_an_error_that_names_the_folder(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        find_checkpoint(tmp_path / name)


def test_published_model_has_the_target_encoder_as_encoder(small_config, small_clip, small_masks, tmp_path):
    torch.manual_seed(0)
    model = VJEPAForPreTraining(small_config).eval()
    for parameter in model.target_encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    save_published(tmp_path, model.config, model.state_dict())
    published = VJEPAModel.from_pretrained(tmp_path)
    features = model.target_encoder(small_clip).last_hidden_state
    assert torch.equal(published.get_vision_features(small_clip), features)
    assert published.config.architectures == ["VJEPAModel"]
    for name, parameter in published.predictor.named_parameters():
        assert torch.equal(parameter, model.predictor.get_parameter(name))
