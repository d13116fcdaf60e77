"""Surprise: how much more a wrong continuation of a clip differs from the predictor's expectation than the true one.

The predictor sees some tokens of a clip and predicts the features of the hidden ones. Its error to the features of
what is really there is compared with its error to those of what is not: the future of another clip, the same future
backwards, a world that stands still, one in which the object is gone, or one that was empty and has an object. This is
the measure of violated expectation of Garrido et al. 2025, "Intuitive physics understanding emerges from
self-supervised pretraining on natural videos", arXiv 2502.11831; there each of the two videos of a pair has a
prediction of its own, here both are held against one.

A wrong clip is built as a whole, the true visible part and the wrong hidden part, since the target encoder that gives
the features sees whole clips. A share is only to be read beside that of an untrained model: some continuations are
farther from any prediction than others. A predictor that always expects less to be there is surprised by each object
that appears and by none that is removed: so the two are read together, as `object_permanence`.

Shapes: N clips, B of them at once, T frames, M hidden tokens, D features of all levels side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ..data.masking import MaskPair, TokenGrid
from ..model.modeling_vjepa import VJEPAForPreTraining, feature_level_layers

OTHER_CLIP, REVERSED, FROZEN = "other clip", "reversed", "frozen"
OBJECT_REMOVED, OBJECT_APPEARED = "object removed", "object appeared"
INTERVAL_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True, eq=False, kw_only=True)
class Surprise:
    """The errors to the true and to one kind of wrong continuation.

    Attributes:
        true_errors: Mean absolute error of each clip's prediction to the features of what came, float64
            `(num_clips,)`.
        wrong_errors: The same to the features of the wrong continuation, float64 `(num_clips,)`.
    """

    true_errors: np.ndarray
    wrong_errors: np.ndarray

    @property
    def is_surprised(self) -> np.ndarray:
        """For each clip, whether the wrong continuation has the larger error; equal ones are no surprise."""
        return self.wrong_errors > self.true_errors

    @property
    def accuracy(self) -> float:
        """Share of clips for which it has; 0.5 by chance."""
        return float(self.is_surprised.mean())

    def interval(self, *, num_resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """Ends of the 95 % interval of `accuracy`, from a bootstrap over the clips.

        Args:
            num_resamples: How often the clips are drawn anew, with replacement.
            seed: Of the draws.
        """
        num_clips = len(self.true_errors)
        shares = np.random.default_rng(seed).binomial(num_clips, self.accuracy, size=num_resamples) / num_clips
        low, high = np.percentile(shares, INTERVAL_PERCENTILES)
        return float(low), float(high)


def object_permanence(removed: Surprise, appeared: Surprise) -> Surprise:
    """Objects that vanish and objects that come from nothing as one test, which no preference for either passes.

    Its accuracy is the mean of both: about 0.5 for a predictor that expects the same whether it saw an object or not.
    The interval takes the two for independent.

    Args:
        removed: By `OBJECT_REMOVED`.
        appeared: By `OBJECT_APPEARED`, of as many clips.

    Raises:
        ValueError: One has more clips than the other.
    """
    if len(removed.true_errors) != len(appeared.true_errors):
        raise ValueError(
            f"objects are removed from {len(removed.true_errors)} clips and appear in {len(appeared.true_errors)}, "
            "but neither may outweigh the other: measure the same clips"
        )
    return Surprise(
        true_errors=np.concatenate([removed.true_errors, appeared.true_errors]),
        wrong_errors=np.concatenate([removed.wrong_errors, appeared.wrong_errors]),
    )


# --- wrong continuations ---


def make_continuations(
    clips: torch.Tensor, masks: MaskPair, grid: TokenGrid, *, backgrounds: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Clips whose hidden part is wrong and whose visible part is true, for each kind.

    - "other clip": what the next clip of the batch shows there (the first one after the last).
    - "reversed": the hidden frames in reverse order.
    - "frozen": the last visible frame all the time; the first hidden one, where frames are hidden from the start on.
    - "object removed": the background alone, if it is given.

    Args:
        clips: `(num_clips, num_frames, num_channels, height, width)`, at least two.
        masks: What is hidden, the same tokens in all clips: `mask_future`, `mask_box` or `mask_tube`.
        grid: The tokens of a clip.
        backgrounds: The same clips without their objects, in the shape of `clips`.

    Raises:
        ValueError: A single clip, other sizes than those of the grid, or backgrounds of another shape.
    """
    _check_clips(clips, grid)
    if len(clips) < 2:
        raise ValueError("there is 1 clip, but the continuation of another one needs at least 2; give more clips")
    first, end = _hidden_frames(masks, grid)
    reversed_clips, frozen = clips.clone(), clips.clone()
    reversed_clips[:, first:end] = clips[:, first:end].flip(1)
    frozen[:, first:end] = clips[:, max(first - 1, 0), None]
    others = {OTHER_CLIP: clips.roll(-1, dims=0), REVERSED: reversed_clips, FROZEN: frozen}
    if backgrounds is not None:
        others[OBJECT_REMOVED] = backgrounds
    return {kind: join_at_mask(clips, other, masks, grid) for kind, other in others.items()}


