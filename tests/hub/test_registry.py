import pytest
import torch

from vjepa_hub import VJEPAForPreTraining
from vjepa_hub.hub.registry import MODELS, find_model


@pytest.mark.parametrize("name", MODELS)
def test_every_registered_model_can_be_built(name):
    with torch.device("meta"):
        model = VJEPAForPreTraining(find_model(name).config())
    assert sum(p.numel() for p in model.encoder.parameters()) > 0


@pytest.mark.parametrize(
    ("name", "millions"),  # the paper's table of architectures: ViT-L 200 M (with a decoder's rounding), ViT-H 630 M
    [("vjepa-vitl16", 304), ("vjepa-vith16", 632), ("vjepa-vith16-384", 632)],
)
def test_released_models_have_the_paper_s_size(name, millions):
    with torch.device("meta"):
        encoder = VJEPAForPreTraining(find_model(name).config()).encoder
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_tiny_encoder_has_at_most_six_million_parameters():
    with torch.device("meta"):
        encoder = VJEPAForPreTraining(find_model("vjepa-vit-tiny").config()).encoder
    assert sum(p.numel() for p in encoder.parameters()) <= 6e6


def test_released_addresses_name_checkpoint_and_five_probes():
    entry = find_model("vjepa-vith16-384")
    assert entry.checkpoint == "https://dl.fbaipublicfiles.com/jepa/vith16-384/vith16-384.pth.tar"
    assert entry.probes["k400"] == "https://dl.fbaipublicfiles.com/jepa/vith16-384/k400-probe.pth.tar"
    assert set(entry.probes) == {"k400", "ssv2", "in1k", "places205", "inat21"}


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(KeyError, match=r"unknown model 'vjepa-vitl14'; available: vjepa-vitl16"):
        find_model("vjepa-vitl14")
