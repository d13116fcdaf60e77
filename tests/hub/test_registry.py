import pytest
import torch

from vjepa_hub import VJEPAForPreTraining
from vjepa_hub.hub.registry import MODELS, download_address, find_model


@pytest.mark.parametrize("name", MODELS)
def test_every_registered_model_can_be_built(name):
    with torch.device("meta"):
        model = VJEPAForPreTraining(find_model(name).config())
    assert sum(p.numel() for p in model.encoder.parameters()) > 0


# Millions of parameters of encoder and predictor, without position tables. V-JEPA: the paper's table of architectures.
# V-JEPA 2: 326, 654 and 1,034 in all, as in transformers' conversions. 2.1: and a second projection, norms, embeddings
SIZES = {
    "vjepa-vitl16": (303.9, 22.1),
    "vjepa-vith16": (631.7, 22.3),
    "vjepa-vith16-384": (631.7, 22.3),
    "vjepa2-vitl16": (303.9, 22.1),
    "vjepa2-vith16": (631.7, 22.3),
    "vjepa2-vitg16": (1012.2, 22.4),
    "vjepa2-vitg16-384": (1012.2, 22.4),
    "vjepa2.1-vitb16-384": (86.8, 22.9),
    "vjepa2.1-vitl16-384": (304.7, 23.0),
    "vjepa2.1-vitg16-384": (1013.3, 55.4),
    "vjepa2.1-vitgg16-384": (1845.2, 59.4),
}


@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if entry.checkpoint])
def test_released_models_have_their_size(name):
    with torch.device("meta"):
        model = VJEPAForPreTraining(find_model(name).config())
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.encoder, model.predictor)]
    assert sizes == pytest.approx(SIZES[name], abs=0.06)


def test_tiny_encoder_has_at_most_six_million_parameters():
    with torch.device("meta"):
        encoder = VJEPAForPreTraining(find_model("vjepa-vit-tiny").config()).encoder
    assert sum(p.numel() for p in encoder.parameters()) <= 6e6


def test_released_addresses_name_checkpoint_and_five_probes():
    entry = find_model("vjepa-vith16-384")
    assert entry.checkpoint == "https://dl.fbaipublicfiles.com/jepa/vith16-384/vith16-384.pth.tar"
    assert entry.probes["k400"] == "https://dl.fbaipublicfiles.com/jepa/vith16-384/k400-probe.pth.tar"
    assert set(entry.probes) == {"k400", "ssv2", "in1k", "places205", "inat21"}


def test_addresses_of_v_jepa_2_are_the_release_s():
    base, entry = "https://dl.fbaipublicfiles.com/vjepa2/", find_model("vjepa2-vitg16-384")
    assert [MODELS[name].checkpoint.removeprefix(base) for name in MODELS if name.startswith("vjepa2")] == [
        "vitl.pt",
        "vith.pt",
        "vitg.pt",
        "vitg-384.pt",
        "vjepa2_1_vitb_dist_vitG_384.pt",
        "vjepa2_1_vitl_dist_vitG_384.pt",
        "vjepa2_1_vitg_384.pt",
        "vjepa2_1_vitG_384.pt",
    ]
    assert {name: address.removeprefix(base) for name, address in entry.probes.items()} == {
        "ssv2": "evals/ssv2-vitg-384-64x2x3.pt",
        "diving48": "evals/diving48-vitg-384-32x4x3.pt",
        "ek100": "evals/ek100-vitg-384.pt",
    }
    assert find_model("vjepa2-vitl16").probes["ssv2"] == f"{base}evals/ssv2-vitl-16x2x3.pt"


def test_a_mirror_stands_for_the_addresses_of_both_releases(monkeypatch):
    monkeypatch.setenv("VJEPA_HUB_BASE_URL", "https://mirror.example.org/files")
    found = [download_address(find_model(name).checkpoint) for name in ("vjepa-vitl16", "vjepa2-vitl16")]
    assert found == [f"https://mirror.example.org/files/{file}" for file in ("vitl16/vitl16.pth.tar", "vitl.pt")]


@pytest.mark.parametrize(
    ("name", "dataset", "expected"),
    [
        ("vjepa2-vitl16", "ssv2", (16, None)),
        ("vjepa2-vitl16", "diving48", (32, [17, 19, 21, 23])),
        ("vjepa2-vitg16-384", "ssv2", (64, None)),
        ("vjepa2-vitg16-384", "diving48", (32, [24, 29, 34, 39])),
    ],
)
def test_classifiers_of_v_jepa_2_have_the_released_probe_s_form(name, dataset, expected):
    config = find_model(name).config(dataset)
    assert (config.frames_per_clip, config.pooler_feature_layers) == expected
    assert (config.num_pooler_layers, config.num_pooler_heads) == (4, 16)
    assert find_model(name).config().num_pooler_heads is None


@pytest.mark.parametrize("name", ["vitG16", "vjepa2.1-vitG16-384"])
def test_capital_g_is_answered_with_the_name_of_each(name):
    with pytest.raises(KeyError, match=r"ViT-G is 'vjepa2\.1-vitgg16-384', ViT-g 'vjepa2-vitg16'"):
        find_model(name)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(KeyError, match=r"unknown model 'vjepa-vitl14'; available: vjepa-vitl16"):
        find_model("vjepa-vitl14")
