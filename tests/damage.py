"""Changes of files from fixed seeds, and the limits under which a changed file is used.

Each is used or refused with an error of this package, soon, in little memory, and no code of it runs. A failure names
the seed; `-m slow` runs many more.
"""

import json
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# ImportError: weights quantised with a library that is not installed are no fault of the file
OUR_ERRORS = (ValueError, KeyError, OSError, ImportError)
MAX_SECONDS = 10
MAX_EXTRA_BYTES = 2 * 2**30

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

# What only code of the file would do. Hooks cannot be taken away again: this one listens within `watched` alone
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
def watched(folder: Path) -> Iterator[list[str]]:
    """The forbidden things that happened."""
    global _seen, _watched_folder
    _seen, _watched_folder = [], str(folder)
    try:
        yield _seen
    finally:
        _seen = None


@contextmanager
def little_memory() -> Iterator[None]:
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
def little_time(seed: int) -> Iterator[None]:
    def stop(number, frame):
        pytest.fail(f"seed {seed} took more than {MAX_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MAX_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(
    folder: Path,
    seeds: range,
    change: Callable[[random.Random], None],
    use: Callable[[], object],
    *,
    names: str = "",
    errors: tuple[type[Exception], ...] = OUR_ERRORS,
) -> int:
    """Change the files and use them, once for each seed; the number of cases that were refused.

    Args:
        folder: From which no code may run.
        seeds: Of the changes.
        change: Writes the files.
        use: Reads them.
        names: Part of the message of each refusal, such as the file's name.
        errors: By which a file may be refused.
    """
    num_refused = 0
    with watched(folder) as happened, little_memory():
        for seed in seeds:
            change(random.Random(seed))
            try:
                with little_time(seed):
                    use()
            except errors as error:
                num_refused += 1
                if names not in str(error):
                    raise AssertionError(f"seed {seed}: no {names} in the message of {error!r}") from error
            except BaseException as error:
                error.args = (f"seed {seed}: {error}",)
                raise
            assert not happened, f"seed {seed}"
    return num_refused


def change_bytes(rng: random.Random, content: bytes, end: int) -> bytes:
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


def change_fields(rng: random.Random, fields: dict) -> str:
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
