"""Recorded cases of V-JEPA 2 and 2.1: tiny models with random weights in the released formats, and their numbers."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from vjepa_hub import VJEPAConfig

FOLDER = Path(__file__).parent / "reference_cases"
GIVEN = {
    "v2": {"num_attention_heads": 3, "pred_num_attention_heads": 2, "crop_size": 64, "frames_per_clip": 8},
    "v2.1": {"num_attention_heads": 2, "pred_num_attention_heads": 2, "crop_size": 64, "frames_per_clip": 8},
}
"""Fields that no file tells, by generation."""

_ROTARY = {
    "mask_token_selection": "clip_length",
    "rescale_initial_weights": True,
    "pred_hidden_size": 28,
    "pred_num_mask_tokens": 2,
}
TOLD = {
    "v2": _ROTARY
    | {"hidden_size": 48, "num_hidden_layers": 3, "pred_num_hidden_layers": 2, "position_embedding": "rotary_tiled"},
    "v2.1": _ROTARY
    | {
        "hidden_size": 32,
        "num_hidden_layers": 12,
        "pred_num_hidden_layers": 4,
        "position_embedding": "rotary",
        "rotary_reference_grid": 16,
        "pred_rotary_reference_grid": 16,
        "image_tokenizer": True,
        "modality_embeddings": True,
        "feature_levels": [2, 5, 8, 11],
        "pred_num_feature_levels": 4,
        "pred_predicts_context": True,
    },
}
"""Fields that the files tell, where they differ from the defaults."""

DISTILLED = {
    "pred_rotary_reference_grid": None,
    "pred_num_feature_levels": 1,
    "pred_output_size": 48,
    "pred_num_mask_tokens": 3,
}
"""Fields of the distilled model, where they differ from those of 2.1."""


def tiny_config(generation: str, **fields) -> VJEPAConfig:
    """The configuration of a generation's tiny model."""
    return VJEPAConfig(**{**GIVEN[generation], **TOLD[generation], **fields})


def reference_file(generation: str, name: str = "official_tiny.pt") -> Path:
    """A file of a generation's cases."""
    return FOLDER / generation / name


def distilled_checkpoint() -> dict:
    """The content of the distilled form's file: the encoders of 2.1's own file, and a predictor of another form."""
    checkpoint = torch.load(reference_file("v2.1"), weights_only=True)
    checkpoint["ema_encoder"] = checkpoint.pop("target_encoder")
    return checkpoint | torch.load(reference_file("v2.1", "distilled_predictor.pt"), weights_only=True)


def forward_case(generation: str) -> dict[str, torch.Tensor]:
    """The recorded numbers, with clips and images as normalised pixels (batch_size, num_frames, channels, H, W)."""
    case = load_file(reference_file(generation, "forward.safetensors"))
    for name in [name for name in case if name.endswith(".pixel_values")]:
        case[f"{name}_videos"] = case.pop(name).float().transpose(1, 2)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    for name in [name for name in case if name.endswith("frames_uint8")]:
        pixels = name.replace("frames_uint8", "pixel_values_videos")
        case[pixels] = (case.pop(name).transpose(1, 2).float() / 255 - mean) / std
    return case
