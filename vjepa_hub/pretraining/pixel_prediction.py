"""The paper's pixel-prediction baseline (Bardes et al. 2024, section 4, table 1): pixels in place of features.

Everything else is as in feature prediction: context encoder, predictor, masks. The average of the encoder is kept too,
so that what is published, and probed, is made in the same way for both.
"""

from typing import cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import can_return_tuple

from ..model.configuration_vjepa import VJEPAConfig
from ..model.modeling_vjepa import (
    Mask,
    VJEPAForPreTraining,
    VJEPAForPreTrainingOutput,
    VJEPAModel,
    as_mask_list,
    select_tokens,
)

# Of the variance of a tubelet's pixels. The paper does not state how targets are normalised; this is MAE's way (He et
# al. 2022, arXiv 2111.06377), with its epsilon.
VARIANCE_EPS = 1e-6


class VJEPAForPixelPrediction(VJEPAForPreTraining):
    """Predicts the pixels of hidden tubelets, each normalised to zero mean and unit variance.

    A linear head on the predictor gives `in_chans * tubelet_size * patch_size ** 2` values for each token. Takes what
    `VJEPAForPreTraining` takes, and returns what it returns.
    """

    _auto_class = None  # it does not travel as remote code: what is published is a VJEPAModel

    def __init__(self, config: VJEPAConfig):
        super().__init__(config)
        self.pixel_head = nn.Linear(config.hidden_size, config.in_chans * config.tubelet_size * config.patch_size**2)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values_videos: torch.Tensor, context_mask: Mask, target_mask: Mask, **kwargs
    ) -> VJEPAForPreTrainingOutput:
        """Mean absolute error of the predicted pixels of hidden tokens, averaged over mask kinds.

        Args:
            pixel_values_videos: `(batch_size, num_frames, num_channels, height, width)`.
            context_mask: Indices of the visible tokens, `(batch_size or 1, num_context)`, or a list, one a mask kind.
            target_mask: Indices of the hidden tokens, `(batch_size or 1, num_targets)`, or a list.
            kwargs: What `VJEPAModel.forward` takes.

        Returns:
            `predictions` and `targets` are `(batch_size, num_targets, pixels of a tubelet)` for each mask kind.

        Raises:
            ValueError: Clip or masks do not fit; the message gives the value, the rule and the remedy.
        """
        contexts = as_mask_list("context_mask", context_mask)
        targets_of = as_mask_list("target_mask", target_mask)
        # The features model's way through encoder and predictor, with the modules of this one
        output = VJEPAModel.forward(cast(VJEPAModel, self), pixel_values_videos, contexts, targets_of, **kwargs)
        predictions = [self.pixel_head(features) for features in output.predictor_output.last_hidden_state]
        pixels = tubelet_pixels(pixel_values_videos, self.config)  # (B, N, C * t * p * p)
        targets = [select_tokens(pixels, mask.expand(len(pixels), -1)) for mask in targets_of]
        losses = [F.l1_loss(p.float(), t) for p, t in zip(predictions, targets, strict=True)]
        return VJEPAForPreTrainingOutput(
            loss=torch.stack(losses).mean(),
            predictions=predictions,
            targets=targets,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


def tubelet_pixels(pixel_values_videos: torch.Tensor, config: VJEPAConfig) -> torch.Tensor:
    """The normalised pixels of each tubelet.

    Args:
        pixel_values_videos: `(batch_size, num_frames, num_channels, height, width)`.
        config: Says how clips are cut into tubelets.

    Returns:
        float32 `(batch_size, num_tokens, channels * tubelet_size * patch_size ** 2)` in raster order; each row has
        mean 0 and variance 1, or is 0 where all its pixels are equal.
    """
    side = config.patch_size
    patches = pixel_values_videos.float().unflatten(4, (-1, side)).unflatten(3, (-1, side))
    patches = patches.unflatten(1, (-1, config.tubelet_size))  # (B, T/t, t, C, H/p, p, W/p, p)
    pixels = patches.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(4).flatten(1, 3)  # (B, N, C * t * p * p)
    return F.layer_norm(pixels, pixels.shape[-1:], eps=VARIANCE_EPS)
