"""Checkpoints in the released formats of V-JEPA, V-JEPA 2 and 2.1, to models of this package and back.

A released file is a torch archive of `encoder`, `predictor` and `target_encoder`, each a dictionary of tensors, beside
the state of the training run. The distilled models of 2.1 have an `ema_encoder` in place of the target encoder; a
probe's file has a `classifier`, or `classifiers`, a list of heads that were trained side by side. Conversion is
strict: every key is used, or is listed here as without effect. Files are mapped, not read: only the tensors that end
up in a model take memory.
"""

import copy
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import torch

from ..core.files import writing, written_whole
from ..core.names import counted
from ..model.configuration_vjepa import VJEPAConfig
from ..model.modeling_vjepa import (
    VJEPAForPreTraining,
    VJEPAForVideoClassification,
    VJEPAModel,
    VJEPAPreTrainedModel,
    sincos_positions,
)
from .default_processor import default_processor
from .released_file import ConversionError, read_released_file

# Part of the name of every cached conversion: another number, and released files are converted again
CONVERTER_VERSION = 1

Tensors = dict[str, torch.Tensor]
Model = TypeVar("Model", bound=VJEPAPreTrainedModel)

PRETRAINING_PARTS = ("encoder", "predictor", "target_encoder")
# The target encoder's name in the files of the distilled models
EMA_ENCODER = "ema_encoder"
PROBE_PARTS = ("classifier",)
# Heads of V-JEPA 2 and 2.1, each as one `classifier`
PROBE_LIST = "classifiers"
TOP_LEVEL_KEYS_WITHOUT_EFFECT = ("opt", "scaler", "epoch", "loss", "batch_size", "world_size", "lr")
# V-JEPA's released probe carries an output projection that its forward pass never applies
PROBE_KEYS_WITHOUT_EFFECT = tuple(f"pooler.cross_attention_block.xattn.proj.{name}" for name in ("weight", "bias"))

# Our names to the released ones, rule after rule. Both directions read this table: see `_to_released`.
_ENCODER_NAMES = (
    (r"^embeddings\.position_embeddings\.table$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.image_patch_embeddings\.projection\.", "patch_embed_img.proj."),
    (r"^embeddings\.modality_embeddings\.image$", "img_mod_embed"),
    (r"^embeddings\.modality_embeddings\.video$", "video_mod_embed"),
    (r"^level_norms\.", "norms_block."),
    (r"^layer\.", "blocks."),
    (r"\.attention\.", ".attn."),
    (r"^layernorm\.", "norm."),
)
_PREDICTOR_NAMES = (
    (r"^position_embeddings\.table$", "predictor_pos_embed"),
    (r"^modality_embeddings\.image$", "img_mod_embed"),
    (r"^modality_embeddings\.video$", "video_mod_embed"),
    (r"^embedding\.", "predictor_embed."),
    (r"^layer\.", "predictor_blocks."),
    (r"\.attention\.", ".attn."),
    (r"^layernorm\.", "predictor_norm."),
    (r"^proj\.", "predictor_proj."),
    (r"^context_proj\.", "predictor_proj_context."),
)
_CLASSIFIER_NAMES = (
    (r"^pooler\.cross_attention\.attention\.", "pooler.cross_attention_block.xattn."),
    (r"^pooler\.cross_attention\.", "pooler.cross_attention_block."),
    (r"^pooler\.layer\.", "pooler.blocks."),
    (r"\.attention\.", ".attn."),
    (r"^classifier\.", "linear."),
)
_RELEASED_NAMES = {
    "encoder": _ENCODER_NAMES,
    "target_encoder": _ENCODER_NAMES,
    "predictor": _PREDICTOR_NAMES,
    "classifier": _CLASSIFIER_NAMES,
}

# Wrappers of the training run leave these before every key of a part, in any combination
_PREFIX = re.compile(r"(?:module\.|backbone\.)*")
_EXPORTED_PREFIX, _EXPORTED_PROBE_PREFIX = "module.backbone.", "module."

# A real target table has drifted by about 1e-4: the released EMA runs over it, and rounds. Another table is off by 1
POSITION_TOLERANCE = 1e-3

_NUM_PROBLEMS_SHOWN = 10

