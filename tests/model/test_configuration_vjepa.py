import warnings

import pytest

from vjepa_hub import VJEPAConfig


def test_defaults_are_vit_l_16():
    config = VJEPAConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (1024, 24, 16)
    assert config.token_grid == (8, 14, 14)


def test_num_frames_is_another_name_of_frames_per_clip():
    config = VJEPAConfig(num_frames=8)
    assert config.frames_per_clip == config.num_frames == 8


def test_saved_configuration_loads_equal_and_without_warning(tmp_path):
    config = VJEPAConfig(drop_path_rate=0.1, num_labels=5, patch_size=8, crop_size=112)
    config.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert VJEPAConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_misspelled_field_is_warned_about_with_the_nearest_one():
    with pytest.warns(UserWarning, match=r"no field 'hiden_size'.*'hidden_size'"):
        VJEPAConfig(hiden_size=64)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_size": 225}, r"crop_size is 225.*multiple of patch_size = 16.*224 or 240"),
        ({"frames_per_clip": 15}, r"frames_per_clip is 15.*tubelet_size = 2"),
        ({"hidden_size": 1000}, r"hidden_size is 1000.*num_attention_heads = 16"),
        ({"pred_hidden_size": 100}, r"pred_hidden_size is 100.*pred_num_attention_heads"),
        ({"hidden_size": 15, "num_attention_heads": 3}, r"hidden_size is 15.*even"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers is 0.*greater than 0"),
        ({"layer_norm_eps": float("nan")}, r"layer_norm_eps is nan"),
        ({"mlp_ratio": 0.0001}, r"mlp_ratio is 0.0001.*width 0"),
        ({"hidden_act": "gellu"}, r"hidden_act is 'gellu'.*gelu"),
        ({"hidden_size": 12, "num_attention_heads": 2, "uniform_power": False}, r"hidden_size is 12.*multiple of 8"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate is 1.0.*\[0, 1\)"),
    ],
)
def test_impossible_combination_raises_with_value_and_rule(fields, message):
    with pytest.raises(ValueError, match=message):
        VJEPAConfig(**fields)
