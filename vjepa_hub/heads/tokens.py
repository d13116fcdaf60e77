"""Tokens of a frozen encoder as heads take them, batch by batch, wherever they come from.

Shapes: B items (videos, images, boxes), V views, S segments, N tokens of a clip, D features.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ..data.clip_order import ClipRequest

Batches = Sequence[Sequence[ClipRequest]]
TOKEN_DTYPE = torch.float16
"""Precision of tokens wherever they come from: results are the same with a cache and without."""


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """Tokens of some items.

    Attributes:
        tokens: `(batch_size, num_views, num_segments, num_tokens, hidden_size)`, on the device of the heads.
        labels: There too: classes, `(batch_size,)` int64, or for each class whether it applies,
            `(batch_size, num_classes)` bool.
        indices: Places in the set, `(batch_size,)`, on the CPU.
        is_readable: Items that could be decoded, `(batch_size,)` bool, on the device of the heads; the tokens of
            others mean nothing.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    is_readable: torch.Tensor


class TokenSource(ABC):
    """Labelled items whose tokens can be had."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of items."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes."""

    @abstractmethod
    def batches(self, requests: Batches) -> Iterator[TokenBatch | None]:
        """Tokens of these batches, in their order.

        Args:
            requests: Position in the run and place in the set of each item. An empty batch gives None.
        """


class TokensInMemory(TokenSource):
    """Tokens of one view and segment of each item, held in memory.

    Args:
        tokens: `(num_items, num_tokens, hidden_size)`.
        labels: Classes, `(num_items,)` int64.
        is_readable: `(num_items,)` bool.
        num_classes: Number of classes.
        device: Where the heads are.
    """

    def __init__(
        self,
        tokens: torch.Tensor,
        labels: torch.Tensor,
        is_readable: torch.Tensor,
        *,
        num_classes: int,
        device: torch.device,
    ):
        self.tokens, self.labels, self.is_readable = tokens, labels, is_readable
        self.device, self._num_classes = device, num_classes

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self._num_classes

    def batches(self, requests: Batches) -> Iterator[TokenBatch | None]:
        """Tokens of these batches, in their order."""
        for batch in requests:
            indices = torch.tensor([request.index for request in batch], dtype=torch.int64)
            if not len(indices):
                yield None
                continue
            yield TokenBatch(
                tokens=self.tokens[indices][:, None, None].to(self.device),  # (B, 1, 1, N, D)
                labels=self.labels[indices].to(self.device),
                indices=indices,
                is_readable=self.is_readable[indices].to(self.device),
            )


def in_order(indices: Iterable[int], batch_size: int) -> list[list[ClipRequest]]:
    """Batches of some items in their order, each at the position of its own place in the set."""
    return split([ClipRequest(index, index) for index in indices], batch_size)


def split(requests: Sequence[ClipRequest], size: int) -> list[list[ClipRequest]]:
    """Parts of at most so many requests."""
    return [list(requests[start : start + size]) for start in range(0, len(requests), size)]