def make_appearances(
    backgrounds: torch.Tensor, clips: torch.Tensor, masks: MaskPair, grid: TokenGrid
) -> dict[str, torch.Tensor]:
    """The reverse of "object removed": where the background alone was seen, the object is there.

    What came is here the background, so these are held against it: `measure_surprise(model, backgrounds, ...)`.

    Args:
        backgrounds: The clips without their objects, in the shape of `clips`.
        clips: `(num_clips, num_frames, num_channels, height, width)`.
        masks: What is hidden, the same tokens in all clips.
        grid: The tokens of a clip.

    Raises:
        ValueError: Sizes that do not fit each other.
    """
    return {OBJECT_APPEARED: join_at_mask(backgrounds, clips, masks, grid)}


def join_at_mask(clips: torch.Tensor, others: torch.Tensor, masks: MaskPair, grid: TokenGrid) -> torch.Tensor:
    """Clips with the pixels of others in the place of the hidden tokens.

    Args:
        clips: `(num_clips, num_frames, num_channels, height, width)`; give the pixels of all other tokens.
        others: The same shape; give those of the target tokens.
        masks: What is hidden, the same tokens in all clips.
        grid: The tokens of a clip.

    Raises:
        ValueError: Sizes that do not fit each other.
    """
    _check_clips(clips, grid)
    if others.shape != clips.shape:
        raise ValueError(
            f"the other clips have the shape {tuple(others.shape)} and the clips {tuple(clips.shape)}, but each clip "
            "needs one of its own size"
        )
    is_hidden = torch.zeros(grid.num_tokens, dtype=torch.bool)
    is_hidden[_shared_targets(masks)] = True
    pixels = is_hidden.view(grid.depth, 1, grid.rows, grid.columns)
    for dim, size in ((0, grid.tubelet_size), (2, grid.patch_size), (3, grid.patch_size)):
        pixels = pixels.repeat_interleave(size, dim)  # in the end (T, 1, H, W)
    return torch.where(pixels.to(clips.device), others, clips)


def _hidden_frames(masks: MaskPair, grid: TokenGrid) -> tuple[int, int]:
    """The first frame of which something is hidden, and the one that follows the last."""
    depths = _shared_targets(masks) // (grid.rows * grid.columns)
    return int(depths.min()) * grid.tubelet_size, (int(depths.max()) + 1) * grid.tubelet_size


def _shared_targets(masks: MaskPair) -> torch.Tensor:
    targets = masks.target_mask
    if (targets != targets[:1]).any():
        raise ValueError(
            "clips have masks of their own, but one part of all clips is to be hidden; give a single mask"
        )
    return targets[0]


def _check_clips(clips: torch.Tensor, grid: TokenGrid) -> None:
    wanted = (grid.num_frames, grid.height, grid.width)
    if clips.ndim != 5 or (clips.shape[1], *clips.shape[3:]) != wanted:
        raise ValueError(
            f"clips have the shape {tuple(clips.shape)}, but the grid is that of (num_clips, {grid.num_frames}, "
            f"num_channels, {grid.height}, {grid.width}); make the grid of the clips' own sizes"
        )


