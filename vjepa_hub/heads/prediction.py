"""Predictions of trained heads on a labelled set: the mean over views, and over segments not attended together.

Shapes: B items, V views, S segments, N tokens of a clip, D features, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..core.distributed import ALONE, Processes
from ..core.progress import Progress, no_progress
from .tokens import TokenBatch, TokenSource, in_order


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions of heads on a set.

    Attributes:
        probabilities: Of each head, class probabilities `(num_items, num_classes)` float64, the mean over views (and
            segments, where they are not attended together); zeros for items that cannot be read.
        is_readable: `(num_items,)` bool.
    """

    probabilities: list[np.ndarray]
    is_readable: np.ndarray


@torch.no_grad()
def predict(
    source: TokenSource,
    heads: Sequence[nn.Module],
    *,
    attends_across_segments: bool = True,
    batch_size: int = 8,
    progress: Progress = no_progress,
    processes: Processes = ALONE,
) -> Predictions:
    """Class probabilities of a validation set, shared out among the processes; all of them get the whole.

    Args:
        source: Tokens of the set.
        heads: Each is in float32 and gives logits.
        attends_across_segments: Whether a head sees the tokens of all segments of an item together.
        batch_size: Items at once, in each process.
        progress: Called with the items that are done, and all items of this process, after each batch.
        processes: This process among those that share the work.
    """
    share = range(len(source))[processes.rank :: processes.count]
    found: list[tuple[list[int], list[bool], list[np.ndarray]]] = []
    done = 0
    for batch in source.batches(in_order(share, batch_size)):
        assert batch is not None
        of_heads = [_probabilities(head, batch, attends_across_segments).cpu().double().numpy() for head in heads]
        found.append((batch.indices.tolist(), batch.is_readable.tolist(), of_heads))
        done += len(batch.indices)
        progress("evaluating", done, len(share))
    probabilities = [np.zeros((len(source), source.num_classes)) for _ in heads]
    is_readable = np.zeros(len(source), dtype=bool)
    for indices, readable, of_heads in processes.gather(found):
        is_readable[indices] = readable
        for of_head, values in zip(probabilities, of_heads, strict=True):
            of_head[indices] = values
    for of_head in probabilities:
        of_head[~is_readable] = 0.0
    return Predictions(probabilities=probabilities, is_readable=is_readable)


def _probabilities(head: nn.Module, batch: TokenBatch, attends_across_segments: bool) -> torch.Tensor:
    """(B, C) mean of the softmax over views, and over segments that are not attended together."""
    if attends_across_segments:
        parts = [view.flatten(1, 2) for view in batch.tokens.unbind(1)]
    else:
        parts = [segment for view in batch.tokens.unbind(1) for segment in view.unbind(1)]
    return torch.stack([head(part.float()).softmax(-1) for part in parts]).mean(0)