# ---------------------------------------------------------------------------------------------------------------------
# Released file to model
# ---------------------------------------------------------------------------------------------------------------------


def convert_original_checkpoint(file: str | os.PathLike, config: VJEPAConfig) -> VJEPAForPreTraining:
    """Read a released checkpoint as the model that goes on training: encoder, predictor and target encoder.

    No code of the file is run, and its optimiser state takes no memory. The model owns its weights, float32
    whatever the file holds; it is in eval mode, as after `from_pretrained`.

    Args:
        file: A file such as the release's `vitl16.pth.tar`.
        config: The architecture of the file's model; see `find_configs` and `infer_config`.

    Returns:
        The model, with the file's own position tables. Where a distilled file has no `encoder`, its `ema_encoder`
        fills both encoders, with a warning.

    Raises:
        ConversionError: The file is damaged or no checkpoint, would run code, lacks a part, or does not fit `config`:
            a key is missing, left over or mis-shaped, or a position table is not that of `config`.
        FileNotFoundError: There is no such file.
    """
    parts = read_parts(file)
    model = _build_empty(VJEPAForPreTraining, config)
    templates = {part: model.get_submodule(part).state_dict() for part in PRETRAINING_PARTS}
    check_parts(file, parts, config)
    if "encoder" not in parts:
        warnings.warn(
            f"{file} has no 'encoder': its '{EMA_ENCODER}' fills both encoders, so that predictions are made from the "
            "features of another encoder than the predictor was trained on",
            stacklevel=2,
        )
    sources = {part: parts.get(part, parts["target_encoder"]) for part in PRETRAINING_PARTS}
    return _fill(
        model, {part: _from_released(part, sources[part], templates[part], config) for part in PRETRAINING_PARTS}
    )


def convert_original_features(file: str | os.PathLike, config: VJEPAConfig) -> VJEPAModel:
    """Read a released checkpoint as the model that is published for features: target encoder and predictor.

    Args:
        file: As for `convert_original_checkpoint`, and checked as strictly, the context encoder included.
        config: The architecture of the file's model.

    Returns:
        The model, in eval mode, whose `encoder` is the file's target encoder.

    Raises:
        ConversionError: As `convert_original_checkpoint`.
        FileNotFoundError: There is no such file.
    """
    parts = read_parts(file)
    check_parts(file, parts, config)
    model = _build_empty(VJEPAModel, config)
    sources = {"encoder": "target_encoder", "predictor": "predictor"}
    return _fill(
        model,
        {
            name: _from_released(part, parts[part], model.get_submodule(name).state_dict(), config)
            for name, part in sources.items()
        },
    )


def convert_original_probe(
    encoder_file: str | os.PathLike,
    probe_file: str | os.PathLike,
    config: VJEPAConfig,
    id2label: dict[int, str] | None = None,
    *,
    index: int | None = None,
) -> VJEPAForVideoClassification:
    """Read a released attentive probe, and the target encoder that it was trained on, as one classifier.

    Args:
        encoder_file: The checkpoint, such as `vitl16.pth.tar`; only its target encoder is used.
        probe_file: The probe, such as `k400-probe.pth.tar`.
        config: The architecture of the encoder. The probe tells the number of labels and of pooler blocks; not its
            heads (`num_pooler_heads`: 16 in those of V-JEPA 2 and 2.1) nor the blocks whose tokens it takes
            (`pooler_feature_layers`).
        id2label: Names of the classes 0 ... num_labels - 1. By default those of `config` where their number fits.
        index: Which head of a file with several, from 0.

    Returns:
        The classifier, in eval mode.

    Raises:
        ConversionError: As `convert_original_checkpoint`, for either file.
        ValueError: `id2label` does not name the probe's classes.
        FileNotFoundError: There is no such file.
    """
    parts = read_parts(encoder_file, ("target_encoder",))
    check_parts(encoder_file, parts, config)
    template = _build_empty(VJEPAModel, config).encoder.state_dict()
    encoder = _from_released("target_encoder", parts["target_encoder"], template, config)
    return _attach_probe(encoder, Path(probe_file), config, id2label, index)


