import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2Model
from typer.testing import CliRunner

from tests.conftest import REFERENCE
from tests.reference_family import GIVEN, forward_case, reference_file
from vjepa_hub.cli import app
from vjepa_hub.model import VJEPAForVideoClassification, VJEPAModel, VJEPAVideoProcessor


def run_convert(*arguments: object):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)], env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_converted_file_loads_with_from_pretrained(reference_config, forward_case, tmp_path):
    reference_config.save_pretrained(tmp_path)
    result = run_convert(REFERENCE / "official_tiny.pth.tar", tmp_path / "out", "--config", tmp_path / "config.json")
    assert result.exit_code == 0, result.output
    assert "CC BY-NC" in result.output
    model = VJEPAModel.from_pretrained(tmp_path / "out")
    features = model.get_vision_features(forward_case["pixel_values_videos"])
    torch.testing.assert_close(features, forward_case["target_encoder.features"], rtol=0, atol=1e-5)
    assert VJEPAVideoProcessor.from_pretrained(tmp_path / "out").crop_size["height"] == 64


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_files_of_others_are_never_replaced(reference_config, tmp_path, name):
    reference_config.save_pretrained(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text('{"model_type": "bert"}')
    result = run_convert(REFERENCE / "official_tiny.pth.tar", out, "--config", tmp_path / "config.json")
    assert result.exit_code == 2
    assert f"{name}' would be replaced" in " ".join(result.output.replace("│", " ").split())
    assert [path.read_text() for path in out.iterdir() if path.name == name] == ['{"model_type": "bert"}']
    assert not list(out.glob("*.pt*"))


def test_converted_probe_is_a_classifier_with_its_class_names(reference_config, tmp_path):
    reference_config.save_pretrained(tmp_path)
    names = {str(index): f"class {index}" for index in range(7)}
    (tmp_path / "labels.json").write_text(json.dumps(names))
    options = ["--probe", REFERENCE / "official_tiny_probe.pth.tar", "--class-names", tmp_path / "labels.json"]
    result = run_convert(
        REFERENCE / "official_tiny.pth.tar", tmp_path / "out", "--config", tmp_path / "config.json", *options
    )
    assert result.exit_code == 0, result.output
    model = VJEPAForVideoClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label[6] == "class 6"
    assert model.classifier.weight.shape == (7, 64)


@pytest.mark.parametrize("their_class", [VJEPA2Model, VJEPA2ForVideoClassification])
def test_folder_of_transformers_becomes_one_of_ours(their_class, tmp_path):
    config = VJEPA2Config(
        crop_size=32,
        frames_per_clip=4,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
    )
    theirs = their_class(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    result = run_convert(tmp_path / "theirs", tmp_path / "out")
    assert result.exit_code == 0, result.output
    is_classifier = their_class is VJEPA2ForVideoClassification
    ours = (VJEPAForVideoClassification if is_classifier else VJEPAModel).from_pretrained(tmp_path / "out")
    clip = torch.randn(1, 4, 3, 32, 32)
    with torch.no_grad():
        if is_classifier:
            found, expected = ours(clip).logits, theirs(clip).logits
        else:
            found, expected = ours.get_vision_features(clip), theirs.get_vision_features(clip)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_options_of_a_file_are_refused_with_a_folder(tmp_path):
    result = run_convert(tmp_path, tmp_path / "out", "--num-attention-heads", 4)
    assert result.exit_code == 2
    assert "is a folder, which has its own configuration" in " ".join(result.output.replace("│", " ").split())


def _fork_options(generation: str) -> list[object]:
    return [part for name, value in GIVEN[generation].items() for part in (f"--{name.replace('_', '-')}", value)]


def test_configuration_of_a_fork_is_inferred(tmp_path):
    case = forward_case("v2.1")
    result = run_convert(reference_file("v2.1"), tmp_path / "out", *_fork_options("v2.1"))
    assert result.exit_code == 0, result.output
    features = VJEPAModel.from_pretrained(tmp_path / "out").get_vision_features(case["pixel_values_videos"])
    torch.testing.assert_close(features, case["target_encoder.features"], rtol=0, atol=1e-5)


def test_one_head_of_a_forks_probe_becomes_a_classifier(tmp_path):
    probe = torch.load(reference_file("v2", "official_tiny_probe_4_heads.pt"), weights_only=True)
    torch.save(probe | {"classifiers": [{}, *probe["classifiers"]]}, tmp_path / "probe.pt")
    options = ["--probe", tmp_path / "probe.pt", "--index", 1, "--set", "num_pooler_heads=4"]
    options += ["--set", "pooler_feature_layers=[0, 2]", "--set", "position_embedding=rotary_tiled"]
    result = run_convert(reference_file("v2"), tmp_path / "out", *_fork_options("v2"), *options)
    assert result.exit_code == 0, result.output
    model = VJEPAForVideoClassification.from_pretrained(tmp_path / "out")
    logits = model(forward_case("v2")["pixel_values_videos"]).logits
    recorded = load_file(reference_file("v2", "probe.safetensors"))["four_heads.joined_blocks.logits"]
    torch.testing.assert_close(logits, recorded, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-attention-heads", 4], "--pred-num-attention-heads, --crop-size, --frames-per-clip must be given too"),
        (["--crop-size", 64, "--model", "vjepa-vitl16"], "beside --model"),
        ([*_fork_options("v2"), "--set", "num_pooler_head=4"], "num_pooler_heads"),
        ([*_fork_options("v2"), "--set", "hidden_size=64"], "hidden_size is 64, but the file has 48"),
    ],
)
def test_numbers_of_a_fork_that_do_not_fit_are_refused(options, message, tmp_path):
    result = run_convert(reference_file("v2"), tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "vjepa-vitl14"], "unknown model 'vjepa-vitl14'; available: vjepa-vitl16"),
        (["--model", "vjepa-vitl16"], "official_tiny.pth.tar"),
        ([], "fits none of the released architectures"),
        (["--model", "vjepa-vitl16", "--config", str(REFERENCE / "official_tiny.pth.tar")], "both given"),
    ],
)
def test_file_that_is_not_what_was_said_is_refused_and_nothing_written(options, message, tmp_path):
    result = run_convert(REFERENCE / "official_tiny.pth.tar", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "out").exists()
