import re

import pytest
import torch

from tests.conftest import REFERENCE
from tests.reference_family import DISTILLED, GIVEN, distilled_checkpoint, reference_file, tiny_config
from vjepa_hub import VJEPAConfig, VJEPAForPreTraining, infer_config
from vjepa_hub.hub.conversion import ConversionError, export_original_checkpoint
from vjepa_hub.model.modeling_vjepa import sincos_positions

PREFIX = "module.backbone."
PARTS = ("encoder", "predictor", "target_encoder")


@pytest.fixture
def saved(tmp_path):
    """Save an object with torch and give its file."""

    def save(content):
        torch.save(content, tmp_path / "file.pt")
        return tmp_path / "file.pt"

    return save


@pytest.fixture
def checkpoint() -> dict:
    """The content of V-JEPA 2's tiny checkpoint, to be changed."""
    return torch.load(reference_file("v2"), weights_only=True)


def _with_tables(checkpoint: dict, uniform_power: bool) -> dict:
    for part in PARTS:
        name = PREFIX + ("predictor_pos_embed" if part == "predictor" else "pos_embed")
        checkpoint[part][name] = sincos_positions((4, 4, 4), checkpoint[part][name].shape[-1], uniform_power)
    return checkpoint


@pytest.mark.parametrize("generation", ["v2", "v2.1"])
def test_configuration_of_a_released_file_is_inferred(generation):
    config = infer_config(reference_file(generation), **GIVEN[generation])
    assert config.to_dict() == tiny_config(generation).to_dict()


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_configuration_of_the_distilled_form_is_inferred(saved, prefix):
    checkpoint = distilled_checkpoint()
    for part in ("encoder", "predictor", "ema_encoder"):
        checkpoint[part] = {prefix + key.removeprefix(PREFIX): tensor for key, tensor in checkpoint[part].items()}
    config = infer_config(saved(checkpoint), **GIVEN["v2.1"])
    assert config.to_dict() == tiny_config("v2.1", **DISTILLED).to_dict()
    del checkpoint["encoder"]
    assert infer_config(saved(checkpoint), **GIVEN["v2.1"]).to_dict() == config.to_dict()


def test_configuration_of_v_jepa_is_inferred_given_its_position_embedding(reference_config):
    given = {"num_attention_heads": 4, "pred_num_attention_heads": 4, "crop_size": 64, "frames_per_clip": 8}
    file = REFERENCE / "official_tiny.pth.tar"
    assert infer_config(file, **given, position_embedding="sincos").to_dict() == reference_config.to_dict()
    with pytest.raises(ConversionError, match=r"sine-cosine.*2 mask tokens.*position_embedding=\"sincos\""):
        infer_config(file, **given)
    with pytest.raises(
        ConversionError, match=r"position_embedding=\"sincos\""
    ):  # of another grid: V-JEPA's all the same
        infer_config(file, **given | {"crop_size": 96})
    with pytest.raises(ConversionError, match="pos_embed"):
        infer_config(file, **given | {"crop_size": 96}, position_embedding="sincos")


def test_table_without_uniform_power_is_recognised(tmp_path, reference_config):
    config = VJEPAConfig(**{**reference_config.to_diff_dict(), "uniform_power": False})
    export_original_checkpoint(VJEPAForPreTraining(config), tmp_path / "file.pt")
    given = {"num_attention_heads": 4, "pred_num_attention_heads": 4, "crop_size": 64, "frames_per_clip": 8}
    found = infer_config(tmp_path / "file.pt", **given, position_embedding="sincos")
    assert found.uniform_power is False


def test_file_without_tables_is_v_jepa_2(checkpoint, saved):
    for part in PARTS:
        checkpoint[part] = {key: t for key, t in checkpoint[part].items() if not key.endswith("pos_embed")}
    assert infer_config(saved(checkpoint), **GIVEN["v2"]).position_embedding == "rotary_tiled"


def test_sincos_tables_need_the_position_embedding_unless_there_are_ten_mask_tokens(checkpoint, saved):
    file = saved(_with_tables(checkpoint, uniform_power=True))
    with pytest.raises(ConversionError, match=r"2 mask tokens.*give position_embedding"):
        infer_config(file, **GIVEN["v2"])
    config = infer_config(file, **GIVEN["v2"], position_embedding="rotary_tiled")
    assert config.to_dict() == tiny_config("v2").to_dict()
    for index in range(2, 10):
        checkpoint["predictor"][f"{PREFIX}mask_tokens.{index}"] = torch.zeros(1, 1, 28)
    config = infer_config(saved(checkpoint), **GIVEN["v2"])
    assert config.to_dict() == tiny_config("v2", pred_num_mask_tokens=10).to_dict()


