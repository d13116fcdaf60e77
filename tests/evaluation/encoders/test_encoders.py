import hashlib
import inspect
import logging

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    TimesformerConfig,
    TimesformerModel,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTMAEConfig,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
    VJEPA2Model,
    VJEPA2VideoProcessor,
)

from vjepa_hub import VJEPAConfig, VJEPAForPreTraining, VJEPAModel, VJEPAVideoProcessor
from vjepa_hub.evaluation.encoders import timm_encoders, transformers_encoders
from vjepa_hub.evaluation.encoders.frozen_encoder import EncoderFacts, ImageEncoder, count_heads
from vjepa_hub.evaluation.encoders.opening import FrozenEncoder, open_encoder
from vjepa_hub.hub.download import DownloadError

WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
NARROW = {**WIDTH, "intermediate_size": 64}
# Dropout that would be seen if an encoder left eval mode
IMAGE = {**NARROW, "image_size": 32, "patch_size": 8, "hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
VIDEOMAE = {**IMAGE, "num_frames": 4, "tubelet_size": 2}
VJEPA = {**WIDTH, "crop_size": 32, "patch_size": 8, "frames_per_clip": 4, "tubelet_size": 2}
PREDICTOR = {"pred_hidden_size": 24, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 4}
VJEPA2 = {**VJEPA, **PREDICTOR, "attention_dropout": 0.5, "hidden_dropout": 0.5}
TIMM_VIT = "vit_tiny_patch16_224"


def _clips(num_frames=4, side=32, batch_size=2):
    return torch.randn(batch_size, num_frames, 3, side, side, generator=torch.Generator().manual_seed(0))


def _randomised(model):
    """Position tables and mask tokens may start at zero, so that a wrong order of tokens would not be seen."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def _saved(model, folder):
    _randomised(model).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def vit(tmp_path):
    """A folder of a classifier: its encoder has no pooler."""
    folder = _saved(ViTForImageClassification(ViTConfig(**IMAGE)), tmp_path / "vit")
    ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def videomae(tmp_path):
    return _saved(VideoMAEModel(VideoMAEConfig(**VIDEOMAE)), tmp_path / "videomae")


@pytest.fixture
def vjepa2(tmp_path):
    folder = _saved(VJEPA2Model(VJEPA2Config(**VJEPA2)), tmp_path / "vjepa2")
    VJEPA2VideoProcessor(crop_size=32, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(folder)
    return folder


@pytest.fixture
def vjepa(tmp_path):
    model = VJEPAForPreTraining(VJEPAConfig(**VJEPA, **PREDICTOR))
    _randomised(model.target_encoder)
    folder = _saved(model, tmp_path / "vjepa")
    VJEPAVideoProcessor(crop_size=32, image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder)
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Image encoders
# ---------------------------------------------------------------------------------------------------------------------


def _assert_encodes_frame_by_frame(encoder, clips):
    tokens = encoder(clips)
    frames = [encoder(clips[:, frame : frame + 1]) for frame in range(clips.shape[1])]
    assert tokens.shape == (clips.shape[0], sum(part.shape[1] for part in frames), encoder.hidden_size)
    torch.testing.assert_close(tokens, torch.cat(frames, dim=1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "crop_size", "num_tokens", "num_heads"),
    [(TIMM_VIT, 32, 4, 3), ("convnext_atto", 64, 4, 5), ("deit_tiny_distilled_patch16_224", 48, 9, 3)],
)
def test_timm_tokens_are_those_of_each_frame_one_after_the_other(name, crop_size, num_tokens, num_heads):
    encoder = open_encoder(f"untrained:timm:{name}", crop_size=crop_size)
    assert (encoder.crop_size, encoder.frames_per_clip, encoder.num_attention_heads) == (crop_size, 16, num_heads)
    clips = _clips(3, crop_size)
    assert encoder(clips).shape[1] == 3 * num_tokens
    _assert_encodes_frame_by_frame(encoder, clips)


def test_class_token_of_timm_is_left_out():
    encoder = open_encoder(f"untrained:timm:{TIMM_VIT}", crop_size=32)
    frame = _clips(1)
    torch.testing.assert_close(encoder(frame), encoder.model.forward_features(frame[:, 0])[:, 1:])
    assert encoder.description.endswith("1 class or register token left out")


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224"])
def test_maps_of_timm_become_tokens_in_raster_order(name):
    encoder = open_encoder(f"untrained:timm:{name}", crop_size=224 if name.startswith("swin") else 64)
    frame = _clips(1, encoder.crop_size, batch_size=1)
    features = encoder.model.forward_features(frame[:, 0])[0]
    features = features if features.shape[-1] == encoder.hidden_size else features.permute(1, 2, 0)
    tokens = encoder(frame)[0]
    assert tokens.shape == (features.shape[0] * features.shape[1], encoder.hidden_size)
    torch.testing.assert_close(tokens[features.shape[1] + 1], features[1, 1], atol=1e-5, rtol=1e-4)


def test_preprocessing_of_timm_is_that_of_its_weights():
    encoder = open_encoder("untrained:timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert (encoder.mean, encoder.std, encoder.crop_size) == ((0.5,) * 3, (0.5,) * 3, 224)


@pytest.mark.parametrize("max_frames_per_pass", [1, 3, 64])
def test_tokens_do_not_depend_on_how_many_frames_go_through_at_once(max_frames_per_pass):
    whole = open_encoder(f"untrained:timm:{TIMM_VIT}", crop_size=32, max_frames_per_pass=1000)
    parts = open_encoder(f"untrained:timm:{TIMM_VIT}", crop_size=32, max_frames_per_pass=max_frames_per_pass)
    torch.testing.assert_close(parts(_clips()), whole(_clips()), atol=1e-5, rtol=1e-4)


def test_no_more_frames_than_asked_for_go_through_at_once():
    sizes = []

    class Counting(ImageEncoder):
        def encode_frames(self, frames):
            sizes.append(len(frames))
            return frames.flatten(2).transpose(1, 2)

    facts = EncoderFacts(
        name="counting",
        hidden_size=3,
        num_attention_heads=1,
        crop_size=32,
        frames_per_clip=16,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        description="",
        is_trained=False,
    )
    Counting(nn.Linear(1, 1), facts, max_frames_per_pass=3)(_clips())
    assert sizes == [3, 3, 2]


def test_image_model_of_transformers_gives_the_tokens_of_each_frame(vit):
    encoder = open_encoder(f"hf:{vit}")
    _assert_encodes_frame_by_frame(encoder, _clips())
    own = ViTForImageClassification.from_pretrained(vit).eval().vit(_clips()[:, 2]).last_hidden_state
    torch.testing.assert_close(encoder(_clips())[:, 32:48], own[:, 1:], atol=1e-5, rtol=1e-4)
    assert (encoder.hidden_size, encoder.num_attention_heads, encoder.frames_per_clip) == (32, 4, 16)
    assert (encoder.mean, encoder.std, encoder.crop_size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 32)
    assert encoder.is_trained
    assert not any("pooler" in name for name in encoder.state_dict())
    assert encoder.description == (
        f"transformers' vit model, from the folder {vit}; 1 class or register token left out"
    )


@pytest.mark.parametrize(
    ("model_class", "config", "num_left_out"),
    [
        (Dinov2Model, Dinov2Config(**IMAGE), 1),
        (Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**IMAGE, num_register_tokens=4), 5),
        (ConvNextModel, ConvNextConfig(num_stages=2, hidden_sizes=[16, 32], depths=[1, 1], image_size=32), 0),
    ],
)
def test_image_models_of_transformers_give_tokens_of_patches_only(tmp_path, model_class, config, num_left_out):
    folder = _saved(model_class(config), tmp_path)
    encoder = open_encoder(f"hf:{folder}")
    own = model_class.from_pretrained(folder).eval()(_clips(1)[:, 0]).last_hidden_state
    own = own.flatten(2).transpose(1, 2) if own.ndim == 4 else own
    torch.testing.assert_close(encoder(_clips(1)), own[:, num_left_out:])
    _assert_encodes_frame_by_frame(encoder, _clips())


@pytest.mark.parametrize("crop_size", [48, 24])
def test_image_models_of_transformers_take_other_sizes(vit, tmp_path, crop_size):
    for folder in (vit, _saved(Dinov2Model(Dinov2Config(**IMAGE)), tmp_path / "dinov2")):
        encoder = open_encoder(f"hf:{folder}", crop_size=crop_size)
        assert encoder(_clips(2, crop_size)).shape == (2, 2 * (crop_size // 8) ** 2, 32)


# ---------------------------------------------------------------------------------------------------------------------
# Video encoders
# ---------------------------------------------------------------------------------------------------------------------


def test_videomae_gives_the_models_own_output(videomae):
    encoder = open_encoder(f"hf:{videomae}")
    own = VideoMAEModel.from_pretrained(videomae).eval()(_clips()).last_hidden_state
    assert own.shape == (2, 32, 32)
    torch.testing.assert_close(encoder(_clips()), own)
    assert (encoder.frames_per_clip, encoder.crop_size, encoder.num_attention_heads) == (4, 32, 4)


def test_timesformer_gives_the_models_own_output_without_its_class_token(tmp_path):
    folder = _saved(TimesformerModel(TimesformerConfig(**IMAGE, num_frames=4)), tmp_path)
    own = TimesformerModel.from_pretrained(folder).eval()(_clips()).last_hidden_state
    torch.testing.assert_close(open_encoder(f"hf:{folder}")(_clips()), own[:, 1:])


def test_vjepa2_gives_the_models_own_output(vjepa2):
    encoder = open_encoder(f"hf:{vjepa2}")
    own = VJEPA2Model.from_pretrained(vjepa2).eval()(_clips(), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(encoder(_clips()), own)
    assert (encoder.mean, encoder.std, encoder.crop_size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 32)
    assert not any("predictor" in name for name in encoder.state_dict())


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (VideoMAEForPreTraining, VideoMAEConfig(**VIDEOMAE, decoder_hidden_size=32, decoder_num_attention_heads=4)),
        (VideoMAEForVideoClassification, VideoMAEConfig(**VIDEOMAE)),
        (VJEPA2ForVideoClassification, VJEPA2Config(**VJEPA2)),
    ],
)
def test_folders_with_other_heads_give_the_tokens_of_their_encoder(tmp_path, model_class, config):
    folder = _saved(model_class(config), tmp_path)
    inner = model_class.from_pretrained(folder).eval().base_model
    options = {"skip_predictor": True} if config.model_type == "vjepa2" else {}
    torch.testing.assert_close(open_encoder(f"hf:{folder}")(_clips()), inner(_clips(), **options).last_hidden_state)


def test_vjepa2_takes_another_length_and_size_with_the_positions_of_that_size(vjepa2):
    encoder = open_encoder(f"hf:{vjepa2}", frames_per_clip=8, crop_size=48)
    assert (encoder.frames_per_clip, encoder.crop_size) == (8, 48)
    config = VJEPA2Config(**{**VJEPA2, "crop_size": 48, "frames_per_clip": 8})
    reference = VJEPA2Model.from_pretrained(vjepa2, config=config).eval()
    clips = _clips(8, 48)
    torch.testing.assert_close(encoder(clips), reference(clips, skip_predictor=True).last_hidden_state)
    with pytest.raises(ValueError, match="opened for 48 x 48"):
        encoder(_clips(8, 32))


def test_vjepa_gives_the_target_encoders_output(vjepa):
    encoder = open_encoder(vjepa)
    own = VJEPAForPreTraining.from_pretrained(vjepa).eval()
    torch.testing.assert_close(encoder(_clips()), own.target_encoder(_clips()).last_hidden_state)
    assert not torch.allclose(encoder(_clips()), own.encoder(_clips()).last_hidden_state, atol=1e-2)
    torch.testing.assert_close(encoder(_clips()), VJEPAModel.from_pretrained(vjepa).get_vision_features(_clips()))
    assert (encoder.hidden_size, encoder.num_attention_heads, encoder.frames_per_clip) == (32, 4, 4)
    assert (encoder.name, encoder.mean, encoder.crop_size) == (vjepa, (0.1, 0.2, 0.3), 32)
    assert encoder.description == f"V-JEPA, from the folder {vjepa}"


def test_vjepa_takes_another_length_and_size(vjepa):
    encoder = open_encoder(vjepa, frames_per_clip=8, crop_size=48)
    assert (encoder.frames_per_clip, encoder.crop_size) == (8, 48)
    assert encoder(_clips(8, 48)).shape == (2, 4 * 36, 32)


def test_image_becomes_a_still_clip_for_video_models(vjepa, vjepa2, videomae):
    image = _clips(1)
    for spec in (vjepa, f"hf:{vjepa2}", f"hf:{videomae}"):
        encoder = open_encoder(spec)
        torch.testing.assert_close(encoder(image), encoder(image.repeat(1, 4, 1, 1, 1)))


# ---------------------------------------------------------------------------------------------------------------------
# Frozen
# ---------------------------------------------------------------------------------------------------------------------


def test_nothing_takes_a_gradient(vit, videomae, vjepa2, vjepa):
    for spec in (f"hf:{vit}", f"hf:{videomae}", f"hf:{vjepa2}", vjepa):
        encoder = open_encoder(spec)
        assert not any(parameter.requires_grad for parameter in encoder.parameters())
        clips = _clips().requires_grad_()
        encoder.requires_grad_(True)
        assert not encoder(clips).requires_grad


def test_training_mode_does_not_switch_dropout_on(vit, videomae):
    for folder in (vit, videomae):
        encoder = open_encoder(f"hf:{folder}")
        tokens = encoder(_clips())
        probe = nn.ModuleList([encoder]).train()
        assert probe.training
        assert not any(module.training for module in encoder.modules())
        assert torch.equal(encoder(_clips()), tokens)
        encoder.model.train()  # the dropout is there to be seen
        assert not torch.allclose(encoder(_clips()), tokens, atol=1e-2)


def test_weights_can_be_cast_and_clips_follow(vit):
    encoder = open_encoder(f"hf:{vit}", dtype="bfloat16")
    assert encoder(_clips()).dtype == encoder.dtype == torch.bfloat16
    assert open_encoder(f"hf:{vit}", dtype=torch.float64)(_clips()).dtype == torch.float64


# ---------------------------------------------------------------------------------------------------------------------
# Fingerprint
# ---------------------------------------------------------------------------------------------------------------------


def test_fingerprint_does_not_depend_on_the_number_format_that_was_asked_for(vjepa):
    stored = open_encoder(vjepa).fingerprint()
    for dtype in ("bfloat16", "float64", "float32"):
        encoder = open_encoder(vjepa, dtype=dtype)
        assert encoder.fingerprint() == stored
    assert open_encoder(vjepa).place(dtype=torch.float16).fingerprint() == stored


def test_fingerprint_changes_when_a_weight_changes(vjepa):
    encoder = open_encoder(vjepa)
    before = encoder.fingerprint()
    weight = next(encoder.parameters())
    with torch.no_grad():
        weight.view(-1)[5] += 1e-3
    changed = encoder.fingerprint()
    assert changed != before
    with torch.no_grad():
        weight.view(-1)[5] += 1e-3
    assert encoder.fingerprint() not in (before, changed)


def test_fingerprint_is_of_the_target_encoder_whatever_folder_it_lies_in(vjepa, tmp_path):
    VJEPAModel.from_pretrained(vjepa).save_pretrained(tmp_path / "features")
    VJEPAVideoProcessor(crop_size=32).save_pretrained(tmp_path / "features")
    assert open_encoder(str(tmp_path / "features")).fingerprint() == open_encoder(vjepa).fingerprint()


def test_fingerprint_is_computed_once(vit, monkeypatch):
    encoder = open_encoder(f"hf:{vit}")
    first = encoder.fingerprint()
    monkeypatch.setattr(hashlib, "sha256", None)
    assert encoder.fingerprint() == first


# ---------------------------------------------------------------------------------------------------------------------
# Untrained
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["timm", "vit", "videomae", "vjepa2", "vjepa", "registered"])
def spec(request):
    if request.param == "timm":
        return f"timm:{TIMM_VIT}"
    if request.param == "registered":
        return "vjepa-vit-tiny"
    folder = request.getfixturevalue(request.param)
    return folder if request.param == "vjepa" else f"hf:{folder}"


def test_untrained_weights_are_a_function_of_the_seed_and_leave_torchs_generator_alone(spec):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    encoder = open_encoder(f"untrained:{spec}", seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert open_encoder(spec, pretrained=False, seed=3).fingerprint() == encoder.fingerprint()
    assert open_encoder(spec, pretrained=False, seed=4).fingerprint() != encoder.fingerprint()
    assert not encoder.is_trained
    assert "untrained, random weights of seed 3" in encoder.description
    assert encoder.name == f"untrained:{spec}"


def test_untrained_weights_are_not_those_of_the_folder(vit, vjepa):
    for spec in (f"hf:{vit}", vjepa):
        trained, untrained = open_encoder(spec), open_encoder(f"untrained:{spec}")
        assert untrained.fingerprint() != trained.fingerprint()
        assert untrained(_clips()).shape == trained(_clips()).shape


def test_bundled_model_is_told_as_trained_and_where_its_weights_come_from():
    encoder = open_encoder("vjepa-vit-tiny")
    assert encoder.is_trained
    assert "pretrained by vjepa_hub" in encoder.description


# ---------------------------------------------------------------------------------------------------------------------
# Weights of timm
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [1000, 7, 0])
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_timm_weights_are_read_from_a_file_whatever_its_head(tmp_path, num_classes, ending):
    model = _randomised(timm.create_model(TIMM_VIT, pretrained=False, num_classes=num_classes))
    file = tmp_path / f"model.{ending}"
    if ending == "pth":
        torch.save({"state_dict": model.state_dict()}, file)
    else:
        save_file(model.state_dict(), file)
    encoder = open_encoder(f"timm:{TIMM_VIT}@{file}")
    frame = _clips(1, 224, batch_size=1)
    torch.testing.assert_close(encoder(frame), model.forward_features(frame[:, 0])[:, 1:])
    assert encoder.is_trained
    assert f"weights of the file {file.name}" in encoder.description


def test_timm_positions_of_a_file_are_resized_to_the_crop(tmp_path):
    model = _randomised(timm.create_model(TIMM_VIT, pretrained=False))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    encoder = open_encoder(f"timm:{TIMM_VIT}@{tmp_path / 'model.safetensors'}", crop_size=32)
    assert encoder(_clips()).shape == (2, 16, 192)
    torch.testing.assert_close(encoder.model.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)


def test_timm_file_that_lacks_weights_is_refused(tmp_path):
    weights = timm.create_model(TIMM_VIT, pretrained=False).state_dict()
    del weights["blocks.3.attn.qkv.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"does not hold the weights of timm's vit_tiny.*blocks\.3\.attn\.qkv\.weight"
    ):
        open_encoder(f"timm:{TIMM_VIT}@{tmp_path / 'model.safetensors'}")


class _Payload:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of the file was run')",))


def test_timm_file_that_holds_code_is_refused(tmp_path):
    torch.save({"state_dict": {}, "extra": _Payload()}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"read as weights.*Python object \S+exec.*Give a \.safetensors file"):
        open_encoder(f"timm:{TIMM_VIT}@{tmp_path / 'model.pth'}")


def test_failed_download_of_timm_names_the_model_and_the_remedies(monkeypatch):
    def create_model(name, **options):
        assert options["pretrained"]
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(timm_encoders.timm, "create_model", create_model)
    with pytest.raises(DownloadError, match=r"weights of timm's vit_tiny.*no network.*HF_HUB_OFFLINE=1.*@model"):
        open_encoder(f"timm:{TIMM_VIT}")


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["", "untrained:", "timm:", "hf:", "untrained:hf:"])
def test_empty_names_are_refused(spec):
    with pytest.raises(ValueError, match=f"'{spec}' names no encoder; give one of NAME"):
        open_encoder(spec)


def test_unknown_prefix_is_refused():
    with pytest.raises(ValueError, match=r"begins with 'keras:', which is no known library; give one of .*timm:NAME"):
        open_encoder("keras:resnet50")


def test_unknown_vjepa_name_is_refused():
    with pytest.raises(KeyError, match=r"vjepa-vitx.*registered: vjepa-vitl16"):
        open_encoder("vjepa-vitx")
    with pytest.raises(KeyError, match=r"unknown model 'vjepa-vitx'; available: vjepa-vitl16"):
        open_encoder("untrained:vjepa-vitx")


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("timm:vit_tiny_patch17_224", ValueError, "has no model 'vit_tiny_patch17_224'.*vit_tiny_patch16_224"),
        ("timm:vit_tiny_patch16_224.mine", ValueError, r"no weights 'vit_tiny_patch16_224\.mine'; .*augreg_in21k"),
        ("timm:vit_tiny_patch16_224@missing.safetensors", FileNotFoundError, "'missing.safetensors'.*is no file"),
    ],
)
def test_unknown_weights_of_timm_are_refused(spec, error, message):
    with pytest.raises(error, match=message):
        open_encoder(spec)


def test_model_without_weights_is_refused_by_timm_and_can_be_opened_untrained():
    name = next(name for name in timm.list_models("vit_*") if not timm.models.is_model_pretrained(name))
    with pytest.raises(ValueError, match=f"there are: none.*untrained:timm:{name}$"):
        open_encoder(f"timm:{name}")


class _Backbone(nn.Module):
    def __init__(self, features, num_features=8):
        super().__init__()
        self.features, self.num_features = features, num_features
        self.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
        self.layer = nn.Linear(1, 1)

    def forward_features(self, frames):
        return self.features


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(1, 8), r"gives a tensor \(1, 8\).*a probe takes tokens"),
        ((torch.zeros(1, 4, 8),), "gives tuple for a frame"),
        (torch.zeros(1, 8, 8, 8), r"does not say which axis is its width.*num_features = 8"),
        (torch.zeros(1, 5, 6, 7), "does not say which axis"),
    ],
)
def test_timm_models_whose_tokens_cannot_be_told_are_refused(monkeypatch, features, message):
    monkeypatch.setattr(timm_encoders.timm, "create_model", lambda name, **options: _Backbone(features))
    with pytest.raises(ValueError, match=message):
        open_encoder(f"untrained:timm:{TIMM_VIT}")


def test_models_that_take_no_images_are_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="is a 'bert' model, whose input is input_ids, but an encoder takes pixel_val"
    ):
        open_encoder(f"hf:{tmp_path}")


def test_models_of_images_and_texts_are_refused(tmp_path):
    text = {**NARROW, "vocab_size": 10, "eos_token_id": 9}
    CLIPModel(CLIPConfig(text_config=text, vision_config=IMAGE)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'clip' model|gives no tokens"):
        open_encoder(f"hf:{tmp_path}", crop_size=32)


def test_hub_names_that_cannot_be_loaded_are_named_with_the_remedies(monkeypatch):
    def from_pretrained(name, **options):
        assert options == {"trust_remote_code": False}
        raise OSError("no network")

    monkeypatch.setattr(transformers_encoders.AutoConfig, "from_pretrained", from_pretrained)
    with pytest.raises(DownloadError, match=r"'owner/vit' is no folder.*no network.*HF_HUB_OFFLINE=1.*hf:FOLDER"):
        open_encoder("hf:owner/vit")


def test_models_that_hide_patches_at_random_are_refused(tmp_path):
    ViTMAEConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"hides patches at random.*mask_ratio = 0\.75.*timm"):
        open_encoder(f"hf:{tmp_path}")


def test_vjepa_folder_is_not_taken_for_one_of_transformers(vjepa):
    with pytest.raises(ValueError, match="open it without the prefix hf:"):
        open_encoder(f"hf:{vjepa}")


def test_folder_that_lacks_weights_is_refused(vit):
    weights = load_file(f"{vit}/model.safetensors")
    lost = next(name for name in weights if "layer" in name and "1" in name and name.endswith("weight"))
    del weights[lost]
    save_file(weights, f"{vit}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights of its ViTModel, which would stay random"):
        open_encoder(f"hf:{vit}")


def test_missing_processor_is_logged_and_told_in_the_description(videomae, caplog):
    with caplog.at_level(logging.WARNING, logger="vjepa_hub"):
        encoder = open_encoder(f"hf:{videomae}")
    assert "has no processor" in caplog.text
    assert "ImageNet's mean and std" in encoder.description
    assert encoder.mean == (0.485, 0.456, 0.406)


def test_processor_that_scales_otherwise_is_refused(vit):
    ViTImageProcessor(rescale_factor=1 / 127.5).save_pretrained(vit)
    with pytest.raises(ValueError, match=r"multiplies pixels by 0\.0078.*1 / 255"):
        open_encoder(f"hf:{vit}")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("videomae", {"frames_per_clip": 8}, "frames_per_clip is 8, but the positions of hf:.* are made for 4"),
        ("videomae", {"crop_size": 48}, "crop_size is 48, but the positions of hf:.* are made for 32"),
        ("vjepa2", {"frames_per_clip": 3}, r"frames_per_clip is 3, but .* takes multiples of 2, such as 2 or 4"),
        ("vjepa2", {"crop_size": 30}, r"crop_size is 30, but .* takes multiples of 8"),
        ("vjepa", {"frames_per_clip": 3}, r"frames_per_clip is 3, but .* takes multiples of 2"),
        ("vjepa", {"crop_size": 30}, r"crop_size is 30, but .* takes multiples of 8"),
        ("vit", {"crop_size": 30}, r"crop_size is 30, but .* takes multiples of 8"),
        ("timm", {"crop_size": 40}, r"crop_size is 40, but .* takes multiples of 16, such as 32 or 48"),
        ("vjepa", {"frames_per_clip": 0}, "frames_per_clip is 0, but must be greater than 0"),
        ("vit", {"max_frames_per_pass": 0}, "max_frames_per_pass is 0, but must be greater than 0"),
        ("vjepa", {"dtype": "int8"}, "dtype is 'int8', but must be a floating format"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(request, kind, options, message):
    spec = f"untrained:timm:{TIMM_VIT}" if kind == "timm" else request.getfixturevalue(kind)
    spec = spec if kind in ("timm", "vjepa") else f"hf:{spec}"
    with pytest.raises(ValueError, match=message):
        open_encoder(spec, **options)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (torch.zeros(2, 3, 32, 32), r"shape \(2, 3, 32, 32\), but .* takes \(batch_size, num_frames, 3"),
        (torch.zeros(2, 3, 4, 32, 32), r"shape \(2, 3, 4, 32, 32\), but"),
        (torch.zeros(0, 4, 3, 32, 32), "none of them 0"),
        (torch.zeros(2, 4, 3, 32, 32, dtype=torch.uint8), "clips are torch.uint8, but .* takes floats"),
        (torch.zeros(2, 4, 3, 48, 48), "and nothing else: its positions are made for that"),
    ],
)
def test_clips_that_are_none_are_refused(videomae, clips, message):
    with pytest.raises(ValueError, match=message):
        open_encoder(f"hf:{videomae}")(clips)


@pytest.mark.parametrize(
    ("width", "num_heads", "expected"),
    [(768, 12, 12), (192, None, 3), (320, None, 5), (100, 12, 2), (2048, None, 32), (7, None, 1), (96, None, 2)],
)
def test_probe_has_the_encoders_heads_or_heads_of_about_64_channels(width, num_heads, expected):
    assert count_heads(width, num_heads) == expected


def test_encoder_is_abstract():
    assert inspect.isabstract(FrozenEncoder)
