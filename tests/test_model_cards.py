"""The cards of `model_cards/`: registry, hubconf, recipes, protocols and README say the same, and every block runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import hubconf
from vjepa_hub import VJEPAConfig, VJEPAForVideoClassification, VJEPAModel, VJEPAVideoProcessor
from vjepa_hub.data.samples import sample_clip_path
from vjepa_hub.evaluation.protocols import PROTOCOLS, find_protocol
from vjepa_hub.hub.conversion import CONVERTER_VERSION
from vjepa_hub.hub.loading import CACHE_ACCOUNT
from vjepa_hub.hub.registry import EVALUATION_SETS, MODELS
from vjepa_hub.pretraining.recipe import load_recipe
from vjepa_hub.publishing.card import check_card, is_ours, python_blocks, render_card
from vjepa_hub.publishing.facts import CardFacts
from vjepa_hub.publishing.registry_cards import registered_facts

ROOT = Path(__file__).parents[1]
CARDS = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "model_cards").glob("*.md"))}
# The papers' numbers, written out a second time. V-JEPA: Kinetics-400, SSv2, ImageNet-1k, Places205, iNaturalist 2021
PUBLISHED = {
    "vjepa-vitl16": [80.8, 69.5, 74.8, 60.3, 67.8],
    "vjepa-vith16": [82.0, 71.4, 75.9, 61.7, 67.9],
    "vjepa-vith16-384": [81.9, 72.2, 77.4, 62.8, 72.6],
    "vjepa2-vitl16": [73.7, 89.0, 32.7],  # SSv2, Diving48, EPIC-KITCHENS-100
    "vjepa2-vith16": [],
    "vjepa2-vitg16": [],
    "vjepa2-vitg16-384": [77.3, 90.2, 39.7],
    "vjepa2.1-vitb16-384": [],
    "vjepa2.1-vitl16-384": [76.5],  # SSv2
    "vjepa2.1-vitg16-384": [87.0, 76.9, 84.8, 89.0],  # Kinetics-400, SSv2, ImageNet-1k, Diving48
    "vjepa2.1-vitgg16-384": [87.7, 77.7, 85.5, 89.2, 40.8],
}
RELEASE_NOTES = {  # licence of the weights, identifier of the paper, key of its citation
    "vjepa-": ("cc-by-nc-4.0", "2404.08471", "bardes2024revisiting"),
    "vjepa2-": ("mit", "2506.09985", "assran2025vjepa2"),
    "vjepa2.1-": ("mit", "2603.14482", "murlabadia2026vjepa2_1"),
}
RELEASED = [entry for entry in MODELS.values() if entry.checkpoint]
RELEASED_NAMES = [entry.name for entry in RELEASED]


def test_every_row_of_the_registry_has_its_card_as_the_command_makes_it():
    assert {name: render_card(registered_facts(name)) for name in MODELS} == CARDS


@pytest.mark.parametrize("name", CARDS)
def test_card_is_ours_and_has_no_problem(name):
    assert is_ours(CARDS[name])
    assert check_card(CARDS[name], MODELS[name].config()) == []


@pytest.mark.parametrize("name", RELEASED_NAMES)
def test_card_has_the_published_results_in_metadata_and_text_marked_as_not_measured_here(name):
    card = ModelCard(CARDS[name])
    results = card.data.eval_results or []
    assert [result.metric_value for result in results] == PUBLISHED[name]
    for result in results:
        assert (result.source_name, result.source_url) == (
            "published by the authors, not measured here",
            f"https://arxiv.org/abs/{RELEASE_NOTES[name.split('vit')[0]][1]}",
        )
        assert f"| {result.dataset_name} | {result.metric_name} | {result.metric_value:g} |" in card.text


def test_released_cards_have_the_release_s_licence_and_paper_and_the_tiny_one_its_own():
    for name, text in CARDS.items():
        card = ModelCard(text)
        released_license, paper, citation = RELEASE_NOTES[name.split("vit")[0]]
        assert card.data.license == (released_license if MODELS[name].checkpoint else "apache-2.0")
        assert ("CC BY-NC 4.0" in card.text) == (card.data.license == "cc-by-nc-4.0")
        assert ("opensource.org/license/mit" in card.text) == (card.data.license == "mit")
        assert f"@article{{{citation}," in card.text
        assert f"https://arxiv.org/abs/{paper}" in card.text


def test_distilled_cards_say_so_and_every_card_of_v_jepa_2_1_how_its_predictor_is_placed():
    for name in (name for name in CARDS if name.startswith("vjepa2.1")):
        is_distilled = MODELS[name].config().pred_output_size is not None
        assert ("was distilled from ViT-G" in CARDS[name]) == is_distilled
        assert ("positions are not scaled" in CARDS[name]) == is_distilled
        assert ("positions are scaled to a grid of 16 x 16" in CARDS[name]) != is_distilled


def test_readme_states_the_published_results_of_the_registry():
    rows = re.findall(r"^\| [^|]+ \| (`vjepa[^|]+) \| ([^\n]+)$", (ROOT / "README.md").read_text(), re.M)
    stated = {name: row for names, row in rows for name in re.findall(r"`([^`]+)`", names)}
    assert stated.keys() == CARDS.keys()
    for name in RELEASED_NAMES:
        accuracies = [MODELS[name].results.get(dataset, "-") for dataset in ("k400", "ssv2", "in1k")]
        if set(accuracies) != {"-"}:
            assert f" | {' / '.join(map(str, accuracies))} | " in stated[name]


def test_every_card_names_an_entry_of_hubconf_for_its_own_architecture():
    for name, text in CARDS.items():
        entry, other = re.findall(r'torch\.hub\.load\("\.", "(\w+)"', text)
        assert f'"{name}"' in Path(hubconf.__file__).read_text().split(f"def {entry}(")[1].split("\ndef ")[0]
        assert other == ("vjepa2_preprocessor" if name.startswith("vjepa2") else "vjepa_video_processor")
        assert re.search(rf"crop_size={MODELS[name].config().crop_size}\b", text)


@pytest.mark.parametrize("entry", [e for e in RELEASED if e.recipe], ids=lambda entry: entry.name)
def test_training_facts_are_those_of_the_recipe(entry):
    recipe = load_recipe(entry.recipe)
    steps, batch_size = recipe.training.max_steps, recipe.training.global_batch_size
    assert entry.training["steps"] == f"{steps:,} of {batch_size:,} clips"
    data = recipe.published["data"]
    assert {"VideoMix2M", "Kinetics-710", "HowTo100M"} <= set(re.findall(r"[\w-]+", data))
    assert all(name.replace("-", " ") in data.lower().replace("-", " ") for name in entry.datasets)
    assert f"`vjepa-hub pretrain {entry.recipe} " in CARDS[entry.name]
    for field, value in entry.config().to_dict().items():
        if field in VJEPAConfig.__dataclass_fields__ and field.startswith(
            ("hidden", "num_", "pred_", "crop", "patch")
        ):
            assert getattr(recipe.config(), field) == value, field


def test_evaluation_sets_are_those_of_the_protocols():
    for name, found in EVALUATION_SETS.items():
        if name not in PROTOCOLS:
            continue
        protocol = find_protocol(name)
        assert protocol.num_classes == found.num_classes
        assert found.task == f"{protocol.media}-classification"
        assert protocol.description.startswith(found.name)
        if protocol.media == "video":
            assert found.clips.startswith(f"{protocol.num_segments} segments x {protocol.num_views} views")


# ---------------------------------------------------------------------------------------------------------------------
# Every block is run, to the letter, in a folder of its card
# ---------------------------------------------------------------------------------------------------------------------

# Those with trust_remote_code come first, in a process that cannot import vjepa_hub
CHILD = """
import json, os, sys
rows = []
blocks = json.load(open(sys.argv[1]))
sys.modules["vjepa_hub"] = None
for is_remote in (True, False):
    for folder, code in blocks:
        if ("trust_remote_code" in code) != is_remote:
            continue
        os.chdir(folder)
        names = {}
        try:
            exec(compile(code, folder, "exec"), names)
        except Exception as error:
            raise RuntimeError(f"in {folder}:\\n{code}") from error
        row = {"card": os.path.basename(folder), "code": code}
        row["shape"] = list(names["features"].shape) if "features" in names else None
        row["label"] = names.get("label")
        row["module"] = type(names["model"]).__module__ if "model" in names else None
        rows.append(row)
    sys.modules.pop("vjepa_hub", None)