@pytest.mark.parametrize(
    ("field", "wrong", "found"),
    [
        ("hidden_size", 64, 48),
        ("num_hidden_layers", 2, 3),
        ("mlp_ratio", 2.0, 4.0),
        ("patch_size", 14, 16),
        ("image_tokenizer", True, False),
        ("pred_num_mask_tokens", 10, 2),
        ("pred_output_size", 64, None),
    ],
)
def test_given_field_that_the_file_contradicts_is_named(field, wrong, found):
    with pytest.raises(ConversionError, match=re.escape(f"{field} is {wrong}, but the file has {found}")):
        infer_config(reference_file("v2"), **GIVEN["v2"], **{field: wrong})


def test_given_fields_that_agree_are_kept():
    config = infer_config(reference_file("v2"), **GIVEN["v2"], hidden_size=48, mlp_ratio=4, num_pooler_heads=4)
    assert (config.hidden_size, config.mlp_ratio, config.num_pooler_heads) == (48, 4, 4)


def test_heads_and_sizes_are_checked_by_the_rules_of_the_configuration():
    with pytest.raises(ValueError, match=r"hidden_size is 48.*num_attention_heads = 5"):
        infer_config(reference_file("v2"), **GIVEN["v2"] | {"num_attention_heads": 5})
    with pytest.raises(ValueError, match=r"crop_size is 60.*patch_size = 16"):
        infer_config(reference_file("v2"), **GIVEN["v2"] | {"crop_size": 60})


def test_every_key_of_the_file_is_compared(checkpoint, saved):
    checkpoint["encoder"][PREFIX + "blocks.1.norm1.weight"] = torch.ones(3)
    checkpoint["target_encoder"][PREFIX + "register_tokens"] = torch.ones(1)
    with pytest.raises(ConversionError, match=r"2 problems") as caught:
        infer_config(saved(checkpoint), **GIVEN["v2"])
    for word in ("encoder: 'module.backbone.blocks.1.norm1.weight' has shape (3,)", "register_tokens' is left over"):
        assert word in str(caught.value)


def test_shape_that_the_file_does_not_hold_is_refused_before_memory_is_spent(checkpoint, saved):
    checkpoint["target_encoder"][PREFIX + "pos_embed"] = torch.zeros(1).expand(1, 64, 2**33)
    with pytest.raises(ConversionError, match="more than the whole file"):
        infer_config(saved(checkpoint), **GIVEN["v2"])


def test_file_of_another_family_is_refused(checkpoint, saved):
    checkpoint["target_encoder"] = {"cls_token": torch.zeros(1, 1, 8)}
    with pytest.raises(ConversionError, match=r"patch_embed\.proj\.weight"):
        infer_config(saved(checkpoint), **GIVEN["v2"])


def test_mlp_ratio_gives_the_width_of_the_file(tmp_path):
    width, inner = 42, 51
    assert int(width * (inner / width)) != inner  # the trap
    config = tiny_config("v2", hidden_size=width, num_attention_heads=1, mlp_ratio=(inner + 0.5) / width)
    export_original_checkpoint(VJEPAForPreTraining(config), tmp_path / "file.pt")
    found = infer_config(tmp_path / "file.pt", **GIVEN["v2"] | {"num_attention_heads": 1})
    assert int(width * found.mlp_ratio) == inner


@pytest.mark.parametrize(
    ("depth", "levels"), [(12, [2, 5, 8, 11]), (24, [5, 11, 17, 23]), (40, [9, 19, 29, 39]), (48, [11, 23, 37, 47])]
)
def test_levels_of_the_released_depths_are_known(tmp_path, depth, levels):
    config = tiny_config("v2.1", num_hidden_layers=depth, feature_levels=levels, hidden_size=12, pred_hidden_size=12)
    export_original_checkpoint(VJEPAForPreTraining(config), tmp_path / "file.pt")
    assert infer_config(tmp_path / "file.pt", **GIVEN["v2.1"]).feature_levels == levels


def test_levels_of_other_depths_are_asked_for(tmp_path):
    config = tiny_config("v2.1", num_hidden_layers=6, feature_levels=[0, 2, 4, 5])
    export_original_checkpoint(VJEPAForPreTraining(config), tmp_path / "file.pt")
    with pytest.raises(ConversionError, match=r"4 feature levels.*its 6 blocks.*the last one 5"):
        infer_config(tmp_path / "file.pt", **GIVEN["v2.1"])
    found = infer_config(tmp_path / "file.pt", **GIVEN["v2.1"], feature_levels=[0, 2, 4, 5])
    assert found.to_dict() == config.to_dict()


def test_reference_grid_of_other_patches(tmp_path):
    config = tiny_config("v2.1", patch_size=14, crop_size=56, rotary_reference_grid=18, pred_rotary_reference_grid=18)
    export_original_checkpoint(VJEPAForPreTraining(config), tmp_path / "file.pt")
    found = infer_config(tmp_path / "file.pt", **GIVEN["v2.1"] | {"crop_size": 56})
    assert (found.rotary_reference_grid, found.pred_rotary_reference_grid) == (18, 18)
