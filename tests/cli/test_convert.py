import json

import pytest
import torch
from typer.testing import CliRunner

from tests.conftest import REFERENCE
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
