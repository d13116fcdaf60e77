"""Tokens of labelled videos, batch by batch: computed by a frozen encoder, or read from a cache that it has filled.

Training and validation of probes see nothing else. Tokens are rounded to float16 in both cases, so that results are
the same with a cache and without.

Shapes: B videos, V views, S segments, N tokens of a clip, D features.
"""

import hashlib
import json
import math
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch.utils.data import DataLoader, default_collate

from ..core.files import write_whole, written_whole
from ..core.progress import Progress, no_progress
from ..core.settings import Settings
from ..data.clip_order import ClipRequest
from .clips import EvaluationClips, LabelledClip, TrainingClips
from .encoders.opening import FrozenEncoder
from .labelled import LabelledSet

Batches = Sequence[Sequence[ClipRequest]]
CACHE_FORMAT = 1
_KEY_FILE, _TOKEN_FILE, _STATE_FILE = "key.json", "tokens.npy", "state.npy"
_MISSING, _READABLE, _UNREADABLE = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """Tokens of some videos.

    Attributes:
        tokens: `(batch_size, num_views, num_segments, num_tokens, hidden_size)` float16, on the encoder's device.
        labels: Classes, `(batch_size,)` int64, there too.
        indices: Places in the set, `(batch_size,)`, on the CPU.
        is_readable: Which could be decoded, `(batch_size,)` bool, on the encoder's device; the tokens of others mean
            nothing.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    is_readable: torch.Tensor


class TokenSource(ABC):
    """Where tokens come from."""

    labelled: LabelledSet

    @abstractmethod
    def batches(self, requests: Batches) -> Iterator[TokenBatch | None]:
        """Tokens of these batches, in their order.

        Args:
            requests: The videos of each batch by position in the run and place in the set. An empty batch gives None.
        """


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


class EncodedClips(TokenSource):
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
            yield None if batch is None else self._encode(batch, device)

    def _encode(self, batch: dict[str, torch.Tensor], device: torch.device) -> TokenBatch:
        pixels = batch["pixel_values_videos"]
        pixels = pixels if pixels.ndim == 7 else pixels[:, None]  # (B, V, S, T, C, H, W)
        clips = pixels.flatten(0, 2)
        with torch.no_grad(), self._autocast(device):
            tokens = [
                self.encoder(part.to(device, non_blocking=True)) for part in clips.split(self.settings.clips_per_pass)
            ]
        return TokenBatch(
            tokens=self._rounded(torch.cat(tokens)).unflatten(0, pixels.shape[:3]),
            labels=batch["label"].to(device),
            indices=batch["index"],
            is_readable=batch["is_readable"].to(device),
        )

    def _rounded(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens.to(torch.float16)
        if not tokens.isfinite().all():
            raise ValueError(
                f"the encoder {self.encoder.name} gives tokens that are not finite in float16; let it compute in "
                "float32 or bfloat16 (--dtype), and check its weights"
            )
        return tokens

    def _autocast(self, device: torch.device) -> Any:
        dtype = self.settings.dtype
        return nullcontext() if dtype == "float32" else torch.autocast(device.type, dtype=getattr(torch, dtype))


def _collate(items: list[LabelledClip]) -> dict[str, torch.Tensor] | None:
    return default_collate(items) if items else None


class CachedClips(TokenSource):
    """Tokens that are computed once, and read from files from then on.

    A cache lies in a folder of its own, named after everything that its tokens depend on: the encoder's weights and
    number format, the videos by name, size and time of change, the clips and the pixels. So one is used only if all
    of it matches. What is complete in it stays so if the filling is interrupted. Videos that could not be read are
    tried again at each filling: a disk or a network may have been the cause.

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
        self.key = cache_key(source)
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()
        self.folder = Path(folder, digest[:16])

    def fill(
        self,
        *,
        rank: int = 0,
        num_processes: int = 1,
        batch_size: int = 8,
        progress: Progress = no_progress,
    ) -> None:
        """Compute what is missing of one process's share.

        Args:
            rank: Number of the process.
            num_processes: How many share the work; they must see the same folder.
            batch_size: Videos at once.
            progress: Called with the videos that are there, and all videos of the share, after each batch.

        Raises:
            OSError: There is no room for it.
            ValueError: The folder holds something else.
        """
        share = range(len(self.labelled))[rank::num_processes]
        state = self._state()
        missing = [index for index in share if state is None or state[index] != _READABLE]
        done = len(share) - len(missing)
        requests = [
            [ClipRequest(index, index) for index in missing[start : start + batch_size]]
            for start in range(0, len(missing), batch_size)
        ]
        for batch in self.source.batches(requests):
            assert batch is not None
            self._write(batch)
            done += len(batch.indices)
            progress("encoding", done, len(share))

    def batches(self, requests: Batches) -> Iterator[TokenBatch | None]:
        """Tokens of these batches, in their order."""
        device = next(self.source.encoder.parameters()).device
        state = self._state()
        if state is None:
            raise RuntimeError(f"the cache {self.folder} is empty; fill it first")
        tokens = np.load(self.folder / _TOKEN_FILE, mmap_mode="r")
        for batch in requests:
            indices = np.array([request.index for request in batch], dtype=np.int64)
            if not len(indices):
                yield None
                continue
            if (state[indices] == _MISSING).any():
                raise RuntimeError(f"the cache {self.folder} is not complete; fill it first")
            yield TokenBatch(
                tokens=torch.from_numpy(tokens[indices]).to(device),
                labels=torch.from_numpy(self.labelled.labels[indices]).to(device),
                indices=torch.from_numpy(indices),
                is_readable=torch.from_numpy(state[indices] == _READABLE).to(device),
            )

    def _write(self, batch: TokenBatch) -> None:
        """Tokens first, so that a video is only marked as there when it is."""
        self._create(batch.tokens.shape[1:])
        indices = batch.indices.numpy()
        _write_rows(self.folder / _TOKEN_FILE, indices, batch.tokens.cpu().numpy())
        state = np.where(batch.is_readable.cpu().numpy(), _READABLE, _UNREADABLE).astype(np.uint8)
        _write_rows(self.folder / _STATE_FILE, indices, state)

    def _create(self, shape: Sequence[int]) -> None:
        """Make the files if they are not there; several processes may come here at once."""
        if (self.folder / _KEY_FILE).exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        size = len(self.labelled)
        self._require_room(2 * size * math.prod(shape))
        for name, dtype, whole in ((_TOKEN_FILE, np.float16, (size, *shape)), (_STATE_FILE, np.uint8, (size,))):
            if not (self.folder / name).exists():  # the first of several processes wins: others may have rows in it
                with written_whole(self.folder / name, replace=False) as file:
                    np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=whole)
        write_whole(self.folder / _KEY_FILE, json.dumps(self.key, indent=1, sort_keys=True))

    def _require_room(self, num_bytes: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if num_bytes > free:
            raise OSError(
                f"the features of {self.labelled.description or 'the set'} take {num_bytes / 1e9:.1f} GB, but "
                f"{self.folder.parent} has {free / 1e9:.1f} GB free; name a folder with more room, or keep no features"
            )

    def _state(self) -> np.ndarray | None:
        """State of each video; None if nothing is there yet.

        Raises:
            ValueError: The folder holds something else.
        """
        file = self.folder / _KEY_FILE
        if not file.exists():
            return None
        if json.loads(file.read_text()) != self.key:
            raise ValueError(f"the cache {self.folder} belongs to something else than its name says; delete it")
        return np.load(self.folder / _STATE_FILE, mmap_mode="r")


class SubsetTokens(TokenSource):
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
        "kind": f"{type(source.encoder).__name__} with {source.encoder.num_attention_heads} heads",
        "weights_dtype": str(source.encoder.dtype),
        "dtype": source.settings.dtype,
        "videos": names.hexdigest(),
        "num_videos": len(clips.labelled),
        "media": clips.protocol.media,
        "num_views": clips.protocol.num_views,
        **clips.clip_spec.to_tree(),
        **clips.clip_format.to_tree(),
    }


def _write_rows(file: Path, rows: np.ndarray, values: np.ndarray) -> None:
    """Write some rows of a `.npy` file, and nothing else.

    Not by mapping it into memory: a map writes whole pages, in which other machines may have rows of their own, and a
    full disk ends the process without a word.
    """
    stored = np.load(file, mmap_mode="r")
    if stored.shape[1:] != values.shape[1:] or stored.dtype != values.dtype:
        raise ValueError(
            f"{file} holds {stored.dtype} of shape {stored.shape[1:]} for each video, but {values.dtype} of shape "
            f"{values.shape[1:]} are to be kept in it; delete {file.parent}"
        )
    with open(file, "r+b") as opened:
        for row, value in zip(rows.tolist(), values, strict=True):
            opened.seek(stored.offset + row * stored.strides[0])
            opened.write(value.tobytes())
        opened.flush()
        os.fsync(opened.fileno())
