"""Tokens without an encoder: each class has a direction in one token, the others are noise."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from vjepa_hub.data.clip_order import ClipRequest
from vjepa_hub.heads.tokens import TokenBatch, TokenSource


class FakeTokens(TokenSource):
    """`(num_views, num_segments)` clips of four tokens of width 24 for each video; counts how often it is asked."""

    num_classes = 3

    def __init__(self, num_videos: int = 24, *, num_views: int = 1, num_segments: int = 2, unreadable: tuple = ()):
        generator = torch.Generator().manual_seed(0)
        self.labels = np.arange(num_videos) % 3
        self.tokens = torch.randn(num_videos, num_views, num_segments, 4, 24, generator=generator)
        directions = 4 * torch.randn(3, 24, generator=generator)
        self.tokens[:, :, 0, 1] += directions[self.labels][:, None]
        self.unreadable = unreadable
        self.num_asked = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def batches(self, requests: Sequence[Sequence[ClipRequest]]) -> Iterator[TokenBatch | None]:
        for batch in requests:
            indices = torch.tensor([request.index for request in batch], dtype=torch.int64)
            self.num_asked += len(indices)
            if not len(indices):
                yield None
                continue
            readable = torch.tensor([index not in self.unreadable for index in indices.tolist()])
            tokens = self.tokens[indices].half()
            tokens[~readable] = 1e4  # must make no difference
            labels = self.labels_of(indices)
            yield TokenBatch(tokens=tokens, labels=labels, indices=indices, is_readable=readable)

    def labels_of(self, indices: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.labels)[indices]


class FakeBoxes(FakeTokens):
    """The same with a label for each class, of which several may apply."""

    def labels_of(self, indices: torch.Tensor) -> torch.Tensor:
        classes = torch.arange(3)
        return (super().labels_of(indices)[:, None] == classes) | (indices[:, None] % 5 == classes)
