"""Configuration of a file in a released format, from the names and shapes of its tensors.

What no tensor tells is given: attention heads, and the clip's size where positions are rotary.
"""

import math
import os
from pathlib import Path
from typing import Any

import torch

from ..model.configuration_vjepa import VJEPAConfig
from ..model.modeling_vjepa import sincos_positions
from .conversion import POSITION_TOLERANCE, Tensors, check_parts, common_prefix, count_blocks, read_parts
from .released_file import ConversionError

# Blocks of the four levels of V-JEPA 2.1 by the encoder's depth, as released
FEATURE_LEVELS = {12: [2, 5, 8, 11], 24: [5, 11, 17, 23], 40: [9, 19, 29, 39], 48: [11, 23, 37, 47]}
# V-JEPA 2.1 scales positions to the patches of an image of this side
REFERENCE_SIZE = 256
# V-JEPA 2 has a mask token for each of ten clip lengths, V-JEPA one for each of two mask kinds
NUM_MASK_TOKENS_OF_2 = 10


def infer_config(
    file: str | os.PathLike,
    *,
    num_attention_heads: int,
    pred_num_attention_heads: int,
    crop_size: int,
    frames_per_clip: int,
    **fields: Any,
) -> VJEPAConfig:
    """The configuration that a released checkpoint, or one of a fork, was trained with, as far as the file tells it.

    Widths, depths, patch, tubelet, MLP ratios, mask tokens, tokenizers, feature levels and the predictor's form are
    read from the shapes. The generation follows: V-JEPA 2.1 has a norm for each level; without position tables, or
    with tables that are not sine-cosine, it is V-JEPA 2; sine-cosine tables fit V-JEPA and V-JEPA 2, whose files carry
    tables that nothing reads: ten mask tokens mean V-JEPA 2.

    Args:
        file: The checkpoint, with `encoder`, `predictor` and `target_encoder` (or `ema_encoder`).
        num_attention_heads: Heads of the encoder.
        pred_num_attention_heads: Heads of the predictor.
        crop_size: Height and width of the model's clips, in pixels.
        frames_per_clip: Frames of the model's clips.
        fields: Other fields of `VJEPAConfig`. What the file tells is compared with it; `position_embedding` and what
            follows from it may be given.

    Returns:
        The configuration; the whole file has been compared with it.

    Raises:
        ConversionError: The file is no checkpoint, contradicts what was given, or leaves `position_embedding` or
            `feature_levels` open; a ValueError.
        ValueError: The fields contradict each other.
        FileNotFoundError: There is no such file.

    Example:
        >>> from vjepa_hub import infer_config
        >>> infer_config(
        ...     "fork.pt", num_attention_heads=16, pred_num_attention_heads=12, crop_size=256, frames_per_clip=64
        ... )
    """
    parts = read_parts(file)
    _refuse_more_than_is_stored(Path(file), parts)
    try:
        encoder = _without_prefix(parts["target_encoder"])
        predictor = _without_prefix(parts["predictor"])
        told = _encoder_fields(encoder) | _predictor_fields(predictor, encoder)
    except (LookupError, ValueError, ArithmeticError) as error:
        raise ConversionError(
            f"{file} has no encoder and predictor of the family ({type(error).__name__}: {error}); pass a checkpoint "
            "of V-JEPA, V-JEPA 2 or 2.1"
        ) from error
    _compare_with_given(file, told, fields)
    given = {
        "num_attention_heads": num_attention_heads,
        "pred_num_attention_heads": pred_num_attention_heads,
        "crop_size": crop_size,
        "frames_per_clip": frames_per_clip,
        **fields,
    }
    if "position_embedding" not in given:
        given["position_embedding"] = _find_position_embedding(file, encoder, told)
    config = VJEPAConfig(**{**told, **_generation_fields(file, encoder, told, given), **given})
    check_parts(file, parts, config)
    return config


def _refuse_more_than_is_stored(file: Path, parts: dict[str, Tensors]) -> None:
    """A tensor may be a view that reads the same bytes again: no size is believed that the file does not bear out."""
    for part, tensors in parts.items():
        for key, tensor in tensors.items():
            if tensor.nbytes > file.stat().st_size:
                raise ConversionError(
                    f"{part}: '{key}' of {file} has shape {tuple(tensor.shape)}, which is more than the whole file "
                    "holds; the file is no checkpoint of a trained model"
                )


def _without_prefix(tensors: Tensors) -> Tensors:
    prefix = common_prefix(tensors)
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}


def _encoder_fields(encoder: Tensors) -> dict[str, Any]:
    width, channels, tubelet_size, patch_size, _ = encoder["patch_embed.proj.weight"].shape
    return {
        "hidden_size": width,
        "in_chans": channels,
        "tubelet_size": tubelet_size,
        "patch_size": patch_size,
        "num_hidden_layers": count_blocks(encoder, "blocks"),
        "mlp_ratio": _mlp_ratio(encoder["blocks.0.mlp.fc1.weight"]),
        "qkv_bias": "blocks.0.attn.qkv.bias" in encoder,
        "image_tokenizer": "patch_embed_img.proj.weight" in encoder,
        "modality_embeddings": "img_mod_embed" in encoder,
    }


