import pytest
import torch

from vjepa_hub import VJEPAForPreTraining, VJEPAModel
from vjepa_hub.pretraining.checkpoints import INCOMPLETE, complete_or_absent, find_checkpoint, save_published


def _write(folder, text: str, *, fails: bool = False) -> None:
    with complete_or_absent(folder, is_writer=True, wait=lambda: None) as temporary:
        (temporary / "weights").write_text(text)
        if fails:
            raise KeyboardInterrupt


def test_checkpoint_gets_its_name_when_it_is_written(tmp_path):
    folder = tmp_path / "checkpoint-5"
    with complete_or_absent(folder, is_writer=True, wait=lambda: None) as temporary:
        (temporary / "weights").write_text("half")
        assert not folder.exists()
    assert (folder / "weights").read_text() == "half"
    assert not (tmp_path / INCOMPLETE).exists()


def test_interrupted_checkpoint_is_not_found(tmp_path):
    _write(tmp_path / "checkpoint-5", "good")
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path / "checkpoint-10", "broken", fails=True)
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint-5"


def test_interrupted_rewrite_leaves_the_old_checkpoint(tmp_path):
    _write(tmp_path / "checkpoint-5", "good")
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path / "checkpoint-5", "broken", fails=True)
    assert (tmp_path / "checkpoint-5" / "weights").read_text() == "good"


def test_rewrite_replaces_the_checkpoint_and_clears_what_a_kill_left(tmp_path):
    (tmp_path / INCOMPLETE / "checkpoint-3").mkdir(parents=True)
    _write(tmp_path / "checkpoint-5", "old")
    _write(tmp_path / "checkpoint-5", "new")
    assert (tmp_path / "checkpoint-5" / "weights").read_text() == "new"
    assert not (tmp_path / INCOMPLETE).exists()


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