def attach_original_probe(
    model: VJEPAModel,
    probe_file: str | os.PathLike,
    id2label: dict[int, str] | None = None,
    *,
    index: int | None = None,
    num_pooler_heads: int | None = None,
    pooler_feature_layers: list[int] | None = None,
) -> VJEPAForVideoClassification:
    """Put a released attentive probe on the encoder that it was trained on, which has been converted before.

    Args:
        model: The features model; the classifier shares its encoder's memory.
        probe_file: The probe, such as `k400-probe.pth.tar`.
        id2label: Names of the classes, as for `convert_original_probe`.
        index: Which head of a file with several, from 0.
        num_pooler_heads: Heads of the probe's attention, as in `VJEPAConfig`.
        pooler_feature_layers: Blocks whose tokens the probe takes, as in `VJEPAConfig`.

    Raises:
        ConversionError: As `convert_original_checkpoint`, for the probe.
        ValueError: `id2label` does not name the probe's classes.
        FileNotFoundError: There is no such file.
    """
    fields = {"num_pooler_heads": num_pooler_heads, "pooler_feature_layers": pooler_feature_layers}
    config = VJEPAConfig.from_dict(model.config.to_dict() | fields)
    return _attach_probe(dict(model.encoder.state_dict()), Path(probe_file), config, id2label, index)


def _attach_probe(
    encoder: Tensors, probe_file: Path, config: VJEPAConfig, id2label: dict[int, str] | None, index: int | None
) -> VJEPAForVideoClassification:
    classifier = _read_probe(probe_file, index)
    config = _with_probe(config, classifier, id2label)
    check_parts(probe_file, {"classifier": classifier}, config)
    model = _build_empty(VJEPAForVideoClassification, config)
    template = _without_encoder(model)
    return _fill(model, {"encoder": encoder, "": _from_released("classifier", classifier, template, config)})


def convert_file(
    file: str | os.PathLike,
    output_dir: str | os.PathLike,
    config: VJEPAConfig,
    *,
    probe_file: str | os.PathLike | None = None,
    id2label: dict[int, str] | None = None,
    index: int | None = None,
) -> VJEPAModel | VJEPAForVideoClassification:
    """Write the folder of a released model: weights, configuration and video processor, for `from_pretrained`.

    Args:
        file: The released checkpoint.
        output_dir: The folder; made where there is none, files of equal name are replaced. Nothing is written where
            the conversion fails.
        config: The architecture of the file's model.
        probe_file: A released probe on that checkpoint. With it the folder holds a classifier, without it a features
            model: target encoder and predictor.
        id2label: Names of the probe's classes.
        index: Which head of a probe's file with several, from 0.

    Returns:
        The model that was written.

    Raises:
        ConversionError: As `convert_original_checkpoint`.
        WriteError: `output_dir` is a file, or cannot be written to; an OSError.
        ValueError: `id2label` does not name the probe's classes, or comes without a probe.
    """
    if probe_file is None and id2label is not None:
        raise ValueError("id2label was passed without probe_file, but a features model has no classes; pass the probe")
    config = copy.deepcopy(config)
    config.weights_origin = f"target encoder of {Path(file).name}, converter version {CONVERTER_VERSION}"
    model: VJEPAModel | VJEPAForVideoClassification
    if probe_file is None:
        model = convert_original_features(file, config)
    else:
        model = convert_original_probe(file, probe_file, config, id2label, index=index)
    write_folder(model, output_dir)
    return model


def write_folder(model: VJEPAPreTrainedModel, output_dir: str | os.PathLike) -> None:
    """Save a model with the video processor of its kind.

    Args:
        model: Any model of the family.
        output_dir: The folder; made where there is none, files of equal name are replaced.
    """
    with writing(output_dir):
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        model.save_pretrained(output_dir)
        is_classifier = isinstance(model, VJEPAForVideoClassification)
    default_processor(model.config, is_classifier=is_classifier).save_pretrained(output_dir)