def _predictor_fields(predictor: Tensors, encoder: Tensors) -> dict[str, Any]:
    first = "predictor_embed.weight" if "predictor_embed.weight" in predictor else "predictor_embed.0.weight"
    hidden_size = len(encoder["patch_embed.proj.weight"])
    num_outputs, width = predictor["predictor_proj.weight"].shape
    all_levels = hidden_size * (count_blocks(encoder, "norms_block") or 1)
    return {
        "pred_hidden_size": width,
        "pred_num_hidden_layers": count_blocks(predictor, "predictor_blocks"),
        "pred_mlp_ratio": _mlp_ratio(predictor["predictor_blocks.0.mlp.fc1.weight"]),
        "pred_num_mask_tokens": sum(key.startswith("mask_tokens.") for key in predictor),
        "pred_num_feature_levels": predictor[first].shape[1] // hidden_size,
        "pred_output_size": None if num_outputs == all_levels else num_outputs,
        "pred_predicts_context": "predictor_proj_context.weight" in predictor,
    }


def _mlp_ratio(weight: torch.Tensor) -> float:
    """The ratio that the model's `int(width * ratio)` gives this width of."""
    inner, width = weight.shape
    ratio = inner / width
    return ratio if int(width * ratio) == inner else math.nextafter(ratio, math.inf)


def _compare_with_given(file: str | os.PathLike, told: dict[str, Any], fields: dict[str, Any]) -> None:
    wrong = []
    for name in told.keys() & fields.keys():
        is_ratio = isinstance(told[name], float) and isinstance(fields[name], int | float)
        if not (math.isclose(told[name], fields[name]) if is_ratio else told[name] == fields[name]):
            wrong.append(f"{name} is {fields[name]}, but the file has {told[name]}")
    if wrong:
        raise ConversionError(
            f"{file} contradicts what was given: {'; '.join(sorted(wrong))}. Leave out what the file tells"
        )


def _find_position_embedding(file: str | os.PathLike, encoder: Tensors, told: dict[str, Any]) -> str:
    if count_blocks(encoder, "norms_block"):
        return "rotary"
    is_second = "pos_embed" not in encoder or told["pred_num_mask_tokens"] == NUM_MASK_TOKENS_OF_2
    if is_second or _power_of_table(encoder["pos_embed"]) is None:
        return "rotary_tiled"
    raise ConversionError(
        f"{file} has sine-cosine position tables, which V-JEPA adds to its tokens and V-JEPA 2 carries unread, "
        f'and {told["pred_num_mask_tokens"]} mask tokens, which both could have; give position_embedding="sincos" for '
        'V-JEPA, or position_embedding="rotary_tiled" for V-JEPA 2'
    )


def _power_of_table(table: torch.Tensor) -> bool | None:
    """`uniform_power` of a sine-cosine table of any grid, by its first row; None where it is no such table."""
    width = table.shape[-1]
    if table.ndim != 3 or 0 in table.shape:
        return None
    for uniform_power in (True, False) if width % 8 == 0 else (True,):
        row = sincos_positions((1, 1, 1), width, uniform_power)
        if (table[:, :1].float() - row).abs().max() <= max(POSITION_TOLERANCE, torch.finfo(table.dtype).eps):
            return uniform_power
    return None


def _generation_fields(
    file: str | os.PathLike, encoder: Tensors, told: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    """Fields that no shape tells, as the generation that was found has them."""
    if given["position_embedding"] == "sincos":
        power = _power_of_table(encoder["pos_embed"]) if "pos_embed" in encoder else None
        return {"uniform_power": power is not False}  # a table that is neither is told by the comparison of all keys
    fields = {"mask_token_selection": "clip_length", "rescale_initial_weights": True}
    if (num_levels := count_blocks(encoder, "norms_block")) == 0:
        return fields
    num_layers, grid = told["num_hidden_layers"], round(REFERENCE_SIZE / told["patch_size"])
    levels = given.get("feature_levels", FEATURE_LEVELS.get(num_layers, []))
    if len(levels) != num_levels:
        raise ConversionError(
            f"{file} has norms for {num_levels} feature levels, but after which of its {num_layers} blocks they are "
            f"taken, no tensor tells (feature_levels is {levels}); give {num_levels} blocks from 0, the last one "
            f"{num_layers - 1}"
        )
    # The release scales the predictor's positions where it trains with all levels; the distilled ones it does not
    pred_grid = grid if told["pred_num_feature_levels"] > 1 else None
    return fields | {
        "feature_levels": levels,
        "rotary_reference_grid": grid,
        "pred_rotary_reference_grid": pred_grid,
    }
