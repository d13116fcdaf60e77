# Copyright 2026 The vjepa_hub authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""V-JEPA (Bardes et al. 2024, arXiv 2404.08471): encoder, predictor, EMA target encoder, attentive classifier.

Shapes in comments:
    B clips, T frames, C channels, H and W pixels; S segments of a video;
    N tokens of a clip in raster order (depth, height, width), K context tokens, M target tokens;
    D width of the encoder, P width of the predictor; h attention heads, d their width.
"""

import difflib
import inspect
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, load_state_dict
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_vjepa import VJEPAConfig

# The released probe leaves its norms at torch's default, unlike the encoder's 1e-6
POOLER_LAYER_NORM_EPS = 1e-5

# A released target table has drifted by 1e-4 and half precision rounds by 4e-3; the table of another grid is off by 1
POSITION_TOLERANCE = 1e-2

# Which of transformers' Auto classes builds which model, from any folder of the family
AUTO_CLASSES = {
    "AutoModel": "VJEPAModel",
    "AutoModelForPreTraining": "VJEPAForPreTraining",
    "AutoModelForVideoClassification": "VJEPAForVideoClassification",
}

# What `save_pretrained` passes on to `push_to_hub`
PUSH_KEYWORDS = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")

Mask = torch.Tensor | Sequence[torch.Tensor]
Output = TypeVar("Output", bound=ModelOutput)


@dataclass
class VJEPAPredictorOutput(ModelOutput):
    """Output of the predictor. Given lists of masks, each field is a list with one entry for each mask kind.

    Attributes:
        last_hidden_state: Predicted features of the target tokens, `(batch_size, num_targets, hidden_size)`.
        hidden_states: With `output_hidden_states`, the input of the first block and the output of every block,
            `(batch_size, num_context + num_targets, pred_hidden_size)`, context tokens first.
        attentions: With `output_attentions`, `(batch_size, pred_num_attention_heads, num_context + num_targets,
            num_context + num_targets)` for each block.
    """

    last_hidden_state: torch.Tensor | list[torch.Tensor] | None = None
    hidden_states: tuple | list | None = None
    attentions: tuple | list | None = None


@dataclass
class VJEPAModelOutput(ModelOutput):
    """Output of [`VJEPAModel`]. Given lists of masks, each field is a list with one entry for each mask kind.

    Attributes:
        last_hidden_state: Features after the last norm, `(batch_size, num_tokens, hidden_size)`; under a context mask
            only its tokens, `(batch_size, num_context, hidden_size)`.
        hidden_states: With `output_hidden_states`, the input of the first block and the output of every block (before
            the last norm), each of the shape of `last_hidden_state`.
        attentions: With `output_attentions`, `(batch_size, num_attention_heads, num_tokens, num_tokens)` each block.
        predictor_output: The predictor's output, or None where it did not run.
    """

    last_hidden_state: torch.Tensor | list[torch.Tensor] | None = None
    hidden_states: tuple | list | None = None
    attentions: tuple | list | None = None
    predictor_output: VJEPAPredictorOutput | None = None

    def to_tuple(self) -> tuple:
        """The fields that are set, the predictor's output as a tuple of its own."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in super().to_tuple())


@dataclass
class VJEPAForPreTrainingOutput(ModelOutput):
    """Output of [`VJEPAForPreTraining`]; lists have one entry for each mask kind.

    Attributes:
        loss: Mean over the mask kinds of the mean absolute error between predictions and targets, float32.
        predictions: The predictor's output at the target tokens, `(batch_size, num_targets, hidden_size)` each.
        targets: The target encoder's layer-normed features there, of the same shapes.
        hidden_states: With `output_hidden_states`, those of the context encoder.
        attentions: With `output_attentions`, those of the context encoder.
    """

    loss: torch.Tensor | None = None
    predictions: list[torch.Tensor] | None = None
    targets: list[torch.Tensor] | None = None
    hidden_states: list | None = None
    attentions: list | None = None


# ---------------------------------------------------------------------------------------------------------------------
# Clips, token grids, positions, masks
# ---------------------------------------------------------------------------------------------------------------------


def _check_clip(pixel_values_videos: torch.Tensor, config: VJEPAConfig) -> None:
    if pixel_values_videos is None:
        raise ValueError("pixel_values_videos is None, but the model needs a clip; pass the video processor's output")
    shape = tuple(pixel_values_videos.shape)
    if len(shape) != 5:
        raise ValueError(
            f"pixel_values_videos has shape {shape}, but must be (batch_size, num_frames, num_channels, height, "
            "width); for one clip add the batch with unsqueeze(0), for a batch of images the frames with unsqueeze(1)"
        )
    if shape[2] != config.in_chans:
        raise ValueError(
            f"pixel_values_videos has shape {shape}: {shape[2]} channels in dimension 2, but the model takes "
            f"in_chans = {config.in_chans}; move the channels there with permute, or build the model for {shape[2]}"
        )
    if shape[0] == 0:
        raise ValueError(f"pixel_values_videos has shape {shape}: an empty batch; pass at least one clip")
    rules = (("num_frames", 1, "tubelet_size"), ("height", 3, "patch_size"), ("width", 4, "patch_size"))
    for name, axis, divisor_name in rules:
        divisor = getattr(config, divisor_name)
        if shape[axis] % divisor or shape[axis] == 0:
            raise ValueError(
                f"pixel_values_videos has {name} = {shape[axis]}, but it must be a multiple of "
                f"{divisor_name} = {divisor}; resize or crop the clip"
            )


def _repeat_single_frame(pixel_values_videos: torch.Tensor, config: VJEPAConfig) -> torch.Tensor:
    """An image, that is a clip of one frame, becomes a still clip of `frames_per_clip` frames, as in the paper."""
    if pixel_values_videos is not None and pixel_values_videos.ndim == 5 and pixel_values_videos.shape[1] == 1:
        return pixel_values_videos.expand(-1, config.frames_per_clip, -1, -1, -1)
    return pixel_values_videos


