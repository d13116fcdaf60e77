"""Tokens of labelled videos, batch by batch: computed by a frozen encoder, or read from a cache that it has filled.

Training and validation of probes see nothing else. Tokens are rounded to float16 in both cases, so that results are
the same with a cache and without.

Shapes: B videos, V views, S segments, N tokens of a clip, D features.
"""

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch.utils.data import DataLoader, default_collate

from ..core.distributed import ALONE, Processes
from ..core.progress import Progress, no_progress
from ..core.settings import Settings
from ..heads.tokens import TOKEN_DTYPE, Batches, TokenBatch, TokenSource, in_order
from .clips import EvaluationClips, LabelledClip, TrainingClips
from .encoders.opening import FrozenEncoder
from .feature_store import FeatureStore
from .labelled import LabelledSet

CACHE_FORMAT = 3


class LabelledTokens(TokenSource):
    """Tokens of a labelled set."""

    labelled: LabelledSet

    def __len__(self) -> int:
        """Number of videos or images."""
        return len(self.labelled)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.labelled.num_classes


class EncodingSettings(Settings):
    """Encoding of clips by a frozen encoder.

    Args:
        dtype: Number format that the encoder computes in (autocast).
        clips_per_pass: Clips that the encoder takes at once.
        num_workers: Processes that decode.

    Raises:
        SettingsError: An unknown number format, or a count out of its range.
    """

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    clips_per_pass: PositiveInt = 16
    num_workers: NonNegativeInt = 0


def autocast(settings: EncodingSettings, device: torch.device) -> AbstractContextManager:
    """The number format that an encoder computes in."""
    if settings.dtype == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, settings.dtype))


def rounded(features: torch.Tensor, encoder_name: str) -> torch.Tensor:
    """Features in the precision of all heads' input.

    Raises:
        ValueError: They are not finite there.
    """
    features = features.to(TOKEN_DTYPE)
    if not features.isfinite().all():
        raise ValueError(
            f"the encoder {encoder_name} gives tokens that are not finite in float16; let it compute in float32 or "
            "bfloat16 (--dtype), and check its weights"
        )
    return features


class EncodedClips(LabelledTokens):
    """Tokens that the encoder computes each time that they are asked for.

    Args:
        encoder: The frozen encoder.
        clips: The data set, for training or for validation.
        settings: How they are encoded.
    """

    def __init__(self, encoder: FrozenEncoder, clips: EvaluationClips | TrainingClips, settings: EncodingSettings):
        self.encoder, self.clips, self.settings = encoder, clips, settings
        self.labelled = clips.labelled

    def batches(self, requests: Batches) -> Iterator[TokenBatch | None]:
        """Tokens of these batches, in their order."""
        device = next(self.encoder.parameters()).device
        if not requests:
            return
        loader = DataLoader(
            self.clips,
            batch_sampler=requests,  # type: ignore[arg-type]  # any iterable of batches will do
            collate_fn=_collate,
            num_workers=self.settings.num_workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else it draws from the global one
        )
        for batch in loader:
            if batch is None:
                yield None
                continue
            pixels, tokens = batch["pixel_values_videos"], []
            pixels = pixels if pixels.ndim == 7 else pixels[:, None]  # (B, V, S, T, C, H, W)
            with torch.no_grad(), autocast(self.settings, device):
                for clips in pixels.flatten(0, 2).split(self.settings.clips_per_pass):
                    tokens.append(self.encoder(clips.to(device, non_blocking=True)))
            yield TokenBatch(
                tokens=rounded(torch.cat(tokens), self.encoder.name).unflatten(0, pixels.shape[:3]),
                labels=batch["label"].to(device),
                indices=batch["index"],
                is_readable=batch["is_readable"].to(device),
            )


def _collate(items: list[LabelledClip]) -> dict[str, torch.Tensor] | None:
    return default_collate(items) if items else None


