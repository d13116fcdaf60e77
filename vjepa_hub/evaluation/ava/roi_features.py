"""Features of boxes: a frozen encoder's tokens, averaged over time and pooled in each box, and stored on disk.

The encoder is frozen and a key frame is seen in two ways only, as it is and mirrored. So its boxes are encoded once,
and every epoch reads them from a file; that equals encoding anew each time, up to the rounding to half precision.

Shapes: B clips, T frames, N = d x h x w tokens (depth, height, width), D features of a token, L layers, R boxes.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.ops import roi_align

from ...core.distributed import ALONE, Processes
from ...core.fingerprints import hash_weights
from ...core.progress import Progress, no_progress
from ...data.random_streams import Stream, draw_uniform
from ...features.extraction import encoder_details
from ...heads.tokens import Batches, TokenBatch, TokenSource
from ...model.modeling_vjepa import VJEPAModel
from ..feature_store import FeatureStore
from ..tokens import EncodingSettings, autocast, rounded
from .key_frames import KeyFrameClip, KeyFrameDataset

FORMAT = 3


class LayerFeatures(nn.Module):
    """A frozen encoder whose tokens of several layers become one map of the picture.

    Args:
        model: Its encoder is used. It is put into eval mode.
        layers: Blocks whose outputs are taken, numbered from 1. Each goes through its level's norm where it is a
            feature level, and through the encoder's last norm otherwise.
        name: What the model was opened by, for errors.
    """

    def __init__(self, model: VJEPAModel, layers: Sequence[int], *, name: str = "the encoder"):
        super().__init__()
        self.name = name
        self.encoder = model.encoder.eval().requires_grad_(False)
        self.layers = tuple(layers)
        self.num_features = len(self.layers) * model.config.hidden_size

    @torch.no_grad()
    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Encode clips.

        Args:
            clips: `(batch_size, num_frames, 3, height, width)`, normalised.

        Returns:
            `(batch_size, num_layers * hidden_size, height / patch, width / patch)` float32, the mean over time.
        """
        patch_size = self.encoder.config.patch_size
        rows, columns = clips.shape[-2] // patch_size, clips.shape[-1] // patch_size
        blocks = [layer - 1 for layer in self.layers]
        levels = self.encoder(clips, None, blocks, return_dict=True).feature_levels  # (B, N, D) each
        maps = [tokens.float().unflatten(1, (-1, rows, columns)).mean(dim=1) for tokens in levels]  # (B, h, w, D) each
        return torch.cat(maps, dim=-1).permute(0, 3, 1, 2)  # (B, L * D, h, w)


def pool_boxes(maps: torch.Tensor, boxes: Sequence[torch.Tensor], *, roi_size: int) -> torch.Tensor:
    """Pool maps in boxes: RoIAlign to a grid, then the maximum over it.

    Over time the mean was taken before. RoIAlign is linear, so that equals aligning each time step and averaging then.

    Args:
        maps: `(batch_size, num_features, rows, columns)`.
        boxes: Of each map, `(num_boxes, 4)`, `x1, y1, x2, y2` relative to the picture; what reaches over its edge is
            cut off.
        roi_size: Side of the grid.

    Returns:
        `(num_boxes of all maps, num_features)`.
    """
    rows, columns = maps.shape[-2:]
    scale = maps.new_tensor([columns, rows, columns, rows])
    in_tokens = [of_map.to(maps).clamp(0, 1) * scale for of_map in boxes]
    # aligned: the token (0, 0) covers [0, 1], so its centre is at 0.5 and not at 0
    pooled = roi_align(maps, in_tokens, output_size=roi_size, spatial_scale=1.0, aligned=True)
    return pooled.amax(dim=(-2, -1))


