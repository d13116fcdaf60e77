"""Models of V-JEPA 2 and 2.1 with the calls of the release's torch.hub: a pair of modules, and a preprocessor.

The release encodes `(batch_size, num_channels, num_frames, height, width)` and returns tensors; so do these, so that a
user changes the name of the repository alone. Loading is this package's own, strict and from its cache.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import nn

from ..model.modeling_vjepa import VJEPAEncoder, VJEPAPredictor, feature_level_layers
from ..model.video_processing_vjepa import VJEPAVideoProcessor
from .loading import load, load_untrained


class ReleaseEncoder(nn.Module):
    """Encoder called as the release's.

    Args:
        encoder: Of a features model: the EMA target encoder.
    """

    def __init__(self, encoder: VJEPAEncoder):
        super().__init__()
        self.encoder = encoder
        self.embed_dim = encoder.config.hidden_size

    def forward(
        self, x: torch.Tensor, masks: torch.Tensor | Sequence[torch.Tensor] | None = None, training: bool = False
    ) -> torch.Tensor:
        """Encode clips, or the tokens that masks keep.

        Args:
            x: `(batch_size, num_channels, num_frames, height, width)`, or images without `num_frames`.
            masks: Indices of the tokens to encode, `(batch_size, num_kept)`; of a list the outputs follow each other
                along the batch.
            training: All feature levels side by side, as the predictors of 2.1 with four levels take them.

        Returns:
            `(batch_size, num_tokens, hidden_size)`, with `training` the width of all levels.
        """
        clip = x.unsqueeze(1) if x.ndim == 4 else x.transpose(1, 2)
        layers = feature_level_layers(self.encoder.config) if training else None
        kinds = [masks] if masks is None or isinstance(masks, torch.Tensor) else masks
        outputs = [self.encoder(clip, mask, layers, return_dict=True) for mask in kinds]
        return torch.cat(
            [torch.cat(found.feature_levels, dim=-1) if training else found.last_hidden_state for found in outputs]
        )


class ReleasePredictor(nn.Module):
    """Predictor called as the release's, for clips of the configured size.

    The release's torch.hub builds every predictor with positions that are not scaled, those that were trained scaled
    (2.1's ViT-g and ViT-G) among them; so does this one. `load` gives the trained form.

    Args:
        predictor: Of a features model; its positions are unscaled here.
    """

    def __init__(self, predictor: VJEPAPredictor):
        super().__init__()
        self.predictor = predictor
        if predictor.rotary_embeddings is not None:
            predictor.rotary_embeddings.reference_grid = None

    def forward(
        self,
        x: torch.Tensor,
        masks_x: torch.Tensor | Sequence[torch.Tensor],
        masks_y: torch.Tensor | Sequence[torch.Tensor],
        mod: str = "video",
        mask_index: int = 1,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Predict hidden tokens.

        Args:
            x: The encoder's tokens under the context mask; with four levels in, its output with `training=True`.
            masks_x: Context mask, `(batch_size, num_context)`, or a list of one.
            masks_y: Target mask, `(batch_size, num_targets)`, or a list of one.
            mod: "video" or "image" (2.1).
            mask_index: Mask token. 1 is the release's default; released weights were trained with token 0.

        Returns:
            `(batch_size, num_targets, width)`; of 2.1 a pair, with `(batch_size, num_context, width)`.

        Raises:
            ValueError: Several masks, which the release's predictor cannot take either.
        """
        context, target = (_only_mask(name, mask) for name, mask in (("masks_x", masks_x), ("masks_y", masks_y)))
        config = self.predictor.config
        output = self.predictor(
            x,
            context,
            target,
            config.token_grid,
            mask_index % config.pred_num_mask_tokens,
            mod == "image",
            return_dict=True,
        )
        if not config.pred_predicts_context:
            return output.last_hidden_state
        return output.last_hidden_state, output.context_predictions


def _only_mask(name: str, mask: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    if isinstance(mask, torch.Tensor):
        return mask
    if len(mask) != 1:
        raise ValueError(f"{name} is a list of {len(mask)} masks, but must be one; call the predictor once for each")
    return mask[0]


class ReleasePreprocessor:
    """The evaluation preprocessing: frames of a clip to a list of one normalised view.

    Args:
        crop_size: Side of the view in pixels; the short side of a frame is resized to 256 / 224 of it.
    """

    def __init__(self, crop_size: int = 256):
        self.processor = VJEPAVideoProcessor(crop_size=crop_size)

    def __call__(self, frames: np.ndarray | torch.Tensor | Sequence) -> list[torch.Tensor]:
        """Prepare the frames of a clip, all of them.

        Args:
            frames: uint8, `(num_frames, height, width, 3)`, or a list of PIL pictures or arrays of that form.

        Returns:
            A list of one tensor, `(3, num_frames, crop_size, crop_size)`.
        """
        clip = np.stack([np.asarray(frame) for frame in frames])
        pixels = self.processor(
            clip, do_sample_frames=False, return_tensors="pt"
        ).pixel_values_videos  # (1, T, C, H, W)
        return [pixels[0].transpose(0, 1)]


def load_release_pair(
    name: str,
    pretrained: bool = True,
    *,
    num_frames: int = 64,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> tuple[ReleaseEncoder, ReleasePredictor]:
    """Load a released model as the pair that the release's torch.hub gives.

    Args:
        name: A model of V-JEPA 2 or 2.1 in the registry.
        pretrained: The released weights, as by `load`. False: random ones, and no download.
        num_frames: Of the clips whose masks the predictor takes.
        device: Where the modules go; the CPU by default.
        dtype: Number format of the weights; by default float32.

    Raises:
        DownloadError: The released file is not in the cache and could not be downloaded; an OSError.
    """
    model = (load if pretrained else load_untrained)(name, device=device, dtype=dtype)
    model.config.frames_per_clip = num_frames
    return ReleaseEncoder(model.encoder).eval(), ReleasePredictor(cast(VJEPAPredictor, model.predictor)).eval()