def find_configs(file: str | os.PathLike, candidates: Iterable[VJEPAConfig]) -> list[VJEPAConfig]:
    """Those of some configurations that a released checkpoint fits, keys, shapes and position tables.

    The number of attention heads leaves no trace in a file, and with rotary positions the crop size neither.

    Args:
        file: The released checkpoint.
        candidates: Configurations to try, such as the registry's.

    Returns:
        The configurations, in the order of the candidates.

    Raises:
        ConversionError: The file is damaged or no checkpoint, would run code, or lacks a part.
    """
    parts = read_parts(file)
    return [config for config in candidates if not _find_problems(parts, config)]


def _build_empty(model_class: type[Model], config: VJEPAConfig) -> Model:
    with torch.device("meta"):
        return model_class(config)


def _fill(model: Model, state_dicts: dict[str, Tensors]) -> Model:
    """Give the tensors to the submodules of these names (the empty name: the model itself)."""
    state_dict: Tensors = {}
    for name, tensors in state_dicts.items():
        state_dict |= {f"{name}.{key}" if name else key: tensor for key, tensor in tensors.items()}
    model.load_state_dict(state_dict, assign=True)
    return model.eval()


def _without_encoder(model: VJEPAForVideoClassification) -> Tensors:
    return {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("encoder.")}


def _with_probe(config: VJEPAConfig, classifier: Tensors, id2label: dict[int, str] | None) -> VJEPAConfig:
    """A copy of the configuration with the probe's number of blocks and of labels, and their names."""
    config = copy.deepcopy(config)
    config.num_pooler_layers = 1 + count_blocks(classifier, "pooler.blocks")
    head = classifier.get(common_prefix(classifier) + "linear.weight")
    num_labels = len(config.id2label or {}) if head is None or head.ndim != 2 else len(head)
    if num_labels != config.num_labels:
        config.num_labels = num_labels
    if id2label is None:
        return config
    names = {int(index): label for index, label in id2label.items()}  # JSON has made strings of the indices
    if sorted(names) != list(range(num_labels)):
        raise ValueError(
            f"id2label has {len(names)} entries, but must name each class of the probe, 0 to {num_labels - 1}; "
            "pass the names of the data set that the probe was trained on"
        )
    config.id2label = dict(sorted(names.items()))
    config.label2id = {label: index for index, label in names.items()}
    return config


# ---------------------------------------------------------------------------------------------------------------------
# Model to released file
# ---------------------------------------------------------------------------------------------------------------------


def to_original_state(model: VJEPAForPreTraining) -> dict[str, Tensors]:
    """The weights of a pretraining model under the released names.

    Args:
        model: Encoder, predictor and target encoder.

    Returns:
        `encoder`, `predictor` and `target_encoder`, which for the distilled form of V-JEPA 2.1 is `ema_encoder`; most
        of their tensors share the model's memory. The position tables that V-JEPA 2's files carry and nothing reads
        are not among them.
    """
    is_distilled = model.config.pred_output_size is not None
    names = {"target_encoder": EMA_ENCODER} if is_distilled else {}
    return {
        names.get(part, part): _with_prefix(
            _EXPORTED_PREFIX, _to_released(part, model.get_submodule(part).state_dict(), model.config)
        )
        for part in PRETRAINING_PARTS
    }


def export_original_checkpoint(model: VJEPAForPreTraining, file: str | os.PathLike, *, epoch: int = 0) -> None:
    """Write a pretraining model in the released format; `convert_original_checkpoint` reads it back bit-equal.

    The file has the release's top-level keys. Those of the training run (`opt`, `scaler`, `loss`, `batch_size`,
    `world_size`, `lr`) are None: the released evaluations read the file, but its training cannot resume from it.

    Args:
        model: The model.
        file: Where to write; an existing file is replaced, but only once the new one is complete.
        epoch: Epochs that the model was trained for.
    """
    run = dict.fromkeys(TOP_LEVEL_KEYS_WITHOUT_EFFECT) | {"epoch": epoch}
    _save({**to_original_state(model), **run}, Path(file))