print(json.dumps(rows))
"""
TINY_FIELDS = {
    "patch_size": 8,
    "crop_size": 32,
    "frames_per_clip": 4,
    "hidden_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "pred_hidden_size": 24,
    "pred_num_hidden_layers": 1,
    "pred_num_attention_heads": 3,
}
# Large patches: clips of the released sizes are few tokens then
LARGE_PATCHES = {"patch_size": 64, "crop_size": 64, "position_embedding": "rotary"}
OWN_CARDS = ("features", "pretraining", "classifier", "probe")


def _save_tiny(folder: Path, *, is_classifier: bool = False, **fields) -> VJEPAConfig:
    config = VJEPAConfig(**{**TINY_FIELDS, **fields}, num_labels=3)
    (VJEPAForVideoClassification if is_classifier else VJEPAModel)(config).save_pretrained(folder)
    VJEPAVideoProcessor(crop_size=config.crop_size, num_frames=config.frames_per_clip).save_pretrained(folder)
    return config


def _make_workplaces(root: Path) -> dict[str, str]:
    """For each card a folder with what its blocks name; where weights cannot be had, a tiny model in their place."""
    cards = dict(CARDS)
    for name in CARDS:
        (root / name).mkdir(parents=True)
        (root / name / "hubconf.py").symlink_to(ROOT / "hubconf.py")
        _save_tiny(root / name / "weights" / name)
        if MODELS[name].checkpoint:
            fields = LARGE_PATCHES if name.startswith("vjepa2") else {}
            _save_tiny(root / name / name, **fields)  # a folder goes before a name of the registry
            for dataset in MODELS[name].probes:
                cached = root / "hub" / f"models--{CACHE_ACCOUNT}--{name}-{dataset}" / "snapshots"
                _save_tiny(cached / f"converter-{CONVERTER_VERSION}", is_classifier=True)
    for kind in OWN_CARDS:
        config = _save_tiny(root / kind / "my-model", is_classifier=kind in ("classifier", "probe"))
        cards[kind] = render_card(CardFacts(name="my-model", kind=kind, config=config, license="mit"))
    for name in cards:
        shutil.copy(sample_clip_path(), root / name / "video.mp4")
    return cards


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> list[dict]:
    """What came of each block, all of them run in one process, offline."""
    root = tmp_path_factory.mktemp("cards")
    blocks = [
        (str(root / name), code) for name, text in _make_workplaces(root).items() for code in python_blocks(text)
    ]
    (root / "blocks.json").write_text(json.dumps(blocks))
    environment = os.environ | {
        "HF_HOME": str(root / "home"),
        "HF_HUB_CACHE": str(root / "hub"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", CHILD, str(root / "blocks.json")]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert len(rows) == len(blocks)
    return rows


@pytest.mark.parametrize("name", [*CARDS, *OWN_CARDS])
def test_every_python_block_of_a_card_runs_as_it_stands(ran, name):
    rows = [row for row in ran if row["card"] == name]
    own = {"classifier": 2, "probe": 2, "features": 3, "pretraining": 3}
    assert len(rows) == (own[name] if name in own else 4 + bool(MODELS[name].probes))
    by_features = [row["shape"] for row in rows if "last_hidden_state" in row["code"]]
    assert all(shape is not None and shape[0] == 1 for shape in by_features)
    assert len(by_features) >= 3 or name in ("classifier", "probe")


def test_features_of_a_model_that_is_at_hand_have_the_stated_shape(ran):
    shapes = [row["shape"] for row in ran if row["card"] == "vjepa-vit-tiny" and "weights/" not in row["code"]]
    shapes += [row["shape"] for row in ran if row["card"] == "vjepa-vit-tiny" and "open_model" in row["code"]]
    assert shapes == [[1, 64, 128]] * 2
    assert "# (1, 64, 128)" in CARDS["vjepa-vit-tiny"]
    assert [row["shape"] for row in ran if row["card"] in ("features", "pretraining")] == [[1, 32, 48]] * 6


def test_blocks_for_machines_without_the_package_run_the_code_beside_the_weights(ran):
    modules = {row["module"].split(".")[0] for row in ran if "trust_remote_code" in row["code"]}
    assert modules == {"transformers_modules"}
    labels = {row["label"] for row in ran if "AutoModelForVideoClassification" in row["code"]}
    assert labels <= {"LABEL_0", "LABEL_1", "LABEL_2"}