def mirror_boxes(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes of the mirrored picture, `(..., 4)`: the right edge becomes the left one."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([1 - x2, y1, 1 - x1, y2], dim=-1)


class BoxFeatures(TokenSource):
    """Stored features of the boxes in key frames: each box is an item's row, as one token of one view and segment.

    Args:
        folder: Folder of stored features.
        features: The encoder.
        dataset: Key frames, each with at least one box.
        encoding: How clips are encoded.
        flip_probability: Probability of giving a key frame mirrored; above 0, mirrored ones are stored too.
        seed: Of mirroring, with the position in the run.
        device: Where the encoder runs and the heads are.

    Raises:
        ValueError: There is no key frame with boxes.
    """

    def __init__(
        self,
        folder: str | Path,
        features: LayerFeatures,
        dataset: KeyFrameDataset,
        encoding: EncodingSettings,
        *,
        flip_probability: float = 0.0,
        seed: int = 0,
        device: torch.device,
    ):
        if not len(dataset):
            raise ValueError("no key frame has boxes; check that annotations and proposals belong together")
        self.features, self.dataset, self.encoding = features, dataset, encoding
        self.flip_probability, self.seed, self.device = flip_probability, seed, device
        counts = np.array([len(frame.boxes) for frame in dataset.key_frames])
        self.key_frame_of_row = np.repeat(np.arange(len(counts)), counts)
        self.boxes = np.concatenate([frame.boxes for frame in dataset.key_frames])
        self.labels = torch.from_numpy(np.concatenate([frame.labels for frame in dataset.key_frames]))
        self.store = FeatureStore(folder, self._key(), counts, "the key frames")

    def __len__(self) -> int:
        """Number of key frames."""
        return len(self.dataset)

    @property
    def num_classes(self) -> int:
        """Number of actions."""
        return self.labels.shape[1]

    @property
    def is_readable(self) -> np.ndarray:
        """Key frames that could be decoded, `(num_key_frames,)` bool."""
        return self.store.is_readable(np.arange(len(self)))

    def fill(self, *, progress: Progress = no_progress, processes: Processes = ALONE) -> None:
        """Compute what is missing, each process a part of the videos.

        Args:
            progress: Called with the key frames that are there, and all of this process, after each batch.
            processes: This process among those that share the work.

        Raises:
            ValueError: The features are not finite, or none of the key frames can be read.
        """
        share = np.array_split(np.arange(len(self)), processes.count)[processes.rank].tolist()
        missing = self.store.to_compute(share)
        done = len(share) - len(missing)
        self.features.to(self.device)
        for batch in DataLoader(
            Subset(self.dataset, missing),
            batch_size=self.encoding.clips_per_pass,
            num_workers=self.encoding.num_workers,
        ):
            self._write(batch)
            done += len(batch.place)
            progress("encoding key frames", done, len(share))
        processes.wait()
        if not self.is_readable.any():
            raise ValueError(f"none of {len(self)} key frames can be read; the log has the causes")

    def batches(self, requests: Batches) -> Iterator[TokenBatch | None]:
        """Features of the boxes of these key frames, in their order."""
        for batch in requests:
            places = np.array([request.index for request in batch], dtype=np.int64)
            if not len(places):
                yield None
                continue
            rows = self.store.rows(places)
            draws = draw_uniform(self.seed, [request.position for request in batch], stream=Stream.FLIP, num_draws=1)
            counts = np.bincount(self.key_frame_of_row, minlength=len(self))[places]
            is_mirrored = np.repeat((draws[:, 0] < self.flip_probability).numpy(), counts)
            values = self.store.read(rows)[np.arange(len(rows)), is_mirrored.astype(np.int64)]  # (R, L * D)
            yield TokenBatch(
                tokens=torch.from_numpy(values)[:, None, None, None].to(self.device),  # (R, 1, 1, 1, L * D)
                labels=self.labels[rows].to(self.device),
                indices=torch.from_numpy(rows),
                is_readable=torch.from_numpy(np.repeat(self.store.is_readable(places), counts)).to(self.device),
            )

    def _write(self, batch: KeyFrameClip) -> None:
        """Encode and store a batch of key frames; the pixels of unreadable ones are zeros, and so mean nothing."""
        places = batch.place.numpy()
        boxes = [torch.from_numpy(self.dataset.key_frames[place].boxes) for place in places]
        clips, roi_size = batch.pixel_values_videos.to(self.device), self.dataset.protocol.roi_size
        with autocast(self.encoding, self.device):
            views = [pool_boxes(self.features(clips), boxes, roi_size=roi_size)]
            if self.flip_probability > 0:
                mirrored = [mirror_boxes(of_frame) for of_frame in boxes]
                views.append(pool_boxes(self.features(clips.flip(-1)), mirrored, roi_size=roi_size))
        values = rounded(torch.stack(views, dim=1), self.features.name).cpu().numpy()  # (R, views, L * D)
        self.store.write(places, values, batch.is_readable.numpy())

    def _key(self) -> dict[str, Any]:
        """Plain values of all that the features depend on."""
        dataset, boxes = self.dataset, hashlib.sha256()
        for key_frame in dataset.key_frames:
            boxes.update(
                f"{key_frame.id} {dataset.stamp(key_frame.id.video_id)}\n".encode() + key_frame.boxes.tobytes()
            )
        protocol = dataset.protocol
        return {
            "format": FORMAT,
            "encoder": hash_weights(self.features.encoder.state_dict()),
            "encoder_details": encoder_details(self.features.encoder.config),
            "layers": list(self.features.layers),
            "key_frames": boxes.hexdigest(),
            "frames_per_clip": protocol.frames_per_clip,
            "frame_step": protocol.frame_step,
            "clip_fps": protocol.clip_fps,
            "roi_size": protocol.roi_size,
            "crop_size": dataset.crop_size,
            "mean": list(dataset.mean),
            "std": list(dataset.std),
            "start_second": dataset.start_second,
            "has_mirrored": self.flip_probability > 0,
            "dtype": self.encoding.dtype,
        }
