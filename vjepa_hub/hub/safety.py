"""Checks of a model's files before memory is spent on them.

A folder or repository may come from anyone. Nothing of it is executed: our classes never import its code, and weights
are read from safetensors alone, never from pickles (the released format has a safe reader of its own, `conversion`).
What is left is data that lies about itself, and each lie is refused by name:

- JSON that is huge, nested without end, or no configuration of the family;
- sizes that the weights do not bear out: a configuration may ask for at most `MAX_RATIO` times the numbers that its
  weights hold. This is found by arithmetic, before any layer is built;
- safetensors that are cut off, or whose header names bytes that are not there or are used twice;
- tensors that are missing, left over, or of another shape or kind than the configuration needs;
- file names and links that lead out of the folder (the cache's own blobs excepted);
- settings by which transformers would fetch code or weights from elsewhere: attention kernels of a repository, other
  names of the weights, adapters that name their base model.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from ..model.configuration_vjepa import CONFIG_ERRORS, MAX_LABELS, VJEPAConfig
from ..model.modeling_vjepa import VJEPAForVideoClassification, VJEPAModel
from .transformers_vjepa2 import MODEL_TYPE as TRANSFORMERS_TYPE
from .transformers_vjepa2 import convert_transformers_config, to_transformers_state

CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER_FILE = "adapter_config.json"
# Where transformers looks for a video processor
PROCESSOR_FILES = ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json")

MAX_JSON_BYTES = 64 * 2**20
MAX_JSON_DEPTH = 32
# Room for quantised weights, of which several share one stored number
MAX_RATIO = 4
# 0.4 GB in float32: what is smaller is left to the comparison of shapes, which explains itself better
FREE_ELEMENTS = 100_000_000

_FLOAT_DTYPES = frozenset(("F64", "F32", "F16", "BF16"))
# Settings of transformers that name other files, or how parts of a model are exchanged or spread over machines
_NEVER_NEEDED = (
    *("transformers_weights", "fusion_config", "distributed_config", "experts_implementation"),
    *("base_model_tp_plan", "base_model_pp_plan", "base_model_ep_plan", "base_model_fsdp_plan"),
)
_LAYER = re.compile(r"[\w.]*?\blayer\.\d+")
_NUM_SHOWN = 5


class RefusedModelError(ValueError):
    """The files of a model are damaged or lie about themselves; the message names the file, the cause, the remedy."""


class StoredTensor(NamedTuple):
    """Entry of a safetensors header: one tensor.

    Attributes:
        shape: Its dimensions.
        dtype: Its number format, a safetensors name such as "F32".
    """

    shape: tuple[int, ...]
    dtype: str


def check_folder(folder: str | os.PathLike) -> VJEPAConfig:
    """Check all that `from_pretrained` would read of a folder, without reading a weight.

    Args:
        folder: As `save_pretrained` writes it, or a snapshot in huggingface_hub's cache: features, pretraining or
            classifier; or a folder of transformers' VJEPA2.

    Returns:
        The configuration, of transformers' VJEPA2 too as one of this package.

    Raises:
        RefusedModelError: A file lies, is damaged, or leads out of the folder; a ValueError.
        FileNotFoundError: There is no configuration, or there are no safetensors.
    """
    folder = Path(folder)
    if _find(folder, ADAPTER_FILE):
        raise RefusedModelError(
            f"{folder} holds an adapter ({ADAPTER_FILE}), which names the model that it belongs to: nothing else is "
            "loaded on its word. Load that model, put the adapter on it with peft, merge_and_unload and save it"
        )
    files = weights_files(folder)
    config_file = _find(folder, CONFIG_FILE)
    if config_file is None:
        raise FileNotFoundError(f"there is no file named {CONFIG_FILE} in {folder}; save_pretrained writes it")
    for name in PROCESSOR_FILES:
        if processor_file := _find(folder, name):
            _read_json(processor_file)
    stored: dict[str, StoredTensor] = {}
    for file in files:
        stored |= read_stored_tensors(file)
    is_theirs = is_transformers_folder(folder)
    config = _read_transformers_config(config_file) if is_theirs else read_config(config_file)
    check_size(config, _num_elements(stored), folder)
    _check_tensors(config, stored, folder, is_theirs)
    return config


def is_transformers_folder(folder: str | os.PathLike) -> bool:
    """Return whether a folder holds a model of transformers' own VJEPA2."""
    return _read_json(Path(folder, CONFIG_FILE)).get("model_type") == TRANSFORMERS_TYPE


