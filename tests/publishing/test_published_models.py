"""Models that were pushed to a Hub, loaded again by other processes: with vjepa_hub, without it, and offline.

One process publishes and three load, since importing costs seconds; each loads everything and writes down what it got.
"""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.child_process import run_python
from tests.hub_server import HubServer
from vjepa_hub import (
    VJEPAConfig,
    VJEPAForPreTraining,
    VJEPAForVideoClassification,
    VJEPAModel,
    VJEPAVideoProcessor,
)

KINDS = {
    "features": VJEPAModel,
    "pretraining": VJEPAForPreTraining,
    "classifier": VJEPAForVideoClassification,
}
SOURCE_FILES = {"configuration_vjepa.py", "modeling_vjepa.py"}
LABELS = {0: "open", 1: "close", 2: "fold"}

PUBLISH = """
import json
import sys
from huggingface_hub import HfApi
from vjepa_hub import VJEPAForPreTraining, VJEPAForVideoClassification, VJEPAModel, VJEPAVideoProcessor

folder = sys.argv[1]
features = VJEPAModel.from_pretrained(f"{folder}/features")
processor = VJEPAVideoProcessor.from_pretrained(f"{folder}/features")
api = HfApi()

api.create_repo("tester/features")
older = VJEPAModel.from_pretrained(f"{folder}/older")
first = older.push_to_hub("tester/features").oid
api.create_branch("tester/features", branch="first-try")
features.save_pretrained(f"{folder}/pushed", push_to_hub=True, repo_id="tester/features")
processor.push_to_hub("tester/features")

VJEPAForPreTraining.from_pretrained(f"{folder}/pretraining").push_to_hub("tester/pretraining", max_shard_size="50KB")
classifier = VJEPAForVideoClassification.from_pretrained(f"{folder}/classifier")
classifier.push_to_hub("tester/classifier", private=True)
processor.push_to_hub("tester/classifier")
print(json.dumps({"first": first}))
"""

BLOCK = """
import sys

class NotInstalled:
    def find_spec(self, name, *args):
        if name.split(".")[0] == "vjepa_hub":
            raise ImportError("vjepa_hub is not installed here")

sys.meta_path.insert(0, NotInstalled())
"""

LOAD = """
import json
import shutil
import sys
import torch
from huggingface_hub import hf_hub_download, snapshot_download
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForVideoClassification, AutoVideoProcessor
)

trust, inputs, outputs, first = json.loads(sys.argv[1]), *sys.argv[2:]
if not trust:
    import vjepa_hub
given = load_file(inputs)
found, modules = {}, {}


def note(name, model):
    found.update({f"{name}/{key}": value.contiguous().clone() for key, value in model.state_dict().items()})
    modules[name] = type(model).__module__
    return model.eval()


def load(auto, repo, **options):
    return auto.from_pretrained(repo, trust_remote_code=trust, **options)


features = note("features", load(AutoModel, "tester/features"))
if not trust:
    note("features", vjepa_hub.load("tester/features"))
note("older", load(AutoModel, "tester/features", revision=first))
note("branch", load(AutoModel, "tester/features", revision="first-try"))
note("pretraining", load(AutoModelForPreTraining, "tester/pretraining"))
note("target encoder", load(AutoModel, "tester/pretraining"))
classifier = note("classifier", load(AutoModelForVideoClassification, "tester/classifier"))
note("classifier's encoder", load(AutoModel, "tester/classifier"))
# Copied: transformers 5.12 follows the links of the cache and then misses the files beside the source file
snapshot = shutil.copytree(snapshot_download("tester/features"), outputs + ".snapshot")
note("snapshot", load(AutoModel, snapshot))
found["file"] = load_file(hf_hub_download("tester/features", "model.safetensors"))["encoder.layernorm.weight"]

for repo in ("tester/features", "tester/classifier"):
    processor = load(AutoVideoProcessor, repo)
    modules[f"{repo} processor"] = type(processor).__module__
    found[f"{repo} pixels"] = processor(given["clip"], return_tensors="pt")["pixel_values_videos"]
with torch.no_grad():
    found["tokens"] = features(given["pixels"]).last_hidden_state
    found["logits"] = classifier(given["pixels"]).logits
save_file({name: tensor.contiguous() for name, tensor in found.items()}, outputs)
print(json.dumps({"modules": modules, "labels": classifier.config.id2label, "loaded": "vjepa_hub" in sys.modules}))
"""

REFUSED = """
import sys
from transformers import AutoConfig, AutoModel


def refusal(repo, **options):
    try:
        AutoConfig.from_pretrained(repo, **options)
    except (OSError, ValueError) as error:
        return str(error)
    raise AssertionError(f"{repo} was loaded")


for token in (False, "hf_reader", "hf_unknown"):
    assert "tester/classifier" in refusal("tester/classifier", trust_remote_code=True, token=token)
assert "trust_remote_code" in refusal("tester/features", trust_remote_code=False)
assert not [name for name in sys.modules if name.startswith("transformers_modules.")]
AutoConfig.from_pretrained("tester/classifier", trust_remote_code=True, token="hf_read_only")
"""