def export_original_probe(model: VJEPAForVideoClassification, file: str | os.PathLike, *, epoch: int = 0) -> None:
    """Write a classifier's pooler and head in the released format; the encoder is not part of it.

    The projection that V-JEPA's release carries and never applies is written as the identity. Of a model with rotary
    positions the file holds `classifiers`, a list with this head, as those of V-JEPA 2 and 2.1.

    Args:
        model: The classifier.
        file: Where to write; an existing file is replaced, but only once the new one is complete.
        epoch: Epochs that the probe was trained for.
    """
    run = {key: None for key in TOP_LEVEL_KEYS_WITHOUT_EFFECT if key != "loss"} | {"epoch": epoch}
    classifier = _to_released("classifier", _without_encoder(model), model.config)
    if model.config.has_rotary_positions:
        del run["lr"]
        _save({PROBE_LIST: [_with_prefix(_EXPORTED_PROBE_PREFIX, classifier)], **run}, Path(file))
        return
    weight, bias = PROBE_KEYS_WITHOUT_EFFECT
    classifier |= {weight: torch.eye(model.config.hidden_size), bias: torch.zeros(model.config.hidden_size)}
    _save({"classifier": _with_prefix(_EXPORTED_PROBE_PREFIX, classifier), **run}, Path(file))


def _with_prefix(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + key: tensor.cpu().contiguous() for key, tensor in tensors.items()}


def _save(checkpoint: dict, file: str | Path) -> None:
    with written_whole(file) as temporary, temporary.open("wb") as opened:  # a full disk is an OSError then
        torch.save(checkpoint, opened)


# ---------------------------------------------------------------------------------------------------------------------
# Names and layouts
# ---------------------------------------------------------------------------------------------------------------------


def _released_key(part: str, name: str, config: VJEPAConfig) -> str:
    if part != "predictor" and config.feature_levels is not None:  # the last level's norm is our final norm
        name = re.sub(r"^layernorm\.", f"level_norms.{config.num_feature_levels - 1}.", name)
    for pattern, replacement in _RELEASED_NAMES[part]:
        name = re.sub(pattern, replacement, name)
    return name


def _to_released(part: str, tensors: Tensors, config: VJEPAConfig) -> Tensors:
    """Our tensors of a part under the released names and in the released shapes, without prefix.

    Given a model's empty (meta) tensors this is what a file has to hold.
    """
    released: Tensors = {}
    for name, tensor in tensors.items():
        key = _released_key(part, name, config)
        if key == "mask_tokens":
            released |= {f"{key}.{i}": token.clone() for i, token in enumerate(tensor.split(1))}  # (1, 1, P) each
        elif key in ("patch_embed.proj.weight", "patch_embed_img.proj.weight"):
            released[key] = tensor.unflatten(1, (config.in_chans, -1, config.patch_size, config.patch_size))
        else:
            released[key] = tensor
    return released


def _from_released(part: str, released: Tensors, template: Tensors, config: VJEPAConfig) -> Tensors:
    """A checked part under our names, in the template's shapes; float32 copies, so that the file can be let go."""
    prefix = common_prefix(released)
    tensors = {}
    for name, expected in template.items():
        key = prefix + _released_key(part, name, config)
        if key.endswith("mask_tokens"):
            found = torch.cat([released[f"{key}.{i}"] for i in range(len(expected))])
        else:
            found = released[key]
        found = found.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        tensors[name] = found.reshape(expected.shape)
    return tensors


def common_prefix(released: Tensors) -> str:
    """The wrappers' prefix of most keys of a part; a key with another one is then reported as left over."""
    prefixes = Counter(_PREFIX.match(key).group() for key in released)  # type: ignore[union-attr]  # it matches ""
    return prefixes.most_common(1)[0][0] if prefixes else ""


def count_blocks(released: Tensors, blocks: str) -> int:
    """Number of blocks, such as `predictor_blocks`, that a part has keys of."""
    pattern = re.compile(re.escape(f"{common_prefix(released)}{blocks}.") + r"(\d+)\.")
    return len({match[1] for match in map(pattern.match, released) if match})


# ---------------------------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------------------------


