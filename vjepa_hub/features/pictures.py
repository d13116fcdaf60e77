"""The picture of a video's features: some moments as frames and as feature maps, with the colours of the whole video.

Where a model has few tokens, the maps are made of finer cells, see `shifted_windows`.

Shapes: C clips of T frames and d x h x w tokens (depth, height, width) with D features; S moments, one token layer
each.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ..data.items import ITEM_TIMEOUT
from ..viz.feature_maps import FeatureColours, draw_feature_maps
from ..viz.image_grid import evenly_spaced
from ..viz.style import write_png
from .extraction import VideoSource, clip_pixels, encode_clips, load_features, open_frames
from .shifted_windows import choose_num_shifts, encode_shifted

if TYPE_CHECKING:
    from ..hub.loading import OpenedModel

NUM_MOMENTS = 6
# Colours are fitted to clips with as many tokens together, evenly spread over the video: more hardly change them
MAX_FITTED_TOKENS = 32_768


def draw_video_picture(
    video: VideoSource,
    features_path: str | Path,
    opened: OpenedModel,
    *,
    backend: str | None = None,
    item_timeout: float | None = ITEM_TIMEOUT,
) -> list[Path]:
    """Draw the picture of one video beside its features, NAME.png, unless it is there and was drawn from these.

    Args:
        video: The video.
        features_path: Its features, with dense ones; the picture is named after this file.
        opened: The model that computed them.
        backend: Video decoder, as for `open_video`.
        item_timeout: As for `open_frames`.

    Returns:
        The files that were written.

    Raises:
        ValueError: pooled features.
        VideoDecodingError: the video cannot be read.
    """
    features, path = load_features(features_path), Path(features_path).with_suffix(".png")
    if features.dense is None:
        raise ValueError("these features are pooled only, and pictures show dense ones: extract with dense=True")
    if _is_drawn(path, features.metadata):
        return []
    tubelet, (depth, *grid) = opened.model.config.tubelet_size, features.dense.shape[1:4]
    layers = distinct_layers(features.frame_indices, tubelet)
    layers = [layers[place] for place in evenly_spaced(len(layers), NUM_MOMENTS)]
    clips = sorted({clip for clip, _ in layers})
    with open_frames(video, backend, item_timeout) as reader:
        pixels = {
            clip: clip_pixels([reader.read_frames(features.frame_indices[clip].numpy())], opened)[0] for clip in clips
        }
    frames = np.concatenate([_as_frames(pixels[clip][[layer * tubelet]], opened) for clip, layer in layers])
    position = None if opened.is_trained else position_features(frames, features.frame_indices.shape[1], opened)
    fitted = features.dense[
        evenly_spaced(features.num_clips, max(1, MAX_FITTED_TOKENS // (depth * grid[0] * grid[1])))
    ]
    colours = FeatureColours.fit(fitted, position)
    num_shifts = choose_num_shifts((grid[0], grid[1]), opened.model.config.patch_size)
    maps = {
        clip: _encode_finer(features.dense[clip], values, position, opened, num_shifts)
        for clip, values in pixels.items()
    }
    tokens = f"{depth} x {grid[0]} x {grid[1]} tokens a clip"
    tokens += f", seen at {num_shifts} x {num_shifts} shifts" if num_shifts > 1 else ""
    figure = draw_feature_maps(
        frames,
        colours(torch.stack([maps[clip][layer] for clip, layer in layers])),
        [float(features.timestamps[clip, layer * tubelet]) for clip, layer in layers],
        title=features.metadata["file"],
        model=opened.weights if opened.name in opened.weights else f"{opened.name}, {opened.weights}",
        is_trained=opened.is_trained,
        tokens=tokens if position is None else f"{tokens}; position part subtracted",
        explained_variance=colours.explained_variance,
        is_smooth=num_shifts > 1,
    )
    return [write_png(figure, path, features.metadata)]


def distinct_layers(frame_indices: torch.Tensor, tubelet_size: int) -> list[tuple[int, int]]:
    """(clip, depth) of the token layers in the order of time, each moment once.

    Where clips overlap, or a short video repeats its last frame, layers that do not begin later than the last one are
    left out.

    Args:
        frame_indices: (num_clips, num_frames), as in `VideoFeatures`.
        tubelet_size: Frames in a token.
    """
    layers, latest = [], -1
    for clip, firsts in enumerate(frame_indices[:, ::tubelet_size].tolist()):
        for depth, first in enumerate(firsts):
            if first > latest:
                layers.append((clip, depth))
                latest = first
    return layers


def position_features(frames: np.ndarray, num_frames: int, opened: OpenedModel) -> torch.Tensor:
    """The part of an untrained model's features that comes from the place of a token, not from what is seen there.

    The sin-cos table is added to every token, and nothing has learned to look past it: maps would show gradients over
    still ground. So the features of an even clip are subtracted, which has positions and no content. It has the
    video's mean colour: the norms scale the position part by how strong the content is, and those of a grey clip would
    add gradients to a dark video.

    Args:
        frames: uint8 (num_moments, height, width, 3) of the video.
        num_frames: Frames of a clip.
        opened: The model and its processor.

    Returns:
        (depth, height, width, hidden_size).
    """
    colour = frames.mean(axis=(0, 1, 2)).round().astype(np.uint8)
    even_clip = np.broadcast_to(colour, (num_frames, *frames.shape[1:])).copy()
    return encode_clips([even_clip], opened)[0]


def _encode_finer(
    dense: torch.Tensor, pixels: torch.Tensor, position: torch.Tensor | None, opened: OpenedModel, num_shifts: int
) -> torch.Tensor:
    """Features of a clip (d, n h, n w, D) at n shifts in each direction, without the position part."""
    tokens = dense if num_shifts == 1 else encode_shifted(pixels, opened, num_shifts)
    if position is None:
        return tokens
    return tokens - position.repeat_interleave(num_shifts, 1).repeat_interleave(num_shifts, 2)


def _as_frames(pixels: torch.Tensor, opened: OpenedModel) -> np.ndarray:
    """uint8 (T, H, W, 3) of pixels (T, C, H, W), with the normalisation undone."""
    mean, std = (
        torch.tensor(value)[:, None, None] for value in (opened.processor.image_mean, opened.processor.image_std)
    )
    return ((pixels.float() * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def _is_drawn(path: Path, metadata: dict[str, str]) -> bool:
    """Return whether a PNG is there and carries this metadata."""
    try:
        with Image.open(path) as image:
            return {name: image.info.get(name) for name in metadata} == metadata
    except (FileNotFoundError, UnidentifiedImageError):
        return False
