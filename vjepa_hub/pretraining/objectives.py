"""Alternatives to the paper's objective, for its ablations (Bardes et al. 2024, section 4)."""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

LOSSES: dict[str, Callable[..., torch.Tensor]] = {"l1": F.l1_loss, "l2": F.mse_loss, "smooth_l1": F.smooth_l1_loss}


def prediction_loss(
    predictions: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], objective: str
) -> torch.Tensor:
    """The error between predictions and targets: mean over tokens and features, then over the mask kinds.

    Args:
        predictions: The predictor's output for each mask kind, `(batch_size, num_targets, hidden_size)`.
        targets: What it should have been, of the same shapes.
        objective: l1, l2 or smooth_l1.

    Raises:
        KeyError: There is no such objective.
    """
    if objective not in LOSSES:
        raise KeyError(f"unknown objective '{objective}'; available: {', '.join(LOSSES)}")
    errors = [LOSSES[objective](p.float(), t.float()) for p, t in zip(predictions, targets, strict=True)]
    return torch.stack(errors).mean()