def fetch_repository(name: str) -> Path:
    """Bring what `open_model` reads of a Hub repository into the cache, and no file that leads out of it.

    Args:
        name: `owner/name`. Of the repository its current `main` is taken; offline, what the cache has of it.

    Returns:
        The snapshot's folder, for `check_folder`; its name is the commit.

    Raises:
        RefusedModelError: The index of the shards leads out of the repository.
        OSError: There is no such repository, no configuration or safetensors in it, no right to read it, or no
            network; transformers explains which.
    """
    snapshot = Path(_fetch(name, CONFIG_FILE, None)).parent
    if _fetch_if_there(name, WEIGHTS_FILE, snapshot.name) is None:
        index = _fetch_if_there(name, INDEX_FILE, snapshot.name)
        if index is None:
            raise _no_weights(name)
        for shard in _shard_names(Path(index)):
            _fetch(name, shard, snapshot.name)
    for file in PROCESSOR_FILES:
        _fetch_if_there(name, file, snapshot.name)
    return snapshot


def read_config(file: str | os.PathLike) -> VJEPAConfig:
    """Read a configuration that may come from anyone.

    Args:
        file: The JSON file.

    Raises:
        RefusedModelError: It is no JSON, is too large or nested too deeply, belongs to another family, holds values
            that no model has, or names code or files elsewhere.
    """
    file = Path(file)
    _check_fields(_read_json(file), file)
    try:
        return VJEPAConfig.from_pretrained(str(file))
    except CONFIG_ERRORS as error:
        raise RefusedModelError(str(error)) from error


