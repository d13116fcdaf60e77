"""Folders of transformers' own VJEPA2 (`model_type="vjepa2"`), to models of this package and back, exactly.

The weights are those of V-JEPA 2 under other names, with queries, keys and values apart. What differs is what the
classes do with them: transformers' context sees its targets, its default mask token is the second, one frame is
repeated to a tubelet, and its classifiers carry a predictor that nothing uses: it is not read, and is written as
zeros. Their probes have the encoder's heads and epsilon, unlike the released ones, and `num_pooler_layers` counts the
self-attention alone, one less than here.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, VJEPA2Config

from ..core.files import require_replaceable, writing
from ..model.configuration_vjepa import VJEPAConfig
from ..model.modeling_vjepa import VJEPAForVideoClassification, VJEPAModel, VJEPAPreTrainedModel

MODEL_TYPE = VJEPA2Config.model_type
Tensors = dict[str, torch.Tensor]

# Ours to theirs, rule after rule
_NAMES = (
    (r"^encoder\.embeddings\.patch_embeddings\.projection\.", "encoder.embeddings.patch_embeddings.proj."),
    (r"^predictor\.embedding\.", "predictor.embeddings.predictor_embeddings."),
    (r"^predictor\.mask_tokens$", "predictor.embeddings.mask_tokens"),
    (r"^pooler\.cross_attention\.attention\.", "pooler.cross_attention_layer.cross_attn."),
    (r"^pooler\.cross_attention\.", "pooler.cross_attention_layer."),
    (r"^pooler\.layer\.(\d+)\.attention\.proj\.", r"pooler.self_attention_layers.\1.self_attn.out_proj."),
    (r"^pooler\.layer\.(\d+)\.attention\.", r"pooler.self_attention_layers.\1.self_attn."),
    (r"^pooler\.layer\.", "pooler.self_attention_layers."),
    (r"^(pooler\..*)\.norm", r"\1.layer_norm"),
    (r"^(pooler\..*_attn)\.q\.", r"\1.q_proj."),
)
# Projections that are one of ours
_FUSED = {
    "cross_attn.kv": ("cross_attn.k_proj", "cross_attn.v_proj"),
    "self_attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.qkv": ("attention.query", "attention.key", "attention.value"),
}
_ARCHITECTURES = {"VJEPA2Model": VJEPAModel, "VJEPA2ForVideoClassification": VJEPAForVideoClassification}
# What their classes have built in
_V_JEPA_2 = {
    "position_embedding": "rotary_tiled",
    "rotary_reference_grid": None,
    "pred_rotary_reference_grid": None,
    "image_tokenizer": False,
    "modality_embeddings": False,
    "feature_levels": None,
    "pred_num_feature_levels": 1,
    "pred_output_size": None,
    "pred_predicts_context": False,
}


def convert_transformers_config(fields: Mapping[str, Any]) -> VJEPAConfig:
    """The configuration of the same model in this package.

    Args:
        fields: Content of a `config.json` of transformers' VJEPA2.

    Raises:
        ValueError: A value that their class or ours refuses, or patches that are not square.
    """
    theirs = VJEPA2Config.from_dict(dict(fields))
    given = {name: getattr(theirs, name) for name in VJEPAConfig.__annotations__ if hasattr(theirs, name)}
    sides = {given["patch_size"]} if isinstance(given["patch_size"], int) else set(given["patch_size"])
    if len(sides) != 1:
        raise ValueError(f"patch_size is {given['patch_size']}, but patches must be square; there is no such release")
    given |= _V_JEPA_2 | {
        "patch_size": sides.pop(),
        "num_pooler_layers": theirs.num_pooler_layers + 1,
        "pooler_layer_norm_eps": theirs.layer_norm_eps,
        "mask_token_selection": "clip_length",
        "rescale_initial_weights": True,
        "architectures": [
            _ARCHITECTURES[name].__name__ for name in theirs.architectures or () if name in _ARCHITECTURES
        ],
    }
    return VJEPAConfig(**given, id2label=theirs.id2label, problem_type=theirs.problem_type, dtype=theirs.dtype)


def to_transformers_state(tensors: Tensors, config: VJEPAConfig) -> Tensors:
    """Our tensors under the names and in the shapes of transformers' VJEPA2.

    Args:
        tensors: State dictionary of a `VJEPAModel`, or of a classifier, whose encoder then stands under `vjepa2`.
        config: The architecture.

    Returns:
        Parts of a projection that is one of ours are views of it.
    """
    prefix = "vjepa2." if any(name.startswith("pooler.") for name in tensors) else ""
    theirs: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith("patch_embeddings.projection.weight"):
            tensor = tensor.unflatten(1, (config.in_chans, -1, config.patch_size, config.patch_size))
        elif name == "predictor.mask_tokens":
            tensor = tensor[:, None]  # (n, 1, 1, P)
        names = _their_names(name, prefix)
        theirs |= dict(zip(names, tensor.chunk(len(names)), strict=True))
    return theirs


def from_transformers_state(theirs: Tensors, config: VJEPAConfig) -> Tensors:
    """Tensors of transformers' VJEPA2 under our names; those of projections that are one of ours are joined.

    Args:
        theirs: A whole state dictionary of theirs; of a classifier the predictor is left out.
        config: The architecture, as `convert_transformers_config` gives it.
    """
    is_classifier = any(name.startswith("pooler.") for name in theirs)
    with torch.device("meta"):
        template = (VJEPAForVideoClassification if is_classifier else VJEPAModel)(config).state_dict()
    joined = {}
    for name, expected in template.items():
        parts = [theirs[part] for part in _their_names(name, "vjepa2." if is_classifier else "")]
        joined[name] = (torch.cat(parts) if len(parts) > 1 else parts[0]).reshape(expected.shape)
    return joined


def _their_names(name: str, prefix: str) -> list[str]:
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    if name.startswith(("encoder.", "predictor.")):
        name = prefix + name
    for one, parts in _FUSED.items():
        if f".{one}." in name:
            return [name.replace(one, part) for part in parts]
    return [name]


def _require_theirs(folder: Path) -> None:
    """Refuse a folder with the files of a model that is none of transformers' VJEPA2."""
    config = folder / "config.json"
    is_own = config.is_file() and '"model_type": "vjepa2"' in config.read_text("utf-8", errors="replace")
    names = ("config.json", "model.safetensors", "video_preprocessor_config.json")
    require_replaceable([folder / name for name in names], is_own=lambda _: is_own)


