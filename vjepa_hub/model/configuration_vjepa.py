# Copyright 2026 The vjepa_hub authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""Configuration of the V-JEPA family: one home for every fact of the architecture."""

import difflib
import warnings

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

# Keywords that transformers handles without declaring them as fields of the configuration
TRANSFORMERS_KEYWORDS = frozenset(
    (
        "attn_implementation",
        "auto_map",
        "dtype",
        "experts_implementation",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "per_layer_config",
        "tie_last_hidden_states",
        "torch_dtype",
        "transformers_weights",
    )
)


@strict
class VJEPAConfig(PreTrainedConfig):
    """Configuration of [`VJEPAModel`], [`VJEPAForPreTraining`] and [`VJEPAForVideoClassification`].

    The defaults are ViT-L/16 of Bardes et al. 2024 (arXiv 2404.08471); ViT-H/16 is `hidden_size=1280,
    num_hidden_layers=32, num_attention_heads=16`. Field names follow transformers' `VJEPA2Config` where the meaning
    is equal. A keyword that is no field is kept, as transformers does, and warned about with the nearest field.

    Args:
        patch_size: Height and width of a patch, in pixels.
        crop_size: Height and width of the clips that the position table is made for, in pixels.
        frames_per_clip: Frames of the clips that the position table is made for (also readable as `num_frames`).
        tubelet_size: Frames in a token.
        in_chans: Channels of the input.
        hidden_size: Width of the encoder.
        num_hidden_layers: Blocks of the encoder.
        num_attention_heads: Heads of the encoder's and of the attentive pooler's attention.
        mlp_ratio: Width of the encoder's MLPs over its own width.
        hidden_act: Activation of all MLPs, a name of transformers' `ACT2FN`.
        layer_norm_eps: Epsilon of the norms of encoder and predictor. The pooler's norms have 1e-5, as released.
        qkv_bias: Whether the projections to query, key and value have a bias.
        attention_probs_dropout_prob: Dropout on the attention probabilities.
        drop_path_rate: Stochastic depth of the encoder's last block; it grows linearly from 0 at the first.
        initializer_range: Standard deviation of the truncated normal that linear layers start from.
        uniform_power: Whether depth, height and width share the position channels equally; if not, depth takes half.
        pred_hidden_size: Width of the predictor.
        pred_num_hidden_layers: Blocks of the predictor.
        pred_num_attention_heads: Heads of the predictor.
        pred_mlp_ratio: Width of the predictor's MLPs over its own width.
        pred_num_mask_tokens: Mask tokens, one for each kind of mask in training.
        pred_zero_init_mask_tokens: Whether the mask tokens start at zero.
        num_pooler_layers: Blocks of the attentive pooler; the first is the cross-attention.

    Raises:
        ValueError: On a combination that cannot be built; the message gives the value and the rule.

    Example:
    ```python
    >>> from vjepa_hub import VJEPAConfig, VJEPAModel

    >>> config = VJEPAConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3)
    >>> model = VJEPAModel(config)
    ```
    """

    model_type = "vjepa"
    attribute_map = {"num_frames": "frames_per_clip"}  # noqa: RUF012  (declared so by transformers)

    patch_size: int = 16
    crop_size: int = 224
    frames_per_clip: int = 16
    tubelet_size: int = 2
    in_chans: int = 3
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02
    uniform_power: bool = True
    pred_hidden_size: int = 384
    pred_num_hidden_layers: int = 12
    pred_num_attention_heads: int = 16
    pred_mlp_ratio: float | int = 4.0
    pred_num_mask_tokens: int = 2
    pred_zero_init_mask_tokens: bool = True
    num_pooler_layers: int = 1

    def __post_init__(self, **kwargs):
        self._warn_of_unknown_keywords(kwargs)
        super().__post_init__(**kwargs)
        self._check_positive()
        self._check_multiples()
        self._check_probabilities()

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """Tokens of a clip of the configured size along depth (time), height and width."""
        side = self.crop_size // self.patch_size
        return self.frames_per_clip // self.tubelet_size, side, side

    def _warn_of_unknown_keywords(self, keywords: dict) -> None:
        fields = sorted(set(type(self).__dataclass_fields__) | set(self.attribute_map) | TRANSFORMERS_KEYWORDS)
        for name in keywords:
            if name in fields or name.startswith("_"):
                continue
            nearest = difflib.get_close_matches(name, fields, n=1, cutoff=0.0)[0]
            warnings.warn(
                f"VJEPAConfig has no field '{name}': the value {keywords[name]!r} has no effect on the model. "
                f"The nearest field is '{nearest}'.",
                stacklevel=5,
            )

    def _check_positive(self) -> None:
        names = """patch_size crop_size frames_per_clip tubelet_size in_chans hidden_size num_hidden_layers
        num_attention_heads mlp_ratio pred_hidden_size pred_num_hidden_layers pred_num_attention_heads pred_mlp_ratio
        pred_num_mask_tokens num_pooler_layers layer_norm_eps initializer_range"""
        for name in names.split():
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be greater than 0")

    def _check_multiples(self) -> None:
        for whole, part in (
            ("crop_size", "patch_size"),
            ("frames_per_clip", "tubelet_size"),
            ("hidden_size", "num_attention_heads"),
            ("pred_hidden_size", "pred_num_attention_heads"),
        ):
            value, divisor = getattr(self, whole), getattr(self, part)
            if value % divisor:
                lower = max(value // divisor, 1) * divisor
                raise ValueError(
                    f"{whole} is {value}, but must be a multiple of {part} = {divisor}, such as {lower} "
                    f"or {lower + divisor}"
                )
        for name in ("hidden_size", "pred_hidden_size"):
            if getattr(self, name) % 2:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be even: positions are sine-cosine pairs")

    def _check_probabilities(self) -> None:
        for name in ("attention_probs_dropout_prob", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must lie in [0, 1)")


__all__ = ["VJEPAConfig"]
