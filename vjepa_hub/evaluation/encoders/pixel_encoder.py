"""Raw pixels as an encoder that has learned nothing: what a probe reads without one.

A token is the normalised pixels of a tubelet, beside the fixed positions that V-JEPA adds to its tokens. Positions
stand beside the pixels, and are not added to them, so that no pixel is changed.
"""

import torch
from torch import nn

from ...data.augmentation import IMAGENET_MEAN, IMAGENET_STD
from ...model.modeling_vjepa import sincos_positions
from .frozen_encoder import ClipEncoder, EncoderFacts, EncoderRequest, check_multiple, count_heads

PATCH_SIZE, TUBELET_SIZE = 8, 2
_DEFAULT_FRAMES = 8
_POSITION_WIDTH = 48
_NUM_CHANNELS = 3


class _Positions(nn.Module):
    """The table `(1, num_tokens, width)`; a parameter, so that the fingerprint tells grids apart."""

    def __init__(self, grid: tuple[int, int, int]):
        super().__init__()
        self.table = nn.Parameter(sincos_positions(grid, _POSITION_WIDTH))


class PixelEncoder(ClipEncoder):
    """Tokens of tubelets of 2 frames and 8 x 8 pixels, in raster order (depth, height, width)."""

    def encode_clips(self, clips: torch.Tensor) -> torch.Tensor:
        """Pixels and positions, `(batch_size, num_tokens, 432)`."""
        tokens = _unfold(clips)
        positions = self.model.table
        if tokens.shape[1] != positions.shape[1]:
            raise ValueError(
                f"clips of the shape {tuple(clips.shape)} have {tokens.shape[1]} tubelets, but {self.name} was opened "
                f"for {positions.shape[1]}: open it with their frames_per_clip and crop_size"
            )
        return torch.cat([tokens, positions.expand(len(tokens), -1, -1)], dim=-1)


def _unfold(clips: torch.Tensor) -> torch.Tensor:
    """The pixels of each tubelet, (B, N, 2 * 3 * 8 * 8)."""
    depth, rows, columns = clips.shape[1] // TUBELET_SIZE, clips.shape[3] // PATCH_SIZE, clips.shape[4] // PATCH_SIZE
    split = clips.unflatten(4, (columns, PATCH_SIZE)).unflatten(3, (rows, PATCH_SIZE))
    split = split.unflatten(1, (depth, TUBELET_SIZE))  # (B, depth, 2, 3, rows, 8, columns, 8)
    return split.permute(0, 1, 4, 6, 2, 3, 5, 7).reshape(len(clips), depth * rows * columns, -1)


def open_pixels(request: EncoderRequest) -> PixelEncoder:
    """Raw pixels of a size, which the name states; by default of clips of 8 frames.

    Raises:
        ValueError: The name is no number, a size is no multiple of its tubelets or patches, or weights are asked for.
    """
    name = request.name
    if not request.is_pretrained:
        raise ValueError(f"'{request.spec}' asks for random weights, but pixels have no weights: give pixels:{name}")
    if not name.isdecimal() or int(name) == 0:
        raise ValueError(f"'pixels:{name}' names no size; give a number of pixels, such as pixels:64")
    crop_size, frames = request.crop_size or int(name), request.frames_per_clip or _DEFAULT_FRAMES
    check_multiple("crop_size", crop_size, PATCH_SIZE, f"pixels:{name}")
    check_multiple("frames_per_clip", frames, TUBELET_SIZE, f"pixels:{name}")
    grid = frames // TUBELET_SIZE, crop_size // PATCH_SIZE, crop_size // PATCH_SIZE
    width = TUBELET_SIZE * _NUM_CHANNELS * PATCH_SIZE**2 + _POSITION_WIDTH
    facts = EncoderFacts(
        name=f"pixels:{crop_size}",
        hidden_size=width,
        num_attention_heads=count_heads(width, None),
        crop_size=crop_size,
        frames_per_clip=frames,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        description="raw pixels of tubelets, beside their positions",
        is_trained=False,
    )
    return PixelEncoder(_Positions(grid), facts)
