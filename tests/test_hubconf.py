"""torch.hub's entries in fresh processes, one for each form of the call: what this one has imported hides faults."""

import ast
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hubconf
from vjepa_hub.hub.registry import MODELS, find_model

ROOT = Path(__file__).parents[1]
ENTRIES = {
    "vjepa_vit_large": "vjepa-vitl16",
    "vjepa_vit_huge": "vjepa-vith16",
    "vjepa_vit_huge_384": "vjepa-vith16-384",
    "vjepa_vit_tiny": "vjepa-vit-tiny",
    "vjepa_video_processor": None,
}
PAIRS = {
    "vjepa2_vit_large": "vjepa2-vitl16",
    "vjepa2_vit_huge": "vjepa2-vith16",
    "vjepa2_vit_giant": "vjepa2-vitg16",
    "vjepa2_vit_giant_384": "vjepa2-vitg16-384",
    "vjepa2_1_vit_base_384": "vjepa2.1-vitb16-384",
    "vjepa2_1_vit_large_384": "vjepa2.1-vitl16-384",
    "vjepa2_1_vit_giant_384": "vjepa2.1-vitg16-384",
    "vjepa2_1_vit_gigantic_384": "vjepa2.1-vitgg16-384",
}

# Calls torch.hub.load for each row of (entry, device to build on, options), and says what came
CHILD = """
import json, sys
import torch
from transformers import PreTrainedModel  # it cannot be imported on the meta device (torch 2.7's dynamo)
repository, source, calls = sys.argv[1:]
torch.hub.set_dir("hub")
rows = []
for entry, built_on, options in json.loads(calls):
    with torch.device(built_on):
        found = torch.hub.load(repository, entry, source=source, trust_repo=True, verbose=False, **options)
    row = {"entry": entry, "class": type(found).__name__}
    if isinstance(found, tuple):
        config = found[0].encoder.config.to_dict()
        row |= {"pair": [type(part).__name__ for part in found], "config": config, "training": found[0].training}
    elif callable(found) and not isinstance(found, torch.nn.Module) and "2" in entry:
        views = found(torch.zeros(4, 90, 160, 3, dtype=torch.uint8).numpy())
        row |= {"shapes": [list(view.shape) for view in views]}
    elif isinstance(found, torch.nn.Module):
        first = next(found.parameters())
        row |= {"config": found.config.to_dict(), "training": found.training, "dtype": str(first.dtype)}
        row["sum"] = None if first.is_meta else first.double().sum().item()
    else:
        row |= {"crop_size": found.crop_size["height"], "clip": [found.num_frames, found.frame_step]}
    rows.append(row)
import vjepa_hub
print(json.dumps({"package": vjepa_hub.__file__, "rows": rows}))
"""
MODEL_CALLS = [  # on the meta device, where ViT-H takes no memory
    (entry, "meta", {"pretrained": False, "dtype": "bfloat16"}) for entry, name in ENTRIES.items() if name
]
PAIR_CALLS = [(entry, "meta", {"pretrained": False, "dtype": "bfloat16"}) for entry in PAIRS]
PREPROCESSOR_CALL = ("vjepa2_preprocessor", "cpu", {"pretrained": True, "crop_size": 64})
PROCESSOR_CALL = ("vjepa_video_processor", "cpu", {"pretrained": True, "crop_size": 112, "num_frames": 8})
PRETRAINED_TINY_CALL = ("vjepa_vit_tiny", "cpu", {"pretrained": True})
FORMS = {
    # "." is the README's form: it has to be found from the checkout, and not by an installation
    "local": (".", "local", [*MODEL_CALLS, *PAIR_CALLS, PROCESSOR_CALL, PREPROCESSOR_CALL]),
    "cached": ("owner/repo:branch", "github", [PROCESSOR_CALL, *MODEL_CALLS, PRETRAINED_TINY_CALL]),
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder to work in, with the tree as torch.hub has it after a download."""
    folder = tmp_path_factory.mktemp("torch_hub")
    repository = folder / "hub" / "owner_repo_branch"
    shutil.copytree(ROOT / "vjepa_hub", repository / "vjepa_hub", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "hubconf.py", repository)
    return folder


@pytest.fixture(scope="module", params=FORMS)
def loaded(request, workplace) -> tuple[dict[str, list[dict]], str]:
    """What each entry returned, and what the process wrote to stderr; offline, with an empty cache."""
    repository, source, calls = FORMS[request.param]
    copy = workplace / "hub" / "owner_repo_branch"
    environment = os.environ | {"HF_HOME": str(workplace / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", CHILD, repository, source, json.dumps(calls)]
    cwd = copy if source == "local" else workplace
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert Path(found["package"]).parent == copy / "vjepa_hub"
    rows: dict[str, list[dict]] = {}
    for row in found["rows"]:
        rows.setdefault(row["entry"], []).append(row)
    return rows, done.stderr


def _assert_architecture(found: dict, name: str) -> None:
    assert found["class"] == "VJEPAModel"
    expected = find_model(name).config().to_dict()
    for field in ("hidden_size", "num_hidden_layers", "crop_size", "patch_size", "pred_hidden_size"):
        assert found["config"][field] == expected[field], field


@pytest.mark.parametrize("entry", [entry for entry, name in ENTRIES.items() if name])
def test_entry_builds_its_architecture_without_installation_and_download(loaded, entry):
    found = loaded[0][entry][0]
    _assert_architecture(found, ENTRIES[entry])
    assert found["dtype"] == "torch.bfloat16"
    assert not found["training"]


@pytest.mark.parametrize("loaded", ["local"], indirect=True)
@pytest.mark.parametrize("entry", PAIRS)
def test_entry_of_v_jepa_2_gives_the_pair_of_its_architecture(loaded, entry):
    (found,) = loaded[0][entry]
    assert found["pair"] == ["ReleaseEncoder", "ReleasePredictor"]
    expected = find_model(PAIRS[entry]).config().to_dict()
    for field in ("hidden_size", "num_hidden_layers", "crop_size", "frames_per_clip", "feature_levels"):
        assert found["config"][field] == expected[field], field
    assert not found["training"]


@pytest.mark.parametrize("loaded", ["local"], indirect=True)
def test_preprocessor_gives_a_list_of_one_clip(loaded):
    (found,) = loaded[0]["vjepa2_preprocessor"]
    assert found["shapes"] == [[3, 4, 64, 64]]


def test_action_conditioned_model_is_refused_with_the_reason():
    with pytest.raises(NotImplementedError, match=r"actions and states of a robot.*vjepa2_vit_giant"):
        hubconf.vjepa2_ac_vit_giant()


def test_processor_entry_has_the_size_and_the_clip_asked_for(loaded):
    (found,) = loaded[0]["vjepa_video_processor"]
    assert found["class"] == "VJEPAVideoProcessor"
    assert found["crop_size"] == 112
    assert found["clip"] == [8, 4]


@pytest.mark.parametrize("loaded", ["cached"], indirect=True)
def test_pretrained_tiny_has_the_weights_of_the_package(loaded):
    _, found = loaded[0]["vjepa_vit_tiny"]
    _assert_architecture(found, "vjepa-vit-tiny")
    assert found["config"]["weights_origin"].startswith("pretrained by vjepa_hub")
    assert found["sum"] == next(hubconf.vjepa_vit_tiny().parameters()).double().sum().item()


def test_pretrained_is_the_default_and_asks_for_the_released_file(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for entry, folder in {"large": "vitl16", "huge": "vith16", "huge_384": "vith16-384"}.items():
        with pytest.raises(OSError, match=rf"jepa/{folder}/{folder}\.pth\.tar"):
            getattr(hubconf, f"vjepa_vit_{entry}")()
    for entry, name in PAIRS.items():
        with pytest.raises(OSError, match=MODELS[name].checkpoint):
            getattr(hubconf, entry)()


def test_entries_are_those_of_the_contract_and_explain_themselves():
    entries = {name: value for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")}
    assert set(entries) == {*ENTRIES, *PAIRS, "vjepa2_preprocessor", "vjepa2_ac_vit_giant"}
    for entry in entries.values():
        assert inspect.signature(entry).parameters["pretrained"].default is True
        assert all(p.kind is not p.VAR_KEYWORD for p in inspect.signature(entry).parameters.values())
        assert entry.__doc__


def test_hubconf_imports_nothing_at_its_top():
    body = ast.parse((ROOT / "hubconf.py").read_text()).body
    assert not [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert {type(node) for node in body} == {ast.Expr, ast.Assign, ast.FunctionDef}


def _imports_at_the_top(path: Path) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]


def _files_that_an_entry_runs() -> set[Path]:
    """hub/loading.py, the package's own modules, and what they import when they are imported."""
    package = ROOT / "vjepa_hub"
    found, waiting = (
        set(),
        [package / "__init__.py", package / "model" / "__init__.py", package / "hub" / "loading.py"],
    )
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        for node in _imports_at_the_top(path):
            if isinstance(node, ast.ImportFrom) and node.level:
                waiting.append(
                    (path.parents[node.level - 1] / (node.module or "").replace(".", "/")).with_suffix(".py")
                )
    return found


def test_dependencies_are_what_the_entries_import():
    imported = set()
    for path in _files_that_an_entry_runs():
        for node in _imports_at_the_top(path):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif node.level == 0:
                imported.add(node.module.split(".")[0])
    through_transformers = {"safetensors", "torchvision"}  # weights, and the base class of the video processor
    assert set(hubconf.dependencies) == (imported - sys.stdlib_module_names) | through_transformers


def test_entries_are_those_of_the_registry():
    by_registry = {entry.torch_hub_entry: entry.name for entry in MODELS.values()}
    assert by_registry == {entry: name for entry, name in (ENTRIES | PAIRS).items() if name}