def export_transformers(model: VJEPAPreTrainedModel, output_dir: str | os.PathLike) -> Path:
    """Write a V-JEPA 2 model as a folder that transformers alone loads: `VJEPA2Model` or its classifier.

    Args:
        model: A features model; a pretraining model, of which target encoder and predictor are written; or a
            classifier. Its unused predictor in transformers' class is written as zeros.
        output_dir: The folder; made where there is none, files of equal name are replaced.

    Returns:
        The folder, with the video processor of transformers.

    Raises:
        ValueError: The model has what transformers' classes have not; the message names the fields.
        FileExistsError: The folder holds another model.
        WriteError: The folder cannot be written to; an OSError.

    Example:
        >>> import vjepa_hub
        >>> from vjepa_hub.hub.transformers_vjepa2 import export_transformers
        >>> export_transformers(vjepa_hub.load("facebook/vjepa2-vitl-fpc64-256"), "vjepa2-vitl")
    """
    from transformers import VJEPA2ForVideoClassification, VJEPA2Model, VJEPA2VideoProcessor

    is_classifier = isinstance(model, VJEPAForVideoClassification)
    config = _to_transformers_config(model.config, is_classifier)
    tensors = dict(model.state_dict())
    if not is_classifier and getattr(model, "predictor", None) is None:
        raise ValueError(
            f"this {type(model).__name__} comes from a classifier's folder and has no predictor, which transformers' "
            "VJEPA2Model needs; load the features folder that it was made from"
        )
    if any(name.startswith("target_encoder.") for name in tensors):
        tensors = {name.removeprefix("target_"): t for name, t in tensors.items() if not name.startswith("encoder.")}
    state = {name: tensor.clone() for name, tensor in to_transformers_state(tensors, model.config).items()}
    with torch.device("meta"):
        theirs: PreTrainedModel = (VJEPA2ForVideoClassification if is_classifier else VJEPA2Model)(config)
    for name, tensor in theirs.state_dict().items():
        if name.startswith("vjepa2.predictor."):
            state[name] = torch.zeros(tensor.shape, dtype=model.dtype)
    theirs.load_state_dict(state, assign=True)
    _require_theirs(Path(output_dir))
    with writing(output_dir):
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        theirs.save_pretrained(output_dir)
        VJEPA2VideoProcessor(crop_size=config.crop_size).save_pretrained(output_dir)
    return Path(output_dir)


def _to_transformers_config(config: VJEPAConfig, is_classifier: bool) -> VJEPA2Config:
    needed: dict[str, Any] = dict(_V_JEPA_2)
    if is_classifier:
        needed |= {
            "pooler_layer_norm_eps": config.layer_norm_eps,
            "pooler_mlp_ratio": 4,
            "pooler_feature_layers": None,
        }
        if config.num_pooler_heads is not None:
            needed["num_pooler_heads"] = config.num_attention_heads
    wrong = [
        f"{name} is {getattr(config, name)!r}, and must be {value!r}"
        for name, value in needed.items()
        if getattr(config, name) != value
    ]
    if wrong:
        raise ValueError(
            f"transformers' VJEPA2 cannot be this model: {'; '.join(wrong)}. save_pretrained writes a folder of ours, "
            "which transformers loads with trust_remote_code"
        )
    fields = {name: getattr(config, name) for name in VJEPA2Config.__annotations__ if hasattr(config, name)}
    fields |= {"num_pooler_layers": config.num_pooler_layers - 1, "id2label": config.id2label}
    fields["attention_dropout"] = config.attention_probs_dropout_prob
    fields.pop("model_type", None)
    return VJEPA2Config(**fields, problem_type=config.problem_type, dtype=config.dtype)