PUBLISH_THROUGH_XET = """
import sys
from vjepa_hub import VJEPAModel

VJEPAModel.from_pretrained(sys.argv[1]).push_to_hub("tester/features")
"""

LOAD_THROUGH_XET = """
import sys
import torch
from vjepa_hub import VJEPAModel

found = VJEPAModel.from_pretrained("tester/features").state_dict()
wanted = VJEPAModel.from_pretrained(sys.argv[1]).state_dict()
assert found.keys() == wanted.keys()
assert all(torch.equal(found[name], wanted[name]) for name in wanted)
"""

OLAH_SETTINGS = """
[basic]
host = "127.0.0.1"
port = {port}
repos-path = "{folder}/repositories"
log-path = "{folder}/logs"
hf-scheme = "http"
hf-netloc = "127.0.0.1:{hub_port}"
hf-lfs-netloc = "localhost:{hub_port}"
mirror-scheme = "http"
mirror-netloc = "127.0.0.1:{port}"
mirror-lfs-netloc = "127.0.0.1:{port}"
"""


@dataclass
class Published:
    """A server with three models on it, and what must come back from it."""

    server: HubServer
    folder: Path
    first: str
    expected: dict[str, torch.Tensor]

    def load(self, name: str, *, is_installed: bool, hf_home: Path, **variables: str) -> dict:
        """Load everything in a new process. What it got is in the folder, `NAME.safetensors`; its words come back."""
        environment = self.server.environment(hf_home=hf_home) | variables
        trust = "false" if is_installed else "true"
        arguments = (trust, str(self.folder / "inputs.safetensors"), str(self.folder / f"{name}.safetensors"))
        code = ("" if is_installed else BLOCK) + LOAD
        printed = run_python(code, environment, arguments=(*arguments, self.first))
        return parse(printed)

    def differences(self, name: str) -> list[str]:
        """Names of the tensors that a process lacks, has besides, or has with another bit."""
        found = load_file(self.folder / f"{name}.safetensors")
        same = {key for key in found.keys() & self.expected.keys() if torch.equal(found[key], self.expected[key])}
        return sorted((found.keys() | self.expected.keys()) - same)


def parse(printed: str) -> dict:
    """The last line that a child has printed."""
    return json.loads(printed.strip().splitlines()[-1])


def tiny_config() -> VJEPAConfig:
    return VJEPAConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        patch_size=8,
        crop_size=32,
        frames_per_clip=4,
        pred_hidden_size=24,
        pred_num_hidden_layers=2,
        pred_num_attention_heads=4,
        num_labels=len(LABELS),
        id2label=LABELS,
        label2id={name: number for number, name in LABELS.items()},
    )


def make_models(folder: Path) -> dict[str, torch.nn.Module]:
    """A model of each kind with its folder, and one more for an older revision of the features."""
    models = {}
    for seed, (name, kind) in enumerate({**KINDS, "older": VJEPAModel}.items()):
        torch.manual_seed(seed)
        models[name] = kind(tiny_config()).eval()
        with torch.no_grad():
            for parameter in models[name].parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        models[name].save_pretrained(folder / name)
    VJEPAVideoProcessor(crop_size=32).save_pretrained(folder / "features")
    return models