class CachedClips(LabelledTokens):
    """Tokens that are computed once, and read from files from then on.

    Their key is the encoder's weights and number format, the videos by name, size and time of change, the clips and
    the pixels, see `FeatureStore`.

    Args:
        folder: Folder of all caches.
        source: Computes the tokens. Its clips must not be drawn: those of a validation.

    Raises:
        ValueError: Its clips are drawn anew for each step.
    """

    def __init__(self, folder: str | Path, source: EncodedClips):
        if not isinstance(source.clips, EvaluationClips):
            raise ValueError(
                "training clips are drawn anew in each epoch, so there is nothing to cache; train without augmentation"
            )
        self.source, self.labelled = source, source.labelled
        rows_per_item = np.ones(len(self.labelled), dtype=np.int64)
        self.store = FeatureStore(folder, cache_key(source), rows_per_item, self.labelled.description)

    def fill(self, *, processes: Processes = ALONE, batch_size: int = 8, progress: Progress = no_progress) -> None:
        """Compute what is missing of this process's share, and wait for the others.

        Args:
            processes: This process among those that share the work; they must see the same folder.
            batch_size: Videos at once.
            progress: Called with the videos that are there, and all videos of the share, after each batch.

        Raises:
            OSError: There is no room for it.
            ValueError: The folder holds something else.
        """
        share = range(len(self))[processes.rank :: processes.count]
        missing = self.store.to_compute(share)
        done = len(share) - len(missing)
        for batch in self.source.batches(in_order(missing, batch_size)):
            assert batch is not None
            self.store.write(batch.indices.numpy(), batch.tokens.cpu().numpy(), batch.is_readable.cpu().numpy())
            done += len(batch.indices)
            progress("encoding", done, len(share))
        processes.wait()

    def batches(self, requests: Batches) -> Iterator[TokenBatch | None]:
        """Tokens of these batches, in their order."""
        device = next(self.source.encoder.parameters()).device
        for batch in requests:
            indices = np.array([request.index for request in batch], dtype=np.int64)
            if not len(indices):
                yield None
                continue
            is_readable = self.store.is_readable(indices)
            yield TokenBatch(
                tokens=torch.from_numpy(self.store.read(indices)).to(device),
                labels=torch.from_numpy(self.labelled.labels[indices]).to(device),
                indices=torch.from_numpy(indices),
                is_readable=torch.from_numpy(is_readable).to(device),
            )


class SubsetTokens(LabelledTokens):
    """Tokens of some videos of a set whose tokens are there.

    Args:
        source: Tokens of the whole set.
        positions: Places in the whole set, `(num_videos,)`.
        labelled: The videos at these places.
    """

    def __init__(self, source: TokenSource, positions: np.ndarray, labelled: LabelledSet):
        self.source, self.positions, self.labelled = source, positions, labelled

    def batches(self, requests: Batches) -> Iterator[TokenBatch | None]:
        """Tokens of these batches, in their order."""
        moved = [
            [request._replace(index=int(self.positions[request.index])) for request in batch] for batch in requests
        ]
        for own, batch in zip(requests, self.source.batches(moved), strict=True):
            indices = torch.tensor([request.index for request in own])
            yield None if batch is None else replace(batch, indices=indices)


def cache_key(source: EncodedClips) -> dict[str, Any]:
    """Plain values of all that the tokens of a source depend on."""
    clips = source.clips
    names = hashlib.sha256()
    for index, name in zip(clips.labelled.indices, clips.labelled.names, strict=True):
        names.update(f"{name}\0{clips.labelled.source.stamp(int(index))}\0".encode(errors="surrogateescape"))
    return {
        "format": CACHE_FORMAT,
        "encoder": source.encoder.fingerprint(),
        "kind": source.encoder.details,
        "weights_dtype": str(source.encoder.dtype),
        "dtype": source.settings.dtype,
        "videos": names.hexdigest(),
        "num_videos": len(clips.labelled),
        "media": clips.protocol.media,
        "num_views": clips.protocol.num_views,
        **clips.clip_spec.to_tree(),
        **clips.clip_format.to_tree(),
    }
