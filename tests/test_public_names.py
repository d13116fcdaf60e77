"""The top level of the package: its names, when what is imported, and transformers' Auto classes in any order."""

import ast
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import AutoConfig, AutoModel, AutoVideoProcessor

import vjepa_hub
from tests.child_process import run_python
from vjepa_hub import VJEPAConfig, VJEPAForVideoClassification, VJEPAModel, VJEPAVideoProcessor

# The bound that the package keeps on a quiet machine is half of it
MAX_CPU_SECONDS = 1.0
CONTRACT = {
    "VJEPAConfig",
    "VJEPAModel",
    "VJEPAForPreTraining",
    "VJEPAForVideoClassification",
    "VJEPAVideoProcessor",
    "VJEPATrainer",
    "VJEPATrainingArguments",
    "load",
    "load_processor",
    "load_classifier",
    "open_model",
    "extract_features",
    "load_features",
    "pretrain",
    "run_probe",
    "finetune",
    "publish",
    "convert_original_checkpoint",
    "convert_original_probe",
}
USE_AUTO_CLASSES = """
    from transformers import AutoConfig, AutoModelForVideoClassification, AutoVideoProcessor, pipeline
    folder = sys.argv[1]
    for found in (AutoConfig.from_pretrained(folder), AutoVideoProcessor.from_pretrained(folder),
                  AutoModelForVideoClassification.from_pretrained(folder), AutoModel.from_pretrained(folder),
                  pipeline("video-classification", model=folder).model):
        print(type(found).__module__, type(found).__name__)
"""
FOUND_CLASSES = [
    "vjepa_hub.model.configuration_vjepa VJEPAConfig",
    "vjepa_hub.model.video_processing_vjepa VJEPAVideoProcessor",
    "vjepa_hub.model.modeling_vjepa VJEPAForVideoClassification",
    "vjepa_hub.model.modeling_vjepa VJEPAModel",
    "vjepa_hub.model.modeling_vjepa VJEPAForVideoClassification",
]


@pytest.fixture
def classifier_folder(small_config, tmp_path) -> str:
    VJEPAForVideoClassification(small_config).save_pretrained(tmp_path)
    VJEPAVideoProcessor(crop_size=32).save_pretrained(tmp_path)
    return str(tmp_path)


def test_names_of_the_contract_are_there_with_docstrings():
    assert set(dir(vjepa_hub)) >= CONTRACT
    assert all(getattr(vjepa_hub, name).__doc__ for name in dir(vjepa_hub) if name != "__version__")


def test_unknown_name_lists_those_that_there_are():
    with pytest.raises(AttributeError, match=r"lode.*\bload\b"):
        vjepa_hub.lode  # noqa: B018


def test_type_checkers_see_the_names_where_they_are():
    tree = ast.parse(Path(vjepa_hub.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: f"vjepa_hub.{node.module}" for node in block.body for alias in node.names}
    assert seen.keys() == set(vjepa_hub.__all__)
    for name, module in seen.items():
        assert getattr(sys.modules[module], name) is getattr(vjepa_hub, name)


def test_import_loads_no_library():
    code = "import vjepa_hub, sys; dir(vjepa_hub); print(*{name.partition('.')[0] for name in sys.modules})"
    assert not {"torch", "transformers", "numpy", "pydantic", "rich"} & set(run_python(code, os.environ).split())


@pytest.mark.parametrize("arguments", [("-c", "import vjepa_hub"), ("-m", "vjepa_hub", "--help")])
def test_import_and_help_take_little_time(arguments):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MAX_CPU_SECONDS


@pytest.mark.parametrize(
    "imports",
    [
        "import vjepa_hub; from transformers import AutoModel",
        # modeling_layers imports the Auto classes before it has what our models take from it
        "import vjepa_hub; import transformers.modeling_layers; from transformers import AutoModel",
        "from transformers import AutoModel; import vjepa_hub",
    ],
)
def test_auto_classes_and_pipelines_know_the_family_and_ask_for_no_trust(imports, classifier_folder):
    code = f"import sys\n{imports}\n" + USE_AUTO_CLASSES.replace("\n    ", "\n")
    assert run_python(code, os.environ, arguments=(classifier_folder,)).splitlines() == FOUND_CLASSES


@pytest.mark.parametrize("loading", [AutoConfig, AutoModel, AutoVideoProcessor, VJEPAModel, VJEPAVideoProcessor])
def test_transformers_says_whose_a_registered_name_is(loading, monkeypatch):
    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", None)  # a request would fail otherwise
    with pytest.raises(OSError, match=r"'vjepa-vit-tiny' is a model of vjepa_hub.*vjepa_hub.load\('vjepa-vit-tiny'\)"):
        loading.from_pretrained("vjepa-vit-tiny", local_files_only=True)


def test_a_folder_of_a_registered_name_is_loaded_by_transformers(classifier_folder, monkeypatch, tmp_path):
    (tmp_path / "parent").mkdir()
    (tmp_path / "parent" / "vjepa-vit-tiny").symlink_to(classifier_folder)
    monkeypatch.chdir(tmp_path / "parent")
    assert isinstance(AutoModel.from_pretrained("vjepa-vit-tiny"), VJEPAModel)


class ModelsOfWorkers(Dataset):
    """Builds a model from its configuration by the Auto class, wherever it is asked."""

    def __init__(self, config: VJEPAConfig, model: VJEPAModel) -> None:
        self.config, self.model = config, model

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor, str]:
        built = AutoModel.from_config(self.config)
        return type(built).__name__, next(self.model.parameters()).detach(), VJEPAModel.push_to_hub.__module__


def test_pickled_models_and_spawned_workers_have_all_of_it(small_config):
    model = VJEPAModel(small_config)
    loader = DataLoader(
        ModelsOfWorkers(small_config, model), batch_size=None, num_workers=1, multiprocessing_context="spawn"
    )
    ((name, weights, home),) = loader
    assert name == "VJEPAModel"
    assert torch.equal(weights, next(model.parameters()))
    assert home == "vjepa_hub.publishing.pushing"
