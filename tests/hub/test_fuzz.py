"""Files with random changes: each is used or refused with an error of ours, soon, in little memory, without code run.

Cases are drawn from fixed seeds; a failure names the seed. `-m slow` runs many more.
"""

import json
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.hub.test_safety import _Malicious
from vjepa_hub import VJEPAConfig, VJEPAForPreTraining, VJEPAModel, VJEPAVideoProcessor
from vjepa_hub.hub.conversion import convert_original_checkpoint, export_original_checkpoint, find_config
from vjepa_hub.hub.loading import open_model

# ImportError: weights quantised with a library that is not installed are no fault of the file
OUR_ERRORS = (ValueError, KeyError, OSError, ImportError)
MAX_SECONDS = 10
MAX_EXTRA_BYTES = 2 * 2**30
NUM_SLOW = 20  # times as many cases

CONFIG = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 8,
    "crop_size": 16,
    "frames_per_clip": 4,
    "pred_hidden_size": 8,
    "pred_num_hidden_layers": 1,
    "pred_num_attention_heads": 2,
}
# Settings of transformers that a file may hold too, some of which fetch or import something
FOREIGN_FIELDS = [
    *("attn_implementation", "_attn_implementation", "experts_implementation", "fusion_config", "distributed_config"),
    *(
        "quantization_config",
        "per_layer_config",
        "sub_configs",
        "transformers_weights",
        "auto_map",
        "custom_pipelines",
    ),
    *("base_model_tp_plan", "base_model_pp_plan", "base_model_ep_plan", "base_model_fsdp_plan", "pruned_heads"),
    *("dtype", "torch_dtype", "num_labels", "id2label", "label2id", "problem_type", "loss_type", "architectures"),
    *(
        "model_type",
        "num_frames",
        "name_or_path",
        "_name_or_path",
        "attribute_map",
        "to_dict",
        "__class__",
        "validate",
    ),
]
VALUES = [
    *(None, True, False, -1, 0, 1, 2, 3, 7, 16, 10**6, 10**9, 2**31, 2**63, 10**30, 10**400),
    *(0.5, -0.5, 1e-300, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", "x", "8", "NaN", "../..", "someone/kernel", "__import__('os').system('true')", "\0", "ä" * 1000),
    *([], [1], [[]], {}, {"a": 1}, {"0": "x"}, {"quant_method": 3}, {"quant_method": "torchao"}, ["x"] * 1000),
]

# What only code of the file would do. Hooks cannot be taken away again: this one listens within `_watched` alone
_FORBIDDEN_EVENTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect")
_seen: list[str] | None = None
_watched_folder = ""


def _listen(event: str, arguments: tuple) -> None:
    if _seen is None:
        return
    is_code_of_folder = event == "exec" and str(getattr(arguments[0], "co_filename", "")).startswith(_watched_folder)
    if event in _FORBIDDEN_EVENTS or is_code_of_folder:
        _seen.append(f"{event} {arguments}")


sys.addaudithook(_listen)


@contextmanager
def _watched(folder: Path) -> Iterator[list[str]]:
    """The forbidden things that happened."""
    global _seen, _watched_folder
    _seen, _watched_folder = [], str(folder)
    try:
        yield _seen
    finally:
        _seen = None


@contextmanager
def _little_memory() -> Iterator[None]:
    """At most `MAX_EXTRA_BYTES` more than the process has; where the system cannot say so, without a limit."""
    status = Path("/proc/self/statm")
    if not status.exists():
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    present = int(status.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (present + MAX_EXTRA_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def _little_time(seed: int) -> Iterator[None]:
    def stop(number, frame):
        pytest.fail(f"seed {seed} took more than {MAX_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MAX_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _fuzz(folder: Path, seeds: range, change: Callable[[random.Random], None], use: Callable[[], object]) -> int:
    """Change the files and use them, once for each seed; the number of cases that were refused."""
    num_refused = 0
    with _watched(folder) as happened, _little_memory():
        for seed in seeds:
            change(random.Random(seed))
            try:
                with _little_time(seed):
                    use()
            except OUR_ERRORS:
                num_refused += 1
            except BaseException as error:
                error.args = (f"seed {seed}: {error}",)
                raise
            assert not happened, f"seed {seed}"
    return num_refused


def _change_bytes(rng: random.Random, content: bytes, end: int) -> bytes:
    """Cut a file, or change bytes before `end`: flip bits, write others, take some away, put some in."""
    changed = bytearray(content)
    place = rng.randrange(end)
    kind = rng.choice(("cut", "flip", "write", "remove", "insert"))
    if kind == "cut":
        return content[: rng.randrange(len(content))]
    if kind == "remove":
        del changed[place : place + rng.randrange(1, 20)]
    elif kind == "insert":
        changed[place:place] = rng.randbytes(rng.randrange(1, 20))
    else:
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(end)
            changed[place] = changed[place] ^ (1 << rng.randrange(8)) if kind == "flip" else rng.randrange(256)
    return bytes(changed)


def _change_fields(rng: random.Random, fields: dict) -> str:
    """JSON with values replaced, keys taken away, renamed or added, or a value nested deeply."""
    changed = dict(fields)
    for _ in range(rng.randrange(1, 4)):
        name = rng.choice([*fields, *FOREIGN_FIELDS])
        kind = rng.choice(("set", "set", "set", "remove", "rename", "nest"))
        if kind == "set":
            changed[name] = rng.choice(VALUES)
        elif kind == "rename":
            changed[f"{name}_"] = changed.pop(name, 1)
        elif kind == "remove":
            changed.pop(name, None)
    text = json.dumps(changed)
    if kind == "nest":
        depth = rng.choice((10, 100, 500, 5000, 100_000))
        text = text[:-1] + f', "{name}": ' + "[" * depth + "]" * depth + "}"
    return text


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["few", "many"])
def seeds(request) -> Callable[[int], range]:
    """The seeds of a test that has `num` cases in the default run."""
    return lambda num: range(num, num * NUM_SLOW) if request.param else range(num)


@pytest.fixture(autouse=True)
def quiet(caplog) -> None:
    """No record of what hundreds of cases log."""
    caplog.set_level("ERROR", logger="vjepa_hub")


@pytest.fixture
def folder(tmp_path) -> Path:
    VJEPAModel(VJEPAConfig(**CONFIG)).save_pretrained(tmp_path)
    VJEPAVideoProcessor(crop_size=16).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def released(tmp_path) -> Path:
    file = tmp_path / "model.pth.tar"
    export_original_checkpoint(VJEPAForPreTraining(VJEPAConfig(**CONFIG)), file)
    return file


pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="this system has no alarm against a hang"),
]


def test_the_watch_sees_code_and_the_limits_hold(tmp_path):
    (tmp_path / "evil.py").write_text("x = 1\n")
    with _watched(tmp_path) as happened:
        exec(compile("x = 1", str(tmp_path / "evil.py"), "exec"))
    assert happened
    if Path("/proc/self/statm").exists():
        with _little_memory(), pytest.raises(RuntimeError, match="memory"):
            torch.ones(MAX_EXTRA_BYTES)
    torch.save(_Malicious(tmp_path / "marker"), tmp_path / "evil.tar")
    with pytest.raises(AssertionError, match="seed 0"):
        _fuzz(tmp_path, range(1), lambda rng: None, lambda: exec(compile("1", str(tmp_path / "evil.py"), "exec")))


def test_changed_values_of_a_configuration(folder, seeds):
    file = folder / "config.json"
    fields = json.loads(file.read_text())
    cases = seeds(120)
    num_refused = _fuzz(
        folder, cases, lambda rng: file.write_text(_change_fields(rng, fields)), lambda: open_model(folder)
    )
    assert len(cases) // 4 < num_refused < len(cases)


def test_changed_bytes_of_a_configuration(folder, seeds):
    file = folder / "config.json"
    good = file.read_bytes()
    _fuzz(
        folder,
        seeds(60),
        lambda rng: file.write_bytes(_change_bytes(rng, good, len(good))),
        lambda: open_model(folder),
    )


def test_changed_processor(folder, seeds):
    file = folder / "video_preprocessor_config.json"
    good = file.read_bytes()
    fields = json.loads(good)

    def change(rng: random.Random) -> None:
        as_bytes = rng.random() < 0.5
        text = _change_bytes(rng, good, len(good)) if as_bytes else _change_fields(rng, fields).encode()
        file.write_bytes(text)

    _fuzz(folder, seeds(40), change, lambda: open_model(folder))


def test_changed_header_of_safetensors_is_used_only_where_the_weights_stay_the_same(folder, seeds):
    file = folder / "model.safetensors"
    good = file.read_bytes()
    end = 8 + int.from_bytes(good[:8], "little")
    expected = open_model(folder).model.state_dict()

    def use() -> None:
        found = open_model(folder).model.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    num_refused = _fuzz(folder, seeds(150), lambda rng: file.write_bytes(_change_bytes(rng, good, end)), use)
    assert num_refused > 100


def test_changed_index_of_shards(folder, seeds):
    weights = folder / "model.safetensors"
    names = json.loads(weights.read_bytes()[8 : 8 + int.from_bytes(weights.read_bytes()[:8], "little")])
    weights.rename(folder / "model-00001-of-00001.safetensors")
    index = folder / "model.safetensors.index.json"
    good = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}

    def change(rng: random.Random) -> None:
        content = json.loads(json.dumps(good))
        if rng.random() < 0.5:
            content["weight_map"][rng.choice(list(names))] = rng.choice([*VALUES, "/etc/passwd", "config.json"])
            index.write_text(json.dumps(content))
        else:
            text = json.dumps(content).encode()
            index.write_bytes(_change_bytes(rng, text, len(text)))

    _fuzz(folder, seeds(50), change, lambda: open_model(folder))