def _prepare_clip(pixel_values_videos: torch.Tensor, config: VJEPAConfig) -> torch.Tensor:
    pixel_values_videos = _repeat_single_frame(pixel_values_videos, config)
    _check_clip(pixel_values_videos, config)
    return pixel_values_videos


def _token_grid(pixel_values_videos: torch.Tensor, config: VJEPAConfig) -> tuple[int, int, int]:
    _, num_frames, _, height, width = pixel_values_videos.shape
    return num_frames // config.tubelet_size, height // config.patch_size, width // config.patch_size


def _sincos_1d(channels: int, length: int) -> torch.Tensor:
    """Sines, then cosines of the positions 0 ... length - 1, `(length, channels)`, float64."""
    frequencies = 10000.0 ** (-torch.arange(channels // 2, dtype=torch.float64, device="cpu") / (channels / 2))
    angles = torch.arange(length, dtype=torch.float64, device="cpu")[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_positions(grid: tuple[int, int, int], width: int, uniform_power: bool = True) -> torch.Tensor:
    """Fixed 3D sine-cosine positions of a token grid.

    Args:
        grid: Tokens along depth, height and width.
        width: Channels of a token. Where the three axes' channels add up to more, the last of them are cut off.
        uniform_power: Each axis gets `2 * ceil(width / 6)` channels; otherwise depth gets half, the others a quarter.

    Returns:
        `(1, depth * height * width, width)`, float32, on the CPU.

    Raises:
        ValueError: Without `uniform_power` the width is no multiple of 8, so that its axes do not fill it.
    """
    if not uniform_power and width % 8:
        raise ValueError(f"width is {width}, but without uniform_power it must be a multiple of 8")
    third = 2 * math.ceil(width / 6)
    channels = (third, third, third) if uniform_power else (width // 2, width // 4, width // 4)
    axes = [_sincos_1d(count, length) for count, length in zip(channels, grid, strict=True)]
    depth, rows, columns = grid
    table = torch.cat(
        [
            axes[0][:, None, None].expand(-1, rows, columns, -1),
            axes[1][None, :, None].expand(depth, -1, columns, -1),
            axes[2][None, None, :].expand(depth, rows, -1, -1),
        ],
        dim=-1,
    )
    return table.flatten(0, 2)[None, :, :width].float()


class VJEPAPositionEmbeddings(nn.Module):
    """The fixed position table, stored with the weights and float32 whatever the model is cast to.

    A grid other than the table's is served by trilinear interpolation, as in the release (which gives torch a scale
    factor where this gives the exact size; the two agree wherever the factor is exact).
    """

    table: torch.Tensor

    def __init__(self, grid: tuple[int, int, int], width: int, uniform_power: bool):
        super().__init__()
        self.grid, self.width, self.uniform_power = grid, width, uniform_power
        table = sincos_positions(grid, width, uniform_power)
        # A model built on the meta device must own a meta table, or loading would find memory where it expects none
        self.register_buffer("table", table.to(torch.empty(0).device))

    def reset_table(self) -> None:
        """Compute the table again, for memory that came up empty."""
        init.copy_(self.table, sincos_positions(self.grid, self.width, self.uniform_power))

    def check_table(self) -> None:
        """Raise where a loaded table is not that of the configured grid: the weights belong to other settings."""
        if self.table.device.type == "meta":
            return
        expected = sincos_positions(self.grid, self.width, self.uniform_power).to(self.table.device)
        difference = (self.table - expected).abs().max().item()
        if not difference < POSITION_TOLERANCE:
            raise ValueError(
                f"the stored position table is off by {difference:.3g} from that of a grid of {self.grid} tokens with "
                f"uniform_power={self.uniform_power}; load with the configuration that the weights were saved with"
            )

    def _apply(self, fn, recurse=True):
        exact = self.table
        super()._apply(fn, recurse)
        if self.table.dtype != torch.float32:
            self.table = exact.to(device=self.table.device)
        return self

    def forward(self, grid: tuple[int, int, int]) -> torch.Tensor:
        """Positions of a grid's tokens, `(1, depth * height * width, width)`, float32."""
        if grid == self.grid:
            return self.table
        volume = self.table.unflatten(1, self.grid).permute(0, 4, 1, 2, 3)
        volume = F.interpolate(volume, size=grid, mode="trilinear", align_corners=False)
        return volume.flatten(2).transpose(1, 2)


def check_mask(name: str, mask: torch.Tensor, batch_size: int, num_tokens: int) -> None:
    """Raise where a mask is not an index tensor `(batch_size or 1, num_kept)` into `num_tokens` tokens.

    Values are read on the CPU alone: elsewhere that would stop the device in every step.

    Raises:
        TypeError: The mask is no tensor of integers.
        ValueError: Its shape does not fit, it is empty, or an index lies outside the token grid.
    """
    if not isinstance(mask, torch.Tensor) or mask.dtype not in (torch.int64, torch.int32):
        found = f"dtype {mask.dtype}" if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise TypeError(
            f"{name} is of {found}, but must be an int64 tensor of token indices; "
            "a boolean mask (num_tokens,) of one clip becomes one with mask.nonzero().T"
        )
    if mask.ndim != 2 or mask.shape[0] not in (1, batch_size) or mask.shape[1] == 0:
        raise ValueError(
            f"{name} has shape {tuple(mask.shape)}, but must be (batch_size, num_kept) with batch_size = {batch_size} "
            "or 1 and at least one token"
        )
    if torch.compiler.is_compiling() or mask.device.type != "cpu":
        return
    lowest, highest = mask.min().item(), mask.max().item()
    if lowest < 0 or highest >= num_tokens:
        raise ValueError(
            f"{name} holds indices from {lowest} to {highest}, but the clip has {num_tokens} tokens, 0 to "
            f"{num_tokens - 1}; make the mask for the grid of this clip"
        )


def check_disjoint(context_mask: torch.Tensor, target_mask: torch.Tensor) -> None:
    """Raise where a token is in the context and in the targets; as `check_mask`, on the CPU alone.

    Raises:
        ValueError: The encoder would see what is to be predicted.
    """
    if torch.compiler.is_compiling() or context_mask.device.type != "cpu" or target_mask.device.type != "cpu":
        return
    batch_size = max(len(context_mask), len(target_mask))
    num_tokens = 1 + int(max(context_mask.max(), target_mask.max()))
    is_context = torch.zeros(batch_size, num_tokens, dtype=torch.bool)
    is_context.scatter_(1, context_mask.long().expand(batch_size, -1), True)
    is_shared = is_context.gather(1, target_mask.long().expand(batch_size, -1))
    if is_shared.any():
        clip, place = is_shared.nonzero()[0].tolist()
        raise ValueError(
            f"token {int(target_mask.expand(batch_size, -1)[clip, place])} of clip {clip} is in context_mask and in "
            "target_mask, but the encoder must not see what is to be predicted; leave it out of one of them"
        )


def select_tokens(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The tokens that a mask names.

    Args:
        tokens: `(batch_size, num_tokens, width)`; a batch of one serves every row of the mask.
        mask: `(batch_size, num_kept)`, integer.

    Returns:
        `(batch_size, num_kept, width)`.
    """
    batch_size, num_tokens, _ = tokens.shape
    mask = mask.to(tokens.device)
    if batch_size > 1:
        mask = mask + torch.arange(0, batch_size * num_tokens, num_tokens, device=mask.device)[:, None]
    # Whole rows are copied: several times faster than torch.gather, whose index has the tokens' full size
    return tokens.flatten(0, 1).index_select(0, mask.flatten()).unflatten(0, mask.shape)


def _check_keywords(forward: Callable, keywords: dict) -> None:
    """Raise on a keyword that nothing reads, such as a misspelled mask: the call would go on without it."""
    known = TransformersKwargs.__annotations__.keys() | {"return_dict"}
    for name in keywords:
        if name not in known:
            parameters = [*inspect.signature(forward).parameters, *known]
            nearest = difflib.get_close_matches(name, parameters, n=1, cutoff=0.0)[0]
            raise TypeError(f"{forward.__qualname__} takes no '{name}'; the nearest that it takes is '{nearest}'")


def _as_mask_list(mask: Mask) -> list[torch.Tensor]:
    return [mask] if isinstance(mask, torch.Tensor) else list(mask)


def _pair_masks(context_mask: Mask, target_mask: Mask, num_mask_tokens: int) -> list[tuple]:
    contexts, targets = _as_mask_list(context_mask), _as_mask_list(target_mask)
    if len(contexts) != len(targets) or not contexts:
        raise ValueError(
            f"context_mask has {len(contexts)} mask kinds and target_mask {len(targets)}, but each context mask needs "
            "its target mask: pass two tensors, or two lists of one length"
        )
    if len(contexts) > num_mask_tokens:
        raise ValueError(
            f"{len(contexts)} mask kinds were passed, but the predictor has pred_num_mask_tokens = {num_mask_tokens} "
            "mask tokens, one for each kind; pass at most that many, or one kind at a time with predict(mask_index=)"
        )
    return list(zip(contexts, targets, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Transformer blocks
# ---------------------------------------------------------------------------------------------------------------------


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, in the signature of transformers' attention interface.

    Args:
        module: The attention module that calls.
        query: `(batch_size, num_heads, num_queries, head_width)`.
        key: `(batch_size, num_heads, num_tokens, head_width)`.
        value: Of the shape of `key`.
        attention_mask: Added to the scores where given; the model itself never masks attention.
        scaling: Factor of the scores.
        dropout: Probability of dropping an attention weight while training.
        kwargs: What other implementations take.

    Returns:
        Output `(batch_size, num_queries, num_heads, head_width)` and weights `(batch_size, num_heads, num_queries,
        num_tokens)`.
    """
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class VJEPAMultiHead(nn.Module):
    """What self- and cross-attention share: the heads, and the call of the configured implementation."""

    def __init__(self, config: VJEPAConfig, width: int, num_heads: int):
        super().__init__()
        self.config = config
        self.num_heads, self.head_width = num_heads, width // num_heads
        self.scaling = self.head_width**-0.5
        self.dropout = config.attention_probs_dropout_prob
        self.is_causal = False

    def attend(self, query, key, value, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend over `(batch_size, num_heads, num_tokens, head_width)` and merge the heads."""
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.dropout if self.training else 0.0
        output, weights = attention(
            self, query, key, value, None, scaling=self.scaling, dropout=dropout, is_causal=False, **kwargs
        )
        return output.flatten(2), weights


class VJEPAAttention(VJEPAMultiHead):
    """Multi-head self-attention with one projection to query, key and value, as the released weights have it."""

    def __init__(self, config: VJEPAConfig, width: int, num_heads: int):
        super().__init__(config, width, num_heads)
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(
        self, hidden_states: torch.Tensor, first_query: int = 0, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_width))
        # Taken apart before the heads move forward: so the three gradients become one tensor with one copy, not two
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))  # (B, h, N, d) each
        if first_query:
            query = query[:, :, first_query:]
        output, weights = self.attend(query, key, value, **kwargs)
        return self.proj(output), weights


class VJEPACrossAttention(VJEPAMultiHead):
    """Attention of a few queries to all tokens. No output projection: the released pooler carries one unused."""

    def __init__(self, config: VJEPAConfig):
        super().__init__(config, config.hidden_size, config.num_attention_heads)
        self.q = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.kv = nn.Linear(config.hidden_size, 2 * config.hidden_size, bias=config.qkv_bias)

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        query = self.q(queries).unflatten(-1, (self.num_heads, self.head_width)).transpose(1, 2)
        kv = self.kv(tokens).unflatten(-1, (2, self.num_heads, self.head_width))
        key, value = kv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, N, d) each
        return self.attend(query, key, value)[0]


class VJEPAMLP(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, config: VJEPAConfig, width: int, ratio: float):
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class VJEPADropPath(nn.Module):
    """Stochastic depth: while training, drops a whole residual branch of a clip."""

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        if not self.training or self.probability == 0.0:
            return branch
        keep = 1.0 - self.probability
        kept = branch.new_empty(branch.shape[0], 1, 1).bernoulli_(keep)
        return branch * kept / keep


class VJEPALayer(GradientCheckpointingLayer):
    """Pre-norm transformer block. Tokens before `first_query` are attended to, but do not go on themselves."""

    def __init__(
        self,
        config: VJEPAConfig,
        *,
        width: int,
        num_heads: int,
        mlp_ratio: float,
        layer_norm_eps: float,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=layer_norm_eps)
        self.attention = VJEPAAttention(config, width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=layer_norm_eps)
        self.mlp = VJEPAMLP(config, width, mlp_ratio)
        self.drop_path = VJEPADropPath(drop_path)

    def forward(self, hidden_states: torch.Tensor, first_query: int = 0, **kwargs) -> torch.Tensor:
        attended, _ = self.attention(self.norm1(hidden_states), first_query, **kwargs)
        if first_query:
            hidden_states = hidden_states[:, first_query:]
        hidden_states = hidden_states + self.drop_path(attended)
        return hidden_states + self.drop_path(self.mlp(self.norm2(hidden_states)))


class VJEPAPatchEmbeddings(nn.Module):
    """Cuts clips into tubelets and projects them: the released 3D convolution, written as the matrix product it is.

    As a product it can skip the tokens that a mask hides, and is as fast in bfloat16 as in float32 on every device.
    """

    def __init__(self, config: VJEPAConfig):
        super().__init__()
        self.patch_size, self.tubelet_size = config.patch_size, config.tubelet_size
        self.projection = nn.Linear(config.in_chans * config.tubelet_size * config.patch_size**2, config.hidden_size)

    def forward(self, pixel_values_videos: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        patches = pixel_values_videos.unflatten(4, (-1, self.patch_size)).unflatten(3, (-1, self.patch_size))
        patches = patches.unflatten(1, (-1, self.tubelet_size))  # (B, T/t, t, C, H/p, p, W/p, p)
        patches = patches.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(4).flatten(1, 3)  # (B, N, C * t * p * p)
        if mask is not None:
            patches = select_tokens(patches, mask)  # (B, K, C * t * p * p)
        return self.projection(patches)


class VJEPAEmbeddings(nn.Module):
    """Tokens of a clip: projected patches plus positions, only those that the mask keeps."""

    def __init__(self, config: VJEPAConfig):
        super().__init__()
        self.config = config
        self.patch_embeddings = VJEPAPatchEmbeddings(config)
        self.position_embeddings = VJEPAPositionEmbeddings(config.token_grid, config.hidden_size, config.uniform_power)

    def forward(
        self, pixel_values_videos: torch.Tensor, context_mask: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        """Tokens, `(batch_size, num_tokens or num_kept, hidden_size)`, in the dtype of the residual stream."""
        positions = self.position_embeddings(_token_grid(pixel_values_videos, self.config))
        if context_mask is not None:
            check_mask("context_mask", context_mask, pixel_values_videos.shape[0], positions.shape[1])
            context_mask = context_mask.expand(pixel_values_videos.shape[0], -1)
            positions = select_tokens(positions, context_mask)
        tokens = self.patch_embeddings(pixel_values_videos.to(dtype), context_mask)
        return _add_positions(tokens, positions, dtype)


def _add_positions(tokens: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The sum in float32, rounded once to the weights' dtype: under autocast the stream stays float32, as released.

    The dtype is that of a norm, since quantisation replaces the weights of linear layers by integers.
    """
    return (tokens + positions.to(tokens.device)).to(dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Encoder and predictor
# ---------------------------------------------------------------------------------------------------------------------


class VJEPAPreTrainedModel(PreTrainedModel):
    """Initialisation, loading rules and prediction that the models of the family share."""

    config: VJEPAConfig
    config_class = VJEPAConfig
    base_model_prefix = "vjepa"
    main_input_name = "pixel_values_videos"
    input_modalities = ["video"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the losses are means: the Trainer has to divide them by the accumulated steps
    _no_split_modules = ["VJEPAEmbeddings", "VJEPALayer", "VJEPAPredictor", "VJEPAAttentivePooler"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # The release rescales by depth in its constructors, then initialises every linear layer again: the rescaling
        # is not in effect, except in the pooler.
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, VJEPAPositionEmbeddings):
            module.reset_table()
        elif isinstance(module, VJEPAPredictor):
            module.reset_mask_tokens()
        elif isinstance(module, VJEPAAttentivePooler):
            module.reset_parameters(std)

    def save_pretrained(self, save_directory, *args, push_to_hub: bool = False, **kwargs):
        """Save the model; where the classes are registered for remote code, every Auto class finds its own there.

        With `push_to_hub` it is saved, and then pushed by the method of that name: both give the same repository.
        """
        if self.is_remote_code():
            self.config.auto_map = {auto: f"modeling_vjepa.{name}" for auto, name in AUTO_CLASSES.items()}
        pushed = {name: kwargs.pop(name) for name in PUSH_KEYWORDS if name in kwargs} if push_to_hub else {}
        super().save_pretrained(save_directory, *args, **kwargs)
        if push_to_hub:
            repo_id = pushed.pop("repo_id", os.path.basename(os.path.abspath(save_directory)))
            self.push_to_hub(repo_id, token=kwargs.get("token"), **pushed)

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs):
        """Fit a folder of one model of the family to another, before transformers loads it by name."""
        load = PreTrainedModel._load_pretrained_model
        if args or "expected_keys" in kwargs:  # adapters, into a model that is complete
            return load(model, state_dict, checkpoint_files, load_config, *args, **kwargs)
        file_keys = _checkpoint_keys(state_dict, checkpoint_files)
        file_parts, model_parts = _parts(file_keys), _parts(model.state_dict())
        if "encoder" in file_parts and "predictor" not in file_parts and isinstance(model, VJEPAModel):
            model.predictor = None  # a classifier's folder: predict() says so, rather than run on random weights
        sources = _match_checkpoint(file_keys, file_parts, model_parts)
        if sources is not None:
            if "disk" in (load_config.device_map or {}).values():
                raise ValueError(
                    f"{load_config.pretrained_model_name_or_path} holds {_describe(file_parts)} and cannot become a "
                    f"{type(model).__name__} with parts of it on disk; load it on the CPU first and save_pretrained it"
                )
            state_dict = _read_checkpoint(state_dict, checkpoint_files, sources)
        result = load(model, state_dict, checkpoint_files, load_config)
        for module in model.modules():
            if isinstance(module, VJEPAPositionEmbeddings):
                module.check_table()
        return result

    def _adjust_missing_and_unexpected_keys(self, loading_info) -> None:
        """Refuse what the loading rules did not see, such as keys renamed on the way, rather than drop it."""
        if any("target_encoder." in key for key in loading_info.unexpected_keys):
            raise ValueError(
                f"the checkpoint has a target encoder, which {type(self).__name__} would have left out "
                "for the context encoder; load it as VJEPAForPreTraining, save_pretrained it, and load that folder"
            )
        super()._adjust_missing_and_unexpected_keys(loading_info)

    def _load_and_finalize_distributed_pretrained_model(self, distributed_checkpoint_dir, *args, **kwargs):
        """Load a distributed checkpoint, which holds just what the class that wrote it needs."""
        writers = self.config.architectures or [type(self).__name__]
        if type(self).__name__ not in writers:
            raise ValueError(
                f"{distributed_checkpoint_dir} is a distributed checkpoint of {', '.join(writers)}, and cannot be a "
                f"{type(self).__name__}; load it as what it is, save_pretrained it, and load that folder"
            )
        return super()._load_and_finalize_distributed_pretrained_model(distributed_checkpoint_dir, *args, **kwargs)

    def predict(
        self,
        pixel_values_videos: torch.Tensor,
        context_mask: torch.Tensor,
        target_mask: torch.Tensor,
        mask_index: int = 0,
    ) -> torch.Tensor:
        """Predict the features of hidden tokens from visible ones, which alone are encoded.

        Args:
            pixel_values_videos: `(batch_size, num_frames, num_channels, height, width)`.
            context_mask: Indices of the visible tokens, `(batch_size or 1, num_context)`.
            target_mask: Indices of the tokens to predict, `(batch_size or 1, num_targets)`.
            mask_index: The mask token to use: that of the training mask kind which this mask is most like.

        Returns:
            `(batch_size, num_targets, hidden_size)`, to be compared with layer-normed features of the target encoder.

        Raises:
            ValueError: The model has no predictor, or the masks do not fit the clip.
        """
        predictor = self._require_predictor()
        if not isinstance(context_mask, torch.Tensor) or not isinstance(target_mask, torch.Tensor):
            raise TypeError("predict takes one context mask and one target mask; call it once for each mask kind")
        clip = _prepare_clip(pixel_values_videos, self.config)
        encoder = cast(VJEPAEncoder, self.encoder)
        context = encoder(clip, context_mask, return_dict=True).last_hidden_state
        grid = _token_grid(clip, self.config)
        output = predictor(context, context_mask, target_mask, grid, mask_index, return_dict=True)
        return output.last_hidden_state

    def _require_predictor(self) -> "VJEPAPredictor":
        predictor = getattr(self, "predictor", None)
        if predictor is None:
            raise ValueError(
                f"this {type(self).__name__} has no predictor, so it cannot predict: it is a classifier, or was "
                "loaded from a classifier's folder; load the features or pretraining folder that it was made from"
            )
        return cast("VJEPAPredictor", predictor)


class VJEPAEncoder(VJEPAPreTrainedModel):
    """Vision transformer over tubelets; under a context mask the other tokens never enter it."""

    # Recorded here and not by the models that contain it, so that several runs in one forward do not mix
    _can_record_outputs = {"hidden_states": VJEPALayer, "attentions": VJEPAAttention}  # noqa: RUF012

    def __init__(self, config: VJEPAConfig):
        super().__init__(config)
        self.embeddings = VJEPAEmbeddings(config)
        depth = config.num_hidden_layers
        self.layer = nn.ModuleList(
            VJEPALayer(
                config,
                width=config.hidden_size,
                num_heads=config.num_attention_heads,
                mlp_ratio=config.mlp_ratio,
                layer_norm_eps=config.layer_norm_eps,
                drop_path=config.drop_path_rate * index / max(depth - 1, 1),
            )
            for index in range(depth)
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> VJEPAPatchEmbeddings:
        """The projection of the patches: the first layer that has weights."""
        return self.embeddings.patch_embeddings

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        context_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encode clips, `(batch_size, num_frames, num_channels, height, width)`, or the tokens that a mask keeps."""
        clip = _prepare_clip(pixel_values_videos, self.config)
        dtype = self.layernorm.weight.dtype
        hidden_states = self.embeddings(clip, context_mask, dtype)  # (B, N, D), or (B, K, D) under a mask
        for layer in self.layer:
            hidden_states = layer(hidden_states, **kwargs)
        return BaseModelOutput(last_hidden_state=self.layernorm(hidden_states))


class VJEPAPredictor(VJEPAPreTrainedModel):
    """Narrow transformer from the context's features to those of the hidden tokens, given their positions."""

    _can_record_outputs = {"hidden_states": VJEPALayer, "attentions": VJEPAAttention}  # noqa: RUF012

    def __init__(self, config: VJEPAConfig):
        super().__init__(config)
        width = config.pred_hidden_size
        self.embedding = nn.Linear(config.hidden_size, width)
        self.mask_tokens = nn.Parameter(torch.zeros(config.pred_num_mask_tokens, 1, width))
        self.position_embeddings = VJEPAPositionEmbeddings(config.token_grid, width, config.uniform_power)
        self.layer = nn.ModuleList(
            VJEPALayer(
                config,
                width=width,
                num_heads=config.pred_num_attention_heads,
                mlp_ratio=config.pred_mlp_ratio,
                layer_norm_eps=config.layer_norm_eps,
            )
            for _ in range(config.pred_num_hidden_layers)
        )
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.proj = nn.Linear(width, config.hidden_size)
        self.post_init()

    def reset_mask_tokens(self) -> None:
        """Start the mask tokens at zero, or as linear layers start."""
        if self.config.pred_zero_init_mask_tokens:
            init.zeros_(self.mask_tokens)
        else:
            init.trunc_normal_(self.mask_tokens, std=self.config.initializer_range)

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        context_features: torch.Tensor,
        context_mask: torch.Tensor,
        target_mask: torch.Tensor,
        grid: tuple[int, int, int],
        mask_index: int = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VJEPAPredictorOutput:
        """Predict the target tokens.

        Args:
            context_features: The encoder's output on the context, `(batch_size, num_context, hidden_size)`.
            context_mask: Where these tokens lie, `(batch_size or 1, num_context)`.
            target_mask: Where the tokens to predict lie, `(batch_size or 1, num_targets)`.
            grid: Tokens of the whole clip along depth, height and width.
            mask_index: Which mask token stands for the hidden tokens.
            kwargs: Passed to the attention; `output_hidden_states` and `output_attentions` among them.

        Returns:
            The prediction, `(batch_size, num_targets, hidden_size)`, as `last_hidden_state`.
        """
        positions = self.position_embeddings(grid)  # (1, N, P)
        self._check_masks(context_features, context_mask, target_mask, positions.shape[1], mask_index)
        batch_size, dtype = context_features.shape[0], self.layernorm.weight.dtype
        context_positions = select_tokens(positions, context_mask).expand(batch_size, -1, -1)
        target_positions = select_tokens(positions, target_mask).expand(batch_size, -1, -1)
        context = _add_positions(self.embedding(context_features), context_positions, dtype)  # (B, K, P)
        targets = _add_positions(self.mask_tokens[mask_index], target_positions, dtype)  # (B, M, P)
        hidden_states = torch.cat([context, targets.to(context.device)], dim=1)  # (B, K + M, P)
        *layers, last_layer = self.layer
        for layer in layers:
            hidden_states = layer(hidden_states, **kwargs)
        # Only targets are projected back, so in the last block the context need not go on, unless it is asked for
        first_query = 0 if self._is_recording(kwargs) else context.shape[1]
        hidden_states = last_layer(hidden_states, first_query, **kwargs)
        hidden_states = self.layernorm(hidden_states[:, -targets.shape[1] :])
        return VJEPAPredictorOutput(last_hidden_state=self.proj(hidden_states))  # (B, M, D)

    def _is_recording(self, kwargs: dict) -> bool:
        names = (f"output_{name}" for name in self._can_record_outputs)
        return any(kwargs.get(name, getattr(self.config, name, False)) for name in names)

    def _check_masks(self, context_features, context_mask, target_mask, num_tokens: int, mask_index: int) -> None:
        check_mask("context_mask", context_mask, context_features.shape[0], num_tokens)
        check_mask("target_mask", target_mask, context_features.shape[0], num_tokens)
        check_disjoint(context_mask, target_mask)
        if not 0 <= mask_index < len(self.mask_tokens):
            raise ValueError(
                f"mask_index is {mask_index}, but the predictor has mask tokens 0 to {len(self.mask_tokens) - 1}"
            )


def _predict_each_kind(
    encoder: VJEPAEncoder, predictor: VJEPAPredictor | None, clip: torch.Tensor, masks: list[tuple], **kwargs
) -> tuple[list, list]:
    """The paper's forward pass: encode each context alone, then predict its targets with its own mask token.

    Returns the encoder's outputs and the predictor's, one for each mask kind; without a predictor the second is empty.
    """
    grid = _token_grid(clip, encoder.config)
    contexts, predictions = [], []
    for mask_index, (context_mask, target_mask) in enumerate(masks):
        contexts.append(encoder(clip, context_mask, return_dict=True, **kwargs))
        if predictor is not None:
            features = contexts[-1].last_hidden_state  # (B, K, D)
            predictions.append(
                predictor(features, context_mask, target_mask, grid, mask_index, return_dict=True, **kwargs)
            )
    return contexts, predictions


def _merge(output_class: type[Output], outputs: list[ModelOutput], as_lists: bool, **extra) -> Output:
    """One output for several mask kinds: each field a list, or the only kind's own field."""
    if not as_lists:
        return output_class(**outputs[0], **extra)
    fields = {name: [output[name] for output in outputs] for name in outputs[0]}
    return output_class(**fields, **extra)


class VJEPAModel(VJEPAPreTrainedModel):
    """Encoder and predictor. What is published as `encoder` is the EMA target encoder, as in the paper's evaluations.

    Loaded from a classifier's folder there is no predictor, and `predict` raises.
    """

    _keys_to_ignore_on_load_unexpected = [r"^pooler\.", r"^classifier\."]  # noqa: RUF012

    def __init__(self, config: VJEPAConfig):
        super().__init__(config)
        self.encoder = VJEPAEncoder(config)
        self.predictor: VJEPAPredictor | None = VJEPAPredictor(config)
        self.post_init()

    def get_input_embeddings(self) -> VJEPAPatchEmbeddings:
        """The projection of the patches: the first layer that has weights."""
        return self.encoder.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        context_mask: Mask | None = None,
        target_mask: Mask | None = None,
        skip_predictor: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VJEPAModelOutput:
        """Encode clips and, given both masks, predict the features of the target tokens.

        Args:
            pixel_values_videos: `(batch_size, num_frames, num_channels, height, width)`; one frame is repeated to a
                clip of `frames_per_clip`. Other sizes than the configured ones work, if they are multiples of patch
                and tubelet: positions are interpolated.
            context_mask: Indices of the visible tokens, `(batch_size or 1, num_context)`, or a list of such, one for
                each mask kind. The other tokens are dropped before the first block.
            target_mask: Indices of the tokens to predict, `(batch_size or 1, num_targets)`, or a list of such.
            skip_predictor: Encode the context only.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, and what attention takes.

        Returns:
            `VJEPAModelOutput`. Without masks every token is encoded and the predictor does not run. With lists of
            masks its fields are lists.

        Raises:
            ValueError: Clip or masks do not fit; the message gives the value, the rule and the remedy.
            TypeError: A mask is no index tensor, or a keyword does not exist.
        """
        _check_keywords(VJEPAModel.forward, kwargs)
        clip = _prepare_clip(pixel_values_videos, self.config)
        if context_mask is None:
            if target_mask is not None:
                raise ValueError(
                    "target_mask was passed without context_mask: the context would contain the targets; pass the "
                    "indices of the visible tokens as context_mask"
                )
            return VJEPAModelOutput(**self.encoder(clip, return_dict=True, **kwargs))
        if target_mask is None or skip_predictor:
            masks = [(mask, None) for mask in _as_mask_list(context_mask)]
            contexts, predictions = _predict_each_kind(self.encoder, None, clip, masks, **kwargs)
        else:
            masks = _pair_masks(context_mask, target_mask, self.config.pred_num_mask_tokens)
            predictor = self._require_predictor()
            contexts, predictions = _predict_each_kind(self.encoder, predictor, clip, masks, **kwargs)
        as_lists = not isinstance(context_mask, torch.Tensor)
        predictor_output = _merge(VJEPAPredictorOutput, predictions, as_lists) if predictions else None
        return _merge(VJEPAModelOutput, contexts, as_lists, predictor_output=predictor_output)

    def get_vision_features(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """Features of every token, `(batch_size, num_tokens, hidden_size)`, in raster order (depth, height, width)."""
        return self.encoder(pixel_values_videos, return_dict=True).last_hidden_state


class VJEPAForPreTraining(VJEPAPreTrainedModel):
    """Context encoder, predictor and EMA target encoder, with the paper's objective.

    Loaded from a features folder the target encoder starts as a copy of the encoder.
    """

    _keys_to_ignore_on_load_unexpected = [r"^pooler\.", r"^classifier\."]  # noqa: RUF012

    def __init__(self, config: VJEPAConfig):
        super().__init__(config)
        self.encoder = VJEPAEncoder(config)
        self.predictor = VJEPAPredictor(config)
        self.target_encoder = VJEPAEncoder(config)
        self.post_init()
        self.train(self.training)

    def get_input_embeddings(self) -> VJEPAPatchEmbeddings:
        """The projection of the patches: the first layer that has weights."""
        return self.encoder.get_input_embeddings()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialise what was not loaded; the target encoder starts as a copy of the encoder."""
        super().initialize_weights()
        for target, source in zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True):
            init.copy_(target, source)

    def train(self, mode: bool = True) -> "VJEPAForPreTraining":
        """Set the mode of encoder and predictor; the target encoder stays frozen and in eval mode."""
        super().train(mode)
        self.target_encoder.eval().requires_grad_(False)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "VJEPAForPreTraining":
        """Freeze or free encoder and predictor; the target encoder stays frozen."""
        super().requires_grad_(requires_grad)
        self.target_encoder.requires_grad_(False)
        return self

    @torch.no_grad()
    def update_target_encoder(self, momentum: float) -> None:
        """Move the target encoder: `target = momentum * target + (1 - momentum) * encoder`, parameter by parameter.

        The fixed position table is left as it is; the release averages it too, which only adds rounding.

        Raises:
            ValueError: `momentum` is outside [0, 1], or the weights are in half precision.
        """
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum is {momentum}, but must lie in [0, 1]")
        if self.target_encoder.layernorm.weight.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(
                f"the target encoder is {self.target_encoder.layernorm.weight.dtype}, in which a small step of the "
                "average is rounded away; keep the model in float32 and train under autocast"
            )
        targets: list[torch.Tensor] = list(self.target_encoder.parameters())
        sources: list[torch.Tensor] = list(self.encoder.parameters())
        torch._foreach_lerp_(targets, sources, 1.0 - momentum)

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        context_mask: Mask,
        target_mask: Mask,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VJEPAForPreTrainingOutput:
        """The objective: mean absolute error of the predicted features of hidden tokens, averaged over mask kinds.

        Args:
            pixel_values_videos: `(batch_size, num_frames, num_channels, height, width)`.
            context_mask: Indices of the visible tokens, `(batch_size or 1, num_context)`, or a list, one a mask kind.
            target_mask: Indices of the hidden tokens to predict, `(batch_size or 1, num_targets)`, or a list.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, and what attention takes.

        Returns:
            `VJEPAForPreTrainingOutput`; `loss` is float32 and carries gradients to encoder and predictor alone.

        Raises:
            ValueError: Clip or masks do not fit; the message gives the value, the rule and the remedy.
            TypeError: A mask is no index tensor, or a keyword does not exist.
        """
        _check_keywords(VJEPAForPreTraining.forward, kwargs)
        clip = _prepare_clip(pixel_values_videos, self.config)
        masks = _pair_masks(context_mask, target_mask, self.config.pred_num_mask_tokens)
        with torch.no_grad():
            features = self.target_encoder(clip, return_dict=True).last_hidden_state  # (B, N, D), every token seen
            features = F.layer_norm(features.float(), features.shape[-1:])
        contexts, predicted = _predict_each_kind(self.encoder, self.predictor, clip, masks, **kwargs)
        predictions = [output.last_hidden_state for output in predicted]
        targets = [select_tokens(features, mask.expand(len(features), -1)) for _, mask in masks]  # (B, M, D) each
        losses = [F.l1_loss(p.float(), t) for p, t in zip(predictions, targets, strict=True)]
        return VJEPAForPreTrainingOutput(
            loss=torch.stack(losses).mean(),
            predictions=predictions,
            targets=targets,
            hidden_states=[context.hidden_states for context in contexts] if contexts[0].hidden_states else None,
            attentions=[context.attentions for context in contexts] if contexts[0].attentions else None,
        )


# ---------------------------------------------------------------------------------------------------------------------
# Attentive classifier
# ---------------------------------------------------------------------------------------------------------------------


class VJEPACrossAttentionLayer(nn.Module):
    """The queries look at the normed tokens, then pass an MLP; both with a residual."""

    def __init__(self, config: VJEPAConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=POOLER_LAYER_NORM_EPS)
        self.attention = VJEPACrossAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=POOLER_LAYER_NORM_EPS)
        self.mlp = VJEPAMLP(config, config.hidden_size, config.mlp_ratio)

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        queries = queries + self.attention(queries, self.norm1(tokens))
        return queries + self.mlp(self.norm2(queries))


class VJEPAAttentivePooler(nn.Module):
    """One learned query that attends to all tokens; further blocks refine the query."""

    def __init__(self, config: VJEPAConfig):
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.cross_attention = VJEPACrossAttentionLayer(config)
        self.layer = nn.ModuleList(
            VJEPALayer(
                config,
                width=config.hidden_size,
                num_heads=config.num_attention_heads,
                mlp_ratio=config.mlp_ratio,
                layer_norm_eps=POOLER_LAYER_NORM_EPS,
            )
            for _ in range(config.num_pooler_layers - 1)
        )

    def reset_parameters(self, std: float) -> None:
        """Start the query as linear layers start; outputs of block i are scaled by 1 / sqrt(2 i), as released."""
        init.trunc_normal_(self.query_tokens, std=std)
        init.trunc_normal_(self.cross_attention.mlp.fc2.weight, std=std / math.sqrt(2.0))
        for depth, layer in enumerate(cast(Iterable[VJEPALayer], self.layer), start=2):
            init.trunc_normal_(layer.attention.proj.weight, std=std / math.sqrt(2.0 * depth))
            init.trunc_normal_(layer.mlp.fc2.weight, std=std / math.sqrt(2.0 * depth))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pool tokens, `(batch_size, num_tokens, hidden_size)`, to `(batch_size, hidden_size)`."""
        queries = self.cross_attention(self.query_tokens.expand(len(tokens), -1, -1), tokens)  # (B, 1, D)
        for layer in self.layer:
            queries = layer(queries)
        return queries.squeeze(1)


class VJEPAForVideoClassification(VJEPAPreTrainedModel):
    """Encoder, attentive pooler and linear head. No predictor: every parameter gets a gradient."""

    _keys_to_ignore_on_load_unexpected = [r"^predictor\."]  # noqa: RUF012

    def __init__(self, config: VJEPAConfig):
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self.encoder = VJEPAEncoder(config)
        self.pooler = VJEPAAttentivePooler(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> VJEPAPatchEmbeddings:
        """The projection of the patches: the first layer that has weights."""
        return self.encoder.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """Classify clips, or videos by several segments at once.

        Args:
            pixel_values_videos: `(batch_size, num_frames, num_channels, height, width)`, or `(batch_size,
                num_segments, num_frames, num_channels, height, width)`: the segments are encoded one by one and
                their tokens are attended together. Spatial views are extra rows of the batch.
            labels: Class indices `(batch_size,)`; float `(batch_size, num_labels)` for several labels a clip.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, and what attention takes.

        Returns:
            `ImageClassifierOutput` with `loss` where labels are given, and `logits` `(batch_size, num_labels)`.

        Raises:
            ValueError: The clip does not fit; the message gives the value, the rule and the remedy.
            TypeError: A keyword does not exist.
        """
        _check_keywords(VJEPAForVideoClassification.forward, kwargs)
        clips, num_segments = pixel_values_videos, 1
        if pixel_values_videos is not None and pixel_values_videos.ndim == 6:
            clips, num_segments = pixel_values_videos.flatten(0, 1), pixel_values_videos.shape[1]
        outputs = self.encoder(clips, return_dict=True, **kwargs)
        tokens = outputs.last_hidden_state.unflatten(0, (-1, num_segments)).flatten(1, 2)  # (B, S * N, D)
        logits = self.classifier(self.pooler(tokens))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits.float(), config=self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


# ---------------------------------------------------------------------------------------------------------------------
# Loading rules between the models of the family
# ---------------------------------------------------------------------------------------------------------------------


def _parts(keys) -> set[str]:
    return {key.split(".", 1)[0] for key in keys}


def _describe(file_parts: set[str]) -> str:
    return "a pretraining model" if "target_encoder" in file_parts else "a features model"


def _match_checkpoint(file_keys: list[str], file_parts: set[str], model_parts: set[str]) -> dict[str, str] | None:
    """Which key of a file fills which key of a model; None where the names match as they stand.

    A pretraining folder gives its target encoder to the models that have one encoder; a features folder gives its
    encoder twice to the pretraining model.
    """
    if "target_encoder" in file_parts and "target_encoder" not in model_parts:
        return {key.removeprefix("target_"): key for key in file_keys if not key.startswith("encoder.")}
    if "target_encoder" in model_parts and "encoder" in file_parts and "target_encoder" not in file_parts:
        copies = {f"target_{key}": key for key in file_keys if key.startswith("encoder.")}
        return {key: key for key in file_keys} | copies
    return None


def _checkpoint_keys(state_dict: dict | None, checkpoint_files: list[str] | None) -> list[str]:
    if state_dict is not None:
        return list(state_dict)
    return [key for file in checkpoint_files or [] for key in load_state_dict(file, map_location="meta")]


def _read_checkpoint(state_dict: dict | None, checkpoint_files: list[str] | None, sources: dict[str, str]) -> dict:
    """The tensors under the model's keys: views of the mapped file, and a copy of its own for every second use."""
    tensors = state_dict
    if tensors is None:
        tensors = {key: t for file in checkpoint_files or [] for key, t in load_state_dict(file).items()}
    used: set[str] = set()
    matched = {}
    for model_key, file_key in sources.items():
        matched[model_key] = tensors[file_key].clone() if file_key in used else tensors[file_key]
        used.add(file_key)
    return matched


__all__ = ["VJEPAForPreTraining", "VJEPAForVideoClassification", "VJEPAModel", "VJEPAPreTrainedModel"]