# --- errors ---


def measure_surprise(
    model: VJEPAForPreTraining,
    clips: torch.Tensor,
    continuations: Mapping[str, torch.Tensor],
    masks: MaskPair,
    *,
    clips_per_pass: int = 16,
) -> dict[str, Surprise]:
    """Errors of a model's predictions to the true and to wrong continuations.

    The prediction comes from the visible tokens of the true clips alone, through the context encoder; features are
    those of the target encoder, each level layer-normed, as in the training objective. The model is in eval mode
    meanwhile, and no gradient is computed.

    Args:
        model: Encoder, predictor and target encoder.
        clips: Normalised pixels `(num_clips, num_frames, num_channels, height, width)`, on any device.
        continuations: For each kind clips of the same shape, from `make_continuations` or made by hand.
        masks: What is hidden, the same tokens in all clips.
        clips_per_pass: Clips that go through the model at once.

    Returns:
        One `Surprise` for each kind, in their order.

    Raises:
        ValueError: No clip, a shape that is not that of the clips, masks that do not fit them, or a distilled model,
            whose predictions are those of its teacher's features.
    """
    config = model.config
    if config.prediction_width != config.num_feature_levels * config.hidden_size:
        raise ValueError(
            f"the predictor predicts pred_output_size = {config.pred_output_size} features, those of the teacher that "
            "the model was distilled from, which its own target encoder does not give; measure the teacher"
        )
    for kind, wrong in continuations.items():
        if wrong.shape != clips.shape:
            raise ValueError(f"'{kind}' has the shape {tuple(wrong.shape)}, but the clips have {tuple(clips.shape)}")
    if not len(clips) or clips_per_pass < 1:
        raise ValueError(f"there are {len(clips)} clips, {clips_per_pass} a pass, but at least one of each is needed")
    targets = _shared_targets(masks)
    true_errors: list[torch.Tensor] = []
    wrong_errors: dict[str, list[torch.Tensor]] = {kind: [] for kind in continuations}
    with torch.no_grad(), _in_eval_mode(model):
        for start in range(0, len(clips), clips_per_pass):
            part = slice(start, start + clips_per_pass)
            predicted = _predict(model, clips[part], masks)
            true_errors.append(_errors(predicted, _hidden_features(model, clips[part], targets)))
            for kind, wrong in continuations.items():
                wrong_errors[kind].append(_errors(predicted, _hidden_features(model, wrong[part], targets)))
    true = _joined(true_errors)
    return {kind: Surprise(true_errors=true, wrong_errors=_joined(parts)) for kind, parts in wrong_errors.items()}


def _errors(predicted: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    return (predicted - features).abs().mean(dim=(1, 2))  # (B,)


def _joined(parts: list[torch.Tensor]) -> np.ndarray:
    return torch.cat(parts).double().cpu().numpy()


def _predict(model: VJEPAForPreTraining, clips: torch.Tensor, masks: MaskPair) -> torch.Tensor:
    """Features that the predictor expects at the hidden tokens, `(B, M, D)` float32."""
    device = next(model.parameters()).device
    context, target = (mask[:1].to(device) for mask in (masks.context_mask, masks.target_mask))
    mask_index = model.config.mask_token_index(masks.mask_index)
    return model.predict(clips.to(device), context, target, mask_index=mask_index).float()


def _hidden_features(model: VJEPAForPreTraining, clips: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Features of the target encoder, which sees the whole clip, at the hidden tokens, each level layer-normed."""
    device, layers = next(model.parameters()).device, feature_level_layers(model.config)
    levels = model.target_encoder(clips.to(device), None, layers, return_dict=True).feature_levels
    features = torch.cat([F.layer_norm(level.float(), level.shape[-1:]) for level in levels], dim=-1)
    return features[:, targets.to(device)]  # (B, M, D)


@contextmanager
def _in_eval_mode(model: torch.nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