def check_parts(file: str | os.PathLike, parts: dict[str, Tensors], config: VJEPAConfig) -> None:
    """Raise one error that names every key of the parts that does not fit the configuration.

    Args:
        file: Where the parts come from, for the message.
        parts: Some of `PRETRAINING_PARTS`, or a probe's `classifier`, under the released names.
        config: The architecture.

    Raises:
        ConversionError: A key is missing, left over or mis-shaped, or a position table is another one.
    """
    problems = _find_problems(parts, config)
    if not problems:
        return
    shown = "".join(f"\n  {problem}" for problem in problems[:_NUM_PROBLEMS_SHOWN])
    more = len(problems) - _NUM_PROBLEMS_SHOWN
    raise ConversionError(
        f"{file} does not fit the configuration, {counted(len(problems), 'problem')}:{shown}"
        + (f"\n  and {more} more" if more > 0 else "")
        + "\nEvery key of the file must be used and have its shape: pass the configuration that it was trained with"
    )


def _find_problems(parts: dict[str, Tensors], config: VJEPAConfig) -> list[str]:
    templates = {}
    if "classifier" in parts:
        templates["classifier"] = _without_encoder(_build_empty(VJEPAForVideoClassification, config))
    else:
        model = _build_empty(VJEPAModel, config)
        encoder, predictor = (model.get_submodule(name).state_dict() for name in ("encoder", "predictor"))
        templates = {"encoder": encoder, "predictor": predictor, "target_encoder": encoder}
    return [
        problem for part, found in parts.items() for problem in _find_misfits(part, found, templates[part], config)
    ]


def _find_misfits(part: str, found: Tensors, template: Tensors, config: VJEPAConfig) -> list[str]:
    prefix = common_prefix(found)
    expected = {prefix + key: tensor for key, tensor in _to_released(part, template, config).items()}
    ignored = {prefix + key for key in _keys_without_effect(part, config)}
    problems = [f"{part}: key '{key}' is missing" for key in expected if key not in found]
    problems += [f"{part}: key '{key}' is left over" for key in found if key not in expected and key not in ignored]
    for key in (key for key in expected if key in found):
        if found[key].shape != expected[key].shape:
            shapes = f"{tuple(found[key].shape)}, but the configuration needs {tuple(expected[key].shape)}"
            problems.append(f"{part}: '{key}' has shape {shapes}")
        elif not found[key].is_floating_point():
            problems.append(f"{part}: '{key}' has dtype {found[key].dtype}, but weights are floating-point numbers")
        elif key.endswith("pos_embed"):
            problems += [f"{part}: '{key}' {text}" for text in _find_table_problems(found[key], config)]
    return problems


def _keys_without_effect(part: str, config: VJEPAConfig) -> tuple[str, ...]:
    if part == "classifier":
        return PROBE_KEYS_WITHOUT_EFFECT
    return ("pos_embed", "predictor_pos_embed") if config.has_rotary_positions else ()


def _find_table_problems(table: torch.Tensor, config: VJEPAConfig) -> list[str]:
    """Fault of a position table of the right shape: equal shapes hide a wrong grid or `uniform_power`."""
    # In half precision the table itself is rounded, bfloat16 by more than the tolerance
    tolerance = max(POSITION_TOLERANCE, torch.finfo(table.dtype).eps)
    deviation = _deviation(table, config, config.uniform_power)
    if deviation <= tolerance:  # never true of NaN
        return []
    if _deviation(table, config, not config.uniform_power) <= tolerance:
        return [f"is the table of uniform_power={not config.uniform_power}, but the configuration has the opposite"]
    return [
        f"differs by {deviation:.2g} from the table of the token grid {config.token_grid}, more than {tolerance}; "
        "compare crop_size, patch_size, frames_per_clip and tubelet_size"
    ]


def _deviation(table: torch.Tensor, config: VJEPAConfig, uniform_power: bool) -> float:
    ours = sincos_positions(config.token_grid, table.shape[-1], uniform_power)
    if ours.shape != table.shape:  # widths that are no multiple of 4 have no table without uniform_power
        return math.inf
    return (table.float() - ours).abs().max().item()


# ---------------------------------------------------------------------------------------------------------------------
# Reading files
# ---------------------------------------------------------------------------------------------------------------------


