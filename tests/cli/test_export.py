import pytest
import torch
from transformers import AutoModel
from typer.testing import CliRunner

from tests.reference_family import tiny_config
from vjepa_hub import VJEPAForVideoClassification, VJEPAModel
from vjepa_hub.cli import app


def run_export(*arguments: object):
    return CliRunner().invoke(app, ["export", *map(str, arguments)], env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.mark.parametrize("model_class", [VJEPAModel, VJEPAForVideoClassification])
def test_exported_program_gives_what_the_folder_holds(model_class, small_config, small_clip, tmp_path):
    torch.manual_seed(0)
    model = model_class(small_config).eval()
    model.save_pretrained(tmp_path / "model")
    result = run_export(tmp_path / "model", tmp_path / "model.pt2")
    assert result.exit_code == 0, result.output
    exported = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        expected = model(small_clip)
    wanted = expected.logits if model_class is VJEPAForVideoClassification else expected.last_hidden_state
    torch.testing.assert_close(exported(small_clip), wanted, atol=2e-6, rtol=1e-5)


def test_a_file_that_names_no_format_is_refused(tmp_path):
    result = run_export("vjepa-vit-tiny", tmp_path / "model.bin")
    assert result.exit_code == 2
    assert "neither .onnx nor .pt2" in result.output


def test_exported_folder_is_transformers_own(tmp_path):
    torch.manual_seed(0)
    model = VJEPAModel(tiny_config("v2")).eval()
    model.save_pretrained(tmp_path / "model")
    result = run_export(tmp_path / "model", tmp_path / "out", "--format", "transformers")
    assert result.exit_code == 0, result.output
    theirs, clip = AutoModel.from_pretrained(tmp_path / "out"), torch.randn(1, 8, 3, 64, 64)
    assert theirs.config.model_type == "vjepa2"
    with torch.no_grad():
        torch.testing.assert_close(
            theirs.get_vision_features(clip), model.get_vision_features(clip), atol=1e-5, rtol=0
        )


def test_model_is_not_exported_over_what_is_read_or_over_another_model(small_config, tmp_path):
    checkpoint = tmp_path / "model.pt2"
    checkpoint.write_bytes(b"released")
    result = run_export(checkpoint, checkpoint)
    assert result.exit_code != 0
    assert "read by the same command" in " ".join(result.output.split())
    assert checkpoint.read_bytes() == b"released"
    VJEPAModel(tiny_config("v2")).save_pretrained(tmp_path / "model")
    VJEPAModel(small_config).save_pretrained(tmp_path / "other")
    result = run_export(tmp_path / "model", tmp_path / "other", "--format", "transformers")
    assert result.exit_code != 0
    assert "vjepa_hub did not write it" in " ".join(result.output.split())
    assert AutoModel.from_pretrained(tmp_path / "other").config.model_type == "vjepa"
