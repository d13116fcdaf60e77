"""Dense features as colours: their first three principal components as red, green and blue, beside the frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from .image_grid import ImageRow, draw_image_grid, resize_images
from .style import AMBER, GREY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours are full at these quantiles, so that a few outlying tokens do not make the rest pale
LOW_QUANTILE, HIGH_QUANTILE = 0.01, 0.99
# Pixels of a frame's longer side, before it is rounded to a whole number for each cell of the map
FRAME_SIDE = 224


@dataclass(frozen=True)
class FeatureColours:
    """Three principal components of features, and the ranges that become red, green and blue.

    Attributes:
        mean: (hidden_size,) float64.
        components: (3, hidden_size) float64, orthonormal; the entry of largest size of each is positive.
        explained_variance: Share of the variance that the three have together.
        low: (3,) float64, projections that become 0.
        high: (3,) float64, projections that become 1; equal to `low` where a component varies by rounding only.
    """

    mean: torch.Tensor
    components: torch.Tensor
    explained_variance: float
    low: torch.Tensor
    high: torch.Tensor

    @classmethod
    def fit(cls, features: torch.Tensor, position: torch.Tensor | None = None) -> FeatureColours:
        """Fit to all tokens, by the eigenvectors of their covariance in float64.

        Args:
            features: (num_clips, ..., hidden_size).
            position: (..., hidden_size), what is subtracted from each clip; None subtracts nothing.
        """
        rounding = 16 * torch.finfo(features.dtype).eps * float(features.abs().max())
        tokens = (features.double() - (0.0 if position is None else position.double())).flatten(0, -2)  # (N, D)
        mean = tokens.mean(0)  # (D,)
        centred = tokens - mean
        variances, vectors = torch.linalg.eigh(centred.T @ centred)
        components = vectors.flip(1)[:, :3].T  # (3, D), largest variance first
        components = components * components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
        components = torch.nn.functional.pad(components, (0, 0, 0, 3 - len(components)))  # of fewer features, black
        projected = centred @ components.T  # (N, 3)
        bounds = torch.tensor([LOW_QUANTILE, HIGH_QUANTILE], dtype=torch.float64)
        low, high = torch.from_numpy(np.quantile(projected.numpy(), bounds.numpy(), axis=0))
        # A small thing on a blank ground is outside the quantiles: then the extremes count
        is_narrow = high - low <= rounding
        low, high = (torch.where(is_narrow, projected.amin(0), low), torch.where(is_narrow, projected.amax(0), high))
        high = torch.where(high - low <= rounding, low, high)
        share = float(variances[-3:].sum() / variances.sum().clamp_min(torch.finfo(torch.float64).tiny))
        return cls(mean, components, share, low, high)

    def __call__(self, features: torch.Tensor) -> np.ndarray:
        """Colours of features (..., hidden_size): float32 (..., 3) in [0, 1], 0.5 for a component that is constant."""
        projected = (features.double() - self.mean) @ self.components.T
        span = self.high - self.low
        scaled = (projected - self.low) / torch.where(span > 0, span, 1.0)
        return torch.where(span > 0, scaled.clamp(0, 1), 0.5).float().numpy()


def draw_feature_maps(
    frames: np.ndarray,
    colours: np.ndarray,
    seconds: Sequence[float],
    *,
    title: str,
    model: str,
    is_trained: bool,
    tokens: str,
    explained_variance: float,
    is_smooth: bool,
) -> Figure:
    """Draw frames, their feature maps, and both on top of each other; a column for each moment.

    Args:
        frames: uint8 (num_moments, height, width, 3), as the model sees them.
        colours: float (num_moments, rows, columns, 3) in [0, 1].
        seconds: Times of the moments.
        title: Name of the video.
        model: Name of the model and its weights, in a warning colour where they are untrained.
        is_trained: Whether the weights are trained.
        tokens: Numbers of tokens, and how they were computed.
        explained_variance: Share of the variance that the colours show.
        is_smooth: Whether maps are interpolated, for cells that overlap; else each token is a square.
    """
    rows, columns = colours.shape[1:3]
    side = max(1, round(FRAME_SIDE / max(rows, columns)))
    size, resampling = (columns * side, rows * side), Image.Resampling
    shown = resize_images(frames, size, resampling.BICUBIC)
    maps = resize_images(
        (colours * 255).round().astype(np.uint8), size, resampling.BILINEAR if is_smooth else resampling.NEAREST
    )
    overlay = ((shown.astype(np.uint16) + maps + 1) // 2).astype(np.uint8)
    note = f"first three principal components as red, green and blue: {100 * explained_variance:.0f} % of the variance"
    grid = [
        ImageRow("frames", "as the model sees them", shown),
        ImageRow("features", note, maps),
        ImageRow("overlay", "", overlay),
    ]
    return draw_image_grid(
        grid,
        [f"{second:.2f} s" for second in seconds],
        title=title,
        lines=[(model, GREY if is_trained else AMBER), (tokens, GREY)],
    )