def read_parts(file: str | os.PathLike, needed: tuple[str, ...] = PRETRAINING_PARTS) -> dict[str, Tensors]:
    """The parts of a released checkpoint under the released keys; everything else at its top level must be known.

    Args:
        file: The checkpoint.
        needed: Some of `PRETRAINING_PARTS`.

    Returns:
        A mapped state dictionary for each part. A distilled file's `ema_encoder` is the `target_encoder`; where it has
        no `encoder`, there is none here either.

    Raises:
        ConversionError: The file is damaged or no checkpoint, would run code, or lacks a part.
        FileNotFoundError: There is no such file.
    """
    checkpoint = _read_dictionary(Path(file), needed)
    if EMA_ENCODER in checkpoint and "target_encoder" not in checkpoint:
        checkpoint["target_encoder"] = checkpoint.pop(EMA_ENCODER)
        needed = tuple(part for part in needed if part != "encoder" or part in checkpoint)
    return _take_parts(Path(file), checkpoint, needed, unused=PRETRAINING_PARTS)


def _read_probe(file: Path, index: int | None) -> Tensors:
    """The only head of a probe's file, or the one with this index."""
    checkpoint = _read_dictionary(file, PROBE_PARTS)
    heads = checkpoint.pop(PROBE_LIST, None)
    if heads is None:
        heads = [_take_parts(file, checkpoint, PROBE_PARTS)["classifier"]]
    if not isinstance(heads, list) or not heads:
        raise ConversionError(f"'{PROBE_LIST}' of {file} must be a list of heads; pass a probe in the released format")
    if index is None and len(heads) > 1:
        raise ConversionError(
            f"{file} holds {len(heads)} heads that were trained side by side, and does not say which is the best; "
            f"pass index=0 to index={len(heads) - 1}"
        )
    if not 0 <= (index or 0) < len(heads):
        raise ConversionError(f"index is {index}, but {file} has the heads 0 to {len(heads) - 1}; pass one of them")
    checkpoint["classifier"] = heads[index or 0]
    return _take_parts(file, checkpoint, PROBE_PARTS)["classifier"]


def _read_dictionary(file: Path, needed: tuple[str, ...]) -> dict:
    checkpoint = read_released_file(file)
    if not isinstance(checkpoint, dict):
        raise ConversionError(
            f"{file} holds a {type(checkpoint).__name__}, but must hold a dictionary with {_quoted(needed)}; "
            "pass a checkpoint in the released format"
        )
    return checkpoint


def _take_parts(
    file: Path, checkpoint: dict, needed: tuple[str, ...], unused: tuple[str, ...] = ()
) -> dict[str, Tensors]:
    names = _quoted(checkpoint)
    if missing := [part for part in needed if part not in checkpoint]:
        raise ConversionError(f"{file} has no {_quoted(missing)}, only {names}; {_remedy(needed, checkpoint)}")
    known = {*needed, *unused, *TOP_LEVEL_KEYS_WITHOUT_EFFECT}
    if unknown := [key for key in checkpoint if key not in known]:
        raise ConversionError(
            f"{file} has {_quoted(unknown)} at its top level, which the released format has not (found: {names}); "
            "remove what is not part of the model, so that nothing is dropped in silence"
        )
    for part in needed:
        _check_is_state_dict(file, part, checkpoint[part])
    return {part: checkpoint[part] for part in needed}


def _check_is_state_dict(file: Path, part: str, tensors: object) -> None:
    if not isinstance(tensors, dict):
        found = f"a {type(tensors).__name__}"
    elif wrong := [key for key, t in tensors.items() if not (isinstance(key, str) and isinstance(t, torch.Tensor))]:
        found = f"{_quoted(wrong[:_NUM_PROBLEMS_SHOWN])}, which is no tensor under a name"
    else:
        return
    raise ConversionError(
        f"'{part}' of {file} holds {found}, but must be a dictionary of tensors; pass a state_dict()"
    )


def _quoted(names: Iterable) -> str:
    return ", ".join(f"'{name}'" for name in names) or "nothing"


def _remedy(needed: tuple[str, ...], checkpoint: dict) -> str:
    if "classifier" in checkpoint or PROBE_LIST in checkpoint:
        return "this is a probe's file: pass it as probe_file, beside the checkpoint of its encoder"
    if needed == PROBE_PARTS:
        return "pass a probe's file, such as k400-probe.pth.tar"
    if "target_encoder" not in checkpoint:
        return "pass a checkpoint of pretraining with its EMA target encoder: features and probes are made from it"
    return "pass a complete checkpoint of pretraining"