def expected_tensors(models: dict[str, torch.nn.Module], given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a process that loads everything must write down."""
    features, pretraining, classifier = (models[name] for name in KINDS)
    as_features = {"target encoder": (pretraining.target_encoder, pretraining.predictor)}
    loaded = models | {"branch": models["older"], "snapshot": features}
    expected = {f"{name}/{key}": value for name, model in loaded.items() for key, value in model.state_dict().items()}
    for name, (encoder, predictor) in as_features.items():
        expected |= {f"{name}/encoder.{key}": value for key, value in encoder.state_dict().items()}
        expected |= {f"{name}/predictor.{key}": value for key, value in predictor.state_dict().items()}
    encoder_state = classifier.encoder.state_dict()
    expected |= {f"classifier's encoder/encoder.{key}": value for key, value in encoder_state.items()}
    expected["file"] = features.state_dict()["encoder.layernorm.weight"]
    for repo in ("tester/features", "tester/classifier"):
        pixels = VJEPAVideoProcessor(crop_size=32)(given["clip"], return_tensors="pt")
        expected[f"{repo} pixels"] = pixels["pixel_values_videos"]
    with torch.no_grad():
        expected["tokens"] = features(given["pixels"]).last_hidden_state
        expected["logits"] = classifier(given["pixels"]).logits
    return expected


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Iterator[Published]:
    folder = tmp_path_factory.mktemp("published")
    generator = torch.Generator().manual_seed(0)
    given = {
        "clip": torch.randint(0, 256, (4, 40, 60, 3), dtype=torch.uint8, generator=generator),
        "pixels": torch.randn(2, 4, 3, 32, 32, generator=generator),
    }
    save_file(given, folder / "inputs.safetensors")
    expected = expected_tensors(make_models(folder), given)
    with HubServer() as server:
        environment = server.environment(hf_home=folder / "publisher")
        printed = run_python(PUBLISH, environment, arguments=(str(folder),))
        yield Published(server, folder, parse(printed)["first"], expected)


@pytest.fixture(scope="module")
def loaded_without_package(published) -> tuple[Path, dict]:
    """The cache, and the words, of a process that cannot import vjepa_hub."""
    hf_home = published.folder / "reader"
    return hf_home, published.load("without", is_installed=False, hf_home=hf_home)


def test_pushed_repositories_hold_what_is_saved_in_a_folder(published):
    for name in KINDS:
        pushed = set(published.server.repositories[f"tester/{name}"].files())
        saved = {path.name for path in (published.folder / name).iterdir()}
        assert saved > SOURCE_FILES
        assert saved - {"model.safetensors"} <= pushed
    assert published.server.repositories["tester/classifier"].is_private


def test_large_model_is_pushed_in_shards(published):
    pushed = set(published.server.repositories["tester/pretraining"].files())
    assert "model.safetensors.index.json" in pushed
    assert len([path for path in pushed if path.endswith(".safetensors")]) > 1


def test_published_models_come_back_bit_equal_with_vjepa_hub(published, tmp_path):
    words = published.load("with", is_installed=True, hf_home=tmp_path)
    assert published.differences("with") == []
    assert all(module.startswith("vjepa_hub.") for module in words["modules"].values())
    assert words["labels"] == {str(number): name for number, name in LABELS.items()}


def test_published_models_come_back_bit_equal_without_vjepa_hub(published, loaded_without_package):
    _, words = loaded_without_package
    assert published.differences("without") == []
    assert not words["loaded"]
    assert all(module.startswith("transformers_modules.") for module in words["modules"].values())
    assert words["labels"] == {str(number): name for number, name in LABELS.items()}


def test_cache_serves_all_of_it_offline(published, loaded_without_package):
    hf_home, _ = loaded_without_package
    num_requests = len(published.server.requests)
    published.load("offline", is_installed=False, hf_home=hf_home, HF_HUB_OFFLINE="1")
    assert published.differences("offline") == []
    assert len(published.server.requests) == num_requests


def test_private_model_needs_a_token_and_remote_code_needs_trust(published, tmp_path):
    run_python(BLOCK + REFUSED, published.server.environment(token=None, hf_home=tmp_path))


@pytest.mark.slow
def test_model_goes_through_xet_storage_and_comes_back_bit_equal(published, tmp_path):
    hf_xet = pytest.importorskip("hf_xet")
    if not hasattr(hf_xet, "hash_files"):
        pytest.skip("this hf_xet does not tell the Xet hash of a file")
    (store := tmp_path / "store").mkdir()
    folder = published.folder / "features"
    with HubServer(xet_store=f"local://{store}") as server:
        run_python(PUBLISH_THROUGH_XET, server.environment(), arguments=(str(folder),))
        assert server.num_requests("lfs-upload") == 0
        assert sum(path.stat().st_size for path in store.rglob("*") if path.is_file()) > 100_000
        stored = server.repositories["tester/features"].files()["model.safetensors"]
        [weights] = hf_xet.hash_files([str(folder / "model.safetensors")])
        server.xet_hashes[stored.sha256] = weights.hash
        reader = server.environment(hf_home=tmp_path / "reader")
        run_python(LOAD_THROUGH_XET, reader, arguments=(str(folder),))
        assert server.num_requests("lfs-download") == 0


@pytest.fixture(scope="module")
def olah(tmp_path_factory) -> Path:
    """The program of the mirror, which stays apart from what is tested: its versions of the libraries are its own."""
    if found := shutil.which("olah-cli"):
        return Path(found)
    folder = tmp_path_factory.mktemp("olah")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "olah"]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        pytest.skip(f"olah cannot be installed: {done.stderr[-300:]}")
    return folder / "bin" / "olah-cli"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(port: int, process: subprocess.Popen, num_seconds: int = 60) -> None:
    """Until something listens on a port."""
    end = time.monotonic() + num_seconds
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(f"nothing listens on port {port}")


@contextmanager
def mirror_of(server: HubServer, program: Path, folder: Path) -> Iterator[str]:
    """A mirror of the server in a process of its own; its address."""
    port = free_port()
    settings = folder / "olah.toml"
    settings.write_text(OLAH_SETTINGS.format(port=port, hub_port=server.port, folder=folder))
    with open(folder / "olah.log", "w") as log:
        command, environment = [program, "-c", settings], server.environment(token=None)
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=30)


@pytest.mark.slow
@pytest.mark.network
def test_published_models_come_back_bit_equal_through_a_mirror(published, olah, tmp_path):
    num_requests = len(published.server.requests)
    with mirror_of(published.server, olah, tmp_path) as address:
        published.load("mirrored", is_installed=False, hf_home=tmp_path / "home", HF_ENDPOINT=address)
    assert published.differences("mirrored") == []
    assert len(published.server.requests) > num_requests