def read_stored_tensors(file: str | os.PathLike) -> dict[str, StoredTensor]:
    """Read what a safetensors file holds; its header alone is read, and compared with the length of the file.

    Args:
        file: The safetensors file.

    Raises:
        RefusedModelError: It is cut off, or its header is damaged or lies: bytes outside the file, bytes of two
            tensors, bytes of none.
    """
    try:
        with safe_open(str(file), framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118  (it is no mapping)
            return {name: StoredTensor(tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise RefusedModelError(
            f"{file} is damaged, incomplete or no safetensors file ({error}). Delete it and fetch it again"
        ) from error


def count_elements(config: VJEPAConfig) -> dict[str, int]:
    """Numbers in the parts of a model, position tables included, by arithmetic: no layer is built.

    Args:
        config: The architecture, of any size.

    Returns:
        The counts of `encoder`, `predictor` and `head` (attentive pooler and classifier).
    """
    width, pred_width = config.hidden_size, config.pred_hidden_size
    depth, rows, columns = config.token_grid
    num_positions = 0 if config.has_rotary_positions else depth * rows * columns
    num_modalities = 2 if config.modality_embeddings else 0
    pixels = config.in_chans * config.patch_size**2
    num_projected = pixels * config.tubelet_size + 1 + (pixels + 1 if config.image_tokenizer else 0)
    layer = _count_layer(config, width, config.mlp_ratio)
    pred_layer = _count_layer(config, pred_width, config.pred_mlp_ratio)
    pooler_layer = _count_layer(config, width, config.pooler_mlp_ratio)
    embedding = (width + 1) * pred_width
    if config.pred_num_feature_levels > 1:
        embedding += (config.pred_num_feature_levels * width + 1) * width
    num_outputs = config.prediction_width * (2 if config.pred_predicts_context else 1)
    num_labels = cast(int, config.num_labels)
    return {
        "encoder": (num_projected + num_positions + num_modalities + 2 * config.num_feature_levels) * width
        + config.num_hidden_layers * layer,
        "predictor": embedding
        + (config.pred_num_mask_tokens + num_positions + num_modalities + 2) * pred_width
        + config.pred_num_hidden_layers * pred_layer
        + num_outputs * (pred_width + 1),
        # The cross-attention has what a layer has but for its output projection; a query, and a linear classifier
        "head": config.num_pooler_layers * pooler_layer - width * (width + 1) + width + (width + 1) * num_labels,
    }


def _count_layer(config: VJEPAConfig, width: int, mlp_ratio: float) -> int:
    inner = int(width * mlp_ratio)
    attention = 4 * width**2 + width + 3 * width * int(config.qkv_bias)
    return attention + 2 * width * inner + inner + width + 4 * width


def check_size(config: VJEPAConfig, num_stored: int, source: str | os.PathLike) -> None:
    """Refuse an architecture whose size the weights do not bear out, before any layer is built.

    Args:
        config: The architecture.
        num_stored: Numbers that the weights hold, or an upper bound of them.
        source: The file or folder of the weights, for the message.

    Raises:
        RefusedModelError: It needs more than `FREE_ELEMENTS` numbers and more than `MAX_RATIO` times what is stored.
    """
    counts = count_elements(config)
    needed = counts["encoder"] + counts["predictor"]
    if needed > max(FREE_ELEMENTS, MAX_RATIO * num_stored):
        raise RefusedModelError(
            f"the configuration of {source} describes a model of {needed:.3g} numbers ({4 * needed / 1e9:.3g} GB in "
            f"float32), but its weights hold {num_stored:.3g}. They do not belong together: correct the "
            "configuration, or fetch the weights again"
        )


def check_name(name: str, source: str | os.PathLike) -> None:
    """Refuse the name of a file that leads out of the folder which it is meant for.

    Args:
        name: As a repository or an index gives it, with forward slashes.
        source: Who gives it, for the message.

    Raises:
        RefusedModelError: The name is absolute, has `..` in it, or is none.
    """
    parts = (PurePosixPath(name), PureWindowsPath(name))
    leads_out = any(path.is_absolute() or path.drive or path.root or ".." in path.parts for path in parts)
    if leads_out or not name or "\0" in name:
        raise RefusedModelError(
            f"{source} names the file {name!r}, which leads out of its folder: nothing was read. Do not use what is "
            "there, or correct the name"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Files and names
# ---------------------------------------------------------------------------------------------------------------------


def _find(folder: Path, name: str) -> Path | None:
    """A file of a folder, or None where there is none; a link must not lead out of it."""
    check_name(name, folder)
    file = folder / name
    if not file.is_file():
        return None
    home, target = Path(os.path.realpath(folder)), Path(os.path.realpath(file))
    homes = [home, *([home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [])]
    if not any(target.is_relative_to(place) for place in homes):
        raise RefusedModelError(
            f"{file} is a link to {target}, outside of its folder: nothing was read. If the file is yours, put a copy "
            "in the place of the link"
        )
    return file


def weights_files(folder: Path) -> list[Path]:
    """The safetensors of a folder that transformers would read, in its order of preference.

    Raises:
        RefusedModelError: The index leads out of the folder, or is damaged.
        FileNotFoundError: There are none.
    """
    if file := _find(folder, WEIGHTS_FILE):
        return [file]
    index = _find(folder, INDEX_FILE)
    if index is None:
        raise _no_weights(folder)
    files = []
    for name in _shard_names(index):
        file = _find(folder, name)
        if file is None:
            raise FileNotFoundError(f"{index} names {name}, but there is no such file; fetch it again")
        files.append(file)
    return files


def _shard_names(index: Path) -> list[str]:
    fields = _read_json(index)
    shards = fields.get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise RefusedModelError(f"{index} has no weight_map from tensors to files; write it with save_pretrained")
    names = sorted(set(shards.values()))
    for name in names:
        check_name(name, index)
        if not name.endswith(".safetensors"):
            raise RefusedModelError(f"{index} names {name!r}, but weights are read from .safetensors alone")
    return names


def _no_weights(source: str | os.PathLike) -> FileNotFoundError:
    return FileNotFoundError(
        f"there is no file named {WEIGHTS_FILE} or {INDEX_FILE} in {source}. Weights in other files, such as "
        "pytorch_model.bin, are pickles, which can run code and are never read: have their author save_pretrained "
        "the model anew, as safetensors"
    )


def _fetch(name: str, file: str, revision: str | None) -> str:
    try:
        found = cached_file(name, file, revision=revision)
    except OSError as error:
        raise OSError(f"{name} cannot be opened: {error}") from error
    if found is None:
        raise FileNotFoundError(f"there is no file named {file} in {name}")
    return found


def _fetch_if_there(name: str, file: str, revision: str) -> str | None:
    return cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)


# ---------------------------------------------------------------------------------------------------------------------
# Contents
# ---------------------------------------------------------------------------------------------------------------------


def _read_json(file: Path) -> dict:
    num_bytes = file.stat().st_size
    if num_bytes > MAX_JSON_BYTES:
        raise RefusedModelError(f"{file} has {num_bytes} bytes, but JSON of a model has at most {MAX_JSON_BYTES}")
    try:
        fields = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RefusedModelError(f"{file} is no JSON that can be read ({error}). Fetch it again") from error
    if not isinstance(fields, dict):
        raise RefusedModelError(f"{file} holds a {type(fields).__name__}, but must hold an object of names and values")
    _check_depth(fields, file)
    return fields


def _check_depth(fields: dict, file: Path) -> None:
    """Level by level: what nests too deeply for Python would stop a recursive check too."""
    level: list = [fields]
    for _ in range(MAX_JSON_DEPTH):
        level = [item for value in level for item in _items(value)]
        if not level:
            return
    raise RefusedModelError(f"{file} is nested more than {MAX_JSON_DEPTH} levels deep, which no model's JSON is")


def _items(value: object) -> Iterator:
    if isinstance(value, dict):
        return iter(value.values())
    return iter(value if isinstance(value, list) else ())


def _read_transformers_config(file: Path) -> VJEPAConfig:
    fields = _read_json(file)
    _check_fields(fields, file, TRANSFORMERS_TYPE)
    try:
        return convert_transformers_config(fields)
    except CONFIG_ERRORS as error:
        raise RefusedModelError(f"{file} is no configuration of transformers' VJEPA2: {_cause(error)}") from error


def _check_fields(fields: Mapping, file: Path, expected_type: str = VJEPAConfig.model_type) -> None:
    """Check a configuration before transformers builds one from it."""
    family = fields.get("model_type", VJEPAConfig.model_type)
    if family != expected_type:
        raise RefusedModelError(
            f"{file} is of the model type {family!r}, but must be '{VJEPAConfig.model_type}'; pass a model of V-JEPA"
        )
    _check_labels(fields, file)
    _check_kinds(fields, file)
    _check_references(fields, file)


def _check_labels(fields: Mapping, file: Path) -> None:
    for name in ("id2label", "label2id"):
        labels = fields.get(name) or {}
        if not isinstance(labels, dict) or len(labels) > MAX_LABELS:
            raise RefusedModelError(f"{name} of {file} must be an object of at most {MAX_LABELS} labels")


def _check_kinds(fields: Mapping, file: Path) -> None:
    """Fields of transformers that are used as they come."""
    architectures = fields.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise RefusedModelError(f"{file} has architectures = {architectures!r}, but must list names of classes there")
    for name, kind in (("dtype", str), ("torch_dtype", str), ("quantization_config", dict)):
        value = fields.get(name)
        if value is not None and not isinstance(value, kind):
            raise RefusedModelError(
                f"{file} has {name} = {value!r}, but must have a {kind.__name__} there, or nothing"
            )


def _check_references(fields: Mapping, file: Path) -> None:
    """Settings that make transformers read from elsewhere; kernels are code, and are fetched by their name."""
    for name in _NEVER_NEEDED:
        if fields.get(name) is not None:
            raise RefusedModelError(
                f"{file} has {name} = {fields[name]!r}, which no model of the family needs and by which other files "
                f"or parts could be read. Remove it ({WEIGHTS_FILE} and {INDEX_FILE} are the names of weights)"
            )
    for name in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        value = fields.get(name)
        if value is not None and not (isinstance(value, str) and "/" not in value):
            raise RefusedModelError(
                f"{file} has {name} = {value!r}, by which code could be fetched from a repository. Remove it there, "
                "and choose the implementation with set_attn_implementation"
            )


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _num_elements(stored: Mapping[str, StoredTensor]) -> int:
    return sum(int(torch.Size(tensor.shape).numel()) for tensor in stored.values())


def _check_tensors(config: VJEPAConfig, stored: Mapping[str, StoredTensor], folder: Path, is_theirs: bool) -> None:
    """Compare names, shapes and kinds with those of the model that the configuration builds."""
    try:
        expected = _expected_shapes(config, {name.split(".", 1)[0] for name in stored}, is_theirs)
    except CONFIG_ERRORS as error:
        raise RefusedModelError(f"no model can be built of {folder / CONFIG_FILE}: {_cause(error)}") from error
    if getattr(config, "quantization_config", None) is not None:  # its library stores others, but of the same layers
        wanted, found = ({layer[0] for name in names if (layer := _LAYER.match(name))} for names in (expected, stored))
        problems = [f"'{name}' is {'missing' if name in wanted else 'left over'}" for name in sorted(wanted ^ found)]
    else:
        problems = [
            f"'{name}' is {_describe(stored.get(name))}, but must be {shape} of floating-point numbers"
            for name, shape in expected.items()
            if name not in stored or stored[name].shape != shape or stored[name].dtype not in _FLOAT_DTYPES
        ]
        problems += [f"'{name}' is left over" for name in stored if name not in expected]
    if problems:
        shown = "; ".join(problems[:_NUM_SHOWN]) + (" ..." if len(problems) > _NUM_SHOWN else "")
        raise RefusedModelError(
            f"the weights of {folder} do not fit its configuration, {len(problems)} tensors: {shown}. Use the "
            f"{CONFIG_FILE} that they were saved with"
        )


def _describe(tensor: StoredTensor | None) -> str:
    return "missing" if tensor is None else f"{tensor.shape} of {tensor.dtype}"


def _expected_shapes(config: VJEPAConfig, parts: set[str], is_theirs: bool) -> dict[str, tuple[int, ...]]:
    """Tensors of the parts that are stored; an encoder is always one of them."""
    with torch.device("meta"):
        models = [VJEPAModel(config), *([VJEPAForVideoClassification(config)] if "pooler" in parts else [])]
    tensors = {name: tensor for model in models for name, tensor in model.state_dict().items()}
    if is_theirs:  # a classifier's unused predictor is among them
        return {name: tuple(tensor.shape) for name, tensor in to_transformers_state(tensors, config).items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if "target_encoder" in parts:
        shapes |= {f"target_{name}": shape for name, shape in shapes.items() if name.startswith("encoder.")}
    required = parts if "target_encoder" in parts else parts | {"encoder"}
    return {name: shape for name, shape in shapes.items() if name.split(".", 1)[0] in required}