@pytest.mark.parametrize("is_archive", [True, False])
def test_changed_bytes_of_a_released_file(released, seeds, is_archive):
    config = VJEPAConfig(**CONFIG)
    torch.save(torch.load(released, weights_only=True), released, _use_new_zipfile_serialization=is_archive)
    good = released.read_bytes()
    expected = convert_original_checkpoint(released, config).state_dict()

    def change(rng: random.Random) -> None:
        released.write_bytes(_change_bytes(rng, good, rng.choice((3000, len(good)))))

    def use() -> None:
        found = convert_original_checkpoint(released, config).state_dict()
        assert not any(tensor.is_meta for tensor in found.values())
        if is_archive:  # it has checksums, which the older format has not
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    assert _fuzz(released.parent, seeds(100), change, use) > 80


def test_changed_keys_of_a_released_file(released, seeds):
    config = VJEPAConfig(**CONFIG)
    good = torch.load(released, weights_only=True)
    odd = [*VALUES, torch.zeros(1).expand(10**12), torch.zeros(3).to_sparse(), torch.zeros(2, device="meta"), good]

    def change(rng: random.Random) -> None:
        part = rng.choice(("encoder", "predictor", "target_encoder"))
        content = {**good, part: dict(good[part])}
        key = rng.choice(list(good[part]))
        kind = rng.choice(("rename", "remove", "set", "set", "replace part"))
        if kind == "rename":
            content[part][key[:-1]] = content[part].pop(key)
        elif kind == "remove":
            del content[part][key]
        elif kind == "set":
            content[part][key] = rng.choice(odd)
        else:
            content[part] = rng.choice(odd)
        torch.save(content, released)

    def use() -> None:
        assert find_config(released, [config]) is None
        convert_original_checkpoint(released, config)

    cases = seeds(40)
    assert _fuzz(released.parent, cases, change, use) == len(cases)
